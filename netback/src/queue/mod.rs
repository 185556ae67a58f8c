//! One queue of a vif: a ring each way, a pool of frames, a port, and the task that joins them.
//!
//! ```text
//!   tx ring ── take, check ──► frames ── send ──► port ──► the network
//!      ▲                         │                            │
//!      └──── answer, once they are copied, or come home       │
//!                                                             ▼
//!   rx ring ◄── copy into what is posted ◄── inbox, port ◄── frames of others
//! ```
//!
//! A turn of the task does all of that for a batch, and publishes each ring once. When there is
//! nothing to do it asks everybody to wake it (the rings' events, the bell for what comes home or
//! into the inbox, the port), and sleeps.
//!
//! A guest that does not take what it is sent holds nobody up but itself: see [`Patience`].

mod receive;
mod transmit;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot;
use parapet_backend::limit::Limit;
use parapet_backend::polling::Polling;
use parapet_backend::rate::Bucket;
use parapet_hypervisor::seam::{Backend, Channel, Instant, OutOfMemory, yield_now};
use parapet_ring::{Peer, TooSmall, Violation};
use parapet_xen_sys::DomId;

use crate::bell::Bell;
use crate::drops::Drop;
use crate::endpoint::Endpoint;
use crate::frame::{Pool, Static};
use crate::multicast::Multicast;
use crate::port::Port;
use crate::rx::Receives;
use crate::statics::{Order, Orders, Statics};
use crate::stats::QueueStats;
use crate::storm::Storm;
use crate::tx::Broken;

use receive::Receive;
use transmit::Transmit;

/// Frames that are taken, and that are given, in a turn.
const BATCH: usize = 64;

/// Frames that a queue may have abroad.
const FRAMES: u16 = 512;

/// Pages that it has for what it copies.
const PAGES: u16 = 512;

/// Turns without sleep after which a wish to stop is heard.
const TURNS: u32 = 16;

/// How long a queue whose rate is used up sleeps before it looks again.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Our ends of a queue's event channels.
pub enum Channels<C> {
    /// One for both rings.
    Joint(C),
    /// One each: `feature-split-event-channels`.
    Split {
        /// For the transmit ring.
        tx: C,
        /// For the receive ring.
        rx: C,
    },
}

impl<C: Channel> Channels<C> {
    /// The transmit ring's.
    fn tx(&self) -> &C {
        match self {
            Channels::Joint(channel) | Channels::Split { tx: channel, .. } => channel,
        }
    }

    /// The receive ring's, if that has one of its own.
    fn rx(&self) -> Option<&C> {
        match self {
            Channels::Joint(_) => None,
            Channels::Split { rx, .. } => Some(rx),
        }
    }

    fn each(&self) -> impl Iterator<Item = &C> {
        std::iter::once(self.tx()).chain(self.rx())
    }
}

/// How long a guest may go without posting buffers while frames wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// After this, frames that lie in others' memory are copied aside, so that those can go on.
    pub aside: Duration,
    /// After this, all that waits and comes is dropped.
    pub drain: Duration,
    /// After this, it counts as stalled, until it posts some.
    pub stall: Duration,
}

impl Default for Patience {
    /// Ten seconds and sixty are Linux's.
    fn default() -> Self {
        Patience {
            aside: Duration::from_millis(5),
            drain: Duration::from_secs(10),
            stall: Duration::from_secs(60),
        }
    }
}

