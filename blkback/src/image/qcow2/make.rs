//! Making images, looking at them, and putting an overlay into what is behind it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::FormatCreateBuilder;
use imago::ShallowMapping;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::super::file::size;
use super::super::lock::Locked;
use super::super::opening::Opening;
use super::super::{Access, OpenError};
use super::chain::{Base, Layer, Top, Trust, backing_file, read_header};
use super::header::{self, Header};
use super::snapshots::{self, Snapshot};
use super::{allocated, whole_clusters, write_zeroes};

/// How much is copied at once.
const PIECE: u64 = 1 << 20;

/// What a new image shows where it has nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backed {
    /// The name that it will have for it: from its own folder, if it is relative.
    pub name: String,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// Makes an image of `bytes` bytes in `file`, which must be empty.
///
/// # Errors
/// The host's.
pub fn create(file: &File, bytes: u64, backed: Option<Backed>) -> io::Result<()> {
    // In clusters of 64 KiB, as they will be.
    if bytes > header::most_bytes(16) {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let storage: imago::file::File = file.try_clone()?.try_into()?;
    let mut builder = Qcow2::<_, Layer>::create_builder(storage).size(bytes);
    if let Some(Backed { name, format }) = backed {
        builder = builder.backing(name, format);
    }
    builder.create()?;
    file.sync_all()
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// What its header says.
    pub header: Header,
    /// How long its file is.
    pub file_bytes: u64,
    /// How much room its file takes up.
    pub used_bytes: u64,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
}

/// Looks at an image, though others use it.
///
/// # Errors
/// It cannot be read, or is unsound.
pub fn info(path: &Path) -> Result<Info, OpenError> {
    let opening = Opening {
        path,
        access: Access::ReadOnly,
    };
    let (file, metadata) = opening.file(false)?;
    let header = read_header(path, &file)?;
    let snapshots = snapshots::read(path, &file, &header)?;
    Ok(Info {
        snapshots,
        header,
        file_bytes: size(&file).map_err(|error| opening.failed("measured", error))?,
        used_bytes: metadata.blocks() * 512,
    })
}

/// What an overlay is put into.
struct Under {
    /// Dropped first: it writes what it has kept.
    layer: Layer,
    file: Locked,
    path: PathBuf,
    cluster: u64,
    /// What is behind that, kept from those who would write to it.
    _base: Option<Arc<Base>>,
}

/// Writes all that the image at `path` has into its backing file, and empties it. The disk that it
/// shows is the same before, meanwhile, and after. `progress` hears how many bytes of how many have
/// been looked at.
///
/// # Errors
/// One line that says what failed. Nothing is lost: what has been written is in both.
pub fn commit(
    path: &Path,
    trust: &Trust,
    mut progress: impl FnMut(u64, u64),
) -> Result<PathBuf, OpenError> {
    let mut top = Top::open(path, Access::ReadWrite, trust, true)?;
    let failed = |what| {
        move |source| OpenError::Host {
            path: path.into(),
            what,
            source,
        }
    };
    if top.header.snapshots > 0 {
        let why = "it has snapshots, which would show other data: delete them first".into();
        return Err(OpenError::Format {
            path: path.into(),
            format: "qcow2",
            why,
        });
    }
    let mut under = Under::open(path, &top, trust)?;
    let total = top.layer.size();
    if under.layer.size() < total {
        under
            .layer
            .resize(total, PreallocateMode::Zero)
            .map_err(failed("put into its backing file, which should grow"))?;
    }
    let copied = copy(&top.layer, &under.layer, under.cluster, |done| {
        progress(done, total)
    })
    .and_then(|()| under.layer.flush())
    .and_then(|()| under.file.file().sync_all());
    copied.map_err(failed("put into its backing file"))?;
    // Only now that it is there for good.
    empty(&mut top).map_err(failed("emptied, though its backing file has all of it"))?;
    Ok(under.path)
}

impl Under {
    fn open(path: &Path, top: &Top, trust: &Trust) -> Result<Self, OpenError> {
        let (name, raw) = backing_file(path, top, trust)?;
        if !raw {
            let Top {
                layer,
                file,
                base,
                header,
                ..
            } = Top::open(&name, Access::ReadWrite, trust, false)?;
            return Ok(Under {
                layer,
                file,
                path: name,
                cluster: header.cluster(),
                _base: base,
            });
        }
        let opening = Opening {
            path: &name,
            access: Access::ReadWrite,
        };
        let (file, _) = opening.file(false)?;
        let file = opening.lock(file)?;
        let layer = file
            .file()
            .try_clone()
            .and_then(imago::file::File::try_from)
            .and_then(|storage| Raw::open_image(storage, true))
            .map_err(|error| opening.failed("opened", error))?;
        Ok(Under {
            layer: Layer::new(layer),
            file,
            path: name,
            cluster: 512,
            _base: None,
        })
    }
}

/// Copies what `from` has itself.
fn copy(from: &Layer, to: &Layer, cluster: u64, mut progress: impl FnMut(u64)) -> io::Result<()> {
    let total = from.size();
    let mut piece = vec![0; PIECE as usize];
    let mut at = 0;
    while at < total {
        let (mapping, len) = from.get_shallow_mapping(at, total - at)?;
        let (nothing, zero) = match mapping {
            ShallowMapping::Zero { explicit, .. } => (!explicit, explicit),
            _ => (false, false),
        };
        let len = match len {
            0 => break,
            len if nothing || zero => len,
            len => len.min(PIECE),
        };
        if zero {
            zeroes(to, at, len, cluster)?;
        } else if !nothing {
            let piece = piece.get_mut(..len as usize).unwrap_or_default();
            from.read(&mut *piece, at)?;
            to.write(&*piece, at)?;
        }
        at += len;
        progress(at);
    }
    Ok(())
}

/// Sees to it that a range reads as zeroes, in as little room as the format lets us.
fn zeroes(to: &Layer, at: u64, len: u64, cluster: u64) -> io::Result<()> {
    let (start, end) = whole_clusters(at, len, cluster, to.size());
    if start >= end {
        return write_zeroes(to, at, len);
    }
    write_zeroes(to, at, start - at)?;
    match to.write_zeroes(start, end - start) {
        // Images of version 2 have no way to say so.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            write_zeroes(to, start, end - start)?;
        }
        outcome => outcome?,
    }
    write_zeroes(to, end, at + len - end)
}

/// Takes everything out of an image, and gives back the room.
fn empty(top: &mut Top) -> io::Result<()> {
    let total = top.layer.size();
    let mut at = 0;
    while at < total {
        let len = super::DISCARD.min(total - at);
        // The last cluster goes too, though the disk may end within it.
        let freed = allocated(&top.layer, at, len, top.header.cluster())?;
        top.layer.discard_to_backing(at, len)?;
        top.layer.flush()?;
        super::punch(top.file.file(), freed);
        at += len;
    }
    top.file.file().sync_all()
}
