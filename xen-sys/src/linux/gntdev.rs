//! `/dev/xen/gntdev`: pages that others granted, mapped or copied.
//!
//! [`MAP_GRANT_REF`] announces grants; `mmap` at the index it returns maps them; after `munmap`,
//! [`UNMAP_GRANT_REF`] forgets them. [`GRANT_COPY`] copies without mapping.

use super::ioctl;
use crate::abi::{Header, Target, constants, flags, layout};
use crate::grant_table::CopyFlags;
use crate::hypercall::GuestHandle;
use crate::{DomId, GrantRef, GrantStatus, Port};

constants! { IOCTLS:
    /// [`MapGrantRef`].
    pub const MAP_GRANT_REF: u32 = ioctl(b'G', 0, size_of::<MapGrantRef>())
        => "IOCTL_GNTDEV_MAP_GRANT_REF";
    /// [`UnmapGrantRef`].
    pub const UNMAP_GRANT_REF: u32 = ioctl(b'G', 1, size_of::<UnmapGrantRef>())
        => "IOCTL_GNTDEV_UNMAP_GRANT_REF";
    /// [`GetOffsetForVaddr`].
    pub const GET_OFFSET_FOR_VADDR: u32 = ioctl(b'G', 2, size_of::<GetOffsetForVaddr>())
        => "IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR";
    /// [`SetMaxGrants`].
    pub const SET_MAX_GRANTS: u32 = ioctl(b'G', 3, size_of::<SetMaxGrants>())
        => "IOCTL_GNTDEV_SET_MAX_GRANTS";
    /// [`UnmapNotify`].
    pub const SET_UNMAP_NOTIFY: u32 = ioctl(b'G', 7, size_of::<UnmapNotify>())
        => "IOCTL_GNTDEV_SET_UNMAP_NOTIFY";
    /// [`GrantCopy`].
    pub const GRANT_COPY: u32 = ioctl(b'G', 8, size_of::<GrantCopy>()) => "IOCTL_GNTDEV_GRANT_COPY";
    /// [`DmabufExpFromRefs`].
    pub const DMABUF_EXP_FROM_REFS: u32 = ioctl(b'G', 9, size_of::<DmabufExpFromRefs>())
        => "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS";
    /// [`DmabufExpWaitReleased`].
    pub const DMABUF_EXP_WAIT_RELEASED: u32 = ioctl(b'G', 10, size_of::<DmabufExpWaitReleased>())
        => "IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED";
    /// [`DmabufImpToRefs`].
    pub const DMABUF_IMP_TO_REFS: u32 = ioctl(b'G', 11, size_of::<DmabufImpToRefs>())
        => "IOCTL_GNTDEV_DMABUF_IMP_TO_REFS";
    /// [`DmabufImpRelease`].
    pub const DMABUF_IMP_RELEASE: u32 = ioctl(b'G', 12, size_of::<DmabufImpRelease>())
        => "IOCTL_GNTDEV_DMABUF_IMP_RELEASE";
}

flags! {
    /// What to do when a page is unmapped.
    pub struct NotifyAction: u32 {
        /// Write zero to the byte that the index names.
        const CLEAR_BYTE = 1 => "UNMAP_NOTIFY_CLEAR_BYTE";
        /// Notify the port.
        const SEND_EVENT = 2 => "UNMAP_NOTIFY_SEND_EVENT";
    }

    /// What memory to make a buffer of.
    pub struct DmaFlags: u32 {
        /// Write-combining.
        const WC = 1 << 0 => "GNTDEV_DMA_FLAG_WC";
        /// Coherent.
        const COHERENT = 1 << 1 => "GNTDEV_DMA_FLAG_COHERENT";
    }
}

