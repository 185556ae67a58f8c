//! The ends of a queue that its user has: one to send, one to receive. They outlive the rings.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll};

use parapet_hypervisor::seam::Guest;
use parapet_packet::{Mac, Offloads};
use parapet_xen_sys::Port;

use crate::config::Features;
use crate::error::{Gone, SendError, Violation};
use crate::receive::{Received, RxFrame, RxRing};
use crate::shared::{Berths, Keep, Retired, Shared, Wish};
use crate::transmit::{Draft, Refused, Sent, TxRing, slots_for};

/// One queue of an interface. Its two ends are independent: give them to two tasks, or keep both.
#[derive(Debug)]
pub struct Queue<G: Guest> {
    /// Frames out.
    pub sender: Sender<G>,
    /// Frames in.
    pub receiver: Receiver<G>,
}

impl<G: Guest> Queue<G> {
    pub(crate) fn new(keep: &Arc<Keep<G>>, number: usize) -> Self {
        let handle = || Handle {
            shared: Arc::clone(&keep.0),
            keep: Arc::clone(keep),
            number,
            generation: 0,
        };
        Queue {
            sender: Sender {
                handle: handle(),
                ring: None,
                counts: Sent::default(),
                features: Features::NONE,
            },
            receiver: Receiver {
                handle: handle(),
                ring: None,
                counts: Received::default(),
            },
        }
    }
}

/// What both ends have.
struct Handle<G: Guest> {
    shared: Arc<Shared<G>>,
    #[expect(dead_code, reason = "held, so that the interface is")]
    keep: Arc<Keep<G>>,
    number: usize,
    /// Which connection its ring is of, or that it has none of.
    generation: u32,
}

impl<G: Guest> Handle<G> {
    /// Whether the ring is what it was.
    #[inline]
    fn is_current(&self) -> bool {
        self.generation == self.shared.generation()
    }

    fn berths(&self) -> Option<&Berths<G>> {
        self.shared.queues.get(self.number)
    }

    /// Notes the generation of what was fetched, or of its absence.
    fn fetched<T>(&mut self, now: u32, fresh: Option<(u32, Box<T>)>) -> Option<Box<T>> {
        match fresh {
            Some((generation, ring)) => {
                self.generation = generation;
                Some(ring)
            }
            None => {
                self.generation = now;
                None
            }
        }
    }

    fn retire(&self, ring: Retired<G>) {
        self.shared.retire(self.generation, ring);
    }

    fn gone(&self) -> Result<(), Gone> {
        match self.shared.gone() {
            Some(gone) => Err(gone),
            None => Ok(()),
        }
    }

    fn close(&self, violation: Violation) -> Gone {
        self.shared.close(Gone::Violation(violation));
        // Another may have been first.
        self.shared.gone().unwrap_or(Gone::Violation(violation))
    }
}

/// Sends frames by one queue.
///
/// What is sent is seen by the backend when it is *published*: [`Sender::send`] does so at once,
/// the others leave it to [`Sender::flush`], so that many frames cost one notification. Waiting for
/// room publishes too.
///
/// While the backend is away there is no room.
pub struct Sender<G: Guest> {
    handle: Handle<G>,
    ring: Option<Box<TxRing<G>>>,
    /// Of the rings before.
    counts: Sent,
    features: Features,
}

impl<G: Guest> Sender<G> {
    /// The ring, if a backend serves it.
    #[inline]
    fn ring(&mut self) -> Result<Option<&mut TxRing<G>>, Gone> {
        if !self.handle.is_current() {
            self.turn()?;
        }
        Ok(self.ring.as_deref_mut())
    }

    #[cold]
    fn turn(&mut self) -> Result<(), Gone> {
        let now = self.handle.shared.generation();
        self.give_back();
        self.handle.gone()?;
        let fresh = self
            .handle
            .berths()
            .and_then(|berths| berths.transmit.take());
        self.ring = self.handle.fetched(now, fresh);
        if let Some(ring) = &self.ring {
            self.features = ring.features();
        }
        Ok(())
    }

