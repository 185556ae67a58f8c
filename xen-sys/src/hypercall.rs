//! The numbers of the hypercalls (`xen.h`), for who makes them bare or through privcmd.

use crate::abi::{Header, Target, enumeration};

/// An address in the memory of who makes a hypercall, `XEN_GUEST_HANDLE`.
pub type GuestHandle = u64;

enumeration! {
    /// A hypercall.
    pub enum Hypercall: u32 {
        /// Set the trap table.
        SetTrapTable = 0 => "__HYPERVISOR_set_trap_table",
        /// Change page tables.
        MmuUpdate = 1 => "__HYPERVISOR_mmu_update",
        /// Set the segment descriptor table.
        SetGdt = 2 => "__HYPERVISOR_set_gdt",
        /// Set the kernel's stack.
        StackSwitch = 3 => "__HYPERVISOR_stack_switch",
        /// Set the entry points for events.
        SetCallbacks = 4 => "__HYPERVISOR_set_callbacks",
        /// Trap on the next use of the floating-point unit.
        FpuTaskswitch = 5 => "__HYPERVISOR_fpu_taskswitch",
        /// The old scheduling call.
        SchedOpCompat = 6 => "__HYPERVISOR_sched_op_compat",
        /// Manage the machine.
        PlatformOp = 7 => "__HYPERVISOR_platform_op",
        /// Set a debug register.
        SetDebugreg = 8 => "__HYPERVISOR_set_debugreg",
        /// Read a debug register.
        GetDebugreg = 9 => "__HYPERVISOR_get_debugreg",
        /// Change a segment descriptor.
        UpdateDescriptor = 10 => "__HYPERVISOR_update_descriptor",
        /// Memory: see [`memory`](crate::memory).
        MemoryOp = 12 => "__HYPERVISOR_memory_op",
        /// Many calls in one.
        Multicall = 13 => "__HYPERVISOR_multicall",
        /// Change the page-table entry of an address.
        UpdateVaMapping = 14 => "__HYPERVISOR_update_va_mapping",
        /// Set the vCPU's timer.
        SetTimerOp = 15 => "__HYPERVISOR_set_timer_op",
        /// The old event channel call.
        EventChannelOpCompat = 16 => "__HYPERVISOR_event_channel_op_compat",
        /// Ask for Xen's version and features.
        XenVersion = 17 => "__HYPERVISOR_xen_version",
        /// The emergency console.
        ConsoleIo = 18 => "__HYPERVISOR_console_io",
        /// The old call for physical devices.
        PhysdevOpCompat = 19 => "__HYPERVISOR_physdev_op_compat",
        /// Grants: see [`grant_table`](crate::grant_table).
        GrantTableOp = 20 => "__HYPERVISOR_grant_table_op",
        /// Turn an assistance on or off.
        VmAssist = 21 => "__HYPERVISOR_vm_assist",
        /// Change another domain's page-table entry.
        UpdateVaMappingOtherdomain = 22 => "__HYPERVISOR_update_va_mapping_otherdomain",
        /// Return from an event.
        Iret = 23 => "__HYPERVISOR_iret",
        /// vCPUs: see [`vcpu`](crate::vcpu).
        VcpuOp = 24 => "__HYPERVISOR_vcpu_op",
        /// Set a segment's base.
        SetSegmentBase = 25 => "__HYPERVISOR_set_segment_base",
        /// Pin page tables, flush, and the like.
        MmuextOp = 26 => "__HYPERVISOR_mmuext_op",
        /// The security module.
        XsmOp = 27 => "__HYPERVISOR_xsm_op",
        /// Non-maskable interrupts.
        NmiOp = 28 => "__HYPERVISOR_nmi_op",
        /// Scheduling: see [`sched`](crate::sched).
        SchedOp = 29 => "__HYPERVISOR_sched_op",
        /// Register entry points.
        CallbackOp = 30 => "__HYPERVISOR_callback_op",
        /// Profiling.
        XenoprofOp = 31 => "__HYPERVISOR_xenoprof_op",
        /// Events: see [`event_channel`](crate::event_channel).
        EventChannelOp = 32 => "__HYPERVISOR_event_channel_op",
        /// Physical devices.
        PhysdevOp = 33 => "__HYPERVISOR_physdev_op",
        /// What only HVM guests need.
        HvmOp = 34 => "__HYPERVISOR_hvm_op",
        /// Manage the system.
        Sysctl = 35 => "__HYPERVISOR_sysctl",
        /// Manage domains.
        Domctl = 36 => "__HYPERVISOR_domctl",
        /// Boot into another kernel.
        KexecOp = 37 => "__HYPERVISOR_kexec_op",
        /// Transcendent memory, no longer there.
        TmemOp = 38 => "__HYPERVISOR_tmem_op",
        /// Messages between domains, by Argo.
        ArgoOp = 39 => "__HYPERVISOR_argo_op",
        /// Performance counters.
        XenpmuOp = 40 => "__HYPERVISOR_xenpmu_op",
        /// Device models.
        DmOp = 41 => "__HYPERVISOR_dm_op",
        /// Xen's own file system of settings.
        HypfsOp = 42 => "__HYPERVISOR_hypfs_op",
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/xen.h",
    target: Target::X86_64,
    claims: &[Hypercall::CLAIMS],
};
