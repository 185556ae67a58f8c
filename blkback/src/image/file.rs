//! A raw image: a regular file or a block device whose bytes are the disk's.
//!
//! It is opened past the page cache (`O_DIRECT`) where that works with memory and offsets aligned
//! to a sector of 512 bytes, which is what guests use. Where it does not (a file system without
//! direct I/O, a device with logical blocks of 4096 bytes) the page cache takes its place; a
//! flush reaches the medium either way.
//!
//! Jobs go through io_uring. On files that are memory (tmpfs), where io_uring would put each job
//! on a thread of its own, and on hosts that forbid io_uring, they are done at once instead.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use parapet_hypervisor::host::{self, Lease, Refused, Uring, transfer};

use super::lock::Locked;
use super::opening::Opening;
use super::{
    Access, Completion, Discard, Image, ImageQueue, Job, Limits, OpenError, SECTOR_SIZE, Submitted,
};

/// How often in a row a job is submitted again without getting anywhere.
const ATTEMPTS: u8 = 8;

/// A raw image.
#[derive(Debug)]
pub struct FileImage {
    path: PathBuf,
    file: Arc<Locked>,
    access: Access,
    sectors: AtomicU64,
    physical_sector_size: u32,
    discard: Option<Discard>,
    /// Whether it has the size that it has, as devices do.
    fixed: bool,
    /// Whether the file is memory.
    inline: bool,
    /// Whether it was said that there is no io_uring.
    said: AtomicBool,
}

impl FileImage {
    /// Opens and locks the image at `path`: any number of users may read it, or one may write it
    /// (QEMU's tools, which use the same locks, included). The lock goes with the last queue.
    ///
    /// # Errors
    /// One line that names the file and says what to do.
    pub fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        let opening = Opening { path, access };
        let (file, metadata) = opening.file(true)?;
        // First of all: what is tried out below would harm who has the file now.
        let locked = Arc::new(opening.lock(file)?);
        let file = locked.file();
        let sectors = sectors(&opening, file)?;
        let physical_sector_size = physical_sector_size(&metadata);
        let discard = match access {
            Access::ReadOnly => None,
            Access::ReadWrite if metadata.is_file() => file_discard(file, physical_sector_size),
            Access::ReadWrite => device_discard(&metadata),
        };
        Ok(FileImage {
            sectors: AtomicU64::new(sectors),
            physical_sector_size,
            discard,
            fixed: !metadata.is_file(),
            inline: fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC),
            path: path.into(),
            said: AtomicBool::new(false),
            file: locked,
            access,
        })
    }
}

/// How many sectors are in `file`, which is being opened.
fn sectors(opening: &Opening<'_>, file: &File) -> Result<u64, OpenError> {
    let bytes = size(file).map_err(|error| opening.failed("measured", error))?;
    let path = opening.path.into();
    match (bytes / SECTOR_SIZE as u64, bytes % SECTOR_SIZE as u64) {
        (_, 1..) => Err(OpenError::Odd { path, bytes }),
        (0, 0) => Err(OpenError::Empty(path)),
        (sectors, 0) => Ok(sectors),
    }
}

/// A file's bytes. The metadata of a block device do not have it.
pub(super) fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// What the kernel says of a block device.
fn device_key(metadata: &Metadata, key: &str) -> Option<u64> {
    let (major, minor) = (
        nix::sys::stat::major(metadata.rdev()),
        nix::sys::stat::minor(metadata.rdev()),
    );
    let path = format!("/sys/dev/block/{major}:{minor}/{key}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the kernel says of a block device's queue. A partition has none of its own, its disk is
/// the folder above.
fn queue_key(metadata: &Metadata, key: &str) -> Option<u64> {
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| device_key(metadata, &format!("{queue}/{key}")))
}

/// Whether holes can be punched into a regular file. It is tried out behind its end, where there
/// is nothing to lose.
fn file_discard(file: &File, block: u32) -> Option<Discard> {
    let behind = size(file).ok()?.checked_next_multiple_of(block.into())?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, hole, i64::try_from(behind).ok()?, block.into()) {
        Ok(()) => Some(Discard {
            granularity: block,
            alignment: 0,
            secure: false,
        }),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => None,
        Err(error) => {
            log::debug!("no holes can be punched into a disk image: {error}");
            None
        }
    }
}

