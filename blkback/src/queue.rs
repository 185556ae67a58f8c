//! One queue: a ring, the guest's pages, an engine on the image, and the task that joins them.
//!
//! ```text
//!            take, check          start               kick, once a batch
//!   ring ───────────────► pool ─────────► image ────────────────────────► kernel
//!    ▲                                      │
//!    └──── publish, once ◄── push ◄─────────┴ complete
//! ```
//!
//! A turn of the task does all of that for as many requests as there are. When there is nothing to
//! do it asks both sides to wake it (the ring's `req_event`; the image's descriptor is always
//! armed), and sleeps.
//!
//! A barrier holds the queue back: it starts when all that was taken before it has been answered,
//! and nothing is taken until it has been answered itself. Other queues of the disk go on, as in
//! Linux.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Backend, Channel, Instant, MapError, yield_now};
use parapet_ring::{Back, Peer, Violation};
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::{self, Segment, Status};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::grants::{Buffer, Missing, PERSISTENT_PAGES, Pool};
use crate::image::{
    Completion, Discard, Image, ImageQueue, Job, Limits, Operation, Sectors, Submitted,
};
use crate::journal::{Keep, Live, Log, Part, Tags, Unfit};
use crate::request::{
    Disk, Indirect, Layout, MAX_INDIRECT_SEGMENTS, Refusal, Request, Slot, Transfer, check,
};
use crate::stats::{Kind, QueueStats};
use crate::terms::{Terms, Turn};
use parapet_backend::limit::Limit;
use parapet_backend::polling::Polling;

/// The image that disks of place `P` are kept in.
pub type ImageOf<P> = dyn Image<Buffer<<P as parapet_hypervisor::seam::Grants>::Mapping>>;

/// Turns without sleep after which a wish to stop is heard.
const TURNS: u32 = 16;

/// Events without a request that are put up with in a row. An honest frontend sends one now and
/// then: for a request that was found before the event was.
const PATIENCE: u32 = 8;

/// How long events are held back from a frontend that goes on sending them for nothing (XSA-332,
/// XSA-391): twice as long each time, from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(100));

/// How often to look for pages that were not used for long.
const AGEING: Duration = Duration::from_secs(10);

/// An alarm that is due within this time of a request is looked at before every sleep, since it may
/// have come meanwhile; one that is not due is just waited for.
const SOON: Duration = Duration::from_secs(1);

/// How long a queue whose rate is used up sleeps before it looks again.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// What a queue is made of.
pub struct QueueSetup<P: Backend> {
    /// Where we run.
    pub place: P,
    /// Whose disk it is.
    pub peer: DomId,
    /// The ring's pages.
    pub ring: Peer<P::Mapping>,
    /// Our end of the frontend's event channel.
    pub channel: P::Channel,
    /// The disk's image.
    pub image: Arc<ImageOf<P>>,
    /// How large it is and how fast it may be used.
    pub terms: Arc<Terms>,
    /// How sectors can be forgotten, if the frontend was told that they can.
    pub discard: Option<Discard>,
    /// How many of the frontend's pages may stay mapped, at most [`PERSISTENT_PAGES`]; none if it
    /// does not have persistent grants.
    pub persistent: u16,
    /// How long to look for requests before sleeping, at most.
    pub poll: Duration,
    /// Where to count.
    pub stats: Arc<QueueStats>,
    /// How to complain. It outlives the queue: a frontend may connect as often as it likes.
    pub complaints: Limit,
}

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The frontend broke the ring.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The frontend's ring cannot be taken up.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The host failed us.
    #[error("the disk's image: {0}")]
    Image(#[from] io::Error),
}

