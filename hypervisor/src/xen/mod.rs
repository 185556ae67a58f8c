//! A real Xen host: the seam on the devices that Linux has under `/dev/xen`.
//!
//! ```text
//!   Grants: map, copy ──────────────► /dev/xen/gntdev     ioctl, mmap
//!   Grants: grant ──────────────────► /dev/xen/gntalloc   ioctl, mmap
//!   Events ─────────────────────────► /dev/xen/evtchn     one descriptor a channel
//!   Domains: what each does ────────► /dev/xen/privcmd    hypercalls, for domain 0
//!   KernelXenstore ─────────────────► /dev/xen/xenbus_backend
//!
//!   worker threads, one executor each; a task stays on the one it was started on
//!     ready queue ─► poll ─► … ─► nothing to do ─► epoll: channels, descriptors, timers
//! ```
//!
//! Everything goes by the kernel's own interface, as Xen's headers `xen/sys/*.h` have it; none of
//! Xen's libraries is needed. A process that has these devices may be in domain 0 or in any other:
//! a driver domain runs the same backends.
//!
//! Each event channel has a descriptor of its own, so that it can be waited for by whichever worker
//! its task is on: the first wait there moves it over, and from then on an event wakes just that
//! thread. Linux masks a port when it has told of it; taking the event unmasks. [`Ports`] are many
//! on one descriptor instead, for who hands them over to the program that takes its place
//! ([`inherit`]).
//!
//! What the kernel does when a process dies, however it dies: it unmaps what was mapped, closes
//! the ports, and takes back what was granted as soon as the peer has let go of it.

mod channel;
mod copy;
mod device;
mod domains;
mod granting;
pub mod inherit;
mod kernel;
mod mapping;
mod ports;
#[cfg(test)]
mod tests;
mod threads;
mod worker;

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::{Port, Virq};
use parapet_xen_sys::grant_table::GrantRef;

pub use channel::Channel;
pub use domains::Domains;
pub use granting::{Grant, Pages};
pub use kernel::KernelXenstore;
pub use mapping::{LastWords, Mapping};
pub use ports::Ports;
pub use threads::Threads;

use crate::seam::{
    Access, Clock, CopyOp, EventError, Events, GrantError, Grants, HostDescriptors, Identity,
    Instant, MapError, Memory, OutOfMemory, Tasks,
};
use device::Device;

/// Why this process cannot take part in a Xen host.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// There is no Xen under this kernel.
    #[error(
        "this is no Xen host: {missing} is not there, and the kernel does not run on Xen. Boot \
         Xen with this system as its domain 0"
    )]
    NoXen {
        /// The device that was looked for.
        missing: PathBuf,
    },
    /// Xen is there, and the device is not.
    #[error("{missing} is not there: load its kernel module (modprobe {module})")]
    NoModule {
        /// The device.
        missing: PathBuf,
        /// The module that makes it.
        module: &'static str,
    },
    /// The device is there, and not for us.
    #[error(
        "no permission to open {path}: run as root, or give this user access to the devices under \
         /dev/xen"
    )]
    NoPermission {
        /// The device.
        path: PathBuf,
    },
    /// This is a domain like any other.
    #[error("this is not domain 0, nor another that may manage the host's domains")]
    NotPrivileged,
    /// Xen tells one process of all, and that is another.
    #[error(
        "another process has {0:?}, by which Xen tells of domains that end: is another xenstored \
         running? It cannot be replaced before the host is booted again"
    )]
    VirqTaken(Virq),
    /// A version of Xen that is older or newer than those known.
    #[error(
        "this Xen tells of its domains in a way that is not known here (its sysctl interface is \
         not that of Xen 4.16 to 4.21)"
    )]
    UnknownXen,
    /// Something else, of the host's.
    #[error("{what} cannot be used: {error}")]
    Host {
        /// A device, or what else is needed.
        what: String,
        /// Why not.
        error: io::Error,
    },
}

/// A domain of a real Xen host, as one process in it has a hold of it: the seam on `/dev/xen/*`.
///
/// Clones share the devices and the worker threads. Those run until the process ends: a task ends
/// by itself.
#[derive(Clone)]
pub struct Xen(Arc<Inner>);

struct Inner {
    domid: DomId,
    gntdev: Arc<Device>,
    threads: Threads,
}

impl Xen {
    /// Takes part in the host as domain `domid`, which is the one this process runs in (the
    /// xenstore tells: it is the value of `domid` there), with a worker thread for each processor.
    ///
    /// # Errors
    /// What is missing on this host, with what to do about it.
    pub fn open(domid: DomId) -> Result<Self, NotReady> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Xen::with_workers(domid, processors)
    }

    /// [`Xen::open`], with so many worker threads, one at the least.
    ///
    /// # Errors
    /// As for [`Xen::open`].
    pub fn with_workers(domid: DomId, workers: usize) -> Result<Self, NotReady> {
        let gntdev = Arc::new(device::GNTDEV.open_checked()?);
        // Each channel opens its own later: better to hear of it now.
        drop(device::EVTCHN.open_checked()?);
        let threads = Threads::start(workers)?;
        Ok(Xen(Arc::new(Inner {
            domid,
            gntdev,
            threads,
        })))
    }

    /// The worker threads.
    pub fn threads(&self) -> &Threads {
        &self.0.threads
    }
}

impl std::fmt::Debug for Xen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Xen(domain {})", self.0.domid)
    }
}

/// What went wrong, as an errno.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl Identity for Xen {
    fn domid(&self) -> DomId {
        self.0.domid
    }
}

impl Memory for Xen {
    type Pages = Pages;

    fn allocate(&self, count: usize) -> Result<Pages, OutOfMemory> {
        Pages::allocate(count)
    }
}

impl Grants for Xen {
    type Grant = Grant;
    type Mapping = Mapping;

    /// The kernel keeps to itself whether a peer still maps a page that was taken back; it does
    /// keep such a page in quarantine.
    const TELLS_STILL_MAPPED: bool = false;

    fn grant(&self, pages: &Pages, to: DomId, access: Access) -> Result<Grant, GrantError> {
        granting::grant(pages, to, access)
    }

    fn map(&self, from: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping, MapError> {
        mapping::map(&self.0.gntdev, from, refs, access)
    }

    fn map_each(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<Mapping, MapError>>,
    ) {
        mapping::map_each(&self.0.gntdev, from, refs, access, out);
    }

    fn copy(&self, ops: &mut [CopyOp<'_, Pages>]) -> Result<(), i32> {
        copy::copy(&self.0.gntdev, ops)
    }
}

impl Events for Xen {
    type Channel = Channel;

    fn alloc_unbound(&self, peer: DomId) -> Result<Channel, EventError> {
        self.0.threads.alloc_unbound(peer)
    }

    fn bind(&self, peer: DomId, port: Port) -> Result<Channel, EventError> {
        self.0.threads.bind(peer, port)
    }
}

impl HostDescriptors for Xen {
    fn bind_descriptor(&self, descriptor: BorrowedFd<'_>) -> io::Result<Channel> {
        self.0.threads.bind_descriptor(descriptor)
    }
}

impl Clock for Xen {
    fn now(&self) -> Instant {
        self.0.threads.now()
    }

    fn sleep_until(&self, when: Instant) -> impl Future<Output = ()> + Send + 'static {
        self.0.threads.sleep_until(when)
    }
}

impl Tasks for Xen {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.threads.spawn(task);
    }
}
