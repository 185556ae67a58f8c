//! `/dev/xen/evtchn`: an end of an event channel; and other descriptors as if they were one.

#![allow(unsafe_code, reason = "which ioctl takes which structure")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::{Port, Virq};
use parapet_xen_sys::linux::evtchn::{
    BIND_INTERDOMAIN, BIND_UNBOUND_PORT, BIND_VIRQ, BindInterdomain, BindUnboundPort, BindVirq,
    NOTIFY, Notify, UNBIND, Unbind,
};
use zerocopy::IntoBytes;

use super::device::{self, Argument, Device};
use super::ports::Shared;
use super::worker::Workers;
use super::{NotReady, errno};
use crate::seam::{self, EventError};
use crate::wait::lock;

// SAFETY: `struct ioctl_evtchn_bind_unbound_port` of xen/sys/evtchn.h, numbers only.
unsafe impl Argument for BindUnboundPort {
    const IOCTL: u32 = BIND_UNBOUND_PORT;
}

// SAFETY: `struct ioctl_evtchn_bind_interdomain`, numbers only.
unsafe impl Argument for BindInterdomain {
    const IOCTL: u32 = BIND_INTERDOMAIN;
}

// SAFETY: `struct ioctl_evtchn_unbind`, numbers only.
unsafe impl Argument for Unbind {
    const IOCTL: u32 = UNBIND;
}

// SAFETY: `struct ioctl_evtchn_bind_virq`, a number.
unsafe impl Argument for BindVirq {
    const IOCTL: u32 = BIND_VIRQ;
}

// SAFETY: `struct ioctl_evtchn_notify`, numbers only.
unsafe impl Argument for Notify {
    const IOCTL: u32 = NOTIFY;
}

/// An event channel's port, or a descriptor of the host; closed on drop.
pub struct Channel {
    workers: Arc<Workers>,
    source: Arc<Source>,
}

/// What raises events, as a worker sees it.
pub(super) struct Source {
    kind: Kind,
    /// The descriptor became readable since somebody last looked.
    ready: AtomicBool,
    masked: AtomicBool,
    waiter: AtomicWaker,
    /// The worker that waits for it, and what it is called there.
    home: Mutex<Home>,
}

type Home = Option<(usize, u64)>;

enum Kind {
    Port(Device, Port),
    Descriptor(OwnedFd),
    /// One of many ports of a descriptor.
    OneOf(Arc<Shared>, Port),
    /// A descriptor of many ports: no event itself, it tells of theirs.
    Ports(Arc<Shared>),
}

impl Kind {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Kind::Port(device, _) => device.as_fd(),
            Kind::Descriptor(descriptor) => descriptor.as_fd(),
            Kind::OneOf(shared, _) | Kind::Ports(shared) => shared.as_fd(),
        }
    }
}

impl Source {
    /// The descriptor became readable.
    pub(super) fn raise(&self) {
        if let Kind::Ports(shared) = &self.kind {
            return shared.raise();
        }
        self.ready.store(true, Ordering::Release);
        self.waiter.wake();
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.kind.descriptor()
    }

    fn take(&self) -> bool {
        match &self.kind {
            Kind::Port(device, port) => take_event(device, *port),
            Kind::OneOf(shared, port) => {
                let ready = self.ready.swap(false, Ordering::Acquire);
                if ready {
                    // Before anybody looks, as in `take_event`.
                    shared.unmask(*port);
                }
                ready
            }
            Kind::Descriptor(_) => self.ready.swap(false, Ordering::Acquire),
            Kind::Ports(_) => false,
        }
    }
}

/// Takes the port's event, if there is one, and lets the next one through.
fn take_event(device: &Device, port: Port) -> bool {
    let mut told = [0; size_of::<Port>()];
    match device.read(&mut told) {
        Ok(len) if len == told.len() => {}
        _ => return false,
    }
    // Unmasked before anybody looks for what the event was about: whatever comes after that look
    // is an event again.
    if let Err(error) = device.write(port.as_bytes()) {
        log::warn!("port {port} stays masked: {error}");
    }
    true
}

