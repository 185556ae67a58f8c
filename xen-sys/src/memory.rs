//! A domain's memory (`memory.h`): all operations by number, and the arguments of those that a guest
//! or a toolstack for ordinary guests makes. Paging, sharing, access control, virtual NUMA and
//! reserved device memory are left out.

use crate::DomId;
use crate::abi::{Header, Target, constants, enumeration, flags, layout};
use crate::hypercall::GuestHandle;

enumeration! {
    /// The operations of the memory hypercall.
    pub enum Operation: u32 {
        /// Give the domain frames: [`Reservation`].
        IncreaseReservation = 0 => "XENMEM_increase_reservation",
        /// Take frames from it: [`Reservation`].
        DecreaseReservation = 1 => "XENMEM_decrease_reservation",
        /// Ask for the machine's highest frame.
        MaximumRamPage = 2 => "XENMEM_maximum_ram_page",
        /// Ask how much a domain has: [`MemoryDomain`].
        CurrentReservation = 3 => "XENMEM_current_reservation",
        /// Ask how much a domain may have: [`MemoryDomain`].
        MaximumReservation = 4 => "XENMEM_maximum_reservation",
        /// Ask where the table from machine to pseudo-physical frames is: [`MachphysMfnList`].
        MachphysMfnList = 5 => "XENMEM_machphys_mfn_list",
        /// Put frames at guest frame numbers: [`Reservation`].
        PopulatePhysmap = 6 => "XENMEM_populate_physmap",
        /// Put a page of another kind at a guest frame number: [`AddToPhysmap`].
        AddToPhysmap = 7 => "XENMEM_add_to_physmap",
        /// Ask for the domain's memory map: [`MemoryMap`].
        MemoryMap = 9 => "XENMEM_memory_map",
        /// Ask for the machine's memory map: [`MemoryMap`].
        MachineMemoryMap = 10 => "XENMEM_machine_memory_map",
        /// Exchange frames: [`Exchange`].
        Exchange = 11 => "XENMEM_exchange",
        /// Ask at which addresses that table is: [`MachphysMapping`].
        MachphysMapping = 12 => "XENMEM_machphys_mapping",
        /// Set a domain's memory map: [`ForeignMemoryMap`].
        SetMemoryMap = 13 => "XENMEM_set_memory_map",
        /// Ask for a domain's highest guest frame number: [`MemoryDomain`].
        MaximumGpfn = 14 => "XENMEM_maximum_gpfn",
        /// Take the page from a guest frame number: [`RemoveFromPhysmap`].
        RemoveFromPhysmap = 15 => "XENMEM_remove_from_physmap",
        /// Set how much memory is populated on demand: [`PodTarget`].
        SetPodTarget = 16 => "XENMEM_set_pod_target",
        /// Ask how much it is: [`PodTarget`].
        GetPodTarget = 17 => "XENMEM_get_pod_target",
        /// Ask how many pages sharing has freed.
        GetSharingFreedPages = 18 => "XENMEM_get_sharing_freed_pages",
        /// Ask how many pages are shared.
        GetSharingSharedPages = 19 => "XENMEM_get_sharing_shared_pages",
        /// Paging to disk.
        PagingOp = 20 => "XENMEM_paging_op",
        /// Access control.
        AccessOp = 21 => "XENMEM_access_op",
        /// Sharing.
        SharingOp = 22 => "XENMEM_sharing_op",
        /// Put many pages: [`AddToPhysmapBatch`].
        AddToPhysmapBatch = 23 => "XENMEM_add_to_physmap_batch",
        /// Set memory aside for a domain: [`Reservation`].
        ClaimPages = 24 => "XENMEM_claim_pages",
        /// As [`Self::MachphysMfnList`], for 32-bit guests.
        MachphysCompatMfnList = 25 => "XENMEM_machphys_compat_mfn_list",
        /// Ask for the domain's virtual NUMA nodes.
        GetVnumaInfo = 26 => "XENMEM_get_vnumainfo",
        /// Ask for memory that devices reserve.
        ReservedDeviceMemoryMap = 27 => "XENMEM_reserved_device_memory_map",
        /// Reach pages of Xen's that belong to a domain: [`AcquireResource`].
        AcquireResource = 28 => "XENMEM_acquire_resource",
    }

    /// The kinds of page to be put at a guest frame number.
    pub enum Space: u32 {
        /// The shared info page.
        SharedInfo = 0 => "XENMAPSPACE_shared_info",
        /// A page of the grant table.
        GrantTable = 1 => "XENMAPSPACE_grant_table",
        /// The page at another guest frame number.
        Gmfn = 2 => "XENMAPSPACE_gmfn",
        /// The same, for a range.
        GmfnRange = 3 => "XENMAPSPACE_gmfn_range",
        /// A page of another domain.
        GmfnForeign = 4 => "XENMAPSPACE_gmfn_foreign",
        /// A page of a device.
        DevMmio = 5 => "XENMAPSPACE_dev_mmio",
    }

    /// The kinds of page to be acquired.
    pub enum Resource: u16 {
        /// The pages of an emulator's requests.
        IoreqServer = 0 => "XENMEM_resource_ioreq_server",
        /// The grant table.
        GrantTable = 1 => "XENMEM_resource_grant_table",
        /// The buffer of a processor trace.
        VmtraceBuf = 2 => "XENMEM_resource_vmtrace_buf",
    }
}