/// A queue whose frontend lays out its slots as `L` says.
pub struct Queue<P: Backend, L: Layout> {
    // Fields are dropped in this order: first all I/O ends, then its memory goes.
    image: Box<dyn ImageQueue<Buffer<P::Mapping>>>,
    pool: Pool<P>,
    ring: Back<Peer<P::Mapping>, L::Slot, L::Response>,
    /// What is in flight, for who comes after us should we crash.
    log: Option<Log<Part>>,
    /// What another had taken and did not answer, the last first.
    again: Vec<Live>,
    channel: P::Channel,
    /// An event when the image has completions; none if it never makes us wait.
    interrupt: Option<P::Channel>,
    place: P,
    disk: Disk,
    terms: Arc<Terms>,
    /// Until when nothing is taken, since the disk's rate is used up.
    throttled: Option<Instant>,
    /// Our turn, since it was.
    turn: Option<Turn>,
    /// A while after there was something to do.
    soon: Instant,
    /// When to see which pages were not used for long.
    next_ageing: Instant,
    /// By tag: what is being done. As many as the ring has slots, so there is always a free one.
    requests: Box<[InFlight]>,
    tags: Tags,
    /// By tag: copies of the segments of indirect requests, [`SEGMENTS`] each.
    segments: Box<[Segment]>,
    barrier: Barrier,
    /// Requests of this batch whose pages are not mapped yet.
    deferred: Vec<(u32, Slot)>,
    /// Jobs for which the image had no room.
    waiting: Vec<Job<Buffer<P::Mapping>>>,
    /// Whether the image was given jobs since it was last kicked.
    unkicked: bool,
    /// What was over as soon as it was begun, and since when it was asked for: the clock is read
    /// once for all of a batch, when the frontend is told.
    at_once: Vec<(Does, Instant)>,
    /// Responses that were made since the last were published.
    unpublished: bool,
    polling: Polling,
    stats: Arc<QueueStats>,
    complaints: Limit,
}

/// A request that was taken and not answered.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    id: u64,
    operation: u8,
    since: Instant,
    sectors: Sectors,
    does: Does,
    /// Whether its segments were copied out of its indirect pages.
    fetched: bool,
}

const NO_SECTORS: Sectors = Sectors { first: 0, count: 0 };

/// Segments that a request may have.
const SEGMENTS: usize = MAX_INDIRECT_SEGMENTS as usize;

/// The request that comes after all before it and before all after it.
#[derive(Debug, Clone, Copy)]
enum Barrier {
    /// There is none.
    None,
    /// It waits for those before it.
    Waiting(u32, Slot),
    /// It is being carried out.
    Begun(u32),
}

/// What is being done for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Read,
    Write,
    /// What was there before is flushed; its own data are yet to be written, and flushed.
    FlushThenWrite,
    /// Its own data are written; they are yet to be flushed.
    WriteThenFlush,
    Flush,
    Discard,
}

impl Does {
    fn counted_in(self, stats: &QueueStats) -> &Kind {
        match self {
            Does::Read => &stats.reads,
            Does::Write => &stats.writes,
            Does::FlushThenWrite | Does::WriteThenFlush | Does::Flush => &stats.flushes,
            Does::Discard => &stats.discards,
        }
    }

    /// What comes after this, of a request with these sectors.
    fn next(self, sectors: Sectors) -> Option<(Does, Operation)> {
        match self {
            Does::FlushThenWrite => Some((Does::WriteThenFlush, Operation::Write(sectors))),
            Does::WriteThenFlush => Some((Does::Flush, Operation::Flush)),
            Does::Read | Does::Write | Does::Flush | Does::Discard => None,
        }
    }
}

impl std::fmt::Display for Does {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Does::Read => "read",
            Does::Write | Does::WriteThenFlush => "write",
            Does::FlushThenWrite | Does::Flush => "flush",
            Does::Discard => "discard",
        })
    }
}

/// What ended a wait.
enum Wake {
    /// There are requests or completions.
    Work,
    /// The frontend sent an event for nothing.
    Spurious,
    /// It is the time that we wanted to be woken at.
    Alarm,
    /// The device wants the queue to end.
    Stop,
}

impl<P: Backend, L: Layout> Queue<P, L> {
    /// Takes up the frontend's ring: at its beginning, or where a backend before us left it that
    /// had answered all that it took.
    ///
    /// # Errors
    /// The ring is too small, or the host does not give what the image needs.
    pub fn new(setup: QueueSetup<P>) -> Result<Self, QueueError> {
        Self::keeping(setup, Keep::No)
    }

