//! vCPUs: starting and stopping them, their timers, and what Xen tells of them (`vcpu.h`).

use crate::abi::{Header, Target, constants, enumeration, flags, layout};

enumeration! {
    /// The operations of the vCPU hypercall, which also takes the number of the vCPU.
    pub enum Operation: u32 {
        /// Set the registers it will start with; their layout is not described here.
        Initialise = 0 => "VCPUOP_initialise",
        /// Let it run.
        Up = 1 => "VCPUOP_up",
        /// Stop it.
        Down = 2 => "VCPUOP_down",
        /// Ask whether it runs.
        IsUp = 3 => "VCPUOP_is_up",
        /// [`RunstateInfo`].
        GetRunstateInfo = 4 => "VCPUOP_get_runstate_info",
        /// [`RegisterMemoryArea`] for a [`RunstateInfo`], by virtual address.
        RegisterRunstateMemoryArea = 5 => "VCPUOP_register_runstate_memory_area",
        /// [`SetPeriodicTimer`].
        SetPeriodicTimer = 6 => "VCPUOP_set_periodic_timer",
        /// Stop that timer.
        StopPeriodicTimer = 7 => "VCPUOP_stop_periodic_timer",
        /// [`SetSingleshotTimer`].
        SetSingleshotTimer = 8 => "VCPUOP_set_singleshot_timer",
        /// Stop that timer.
        StopSingleshotTimer = 9 => "VCPUOP_stop_singleshot_timer",
        /// [`RegisterVcpuInfo`].
        RegisterVcpuInfo = 10 => "VCPUOP_register_vcpu_info",
        /// Send it a non-maskable interrupt.
        SendNmi = 11 => "VCPUOP_send_nmi",
        /// [`GetPhysid`].
        GetPhysid = 12 => "VCPUOP_get_physid",
        /// [`RegisterMemoryArea`] for a [`VcpuTimeInfo`](crate::shared_info::VcpuTimeInfo), by
        /// virtual address.
        RegisterVcpuTimeMemoryArea = 13 => "VCPUOP_register_vcpu_time_memory_area",
        /// [`RegisterMemoryArea`] for a [`RunstateInfo`], by guest-physical address.
        RegisterRunstatePhysArea = 14 => "VCPUOP_register_runstate_phys_area" newer,
        /// [`RegisterMemoryArea`] for a [`VcpuTimeInfo`](crate::shared_info::VcpuTimeInfo), by
        /// guest-physical address.
        RegisterVcpuTimePhysArea = 15 => "VCPUOP_register_vcpu_time_phys_area" newer,
    }

    /// What a vCPU is doing.
    pub enum Runstate: u32 {
        /// It runs.
        Running = 0 => "RUNSTATE_running",
        /// It could run, but waits for a processor.
        Runnable = 1 => "RUNSTATE_runnable",
        /// It sleeps.
        Blocked = 2 => "RUNSTATE_blocked",
        /// It is stopped.
        Offline = 3 => "RUNSTATE_offline",
    }
}

constants! { LIMITS:
    /// Set in [`RunstateInfo::state_entry_time`] while Xen writes the structure.
    pub const RUNSTATE_UPDATE: u64 = 1 << 63 => "XEN_RUNSTATE_UPDATE";
}

flags! {
    /// How to set a timer.
    pub struct SingleshotFlags: u32 {
        /// Fail if the time has passed.
        const FUTURE = 1 << 0 => "VCPU_SSHOTTMR_future";
    }
}

layout! {
    /// What a vCPU has been doing.
    pub struct RunstateInfo = "struct vcpu_runstate_info", 48 {
        /// A [`Runstate`].
        0 state: u32,
        /// Zero.
        4 _pad: u32 = ours,
        /// Since when, in nanoseconds of system time.
        8 state_entry_time: u64,
        /// Nanoseconds spent in each.
        16 time: [u64; 4],
    }

    /// Where Xen shall keep a copy of something for the guest.
    pub struct RegisterMemoryArea = "struct vcpu_register_runstate_memory_area", 8 {
        /// The address, virtual or guest-physical by the operation.
        0 addr: u64 = "addr.p",
    }

    /// Interrupt it again and again.
    pub struct SetPeriodicTimer = "struct vcpu_set_periodic_timer", 8 {
        /// Nanoseconds between two interrupts.
        0 period_ns: u64,
    }

    /// Interrupt it once.
    pub struct SetSingleshotTimer = "struct vcpu_set_singleshot_timer", 16 {
        /// When, in nanoseconds of system time.
        0 timeout_abs_ns: u64,
        /// How.
        8 flags: SingleshotFlags,
        /// Zero.
        12 _pad: u32 = ours,
    }

    /// Where its [`VcpuInfo`](crate::shared_info::VcpuInfo) shall be.
    pub struct RegisterVcpuInfo = "struct vcpu_register_vcpu_info", 16 {
        /// The frame.
        0 mfn: u64,
        /// Where in it.
        8 offset: u32,
        /// Zero.
        12 _pad: u32 = "rsvd",
    }

    /// Ask for the processor it is tied to.
    pub struct GetPhysid = "struct vcpu_get_physid", 8 {
        /// Out: the APIC's number in the lower half, ACPI's in the upper.
        0 phys_id: u64,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/vcpu.h",
    target: Target::X86_64,
    claims: &[
        Operation::CLAIMS,
        Runstate::CLAIMS,
        LIMITS,
        SingleshotFlags::CLAIMS,
        RunstateInfo::CLAIMS,
        RegisterMemoryArea::CLAIMS,
        SetPeriodicTimer::CLAIMS,
        SetSingleshotTimer::CLAIMS,
        RegisterVcpuInfo::CLAIMS,
        GetPhysid::CLAIMS,
    ],
};
