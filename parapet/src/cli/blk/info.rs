//! `parapet blk info`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use parapet_blkback::image::{Access, Spec, qcow2};
use parapet_hypervisor::host::Ram;
use serde::Serialize;

use super::snapshot;
use crate::cli::output;

/// Says what disk images are: their size, how much room they take up, what is behind them, and
/// their snapshots.
///
/// Files are only looked at, and may be in use. The format of an image is what its name says, and
/// never guessed from what is in it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Images: a path for a raw one, qcow2:PATH, overlay:PATH, or an NBD server such as
    /// nbd://HOST/EXPORT.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<Spec>,

    /// Prints one JSON object a line instead.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk info disk.img
  parapet blk info qcow2:guest7.qcow2
  parapet blk info --json overlay:guest7.qcow2 | jq .backing.name";

/// For scripts, and for people.
#[derive(Debug, Serialize)]
struct Info {
    image: String,
    format: &'static str,
    /// The disk's.
    bytes: u64,
    /// How much room it takes up, if it is a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing: Option<Backing>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<snapshot::Line>,
}

#[derive(Debug, Serialize)]
struct Backing {
    name: String,
    format: Option<String>,
}

pub(super) fn info(args: &Args) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for image in &args.images {
        match of(image) {
            Ok(info) if args.json => output::json(&info)?,
            Ok(info) => print(&info)?,
            Err(error) => {
                output::complain(&error);
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn of(image: &Spec) -> Result<Info> {
    let mut info = Info {
        image: image.to_string(),
        format: "raw",
        bytes: 0,
        used_bytes: image.path().and_then(used),
        cluster_bytes: None,
        backing: None,
        snapshots: Vec::new(),
    };
    match image {
        Spec::Qcow2 { path, .. } => {
            let found = qcow2::info(path)?;
            info.format = "qcow2";
            info.bytes = found.header.bytes;
            info.cluster_bytes = Some(found.header.cluster());
            info.backing = found.header.backing.map(|backing| Backing {
                name: backing.name,
                format: backing.format,
            });
            info.snapshots = found.snapshots.iter().map(snapshot::Line::from).collect();
        }
        Spec::File(path) if path.is_file() => {
            let metadata = fs::metadata(path);
            info.bytes = metadata
                .with_context(|| format!("{}: cannot look at it", path.display()))?
                .len();
        }
        other => {
            if let Spec::Nbd(_) = other {
                info.format = "nbd";
            }
            info.bytes = other.open::<Ram>(Access::ReadOnly)?.sectors() * 512;
        }
    }
    Ok(info)
}

/// The room that a file takes up.
fn used(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    metadata.is_file().then(|| metadata.blocks() * 512)
}

fn print(info: &Info) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", info.image)?;
    writeln!(out, "  format      {}", info.format)?;
    writeln!(out, "  size        {}", bytes(info.bytes))?;
    if let Some(used) = info.used_bytes {
        writeln!(out, "  takes up    {}", bytes(used))?;
    }
    if let Some(cluster) = info.cluster_bytes {
        writeln!(out, "  clusters    {}", bytes(cluster))?;
    }
    if let Some(Backing { name, format }) = &info.backing {
        let format = format.as_deref().unwrap_or("of an unsaid format");
        writeln!(out, "  base        {name} ({format})")?;
    }
    for snapshot in &info.snapshots {
        writeln!(out, "  snapshot    {snapshot}")?;
    }
    Ok(())
}

/// As people read it, and exactly.
fn bytes(bytes: u64) -> String {
    match indicatif::HumanBytes(bytes).to_string() {
        short if bytes >= 1024 => format!("{short} ({bytes} bytes)"),
        _ => format!("{bytes} bytes"),
    }
}
