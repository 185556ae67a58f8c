//! `parapet blk commit`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use parapet_blkback::image::{Spec, qcow2};

use crate::cli::output;

/// Writes all that an overlay has into its base, and empties the overlay.
///
/// The disk that the overlay shows is the same before and after. Nobody may use either, nor any
/// other overlay of that base: they would see what they did not write. If it ends early nothing is
/// lost, and it can be done again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// overlay:PATH, or overlay=FOLDER:PATH if the base is neither in its folder nor below.
    image: Spec,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk commit overlay:guest7.qcow2
  parapet blk commit overlay=/srv/golden:/srv/guests/guest7.qcow2";

pub(super) fn commit(args: &Args) -> Result<ExitCode> {
    let Spec::Qcow2 { path, trust } = &args.image else {
        bail!(
            "{} has no base: name an overlay as overlay:PATH",
            args.image
        );
    };
    let bar = output::bar(0);
    let into = qcow2::commit(path, trust, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    writeln!(io::stdout(), "put {} into {}", args.image, into?.display())?;
    Ok(ExitCode::SUCCESS)
}