    fn give_back(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.counts = self.statistics_of(&ring);
            self.counts.lost += ring.under_way() as u64;
            self.handle.retire(Retired::Transmit(ring));
        }
    }

    fn statistics_of(&self, ring: &TxRing<G>) -> Sent {
        let (before, now) = (self.counts, ring.counts);
        Sent {
            frames: before.frames + now.frames,
            bytes: before.bytes + now.bytes,
            failed: before.failed + now.failed,
            lost: before.lost,
        }
    }

    /// What was sent so far, by all connections.
    pub fn statistics(&self) -> Sent {
        match &self.ring {
            Some(ring) => self.statistics_of(ring),
            None => self.counts,
        }
    }

    /// What can be left to the backend to be done to frames. It may change when the backend goes
    /// and comes back.
    pub fn features(&mut self) -> Features {
        // It stays what it was while there is none.
        let _ = self.ring();
        self.features
    }

    /// As [`Sender::features`], of the connection that was looked at last.
    #[cfg(feature = "smoltcp")]
    pub(crate) fn known_features(&self) -> Features {
        self.features
    }

    /// Pages for a frame of `len` bytes, to be filled where they are and then sent.
    ///
    /// # Errors
    /// See [`SendError`].
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<Draft<'_, G>, SendError> {
        if !self.handle.is_current() {
            self.turn()?;
        }
        // Field by field, so that an error can still close the interface.
        let handle = &self.handle;
        let Some(ring) = &mut self.ring else {
            return Err(SendError::NoRoom);
        };
        ring.reserve(len).map_err(|refused| match refused {
            Refused::NoRoom => SendError::NoRoom,
            Refused::Unfit(unfit) => unfit.into(),
            Refused::Violation(violation) => handle.close(violation).into(),
        })
    }

    /// Sends the frame that `parts` are together, if there is room. It is not published.
    ///
    /// # Errors
    /// See [`SendError`].
    #[inline]
    pub fn try_send(&mut self, parts: &[&[u8]], offloads: Offloads) -> Result<(), SendError> {
        let len = parts.iter().map(|part| part.len()).sum();
        let draft = self.reserve(len)?;
        let mut at = 0;
        for part in parts {
            // It has that length.
            let _ = draft.write(at, part);
            at += part.len();
        }
        Ok(draft.send(offloads)?)
    }

    /// Sends the frame that `parts` are together, as soon as there is room. It is not published.
    ///
    /// # Errors
    /// As [`Sender::try_send`], but that there is no room.
    pub async fn feed(&mut self, parts: &[&[u8]], offloads: Offloads) -> Result<(), SendError> {
        loop {
            match self.try_send(parts, offloads) {
                Err(SendError::NoRoom) => {
                    let len = parts.iter().map(|part| part.len()).sum();
                    self.room(len).await?;
                }
                done => return done,
            }
        }
    }

    /// Sends the frame that `parts` are together, as soon as there is room, and publishes it.
    ///
    /// # Errors
    /// As [`Sender::try_send`], but that there is no room.
    pub async fn send(&mut self, parts: &[&[u8]], offloads: Offloads) -> Result<(), SendError> {
        self.feed(parts, offloads).await?;
        self.flush();
        Ok(())
    }

    /// Lets the backend see all that was sent. True: it asked to be notified, and was.
    #[inline]
    pub fn flush(&mut self) -> bool {
        match &mut self.ring {
            Some(ring) if self.handle.is_current() => ring.publish(),
            _ => false,
        }
    }

    /// Takes what the backend has answered, for the sake of [`Sender::statistics`]: sending does
    /// so when it runs out of room.
    ///
    /// # Errors
    /// The interface is no more.
    pub fn collect(&mut self) -> Result<(), Gone> {
        let collected = match self.ring()? {
            Some(ring) => ring.collect(),
            None => Ok(()),
        };
        collected.map_err(|violation| self.handle.close(violation))
    }

    /// How many pages the backend has not given back.
    pub fn under_way(&self) -> usize {
        self.ring.as_ref().map_or(0, |ring| ring.under_way())
    }

    /// Publishes, and asks for an event when there may be room for a frame of `len` bytes. True:
    /// there is, do not sleep. For loops that wait for [`Sender::port`] by themselves.
    ///
    /// # Errors
    /// The interface is no more.
    pub fn arm(&mut self, len: usize) -> Result<bool, Gone> {
        let armed = match self.ring()? {
            Some(ring) => ring.arm(slots_for(len)),
            None => Ok(false),
        };
        armed.map_err(|violation| self.handle.close(violation))
    }

    /// The port by which its backend notifies it, if it has one.
    pub fn port(&self) -> Option<Port> {
        self.ring.as_ref().map(|ring| ring.port())
    }

    /// Ready when there is room for a frame of `len` bytes; else `cx` is woken when there may be.
    /// What was sent is published before.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<(), Gone>> {
        if let Some(berths) = self.handle.berths() {
            berths.transmit.register(cx);
        }
        let polled = match self.ring()? {
            Some(ring) => ring.poll_room(cx, slots_for(len)),
            None => Poll::Pending,
        };
        polled.map_err(|violation| self.handle.close(violation))
    }

    /// Waits for room for a frame of `len` bytes.
    ///
    /// # Errors
    /// The interface is no more.
    pub async fn room(&mut self, len: usize) -> Result<(), Gone> {
        poll_fn(|cx| self.poll_room(cx, len)).await
    }

    /// Asks for the frames to a multicast group, where the backend lets only those through that
    /// were asked for (`Config::multicast_control`); again by itself when the backend has
    /// been away.
    ///
    /// # Errors
    /// The interface is no more.
    pub async fn join(&mut self, group: Mac) -> Result<(), Gone> {
        self.multicast(group, true).await
    }

    /// Asks for them no more.
    ///
    /// # Errors
    /// The interface is no more.
    pub async fn leave(&mut self, group: Mac) -> Result<(), Gone> {
        self.multicast(group, false).await
    }

    async fn multicast(&mut self, group: Mac, join: bool) -> Result<(), Gone> {
        // First, so that a backend that comes between hears of it too, if need be twice.
        self.handle.shared.wishes.push(match join {
            true => Wish::Join(group),
            false => Wish::Leave(group),
        });
        loop {
            let asked = match self.ring()? {
                Some(ring) => ring.multicast(group, join),
                None => Ok(false),
            };
            if asked.map_err(|violation| self.handle.close(violation))? {
                break;
            }
            self.room(1).await?;
        }
        self.flush();
        Ok(())
    }
}

