//! Grant tables (`grant_table.h`): how a domain lets another use its pages.

use crate::DomId;
use crate::abi::{Header, Target, codes, constants, enumeration, flags, identifiers, layout};
use crate::hypercall::GuestHandle;

identifiers! {
    /// An index into the granting domain's grant table: what a frontend hands its backend to let it
    /// reach one page.
    pub struct GrantRef(u32) = "grant_ref_t" {
        /// Where a toolstack puts the grant of a new domain's console page.
        RESERVED_CONSOLE = 0 => "GNTTAB_RESERVED_CONSOLE",
        /// Where a toolstack puts the grant of a new domain's xenstore page.
        RESERVED_XENSTORE = 1 => "GNTTAB_RESERVED_XENSTORE",
    }

    /// What names one mapping of a grant until it is unmapped.
    pub struct GrantHandle(u32) = "grant_handle_t" {}
}

constants! { LIMITS:
    /// Entries at the start of a table that survive a change of its version, and that a toolstack
    /// may fill before the domain runs.
    pub const NR_RESERVED_ENTRIES: u32 = 8 => "GNTTAB_NR_RESERVED_ENTRIES";
    /// The lowest of the bits of a map's flags that the guest finds in the available bits of the
    /// page-table entry.
    pub const MAP_GUEST_AVAIL0: u32 = 16 => "_GNTMAP_guest_avail0";
    /// All of those bits.
    pub const MAP_GUEST_AVAIL_MASK: u32 = u32::MAX << MAP_GUEST_AVAIL0 => "GNTMAP_guest_avail_mask";
}

flags! {
    /// An entry's type (the two lowest bits) and what qualifies it.
    ///
    /// The guest writes all but `READING`, `WRITING` (and the two `TRANSFER_*` bits, which share
    /// numbers with `READONLY` and `READING`): those are the hypervisor's.
    pub struct EntryFlags: u16 {
        /// Type: the grantee may map and access the frame.
        const PERMIT_ACCESS = 1 => "GTF_permit_access";
        /// Type: the grantee may transfer a frame of its own to this domain.
        const ACCEPT_TRANSFER = 2 => "GTF_accept_transfer";
        /// Type: the grantee may copy by way of a grant that a third domain made to this one.
        const TRANSITIVE = 3 => "GTF_transitive";
        /// The bits that are the type; none set is an entry that grants nothing.
        const TYPE_MASK = 3 => "GTF_type_mask";
        /// Read access only.
        const READONLY = 1 << 2 => "GTF_readonly";
        /// In use for reading.
        const READING = 1 << 3 => "GTF_reading";
        /// In use for writing.
        const WRITING = 1 << 4 => "GTF_writing";
        /// Cache attribute of mappings (x86).
        const PWT = 1 << 5 => "GTF_PWT";
        /// Cache attribute of mappings (x86).
        const PCD = 1 << 6 => "GTF_PCD";
        /// Cache attribute of mappings (x86).
        const PAT = 1 << 7 => "GTF_PAT";
        /// Only part of the page is granted, and only for copying (version 2).
        const SUB_PAGE = 1 << 8 => "GTF_sub_page";
        /// A transfer has begun; the guest must leave the entry alone.
        const TRANSFER_COMMITTED = 1 << 2 => "GTF_transfer_committed";
        /// A transfer is done, and the frame's number stands in the entry.
        const TRANSFER_COMPLETED = 1 << 3 => "GTF_transfer_completed";
    }

    /// How to map a grant.
    pub struct MapFlags: u32 {
        /// For devices, at a bus address.
        const DEVICE_MAP = 1 << 0 => "GNTMAP_device_map";
        /// For processors, at a virtual address.
        const HOST_MAP = 1 << 1 => "GNTMAP_host_map";
        /// Read-only.
        const READONLY = 1 << 2 => "GNTMAP_readonly";
        /// For the current application too, and not the kernel alone.
        const APPLICATION_MAP = 1 << 3 => "GNTMAP_application_map";
        /// The address given is that of the page-table entry to write.
        const CONTAINS_PTE = 1 << 4 => "GNTMAP_contains_pte";
    }

    /// What the ends of a copy are.
    pub struct CopyFlags: u16 {
        /// The source is a grant, not a frame of the caller's.
        const SOURCE_GREF = 1 << 0 => "GNTCOPY_source_gref";
        /// The destination is a grant, not a frame of the caller's.
        const DEST_GREF = 1 << 1 => "GNTCOPY_dest_gref";
    }

    /// What to do to the caches ([`CacheFlush`]).
    pub struct CacheOp: u32 {
        /// Write dirty lines back.
        const CLEAN = 1 << 0 => "GNTTAB_CACHE_CLEAN";
        /// Drop lines.
        const INVAL = 1 << 1 => "GNTTAB_CACHE_INVAL";
        /// The address is a grant reference.
        const SOURCE_GREF = 1 << 31 => "GNTTAB_CACHE_SOURCE_GREF";
    }
}

