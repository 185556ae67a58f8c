//! Opening a qcow2 image, and the files behind it that may be opened.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::super::file::size;
use super::super::lock::Locked;
use super::super::opening::Opening;
use super::super::{Access, OpenError};
use super::header::{Backing, Header, HeaderError, MAX_CLUSTER, MIN_CLUSTER, extent};
use super::recount::recount;

/// A disk in some format, as imago gives access to it.
pub(super) type Layer = FormatAccess<imago::file::File>;
type Qcow2Layer = Qcow2<imago::file::File, Arc<Layer>>;

/// The most files behind an image. More than that is a mistake, or meant to do harm.
const MOST: usize = 16;

/// Which backing files may be opened. An image names its own, so whoever made the image chooses:
/// it would show a guest any file of the host that the name reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// None.
    Nothing,
    /// Those in the folder of the image, or in a folder below that.
    Beside,
    /// Those in this folder, or in a folder below it.
    Below(PathBuf),
}

/// A format of a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    Raw,
    Qcow2,
}

/// An image that may be written, and that nobody else may write.
pub(super) struct Top {
    /// Dropped first: it writes what it has kept.
    pub(super) layer: Layer,
    pub(super) header: Header,
    /// All clusters of the chain are at most as large.
    pub(super) largest_cluster: u64,
    pub(super) file: Locked,
    pub(super) base: Option<Arc<Base>>,
}

/// A file that shows where another has nothing. It is open once, however many images it is behind,
/// and nobody may write to it meanwhile.
#[derive(Debug)]
pub(super) struct Base {
    layer: Arc<Layer>,
    path: PathBuf,
    largest_cluster: u64,
    /// How many there are, with this one.
    length: usize,
    below: Option<Arc<Base>>,
    _file: Locked,
}

/// Device, inode, and format: those that are open.
type Key = (u64, u64, Format);
static BASES: LazyLock<Mutex<HashMap<Key, Weak<Base>>>> = LazyLock::new(Mutex::default);

impl Base {
    /// How much there is to show.
    pub(super) fn bytes(&self) -> u64 {
        self.layer.size()
    }
}

impl Top {
    /// Opens the image at `path`, without what is behind it if `alone`.
    pub(super) fn open(
        path: &Path,
        access: Access,
        trust: &Trust,
        alone: bool,
    ) -> Result<Self, OpenError> {
        let opening = Opening { path, access };
        let (file, _) = opening.file(false)?;
        let file = opening.lock(file)?;
        let header = read_header(path, file.file())?;
        if access == Access::ReadWrite {
            match recount(file.file(), &header) {
                Ok(0) => {}
                Ok(found) => log::warn!(
                    "{}: {found} clusters in use were not counted, as whoever wrote it was killed",
                    path.display()
                ),
                Err(error) => return Err(unsound(path, &error.to_string())),
            }
        }
        let base = match &header.backing {
            Some(backing) if !alone => {
                Some(Chain::new(path, file.file(), trust)?.open(path, backing)?)
            }
            _ => None,
        };
        let writable = access == Access::ReadWrite;
        let layer = qcow2(file.file(), writable, base.as_ref())
            .map_err(|error| unsound(path, &error.to_string()))?;
        let below = base.as_ref().map_or(0, |base| base.largest_cluster);
        Ok(Top {
            layer,
            largest_cluster: header.cluster().max(below),
            header,
            file,
            base,
        })
    }
}

/// What imago knows of a file.
fn storage(file: &File) -> io::Result<imago::file::File> {
    file.try_clone()?.try_into()
}

fn qcow2(file: &File, writable: bool, base: Option<&Arc<Base>>) -> io::Result<Layer> {
    let mut qcow2 = Qcow2Layer::open_image(storage(file)?, writable)?;
    // Not what the image names, which has been looked at: what was made of that.
    qcow2.set_data_file(None);
    qcow2.set_backing(base.map(|base| Arc::clone(&base.layer)));
    Ok(FormatAccess::new(qcow2))
}

/// The first cluster, checked.
pub(super) fn read_header(path: &Path, file: &File) -> Result<Header, OpenError> {
    let opening = Opening {
        path,
        access: Access::ReadOnly,
    };
    let failed = |error| opening.failed("read", error);
    let wrong = |error: HeaderError| unsound(path, &error.to_string());
    let bytes = size(file).map_err(failed)?;
    let mut cluster = vec![0; MIN_CLUSTER];
    let read = read_some(file, &mut cluster).map_err(failed)?;
    cluster.truncate(read);
    let wanted = extent(&cluster).map_err(wrong)?;
    cluster.resize(wanted.min(MAX_CLUSTER), 0);
    let read = read_some(file, &mut cluster).map_err(failed)?;
    cluster.truncate(read);
    let header = Header::parse(&cluster, bytes).map_err(wrong)?;
    check_l1(path, file, &header, bytes)?;
    Ok(header)
}

