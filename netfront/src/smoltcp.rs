//! An interface as a device of smoltcp's: a guest without a system has TCP in ten lines.
//!
//! ```
//! # use parapet_hypervisor::seam::Guest;
//! # use parapet_netfront::{Gone, Interface, Queue, smoltcp::Ethernet};
//! use smoltcp::iface::{self, SocketSet};
//! use smoltcp::time::Instant;
//!
//! async fn run<G: Guest>(guest: G, interface: &Interface<G>, queue: Queue<G>) -> Result<(), Gone> {
//!     let mut device = Ethernet::new(interface, queue);
//!     let config = iface::Config::new(device.address().into());
//!     let mut stack = iface::Interface::new(config, &mut device, Instant::ZERO);
//!     let mut sockets = SocketSet::new(vec![]);
//!     loop {
//!         let now = Instant::from_micros((guest.now().as_nanos() / 1000) as i64);
//!         stack.poll(now, &mut device, &mut sockets);
//!         // ... the sockets' work ...
//!         let delay = stack.poll_delay(now, &sockets).map(Into::into);
//!         device.wait(&guest, delay).await?;
//!     }
//! }
//! ```
//!
//! smoltcp works on slices, and shared memory is none: each frame is copied once, by the device.
//! Checksums of TCP and UDP are made by neither: they are left blank where the backend takes that,
//! and looked at only where a frame says that nobody has.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Poll, ready};
use core::time::Duration;

use parapet_hypervisor::seam::Guest;
use parapet_packet::checksum::Sum;
use parapet_packet::headers::Headers;
use parapet_packet::{Checksum, Offloads};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use crate::error::Gone;
use crate::interface::Interface;
use crate::queue::{Queue, Sender};
use crate::transmit::ETHERNET_HEADER;

/// A queue of an interface as an Ethernet device.
#[derive(Debug)]
pub struct Ethernet<G: Guest> {
    queue: Queue<G>,
    address: EthernetAddress,
    mtu: usize,
    /// The frame that smoltcp looks at, and the one that it writes.
    received: Vec<u8>,
    sent: Vec<u8>,
    /// Frames whose checksum was wrong.
    corrupt: u64,
}

impl<G: Guest> Ethernet<G> {
    /// `queue` is one of `interface`'s. An interface with several has several such devices, each
    /// with frames of its own.
    pub fn new(interface: &Interface<G>, queue: Queue<G>) -> Self {
        Ethernet {
            queue,
            address: EthernetAddress(interface.mac().0),
            mtu: usize::from(interface.mtu()),
            received: Vec::new(),
            sent: Vec::new(),
            corrupt: 0,
        }
    }

    /// The interface's address.
    pub fn address(&self) -> EthernetAddress {
        self.address
    }

    /// Frames received whose checksum was wrong: smoltcp has not seen them.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// The queue, for its statistics.
    pub fn queue(&self) -> &Queue<G> {
        &self.queue
    }