/// Whether a block device forgets sectors so that they read as zeroes: the kernel then punches
/// holes into devices as into files. Erasing what is forgotten (`BLKSECDISCARD`) is not offered:
/// the kernel does not say of which devices it can be had.
fn device_discard(metadata: &Metadata) -> Option<Discard> {
    let key = |key| queue_key(metadata, key);
    let granularity = u32::try_from(key("discard_granularity")?).ok()?;
    let offered = key("discard_max_bytes")? > 0
        && key("write_zeroes_max_bytes")? > 0
        && granularity.is_multiple_of(SECTOR_SIZE as u32)
        && granularity > 0;
    let alignment = device_key(metadata, "discard_alignment").unwrap_or(0);
    offered.then_some(Discard {
        granularity,
        alignment: u32::try_from(alignment).unwrap_or(0),
        secure: false,
    })
}

/// The block size of the file system, or of the device if that is what the image is; at most a
/// page.
fn physical_sector_size(metadata: &Metadata) -> u32 {
    let size = if metadata.file_type().is_block_device() {
        queue_key(metadata, "physical_block_size")
    } else {
        Some(metadata.blksize())
    };
    size.and_then(|size| u32::try_from(size).ok())
        .filter(|size| size.is_power_of_two())
        .unwrap_or(0)
        .clamp(SECTOR_SIZE as u32, 4096)
}

impl<L: Lease> Image<L> for FileImage {
    fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn physical_sector_size(&self) -> u32 {
        self.physical_sector_size
    }

    fn discard(&self) -> Option<Discard> {
        self.discard
    }

    fn measure(&self) -> io::Result<()> {
        // What is not a whole sector is none.
        match size(self.file.file())? / SECTOR_SIZE as u64 {
            0 => Err(io::Error::other("the disk image has become empty")),
            sectors => {
                self.sectors.store(sectors, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn resize(&self, sectors: u64) -> io::Result<()> {
        if self.fixed {
            return Err(io::ErrorKind::Unsupported.into());
        }
        match sectors.checked_mul(SECTOR_SIZE as u64) {
            None | Some(0) => return Err(io::ErrorKind::InvalidInput.into()),
            // Fails for a file that is open only to be read.
            Some(bytes) => self.file.file().set_len(bytes)?,
        }
        self.sectors.store(sectors, Ordering::Relaxed);
        Ok(())
    }

    fn open_queue(&self, limits: Limits) -> io::Result<Box<dyn ImageQueue<L>>> {
        let file = self.file.clone();
        if self.inline {
            return Ok(Box::new(Inline { file }));
        }
        let Limits {
            depth,
            segments,
            buffers,
        } = limits;
        match Uring::new(file.file().try_clone()?, depth, segments.max(1), buffers) {
            Ok(uring) => Ok(Box::new(Queued::new(uring, file))),
            Err(error) => {
                // A frontend may connect as often as it likes.
                if !self.said.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "no io_uring for the disk image {} ({error}): it goes on without, slowly",
                        self.path.display()
                    );
                }
                Ok(Box::new(Inline { file }))
            }
        }
    }
}

/// Jobs are done by the time they are submitted.
struct Inline {
    file: Arc<Locked>,
}

impl<L: Lease> ImageQueue<L> for Inline {
    fn submit(&mut self, job: Job<L>) -> Submitted<L> {
        Submitted::Done(Completion {
            tag: job.tag,
            result: transfer(self.file.file(), job.operation.into(), &job.lease),
            lease: job.lease,
        })
    }
}

/// Jobs go through io_uring.
struct Queued<L: Lease> {
    uring: Uring<L>,
    /// What is left to do of each job in flight, by tag.
    rest: Box<[Rest]>,
    /// Given up after the last job is over: fields are dropped in this order.
    _file: Arc<Locked>,
}

#[derive(Clone, Copy)]
struct Rest {
    operation: host::Operation,
    attempts: u8,
}

impl<L: Lease> Queued<L> {
    fn new(uring: Uring<L>, file: Arc<Locked>) -> Self {
        let nothing = Rest {
            operation: host::Operation::Sync,
            attempts: 0,
        };
        Queued {
            rest: vec![nothing; uring.depth()].into(),
            uring,
            _file: file,
        }
    }

    /// Whether the job is over, after a completion of (some of) it.
    fn outcome(&mut self, tag: u32, result: io::Result<usize>) -> Option<io::Result<()>> {
        let Some(rest) = self.rest.get_mut(tag as usize) else {
            return Some(result.map(drop));
        };
        let done = match result {
            Ok(done) => done,
            Err(error) if rest.attempts < ATTEMPTS && is_passing(&error) => {
                rest.attempts += 1;
                return None;
            }
            Err(error) => return Some(Err(error)),
        };
        rest.attempts = 0;
        let (extent, nothing) = match &mut rest.operation {
            host::Operation::Read(extent) => (extent, io::ErrorKind::UnexpectedEof),
            host::Operation::Write(extent) => (extent, io::ErrorKind::WriteZero),
            host::Operation::Sync | host::Operation::Discard { .. } => return Some(Ok(())),
        };
        if done >= extent.len {
            return Some(Ok(()));
        }
        if done == 0 {
            return Some(Err(nothing.into()));
        }
        extent.offset += done as u64;
        extent.skip += done;
        extent.len -= done;
        None
    }
}

/// Whether another attempt may fare better: the thread that submitted got a signal or ended.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED)
    )
}