/// Fills `to` from the file's beginning, as far as that goes.
fn read_some(file: &File, to: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// Looks whether all L2 tables are within the file: in one that was cut off they would read as
/// empty, and the disk as zeroes.
fn check_l1(path: &Path, file: &File, header: &Header, bytes: u64) -> Result<(), OpenError> {
    let mut entries = vec![0; header.l1_entries as usize * 8];
    file.read_exact_at(&mut entries, header.l1_offset)
        .map_err(|error| unsound(path, &format!("its L1 table cannot be read: {error}")))?;
    for entry in entries.chunks_exact(8) {
        let entry = u64::from_be_bytes(entry.try_into().unwrap_or_default());
        let offset = entry & 0x00ff_ffff_ffff_fe00;
        if !offset.is_multiple_of(header.cluster()) || (offset != 0 && offset >= bytes) {
            return Err(unsound(
                path,
                "a table of its clusters is not within the file, which may have been cut off",
            ));
        }
    }
    Ok(())
}

fn unsound(path: &Path, why: &str) -> OpenError {
    OpenError::Format {
        path: path.into(),
        format: "qcow2",
        why: why.into(),
    }
}

/// Where an open file is, without links.
fn canonical(file: &File) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn refused(path: &Path, backing: &Backing, why: String) -> OpenError {
    OpenError::Backing {
        path: path.into(),
        backing: backing.name.clone(),
        why,
    }
}

/// What the image at `path` means by its backing file.
fn name_and_format(path: &Path, backing: &Backing) -> Result<(PathBuf, Format), OpenError> {
    let refused = |why: String| refused(path, backing, why);
    let format = match backing.format.as_deref() {
        Some("raw" | "file" | "host_device") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(other) => return Err(refused(format!("its format {other:?} is not supported"))),
        // Never guessed: a guest could have written a header into it.
        None => {
            return Err(refused(
                "the image does not say its format: have it say so with \
                 `qemu-img rebase -u -F raw -b BACKING IMAGE`, or -F qcow2"
                    .into(),
            ));
        }
    };
    if backing.name.starts_with("json:") || backing.name.contains("://") {
        return Err(refused("it is no file".into()));
    }
    // As QEMU does: from the folder of the image as it was called.
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok((folder.join(&backing.name), format))
}

/// The backing file of an image that is open alone, and whether it is a raw one; if it may be
/// opened.
pub(super) fn backing_file(
    path: &Path,
    top: &Top,
    trust: &Trust,
) -> Result<(PathBuf, bool), OpenError> {
    let Some(backing) = &top.header.backing else {
        return Err(unsound(path, "it has no backing file"));
    };
    let mut chain = Chain::new(path, top.file.file(), trust)?;
    // It is opened as it would be for a guest, with all that is looked at then.
    drop(chain.open(path, backing)?);
    let (name, format) = name_and_format(path, backing)?;
    Ok((name, format == Format::Raw))
}

/// A chain of backing files that is being opened.
struct Chain {
    trusted: Option<PathBuf>,
    /// Device and inode of those that are open.
    above: Vec<(u64, u64)>,
}

impl Chain {
    /// Behind the image at `path`, whose file is open as `file`.
    fn new(path: &Path, file: &File, trust: &Trust) -> Result<Self, OpenError> {
        let failed = |what| {
            move |source| OpenError::Host {
                path: path.into(),
                what,
                source,
            }
        };
        let metadata = file.metadata().map_err(failed("examined"))?;
        let trusted = match trust {
            Trust::Nothing => None,
            Trust::Beside => {
                let own = canonical(file).map_err(failed("found"))?;
                own.parent().map(Path::to_path_buf)
            }
            Trust::Below(folder) => {
                let folder = folder.canonicalize();
                Some(folder.map_err(failed("opened with that folder of backing files"))?)
            }
        };
        Ok(Chain {
            trusted,
            above: vec![(metadata.dev(), metadata.ino())],
        })
    }

    /// Opens what the image at `path` names as its backing file, and what is behind that.
    fn open(&mut self, path: &Path, backing: &Backing) -> Result<Arc<Base>, OpenError> {
        let refused = |why: String| refused(path, backing, why);
        let (name, format) = name_and_format(path, backing)?;
        if self.trusted.is_none() {
            return Err(refused(
                "backing files are opened only if that is asked for: give the image as \
                 overlay:IMAGE if it is in the image's folder, or as overlay=FOLDER:IMAGE"
                    .into(),
            ));
        }
        let opening = Opening {
            path: &name,
            access: Access::ReadOnly,
        };
        let (file, metadata) = opening.file(false)?;
        // What is open now, wherever the name leads a moment later.
        let place = canonical(&file).map_err(|error| opening.failed("found", error))?;
        self.allow(&place).map_err(refused)?;
        let key = (metadata.dev(), metadata.ino());
        if self.above.contains(&key) {
            return Err(refused("it is behind itself".into()));
        }
        self.above.push(key);
        let key = (key.0, key.1, format);
        let known = bases().get(&key).and_then(Weak::upgrade);
        if let Some(base) = known {
            // What is behind it was opened for somebody else.
            for base in std::iter::successors(Some(&*base), |base| base.below.as_deref()) {
                self.allow(&base.path).map_err(refused)?;
            }
            self.check_length(base.length).map_err(refused)?;
            return Ok(base);
        }
        self.check_length(1).map_err(refused)?;
        let file = opening.lock(file)?;
        let base = Arc::new(self.base(&name, place, file, format)?);
        let mut bases = bases();
        bases.retain(|_, base| base.strong_count() > 0);
        match bases.get(&key).and_then(Weak::upgrade) {
            // Another was faster.
            Some(base) => Ok(base),
            None => {
                bases.insert(key, Arc::downgrade(&base));
                Ok(base)
            }
        }
    }

    fn base(
        &mut self,
        name: &Path,
        path: PathBuf,
        file: Locked,
        format: Format,
    ) -> Result<Base, OpenError> {
        let (layer, largest_cluster, below) = match format {
            Format::Raw => {
                let layer = storage(file.file()).and_then(|file| Raw::open_image(file, false));
                (layer.map(FormatAccess::new), 0, None)
            }
            Format::Qcow2 => {
                let header = read_header(name, file.file())?;
                let below = match &header.backing {
                    Some(backing) => Some(self.open(name, backing)?),
                    None => None,
                };
                let largest = below.as_ref().map_or(0, |below| below.largest_cluster);
                let layer = qcow2(file.file(), false, below.as_ref());
                (layer, header.cluster().max(largest), below)
            }
        };
        Ok(Base {
            layer: Arc::new(layer.map_err(|error| unsound(name, &error.to_string()))?),
            path,
            largest_cluster,
            length: 1 + below.as_ref().map_or(0, |below| below.length),
            below,
            _file: file,
        })
    }

    fn allow(&self, place: &Path) -> Result<(), String> {
        match &self.trusted {
            Some(folder) if place.starts_with(folder) => Ok(()),
            Some(folder) => Err(format!(
                "it is not in {} or a folder below: give the image as overlay=FOLDER:IMAGE if it \
                 may be opened all the same",
                folder.display()
            )),
            None => Err("no backing file may be opened".into()),
        }
    }

    fn check_length(&self, more: usize) -> Result<(), String> {
        // The image itself is among those above, and so is the file that is being opened.
        if self.above.len() + more > MOST + 2 {
            return Err(format!("there are more than {MOST} backing files"));
        }
        Ok(())
    }
}

fn bases() -> std::sync::MutexGuard<'static, HashMap<Key, Weak<Base>>> {
    // Whole at all times.
    BASES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What a kill leaves behind in the middle of a write: imago has not written all that it keeps.
    #[test]
    fn what_is_in_use_is_not_given_away_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("a"), folder.path().join("copy"));
        super::super::create(&File::create_new(&path).unwrap(), 4 << 30, None).unwrap();
        let open = |path: &Path| Top::open(path, Access::ReadWrite, &Trust::Nothing, true).unwrap();
        let top = open(&path);
        top.layer.write(&[1; 4096][..], 0).unwrap();
        top.layer.flush().unwrap();
        // The first in the reach of another L2 table.
        top.layer.write(&[2; 4096][..], 1 << 30).unwrap();
        std::fs::copy(&path, &copy).unwrap();
        drop(top);

        let top = open(&copy);
        for cluster in 1..4 {
            top.layer.write(&[3; 65536][..], cluster << 16).unwrap();
        }
        top.layer.write(&[4; 4096][..], 1 << 30).unwrap();
        top.layer.flush().unwrap();
        drop(top);
        let mut read = [0; 4096];
        let top = open(&copy);
        top.layer.read(&mut read[..], 1 << 30).unwrap();
        assert_eq!(read, [4; 4096]);
        drop(top);
        let check = Command::new("qemu-img").arg("check").arg(&copy).output();
        let check = check.unwrap();
        assert!(check.status.success(), "{check:?}");
    }
}
