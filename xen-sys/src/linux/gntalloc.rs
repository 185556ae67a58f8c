//! `/dev/xen/gntalloc`: pages of one's own, granted to others.
//!
//! [`ALLOC_GREF`] allocates and grants; `mmap` at the index it returns maps the pages;
//! [`DEALLOC_GREF`] takes them back once nobody maps them.

use super::gntdev::NotifyAction;
use super::ioctl;
use crate::abi::{Header, Target, constants, flags, layout};
use crate::{DomId, GrantRef, Port};

constants! { IOCTLS:
    /// [`AllocGref`].
    pub const ALLOC_GREF: u32 = ioctl(b'G', 5, size_of::<AllocGref>()) => "IOCTL_GNTALLOC_ALLOC_GREF";
    /// [`DeallocGref`].
    pub const DEALLOC_GREF: u32 = ioctl(b'G', 6, size_of::<DeallocGref>())
        => "IOCTL_GNTALLOC_DEALLOC_GREF";
    /// [`UnmapNotify`].
    pub const SET_UNMAP_NOTIFY: u32 = ioctl(b'G', 7, size_of::<UnmapNotify>())
        => "IOCTL_GNTALLOC_SET_UNMAP_NOTIFY";
}

flags! {
    /// How to grant.
    pub struct AllocFlags: u16 {
        /// The other domain may write.
        const WRITABLE = 1 => "GNTALLOC_FLAG_WRITABLE";
    }
}

layout! {
    /// Allocate pages and grant them.
    pub struct AllocGref = "struct ioctl_gntalloc_alloc_gref", 24 {
        /// In: to whom.
        0 domid: DomId,
        /// In: how.
        2 flags: AllocFlags,
        /// In: how many.
        4 count: u32,
        /// Out: the offset to `mmap` them at.
        8 index: u64,
        /// Out: the first of `count` grants.
        16 gref_ids: [GrantRef; 1],
        /// Zero; the second of `count` grants, if there is one.
        20 _pad: u32 = ours,
    }

    /// Take pages back.
    pub struct DeallocGref = "struct ioctl_gntalloc_dealloc_gref", 16 {
        /// As returned by the allocation.
        0 index: u64,
        /// How many.
        8 count: u32,
        /// Zero.
        12 _pad: u32 = ours,
    }

    /// Do something when a page is unmapped, be it that the process died.
    pub struct UnmapNotify = "struct ioctl_gntalloc_unmap_notify", 16 {
        /// The offset of a byte in the page.
        0 index: u64,
        /// What.
        8 action: NotifyAction,
        /// The port to notify.
        12 event_channel_port: Port,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sys/gntalloc.h",
    target: Target::X86_64,
    claims: &[
        IOCTLS,
        AllocFlags::CLAIMS,
        AllocGref::CLAIMS,
        DeallocGref::CLAIMS,
        UnmapNotify::CLAIMS,
    ],
};
