//! Where a backend meets Linux: file I/O straight into pages that a guest granted.
//!
//! ```text
//!   queue ──start──► Uring ══ SQEs ══► kernel ──► file
//!     ▲               │ slot: the lease, which keeps the pages mapped
//!     └──complete─────┘ ◄═ CQEs ═══  (the lease comes back only here)
//! ```
//!
//! The kernel is handed addresses, and uses them long after the call that named them returned. So
//! an operation in flight owns what keeps its memory mapped: a [`Lease`]. It goes into the ring's
//! own slot before an address is taken from it, and leaves it after the completion was reaped;
//! whatever a driver does meanwhile, the kernel never touches memory that is gone. This is why all
//! that is here has a safe interface.
//!
//! * [`Uring`] is the asynchronous way: many operations in flight, one system call a batch.
//! * [`transfer`] is the synchronous way, for files that are memory (tmpfs), where a system call
//!   is faster than any queue, and for hosts that forbid io_uring.
//! * [`Workers`] are threads, for disks that are reached by code that waits: a [`Disk`] gets slices
//!   of their own memory, never a guest's.
//! * [`Ram`] is memory of the host's own to play a disk.
//! * [`FileMemory`] is memory that outlives the process.
//! * [`Tap`] is an Ethernet device of the host, frames in granted pages straight to and from it.
//! * [`aside`] does on a thread of its own what may never end.

mod aside;
mod file_memory;
mod lease;
mod ram;
mod tap;
mod transfer;
mod uring;
mod workers;

pub use aside::aside;
pub use file_memory::{FileMemory, nonce};
pub use lease::{Lease, Page};
pub use ram::Ram;
pub use tap::{HEADER as TAP_HEADER, Tap, Unfinished, in_network_namespace};
pub use transfer::transfer;
pub use uring::{Completion, Operation, Refused, Uring};
pub use workers::{Disk, Workers};

/// A stretch of a file, and of the memory of a [`Lease`] that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes of the lease's memory come before it: what an earlier, short operation
    /// has done already.
    pub skip: usize,
    /// How many bytes.
    pub len: usize,
}