codes! {
    /// How a grant operation ended, `enum grant_status`: zero or a negative number.
    pub struct GrantStatus(i16) {
        /// Done.
        OKAY = 0 => "GNTST_okay",
        /// Failed for a reason without a code.
        GENERAL_ERROR = -1 => "GNTST_general_error",
        /// There is no such domain.
        BAD_DOMAIN = -2 => "GNTST_bad_domain",
        /// No such grant, or one that does not allow this.
        BAD_GNTREF = -3 => "GNTST_bad_gntref",
        /// No such mapping, or one that does not allow this.
        BAD_HANDLE = -4 => "GNTST_bad_handle",
        /// A virtual address that cannot be mapped at.
        BAD_VIRT_ADDR = -5 => "GNTST_bad_virt_addr",
        /// A bus address that cannot be unmapped.
        BAD_DEV_ADDR = -6 => "GNTST_bad_dev_addr",
        /// The IOMMU has no room.
        NO_DEVICE_SPACE = -7 => "GNTST_no_device_space",
        /// Not allowed.
        PERMISSION_DENIED = -8 => "GNTST_permission_denied",
        /// The page is not fit for this.
        BAD_PAGE = -9 => "GNTST_bad_page",
        /// A copy that would cross the end of a page.
        BAD_COPY_ARG = -10 => "GNTST_bad_copy_arg",
        /// A transferred page's address is too high for the taker.
        ADDRESS_TOO_BIG = -11 => "GNTST_address_too_big",
        /// Not done; try again.
        EAGAIN = -12 => "GNTST_eagain",
        /// No room for another mapping or grant.
        NO_SPACE = -13 => "GNTST_no_space",
    }
}

enumeration! {
    /// The operations of the grant table hypercall.
    pub enum Operation: u32 {
        /// [`MapGrantRef`].
        MapGrantRef = 0 => "GNTTABOP_map_grant_ref",
        /// [`UnmapGrantRef`].
        UnmapGrantRef = 1 => "GNTTABOP_unmap_grant_ref",
        /// [`SetupTable`].
        SetupTable = 2 => "GNTTABOP_setup_table",
        /// [`DumpTable`].
        DumpTable = 3 => "GNTTABOP_dump_table",
        /// [`Transfer`].
        Transfer = 4 => "GNTTABOP_transfer",
        /// [`GrantCopy`].
        Copy = 5 => "GNTTABOP_copy",
        /// [`QuerySize`].
        QuerySize = 6 => "GNTTABOP_query_size",
        /// [`UnmapAndReplace`].
        UnmapAndReplace = 7 => "GNTTABOP_unmap_and_replace",
        /// [`SetVersion`].
        SetVersion = 8 => "GNTTABOP_set_version",
        /// [`GetStatusFrames`].
        GetStatusFrames = 9 => "GNTTABOP_get_status_frames",
        /// [`GetVersion`].
        GetVersion = 10 => "GNTTABOP_get_version",
        /// [`SwapGrantRef`].
        SwapGrantRef = 11 => "GNTTABOP_swap_grant_ref",
        /// [`CacheFlush`].
        CacheFlush = 12 => "GNTTABOP_cache_flush",
    }
}

