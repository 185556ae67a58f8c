//! `parapet blk resize`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use parapet_blkback::image::{Access, Spec};
use parapet_hypervisor::host::Ram;

use super::create;

/// Gives a disk image another size.
///
/// What is new reads as zeroes. An image that somebody uses is refused: a running guest's disk is
/// resized by its backend. What is behind the new end is lost, which must be asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A path for a raw image, qcow2:PATH, or overlay:PATH.
    image: Spec,

    /// The new size: a number of bytes, or one with K, M, G or T; after a + how much is added.
    #[arg(value_parser = Size::parse)]
    size: Size,

    /// Makes it smaller, too.
    #[arg(long)]
    shrink: bool,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk resize disk.img 20G
  parapet blk resize qcow2:guest7.qcow2 +5G
  parapet blk resize --shrink disk.img 1G";

#[derive(Debug, Clone, Copy)]
enum Size {
    Whole(u64),
    More(u64),
}

impl Size {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => create::size(more).map(Size::More),
            None => create::size(text).map(Size::Whole),
        }
    }
}

pub(super) fn resize(args: &Args) -> Result<ExitCode> {
    let Args {
        image,
        size,
        shrink,
    } = args;
    let opened = image.open::<Ram>(Access::ReadWrite)?;
    let before = opened.sectors();
    let after = match size {
        Size::Whole(bytes) => bytes / 512,
        Size::More(bytes) => before
            .checked_add(bytes / 512)
            .context("no disk is as large as that")?,
    };
    ensure!(
        after >= before || *shrink,
        "{image} has {} bytes: with --shrink what is behind the new end is lost",
        before * 512
    );
    let resized = opened.resize(after);
    resized.with_context(|| format!("{image}: it cannot have that size"))?;
    drop(opened);
    writeln!(
        io::stdout(),
        "resized {image} from {} to {} bytes",
        before * 512,
        after * 512
    )?;
    Ok(ExitCode::SUCCESS)
}