/// What a queue is made of.
pub struct QueueSetup<P: Backend> {
    /// Where we run.
    pub place: P,
    /// Whose vif it is.
    pub peer: DomId,
    /// Which of its queues.
    pub index: usize,
    /// The transmit ring's page.
    pub tx: Peer<P::Mapping>,
    /// The receive ring's page.
    pub rx: Peer<P::Mapping>,
    /// Our ends of the frontend's event channels.
    pub channels: Channels<P::Channel>,
    /// What the frontend takes.
    pub receives: Receives,
    /// Its way into the network.
    pub port: Box<dyn Port<P>>,
    /// Where the network puts what is for it.
    pub endpoint: Arc<Endpoint<P>>,
    /// What wakes it: the same that the endpoint has for this queue.
    pub bell: Arc<Bell>,
    /// What the control ring has for it.
    pub orders: Arc<Orders<P>>,
    /// The groups that the guest wants to hear, the vif's.
    pub multicast: Arc<Multicast>,
    /// How many bytes the vif may transmit, all queues together.
    pub rate: Arc<Bucket>,
    /// How long to look for something to do before sleeping, at most.
    pub poll: Duration,
    /// How long it waits for a guest that posts no buffers.
    pub patience: Patience,
    /// Where to count.
    pub stats: Arc<QueueStats>,
    /// How to complain. It outlives the queue: a frontend may connect as often as it likes.
    pub complaints: Limit,
}

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The frontend broke the transmit ring.
    #[error("transmit ring: {0}")]
    Transmit(#[from] Broken),
    /// The frontend broke the receive ring.
    #[error("receive ring: {0}")]
    Receive(#[from] Violation),
    /// The frontend's rings cannot be taken up.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The host has no memory for it.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The network failed us.
    #[error("the vif's network: {0}")]
    Port(#[from] io::Error),
    /// The host could not copy between grants at all.
    #[error("grants cannot be copied (errno {0})")]
    Copy(i32),
}

/// A queue.
pub struct Queue<P: Backend> {
    tx: Transmit<P>,
    rx: Receive<P>,
    pool: Pool<P>,
    statics: Statics<P>,
    /// Mappings that were given up, and who is to be told when they are gone.
    leaving: Vec<Leaving<P>>,
    port: Box<dyn Port<P>>,
    shared: Shared<P>,
    channels: Channels<P::Channel>,
    bell: Arc<Bell>,
    orders: Arc<Orders<P>>,
    polling: Polling,
}

/// What both directions use.
struct Shared<P: Backend> {
    place: P,
    peer: DomId,
    index: usize,
    endpoint: Arc<Endpoint<P>>,
    multicast: Arc<Multicast>,
    rate: Arc<Bucket>,
    stats: Arc<QueueStats>,
    complaints: Limit,
}

struct Leaving<P: Backend> {
    mappings: Vec<Arc<Static<P>>>,
    removed: Vec<bool>,
    done: oneshot::Sender<Vec<bool>>,
}

/// What ended a wait.
enum Wake {
    /// There is something to do.
    Work,
    /// The frontend sent an event for nothing.
    Spurious,
    /// It is the time that we wanted to be woken at.
    Alarm,
    /// The device wants the queue to end.
    Stop,
}

impl<P: Backend> Queue<P> {
    /// Takes up the frontend's rings: at their beginning, or where a backend before us left them.
    ///
    /// # Errors
    /// A ring is too small, or the host does not give what it takes.
    pub fn new(setup: QueueSetup<P>) -> Result<Self, QueueError> {
        let QueueSetup {
            place,
            peer,
            index,
            tx,
            rx,
            channels,
            receives,
            port,
            endpoint,
            bell,
            orders,
            multicast,
            rate,
            poll,
            patience,
            stats,
            complaints,
        } = setup;
        Ok(Queue {
            tx: Transmit::new(&place, tx)?,
            rx: Receive::new(&place, rx, receives, patience)?,
            pool: Pool::new(&place, peer, FRAMES, PAGES, Arc::clone(&bell))?,
            statics: Statics::new(peer),
            leaving: Vec::new(),
            port,
            shared: Shared {
                place,
                peer,
                index,
                endpoint,
                multicast,
                rate,
                stats,
                complaints,
            },
            channels,
            bell,
            orders,
            polling: Polling::new(poll),
        })
    }

    /// Answers as dropped what the guest has transmitted by now: of rings that another backend has
    /// left, nobody knows how far that was with it.
    ///
    /// # Errors
    /// The transmit ring is broken.
    pub fn forgo(&mut self) -> Result<(), QueueError> {
        self.tx.forgo()
    }

    /// Serves the rings until `stop` is ready, then lets go of everything.
    ///
    /// # Errors
    /// The frontend broke a ring, or the host failed. Nothing of the frontend's is in use any more.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), QueueError> {
        // Who was here before us may have published answers and not come to say so.
        self.channels.each().for_each(Channel::notify);
        let outcome = self.work(stop).await;
        self.close().await;
        outcome
    }

    async fn work(&mut self, stop: impl Future<Output = ()> + Send) -> Result<(), QueueError> {
        let mut stop = pin!(stop);
        let mut alarm = pin!(None);
        let mut alarm_at = None;
        let mut turns = 0u32;
        let mut port_is_hot = false;
        let mut storm = Storm::default();
        loop {
            let busy = poll_fn(|cx| Poll::Ready(self.turn(cx))).await?;
            if busy {
                storm.calm();
                self.polling.found();
            }
            if busy || self.polling.look_again(|| self.shared.place.now()) {
                // Others first: a frontend on this processor that answers what it just got needs
                // no event, since we have not gone to sleep.
                yield_now().await;
                turns = turns.wrapping_add(1);
                let is_time = turns.is_multiple_of(TURNS);
                if is_time && is_ready(stop.as_mut()).await {
                    return Ok(());
                }
                // A quiet port would otherwise wait for a guest that sends without end.
                if is_time || port_is_hot {
                    port_is_hot = poll_fn(|cx| {
                        let asked = self.rx.poll_port(&mut *self.port, &self.shared, cx);
                        Poll::Ready(asked)
                    })
                    .await?;
                }
                continue;
            }
            let place = &self.shared.place;
            self.shared.stats.sleeps.add(1);
            let since = self.polling.is_measured().then(|| place.now());
            if alarm_at != self.alarm() {
                alarm_at = self.alarm();
                alarm.set(alarm_at.map(|when| place.sleep_until(when)));
            }
            let wake = poll_fn(|cx| {
                let wake = self.poll_wake(stop.as_mut(), cx);
                match alarm.as_mut().as_pin_mut() {
                    Some(alarm) if wake.is_pending() => alarm.poll(cx).map(|()| Ok(Wake::Alarm)),
                    _ => wake,
                }
            });
            let wake = wake.await;
            self.bell.hush();
            match wake? {
                Wake::Work => {
                    if let Some(since) = since {
                        self.polling.slept(self.shared.place.now().since(since));
                    }
                }
                Wake::Stop => return Ok(()),
                Wake::Alarm => {
                    alarm_at = None;
                    alarm.set(None);
                }
                Wake::Spurious => {
                    self.shared.stats.spurious.add(1);
                    let place = &self.shared.place;
                    storm.weather(place, || self.channels.each()).await;
                }
            }
        }
    }

    /// When to be woken though nothing happens.
    fn alarm(&self) -> Option<Instant> {
        match (self.tx.throttled(), self.rx.alarm()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Does a batch of all that there is to do. Whether there was anything.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, QueueError> {
        if self.orders.any() {
            self.obey();
        }
        let mut busy = self.tx.collect(&mut self.pool);
        busy |= self.tx.take(&self.shared, &mut self.pool, &self.statics)?;
        self.tx.send(&mut *self.port, &mut self.pool, &self.shared);
        if !self.port.is_quiet() {
            self.rx.poll_port(&mut *self.port, &self.shared, cx)?;
        }
        busy |= self.rx.give(&self.shared, &mut self.pool, &self.statics)?;
        self.publish();
        if !self.leaving.is_empty() {
            self.see_off();
        }
        Ok(busy)
    }

    /// Lets the frontend see what was done, and says so once if it wants to be told.
    fn publish(&mut self) {
        let stats = &self.shared.stats;
        let mut tx = self.tx.publish();
        let rx = self.rx.publish();
        if rx {
            stats.rx.notifications.add(1);
            match self.channels.rx() {
                Some(channel) => channel.notify(),
                None => tx = true,
            }
        }
        if tx {
            stats.tx.notifications.add(u64::from(!rx));
            self.channels.tx().notify();
        }
    }

    /// Ready when there may be something to do, or never again anything.
    fn poll_wake(
        &mut self,
        stop: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Wake, QueueError>> {
        if stop.poll(cx).is_ready() {
            return Poll::Ready(Ok(Wake::Stop));
        }
        self.bell.listen(cx);
        if self.orders.any()
            || self.pool.has_returned()
            || (self.rx.wants_frames() && !self.shared.endpoint.is_empty(self.shared.index))
        {
            return Poll::Ready(Ok(Wake::Work));
        }
        if self.rx.poll_port(&mut *self.port, &self.shared, cx)? {
            return Poll::Ready(Ok(Wake::Work));
        }
        // The events first: what they announced is found by arming, and what comes later makes
        // others.
        let mut event = false;
        for channel in self.channels.each() {
            event |= channel.poll_wait(cx).is_ready();
        }
        let work = self.tx.arm()? | self.rx.arm(event)?;
        if work {
            return Poll::Ready(Ok(Wake::Work));
        }
        match event {
            true => Poll::Ready(Ok(Wake::Spurious)),
            false => Poll::Pending,
        }
    }

    /// Does what the control ring has for us.
    fn obey(&mut self) {
        for order in self.orders.take() {
            match order {
                Order::Add { pages, done } => {
                    let added = self.statics.add(pages);
                    // Nobody waits for the answer any more: so be it.
                    let _: Result<(), _> = done.send(added);
                }
                Order::Remove { refs, done } => {
                    let (place, tx) = (&self.shared.place, &self.tx);
                    let is_used = |gref| tx.uses(gref);
                    let (removed, mappings) = self.statics.remove(place, &refs, is_used);
                    self.leaving.push(Leaving {
                        mappings,
                        removed,
                        done,
                    });
                }
            }
        }
        self.pool.set_statics(self.statics.mappings());
        self.shared.stats.statics.set(self.statics.len() as u64);
    }

    /// Unmaps what was given up, and which no frame that is abroad can use any more.
    fn see_off(&mut self) {
        let gone = |leaving: &mut Leaving<P>| {
            leaving
                .mappings
                .iter()
                .all(|mapping| Arc::strong_count(mapping) == 1)
        };
        for leaving in self.leaving.extract_if(.., gone) {
            drop(leaving.mappings);
            let _: Result<(), _> = leaving.done.send(leaving.removed);
        }
    }

    /// Leaves the network, and waits until nobody uses the guest's memory any more.
    async fn close(&mut self) {
        let Shared {
            endpoint,
            index,
            stats,
            ..
        } = &self.shared;
        stats.drops.count(Drop::Gone, endpoint.close(*index));
        // What an error has left lying about is somebody's too, be it our own.
        let left = self.rx.clear() + self.tx.abandon(&mut self.pool);
        stats.drops.count(Drop::Gone, left);
        stats.stalled.set(0);
        stats.statics.set(0);
        while self.pool.lent() > 0 {
            self.tx.collect(&mut self.pool);
            let (bell, pool) = (&self.bell, &self.pool);
            poll_fn(|cx| {
                bell.listen(cx);
                match pool.lent() == 0 || pool.has_returned() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            self.bell.hush();
        }
        self.publish();
    }
}

/// Whether `future` is ready now.
async fn is_ready(mut future: Pin<&mut impl Future<Output = ()>>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}
