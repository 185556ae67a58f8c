//! Disk images: what a virtual disk's bytes are kept in.
//!
//! An [`Image`] is the disk as a whole: its size, whether it may be written. Each queue of the
//! device has an [`ImageQueue`] of its own, an engine that it shares with nobody: jobs go in,
//! completions come out, in any order, and there is neither a lock nor an allocation on the way.
//!
//! # Who validates what
//! | | checked by | before |
//! |---|---|---|
//! | sectors lie within [`Image::sectors`], nothing wraps | the queue | [`ImageQueue::submit`] |
//! | no write to an image that is [`Image::read_only`], and no discard | the queue | [`ImageQueue::submit`] |
//! | no discard that [`Image::discard`] does not offer | the queue | [`ImageQueue::submit`] |
//! | the lease has as many bytes as the sectors, in parts of whole sectors, aligned to one | the queue | [`ImageQueue::submit`] |
//! | a tag is below [`Limits::depth`] and names one job in flight | the queue | [`ImageQueue::submit`] |
//! | the file's size, type, readability and lock | the image | it is opened |
//! | the host's answer: errors, short transfers, a file that shrank | the image | [`ImageQueue::complete`] |
//!
//! So an image sees no guest: what it is told to do can be done, unless the host cannot, and then
//! the [`Completion`] says so. A job is never reported as done when only part of it was.
//!
//! An image may shrink while it is in use ([`Image::measure`]): a job that was checked against the
//! larger size then fails, as one that passes the end.
//!
//! A flush makes durable every write that *completed* before the flush was submitted. Order among
//! jobs in flight is nobody's promise.
//!
//! # Formats
//! Which format an image has is said by whoever names it ([`Spec`]), and never guessed from what is
//! in it: a guest can write the header of another format into a raw disk, and would then be shown
//! any file of the host that the header names. For the same reason a backing file is opened only if
//! that is allowed ([`qcow2::Trust`]).
//!
//! A raw image and memory get a guest's pages themselves. The other kinds are reached by code that
//! works on slices, which memory that a guest shares never is: a few threads bounce the bytes
//! through buffers of their own.
//!
//! VHD is not here: no crate reads and writes its dynamic and differencing images.
//!
//! Sectors are 512 bytes, always ([`SECTOR_SIZE`]), as in Xen's block protocol.

mod file;
mod lock;
mod memory;
pub mod nbd;
mod null;
mod opening;
pub mod qcow2;
mod settle;
mod spec;
mod threaded;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use parapet_hypervisor::host::{self, Lease};

pub use file::FileImage;
pub use memory::MemoryImage;
pub use nbd::NbdImage;
pub use null::NullImage;
pub use parapet_xen_sys::io::blkif::SECTOR_SIZE;
pub use qcow2::Qcow2Image;
pub use spec::{OpenError, Spec, SpecError, bytes as parse_size};

/// What is to be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only to read it.
    ReadOnly,
    /// To read and to write it.
    ReadWrite,
}