constants! { LIMITS:
    /// Set in [`AddToPhysmap::idx`] for a page of a version 2 grant table's state.
    pub const IDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000 => "XENMAPIDX_grant_table_status";
    /// [`AcquireResource::id`] for the entries of a grant table.
    pub const GRANT_TABLE_SHARED: u32 = 0 => "XENMEM_resource_grant_table_id_shared";
    /// [`AcquireResource::id`] for the state of a version 2 grant table.
    pub const GRANT_TABLE_STATUS: u32 = 1 => "XENMEM_resource_grant_table_id_status";
}

flags! {
    /// Where frames shall come from. The lowest byte is the greatest width of an address in bits,
    /// the next one more than the NUMA node; zero is no restriction.
    pub struct MemFlags: u32 {
        /// Only make room; a frame comes when it is touched.
        const POPULATE_ON_DEMAND = 1 << 16 => "XENMEMF_populate_on_demand";
        /// From that node or not at all.
        const EXACT_NODE_REQUEST = 1 << 17 => "XENMEMF_exact_node_request";
        /// The node is a virtual one.
        const VNODE = 1 << 18 => "XENMEMF_vnode";
    }
}

layout! {
    /// Some extents of 2^order frames.
    pub struct Reservation = "struct xen_memory_reservation", 32 {
        /// Room for their frame numbers.
        0 extent_start: GuestHandle,
        /// How many.
        8 nr_extents: u64,
        /// The size of each.
        16 extent_order: u32,
        /// Where they shall come from.
        20 mem_flags: MemFlags,
        /// Whose.
        24 domid: DomId,
        /// Zero.
        26 _pad: [u16; 3] = ours,
    }

    /// Frames for frames.
    pub struct Exchange = "struct xen_memory_exchange", 72 {
        /// Given.
        0 given: Reservation = "in",
        /// Taken.
        32 taken: Reservation = "out",
        /// Out: how many extents of `given` were exchanged.
        64 nr_exchanged: u64,
    }

    /// A domain.
    pub struct MemoryDomain = "struct xen_memory_domain", 2 {
        /// Which.
        0 domid: DomId,
    }

    /// The frames of the table from machine to pseudo-physical frames.
    pub struct MachphysMfnList = "struct xen_machphys_mfn_list", 24 {
        /// In: room in the list.
        0 max_extents: u32,
        /// Zero.
        4 _pad: u32 = ours,
        /// In: the list.
        8 extent_start: GuestHandle,
        /// Out: how many.
        16 nr_extents: u32,
        /// Zero.
        20 _pad2: u32 = ours,
    }

    /// The addresses of that table.
    pub struct MachphysMapping = "struct xen_machphys_mapping", 24 {
        /// Out: the first.
        0 v_start: u64,
        /// Out: one past the last.
        8 v_end: u64,
        /// Out: the highest frame in it.
        16 max_mfn: u64,
    }

    /// Put a page at a guest frame number.
    pub struct AddToPhysmap = "struct xen_add_to_physmap", 24 {
        /// Whose.
        0 domid: DomId,
        /// How many, for a range.
        2 size: u16,
        /// The page's kind, a [`Space`].
        4 space: u32,
        /// The page, numbered within its kind.
        8 idx: u64,
        /// The guest frame number.
        16 gpfn: u64,
    }

    /// Put pages at guest frame numbers.
    pub struct AddToPhysmapBatch = "struct xen_add_to_physmap_batch", 32 {
        /// Whose.
        0 domid: DomId,
        /// The pages' kind, a [`Space`].
        2 space: u16,
        /// How many.
        4 size: u16,
        /// Whose the pages are, for pages of another domain.
        6 foreign_domid: DomId = "u.foreign_domid",
        /// The pages, numbered within their kind: an array of `u64`.
        8 idxs: GuestHandle,
        /// The guest frame numbers: an array of `u64`.
        16 gpfns: GuestHandle,
        /// Out: zero or a negative error for each: an array of `i32`.
        24 errs: GuestHandle,
    }

    /// Take the page from a guest frame number.
    pub struct RemoveFromPhysmap = "struct xen_remove_from_physmap", 16 {
        /// Whose.
        0 domid: DomId,
        /// Zero.
        2 _pad: [u16; 3] = ours,
        /// The guest frame number.
        8 gpfn: u64,
    }

    /// A memory map, as the BIOS call E820 gives it.
    pub struct MemoryMap = "struct xen_memory_map", 16 {
        /// In: room; out: entries.
        0 nr_entries: u32,
        /// Zero.
        4 _pad: u32 = ours,
        /// The entries.
        8 buffer: GuestHandle,
    }

    /// The same for another domain.
    pub struct ForeignMemoryMap = "struct xen_foreign_memory_map", 24 {
        /// Whose.
        0 domid: DomId,
        /// Zero.
        2 _pad: [u16; 3] = ours,
        /// The map.
        8 map: MemoryMap,
    }

    /// Memory populated on demand.
    pub struct PodTarget = "struct xen_pod_target", 40 {
        /// In: pages the domain shall have.
        0 target_pages: u64,
        /// Out: pages it has.
        8 tot_pages: u64,
        /// Out: of these, in reserve.
        16 pod_cache_pages: u64,
        /// Out: places not populated yet.
        24 pod_entries: u64,
        /// In: whose.
        32 domid: DomId,
        /// Zero.
        34 _pad: [u16; 3] = ours,
    }

    /// Pages of Xen's that belong to a domain.
    pub struct AcquireResource = "struct xen_mem_acquire_resource", 32 {
        /// In: whose.
        0 domid: DomId,
        /// In: a [`Resource`].
        2 resource: u16 = "type",
        /// In: which of that kind.
        4 id: u32,
        /// In: how many pages; zero asks how many there are.
        8 nr_frames: u32,
        /// Zero.
        12 _pad: u32 = "pad",
        /// In: the first page.
        16 frame: u64,
        /// In: room for frame numbers, or guest frame numbers to put the pages at.
        24 frame_list: GuestHandle,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/memory.h",
    target: Target::X86_64,
    claims: &[
        Operation::CLAIMS,
        Space::CLAIMS,
        Resource::CLAIMS,
        LIMITS,
        MemFlags::CLAIMS,
        Reservation::CLAIMS,
        Exchange::CLAIMS,
        MemoryDomain::CLAIMS,
        MachphysMfnList::CLAIMS,
        MachphysMapping::CLAIMS,
        AddToPhysmap::CLAIMS,
        AddToPhysmapBatch::CLAIMS,
        RemoveFromPhysmap::CLAIMS,
        MemoryMap::CLAIMS,
        ForeignMemoryMap::CLAIMS,
        PodTarget::CLAIMS,
        AcquireResource::CLAIMS,
    ],
};
