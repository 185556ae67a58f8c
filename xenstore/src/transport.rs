//! What carries the bytes: a ring, a socket, or plain memory.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll};

use crossbeam_queue::SegQueue;
use parapet_hypervisor::seam::Channel;
use parapet_ring::bytes::{End, XenstoreRing};
use parapet_ring::{RingMemory, TooSmall, Violation};
use parapet_xen_sys::Port;
use parapet_xen_sys::io::xs_wire::{ConnectionState, RingError, ServerFeatures};

use crate::mailbox::Bell;

/// Why no more bytes come or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The other end is gone.
    #[error("the other end closed the connection")]
    Closed,
    /// The other end broke the ring: its fault.
    #[error(transparent)]
    Ring(#[from] Violation),
    /// xenstored gave up on the ring, and says why by a `RingError`.
    #[error("xenstored gave up on the connection (error {0})")]
    GivenUp(u32),
    /// The host's own fault, as an errno.
    #[error("the connection failed (errno {0})")]
    Host(i32),
}

/// A stream of bytes each way that never blocks.
///
/// After [`Transport::read`] gave nothing or [`Transport::write`] did less than was asked, wait by
/// [`Transport::poll_ready`] and try both again.
pub trait Transport: Send {
    /// Reads what is there, up to the length of `to`; zero if nothing is, yet.
    ///
    /// # Errors
    /// The stream is over.
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken>;

    /// Writes as much of `bytes` as there is room for; zero if there is none, yet.
    ///
    /// # Errors
    /// The stream is over.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken>;

    /// Waits until there may be more to read or more room to write than when last tried. It may be
    /// ready without need; it is never pending when there is need.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Tells the other end, where there is a place for it, what xenstored does for it.
    fn advertise(&mut self, _features: ServerFeatures) {}

    /// Tells the other end, where there is a place for it, why it is served no more.
    fn blame(&mut self, _why: RingError) {}

    /// Whether the other end asks for a fresh start.
    fn wants_restart(&self) -> bool {
        false
    }

    /// Begins anew, with nothing in flight.
    fn restart(&mut self) {}

    /// What is left of it when another program takes this one's place, if anything can be.
    fn legacy(&self) -> Option<Legacy> {
        None
    }

    /// Why the other end was told that it is served no more; zero if it was not.
    fn blamed(&self) -> u32 {
        0
    }
}

/// What a transport leaves to the program that takes this one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Legacy {
    /// A port that stays bound, to a domain whose page is to be mapped anew.
    Port(Port),
    /// A descriptor that stays open under the same number.
    Socket(i32),
}

/// A transport that was not found again: nothing comes by it, and it leaves what it came from.
#[derive(Debug)]
pub struct Lost(pub Legacy);

impl Transport for Lost {
    fn read(&mut self, _: &mut [u8]) -> Result<usize, Broken> {
        Ok(0)
    }

    fn write(&mut self, _: &[u8]) -> Result<usize, Broken> {
        Ok(0)
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn legacy(&self) -> Option<Legacy> {
        Some(self.0)
    }
}

/// A domain's xenstore page with its event channel, at either end.
#[derive(Debug)]
pub struct RingTransport<M, C> {
    ring: XenstoreRing<M>,
    end: End,
    channel: C,
    /// What was advertised.
    features: ServerFeatures,
    /// A fresh start was asked for, and until it is granted the ring is to be left alone.
    waits: bool,
}

impl<M: RingMemory, C: Channel> RingTransport<M, C> {
    /// The guest's end.
    ///
    /// # Errors
    /// The memory is shorter than the page.
    pub fn guest(memory: M, channel: C) -> Result<Self, TooSmall> {
        Self::attach(memory, channel, End::Guest)
    }

    /// The guest's end of a ring that somebody may have used before, and left in any state: asks
    /// xenstored for a fresh start, if it grants any (`docs/misc/xenstore-ring.txt`).
    ///
    /// # Errors
    /// The memory is shorter than the page.
    pub fn guest_anew(memory: M, channel: C) -> Result<Self, TooSmall> {
        let mut guest = Self::guest(memory, channel)?;
        if guest.ring.features().contains(ServerFeatures::RECONNECTION) {
            guest.waits = true;
            guest.ring.request_reconnect();
            guest.channel.notify();
        }
        Ok(guest)
    }

    /// Whether a fresh start is still to be granted.
    fn is_waiting(&mut self) -> bool {
        if self.waits && self.ring.connection() == Ok(ConnectionState::Connected) {
            self.waits = false;
            self.ring.reload();
        }
        self.waits
    }

