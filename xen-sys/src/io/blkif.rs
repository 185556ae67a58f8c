//! The block protocol (`io/blkif.h`).
//!
//! A slot holds a request, later its response. What a request looks like depends on the frontend's
//! architecture, which it states under the key `protocol` ([`super::protocols`]); without that key
//! it is the backend's own. There are three layouts and two shapes:
//!
//! | layout | module | slot | response |
//! |---|---|---|---|
//! | `x86_64-abi` | [`x86_64`] | 112 bytes | 16 bytes |
//! | `x86_32-abi` | [`x86_32`] | 108 bytes | 12 bytes |
//! | native | [`native`]: [`x86_64`], as on every machine that aligns 64 bits to 8 bytes | | |
//!
//! Which request a slot holds is told by its first byte. All requests of a layout are kept as long
//! as its slot, so that a copy of a slot becomes any of them by `zerocopy::transmute!`, which
//! cannot fail, and a request written is a slot written from end to end:
//!
//! ```
//! use parapet_xen_sys::io::blkif::{Operation, native};
//!
//! fn sectors_to_discard(slot: native::Slot) -> Option<u64> {
//!     let [operation, ..] = slot;
//!     (Operation::try_from(operation) == Ok(Operation::Discard)).then(|| {
//!         let request: native::Discard = zerocopy::transmute!(slot);
//!         request.nr_sectors
//!     })
//! }
//!
//! let request = native::Discard { operation: 5, nr_sectors: 8, ..Default::default() };
//! assert_eq!(sectors_to_discard(zerocopy::transmute!(request)), Some(8));
//! ```
//!
//! Sectors are 512 bytes everywhere in the protocol, whatever `sector-size` says.

use super::ring::slots;
use crate::GrantRef;
use crate::abi::{Claim, Header, Target, claim, codes, constants, enumeration, flags, layout};

/// The layout of a frontend that does not say, on the machine that this crate describes.
pub use x86_64 as native;

constants! { LIMITS:
    /// Segments in a direct request.
    pub const MAX_SEGMENTS_PER_REQUEST: usize = 11 => "BLKIF_MAX_SEGMENTS_PER_REQUEST";
    /// Pages of segments in an indirect request.
    pub const MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8 => "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST";
}

/// The unit of `sector_number`, `nr_sectors`, `first_sect` and `last_sect`, in bytes.
pub const SECTOR_SIZE: usize = 512;

/// Segments in one page of an indirect request.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = crate::PAGE_SIZE / size_of::<Segment>();

enumeration! {
    /// What a request asks for.
    pub enum Operation: u8 {
        /// Read into the segments.
        Read = 0 => "BLKIF_OP_READ",
        /// Write from the segments.
        Write = 1 => "BLKIF_OP_WRITE",
        /// Write, after all writes before it and before all after it.
        WriteBarrier = 2 => "BLKIF_OP_WRITE_BARRIER",
        /// Make all completed writes durable.
        FlushDiskcache = 3 => "BLKIF_OP_FLUSH_DISKCACHE",
        /// Used by somebody else; never valid here.
        Reserved1 = 4 => "BLKIF_OP_RESERVED_1",
        /// Forget sectors.
        Discard = 5 => "BLKIF_OP_DISCARD",
        /// Read or write with the segments in pages of their own.
        Indirect = 6 => "BLKIF_OP_INDIRECT",
    }
}

codes! {
    /// How a request ended.
    pub struct Status(i16) {
        /// Done.
        OKAY = 0 => "BLKIF_RSP_OKAY",
        /// Failed.
        ERROR = -1 => "BLKIF_RSP_ERROR",
        /// The backend does not do this.
        EOPNOTSUPP = -2 => "BLKIF_RSP_EOPNOTSUPP",
    }
}

