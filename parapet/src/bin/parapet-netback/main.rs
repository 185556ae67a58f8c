//! The `parapet-netback` command: netback as a daemon on a Xen host.

#![forbid(unsafe_code)]

mod cli;
mod serve;

fn main() -> std::process::ExitCode {
    cli::main()
}
