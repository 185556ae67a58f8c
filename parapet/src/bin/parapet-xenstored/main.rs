//! The `parapet-xenstored` command: xenstored as a daemon, on a Xen host or off it.
//!
//! ```text
//!   local clients ── unix socket ──┐                     one thread
//!   domain 0's kernel ── ring ─────┼──► Daemon ──► Store
//!   guests ── grant 1, a port ─────┘      ▲
//!   Xen ── VIRQ_DOM_EXC ── look around ───┘ sysctl: who shut down, who is gone?
//! ```

#![forbid(unsafe_code)]

mod cli;
mod domains;
mod serve;

fn main() -> std::process::ExitCode {
    cli::main()
}
