//! Event channels: what each port of a domain is bound to.
//!
//! A port's binding is guarded by its own lock. A binding between two ports is changed only with
//! both locks held, and an event is sent with the sender's held: so a port that was closed, or
//! bound to somebody else, receives nothing of its old peer's, and an event sent while the binding
//! stood is in the receiver's pending bits before the lock is let go.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use atomic_waker::AtomicWaker;
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;

use super::domain::DomainInner;
use crate::guest::event_bits::PORTS;
use crate::seam::EventError;
use crate::wait::lock;

const PORTS_PER_CHUNK: usize = 64;

/// What a port is bound to.
#[derive(Clone)]
pub(super) enum Binding {
    Free,
    /// Waits for a domain to bind.
    Unbound(DomId),
    /// Bound to a port of another domain, or of this one.
    Interdomain(Arc<DomainInner>, Port),
    /// A virtual interrupt of the hypervisor.
    Virq(u32),
    /// Notifies a vCPU of this domain.
    Ipi(usize),
    /// A host descriptor, by its registration.
    Descriptor(u64),
}

/// What [`super::Domain::port_status`] tells of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortStatus {
    /// Not allocated.
    Closed,
    /// Waits for that domain to bind.
    Unbound(DomId),
    /// Bound to that domain's port.
    Interdomain(DomId, Port),
    /// Bound to a virtual interrupt.
    Virq(u32),
    /// Notifies that vCPU of the same domain.
    Ipi(usize),
    /// Bound to a descriptor of the host.
    Descriptor,
}

pub(super) struct PortEntry {
    binding: Mutex<Binding>,
    /// Who waits for the next event.
    pub(super) waiter: AtomicWaker,
    /// The vCPU that is told of events.
    pub(super) vcpu: AtomicUsize,
}

type Chunk = Box<[PortEntry; PORTS_PER_CHUNK]>;

/// The ports of one domain.
pub(super) struct Ports {
    limit: u32,
    chunks: Box<[OnceLock<Chunk>]>,
    used: Mutex<Vec<u64>>,
}

impl Ports {
    pub(super) fn new(limit: u32) -> Self {
        let limit = limit.min(PORTS);
        let chunks = limit.div_ceil(PORTS_PER_CHUNK as u32);
        // Port 0 is nobody's, on Xen as here.
        let mut used = vec![0; chunks as usize];
        if let Some(first) = used.first_mut() {
            *first = 1;
        }
        Ports {
            limit,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            used: Mutex::new(used),
        }
    }

    pub(super) fn entry(&self, port: Port) -> Option<&PortEntry> {
        let index = port.0 as usize;
        self.chunks
            .get(index / PORTS_PER_CHUNK)?
            .get()?
            .get(index % PORTS_PER_CHUNK)
    }

    /// Takes the lowest free port and gives it its binding.
    pub(super) fn allocate(&self, vcpu: usize, binding: Binding) -> Result<Port, EventError> {
        let mut used = lock(&self.used);
        let (index, word) = used
            .iter_mut()
            .enumerate()
            .find(|(_, word)| **word != u64::MAX)
            .ok_or(EventError::NoSpace)?;
        let bit = word.trailing_ones();
        let port = Port(index as u32 * PORTS_PER_CHUNK as u32 + bit);
        if port.0 >= self.limit {
            return Err(EventError::NoSpace);
        }
        *word |= 1 << bit;
        drop(used);
        self.chunks[index].get_or_init(|| {
            Box::new(std::array::from_fn(|_| PortEntry {
                binding: Mutex::new(Binding::Free),
                waiter: AtomicWaker::new(),
                vcpu: AtomicUsize::new(0),
            }))
        });
        if let Some(entry) = self.entry(port) {
            entry.vcpu.store(vcpu, Ordering::Relaxed);
            *lock(&entry.binding) = binding;
        }
        Ok(port)
    }

    /// Gives a number back: for the one who holds the port's channel, and no sooner than that is
    /// dropped, so that no channel ever names a port that is somebody else's.
    fn free(&self, port: Port) {
        if let Some(entry) = self.entry(port) {
            drop(entry.waiter.take());
        }
        let index = port.0 as usize;
        if let Some(word) = lock(&self.used).get_mut(index / PORTS_PER_CHUNK) {
            *word &= !(1 << (index % PORTS_PER_CHUNK));
        }
    }

    /// The ports that are bound to something, or wait for somebody.
    pub(super) fn in_use(&self) -> Vec<Port> {
        let ports = (1..self.limit).map(Port);
        ports
            .filter(|port| {
                self.entry(*port)
                    .is_some_and(|entry| !matches!(*lock(&entry.binding), Binding::Free))
            })
            .collect()
    }
}

impl DomainInner {
    /// Sends from `port`: to its peer, or to this domain's own vCPU. Nobody there is no error.
    #[inline]
    pub(super) fn send(&self, port: Port) {
        let Some(entry) = self.ports.entry(port) else {
            return;
        };
        let binding = lock(&entry.binding);
        match &*binding {
            Binding::Interdomain(remote, remote_port) => remote.set_pending(*remote_port),
            Binding::Ipi(_) => self.set_pending(port),
            Binding::Free | Binding::Unbound(_) | Binding::Virq(_) | Binding::Descriptor(_) => (),
        }
    }