    /// Takes up the frontend's ring, with a log of what is in flight; also after a crash, when
    /// `keep` has the log of who crashed.
    ///
    /// # Errors
    /// As of [`Queue::new`], and for a log that makes no sense.
    pub fn keeping(setup: QueueSetup<P>, keep: Keep) -> Result<Self, QueueError> {
        let QueueSetup {
            place,
            peer,
            ring,
            channel,
            image,
            terms,
            discard,
            persistent,
            poll,
            stats,
            complaints,
        } = setup;
        let (ring, log, again) = keep.take_up::<_, L::Slot, L::Response>(ring)?;
        if !again.is_empty() {
            complaints.info(place.now(), || {
                format!(
                    "{} requests were in flight, and are done again",
                    again.len()
                )
            });
        }
        let slots = ring.slots();
        let persistent = persistent.min(PERSISTENT_PAGES);
        let queue = image.open_queue(Limits {
            depth: u16::try_from(slots).unwrap_or(u16::MAX),
            segments: SEGMENTS,
            buffers: persistent,
        })?;
        let interrupt = match queue.descriptor() {
            Some(descriptor) => Some(place.bind_descriptor(descriptor)?),
            None => None,
        };
        let nothing = InFlight {
            id: 0,
            operation: 0,
            since: Instant::default(),
            sectors: NO_SECTORS,
            does: Does::Flush,
            fetched: false,
        };
        let segments = <[Segment]>::new_box_zeroed_with_elems(slots as usize * SEGMENTS)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Queue {
            image: queue,
            pool: Pool::new(place.clone(), peer, persistent),
            ring,
            channel,
            interrupt,
            disk: Disk {
                sectors: terms.sectors(),
                read_only: image.read_only(),
                discard,
            },
            terms,
            throttled: None,
            turn: None,
            soon: place.now(),
            next_ageing: place.now().after(AGEING),
            segments,
            barrier: Barrier::None,
            requests: vec![nothing; slots as usize].into(),
            tags: Tags::new(slots, |tag| again.iter().any(|live| live.tag == tag)),
            log,
            again,
            deferred: Vec::new(),
            waiting: Vec::new(),
            unkicked: false,
            at_once: Vec::with_capacity(slots as usize),
            unpublished: false,
            polling: Polling::new(poll),
            stats,
            complaints,
            place,
        })
    }

    /// Serves the ring until `stop` is ready, then answers what it has taken.
    ///
    /// # Errors
    /// The frontend broke the ring, or the host failed. What is in flight is waited for, and not
    /// answered.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), QueueError> {
        if self.log.is_some() {
            // Who was here before us may have published responses and not come to say so.
            self.channel.notify();
        }
        let mut outcome = self.work(stop).await;
        if outcome.is_ok() {
            outcome = self.drain().await;
        }
        if outcome.is_err() {
            self.abandon().await;
        }
        outcome
    }

    /// Serves the ring until `stop` is ready.
    async fn work(&mut self, stop: impl Future<Output = ()> + Send) -> Result<(), QueueError> {
        let mut stop = pin!(stop);
        // Kept from sleep to sleep, since it is nearly always for the same time.
        let mut alarm = pin!(None);
        let mut alarm_at = None;
        // Whether it will wake us though it is not looked at when we go to sleep, which costs a look
        // at the clock and at the timers.
        let mut is_set = false;
        let mut turns = 0u32;
        let mut spurious = 0;
        loop {
            let mut again = self.turn()?;
            if again {
                spurious = 0;
                self.polling.found();
            } else if self.unkicked || !self.waiting.is_empty() {
                // The host is short of something for a moment.
                again = true;
            } else if self.throttled.is_none() {
                again = self.polling.look_again(|| self.place.now());
            }
            if again {
                // Others first: a frontend on this processor that answers what it just got needs
                // no event, since we have not gone to sleep.
                yield_now().await;
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(TURNS) && is_ready(stop.as_mut()).await {
                    return Ok(());
                }
                continue;
            }
            self.stats.sleeps.add(1);
            if self.throttled.is_some() {
                self.stats.throttled.add(1);
            }
            let since = self.polling.is_measured().then(|| self.place.now());
            if alarm_at != self.alarm() {
                alarm_at = self.alarm();
                alarm.set(alarm_at.map(|when| self.place.sleep_until(when)));
                is_set = false;
            }
            let mut looks = !is_set || alarm_at.is_some_and(|when| when <= self.soon);
            let wake = poll_fn(|cx| {
                let wake = self.poll_wake(stop.as_mut(), cx);
                if wake.is_pending()
                    && std::mem::replace(&mut looks, true)
                    && let Some(alarm) = alarm.as_mut().as_pin_mut()
                {
                    is_set = true;
                    return alarm.poll(cx).map(|()| Ok(Wake::Alarm));
                }
                wake
            });
            let wake = wake.await?;
            // After any other nobody knows how late it is.
            is_set &= matches!(wake, Wake::Work);
            match wake {
                Wake::Work => {
                    if let Some(since) = since {
                        self.polling.slept(self.place.now().since(since));
                    }
                }
                Wake::Stop => return Ok(()),
                Wake::Alarm => {
                    alarm_at = None;
                    alarm.set(None);
                    self.age(self.place.now());
                }
                Wake::Spurious => {
                    spurious += 1;
                    self.stats.spurious.add(1);
                    self.hold_back(spurious).await;
                }
            }
        }
    }

    /// When to be woken though nothing happens.
    fn alarm(&self) -> Option<Instant> {
        let ageing = (self.pool.persistent() > 0).then_some(self.next_ageing);
        match (self.throttled, ageing) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Unmaps the pages that were not used for long, now and then.
    fn age(&mut self, now: Instant) {
        if now >= self.next_ageing {
            self.next_ageing = now.after(AGEING);
            self.pool.age(&mut *self.image);
            let left = self.pool.persistent() as u64;
            self.stats.persistent_pages.set(left);
        }
    }

    /// Does all that there is to do. Whether there was anything.
    fn turn(&mut self) -> Result<bool, QueueError> {
        let taken = self.take()?;
        let completed = self.finish_some()?;
        Ok(taken || completed)
    }

    /// Does all that there is to do for requests that were taken. Whether any ended.
    fn finish_some(&mut self) -> Result<bool, QueueError> {
        let completed = self.complete();
        for job in std::mem::take(&mut self.waiting) {
            self.submit(job);
        }
        // One of those may have been the last that it waited for.
        self.begin_barrier();
        if self.unkicked {
            match self.image.kick() {
                Ok(()) => self.unkicked = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.unpublished {
            // Before the frontend learns that it may end its grants.
            self.pool.settle();
            if !self.at_once.is_empty() {
                let now = self.place.now();
                for (does, since) in self.at_once.drain(..) {
                    let kind = does.counted_in(&self.stats);
                    kind.latencies.record(now.since(since));
                }
            }
            self.unpublished = false;
            let ring = &mut self.ring;
            let notify = match &mut self.log {
                Some(log) => log.publish(|| ring.publish()),
                None => ring.publish(),
            };
            self.tags.publish();
            if notify {
                self.stats.notifications.add(1);
                self.channel.notify();
            }
        }
        Ok(completed)
    }

    /// Takes the requests of one batch, and starts them.
    fn take(&mut self) -> Result<bool, Violation> {
        // Not more than an honest frontend can have: one that adds as fast as we take must not
        // keep us here.
        let batch = self.ring.slots();
        self.disk.sectors = self.terms.sectors();
        self.throttled = None;
        let limited = self.terms.are_limited();
        let mut taken = false;
        let mut now = None;
        for _ in 0..batch {
            // What another had taken was let through by the rate then, and a queue that ends does
            // not wait for its turn.
            let waits = limited && self.again.is_empty();
            if self.is_held_back() || (waits && self.is_throttled(&mut now)) {
                break;
            }
            let Some((tag, slot)) = self.next_request()? else {
                break;
            };
            taken = true;
            let slot = L::read(slot);
            let since = *now.get_or_insert_with(|| self.place.now());
            if let Some(request) = self.requests.get_mut(tag as usize) {
                *request = InFlight {
                    id: slot.id,
                    operation: slot.answered_as(),
                    since,
                    sectors: NO_SECTORS,
                    does: Does::Flush,
                    fetched: false,
                };
            }
            if limited {
                let bytes = bytes_of(&slot, &self.disk);
                self.terms.charge(since, bytes, self.turn.take());
            }
            if slot.operation == blkif::Operation::WriteBarrier as u8
                && let Ok(Request::Barrier(_)) = check(&slot, &self.disk)
            {
                self.barrier = Barrier::Waiting(tag, slot);
            } else if let Err(Missing::Unmapped) = self.start(tag, &slot) {
                self.deferred.push((tag, slot));
            }
        }
        self.map_and_start();
        if let Some(now) = now {
            self.soon = now.after(SOON);
            self.age(now);
        }
        Ok(taken)
    }

    /// Whether the disk's rate is used up and it is not our turn yet.
    fn is_throttled(&mut self, now: &mut Option<Instant>) -> bool {
        let now = *now.get_or_insert_with(|| self.place.now());
        self.turn = self.turn.take_if(|turn| self.terms.honours(turn));
        if self.turn.is_none() {
            self.turn = self.terms.wait(now);
        }
        let waits = self.turn.filter(|turn| turn.when > now);
        // The operator may change the rate meanwhile.
        self.throttled = waits.map(|turn| turn.when.min(now.after(LONGEST_WAIT)));
        waits.is_some()
    }

    /// The next request to begin, if there is one and there is room for it.
    #[inline]
    fn next_request(&mut self) -> Result<Option<(u32, L::Slot)>, Violation> {
        if let Some(Live { tag, slot, .. }) = self.again.pop() {
            // No layout has larger ones.
            let slot = L::Slot::read_from_prefix(&slot);
            return Ok(slot.ok().map(|(slot, _)| (tag, slot)));
        }
        if !self.tags.any() {
            return Ok(None);
        }
        let Some(slot) = self.ring.take()? else {
            return Ok(None);
        };
        Ok(self.tags.take().map(|tag| {
            if let Some(log) = &mut self.log {
                log.take(tag, slot.as_bytes());
            }
            (tag, slot)
        }))
    }

    /// Whether nothing may be taken before a barrier has been answered.
    fn is_held_back(&self) -> bool {
        !matches!(self.barrier, Barrier::None)
    }

    /// How many requests were begun and not answered.
    fn in_flight(&self) -> usize {
        self.tags.in_flight(self.requests.len()) - self.again.len()
    }

    /// Starts the barrier that waits, if all before it was answered.
    fn begin_barrier(&mut self) {
        let Barrier::Waiting(tag, slot) = self.barrier else {
            return;
        };
        if self.in_flight() > 1 {
            return;
        }
        self.barrier = Barrier::Begun(tag);
        if let Err(Missing::Unmapped) = self.start(tag, &slot) {
            self.deferred.push((tag, slot));
            self.map_and_start();
        }
    }

    /// Maps the pages of the requests that had to wait for that, and starts them.
    fn map_and_start(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let mut deferred = std::mem::take(&mut self.deferred);
        let disk = self.disk;
        let indirect = deferred
            .iter()
            .filter_map(|(tag, slot)| match check(slot, &disk) {
                Ok(Request::Indirect(indirect)) => Some((*tag, indirect)),
                _ => None,
            });
        let tables = indirect.clone().flat_map(|(_, indirect)| indirect.pages);
        let tables = tables.map(|gref| (*gref, Access::ReadOnly));
        let mut mapped = self.pool.map(tables, &mut *self.image);
        for (tag, indirect) in indirect {
            // What went wrong is found again when it is started.
            let _ = self.fetch(tag, &indirect);
        }
        let (requests, segments) = (&self.requests, &self.segments);
        let wanted = deferred.iter().flat_map(|(tag, slot)| {
            let request = match check(slot, &disk) {
                Ok(Request::Indirect(indirect)) => match requests.get(*tag as usize) {
                    Some(InFlight { fetched: true, .. }) => {
                        indirect.check(copied(segments, *tag, &indirect), &disk)
                    }
                    _ => Ok(Request::Flush(None)),
                },
                direct => direct,
            };
            let (segments, access) = match request {
                Ok(Request::Read(transfer)) => (transfer.segments, Access::ReadWrite),
                Ok(
                    Request::Write(transfer)
                    | Request::Flush(Some(transfer))
                    | Request::Barrier(Some(transfer)),
                ) => (transfer.segments, Access::ReadOnly),
                Ok(_) | Err(_) => (&[] as &[Segment], Access::ReadOnly),
            };
            segments.iter().map(move |segment| (segment.gref, access))
        });
        mapped += self.pool.map(wanted, &mut *self.image);
        self.stats.maps.add(mapped as u64);
        self.stats
            .persistent_pages
            .set(self.pool.persistent() as u64);
        for (tag, slot) in deferred.drain(..) {
            if let Err(missing) = self.start(tag, &slot) {
                self.unmappable(tag, missing);
            }
        }
        self.deferred = deferred;
        self.pool.started();
    }

    /// Copies the segments of an indirect request out of its pages, once.
    fn fetch(&mut self, tag: u32, indirect: &Indirect<'_>) -> Result<(), Missing> {
        let Some(request) = self.requests.get_mut(tag as usize) else {
            return Ok(());
        };
        if request.fetched {
            return Ok(());
        }
        request.does = match indirect.writes {
            true => Does::Write,
            false => Does::Read,
        };
        let start = tag as usize * SEGMENTS;
        if let Some(to) = self.segments.get_mut(start..start + indirect.segments) {
            self.pool.copy_out(indirect.pages, to.as_mut_bytes())?;
            request.fetched = true;
        }
        Ok(())
    }

    /// Starts a request, answers it if it is refused, or says which memory is missing.
    fn start(&mut self, tag: u32, slot: &Slot) -> Result<(), Missing> {
        let checked = match check(slot, &self.disk) {
            Ok(Request::Indirect(indirect)) => match self.fetch(tag, &indirect) {
                Ok(()) => indirect.check(copied(&self.segments, tag, &indirect), &self.disk),
                Err(refused @ Missing::Refused(_)) => {
                    self.unmappable(tag, refused);
                    return Ok(());
                }
                Err(Missing::Unmapped) => return Err(Missing::Unmapped),
            },
            checked => checked,
        };
        const NO_MEMORY: &[Segment] = &[];
        let (does, sectors, operation, segments) = match checked {
            Ok(Request::Read(Transfer { sectors, segments })) => {
                (Does::Read, sectors, Operation::Read(sectors), segments)
            }
            Ok(Request::Write(Transfer { sectors, segments })) => {
                (Does::Write, sectors, Operation::Write(sectors), segments)
            }
            Ok(
                Request::Flush(Some(Transfer { sectors, segments }))
                | Request::Barrier(Some(Transfer { sectors, segments })),
            ) => (Does::FlushThenWrite, sectors, Operation::Flush, segments),
            Ok(Request::Discard { sectors, secure }) => {
                let discard = Operation::Discard { sectors, secure };
                (Does::Discard, sectors, discard, NO_MEMORY)
            }
            // An indirect request inside of another there is not.
            Ok(Request::Flush(None) | Request::Barrier(None) | Request::Indirect(_)) => {
                (Does::Flush, NO_SECTORS, Operation::Flush, NO_MEMORY)
            }
            Err(refusal) => {
                self.refuse(tag, refusal);
                return Ok(());
            }
        };
        if let Some(request) = self.requests.get_mut(tag as usize) {
            request.does = does;
            request.sectors = sectors;
        }
        let access = match does {
            Does::Read => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        let lease = match self.pool.buffer(segments, access) {
            Err(refused @ Missing::Refused(_)) => {
                self.unmappable(tag, refused);
                return Ok(());
            }
            buffer => buffer?,
        };
        if does == Does::Discard && sectors.count == 0 {
            let result = Ok(());
            self.finish(Completion { tag, result, lease }, None);
            return Ok(());
        }
        self.submit(Job {
            tag,
            operation,
            lease,
        });
        Ok(())
    }

    fn submit(&mut self, job: Job<Buffer<P::Mapping>>) {
        match self.image.submit(job) {
            Submitted::Started => self.unkicked = true,
            Submitted::Done(completion) => self.finish(completion, None),
            Submitted::Full(job) => self.waiting.push(job),
        }
    }

    /// Takes what the image has completed. Whether that was anything.
    fn complete(&mut self) -> bool {
        let mut now = None;
        while let Some(completion) = self.image.complete() {
            let now = *now.get_or_insert_with(|| self.place.now());
            self.finish(completion, Some(now));
        }
        if let Some(now) = now {
            self.soon = now.after(SOON);
        }
        now.is_some()
    }

    /// Answers a request whose job is over, or begins its second part.
    fn finish(&mut self, completion: Completion<Buffer<P::Mapping>>, now: Option<Instant>) {
        let Completion { tag, result, lease } = completion;
        let Some(request) = self.requests.get_mut(tag as usize) else {
            return self.pool.recycle(lease);
        };
        if let Some((does, operation)) = request.does.next(request.sectors)
            && result.is_ok()
        {
            request.does = does;
            return self.submit(Job {
                tag,
                operation,
                lease,
            });
        }
        self.pool.recycle(lease);
        let request = *request;
        let kind = request.does.counted_in(&self.stats);
        match result {
            Ok(()) => {
                kind.operations.add(1);
                kind.bytes.add(request.sectors.bytes());
                match now {
                    Some(now) => kind.latencies.record(now.since(request.since)),
                    None => self.at_once.push((request.does, request.since)),
                }
                self.respond(tag, Status::OKAY);
            }
            Err(error) => {
                kind.errors.add(1);
                if let Some(errno) = error.raw_os_error() {
                    self.stats.host_error.store(errno, Ordering::Relaxed);
                }
                self.complaints.warn(self.place.now(), || {
                    let (does, bytes) = (request.does, request.sectors.bytes());
                    format!("a {does} of {bytes} bytes failed: {error}")
                });
                self.respond(tag, Status::ERROR);
            }
        }
    }

    fn refuse(&mut self, tag: u32, refusal: Refusal) {
        self.stats.refused.add(1);
        let now = self.place.now();
        self.complaints
            .debug(now, || format!("a request was refused: {refusal}"));
        self.respond(tag, refusal.status());
    }

    fn unmappable(&mut self, tag: u32, missing: Missing) {
        let Some(request) = self.requests.get(tag as usize) else {
            return;
        };
        request.does.counted_in(&self.stats).errors.add(1);
        let now = self.place.now();
        match missing {
            Missing::Refused(error) if MapError::is_peers_fault(&error) => {
                self.complaints.debug(now, || error.to_string());
            }
            Missing::Refused(error) => self.complaints.warn(now, || error.to_string()),
            Missing::Unmapped => self.complaints.warn(now, || "a page was not mapped"),
        }
        self.respond(tag, Status::ERROR);
    }

    fn respond(&mut self, tag: u32, status: Status) {
        if let Some(request) = self.requests.get(tag as usize) {
            let response = L::response(request.id, request.operation, status);
            if let Some(log) = &mut self.log {
                log.answer(tag);
            }
            let pushed = self.ring.push(&response);
            debug_assert!(
                pushed.is_ok(),
                "a request that was taken has room for its answer"
            );
            self.tags.answer(tag);
            if matches!(self.barrier, Barrier::Begun(barrier) if barrier == tag) {
                self.barrier = Barrier::None;
            }
            self.unpublished = true;
        }
    }

    /// Ready when there may be work, or none ever again.
    fn poll_wake(
        &mut self,
        stop: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Wake, QueueError>> {
        if stop.poll(cx).is_ready() {
            return Poll::Ready(Ok(Wake::Stop));
        }
        // Else until the image has done what there is, or it is time: the ring may well have more.
        if !self.is_held_back() && self.throttled.is_none() {
            // The event first: what it announced is found by arming, and what comes later makes
            // another.
            let event = self.channel.poll_wait(cx).is_ready();
            if self.ring.arm()? {
                return Poll::Ready(Ok(Wake::Work));
            }
            if event {
                return Poll::Ready(Ok(Wake::Spurious));
            }
        }
        self.poll_interrupt(cx).map(|()| Ok(Wake::Work))
    }

    fn poll_interrupt(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.interrupt {
            Some(interrupt) => interrupt.poll_wait(cx),
            None => Poll::Pending,
        }
    }

    /// Keeps away for a while from a frontend that sends events for nothing.
    async fn hold_back(&mut self, spurious: u32) {
        if let Some(times) = spurious.checked_sub(PATIENCE) {
            let (first, longest) = BACKOFF;
            let pause = first.saturating_mul(1 << times.min(16)).min(longest);
            self.channel.mask();
            self.place.sleep(pause).await;
            self.channel.unmask();
        } else {
            yield_now().await;
        }
    }

    /// Answers everything that was taken, and takes no more.
    async fn drain(&mut self) -> Result<(), QueueError> {
        while self.ring.unanswered() > 0 {
            if !self.again.is_empty() {
                // What another had taken counts as ours.
                self.take()?;
            }
            if self.finish_some()? || self.unkicked || !self.waiting.is_empty() {
                yield_now().await;
            } else if self.ring.unanswered() > 0 {
                poll_fn(|cx| self.poll_interrupt(cx)).await;
            }
        }
        Ok(())
    }

    /// Waits until the image has let go of everything, and answers nothing. An image that is
    /// dropped with jobs in flight waits for them too, but with the thread that others share.
    async fn abandon(&mut self) {
        let barrier = matches!(self.barrier, Barrier::Waiting(..));
        let untouched = self.waiting.len() + self.deferred.len() + usize::from(barrier);
        let mut in_flight = self.in_flight() - untouched;
        while in_flight > 0 {
            if let Some(completion) = self.image.complete() {
                self.pool.recycle(completion.lease);
                in_flight -= 1;
                continue;
            }
            match self.image.kick() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    yield_now().await;
                    continue;
                }
                // It will have to be dropped as it is.
                Err(_) => return,
            }
            poll_fn(|cx| self.poll_interrupt(cx)).await;
        }
    }
}

impl<P: Backend, L: Layout> Drop for Queue<P, L> {
    fn drop(&mut self) {
        // The pool unmaps them next.
        self.stats.persistent_pages.set(0);
    }
}

/// What a request counts in the disk's rate of bytes. Of an indirect one it is not known yet how
/// much of each page it wants: all, if its frontend is any good.
fn bytes_of(slot: &Slot, disk: &Disk) -> u64 {
    match check(slot, disk) {
        Ok(
            Request::Read(transfer)
            | Request::Write(transfer)
            | Request::Flush(Some(transfer))
            | Request::Barrier(Some(transfer)),
        ) => transfer.sectors.bytes(),
        Ok(Request::Indirect(indirect)) => (indirect.segments * PAGE_SIZE) as u64,
        Ok(Request::Flush(None) | Request::Barrier(None) | Request::Discard { .. }) | Err(_) => 0,
    }
}

/// Those of `segments` that were copied for an indirect request.
fn copied<'a>(segments: &'a [Segment], tag: u32, indirect: &Indirect<'_>) -> &'a [Segment] {
    let start = tag as usize * SEGMENTS;
    segments
        .get(start..start + indirect.segments)
        .unwrap_or_default()
}

/// Whether `future` is ready now.
async fn is_ready(mut future: Pin<&mut impl Future<Output = ()>>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}
