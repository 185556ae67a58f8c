//! `/dev/xen/privcmd`: hypercalls, and other domains' memory, for a toolstack.

use super::ioctl;
use crate::DomId;
use crate::abi::{Header, Target, constants, layout};
use crate::hypercall::GuestHandle;

constants! { IOCTLS:
    /// [`Hypercall`]; returns what it returned.
    pub const HYPERCALL: u32 = ioctl(b'P', 0, size_of::<Hypercall>()) => "IOCTL_PRIVCMD_HYPERCALL";
    /// [`Mmap`].
    pub const MMAP: u32 = ioctl(b'P', 2, size_of::<Mmap>()) => "IOCTL_PRIVCMD_MMAP";
    /// [`MmapBatch`].
    pub const MMAPBATCH: u32 = ioctl(b'P', 3, size_of::<MmapBatch>()) => "IOCTL_PRIVCMD_MMAPBATCH";
    /// [`MmapBatchV2`].
    pub const MMAPBATCH_V2: u32 = ioctl(b'P', 4, size_of::<MmapBatchV2>())
        => "IOCTL_PRIVCMD_MMAPBATCH_V2";
    /// [`DmOp`].
    pub const DM_OP: u32 = ioctl(b'P', 5, size_of::<DmOp>()) => "IOCTL_PRIVCMD_DM_OP";
    /// From now on act on one domain only: takes its [`DomId`].
    pub const RESTRICT: u32 = ioctl(b'P', 6, size_of::<DomId>()) => "IOCTL_PRIVCMD_RESTRICT";
    /// [`MmapResource`].
    pub const MMAP_RESOURCE: u32 = ioctl(b'P', 7, size_of::<MmapResource>())
        => "IOCTL_PRIVCMD_MMAP_RESOURCE";
    /// Or-ed into an entry of [`MmapBatch::arr`] that could not be mapped.
    pub const MFN_ERROR: u32 = 0xf000_0000 => "PRIVCMD_MMAPBATCH_MFN_ERROR";
    /// Or-ed into an entry of [`MmapBatch::arr`] that is paged out: try again.
    pub const PAGED_ERROR: u32 = 0x8000_0000 => "PRIVCMD_MMAPBATCH_PAGED_ERROR";
}

layout! {
    /// Make a hypercall.
    pub struct Hypercall = "struct privcmd_hypercall", 48 {
        /// A [`Hypercall`](crate::hypercall::Hypercall).
        0 op: u64,
        /// Its arguments.
        8 arg: [u64; 5],
    }

    /// A range of machine frames to map.
    pub struct MmapEntry = "struct privcmd_mmap_entry", 24 {
        /// Where.
        0 va: u64,
        /// The first frame.
        8 mfn: u64,
        /// How many.
        16 npages: u64,
    }

    /// Map ranges of machine frames.
    pub struct Mmap = "struct privcmd_mmap", 16 {
        /// How many.
        0 num: u32,
        /// Whose.
        4 dom: DomId,
        /// Zero.
        6 _pad: u16 = ours,
        /// The address of that many [`MmapEntry`]s.
        8 entry: GuestHandle,
    }

    /// Map frames, with errors or-ed into their numbers.
    pub struct MmapBatch = "struct privcmd_mmapbatch", 24 {
        /// How many.
        0 num: u32,
        /// Whose.
        4 dom: DomId,
        /// Zero.
        6 _pad: u16 = ours,
        /// Where.
        8 addr: u64,
        /// The address of their numbers, an array of `u64`.
        16 arr: GuestHandle,
    }

    /// Map frames.
    pub struct MmapBatchV2 = "struct privcmd_mmapbatch_v2", 32 {
        /// How many.
        0 num: u32,
        /// Whose.
        4 dom: DomId,
        /// Zero.
        6 _pad: u16 = ours,
        /// Where.
        8 addr: u64,
        /// The address of their numbers, an array of `u64`.
        16 arr: GuestHandle,
        /// The address for their errors, an array of `i32`: zero or negative.
        24 err: GuestHandle,
    }

    /// A buffer of a device model's operation.
    pub struct DmOpBuf = "struct privcmd_dm_op_buf", 16 {
        /// Its address.
        0 uptr: GuestHandle,
        /// Its size.
        8 size: u64,
    }

    /// An operation of a device model.
    pub struct DmOp = "struct privcmd_dm_op", 16 {
        /// On which domain.
        0 dom: DomId,
        /// How many buffers.
        2 num: u16,
        /// Zero.
        4 _pad: u32 = ours,
        /// The address of that many [`DmOpBuf`]s.
        8 ubufs: GuestHandle,
    }

    /// Map pages of Xen's that belong to a domain.
    pub struct MmapResource = "struct privcmd_mmap_resource", 32 {
        /// Which domain.
        0 dom: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// A [`Resource`](crate::memory::Resource).
        4 resource: u32 = "type",
        /// Which of that kind.
        8 id: u32,
        /// The first page.
        12 idx: u32,
        /// How many; zero asks how many there are.
        16 num: u64,
        /// Where.
        24 addr: u64,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sys/privcmd.h",
    target: Target::X86_64,
    claims: &[
        IOCTLS,
        Hypercall::CLAIMS,
        MmapEntry::CLAIMS,
        Mmap::CLAIMS,
        MmapBatch::CLAIMS,
        MmapBatchV2::CLAIMS,
        DmOpBuf::CLAIMS,
        DmOp::CLAIMS,
        MmapResource::CLAIMS,
    ],
};
