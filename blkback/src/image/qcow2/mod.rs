//! qcow2: images that take up room only for what was written, may show another where they have
//! nothing, and keep snapshots of themselves.
//!
//! ```text
//!   queue ─► threads ─► Core ─► imago ─► the image's file          (page cache)
//!             bounce      │       └─────► backing files, shared, read-only
//!                         └ settles what imago keeps, before a write is answered
//! ```
//!
//! The format is the work of the `imago` crate. Around it there is here what a disk of a guest
//! needs: the header is checked before imago believes it ([`header`]), only those backing files are
//! opened that the operator has allowed ([`Trust`]), and nothing is answered that would be lost if
//! this process were killed: imago keeps changes to tables in memory, and they are written to the
//! file before the write that made them is answered, those of many writes at once. A flush makes
//! the file durable.
//!
//! The file goes through the page cache, which all overlays of one base share.

mod chain;
pub mod header;
mod make;
mod recount;
mod refcounts;
pub mod snapshots;
mod tables;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::{Mapping, Storage};
use nix::fcntl::{FallocateFlags, fallocate};
use parapet_hypervisor::host::{Disk, Lease};

use super::settle::Settler;
use super::threaded::{Threaded, Threads};
use super::{Access, Discard, Image, ImageQueue, Limits, OpenError, SECTOR_SIZE};
use chain::{Layer, Top};

pub use chain::Trust;
pub use header::Header;
pub use make::{Backed, Info, commit, create, info};

/// How many threads an image has for all of its queues.
const THREADS: usize = 8;

/// How much is forgotten at once: others wait meanwhile.
const DISCARD: u64 = 64 << 20;

/// A qcow2 image.
pub struct Qcow2Image {
    core: Arc<Core>,
    path: PathBuf,
    access: Access,
    header: Header,
    sectors: AtomicU64,
    threads: Arc<Threads>,
}

/// What the threads of all queues share.
struct Core {
    /// Held exclusively by what takes clusters away from under others.
    top: RwLock<Top>,
    settler: Settler,
    /// Writes whose changes to tables may not be in the file yet.
    unsettled: AtomicUsize,
}

impl Qcow2Image {
    /// Opens and locks the image at `path`, as a raw image is, and behind it the files that it
    /// names, if `trust` allows them.
    ///
    /// # Errors
    /// One line that names the file and says what to do.
    pub fn open(path: &Path, access: Access, trust: &Trust) -> Result<Self, OpenError> {
        let top = Top::open(path, access, trust, false)?;
        let header = top.header.clone();
        Ok(Qcow2Image {
            sectors: AtomicU64::new(header.bytes / SECTOR_SIZE as u64),
            header,
            core: Arc::new(Core {
                top: RwLock::new(top),
                settler: Settler::default(),
                unsettled: AtomicUsize::new(0),
            }),
            path: path.into(),
            access,
            threads: Threads::new(THREADS),
        })
    }
}

impl fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Qcow2Image").field(&self.path).finish()
    }
}

impl<L: Lease> Image<L> for Qcow2Image {
    fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn physical_sector_size(&self) -> u32 {
        4096.min(1 << self.header.cluster_bits)
    }

    fn discard(&self) -> Option<Discard> {
        // Images of version 2 have no way to say that a cluster is zero.
        (self.access == Access::ReadWrite && self.header.version >= 3).then_some(Discard {
            granularity: 1 << self.header.cluster_bits,
            alignment: 0,
            secure: false,
        })
    }

    fn resize(&self, sectors: u64) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let bytes = sectors.checked_mul(SECTOR_SIZE as u64).filter(|&n| n > 0);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        self.core.resize(bytes)?;
        self.sectors.store(sectors, Ordering::Relaxed);
        Ok(())
    }

    fn open_queue(&self, limits: Limits) -> io::Result<Box<dyn ImageQueue<L>>> {
        let disk: Arc<dyn Disk> = self.core.clone();
        Ok(Box::new(Threaded::new(disk, &self.threads, limits)?))
    }
}

/// An operation that may change tables in memory. While there is one, tables may be ahead of the
/// file.
struct Unsettled<'a>(&'a AtomicUsize);

impl<'a> Unsettled<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Unsettled(count)
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Core {
    fn top(&self) -> RwLockReadGuard<'_, Top> {
        self.top.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn top_alone(&self) -> RwLockWriteGuard<'_, Top> {
        self.top.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        let mut top = self.top_alone();
        if bytes > header::most_bytes(top.header.cluster_bits) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let old = top.layer.size();
        // What the backing file has behind the old end must not show; where it has nothing, tables
        // that say so would only take up room.
        let shown = top.base.as_ref().map_or(0, |base| base.bytes());
        let shown = shown.next_multiple_of(top.header.cluster()).min(bytes);
        if shown > old {
            top.layer.resize(shown, PreallocateMode::Zero)?;
        }
        top.layer.resize(bytes, PreallocateMode::None)?;
        // The cluster in which the disk ended may have what was there before it was made smaller.
        let end = old.next_multiple_of(top.header.cluster()).min(bytes);
        write_zeroes(&top.layer, old, end.saturating_sub(old))?;
        top.layer.flush()?;
        top.file.file().sync_all()
    }

    /// Forgets a range, which others must not use meanwhile.
    fn forget(top: &mut Top, offset: u64, len: u64) -> io::Result<()> {
        let cluster = top.header.cluster();
        let freed = allocated(&top.layer, offset, len, cluster)?;
        let (start, end) = whole_clusters(offset, len, cluster, top.layer.size());
        // imago would do the edges too, but for a disk that ends within a cluster.
        write_zeroes(&top.layer, offset, start.min(offset + len) - offset)?;
        if start < end {
            top.layer.discard_to_zero(start, end - start)?;
        }
        let tail = end.max(start.min(offset + len));
        write_zeroes(&top.layer, tail, offset + len - tail)?;
        // The tables first: what they still name must not be gone.
        top.layer.flush()?;
        punch(top.file.file(), freed);
        Ok(())
    }
}

