//! What an interface's user can meet.

use parapet_hypervisor::seam::{EventError, GrantError, OutOfMemory};
use parapet_ring::TooSmall;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::netif::{ControlStatus, MAX_TX_SIZE};

/// What the backend did that no honest one does. It is the end of the interface: from then on
/// nothing else comes out of it, and the device is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It broke a ring.
    #[error(transparent)]
    Ring(#[from] parapet_ring::Violation),
    /// It answered a request that is not outstanding: never made, or answered before.
    #[error("the backend answered request {id:#x}, which is not outstanding")]
    NotOutstanding {
        /// The response's id.
        id: u16,
    },
    /// It answered with a status that there is not.
    #[error("the backend answered with status {0}, which means nothing")]
    Status(i16),
    /// It says that it wrote where there is no page.
    #[error("the backend wrote {len} bytes at offset {offset} of a page")]
    OutOfPage {
        /// Where in the page, in bytes.
        offset: u16,
        /// How many.
        len: u16,
    },
    /// A frame of more parts than the protocol has.
    #[error(
        "the backend sent a frame of more than {} parts",
        crate::assembly::PARTS
    )]
    TooManyParts,
    /// Extra information of a kind that is unknown here, or that the frame had already.
    #[error("the backend sent extra information of type {0}, which has no business there")]
    Extra(u8),
    /// A frame to be cut into segments that there cannot be.
    #[error("the backend sent a frame to be cut into segments of {size} bytes by protocol {kind}")]
    Gso {
        /// The payload of each, in bytes.
        size: u16,
        /// `GsoType`.
        kind: u8,
    },
    /// It answered a control request that was not made.
    #[error("the backend answered control request {id} of type {control}, which was not made")]
    Control {
        /// The response's id.
        id: u16,
        /// The response's type.
        control: u16,
    },
}

/// Why rings could not be made: our own domain has not enough of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// It cannot be granted.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// There is no event channel.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A ring has not even one slot.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
}

/// Why a frame cannot be sent at all: the caller's mistake. Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is shorter than an Ethernet header.
    #[error("a frame of {0} bytes has no Ethernet header")]
    TooShort(usize),
    /// It is longer than the backend takes.
    #[error("a frame of {len} bytes, where the backend takes at most {most}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The most, at most [`MAX_TX_SIZE`].
        most: usize,
    },
    /// The backend does not do what is left to be done to it.
    #[error("the backend neither makes this frame's checksum nor cuts it into segments")]
    Offload,
}

/// The longest frame that any backend takes, in bytes.
pub const LONGEST: usize = MAX_TX_SIZE;

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no room now: the ring is full, or the backend is away.
    #[error("there is no room for the frame now")]
    NoRoom,
    /// There never is.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The interface is no more.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// Why an interface is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The backend broke the protocol.
    #[error("the interface was closed: {0}")]
    Violation(#[from] Violation),
    /// The backend closed it, and shall not be waited for.
    #[error("the interface was closed by its backend")]
    BackendClosed,
    /// The toolstack has taken it away.
    #[error("the interface was taken away")]
    Removed,
    /// The backend left and came back, but not so that the interface could go on.
    #[error("the interface's backend came back changed: {0}")]
    Changed(Change),
    /// The connection to xenstore is gone, by which its backend would tell us that it closes.
    #[error("the interface was closed: the connection to xenstore is gone")]
    Unwatched,
    /// We closed it.
    #[error("the interface was closed")]
    Closed,
}

/// What keeps an interface from being used on when its backend has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// The backend is another domain's.
    #[error("domain {now} serves it, and not domain {was}")]
    Backend {
        /// The domain that served it.
        was: DomId,
        /// The one that does.
        now: DomId,
    },
    /// It has fewer queues than are in use.
    #[error("it takes {now} queues, and {was} are in use")]
    Queues {
        /// How many it had.
        was: usize,
        /// How many it has.
        now: usize,
    },
    /// Each time that it left it kept some of our memory, of which there is only so much.
    #[error("whenever it leaves, it keeps memory that it was granted")]
    Grasping,
    /// The handshake failed: the log has the reason, and the xenstore if it could be written.
    #[error("it cannot be connected")]
    Unusable,
}

/// Why the backend was not told something by its control ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no control ring.
    #[error("the backend has no control ring")]
    NoRing,
    /// The backend does not do it.
    #[error("the backend refused (status {})", .0.0)]
    Refused(ControlStatus),
    /// More than fits a page, which is how it is told.
    #[error("{entries} entries do not fit a page")]
    TooMany {
        /// How many there would be.
        entries: usize,
    },
    /// The backend is away: what it was told it has forgotten in any case.
    #[error("the backend is away")]
    Away,
    /// There is no memory to tell it by.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The interface is no more.
    #[error(transparent)]
    Gone(#[from] Gone),
}
