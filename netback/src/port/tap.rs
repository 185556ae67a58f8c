//! A TAP device of the host for each vif, as Linux's own back half has it: the host's stack, its
//! bridges and its filters see the guest there.
//!
//! ```text
//!   vif's queue 0 ── Port ── queue 0 of the device ┐
//!   vif's queue 1 ── Port ── queue 1               ├── vif5.0, perhaps on a bridge
//!                                                  ┘
//! ```
//!
//! The device is there as long as the vif is, and its cable is plugged in while the frontend is
//! connected. Frames cross as they are, checksums blank and segments uncut: what is left to be done
//! to each stands in the header that goes with it.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use parapet_hypervisor::host::{Tap, Unfinished};
use parapet_hypervisor::memory::{PAGE_SIZE, View};
use parapet_hypervisor::seam::{Backend, Channel, Pages};
use parapet_packet::Offloads;
use parapet_packet::checksum::Sum;
use parapet_packet::headers::Headers;
use parapet_packet::vnet::{Disagreement, VnetHeader};
use zerocopy::IntoBytes;

use super::guard::Guard;
use super::{Network, Port, Socket, Vif};
use crate::bell::Bell;
use crate::drops::{Drop, Drops};
use crate::endpoint::Endpoint;
use crate::frame::{Frame, HEAD, LONGEST, Page, Part, Pool};

/// Frames from the host that are on their way, for each queue.
const FRAMES: u16 = 512;
/// Pages that those may have together.
const PAGES: u16 = 640;
/// Pages behind a head that hold more than the longest frame.
const SPAN: usize = LONGEST.div_ceil(PAGE_SIZE) + 1;

/// The host's address on the devices, as Xen's own scripts have it: the highest there is, so that
/// no bridge takes it for its own.
const HOST_MAC: [u8; 6] = [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];

/// The network of the host.
#[derive(Debug, Clone)]
pub struct TapNetwork<P> {
    place: P,
    bridge: Option<String>,
    namespace: Option<PathBuf>,
    drops: Arc<Drops>,
}

impl<P> TapNetwork<P> {
    /// The host's network as this process sees it. A vif's device joins the bridge that the vif
    /// names, if it names one.
    pub fn new(place: P) -> Self {
        TapNetwork {
            place,
            bridge: None,
            namespace: None,
            drops: Arc::default(),
        }
    }

    /// Has vifs that name no bridge join this one.
    pub fn bridge(mut self, bridge: impl Into<String>) -> Self {
        self.bridge = Some(bridge.into());
        self
    }

    /// Makes the devices in another network namespace: the file that stands for it.
    pub fn namespace(mut self, namespace: impl Into<PathBuf>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Frames from the host that no vif was given, and why.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }
}

impl<P: Backend> TapNetwork<P> {
    /// Makes a vif's device, which is not switched on.
    fn make(&self, vif: &Vif) -> io::Result<Device<P>> {
        let guard =
            Guard::of(vif).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let tap = match &self.namespace {
            Some(namespace) => Tap::open_in(namespace, &vif.name)?,
            None => Tap::open(&vif.name)?,
        };
        tap.set_carrier(false)?;
        tap.set_mac(HOST_MAC)?;
        tap.set_mtu(vif.mtu)?;
        if self.namespace.is_none() {
            learn_no_routes(&vif.name);
        }
        let device = Device::new(self.place.clone(), tap)?;
        Ok(Device {
            guard,
            drops: Arc::clone(&self.drops),
            ..device
        })
    }
}

/// A guest that says that it were a router is not to be believed by the host, which does by default
/// what it hears on a device that is on no bridge.
fn learn_no_routes(name: &str) {
    let file = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    match std::fs::write(file, b"0") {
        Ok(()) => {}
        // The host has no IPv6.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => log::warn!("{name}: a guest may tell the host routes: {error}"),
    }
}

impl<P: Backend> Network<P> for TapNetwork<P> {
    fn plug(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        let device = self.make(vif)?;
        let tap = &device.tap;
        if let Some(bridge) = vif.bridge.as_ref().or(self.bridge.as_ref()) {
            tap.join_bridge(bridge).map_err(|error| {
                io::Error::new(error.kind(), format!("bridge {bridge}: {error}"))
            })?;
            if vif.isolated {
                std::fs::write(format!("/sys/class/net/{}/brport/isolated", vif.name), b"1")?;
            }
        }
        tap.set_up(true)?;
        Ok(Box::new(device))
    }

    fn plug_for_script(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        Ok(Box::new(self.make(vif)?))
    }
}

