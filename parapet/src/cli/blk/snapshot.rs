//! `parapet blk snapshot`.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Subcommand;
use parapet_blkback::image::Spec;
use parapet_blkback::image::qcow2::snapshots::{self, Snapshot};
use parapet_blkback::image::{OpenError, qcow2};
use serde::Serialize;

use crate::cli::output;

/// Makes, lists, applies and deletes the snapshots that a qcow2 image keeps of itself.
///
/// A snapshot shares with its image what has not been written since. An image that somebody uses is
/// refused, but for listing. Whatever ends a command early, the image is as it was before or as it
/// was to be.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk snapshot create qcow2:guest7.qcow2 before-upgrade
  parapet blk snapshot list qcow2:guest7.qcow2
  parapet blk snapshot apply qcow2:guest7.qcow2 before-upgrade
  parapet blk snapshot delete qcow2:guest7.qcow2 before-upgrade";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a snapshot of an image as it is now.
    Create(Named),
    /// Lists an image's snapshots.
    List(List),
    /// Makes an image what it was: what was written since is lost, unless a snapshot has it.
    Apply(Named),
    /// Forgets a snapshot, and gives back the room that only it takes up.
    Delete(Named),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// qcow2:PATH, or overlay:PATH.
    image: Spec,

    /// The snapshot's name; one that is there may also be called by its number.
    name: String,
}

#[derive(Debug, clap::Args)]
struct List {
    /// qcow2:PATH, or overlay:PATH.
    image: Spec,

    /// Prints one JSON object a line instead.
    #[arg(long)]
    json: bool,
}

/// A snapshot, for scripts and for people.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    id: String,
    name: String,
    /// When it was made, in seconds since 1970.
    seconds: u32,
    /// The disk's.
    bytes: u64,
}

impl From<&Snapshot> for Line {
    fn from(snapshot: &Snapshot) -> Self {
        Line {
            id: snapshot.id.clone(),
            name: snapshot.name.clone(),
            seconds: snapshot.seconds,
            bytes: snapshot.bytes,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line {
            id,
            name,
            seconds,
            bytes,
        } = self;
        let made = UNIX_EPOCH + Duration::from_secs((*seconds).into());
        let ago = made.elapsed().unwrap_or_default();
        let ago = indicatif::HumanDuration(ago);
        write!(f, "{id} {name}, {bytes} bytes, {ago} ago")
    }
}

pub(super) fn snapshot(args: &Args) -> Result<ExitCode> {
    type Change = fn(&Path, &str) -> Result<(), OpenError>;
    let (done, change, Named { image, name }): (_, Change, _) = match &args.verb {
        Verb::List(args) => return list(args),
        Verb::Create(named) => ("made", snapshots::create, named),
        Verb::Apply(named) => ("applied", snapshots::apply, named),
        Verb::Delete(named) => ("deleted", snapshots::delete, named),
    };
    change(path(image)?, name)?;
    writeln!(io::stdout(), "{done} snapshot {name} of {image}")?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: &List) -> Result<ExitCode> {
    let found = qcow2::info(path(&args.image)?)?;
    for line in found.snapshots.iter().map(Line::from) {
        if args.json {
            output::json(&line)?;
        } else {
            writeln!(io::stdout(), "{line}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(image: &Spec) -> Result<&Path> {
    match image {
        Spec::Qcow2 { path, .. } => Ok(path),
        other => bail!("{other} has no snapshots: name a qcow2 image as qcow2:PATH"),
    }
}
