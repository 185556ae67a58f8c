//! `parapet blk copy`.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use parapet::config::GuestConfig;
use parapet::programs::Outcome;
use parapet_blkback::image::{Access, FileImage};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::NamedTempFile;

use crate::cli::{guests, images, output};

/// Copies a disk image: a guest reads one disk, writes another, and flushes it.
///
/// If TARGET is no device, the copy is made under a temporary name beside it, and takes its name
/// when it is complete and flushed: whatever ends the copy early, there is never a TARGET that is
/// only half written, and one that was there before is as it was. A TARGET that exists is refused
/// without --force. With it, a file is replaced by the copy, and keeps its permissions; a block
/// device, which must be at least as large as SOURCE, is written in place from its beginning.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A raw image, or a block device.
    source: PathBuf,

    /// A new image, or, with --force, an image or a block device that is there.
    target: PathBuf,

    /// Replaces a TARGET that exists; writes to it if it is a block device.
    #[arg(short, long)]
    force: bool,

    /// Prints the report as JSON instead of text.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk copy golden.img guest7.img
  parapet blk copy --force golden.img /dev/vg/guest7
  parapet blk copy --json golden.img guest7.img";

/// For scripts.
#[derive(Serialize)]
struct Report<'a> {
    source: &'a Path,
    target: &'a Path,
    bytes: u64,
    seconds: f64,
}

pub(super) fn copy(args: &Args) -> Result<ExitCode> {
    let Args {
        source,
        target,
        force,
        json,
    } = args;
    // Whatever is wrong with it is said before anything is made.
    FileImage::open(source, Access::ReadOnly)?;
    let size = size(source)?;
    let place = Place::of(source, target, *force)?;
    let draft = place.draft(size)?;
    let guest = GuestConfig {
        disks: vec![
            images::disk("xvda", "ro", source)?,
            images::disk("xvdb", "rw", draft.path())?,
        ],
        kernel: Some("copy".into()),
        ..GuestConfig::new("copy")
    };
    let (outcome, time) = guests::run_one(&guests::boot(None, Vec::new())?, guest)
        .with_context(|| format!("{} was not copied", source.display()))?;
    let Outcome::Copy { bytes } = outcome else {
        bail!("{} was not copied: the guest {outcome}", source.display());
    };
    ensure!(
        bytes == size,
        "{} has changed its size while it was copied: copy it again when nobody does that",
        source.display()
    );
    draft.publish()?;

    let seconds = time.as_secs_f64();
    if *json {
        output::json(&Report {
            source,
            target,
            bytes,
            seconds,
        })?;
    } else {
        let megabytes = bytes as f64 / 1e6;
        writeln!(
            io::stdout(),
            "copied {megabytes:.1} MB from {} to {} in {seconds:.2} s, {:.0} MB/s",
            source.display(),
            target.display(),
            megabytes / seconds
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The size of a file or a block device.
fn size(path: &Path) -> Result<u64> {
    let end = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    end.with_context(|| format!("{}: cannot tell its size", path.display()))
}

/// Where the copy goes.
enum Place {
    /// A name that nothing has.
    New(PathBuf),
    /// A file, to be replaced by one with the same permissions.
    File(PathBuf, Permissions),
    /// A device, to be written.
    Device(PathBuf),
}

impl Place {
    fn of(source: &Path, target: &Path, force: bool) -> Result<Self> {
        let name = target.display();
        let there = match fs::metadata(target) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link to nothing would be replaced, and not what it leads to.
                ensure!(
                    fs::symlink_metadata(target).is_err(),
                    "{name} is a link to nothing: remove it, or name what it should lead to"
                );
                ensure!(
                    target.file_name().is_some(),
                    "{name:?} is no name for an image: give one such as copy.img"
                );
                return Ok(Place::New(target.into()));
            }
            Err(error) => return Err(error).with_context(|| format!("{name}: cannot look at it")),
        };
        ensure!(
            !there.is_dir(),
            "{name} is a directory: give the name of the new image in it, too"
        );
        let same = |source: Metadata| (source.dev(), source.ino()) == (there.dev(), there.ino());
        ensure!(
            !fs::metadata(source).is_ok_and(same),
            "{} and {name} are the same file: give another name for the copy",
            source.display()
        );
        ensure!(
            force,
            "{name} exists: give --force if the copy is to replace it, or another name"
        );
        if there.is_file() {
            // Where it leads to if it is a link.
            let path = fs::canonicalize(target).with_context(|| format!("{name}"))?;
            Ok(Place::File(path, there.permissions()))
        } else if there.file_type().is_block_device() {
            Ok(Place::Device(target.into()))
        } else {
            bail!("{name} is neither a file nor a block device: give another name for the copy")
        }
    }

    /// What is written until the copy is complete.
    fn draft(self, size: u64) -> Result<Draft> {
        let (path, permissions, replace) = match self {
            Place::New(path) => (path, None, false),
            Place::File(path, permissions) => (path, Some(permissions), true),
            Place::Device(path) => {
                let room = self::size(&path)?;
                ensure!(
                    size <= room,
                    "{} has room for {room} bytes, and the copy has {size}: give a larger device",
                    path.display()
                );
                return Ok(Draft::Device(path));
            }
        };
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // For a new file, what the umask leaves of it.
        let permissions = permissions.unwrap_or_else(|| Permissions::from_mode(0o666));
        // Caught before there is a file, so that no signal comes between the two.
        let signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        let file = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".partial")
            .permissions(Permissions::from_mode(permissions.mode() & 0o777))
            .tempfile_in(folder)
            .with_context(|| format!("{}: cannot make a file beside it", path.display()))?;
        remove_at_signal(signals, file.path());
        if replace {
            let set = file.as_file().set_permissions(permissions);
            set.with_context(|| format!("{}: cannot keep its permissions", path.display()))?;
        }
        images::reserve(file.as_file(), size).with_context(|| {
            format!(
                "{}: cannot have {size} bytes there, make room or choose another folder",
                path.display()
            )
        })?;
        Ok(Draft::File {
            file,
            path,
            replace,
        })
    }
}

/// A copy that is not complete. Dropping it removes it, if it is a file.
enum Draft {
    File {
        file: NamedTempFile,
        /// The name that it will have.
        path: PathBuf,
        /// Whether somebody has that now.
        replace: bool,
    },
    Device(PathBuf),
}

impl Draft {
    fn path(&self) -> &Path {
        match self {
            Draft::File { file, .. } => file.path(),
            Draft::Device(path) => path,
        }
    }

    /// It is complete and flushed: gives it its name, for good.
    fn publish(self) -> Result<()> {
        let Draft::File {
            file,
            path,
            replace,
        } = self
        else {
            return Ok(());
        };
        let folder = file.path().parent().map(Path::to_owned).unwrap_or_default();
        let named = if replace {
            file.persist(&path)
        } else {
            file.persist_noclobber(&path)
        };
        named
            .map_err(|error| error.error)
            .with_context(|| format!("{}: the copy cannot have that name", path.display()))?;
        // A name is durable when its folder is.
        File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("{}: cannot be flushed", folder.display()))
    }
}

/// Sees to it that a signal that ends us does not leave the file behind.
fn remove_at_signal(mut signals: Signals, path: &Path) {
    let path = path.to_owned();
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // If it has its final name already, there is nothing to remove.
            let _ = fs::remove_file(&path);
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
}
