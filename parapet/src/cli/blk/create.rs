//! `parapet blk create`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use parapet_blkback::image::{Access, Spec, parse_size, qcow2};
use parapet_hypervisor::host::Ram;

/// Makes a disk image: a raw one, a qcow2 one, or an overlay that shows a base where it has nothing
/// itself.
///
/// An overlay is a qcow2 image that takes up room only for what is written to it, and leaves its
/// base as it is; any number of overlays can have the same base. It has the size of its base
/// unless another is given. A guest can use it as it was named here if the base is in its folder, or
/// below that, and else as overlay=FOLDER:IMAGE.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The new image: a path for a raw one, qcow2:PATH, or overlay:PATH.
    image: Spec,

    /// Its size: a number of bytes, or one with K, M, G or T.
    #[arg(required_unless_present = "base", value_parser = size)]
    size: Option<u64>,

    /// What an overlay shows: a path for a raw image, qcow2:PATH, or overlay:PATH.
    #[arg(short, long, value_name = "IMAGE")]
    base: Option<Spec>,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk create disk.img 10G
  parapet blk create qcow2:disk.qcow2 10G
  parapet blk create --base golden.img overlay:guest7.qcow2
  parapet blk create --base overlay:guest7.qcow2 overlay:trial.qcow2 20G";

/// A size for a disk.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).ok_or("it should be a number of bytes, or one such as 10G")?;
    if bytes == 0 || !bytes.is_multiple_of(512) {
        return Err("it should be a multiple of 512 bytes, and not zero".into());
    }
    Ok(bytes)
}

pub(super) fn create(args: &Args) -> Result<ExitCode> {
    let Args { image, size, base } = args;
    let Some(path) = image.path() else {
        bail!("{image} is not kept in a file: give a path, qcow2:PATH or overlay:PATH");
    };
    if let Spec::File(path) = image {
        ensure!(
            base.is_none(),
            "{} would be a raw image, which has no base: name it overlay:{}",
            path.display(),
            path.display()
        );
    }
    let backed = match base {
        Some(base) => Some(Backed::of(base, path)?),
        None => None,
    };
    let bytes = size.or(backed.as_ref().map(|backed| backed.bytes));
    let bytes = bytes.context("the image needs a size")?;

    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    let file = file.with_context(|| format!("{}: it cannot be made", path.display()))?;
    let backed = backed.map(|backed| backed.named);
    let made = match image {
        Spec::Qcow2 { .. } => qcow2::create(&file, bytes, backed),
        _ => file.set_len(bytes).and_then(|()| file.sync_all()),
    };
    // As a guest will: what is wrong with it is said now.
    let outcome = made
        .with_context(|| format!("{}: it cannot be written", path.display()))
        .and_then(|()| Ok(image.open::<Ram>(Access::ReadOnly)?));
    if let Err(error) = outcome {
        // Nothing was there before.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    writeln!(io::stdout(), "made {image} of {bytes} bytes")?;
    Ok(ExitCode::SUCCESS)
}

/// What an overlay is made on.
struct Backed {
    bytes: u64,
    named: qcow2::Backed,
}

impl Backed {
    /// Names `base` in a way that is understood from the folder of `image`.
    fn of(base: &Spec, image: &Path) -> Result<Self> {
        let (path, format) = match base {
            Spec::File(path) => (path, "raw"),
            Spec::Qcow2 { path, .. } => (path, "qcow2"),
            _ => bail!("{base} is not kept in a file, and cannot be a base"),
        };
        let bytes = base.open::<Ram>(Access::ReadOnly)?.sectors() * 512;
        let found = |path: &Path| {
            let found = fs::canonicalize(path);
            found.with_context(|| format!("{}: cannot look at it", path.display()))
        };
        let folder = match image.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let place: PathBuf = found(path)?;
        // Below its folder, so that both can be moved together.
        let name = match place.strip_prefix(found(folder)?) {
            Ok(below) => below.to_path_buf(),
            Err(_) => place,
        };
        let name = name
            .into_os_string()
            .into_string()
            .ok()
            .with_context(|| format!("{}: its name is not UTF-8: rename it", path.display()))?;
        Ok(Backed {
            bytes,
            named: qcow2::Backed {
                name,
                format: format.into(),
            },
        })
    }
}
