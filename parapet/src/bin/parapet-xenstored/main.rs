//! The `parapet-xenstored` command: xenstored as a daemon, on a Xen host or off it.
//!
//! ```text
//!   local clients ── unix socket ──┐                     one thread
//!   domain 0's kernel ── ring ─────┼──► Daemon ──► Store
//!   guests ── grant 1, a port ─────┘      ▲
//!   Xen ── VIRQ_DOM_EXC ── look around ───┘ sysctl: who shut down, who is gone?
//! ```
//!
//! CONTROL live-update makes the process another program, with all its connections: `successor` is
//! how it is left, and `serve` how it is taken up.

#![forbid(unsafe_code)]

mod c_options;
mod cli;
mod domains;
mod serve;
mod state;
mod successor;

fn main() -> std::process::ExitCode {
    cli::main()
}