impl Channel {
    fn unwatched(workers: &Arc<Workers>, kind: Kind) -> Self {
        let source = Arc::new(Source {
            kind,
            ready: AtomicBool::new(false),
            masked: AtomicBool::new(false),
            waiter: AtomicWaker::new(),
            home: Mutex::new(None),
        });
        Channel {
            workers: Arc::clone(workers),
            source,
        }
    }

    fn new(workers: &Arc<Workers>, kind: Kind) -> io::Result<Self> {
        let channel = Channel::unwatched(workers, kind);
        let here = workers.here().unwrap_or_else(|| workers.next());
        channel.settle(&mut lock(&channel.source.home), here)?;
        Ok(channel)
    }

    pub(super) fn alloc_unbound(workers: &Arc<Workers>, peer: DomId) -> Result<Self, EventError> {
        let device = device::EVTCHN.open().map_err(|error| refused(&error))?;
        let port = call_unbound(&device, peer)?;
        Channel::new(workers, Kind::Port(device, port)).map_err(|error| refused(&error))
    }

    pub(super) fn bind(
        workers: &Arc<Workers>,
        peer: DomId,
        port: Port,
    ) -> Result<Self, EventError> {
        let device = device::EVTCHN.open().map_err(|error| refused(&error))?;
        let port = call_bind(&device, peer, port)?;
        Channel::new(workers, Kind::Port(device, port)).map_err(|error| refused(&error))
    }

    /// One of many ports of a descriptor, which tells of it.
    pub(super) fn of_shared(workers: &Arc<Workers>, shared: Arc<Shared>, port: Port) -> Self {
        Channel::unwatched(workers, Kind::OneOf(shared, port))
    }

    /// A descriptor of many ports.
    pub(super) fn of_ports(workers: &Arc<Workers>, shared: Arc<Shared>) -> io::Result<Self> {
        Channel::new(workers, Kind::Ports(shared))
    }

    /// Who is to be told of events.
    pub(super) fn source(&self) -> Weak<Source> {
        Arc::downgrade(&self.source)
    }

    /// Has it look as if there had been an event.
    pub(super) fn raise(&self) {
        self.source.raise();
    }

    pub(super) fn of_virq(workers: &Arc<Workers>, virq: Virq) -> Result<Self, NotReady> {
        // The device itself first, for what the host may lack.
        drop(device::EVTCHN.open_checked()?);
        let mut call = BindVirq { virq: virq.into() };
        Channel::of_port(workers, &mut call).map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => NotReady::VirqTaken(virq),
            Some(libc::EPERM) => NotReady::NotPrivileged,
            _ => NotReady::Host {
                what: format!("the event {virq:?}"),
                error,
            },
        })
    }

    fn of_port(workers: &Arc<Workers>, call: &mut impl Argument) -> io::Result<Self> {
        let device = device::EVTCHN.open()?;
        let port = Port(device.call(call)?);
        Channel::new(workers, Kind::Port(device, port))
    }

    pub(super) fn of_descriptor(
        workers: &Arc<Workers>,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let descriptor = descriptor.try_clone_to_owned()?;
        Channel::new(workers, Kind::Descriptor(descriptor))
    }

    /// Moves to worker `to`, so that an event wakes the thread whose task waits for it.
    ///
    /// # Errors
    /// The host's. It stays where it was: events are still told there, and wake the task.
    fn settle(&self, home: &mut Home, to: usize) -> io::Result<()> {
        if home.is_some_and(|(worker, _)| worker == to) {
            return Ok(());
        }
        // What is readable now is told anew there.
        let name = self.workers.watch(to, &self.source)?;
        self.leave(home);
        *home = Some((to, name));
        Ok(())
    }

    fn leave(&self, home: &mut Home) {
        if let Some((worker, name)) = home.take() {
            self.workers.unwatch(worker, name, &self.source);
        }
    }
}

