//! The `parapet-blkback` command: blkback as a daemon on a Xen host.

#![forbid(unsafe_code)]

mod cli;
mod ready;
mod serve;

fn main() -> std::process::ExitCode {
    cli::main()
}