flags! {
    /// How to discard.
    pub struct DiscardFlags: u8 {
        /// Leave nothing that could be recovered.
        const SECURE = 1 << 0 => "BLKIF_DISCARD_SECURE";
    }

    /// What kind of disk it is: the backend's key `info`.
    pub struct DiskInfo: u32 {
        /// A CD or DVD drive.
        const CDROM = 1 => "VDISK_CDROM";
        /// Its medium can be changed.
        const REMOVABLE = 2 => "VDISK_REMOVABLE";
        /// It cannot be written.
        const READONLY = 4 => "VDISK_READONLY";
    }
}

layout! {
    /// Part of a page to read into or to write from; the same in every layout.
    pub struct Segment = "struct blkif_request_segment", 8 {
        /// The page.
        0 gref: GrantRef,
        /// Its first sector to transfer, from 0 to 7.
        4 first_sect: u8,
        /// Its last, itself included.
        5 last_sect: u8,
        /// Zero.
        6 _pad: u16 = ours,
    }
}

/// The layout `x86_64-abi`: 64-bit integers aligned to eight bytes.
pub mod x86_64 {
    use super::{
        DiscardFlags, GrantRef, MAX_INDIRECT_PAGES_PER_REQUEST, MAX_SEGMENTS_PER_REQUEST, Segment,
        Status, layout,
    };

    /// A slot as bytes.
    pub type Slot = [u8; 112];

    layout! {
        /// Read, write, write barrier or flush.
        pub struct Request = "struct blkif_request" in "union blkif_sring_entry", 112 {
            /// An [`Operation`](super::Operation).
            0 operation: u8,
            /// How many of `seg` are meant.
            1 nr_segments: u8,
            /// The disk's number in the frontend; of no use.
            2 handle: u16,
            /// Zero.
            4 _pad: u32 = ours,
            /// Returned in the response.
            8 id: u64,
            /// The disk's first sector.
            16 sector_number: u64,
            /// The segments.
            24 seg: [Segment; MAX_SEGMENTS_PER_REQUEST],
        }

        /// Discard.
        pub struct Discard = "struct blkif_request_discard" in "union blkif_sring_entry", 112 {
            /// [`Operation::Discard`](super::Operation::Discard).
            0 operation: u8,
            /// How.
            1 flag: DiscardFlags,
            /// The disk's number in the frontend; of no use.
            2 handle: u16,
            /// Zero.
            4 _pad: u32 = ours,
            /// Returned in the response.
            8 id: u64,
            /// The first sector to forget.
            16 sector_number: u64,
            /// How many.
            24 nr_sectors: u64,
            /// The rest of the slot.
            32 _rest: [u64; 10] = ours,
        }

        /// Read or write with the segments in pages of their own.
        pub struct Indirect = "struct blkif_request_indirect" in "union blkif_sring_entry", 112 {
            /// [`Operation::Indirect`](super::Operation::Indirect).
            0 operation: u8,
            /// Read or write.
            1 indirect_op: u8,
            /// How many segments there are in all pages.
            2 nr_segments: u16,
            /// Zero.
            4 _pad: u32 = ours,
            /// Returned in the response.
            8 id: u64,
            /// The disk's first sector.
            16 sector_number: u64,
            /// The disk's number in the frontend; of no use.
            24 handle: u16,
            /// Zero.
            26 _pad2: u16 = ours,
            /// The pages, arrays of [`Segment`]: as many as needed.
            28 indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES_PER_REQUEST],
            /// The rest of the slot.
            60 _rest: [u32; 13] = ours,
        }

        /// A response.
        pub struct Response = "struct blkif_response", 16 {
            /// The request's.
            0 id: u64,
            /// The request's.
            8 operation: u8,
            /// Zero.
            9 _pad: u8 = ours,
            /// How it ended.
            10 status: Status,
            /// Zero.
            12 _pad2: u32 = ours,
        }
    }
}

/// The layout `x86_32-abi`: 64-bit integers aligned to four bytes. Fields can be copied out but not
/// borrowed.
pub mod x86_32 {
    use super::{
        DiscardFlags, GrantRef, MAX_INDIRECT_PAGES_PER_REQUEST, MAX_SEGMENTS_PER_REQUEST, Segment,
        Status, layout,
    };