/// Allocates a port of `device` for `peer` to bind to.
pub(super) fn call_unbound(device: &Device, peer: DomId) -> Result<Port, EventError> {
    let mut call = BindUnboundPort {
        remote_domain: peer.0.into(),
    };
    let port = device.call(&mut call).map_err(|error| refused(&error))?;
    Ok(Port(port))
}

/// Binds a port of `device` to that of a peer.
pub(super) fn call_bind(device: &Device, peer: DomId, port: Port) -> Result<Port, EventError> {
    let mut call = BindInterdomain {
        remote_domain: peer.0.into(),
        remote_port: port,
    };
    let bound = device.call(&mut call);
    bound.map(Port).map_err(|error| match error.raw_os_error() {
        // Xen's answers for a domain that is not there, and a port that does not wait for us.
        Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => {
            EventError::NoSuchPort { domid: peer, port }
        }
        _ => refused(&error),
    })
}

fn refused(error: &io::Error) -> EventError {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => EventError::NoSpace,
        _ => EventError::Host(errno(error)),
    }
}

impl seam::Channel for Channel {
    /// The port; zero, which is nobody's, for a descriptor.
    fn port(&self) -> Port {
        match self.source.kind {
            Kind::Port(_, port) | Kind::OneOf(_, port) => port,
            Kind::Descriptor(_) | Kind::Ports(_) => Port(0),
        }
    }

    fn notify(&self) {
        match &self.source.kind {
            Kind::Port(device, port) => {
                // It fails only when the port is closed, and then there is nobody to tell.
                let _ = device.call(&mut Notify { port: *port });
            }
            Kind::OneOf(shared, port) => shared.notify(*port),
            Kind::Descriptor(_) | Kind::Ports(_) => {}
        }
    }

    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        let watched = !matches!(self.source.kind, Kind::OneOf(..));
        if let Some(here) = self.workers.here().filter(|_| watched) {
            let mut home = lock(&self.source.home);
            if let Err(error) = self.settle(&mut home, here) {
                log::debug!("an event channel is told of by another thread: {error}");
            }
        }
        self.source.waiter.register(cx.waker());
        if self.source.masked.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Without word from the worker there is nothing to read: no system call is spent on it.
        if self.source.ready.swap(false, Ordering::Acquire) {
            match &self.source.kind {
                Kind::Descriptor(_) => return Poll::Ready(()),
                Kind::Port(device, port) if take_event(device, *port) => return Poll::Ready(()),
                Kind::OneOf(shared, port) => {
                    shared.unmask(*port);
                    return Poll::Ready(());
                }
                Kind::Port(..) | Kind::Ports(_) => {}
            }
        }
        Poll::Pending
    }

    fn take(&self) -> bool {
        !self.source.masked.load(Ordering::Acquire) && self.source.take()
    }

    fn mask(&self) {
        self.source.masked.store(true, Ordering::Release);
    }

    fn unmask(&self) {
        self.source.masked.store(false, Ordering::Release);
        self.source.waiter.wake();
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.leave(&mut lock(&self.source.home));
        // Now, and not when a worker that was just telling us of an event lets go of the device.
        match &self.source.kind {
            Kind::Port(device, port) => {
                let unbound = device.call(&mut Unbind { port: *port });
                if let Err(error) = unbound {
                    log::warn!("port {port} was not closed: {error}");
                }
            }
            Kind::OneOf(shared, port) => shared.close(*port),
            Kind::Descriptor(_) | Kind::Ports(_) => {}
        }
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source.kind {
            Kind::Port(_, port) | Kind::OneOf(_, port) => write!(f, "Channel(port {port})"),
            Kind::Ports(_) => write!(f, "Channel(many ports)"),
            Kind::Descriptor(descriptor) => write!(f, "Channel({descriptor:?})"),
        }
    }
}