/// Gives clusters that are free back to the file system, if it takes them. If not they are free all
/// the same, and will be used again.
fn punch(file: &File, clusters: Vec<(u64, u64)>) {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for (offset, len) in clusters {
        let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
            return;
        };
        if fallocate(file, hole, offset, len).is_err() {
            return;
        }
    }
}

/// Where the whole clusters of a range begin and end: the last one of a disk is whole, though the
/// disk may end within it. There may be none, and the beginning behind the end.
fn whole_clusters(offset: u64, len: u64, cluster: u64, disk: u64) -> (u64, u64) {
    let end = match offset + len {
        end if end == disk => end,
        end => end / cluster * cluster,
    };
    (offset.next_multiple_of(cluster), end)
}

/// Sees to it that a range reads as zeroes, by writing them where it does not.
fn write_zeroes(layer: &Layer, mut offset: u64, mut len: u64) -> io::Result<()> {
    let zeroes = vec![0; len.min(1 << 20) as usize];
    while len > 0 {
        let (mapping, run) = layer.get_mapping(offset, len)?;
        let run = match (run.min(len), mapping) {
            (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (run, Mapping::Zero { .. }) => run,
            (run, _) => {
                let run = run.min(zeroes.len() as u64);
                layer.write(zeroes.get(..run as usize).unwrap_or_default(), offset)?;
                run
            }
        };
        offset += run;
        len -= run;
    }
    Ok(())
}

/// Where in its file the image has the whole clusters of a range, if nobody else has them.
fn allocated(layer: &Layer, offset: u64, len: u64, cluster: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut at, end) = whole_clusters(offset, len, cluster, layer.size());
    let mut found = Vec::new();
    while at < end {
        let (mapping, len) = layer.get_mapping(at, end - at)?;
        if let Mapping::Raw {
            offset,
            writable: true,
            ..
        } = mapping
        {
            found.push((offset, len));
        }
        if len == 0 {
            break;
        }
        at += len;
    }
    Ok(found)
}

/// Whether the image has clusters of its own for all of a range, so that a write there changes no
/// table.
fn is_own(layer: &Layer, mut offset: u64, mut len: u64) -> io::Result<bool> {
    while len > 0 {
        let (mapping, run) = layer.get_mapping(offset, len)?;
        if run == 0 || !matches!(mapping, Mapping::Raw { writable: true, .. }) {
            return Ok(false);
        }
        offset += run.min(len);
        len -= run.min(len);
    }
    Ok(true)
}

/// Whether all that a range is kept in is within its file. imago would read as zeroes what was cut
/// off; a cluster that ends behind the end is no such thing, as long as it begins before that.
fn check_whole(top: &Top, mut offset: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let (mapping, run) = top.layer.get_mapping(offset, len)?;
        if let Mapping::Raw {
            storage,
            offset: place,
            ..
        } = mapping
            && place / top.largest_cluster * top.largest_cluster >= storage.size()?
        {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the image's file was cut off",
            ));
        }
        if run == 0 {
            break;
        }
        offset += run.min(len);
        len -= run.min(len);
    }
    Ok(())
}

impl Disk for Core {
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let top = self.top();
        check_end(&top.layer, offset, to.len() as u64)?;
        check_whole(&top, offset, to.len() as u64)?;
        top.layer.read(to, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let top = self.top();
        if is_own(&top.layer, offset, from.len() as u64)? {
            top.layer.write(from, offset)?;
            // Its clusters may be another's, who has not settled them yet.
            if self.unsettled.load(Ordering::Acquire) > 0 {
                self.settler.settle(|| top.layer.flush())?;
            }
            return Ok(());
        }
        let _unsettled = Unsettled::new(&self.unsettled);
        top.layer.write(from, offset)?;
        self.settler.settle(|| top.layer.flush())
    }

    fn sync(&self) -> io::Result<()> {
        let top = self.top();
        self.settler.settle(|| top.layer.flush())?;
        // Not imago's own, which would keep all others waiting.
        top.file.file().sync_data()
    }

    fn discard(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let mut top = self.top_alone();
            check_end(&top.layer, offset, len)?;
            // Up to where the next piece begins with a whole cluster.
            let piece = (offset / DISCARD + 1) * DISCARD - offset;
            let piece = piece.min(len);
            Self::forget(&mut top, offset, piece)?;
            offset += piece;
            len -= piece;
        }
        Ok(())
    }
}

/// imago reads zeroes behind the end.
fn check_end(layer: &Layer, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= layer.size() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
