//! The page that Xen shares with a domain, and what is in it for each vCPU (`xen.h`,
//! `arch-x86/xen.h`).
//!
//! ```text
//!  SharedInfo                        a port's way to a vCPU (2-level ABI)
//!     0  vcpu_info[32]  64 bytes each
//!  2048  evtchn_pending[64]          1. pending bit `port`
//!  2560  evtchn_mask[64]             2. if its mask bit is clear:
//!  3072  wall clock                  3.   bit `port / 64` of the vCPU's evtchn_pending_sel
//!  3088  arch                        4.   its evtchn_upcall_pending, and the vCPU is woken
//! ```

use crate::abi::{Header, Target, constants, flags, layout};

constants! { LIMITS:
    /// vCPUs that have their [`VcpuInfo`] in the shared page; others register a place of their own.
    pub const LEGACY_MAX_VCPUS: usize = 32 => "XEN_LEGACY_MAX_VCPUS";
}

flags! {
    /// What may be assumed of a vCPU's clock.
    pub struct TimeFlags: u8 {
        /// Time read on one vCPU never runs backwards against time read on another.
        const TSC_STABLE = 1 << 0 => "XEN_PVCLOCK_TSC_STABLE_BIT";
        /// The guest was stopped: its watchdogs should take no offence.
        const GUEST_STOPPED = 1 << 1 => "XEN_PVCLOCK_GUEST_STOPPED";
    }
}

layout! {
    /// How to make system time from the time stamp counter.
    pub struct VcpuTimeInfo = "struct vcpu_time_info", 32 {
        /// Odd while Xen writes; read all again if it changed.
        0 version: u32,
        /// Zero.
        4 _pad: u32 = "pad0",
        /// The counter when `system_time` was taken.
        8 tsc_timestamp: u64,
        /// Nanoseconds since boot.
        16 system_time: u64,
        /// Nanoseconds a tick, in units of 2^-32, after the shift.
        24 tsc_to_system_mul: u32,
        /// By how much to shift the ticks to the left, or to the right if negative.
        28 tsc_shift: i8,
        /// What may be assumed.
        29 flags: TimeFlags,
        /// Zero.
        30 _pad1: [u8; 2] = "pad1",
    }

    /// The part of [`VcpuInfo`] that is x86_64's.
    pub struct ArchVcpuInfo = "struct arch_vcpu_info", 16 {
        /// The address of the last page fault.
        0 cr2: u64,
        /// Zero.
        8 _pad: u64 = "pad",
    }

    /// What Xen shares with one vCPU.
    pub struct VcpuInfo = "struct vcpu_info", 64 {
        /// Not zero: an upcall is due. Set by Xen, cleared by the guest.
        0 evtchn_upcall_pending: u8,
        /// Not zero: upcalls are held back, as interrupts would be. Written by the guest.
        1 evtchn_upcall_mask: u8,
        /// Zero.
        2 _pad: [u8; 6] = ours,
        /// One bit a word of [`SharedInfo::evtchn_pending`] that has something for this vCPU.
        8 evtchn_pending_sel: u64,
        /// The architecture's own.
        16 arch: ArchVcpuInfo,
        /// The clock.
        32 time: VcpuTimeInfo,
    }

    /// The part of [`SharedInfo`] that is x86_64's.
    pub struct ArchSharedInfo = "struct arch_shared_info", 48 {
        /// Entries in the table from pseudo-physical to machine frames.
        0 max_pfn: u64,
        /// The frame of the list of frames of lists of frames of that table.
        8 pfn_to_mfn_frame_list_list: u64,
        /// Why a non-maskable interrupt came.
        16 nmi_reason: u64,
        /// The address space of `p2m_vaddr`, as in the register CR3; zero if there is none.
        24 p2m_cr3: u64,
        /// The address of that table as a plain array.
        32 p2m_vaddr: u64,
        /// Counts changes to it; odd while one is under way.
        40 p2m_generation: u64,
    }

    /// What Xen shares with a domain.
    pub struct SharedInfo = "struct shared_info", 3136 {
        /// One for each of the first vCPUs.
        0 vcpu_info: [VcpuInfo; LEGACY_MAX_VCPUS],
        /// One bit a port: the event happened. Set by Xen, cleared by the guest.
        2048 evtchn_pending: [u64; 64],
        /// One bit a port: do not interrupt. Written by the guest.
        2560 evtchn_mask: [u64; 64],
        /// Odd while Xen writes the three that follow.
        3072 wc_version: u32,
        /// The wall clock when system time was zero: seconds since 1970, lower half.
        3076 wc_sec: u32,
        /// And nanoseconds.
        3080 wc_nsec: u32,
        /// The seconds' upper half.
        3084 wc_sec_hi: u32,
        /// The architecture's own.
        3088 arch: ArchSharedInfo,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/xen.h",
    target: Target::X86_64,
    claims: &[
        LIMITS,
        TimeFlags::CLAIMS,
        VcpuTimeInfo::CLAIMS,
        ArchVcpuInfo::CLAIMS,
        VcpuInfo::CLAIMS,
        ArchSharedInfo::CLAIMS,
        SharedInfo::CLAIMS,
    ],
};
