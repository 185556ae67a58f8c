//! `/dev/xen/evtchn`: event channels of one's own.
//!
//! Reading yields the ports that became pending, as an array of [`Port`]; each is then masked until
//! its number is written back. The device can be polled. The first four ioctls return a port.

use super::ioctl;
use crate::abi::{Header, Target, constants, layout};
use crate::{DomId, Port};

constants! { IOCTLS:
    /// [`BindVirq`].
    pub const BIND_VIRQ: u32 = ioctl(b'E', 0, size_of::<BindVirq>()) => "IOCTL_EVTCHN_BIND_VIRQ";
    /// [`BindInterdomain`].
    pub const BIND_INTERDOMAIN: u32 = ioctl(b'E', 1, size_of::<BindInterdomain>())
        => "IOCTL_EVTCHN_BIND_INTERDOMAIN";
    /// [`BindUnboundPort`].
    pub const BIND_UNBOUND_PORT: u32 = ioctl(b'E', 2, size_of::<BindUnboundPort>())
        => "IOCTL_EVTCHN_BIND_UNBOUND_PORT";
    /// [`Unbind`].
    pub const UNBIND: u32 = ioctl(b'E', 3, size_of::<Unbind>()) => "IOCTL_EVTCHN_UNBIND";
    /// [`Notify`].
    pub const NOTIFY: u32 = ioctl(b'E', 4, size_of::<Notify>()) => "IOCTL_EVTCHN_NOTIFY";
    /// Forget the ports that wait to be read.
    pub const RESET: u32 = ioctl(b'E', 5, 0) => "IOCTL_EVTCHN_RESET";
    /// [`RestrictDomid`].
    pub const RESTRICT_DOMID: u32 = ioctl(b'E', 6, size_of::<RestrictDomid>())
        => "IOCTL_EVTCHN_RESTRICT_DOMID";
}

layout! {
    /// Bind to a virtual interrupt.
    pub struct BindVirq = "struct ioctl_evtchn_bind_virq", 4 {
        /// A [`Virq`](crate::event_channel::Virq).
        0 virq: u32,
    }

    /// Bind to a port that another domain made for this one.
    pub struct BindInterdomain = "struct ioctl_evtchn_bind_interdomain", 8 {
        /// The other domain.
        0 remote_domain: u32,
        /// Its port.
        4 remote_port: Port,
    }

    /// Make a port that another domain may bind to.
    pub struct BindUnboundPort = "struct ioctl_evtchn_bind_unbound_port", 4 {
        /// The other domain.
        0 remote_domain: u32,
    }

    /// Close a port.
    pub struct Unbind = "struct ioctl_evtchn_unbind", 4 {
        /// Which.
        0 port: Port,
    }

    /// Make the other end pending.
    pub struct Notify = "struct ioctl_evtchn_notify", 4 {
        /// The port at this end.
        0 port: Port,
    }

    /// From now on bind to one domain only.
    pub struct RestrictDomid = "struct ioctl_evtchn_restrict_domid", 2 {
        /// Which.
        0 domid: DomId,
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sys/evtchn.h",
    target: Target::X86_64,
    claims: &[
        IOCTLS,
        BindVirq::CLAIMS,
        BindInterdomain::CLAIMS,
        BindUnboundPort::CLAIMS,
        Unbind::CLAIMS,
        Notify::CLAIMS,
        RestrictDomid::CLAIMS,
    ],
};
