//! Event channels: one bit that says "look".

use core::future::Future;
use core::future::poll_fn;
use core::task::{Context, Poll};

use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;

/// Why an event channel could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The peer's port is not there, or not waiting for us: the peer's fault.
    #[error("domain {domid} has no port {port} that waits for us")]
    NoSuchPort {
        /// The peer.
        domid: DomId,
        /// The port that it named.
        port: Port,
    },
    /// The domain has as many ports as it may.
    #[error("no event channel port is left")]
    NoSpace,
    /// The host's own fault, as an errno.
    #[error("the host refused an event channel (errno {0})")]
    Host(i32),
}

/// Making event channels.
pub trait Events {
    /// See [`Channel`].
    type Channel: Channel;

    /// A port of ours for `peer` to bind to.
    fn alloc_unbound(&self, peer: DomId) -> Result<Self::Channel, EventError>;

    /// Binds a port of ours to `port`, which `peer` allocated for us.
    fn bind(&self, peer: DomId, port: Port) -> Result<Self::Channel, EventError>;
}

/// Our end of an event channel. Dropping it closes the port.
///
/// An event is a bit, not a count: any number of notifications before the next wait are one, or two
/// where the place holds one for us and one is pending behind it (as Linux does for a process).
/// None is lost, and none is invented: a wait ends only because the peer (or the hypervisor) sent.
pub trait Channel: Send + Sync + Unpin + 'static {
    /// Our port, to hand to the peer.
    fn port(&self) -> Port;

    /// Tells the other end to look. Does nothing while nobody is bound there.
    fn notify(&self);

    /// Takes a pending event, or registers `cx` to be woken by the next. One waiter at a time.
    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Takes a pending event if there is one.
    fn take(&self) -> bool;

    /// Holds events back: they stay pending, and wake nobody, until [`Channel::unmask`].
    fn mask(&self);

    /// Lets events through again, one that came meanwhile included.
    fn unmask(&self);

    /// Waits for the next event. There is none any more when our own domain is destroyed or has
    /// reset its ports: a wait that outlives that is for ever.
    fn wait(&self) -> impl Future<Output = ()> + Send {
        poll_fn(|cx| self.poll_wait(cx))
    }
}