impl<L: Lease> ImageQueue<L> for Queued<L> {
    fn submit(&mut self, job: Job<L>) -> Submitted<L> {
        let Job {
            tag,
            operation,
            lease,
        } = job;
        let Some(rest) = self.rest.get_mut(tag as usize) else {
            return Submitted::Full(Job {
                tag,
                operation,
                lease,
            });
        };
        *rest = Rest {
            operation: operation.into(),
            attempts: 0,
        };
        match self.uring.start(tag, rest.operation, lease) {
            Ok(()) => Submitted::Started,
            Err(Refused::Full(lease)) => Submitted::Full(Job {
                tag,
                operation,
                lease,
            }),
            Err(Refused::NoMemory(lease)) => Submitted::Done(Completion {
                tag,
                result: Err(io::ErrorKind::InvalidInput.into()),
                lease,
            }),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        self.uring.submit()
    }

    fn complete(&mut self) -> Option<Completion<L>> {
        while let Some(host::Completion { tag, result, lease }) = self.uring.complete() {
            if let Some(result) = self.outcome(tag, result) {
                return Some(Completion { tag, result, lease });
            }
            let Some(rest) = self.rest.get(tag as usize) else {
                continue;
            };
            match self.uring.start(tag, rest.operation, lease) {
                Ok(()) => {}
                Err(Refused::Full(lease) | Refused::NoMemory(lease)) => {
                    return Some(Completion {
                        tag,
                        result: Err(io::ErrorKind::Other.into()),
                        lease,
                    });
                }
            }
        }
        // The rare job that was started again; an error comes back at the next kick.
        let _ = self.uring.submit();
        None
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.uring.as_fd())
    }

    fn buffers(&self) -> u16 {
        self.uring.buffers()
    }

    fn register(&mut self, place: u16, page: L::Page) -> Result<(), L::Page> {
        self.uring.register(place, page)
    }

    fn unregister(&mut self, place: u16) -> Option<L::Page> {
        self.uring.unregister(place)
    }
}

#[cfg(test)]
mod tests {
    use parapet_hypervisor::memory::{ReadOnly, Scratch, View};

    use super::super::{Operation, Sectors};
    use super::*;

    struct Block(Scratch);

    impl host::Page for Block {
        fn view(&self) -> View<'_> {
            self.0.view()
        }
    }

    impl Lease for Block {
        type Page = Block;

        fn targets(&self) -> impl Iterator<Item = View<'_>> {
            std::iter::once(self.0.view())
        }

        fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
            std::iter::once(self.0.view().read_only())
        }

        fn registered(&self) -> Option<u16> {
            None
        }
    }

    #[test]
    fn a_full_file_system_fails_the_write_and_no_other() {
        // Every write to this device fails like one to a full file system.
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/full")
                .unwrap()
        };
        let lock = || Arc::new(Locked::new(open(), Access::ReadOnly).unwrap());
        let uring = Uring::new(open(), 4, 1, 0).unwrap();
        let queues: [Box<dyn ImageQueue<Block>>; 2] = [
            Box::new(Queued::new(uring, lock())),
            Box::new(Inline { file: lock() }),
        ];
        let sectors = Sectors { first: 0, count: 8 };
        for mut queue in queues {
            for (operation, error) in [
                (Operation::Write(sectors), Some(libc::ENOSPC)),
                (Operation::Read(sectors), None),
            ] {
                let job = Job {
                    tag: 0,
                    operation,
                    lease: Block(Scratch::new(4096)),
                };
                let done = match queue.submit(job) {
                    Submitted::Done(done) => done,
                    Submitted::Full(_) => panic!("an empty queue is full"),
                    Submitted::Started => loop {
                        queue.kick().unwrap();
                        if let Some(done) = queue.complete() {
                            break done;
                        }
                    },
                };
                assert_eq!(done.result.err().and_then(|e| e.raw_os_error()), error);
            }
        }
    }
}
