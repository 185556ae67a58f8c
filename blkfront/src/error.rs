//! What a disk's user can meet.

use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::Status;

use crate::buffer::BufferError;
use crate::queue::{Failure, Violation};
use crate::request::Unfit;

/// Why a disk did not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The backend tried and failed. What is in the buffer or on the disk there is undefined.
    #[error("the disk failed the request (status {})", .0.0)]
    Io(Status),
    /// The backend does not do this.
    #[error("the disk does not support the operation")]
    Unsupported,
    /// It would pass the end of the disk; it was not sent.
    #[error("{count} sectors from sector {first} on, of a disk that has {sectors}")]
    OutOfRange {
        /// The first sector, in units of 512 bytes.
        first: u64,
        /// How many.
        count: u64,
        /// How many the disk has.
        sectors: u64,
    },
    /// A write to a disk that is read-only; it was not sent.
    #[error("the disk is read-only")]
    ReadOnly,
    /// It does not begin and end with a sector of the disk; it was not sent.
    #[error("bytes {offset} to {end} are no whole sectors of {sector_size} bytes")]
    Misaligned {
        /// The first byte, on the disk or in the buffer.
        offset: u64,
        /// The last and one.
        end: u64,
        /// What both must be a multiple of.
        sector_size: u32,
    },
    /// It does not fit the buffer, or the buffer is not this disk's; it was not sent.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// There is no memory to carry it; it was not sent, or not all of it.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// The disk is no more. Of a request that was sent nobody knows whether it was done.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// Why a disk is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The backend broke the protocol.
    #[error("the disk was closed: {0}")]
    Violation(#[from] Violation),
    /// The backend closed it, or is not there any more.
    #[error("the disk was closed by its backend")]
    BackendClosed,
    /// The toolstack has taken it away.
    #[error("the disk was taken away")]
    Removed,
    /// The backend left and came back, but not with the same disk, or not so that it can be used.
    #[error("the disk's backend came back with another disk: {0}")]
    Changed(Change),
    /// The connection to xenstore is gone, by which its backend would tell us that it closes.
    #[error("the disk was closed: the connection to xenstore is gone")]
    Unwatched,
    /// We closed it.
    #[error("the disk was closed")]
    Closed,
    /// The task that serves it was dropped, as when its domain is destroyed.
    #[error("the disk's task has ended")]
    Stopped,
}

/// What keeps a disk from being used on when its backend has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// The backend is another domain's: what was granted to the earlier one is of no use to it.
    #[error("domain {now} serves it, and not domain {was}")]
    Backend {
        /// The domain that served the disk.
        was: DomId,
        /// The one that does.
        now: DomId,
    },
    /// Requests that were aligned are not any more.
    #[error("its sectors have {now} bytes, and not {was}")]
    SectorSize {
        /// What they had, in bytes.
        was: u32,
        /// What they have.
        now: u32,
    },
    /// Each time that it left it kept some of our memory, of which there is only so much.
    #[error("whenever it leaves, it keeps memory that it was granted")]
    Grasping,
    /// The handshake failed: the log has the reason, and the xenstore if it could be written.
    #[error("it cannot be connected")]
    Unusable,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Io(status) => Error::Io(status),
            Failure::Unsupported => Error::Unsupported,
        }
    }
}