layout! {
    /// An entry of a version 1 table, written by the granting guest: first the rest, then, after a
    /// barrier, `flags`.
    pub struct EntryV1 = "struct grant_entry_v1", 8 {
        /// Type and state.
        0 flags: EntryFlags,
        /// To whom.
        2 domid: DomId,
        /// The guest frame number of the page.
        4 frame: u32,
    }

    /// What version 1 and version 2 entries begin with.
    pub struct EntryHeader = "struct grant_entry_header", 4 {
        /// Type and state; in version 2, whether it is in use stands in a separate array of `u16`.
        0 flags: EntryFlags,
        /// To whom.
        2 domid: DomId,
    }

    /// A version 2 entry that grants a whole page (or accepts a transfer).
    pub struct EntryV2FullPage = "union grant_entry_v2", 16 {
        /// Type and grantee.
        0 hdr: EntryHeader = "full_page.hdr",
        /// Zero.
        4 _pad: u32 = "full_page.pad0",
        /// The guest frame number of the page.
        8 frame: u64 = "full_page.frame",
    }

    /// A version 2 entry that grants part of a page, for copying.
    pub struct EntryV2SubPage = "union grant_entry_v2", 16 {
        /// Type and grantee, with [`EntryFlags::SUB_PAGE`].
        0 hdr: EntryHeader = "sub_page.hdr",
        /// The first byte granted.
        4 page_off: u16 = "sub_page.page_off",
        /// How many bytes.
        6 length: u16 = "sub_page.length",
        /// The guest frame number of the page.
        8 frame: u64 = "sub_page.frame",
    }

    /// A version 2 entry that passes on another domain's grant, for copying.
    pub struct EntryV2Transitive = "union grant_entry_v2", 16 {
        /// Type and grantee.
        0 hdr: EntryHeader = "transitive.hdr",
        /// The domain that made the grant passed on.
        4 trans_domid: DomId = "transitive.trans_domid",
        /// Zero.
        6 _pad: u16 = "transitive.pad0",
        /// The grant passed on, in that domain's table.
        8 gref: GrantRef = "transitive.gref",
        /// Zero.
        12 _pad2: u32 = ours,
    }

    /// Map a grant.
    pub struct MapGrantRef = "struct gnttab_map_grant_ref", 32 {
        /// In: the virtual address, or that of the page-table entry.
        0 host_addr: u64,
        /// In: how.
        8 flags: MapFlags,
        /// In: the grant.
        12 gref: GrantRef = "ref",
        /// In: the granting domain.
        16 dom: DomId,
        /// Out: how it ended.
        18 status: GrantStatus,
        /// Out: the mapping, to be unmapped by.
        20 handle: GrantHandle,
        /// Out: the bus address, for a device's mapping.
        24 dev_bus_addr: u64,
    }

    /// Undo a mapping.
    pub struct UnmapGrantRef = "struct gnttab_unmap_grant_ref", 24 {
        /// In: where it is for processors, or zero.
        0 host_addr: u64,
        /// In: where it is for devices, or zero.
        8 dev_bus_addr: u64,
        /// In: the mapping.
        16 handle: GrantHandle,
        /// Out: how it ended.
        20 status: GrantStatus,
        /// Zero.
        22 _pad: u16 = ours,
    }

    /// Make a domain's table at least so many pages large, and learn their frames.
    pub struct SetupTable = "struct gnttab_setup_table", 24 {
        /// In: whose.
        0 dom: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// In: pages.
        4 nr_frames: u32,
        /// Out: how it ended.
        8 status: GrantStatus,
        /// Zero.
        10 _pad2: [u16; 3] = ours,
        /// In: room for that many frame numbers.
        16 frame_list: GuestHandle,
    }

    /// Print a table on Xen's console.
    pub struct DumpTable = "struct gnttab_dump_table", 4 {
        /// In: whose.
        0 dom: DomId,
        /// Out: how it ended.
        2 status: GrantStatus,
    }

    /// Give a page away to a domain that accepts one.
    pub struct Transfer = "struct gnttab_transfer", 24 {
        /// In: the page's machine frame.
        0 mfn: u64,
        /// In: to whom.
        8 domid: DomId,
        /// Zero.
        10 _pad: u16 = ours,
        /// In: the accepting entry in the taker's table.
        12 gref: GrantRef = "ref",
        /// Out: how it ended.
        16 status: GrantStatus,
        /// Zero.
        18 _pad2: [u16; 3] = ours,
    }

    /// One end of a copy: a place in a page.
    pub struct CopyPtr = "struct gnttab_copy_ptr", 16 {
        /// A guest frame number, or a grant reference in the lower half; [`CopyFlags`] say which.
        0 page: u64 = "u",
        /// Whose frame or grant.
        8 domid: DomId,
        /// The first byte in the page.
        10 offset: u16,
        /// Zero.
        12 _pad: u32 = ours,
    }

    /// Copy up to a page; neither end may cross the end of its page.
    pub struct GrantCopy = "struct gnttab_copy", 40 {
        /// In: from where.
        0 source: CopyPtr,
        /// In: to where.
        16 dest: CopyPtr,
        /// In: bytes.
        32 len: u16,
        /// In: what the ends are.
        34 flags: CopyFlags,
        /// Out: how it ended.
        36 status: GrantStatus,
        /// Zero.
        38 _pad: u16 = ours,
    }

    /// Ask how large a table is and may become.
    pub struct QuerySize = "struct gnttab_query_size", 16 {
        /// In: whose.
        0 dom: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// Out: pages now.
        4 nr_frames: u32,
        /// Out: pages at most.
        8 max_nr_frames: u32,
        /// Out: how it ended.
        12 status: GrantStatus,
        /// Zero.
        14 _pad2: u16 = ours,
    }

    /// Undo a mapping, and put the page mapped at another address in its place.
    pub struct UnmapAndReplace = "struct gnttab_unmap_and_replace", 24 {
        /// In: where the grant is mapped.
        0 host_addr: u64,
        /// In: whose page moves there.
        8 new_addr: u64,
        /// In: the mapping.
        16 handle: GrantHandle,
        /// Out: how it ended.
        20 status: GrantStatus,
        /// Zero.
        22 _pad: u16 = ours,
    }

    /// Choose the version of the caller's table, while no grant is in use.
    pub struct SetVersion = "struct gnttab_set_version", 4 {
        /// In: 1 or 2; out: what it is now.
        0 version: u32,
    }

    /// Learn the frames that hold the state of a version 2 table.
    pub struct GetStatusFrames = "struct gnttab_get_status_frames", 16 {
        /// In: room in the list.
        0 nr_frames: u32,
        /// In: whose.
        4 dom: DomId,
        /// Out: how it ended.
        6 status: GrantStatus,
        /// In: room for that many frame numbers of 64 bits.
        8 frame_list: GuestHandle,
    }

    /// Ask for the version of a table.
    pub struct GetVersion = "struct gnttab_get_version", 8 {
        /// In: whose.
        0 dom: DomId,
        /// Zero.
        2 _pad: u16 = "pad",
        /// Out: 1 or 2.
        4 version: u32,
    }

    /// Exchange two entries.
    pub struct SwapGrantRef = "struct gnttab_swap_grant_ref", 12 {
        /// In: one.
        0 ref_a: GrantRef,
        /// In: the other.
        4 ref_b: GrantRef,
        /// Out: how it ended.
        8 status: GrantStatus,
        /// Zero.
        10 _pad: u16 = ours,
    }

    /// Clean or invalidate caches for part of a page that was granted to the caller.
    pub struct CacheFlush = "struct gnttab_cache_flush", 16 {
        /// In: a bus address, or a grant reference in the lower half.
        0 page: u64 = "a",
        /// In: the first byte.
        8 offset: u16,
        /// In: bytes.
        10 length: u16,
        /// In: what to do.
        12 op: CacheOp,
    }
}

