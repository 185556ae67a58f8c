//! The domains of a real Xen host, or none.

use parapet_hypervisor::seam::{Events, Mapping};
use parapet_hypervisor::xen::{self, Channel, KernelXenstore, Ports, Xen};
use parapet_ring::Peer;
use parapet_xen_sys::domctl::DomainFlags;
use parapet_xen_sys::{DomId, Errno, Port};
use parapet_xenstore::server::Life;
use parapet_xenstore::server::daemon::{Domains, connect_by_grant, page_by_grant};
use parapet_xenstore::transport::{RingTransport, Transport};

/// Those of a Xen host.
pub(crate) struct XenDomains {
    pub(crate) xen: Xen,
    pub(crate) domains: xen::Domains,
    /// On one descriptor, to be left to a program that takes our place.
    pub(crate) ports: Ports,
}

fn refused(error: &dyn std::fmt::Display) -> Errno {
    log::warn!("the kernel cannot be connected: {error}");
    Errno::EINVAL
}

/// Domain 0's kernel has not granted its page, but hands it to us.
fn kernels_page() -> Result<Peer<KernelXenstore>, Errno> {
    let kernel = KernelXenstore::open().map_err(|error| refused(&error))?;
    Peer::new(kernel).map_err(|_| refused(&"its page is read-only"))
}

impl XenDomains {
    fn connect_kernel(&self, port: Port) -> Result<Box<dyn Transport>, Errno> {
        let page = kernels_page()?;
        let channel = self.ports.bind(DomId::ZERO, port);
        let channel = channel.map_err(|error| refused(&error))?;
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
            _ => connect_by_grant(&self.xen, &self.ports, domid, port),
        };
        log::debug!(
            "domain {domid} is introduced: {:?}",
            connected.as_ref().err()
        );
        connected
    }

    fn take_over(&mut self, domid: DomId, port: Port) -> Result<Box<dyn Transport>, Errno> {
        // The page first: a port that nobody serves is still to be there for the next program.
        match domid {
            DomId::ZERO => served(kernels_page()?, self.ports.adopt(port)),
            _ => served(page_by_grant(&self.xen, domid)?, self.ports.adopt(port)),
        }
    }
}

fn served<M: Mapping + Unpin + 'static>(
    page: Peer<M>,
    channel: Channel,
) -> Result<Box<dyn Transport>, Errno> {
    let transport = RingTransport::taken_over(page, channel).map_err(|error| refused(&error))?;
    Ok(Box::new(transport))
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
