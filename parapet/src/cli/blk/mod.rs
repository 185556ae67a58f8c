//! `parapet blk`: single disk images.

mod copy;
mod sum;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Makes, examines, changes and uses single disk images.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Blk {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk sum disk.img             as `sha256sum disk.img`, through a guest's disk
  parapet blk copy old.img new.img     copies an image, through a guest with two disks";

#[derive(Debug, Subcommand)]
enum Command {
    Sum(sum::Args),
    Copy(copy::Args),
}

/// Does what the command line says.
pub(super) fn blk(args: &Blk) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Sum(args) => sum::sum(args),
        Command::Copy(args) => copy::copy(args),
    }
}
