//! `parapet net`.

mod bench;
mod capture;
mod tap;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Works with network devices, through guests of its own.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Net {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  parapet net bench --size 64          how many packets go from guest to guest, and how fast
  parapet net capture vif5.0 -w 5.pcapng   the frames of a vif of parapet-netback, until Ctrl-C
  parapet net tap --tap vif0@red --tap vif0@blue   joins two namespaces by vifs and a switch";

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Args),
    Tap(tap::Args),
    Capture(capture::Args),
}

/// Does what the command line says.
pub(super) fn net(args: &Net) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Bench(args) => bench::bench(args),
        Command::Tap(args) => tap::tap(args),
        Command::Capture(args) => capture::capture(args),
    }
}