/// A disk, whose jobs keep their memory in leases `L`.
pub trait Image<L: Lease>: fmt::Debug + Send + Sync {
    /// How many sectors of 512 bytes it has.
    fn sectors(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The unit in bytes that is written best: a power of two, at least [`SECTOR_SIZE`].
    fn physical_sector_size(&self) -> u32;

    /// How sectors can be forgotten; none if they cannot.
    fn discard(&self) -> Option<Discard> {
        None
    }

    /// Looks again at how large it is, for an image that somebody else may have made larger or
    /// smaller; [`Image::sectors`] says so from then on.
    ///
    /// # Errors
    /// The host's. The size is then what it was.
    fn measure(&self) -> io::Result<()> {
        Ok(())
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::Unsupported`] if images of this kind have the size that they
    /// were made with.
    fn resize(&self, sectors: u64) -> io::Result<()> {
        let _ = sectors;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// An engine for one queue.
    ///
    /// # Errors
    /// The host's.
    fn open_queue(&self, limits: Limits) -> io::Result<Box<dyn ImageQueue<L>>>;
}

/// How an image forgets sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discard {
    /// The unit in bytes that can be forgotten: a multiple of [`SECTOR_SIZE`].
    pub granularity: u32,
    /// Where the first whole unit begins, in bytes.
    pub alignment: u32,
    /// Whether it can be done so that nothing on the medium could be recovered.
    pub secure: bool,
}

/// How much a queue will ask for at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Jobs in flight.
    pub depth: u16,
    /// Separate pieces of memory in one job.
    pub segments: usize,
    /// Pages that stay mapped and could be registered.
    pub buffers: u16,
}

/// A run of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// The first.
    pub first: u64,
    /// How many. A transfer has as many as its memory; a discard may have any number.
    pub count: u64,
}

impl From<Operation> for host::Operation {
    fn from(operation: Operation) -> Self {
        let extent = |sectors: Sectors| host::Extent {
            offset: sectors.offset(),
            skip: 0,
            // A transfer's, which fits memory.
            len: sectors.bytes() as usize,
        };
        match operation {
            Operation::Read(sectors) => host::Operation::Read(extent(sectors)),
            Operation::Write(sectors) => host::Operation::Write(extent(sectors)),
            Operation::Flush => host::Operation::Sync,
            Operation::Discard { sectors, .. } => host::Operation::Discard {
                offset: sectors.offset(),
                len: sectors.bytes(),
            },
        }
    }
}

impl Sectors {
    /// Where the run begins, in bytes: fits, since the run lies within the image.
    fn offset(self) -> u64 {
        self.first.saturating_mul(SECTOR_SIZE as u64)
    }

    /// The run's length in bytes: fits, as the offset does.
    pub(crate) fn bytes(self) -> u64 {
        self.count.saturating_mul(SECTOR_SIZE as u64)
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill the lease's memory from the image.
    Read(Sectors),
    /// Put the lease's memory into the image.
    Write(Sectors),
    /// Make durable the writes that have completed.
    Flush,
    /// Forget what is in the sectors, which read as zeroes afterwards where the image keeps data at
    /// all. The lease has no memory. Only for an image that offers it ([`Image::discard`]).
    Discard {
        /// The sectors.
        sectors: Sectors,
        /// Leave nothing on the medium that could be recovered; only if that is offered.
        secure: bool,
    },
}

/// Something to do, and the memory for it.
#[derive(Debug)]
pub struct Job<L> {
    /// What the queue calls it: below [`Limits::depth`], and no other job in flight has it.
    pub tag: u32,
    /// What to do.
    pub operation: Operation,
    /// The memory.
    pub lease: L,
}

/// A job that is over.
#[derive(Debug)]
pub struct Completion<L> {
    /// The job's.
    pub tag: u32,
    /// Whether all of it was done, or the host's error; what a failed read left in the memory, and
    /// a failed write on the disk, is undefined.
    pub result: io::Result<()>,
    /// The memory.
    pub lease: L,
}

/// What became of a job that was submitted.
#[derive(Debug)]
pub enum Submitted<L> {
    /// It is under way: [`ImageQueue::complete`] will have it, some time after the next
    /// [`ImageQueue::kick`].
    Started,
    /// It is over already.
    Done(Completion<L>),
    /// There is no room: complete others, then try again.
    Full(Job<L>),
}

/// A queue's engine on an image. Dropping it waits for what is in flight.
pub trait ImageQueue<L: Lease>: Send {
    /// Takes a job.
    fn submit(&mut self, job: Job<L>) -> Submitted<L>;

    /// Sets going all that was submitted: one system call at the most. Due before waiting, and
    /// worth while once a batch.
    ///
    /// # Errors
    /// The host's. What it did not take is kept, to be tried again; [`io::ErrorKind::WouldBlock`]
    /// says that this makes sense.
    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Takes a completion, if there is one.
    fn complete(&mut self) -> Option<Completion<L>> {
        None
    }

    /// What becomes readable when there are completions: none if every job is done at once.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How many pages can be registered.
    fn buffers(&self) -> u16 {
        0
    }

    /// Registers a page that stays mapped, so that jobs whose leases name `place` go faster. It
    /// comes back from [`ImageQueue::unregister`], or at once if it was not registered.
    fn register(&mut self, place: u16, page: L::Page) -> Result<(), L::Page> {
        let _ = place;
        Err(page)
    }

    /// Takes a page back.
    fn unregister(&mut self, place: u16) -> Option<L::Page> {
        let _ = place;
        None
    }
}
