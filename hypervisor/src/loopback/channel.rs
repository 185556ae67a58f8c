//! A domain's end of an event channel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use parapet_xen_sys::event_channel::Port;

use super::domain::DomainInner;
use crate::seam;

/// An event channel port of a loopback domain; closed on drop.
pub struct Channel {
    domain: Arc<DomainInner>,
    port: Port,
}

impl Channel {
    pub(super) fn new(domain: Arc<DomainInner>, port: Port) -> Self {
        Channel { domain, port }
    }
}

impl seam::Channel for Channel {
    fn port(&self) -> Port {
        self.port
    }

    #[inline]
    fn notify(&self) {
        self.domain.send(self.port);
    }

    #[inline]
    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.take() {
            return Poll::Ready(());
        }
        let Some(entry) = self.domain.ports.entry(self.port) else {
            return Poll::Pending;
        };
        // The upcall should come to the vCPU that waits: the waker is at home there.
        if self.domain.vcpus.len() > 1
            && let Some(vcpu) = self.domain.current_vcpu()
        {
            entry.vcpu.store(vcpu, Ordering::Relaxed);
        }
        entry.waiter.register(cx.waker());
        // An event that came before the registration woke nobody.
        if self.take() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    #[inline]
    fn take(&self) -> bool {
        self.domain.event_bits().take(self.port) == Ok(true)
    }

    fn mask(&self) {
        let _ = self.domain.event_bits().mask(self.port);
    }

    fn unmask(&self) {
        self.domain.unmask(self.port);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(registration) = self.domain.registration(self.port) {
            self.domain.machine.unregister(registration);
        }
        self.domain.close_port(self.port);
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Channel(domain {}, port {})",
            self.domain.domid, self.port
        )
    }
}
