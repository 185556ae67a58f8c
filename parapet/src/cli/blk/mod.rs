//! `parapet blk`: single disk images.

mod bench;
mod commit;
mod copy;
mod create;
mod export;
mod info;
mod resize;
mod snapshot;
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
  parapet blk create --base golden.img overlay:guest7.qcow2
  parapet blk info overlay:guest7.qcow2
  parapet blk sum disk.img             as `sha256sum disk.img`, through a guest's disk
  parapet blk copy old.img new.img     copies an image, through a guest with two disks
  parapet blk export disk.img --nbd S  a guest's disk for NBD clients, at the socket S
  parapet blk bench disk.img           how many requests it does, and how long each takes";

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Args),
    Info(info::Args),
    Resize(resize::Args),
    Snapshot(snapshot::Args),
    Commit(commit::Args),
    Sum(sum::Args),
    Copy(copy::Args),
    Export(export::Args),
    Bench(bench::Args),
}

/// Does what the command line says.
pub(super) fn blk(args: &Blk) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Create(args) => create::create(args),
        Command::Info(args) => info::info(args),
        Command::Resize(args) => resize::resize(args),
        Command::Snapshot(args) => snapshot::snapshot(args),
        Command::Commit(args) => commit::commit(args),
        Command::Sum(args) => sum::sum(args),
        Command::Copy(args) => copy::copy(args),
        Command::Export(args) => export::export(args),
        Command::Bench(args) => bench::bench(args),
    }
}