layout! {
    /// A grant of some domain.
    pub struct ForeignGrant = "struct ioctl_gntdev_grant_ref", 8 {
        /// The domain.
        0 domid: u32,
        /// The grant.
        4 gref: GrantRef = "ref",
    }

    /// Announce grants that are to be mapped.
    pub struct MapGrantRef = "struct ioctl_gntdev_map_grant_ref", 24 {
        /// In: how many.
        0 count: u32,
        /// Zero.
        4 _pad: u32 = "pad",
        /// Out: the offset to `mmap` them at.
        8 index: u64,
        /// In: the first of `count`.
        16 refs: [ForeignGrant; 1],
    }

    /// Forget grants that are no longer mapped.
    pub struct UnmapGrantRef = "struct ioctl_gntdev_unmap_grant_ref", 16 {
        /// As returned when they were announced.
        0 index: u64,
        /// How many.
        8 count: u32,
        /// Zero.
        12 _pad: u32 = "pad",
    }

    /// Ask which grants are mapped at an address.
    pub struct GetOffsetForVaddr = "struct ioctl_gntdev_get_offset_for_vaddr", 24 {
        /// In: the address.
        0 vaddr: u64,
        /// Out: the offset it was mapped at.
        8 offset: u64,
        /// Out: how many were mapped there.
        16 count: u32,
        /// Zero.
        20 _pad: u32 = "pad",
    }

    /// Limit how many grants may be mapped at once; before all other ioctls.
    pub struct SetMaxGrants = "struct ioctl_gntdev_set_max_grants", 4 {
        /// How many.
        0 count: u32,
    }

    /// Do something when a page is unmapped, be it that the process died.
    pub struct UnmapNotify = "struct ioctl_gntdev_unmap_notify", 16 {
        /// The offset of a byte in the page.
        0 index: u64,
        /// What.
        8 action: NotifyAction,
        /// The port to notify.
        12 event_channel_port: Port,
    }

    /// One end of a copy: a place in a page granted by another domain. The other end is an address
    /// of the process.
    pub struct ForeignPtr
        = "struct ioctl_gntdev_grant_copy_segment"
            in "((struct ioctl_gntdev_grant_copy_segment *)0)->source", 8
    {
        /// The page.
        0 gref: GrantRef = "source.foreign.ref",
        /// The first byte in it.
        4 offset: u16 = "source.foreign.offset",
        /// Who granted it.
        6 domid: DomId = "source.foreign.domid",
    }

    /// A copy; neither end may cross the end of a page that was granted.
    pub struct CopySegment = "struct ioctl_gntdev_grant_copy_segment", 24 {
        /// In: an address, or a [`ForeignPtr`].
        0 source: [u8; 8],
        /// In: an address, or a [`ForeignPtr`].
        8 dest: [u8; 8],
        /// In: bytes.
        16 len: u16,
        /// In: which end is a grant.
        18 flags: CopyFlags,
        /// Out: how it ended.
        20 status: GrantStatus,
        /// Zero.
        22 _pad: u16 = ours,
    }

    /// Copy.
    pub struct GrantCopy = "struct ioctl_gntdev_grant_copy", 16 {
        /// How many.
        0 count: u32,
        /// Zero.
        4 _pad: u32 = ours,
        /// The address of that many [`CopySegment`]s.
        8 segments: GuestHandle,
    }

    /// Make a buffer of grants.
    pub struct DmabufExpFromRefs = "struct ioctl_gntdev_dmabuf_exp_from_refs", 20 {
        /// In: of what memory.
        0 flags: DmaFlags,
        /// In: how many grants.
        4 count: u32,
        /// Out: the buffer's descriptor.
        8 fd: u32,
        /// In: whose grants.
        12 domid: u32,
        /// In: the first of `count`.
        16 refs: [GrantRef; 1],
    }

    /// Wait until nobody uses such a buffer.
    pub struct DmabufExpWaitReleased = "struct ioctl_gntdev_dmabuf_exp_wait_released", 8 {
        /// The buffer's descriptor.
        0 fd: u32,
        /// Milliseconds to wait at most.
        4 wait_to_ms: u32,
    }

    /// Grant a buffer.
    pub struct DmabufImpToRefs = "struct ioctl_gntdev_dmabuf_imp_to_refs", 20 {
        /// In: the buffer's descriptor.
        0 fd: u32,
        /// In: how many pages.
        4 count: u32,
        /// In: to whom.
        8 domid: u32,
        /// Zero.
        12 _pad: u32 = "reserved",
        /// Out: the first of `count` grants.
        16 refs: [GrantRef; 1],
    }

    /// Take such grants back.
    pub struct DmabufImpRelease = "struct ioctl_gntdev_dmabuf_imp_release", 8 {
        /// The buffer's descriptor.
        0 fd: u32,
        /// Zero.
        4 _pad: u32 = "reserved",
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sys/gntdev.h",
    target: Target::X86_64,
    claims: &[
        IOCTLS,
        NotifyAction::CLAIMS,
        DmaFlags::CLAIMS,
        ForeignGrant::CLAIMS,
        MapGrantRef::CLAIMS,
        UnmapGrantRef::CLAIMS,
        GetOffsetForVaddr::CLAIMS,
        SetMaxGrants::CLAIMS,
        UnmapNotify::CLAIMS,
        ForeignPtr::CLAIMS,
        CopySegment::CLAIMS,
        GrantCopy::CLAIMS,
        DmabufExpFromRefs::CLAIMS,
        DmabufExpWaitReleased::CLAIMS,
        DmabufImpToRefs::CLAIMS,
        DmabufImpRelease::CLAIMS,
    ],
};
