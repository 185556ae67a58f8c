//! How a toolstack asks for the state of domains (`sysctl.h`).

use crate::DomId;
use crate::abi::{Claim, Header, Target, constants, layout};
use crate::hypercall::GuestHandle;

/// The versions of this interface in which all that is here is the same: those of Xen 4.16, of 4.17
/// to 4.20, and of 4.21. Xen refuses with `EACCES` a version that is not its own.
pub const INTERFACE_VERSIONS: [u32; 3] = [0x14, 0x15, 0x16];

/// The headers' version is one of them.
const VERSION: &[&[Claim]] = &[&[Claim {
    c: "XEN_SYSCTL_INTERFACE_VERSION >= 0x14 && XEN_SYSCTL_INTERFACE_VERSION <= 0x16",
    value: 1,
    newer: None,
}]];

constants! { COMMANDS:
    /// [`GetDomainInfoList`].
    pub const GETDOMAININFOLIST: u32 = 6 => "XEN_SYSCTL_getdomaininfolist";
}

layout! {
    /// Describe the domains from one on.
    pub struct GetDomainInfoList = "struct xen_sysctl_getdomaininfolist", 24 {
        /// The first that may be described.
        0 first_domain: DomId,
        /// Zero.
        2 _pad: u16 = ours,
        /// How many there is room for.
        4 max_domains: u32,
        /// The address of that many [`DomainInfo`](crate::domctl::DomainInfo)s.
        8 buffer: GuestHandle,
        /// Out: how many were described.
        16 num_domains: u32,
        /// Zero.
        20 _pad2: u32 = ours,
    }

    /// The argument of [`Hypercall::Sysctl`](crate::hypercall::Hypercall::Sysctl).
    pub struct Sysctl = "struct xen_sysctl", 136 {
        /// What to do: [`GETDOMAININFOLIST`].
        0 cmd: u32,
        /// One of [`INTERFACE_VERSIONS`].
        4 interface_version: u32,
        /// Its argument.
        8 getdomaininfolist: GetDomainInfoList = "u.getdomaininfolist",
        /// Zero: others' arguments are longer.
        32 _rest: [u8; 104] = ours,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sysctl.h",
    target: Target::X86_64,
    claims: &[VERSION, COMMANDS, GetDomainInfoList::CLAIMS, Sysctl::CLAIMS],
};
