//! Many ports on one descriptor of `/dev/xen/evtchn`, which outlives the program.
//!
//! ```text
//!   port 12 ─┐                          ┌─► Channel 12: ready, its task woken
//!   port 31 ─┼─► /dev/xen/evtchn ─ read ┤
//!   port 40 ─┘    one descriptor        └─► Channel 40
//! ```
//!
//! Elsewhere each channel has a descriptor of its own. But C xenstored hands over one with all its
//! ports bound, and takes no other; and what is bound stays bound when the next program inherits
//! it. So a xenstored that may be followed has its ports here.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::linux::evtchn::{Notify, Unbind};
use zerocopy::IntoBytes;

use super::channel::{self, Channel, Source};
use super::device::{self, Device};
use super::{NotReady, Threads, inherit};
use crate::seam::{EventError, Events};
use crate::wait::lock;

/// A descriptor with many ports. Each port is a [`Channel`]. Clones share it.
#[derive(Clone)]
pub struct Ports {
    threads: Threads,
    shared: Arc<Shared>,
    /// Has the descriptor waited for, as long as this exists.
    _waiting: Arc<Channel>,
}

/// The descriptor, and who waits for its ports.
pub(super) struct Shared {
    device: Device,
    waiting: Mutex<BTreeMap<Port, Weak<Source>>>,
}

/// How many events are taken by one system call.
const AT_ONCE: usize = 128;

impl Shared {
    /// The descriptor became readable: tells whose events those are.
    pub(super) fn raise(&self) {
        let mut ports = [0; AT_ONCE * size_of::<Port>()];
        loop {
            let read = match self.device.read(&mut ports) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::error!("events are lost: {error}"),
            };
            let waiting = lock(&self.waiting);
            for port in ports[..read].chunks_exact(size_of::<Port>()) {
                let port = Port(u32::from_ne_bytes([port[0], port[1], port[2], port[3]]));
                // It may just have been closed.
                if let Some(source) = waiting.get(&port).and_then(Weak::upgrade) {
                    source.raise();
                }
            }
            if read < ports.len() {
                return;
            }
        }
    }

    /// Lets the port's next event through.
    pub(super) fn unmask(&self, port: Port) {
        if let Err(error) = self.device.write(port.as_bytes()) {
            log::warn!("port {port} stays masked: {error}");
        }
    }

    pub(super) fn notify(&self, port: Port) {
        // It fails only when the port is closed, and then there is nobody to tell.
        let _ = self.device.call(&mut Notify { port });
    }

    pub(super) fn close(&self, port: Port) {
        lock(&self.waiting).remove(&port);
        if let Err(error) = self.device.call(&mut Unbind { port }) {
            log::warn!("port {port} was not closed: {error}");
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Ports {
    /// Opens the device, with no port yet.
    ///
    /// # Errors
    /// What is missing on this host.
    pub fn open(threads: &Threads) -> Result<Self, NotReady> {
        Ports::new(threads, device::EVTCHN.open_checked()?).map_err(unusable)
    }

    /// Takes over a descriptor that the program before this one has left open, with its ports.
    ///
    /// # Errors
    /// The host's.
    pub fn inherit(threads: &Threads, descriptor: OwnedFd) -> Result<Self, NotReady> {
        let ports = Ports::new(threads, Device::from(descriptor)).map_err(unusable)?;
        inherit::block(ports.descriptor(), false).map_err(unusable)?;
        Ok(ports)
    }

    fn new(threads: &Threads, device: Device) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            device,
            waiting: Mutex::default(),
        });
        let waiting = Channel::of_ports(&threads.0, Arc::clone(&shared))?;
        Ok(Ports {
            threads: threads.clone(),
            shared,
            _waiting: Arc::new(waiting),
        })
    }

    /// A port that is bound to this descriptor already. It counts as having had an event: one may
    /// have come that nobody has looked at.
    pub fn adopt(&self, port: Port) -> Channel {
        let channel = self.channel(port);
        self.shared.unmask(port);
        channel.raise();
        channel
    }

    fn channel(&self, port: Port) -> Channel {
        let channel = Channel::of_shared(&self.threads.0, Arc::clone(&self.shared), port);
        lock(&self.shared.waiting).insert(port, channel.source());
        channel
    }

    /// The number of the descriptor.
    pub fn descriptor(&self) -> i32 {
        self.shared.as_fd().as_raw_fd()
    }
}

fn unusable(error: io::Error) -> NotReady {
    NotReady::Host {
        what: "the device of event channels".into(),
        error,
    }
}

impl Events for Ports {
    type Channel = Channel;

    fn alloc_unbound(&self, peer: DomId) -> Result<Channel, EventError> {
        let port = channel::call_unbound(&self.shared.device, peer)?;
        Ok(self.channel(port))
    }

    fn bind(&self, peer: DomId, port: Port) -> Result<Channel, EventError> {
        let port = channel::call_bind(&self.shared.device, peer, port)?;
        Ok(self.channel(port))
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ports({:?})", lock(&self.shared.waiting).keys())
    }
}
