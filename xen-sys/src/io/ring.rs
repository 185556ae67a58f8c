//! The head of a shared ring (`io/ring.h`).
//!
//! ```text
//!    0  req_prod   requests that the frontend has published
//!    4  req_event  tell the backend when req_prod passes this
//!    8  rsp_prod   responses that the backend has published
//!   12  rsp_event  tell the frontend when rsp_prod passes this
//!   16  pvt        of no meaning in general
//!   64  slots      a power of two of them; a request and its response share one
//! ```
//!
//! Indices are 32 bits that run freely and wrap; an index modulo the number of slots is a slot.

use crate::abi::{Header, Target, layout};

layout! {
    /// What stands before the slots. Blkif's ring stands for all in the comparison with C, where
    /// each protocol has a type of its own.
    pub struct RingHeader = "struct blkif_sring" in "char[offsetof(struct blkif_sring, ring)]", 64 {
        /// Requests published.
        0 req_prod: u32,
        /// The backend wants to be told when `req_prod` passes this.
        4 req_event: u32,
        /// Responses published.
        8 rsp_prod: u32,
        /// The frontend wants to be told when `rsp_prod` passes this.
        12 rsp_event: u32,
        /// Private to the protocol.
        16 pvt: [u8; 4],
        /// Zero.
        20 _pad: [u8; 44] = "__pad",
    }
}

/// Bytes before the first slot.
pub const HEADER_SIZE: usize = size_of::<RingHeader>();

/// How many slots of `slot` bytes a ring of `bytes` has (its header included): as many as fit,
/// rounded down to a power of two; zero if not even one fits, or if a slot has no bytes.
/// `__RING_SIZE` in C.
#[must_use]
pub const fn slots(bytes: usize, slot: usize) -> usize {
    match bytes.saturating_sub(HEADER_SIZE).checked_div(slot) {
        None | Some(0) => 0,
        Some(fit) => 1 << fit.ilog2(),
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/ring.h",
    target: Target::X86_64,
    claims: &[RingHeader::CLAIMS],
};