    /// A slot as bytes.
    pub type Slot = [u8; 108];

    layout! {
        /// Read, write, write barrier or flush.
        #[repr(packed(4))]
        pub struct Request = "struct blkif_request" in "union blkif_sring_entry", 108 {
            /// An [`Operation`](super::Operation).
            0 operation: u8,
            /// How many of `seg` are meant.
            1 nr_segments: u8,
            /// The disk's number in the frontend; of no use.
            2 handle: u16,
            /// Returned in the response.
            4 id: u64,
            /// The disk's first sector.
            12 sector_number: u64,
            /// The segments.
            20 seg: [Segment; MAX_SEGMENTS_PER_REQUEST],
        }

        /// Discard.
        #[repr(packed(4))]
        pub struct Discard = "struct blkif_request_discard" in "union blkif_sring_entry", 108 {
            /// [`Operation::Discard`](super::Operation::Discard).
            0 operation: u8,
            /// How.
            1 flag: DiscardFlags,
            /// The disk's number in the frontend; of no use.
            2 handle: u16,
            /// Returned in the response.
            4 id: u64,
            /// The first sector to forget.
            12 sector_number: u64,
            /// How many.
            20 nr_sectors: u64,
            /// The rest of the slot.
            28 _rest: [u32; 20] = ours,
        }

        /// Read or write with the segments in pages of their own.
        #[repr(packed(4))]
        pub struct Indirect = "struct blkif_request_indirect" in "union blkif_sring_entry", 108 {
            /// [`Operation::Indirect`](super::Operation::Indirect).
            0 operation: u8,
            /// Read or write.
            1 indirect_op: u8,
            /// How many segments there are in all pages.
            2 nr_segments: u16,
            /// Returned in the response.
            4 id: u64,
            /// The disk's first sector.
            12 sector_number: u64,
            /// The disk's number in the frontend; of no use.
            20 handle: u16,
            /// Zero.
            22 _pad: u16 = ours,
            /// The pages, arrays of [`Segment`]: as many as needed.
            24 indirect_grefs: [GrantRef; MAX_INDIRECT_PAGES_PER_REQUEST],
            /// Zero.
            56 _pad2: u64 = "pad",
            /// The rest of the slot.
            64 _rest: [u32; 11] = ours,
        }

        /// A response.
        #[repr(packed(4))]
        pub struct Response = "struct blkif_response", 12 {
            /// The request's.
            0 id: u64,
            /// The request's.
            8 operation: u8,
            /// Zero.
            9 _pad: u8 = ours,
            /// How it ended.
            10 status: Status,
        }
    }
}

/// The claims that a ring of one page and one of sixteen have the slots that we compute.
const fn ring_sizes(slot: usize) -> [Claim; 2] {
    [
        claim!("__CONST_RING_SIZE(blkif, 4096)", slots(4096, slot),),
        claim!(
            "__CONST_RING_SIZE(blkif, 16 * 4096)",
            slots(16 * 4096, slot),
        ),
    ]
}

pub(crate) const HEADER: Header = Header {
    include: "xen/io/blkif.h",
    target: Target::X86_64,
    claims: &[
        LIMITS,
        Operation::CLAIMS,
        Status::CLAIMS,
        DiscardFlags::CLAIMS,
        DiskInfo::CLAIMS,
        &[&ring_sizes(size_of::<x86_64::Slot>())],
        Segment::CLAIMS,
        x86_64::Request::CLAIMS,
        x86_64::Discard::CLAIMS,
        x86_64::Indirect::CLAIMS,
        x86_64::Response::CLAIMS,
    ],
};

pub(crate) const HEADER_X86_32: Header = Header {
    include: "xen/io/blkif.h",
    target: Target::X86_32,
    claims: &[
        &[&ring_sizes(size_of::<x86_32::Slot>())],
        Segment::CLAIMS,
        x86_32::Request::CLAIMS,
        x86_32::Discard::CLAIMS,
        x86_32::Indirect::CLAIMS,
        x86_32::Response::CLAIMS,
    ],
};
