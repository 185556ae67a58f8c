//! The domains of a real Xen host, or none.

use parapet_hypervisor::seam::Events;
use parapet_hypervisor::xen::{self, KernelXenstore, Xen};
use parapet_ring::Peer;
use parapet_xen_sys::domctl::DomainFlags;
use parapet_xen_sys::{DomId, Errno, Port};
use parapet_xenstore::server::Life;
use parapet_xenstore::server::daemon::{Domains, connect_by_grant};
use parapet_xenstore::transport::{RingTransport, Transport};

/// Those of a Xen host.
pub(crate) struct XenDomains {
    pub(crate) xen: Xen,
    pub(crate) domains: xen::Domains,
}

impl XenDomains {
    /// Domain 0's kernel has not granted its page, but hands it to us.
    fn connect_kernel(&self, port: Port) -> Result<Box<dyn Transport>, Errno> {
        let refused = |error: &dyn std::fmt::Display| {
            log::warn!("the kernel cannot be connected: {error}");
            Errno::EINVAL
        };
        let kernel = KernelXenstore::open().map_err(|error| refused(&error))?;
        let channel = self.xen.bind(DomId::ZERO, port);
        let channel = channel.map_err(|error| refused(&error))?;
        let page = Peer::new(kernel).map_err(|_| refused(&"its page is read-only"))?;
        let transport = RingTransport::host(page, channel).map_err(|error| refused(&error))?;
        Ok(Box::new(transport))
    }
}

impl Domains for XenDomains {
    fn life(&self, domid: DomId) -> Life {
        match self.domains.flags(domid) {
            Ok(None) => Life::Gone,
            Ok(Some(flags)) if flags.contains(DomainFlags::DYING) => Life::Gone,
            Ok(Some(flags)) if flags.contains(DomainFlags::SHUTDOWN) => Life::ShutDown,
            Ok(Some(_)) => Life::Running,
            Err(error) => {
                // Better a domain too many than one that lives and loses its nodes.
                log::error!("Xen does not say how domain {domid} fares: {error}");
                Life::Running
            }
        }
    }

    fn connect(&mut self, domid: DomId, port: Port) -> Result<Box<dyn Transport>, Errno> {
        let connected = match domid {
            DomId::ZERO => self.connect_kernel(port),
            _ => connect_by_grant(&self.xen, domid, port),
        };
        log::debug!(
            "domain {domid} is introduced: {:?}",
            connected.as_ref().err()
        );
        connected
    }
}

/// None that is served. Any may be named in permissions, so that clients can be tried.
pub(crate) struct NoDomains;

impl Domains for NoDomains {
    fn life(&self, _: DomId) -> Life {
        Life::Running
    }

    fn connect(&mut self, _: DomId, _: Port) -> Result<Box<dyn Transport>, Errno> {
        Err(Errno::EINVAL)
    }
}
