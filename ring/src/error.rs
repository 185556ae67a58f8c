//! What can go wrong: by our peer's doing, and by our own.

/// What the peer did: it wrote something into the shared page that no honest peer writes.
///
/// The ring is of no use any more: it answers with the same violation for ever, and the driver
/// closes the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An index claims entries that cannot exist, or takes back some that did
    /// (`RING_REQUEST_PROD_OVERFLOW`, `RING_RESPONSE_PROD_OVERFLOW`; XSA-376).
    #[error("the peer set {name} to {value:#x}; it can only be {least:#x} to {most:#x}")]
    Index {
        /// The field, by its name in Xen's header.
        name: &'static str,
        /// What was read from it.
        value: u32,
        /// The least it can be: what it was when last read.
        least: u32,
        /// The most it can be. Indices wrap, so this may be the smaller number.
        most: u32,
    },
}

/// The memory is too small for a header and one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes are too few for a ring; {needed} are needed")]
pub struct TooSmall {
    /// How many bytes there are.
    pub len: usize,
    /// How many bytes the smallest ring needs.
    pub needed: usize,
}

/// There is no slot for one more entry: as many requests are outstanding as the ring has slots,
/// or every request that was taken has its response already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring has no free slot")]
pub struct Full;

/// Why a ring that is already in use cannot be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The memory is too small.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The indices in it contradict each other.
    #[error(transparent)]
    Violation(#[from] Violation),
}
