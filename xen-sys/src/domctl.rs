//! What Xen tells of a domain (`domctl.h`).
//!
//! The interface of toolstacks changes from version to version; this structure has been the same
//! since Xen 4.16, on x86.

use crate::DomId;
use crate::abi::{Header, Target, flags, layout};

flags! {
    /// What a domain does. The bits from 16 to 23 are the reason, a
    /// [`ShutdownReason`](crate::sched::ShutdownReason), of one that has shut down.
    pub struct DomainFlags: u32 {
        /// It is being destroyed.
        const DYING = 1 << 0 => "XEN_DOMINF_dying";
        /// It is HVM or PVH, and not PV.
        const HVM_GUEST = 1 << 1 => "XEN_DOMINF_hvm_guest";
        /// It has shut down or crashed.
        const SHUTDOWN = 1 << 2 => "XEN_DOMINF_shutdown";
        /// Its toolstack has paused it.
        const PAUSED = 1 << 3 => "XEN_DOMINF_paused";
        /// All its vCPUs wait.
        const BLOCKED = 1 << 4 => "XEN_DOMINF_blocked";
        /// A vCPU of it runs.
        const RUNNING = 1 << 5 => "XEN_DOMINF_running";
        /// It is being debugged.
        const DEBUGGED = 1 << 6 => "XEN_DOMINF_debugged";
        /// It is where xenstored runs.
        const XENSTORE = 1 << 7 => "XEN_DOMINF_xs_domain";
    }
}

layout! {
    /// A domain.
    pub struct DomainInfo = "struct xen_domctl_getdomaininfo", 112 {
        /// Which.
        0 domain: DomId,
        /// Zero.
        2 _pad: u16 = "pad1",
        /// What it does.
        4 flags: DomainFlags,
        /// Pages that it has.
        8 tot_pages: u64,
        /// Pages that it may have.
        16 max_pages: u64,
        /// Pages that are promised to it.
        24 outstanding_pages: u64,
        /// Pages that it shares.
        32 shr_pages: u64,
        /// Pages that are paged out.
        40 paged_pages: u64,
        /// The frame of its shared info.
        48 shared_info_frame: u64,
        /// The time that it ran, in nanoseconds.
        56 cpu_time: u64,
        /// vCPUs that are online.
        64 nr_online_vcpus: u32,
        /// Its last vCPU.
        68 max_vcpu_id: u32,
        /// Its security label.
        72 ssidref: u32,
        /// Its UUID.
        76 handle: [u8; 16],
        /// Its pool of processors.
        92 cpupool: u32,
        /// The size of its physical addresses.
        96 gpaddr_bits: u8,
        /// Zero.
        97 _pad2: [u8; 7] = "pad2",
        /// What was chosen for it that only x86 has.
        104 arch_config: [u32; 2],
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/domctl.h",
    target: Target::X86_64,
    claims: &[DomainFlags::CLAIMS, DomainInfo::CLAIMS],
};
