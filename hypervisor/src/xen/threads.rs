//! The worker threads as a place.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::{Port, Virq};

use super::worker::Workers;
use super::{Channel, NotReady};
use crate::seam::{Clock, EventError, Events, HostDescriptors, Instant, Tasks};
use crate::wait::Sleep;

/// Worker threads alone: tasks, timers, and descriptors to wait for, which need no Xen. Event
/// channels are opened when they are asked for, and only then is it missed.
///
/// Clones share the threads, which run until the process ends.
#[derive(Clone)]
pub struct Threads(pub(super) Arc<Workers>);

impl Threads {
    /// Starts so many, one at the least.
    ///
    /// # Errors
    /// The host's.
    pub fn start(count: usize) -> Result<Self, NotReady> {
        let workers = Workers::start(count.max(1)).map_err(|error| NotReady::Host {
            what: "a thread".into(),
            error,
        })?;
        Ok(Threads(workers))
    }

    /// An event whenever Xen has something to tell the domain.
    ///
    /// # Errors
    /// What is missing on this host. Most of these, [`Virq::DomExc`] among them, one process of all
    /// can have.
    pub fn bind_virq(&self, virq: Virq) -> Result<Channel, NotReady> {
        Channel::of_virq(&self.0, virq)
    }
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Threads")
    }
}

impl Events for Threads {
    type Channel = Channel;

    fn alloc_unbound(&self, peer: DomId) -> Result<Channel, EventError> {
        Channel::alloc_unbound(&self.0, peer)
    }

    fn bind(&self, peer: DomId, port: Port) -> Result<Channel, EventError> {
        Channel::bind(&self.0, peer, port)
    }
}

impl HostDescriptors for Threads {
    fn bind_descriptor(&self, descriptor: BorrowedFd<'_>) -> io::Result<Channel> {
        Channel::of_descriptor(&self.0, descriptor)
    }
}

impl Clock for Threads {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn sleep_until(&self, when: Instant) -> impl Future<Output = ()> + Send + 'static {
        Sleep::new(Arc::clone(&self.0), when)
    }
}

impl Tasks for Threads {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }
}