    /// Delivers a physical interrupt, if `port` is still bound to that registration.
    pub(super) fn deliver(&self, port: Port, registration: u64) {
        let is = |binding: &Binding| matches!(binding, Binding::Descriptor(bound) if *bound == registration);
        self.set_pending_if(port, is);
    }

    /// Makes `port` pending if it is bound to what `is` looks for, while nobody can change that.
    pub(super) fn set_pending_if(&self, port: Port, is: impl FnOnce(&Binding) -> bool) {
        let Some(entry) = self.ports.entry(port) else {
            return;
        };
        let binding = lock(&entry.binding);
        if is(&binding) {
            self.set_pending(port);
        }
    }

    /// Binds a new port of `self` to `port` of `peer`, which must be waiting for us.
    pub(super) fn bind_interdomain(
        self: &Arc<Self>,
        vcpu: usize,
        peer: &Arc<DomainInner>,
        port: Port,
    ) -> Result<Port, EventError> {
        let refused = EventError::NoSuchPort {
            domid: peer.domid,
            port,
        };
        let ours = self.ports.allocate(vcpu, Binding::Free)?;
        let bound = with_both(self, ours, peer, port, |our_binding, their_binding| {
            if !matches!(their_binding, Binding::Unbound(domid) if *domid == self.domid) {
                return false;
            }
            *our_binding = Binding::Interdomain(Arc::clone(peer), port);
            *their_binding = Binding::Interdomain(Arc::clone(self), ours);
            // What the peer sent before we were there is not known: as Xen does, say once that
            // there may be something, so that nothing can have been lost.
            self.set_pending(ours);
            true
        });
        if bound == Some(true) {
            Ok(ours)
        } else {
            self.ports.free(ours);
            Err(refused)
        }
    }

    /// Ends the binding of `port` and gives its number back.
    pub(super) fn close_port(self: &Arc<Self>, port: Port) {
        self.unbind_port(port);
        self.ports.free(port);
    }

    /// Ends the binding of `port`; a peer that was bound to it waits for this domain again.
    pub(super) fn unbind_port(self: &Arc<Self>, port: Port) {
        let Some(entry) = self.ports.entry(port) else {
            return;
        };
        loop {
            let binding = lock(&entry.binding).clone();
            let closed = match binding {
                Binding::Free => return,
                Binding::Interdomain(peer, peer_port) => {
                    with_both(self, port, &peer, peer_port, |ours, theirs| {
                        // It may have changed while no lock was held.
                        let still = matches!(ours, Binding::Interdomain(bound, bound_port)
                            if Arc::ptr_eq(bound, &peer) && *bound_port == peer_port);
                        if still {
                            *theirs = Binding::Unbound(self.domid);
                            *ours = Binding::Free;
                            self.forget_pending(port);
                        }
                        still
                    })
                }
                _ => {
                    let mut binding = lock(&entry.binding);
                    let still = !matches!(*binding, Binding::Free | Binding::Interdomain(..));
                    if still {
                        *binding = Binding::Free;
                        self.forget_pending(port);
                    }
                    Some(still)
                }
            };
            if closed == Some(true) {
                return;
            }
        }
    }

    pub(super) fn port_status(&self, port: Port) -> PortStatus {
        let Some(entry) = self.ports.entry(port) else {
            return PortStatus::Closed;
        };
        match &*lock(&entry.binding) {
            Binding::Free => PortStatus::Closed,
            Binding::Unbound(domid) => PortStatus::Unbound(*domid),
            Binding::Interdomain(peer, port) => PortStatus::Interdomain(peer.domid, *port),
            Binding::Virq(virq) => PortStatus::Virq(*virq),
            Binding::Ipi(vcpu) => PortStatus::Ipi(*vcpu),
            Binding::Descriptor(_) => PortStatus::Descriptor,
        }
    }

    /// The registration behind `port`, if it is a host descriptor's.
    pub(super) fn registration(&self, port: Port) -> Option<u64> {
        match *lock(&self.ports.entry(port)?.binding) {
            Binding::Descriptor(registration) => Some(registration),
            _ => None,
        }
    }

    /// The port of this domain that is bound to `virq`.
    pub(super) fn virq_port(&self, virq: u32) -> Option<Port> {
        self.ports
            .in_use()
            .into_iter()
            .find(|port| self.port_status(*port) == PortStatus::Virq(virq))
    }
}

/// Runs `change` with the bindings of two ports locked, in an order that all callers agree on.
/// None if one of the ports does not exist, or both are the same.
fn with_both<R>(
    a: &Arc<DomainInner>,
    a_port: Port,
    b: &Arc<DomainInner>,
    b_port: Port,
    change: impl FnOnce(&mut Binding, &mut Binding) -> R,
) -> Option<R> {
    let a_entry = a.ports.entry(a_port)?;
    let b_entry = b.ports.entry(b_port)?;
    let mut a_binding: MutexGuard<'_, Binding>;
    let mut b_binding: MutexGuard<'_, Binding>;
    match (Arc::as_ptr(a), a_port.0).cmp(&(Arc::as_ptr(b), b_port.0)) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Less => {
            a_binding = lock(&a_entry.binding);
            b_binding = lock(&b_entry.binding);
        }
        std::cmp::Ordering::Greater => {
            b_binding = lock(&b_entry.binding);
            a_binding = lock(&a_entry.binding);
        }
    }
    Some(change(&mut a_binding, &mut b_binding))
}