/// One TAP device as a place to connect to.
pub struct Device<P> {
    place: P,
    /// One queue of it, so that it stays.
    tap: Tap,
    guard: Option<Guard>,
    drops: Arc<Drops>,
}

impl<P: Backend> Device<P> {
    /// A device that is there already.
    ///
    /// # Errors
    /// The host's.
    pub fn new(place: P, tap: Tap) -> io::Result<Self> {
        tap.set_takes(Unfinished::ALL)?;
        Ok(Device {
            place,
            tap,
            guard: None,
            drops: Arc::default(),
        })
    }

    /// Reads away what the host sent while nobody was there to take it.
    fn drain(&self) -> io::Result<()> {
        loop {
            match self.tap.receive(&mut [0; VnetHeader::LEN], &mut [0; 1], []) {
                Ok(_) => self.drops.count(Drop::Gone, 1),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The device's cable, plugged in until the last queue lets go of it.
struct Cable(Tap);

impl std::ops::Drop for Cable {
    fn drop(&mut self) {
        if let Err(error) = self.0.set_carrier(false) {
            log::debug!("{}: its cable stays plugged in: {error}", self.0.name());
        }
    }
}

impl<P: Backend> Socket<P> for Device<P> {
    fn connect(&mut self, endpoint: Arc<Endpoint<P>>) -> io::Result<Vec<Box<dyn Port<P>>>> {
        self.drain()?;
        let cable = Arc::new(Cable(self.tap.try_clone()?));
        let mut ports: Vec<Box<dyn Port<P>>> = Vec::new();
        for queue in 0..endpoint.queues() {
            let (tap, receives) = match queue {
                0 => (self.tap.try_clone()?, true),
                _ if self.tap.is_multi_queue() => (self.tap.another_queue()?, true),
                // One that was made for one queue: all frames come by the first.
                _ => (self.tap.try_clone()?, false),
            };
            let side = Side {
                guard: self.guard.clone(),
                inlet: match receives {
                    true => Some(Inlet::new(&self.place, &tap, &self.drops)?),
                    false => None,
                },
                tap,
                _cable: Arc::clone(&cable),
            };
            ports.push(Box::new(side));
        }
        self.tap.set_carrier(true)?;
        Ok(ports)
    }
}

/// One queue of the device.
struct Side<P: Backend> {
    tap: Tap,
    guard: Option<Guard>,
    inlet: Option<Inlet<P>>,
    _cable: Arc<Cable>,
}

/// How frames come in.
struct Inlet<P: Backend> {
    readable: P::Channel,
    pool: Pool<P>,
    home: Arc<Bell>,
    /// Pages that the next frame is read into, behind its head.
    span: Vec<u16>,
    drops: Arc<Drops>,
}

/// Why no frame came in.
enum Dry {
    /// The host has sent none.
    Empty,
    /// All that there is room for are on their way.
    NoRoom,
    Failed(io::Error),
}

impl<P: Backend> Inlet<P> {
    fn new(place: &P, tap: &Tap, drops: &Arc<Drops>) -> io::Result<Self> {
        use std::os::fd::AsFd;
        let home = Arc::new(Bell::default());
        let pool = Pool::new(place, place.domid(), FRAMES, PAGES, Arc::clone(&home));
        Ok(Inlet {
            readable: place.bind_descriptor(tap.as_fd())?,
            pool: pool.map_err(io::Error::other)?,
            home,
            span: Vec::with_capacity(SPAN),
            drops: Arc::clone(drops),
        })
    }

    /// Reads one frame: none if it is one that nobody can have.
    fn read(&mut self, tap: &Tap) -> Result<Option<Frame<P>>, Dry> {
        while self.span.len() < SPAN {
            self.span.push(self.pool.take_page().ok_or(Dry::NoRoom)?);
        }
        let mut frame = self.pool.take().ok_or(Dry::NoRoom)?;
        let mut vnet = VnetHeader::default();
        // There is room for all of it, behind a frame without parts.
        let head = frame.make_head(HEAD).map_err(|_| Dry::NoRoom)?;
        let local = self.pool.memory().local().view();
        let pages = self
            .span
            .iter()
            .rev()
            .filter_map(|&page| local.slice(usize::from(page) * PAGE_SIZE, PAGE_SIZE).ok());
        let received = tap.receive(vnet.as_mut_bytes(), head, pages);
        let len = match received {
            Ok(len) => len,
            Err(error) => {
                self.pool.recycle(frame);
                return Err(match error.kind() {
                    ErrorKind::WouldBlock => Dry::Empty,
                    _ => Dry::Failed(error),
                });
            }
        };
        match self.finish(&mut frame, len, &vnet) {
            Ok(()) => Ok(Some(frame)),
            Err(why) => {
                self.drops.count(why, 1);
                self.pool.recycle(frame);
                Ok(None)
            }
        }
    }

    fn finish(&mut self, frame: &mut Frame<P>, len: usize, vnet: &VnetHeader) -> Result<(), Drop> {
        if len > LONGEST {
            return Err(Drop::TooLong);
        }
        frame.make_head(len.min(HEAD)).map_err(|_| Drop::Host)?;
        let mut left = len.saturating_sub(HEAD);
        while left > 0 {
            let page = self.span.pop().ok_or(Drop::Host)?;
            let part = Part {
                page: Page::Local(page),
                offset: 0,
                // At most a page.
                len: left.min(PAGE_SIZE) as u16,
            };
            if frame.push(part).is_err() {
                self.span.push(page);
                return Err(Drop::Host);
            }
            left -= usize::from(part.len);
        }
        let headers = Headers::parse(frame.head(), len).map_err(|_| Drop::Malformed)?;
        let offloads = match vnet.offloads(&headers) {
            Ok(offloads) => offloads,
            // Of something inside a tunnel, say: a vif has no words for it.
            Err(Disagreement::Checksum) if vnet.gso_type == 0 => {
                complete(frame, vnet)?;
                Offloads::default()
            }
            Err(_) => return Err(Drop::Malformed),
        };
        frame.set_offloads(offloads);
        Ok(())
    }
}

/// Makes a checksum where the host says that it belongs.
fn complete<P: Backend>(frame: &mut Frame<P>, vnet: &VnetHeader) -> Result<(), Drop> {
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    let mut sum = Sum::new().and(frame.head().get(start..).ok_or(Drop::Malformed)?);
    let mut bytes = [0; PAGE_SIZE];
    for view in frame.views() {
        let bytes = bytes.get_mut(..view.len()).ok_or(Drop::Host)?;
        view.read_bytes(0, bytes).map_err(|_| Drop::Host)?;
        sum = sum.and(bytes);
    }
    let field = frame.head_mut().get_mut(field..field + 2);
    // Zero would say of UDP's that there is none; it is the same number as this.
    let value = match sum.finish() {
        0 => 0xFFFF,
        value => value,
    };
    field
        .ok_or(Drop::Malformed)?
        .copy_from_slice(&value.to_be_bytes());
    Ok(())
}

impl<P: Backend> Side<P> {
    fn put(&self, frame: &Frame<P>) -> Result<(), Drop> {
        if let Some(guard) = &self.guard
            && !guard.allows(frame.head(), frame.len())
        {
            return Err(Drop::Spoofed);
        }
        let mut vnet = VnetHeader::default();
        if frame.offloads() != Offloads::default() {
            let headers = Headers::parse(frame.head(), frame.len());
            let headers = headers.map_err(|_| Drop::Malformed)?;
            vnet = VnetHeader::new(frame.offloads(), &headers).map_err(|_| Drop::Malformed)?;
        }
        let views = frame.views().map(View::read_only);
        self.tap
            .send(vnet.as_bytes(), frame.head(), views)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidInput => Drop::Malformed,
                // Its device is switched off.
                _ if error.raw_os_error() == Some(5) => Drop::NoWay,
                _ => Drop::Host,
            })
    }
}

impl<P: Backend> Port<P> for Side<P> {
    fn send(&mut self, frames: &mut Vec<Frame<P>>, drops: &Drops) {
        for frame in frames.iter() {
            if let Err(why) = self.put(frame) {
                drops.count(why, 1);
            }
        }
    }

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Vec<Frame<P>>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        let Some(inlet) = &mut self.inlet else {
            return Poll::Pending;
        };
        inlet.pool.collect(|_| {});
        inlet.home.hush();
        let full = into.len().saturating_add(most);
        let before = into.len();
        while into.len() < full {
            match inlet.read(&self.tap) {
                Ok(frame) => into.extend(frame),
                Err(Dry::Failed(error)) => return Poll::Ready(Err(error)),
                Err(_) if into.len() > before => break,
                Err(Dry::Empty) => {
                    if inlet.readable.poll_wait(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Err(Dry::NoRoom) => {
                    inlet.home.listen(cx);
                    if !inlet.pool.collect(|_| {}) {
                        return Poll::Pending;
                    }
                    inlet.home.hush();
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn is_quiet(&self) -> bool {
        true
    }
}