impl CopyPtr {
    /// A place in a page that `domid` granted to the caller.
    #[must_use]
    pub const fn granted(domid: DomId, gref: GrantRef, offset: u16) -> Self {
        Self {
            page: gref.0 as u64,
            domid,
            offset,
            _pad: 0,
        }
    }

    /// A place in a page of the caller's own.
    #[must_use]
    pub const fn local(frame: u64, offset: u16) -> Self {
        Self {
            page: frame,
            domid: DomId::SELF,
            offset,
            _pad: 0,
        }
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/grant_table.h",
    target: Target::X86_64,
    claims: &[
        GrantRef::CLAIMS,
        GrantHandle::CLAIMS,
        LIMITS,
        EntryFlags::CLAIMS,
        MapFlags::CLAIMS,
        CopyFlags::CLAIMS,
        CacheOp::CLAIMS,
        GrantStatus::CLAIMS,
        Operation::CLAIMS,
        EntryV1::CLAIMS,
        EntryHeader::CLAIMS,
        EntryV2FullPage::CLAIMS,
        EntryV2SubPage::CLAIMS,
        EntryV2Transitive::CLAIMS,
        MapGrantRef::CLAIMS,
        UnmapGrantRef::CLAIMS,
        SetupTable::CLAIMS,
        DumpTable::CLAIMS,
        Transfer::CLAIMS,
        CopyPtr::CLAIMS,
        GrantCopy::CLAIMS,
        QuerySize::CLAIMS,
        UnmapAndReplace::CLAIMS,
        SetVersion::CLAIMS,
        GetStatusFrames::CLAIMS,
        GetVersion::CLAIMS,
        SwapGrantRef::CLAIMS,
        CacheFlush::CLAIMS,
    ],
};