    fn attach(memory: M, channel: C, end: End) -> Result<Self, TooSmall> {
        Ok(RingTransport {
            ring: XenstoreRing::attach(memory, end)?,
            end,
            channel,
            features: ServerFeatures::empty(),
            waits: false,
        })
    }

    /// xenstored's end: says that we are there.
    ///
    /// # Errors
    /// The memory is shorter than the page.
    pub fn host(memory: M, channel: C) -> Result<Self, TooSmall> {
        let mut host = Self::attach(memory, channel, End::Host)?;
        host.ring.set_error(RingError::None);
        host.channel.notify();
        Ok(host)
    }

    /// xenstored's end, taken over from another: what the page says is left as it is.
    ///
    /// # Errors
    /// The memory is shorter than the page.
    pub fn taken_over(memory: M, channel: C) -> Result<Self, TooSmall> {
        let host = Self::attach(memory, channel, End::Host)?;
        host.channel.notify();
        Ok(host)
    }

    fn moved(&self, bytes: usize) -> usize {
        if bytes > 0 {
            self.channel.notify();
        }
        bytes
    }
}

impl<M: RingMemory, C: Channel> Transport for RingTransport<M, C> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        if self.is_waiting() {
            return Ok(0);
        }
        let bytes = self.ring.read(to)?;
        let error = self.ring.error();
        if bytes == 0 && self.end == End::Guest && error != u32::from(RingError::None) {
            return Err(Broken::GivenUp(error));
        }
        Ok(self.moved(bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        if self.is_waiting() {
            return Ok(0);
        }
        let bytes = self.ring.write(bytes)?;
        Ok(self.moved(bytes))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.channel.poll_wait(cx)
    }

    fn advertise(&mut self, features: ServerFeatures) {
        self.features = features;
        self.ring.advertise(features);
    }

    fn blame(&mut self, why: RingError) {
        if self.features.contains(ServerFeatures::ERROR) {
            self.ring.set_error(why);
            self.channel.notify();
        }
    }

    fn wants_restart(&self) -> bool {
        self.features.contains(ServerFeatures::RECONNECTION)
            && self.ring.connection() == Ok(ConnectionState::Reconnect)
    }

    fn restart(&mut self) {
        self.ring.advertise(self.features);
        self.ring.reset();
        self.channel.notify();
    }

    fn legacy(&self) -> Option<Legacy> {
        Some(Legacy::Port(self.channel.port()))
    }

    fn blamed(&self) -> u32 {
        self.ring.error()
    }
}

/// One end of a connection within this process.
pub struct Pipe {
    incoming: Arc<Lane>,
    outgoing: Arc<Lane>,
    mine: Arc<Bell>,
    theirs: Arc<Bell>,
    /// What was taken from the lane and not yet read.
    rest: VecDeque<u8>,
}

/// One direction of a [`Pipe`].
#[derive(Default)]
struct Lane {
    writes: SegQueue<Vec<u8>>,
    closed: AtomicBool,
}

impl Pipe {
    /// How many writes may be unread before there is no room for another.
    const DEPTH: usize = 64;

    /// The two ends.
    pub fn pair() -> (Self, Self) {
        let lanes = [Arc::<Lane>::default(), Arc::default()];
        let bells = [Arc::<Bell>::default(), Arc::default()];
        let end = |[incoming, outgoing]: [&Arc<Lane>; 2], [mine, theirs]: [&Arc<Bell>; 2]| Pipe {
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            mine: mine.clone(),
            theirs: theirs.clone(),
            rest: VecDeque::new(),
        };
        let ([there, back], [one, other]) = (lanes.each_ref(), bells.each_ref());
        (
            end([there, back], [one, other]),
            end([back, there], [other, one]),
        )
    }
}

impl Transport for Pipe {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        let closed = self.incoming.closed.load(Ordering::Acquire);
        while self.rest.len() < to.len() {
            let Some(write) = self.incoming.writes.pop() else {
                break;
            };
            self.rest.extend(write);
            self.theirs.ring();
        }
        if self.rest.is_empty() && closed {
            return Err(Broken::Closed);
        }
        let len = self.rest.len().min(to.len());
        for (place, byte) in to.iter_mut().zip(self.rest.drain(..len)) {
            *place = byte;
        }
        Ok(len)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        if self.outgoing.closed.load(Ordering::Acquire) {
            return Err(Broken::Closed);
        }
        if bytes.is_empty() || self.outgoing.writes.len() >= Pipe::DEPTH {
            return Ok(0);
        }
        self.outgoing.writes.push(bytes.to_vec());
        self.theirs.ring();
        Ok(bytes.len())
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.mine.poll(cx)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.incoming.closed.store(true, Ordering::Release);
        self.outgoing.closed.store(true, Ordering::Release);
        self.theirs.ring();
    }
}