impl<G: Guest> Drop for Sender<G> {
    fn drop(&mut self) {
        self.flush();
        self.give_back();
    }
}

impl<G: Guest> fmt::Debug for Sender<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("queue", &self.handle.number)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

/// Receives the frames of one queue.
///
/// The pages of a frame are posted again when it is dropped; what is posted is published whenever
/// there are some, and when there is no frame left.
///
/// A queue whose receiver is dropped takes no more frames; the backend will find it stalled.
pub struct Receiver<G: Guest> {
    handle: Handle<G>,
    ring: Option<Box<RxRing<G>>>,
    /// Of the rings before.
    counts: Received,
}

impl<G: Guest> Receiver<G> {
    #[cold]
    fn turn(&mut self) -> Result<(), Gone> {
        let now = self.handle.shared.generation();
        self.give_back();
        self.handle.gone()?;
        let fresh = self
            .handle
            .berths()
            .and_then(|berths| berths.receive.take());
        self.ring = self.handle.fetched(now, fresh);
        Ok(())
    }

    #[inline]
    fn ring(&mut self) -> Result<Option<&mut RxRing<G>>, Gone> {
        if !self.handle.is_current() {
            self.turn()?;
        }
        Ok(self.ring.as_deref_mut())
    }

    fn give_back(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.counts = self.statistics_of(&ring);
            self.handle.retire(Retired::Receive(ring));
        }
    }

    fn statistics_of(&self, ring: &RxRing<G>) -> Received {
        let (before, now) = (self.counts, ring.counts);
        Received {
            frames: before.frames + now.frames,
            bytes: before.bytes + now.bytes,
            failed: before.failed + now.failed,
        }
    }

    /// What was received so far, by all connections.
    pub fn statistics(&self) -> Received {
        match &self.ring {
            Some(ring) => self.statistics_of(ring),
            None => self.counts,
        }
    }

    /// The next frame, if one has come.
    ///
    /// # Errors
    /// The interface is no more.
    #[inline]
    pub fn try_receive(&mut self) -> Result<Option<RxFrame<'_, G>>, Gone> {
        let looked = match self.ring()? {
            Some(ring) => ring.look(),
            None => return Ok(None),
        };
        match looked {
            Ok(false) => Ok(None),
            Ok(true) => Ok(self.ring.as_mut().map(|ring| ring.frame())),
            Err(violation) => Err(self.handle.close(violation)),
        }
    }

    /// Lets the backend see all pages that are posted.
    pub fn flush(&mut self) {
        if let Some(ring) = &mut self.ring
            && self.handle.is_current()
        {
            ring.publish();
        }
    }

    /// Asks for an event when a frame comes. True: there is one, do not sleep. For loops that wait
    /// for [`Receiver::port`] by themselves.
    ///
    /// # Errors
    /// The interface is no more.
    pub fn arm(&mut self) -> Result<bool, Gone> {
        let armed = match self.ring()? {
            Some(ring) => ring.arm(),
            None => Ok(false),
        };
        armed.map_err(|violation| self.handle.close(violation))
    }

    /// The port by which its backend notifies it, if it has one.
    pub fn port(&self) -> Option<Port> {
        self.ring.as_ref().map(|ring| ring.port())
    }

    /// Ready when there is a frame for [`Receiver::try_receive`]; else `cx` is woken when there may
    /// be.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if let Some(berths) = self.handle.berths() {
            berths.receive.register(cx);
        }
        let polled = match self.ring()? {
            Some(ring) => ring.poll_ready(cx),
            None => Poll::Pending,
        };
        polled.map_err(|violation| self.handle.close(violation))
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// The interface is no more.
    pub async fn receive(&mut self) -> Result<RxFrame<'_, G>, Gone> {
        poll_fn(|cx| self.poll_ready(cx)).await?;
        match &mut self.ring {
            Some(ring) => Ok(ring.frame()),
            None => unreachable!("a ring was ready"),
        }
    }
}

impl<G: Guest> Drop for Receiver<G> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<G: Guest> fmt::Debug for Receiver<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("queue", &self.handle.number)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}