    /// Waits until a frame has come, or `delay` is over, and there is room to send. Call it when smoltcp has nothing to do.
    ///
    /// # Errors
    /// The interface is no more.
    pub async fn wait(&mut self, guest: &G, delay: Option<Duration>) -> Result<(), Gone> {
        let mut sleep = pin!(async {
            match delay {
                Some(delay) => guest.sleep(delay).await,
                None => core::future::pending().await,
            }
        });
        let longest = self.longest();
        poll_fn(|cx| {
            // Without room there is nothing that smoltcp could do.
            ready!(self.queue.sender.poll_room(cx, longest))?;
            if let Poll::Ready(ready) = self.queue.receiver.poll_ready(cx) {
                return Poll::Ready(ready);
            }
            sleep.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// The longest frame to send, in bytes.
    fn longest(&self) -> usize {
        let most = self.queue.sender.known_features().longest();
        (ETHERNET_HEADER + self.mtu).min(most)
    }

    /// Copies the next good frame to where smoltcp may see it.
    fn fetch(&mut self) -> bool {
        loop {
            // An interface that is no more has no frames; `wait` tells.
            let Ok(Some(frame)) = self.queue.receiver.try_receive() else {
                return false;
            };
            self.received.resize(frame.len(), 0);
            let copied = frame.copy_to(0, &mut self.received);
            self.received.truncate(copied);
            if frame.offloads().checksum != Checksum::Unchecked || is_intact(&self.received) {
                return true;
            }
            self.corrupt += 1;
        }
    }
}

/// Whether a frame's transport checksum is right, if it has one.
fn is_intact(frame: &[u8]) -> bool {
    let Ok(headers) = Headers::parse(frame, frame.len()) else {
        return false;
    };
    let Some(place) = headers.checksum() else {
        return true;
    };
    let covered = frame.get(place.covers.clone()).unwrap_or_default();
    let none = place.is_udp && frame.get(place.field..place.field + 2) == Some(&[0, 0]);
    // Of an IP packet, whose length has 16 bits.
    let pseudo = headers.pseudo(frame, covered.len() as u32);
    none || pseudo.is_some_and(|sum| sum.and(covered).is_intact())
}

/// Leaves the sum of the pseudo header where the checksum is to be made, if it is.
fn leave_blank(frame: &mut [u8]) -> Offloads {
    let blank = || -> Option<([u8; 2], usize)> {
        let headers = Headers::parse(frame, frame.len()).ok()?;
        let place = headers.checksum()?;
        // Of an IP packet, whose length has 16 bits.
        let sum: Sum = headers.pseudo(frame, place.covers.len() as u32)?;
        Some((sum.folded().to_be_bytes(), place.field))
    };
    let Some((sum, field)) = blank() else {
        return Offloads::default();
    };
    if let Some(to) = frame.get_mut(field..field + 2) {
        to.copy_from_slice(&sum);
    }
    Offloads {
        checksum: Checksum::Blank,
        gso: None,
    }
}

impl<G: Guest> phy::Device for Ethernet<G> {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a, G>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_, G>)> {
        // Room for an answer to it.
        let len = self.longest();
        if self.queue.sender.reserve(len).is_err() || !self.fetch() {
            return None;
        }
        let sender = &mut self.queue.sender;
        let buffer = &mut self.sent;
        Some((RxToken(&mut self.received), TxToken { sender, buffer }))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, G>> {
        let len = self.longest();
        self.queue.sender.reserve(len).ok()?;
        let sender = &mut self.queue.sender;
        let buffer = &mut self.sent;
        Some(TxToken { sender, buffer })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.longest();
        let mut checksums = ChecksumCapabilities::default();
        let made = match makes_checksums(&self.queue.sender) {
            true => phy::Checksum::None,
            false => phy::Checksum::Tx,
        };
        checksums.tcp = made;
        checksums.udp = made;
        capabilities.checksum = checksums;
        capabilities
    }
}

/// Whether the backend makes checksums for us.
fn makes_checksums<G: Guest>(sender: &Sender<G>) -> bool {
    let features = sender.known_features();
    features.checksum_v4 && features.checksum_v6
}

/// A frame received.
#[derive(Debug)]
pub struct RxToken<'a>(&'a mut [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame to be sent.
#[derive(Debug)]
pub struct TxToken<'a, G: Guest> {
    sender: &'a mut Sender<G>,
    buffer: &'a mut Vec<u8>,
}

impl<G: Guest> phy::TxToken for TxToken<'_, G> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.buffer.clear();
        self.buffer.resize(len, 0);
        let result = f(self.buffer);
        let offloads = match makes_checksums(self.sender) {
            true => leave_blank(self.buffer),
            false => Offloads::default(),
        };
        // There was room. What is lost with a backend that leaves, TCP sends again.
        if let Err(error) = self.sender.try_send(&[self.buffer], offloads) {
            log::debug!("a frame of smoltcp's was not sent: {error}");
        }
        self.sender.flush();
        result
    }
}
