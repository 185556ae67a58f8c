//! One queue: a ring, its event channel, and what is outstanding on it.
//!
//! This is the interface of a unikernel and of a benchmark: nobody else is involved, and on the
//! way of a request there is no allocation, no lock and no system call but the notification, if
//! the backend wants one.
//!
//! ```text
//!   submit ─> slot ─┐                             ┌─> complete
//!   submit ─> slot ─┼─ publish ──> backend ──> wait (poll_ready)
//!   submit ─> slot ─┘  one notification, if any
//! ```
//!
//! All that the queue knows of an outstanding request is in its own memory. From the ring it reads
//! nothing but responses, and of these it believes nothing: the id must be one that is outstanding,
//! and the operation the one that was asked for. An id is never used twice, so that an answer to
//! an earlier user of the same slot is told from one to the present user (XSA-376, XSA-405).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll};

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{
    Access, Channel, EventError, Grant, GrantError, Guest, OutOfMemory, Pages, StillMapped,
};
use parapet_ring::{Front, FrontLink, Full, Own, TooSmall};
use parapet_xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, Operation, Status, native::Response};
use parapet_xen_sys::{DomId, GrantRef, Port};

use crate::buffer::{Buffer, Route};
use crate::request::{Direction, Erase, Slot, Transfer, Unfit, Work};

/// The most segments that a request of ours has, whatever the backend would take: as many as
/// Linux's backend does. They fit half a page.
pub const MAX_SEGMENTS: usize = 256;

/// What the backend did that no honest one does. It is the end of the queue: from then on nothing
/// else comes out of it, and the device is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It broke the ring.
    #[error(transparent)]
    Ring(#[from] parapet_ring::Violation),
    /// It answered a request that is not outstanding: never made, or answered before.
    #[error("the backend answered request {id:#x}, which is not outstanding")]
    NotOutstanding {
        /// The response's id.
        id: u64,
    },
    /// It answered something else than was asked.
    #[error("the backend answered operation {answered} to a request for {asked:?}")]
    WrongOperation {
        /// The request's operation.
        asked: Operation,
        /// The response's.
        answered: u8,
    },
}

/// Why a queue could not be made: our own domain's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A ring has a power of two of pages, from 1 to 256.
    #[error("a ring of {0} pages: there can be 1, 2, 4 and so on up to 256")]
    RingPages(usize),
    /// There is no memory for the ring.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The ring cannot be granted.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// There is no event channel.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The ring has not even one slot.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
}

/// Why a request was not taken. The queue is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests are outstanding as there are slots: complete some first.
    #[error(transparent)]
    Full(#[from] Full),
    /// No slot can hold it: the caller's mistake.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The queue has ended.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// How the backend failed a request. It says no more than that; the queue goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It did not work: what was read or written is undefined.
    #[error("the backend answered with status {}", .0.0)]
    Io(Status),
    /// The backend does not do this.
    #[error("the backend does not support the operation")]
    Unsupported,
}

impl Failure {
    /// What a response's status means. A status that nobody knows is a failure too.
    pub(crate) fn check(status: Status) -> Result<(), Failure> {
        match status {
            Status::OKAY => Ok(()),
            Status::EOPNOTSUPP => Err(Failure::Unsupported),
            other => Err(Failure::Io(other)),
        }
    }
}

/// A request that has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// What the caller named it by.
    pub token: u64,
    /// How it went.
    pub result: Result<(), Failure>,
}

/// What is remembered of a request until it is answered.
struct Outstanding<G: Guest> {
    id: u64,
    token: u64,
    work: Work<G>,
}

/// One queue of a disk: the frontend's end.
///
/// Dropping it closes the event channel and ends the grants of the ring and of every buffer that
/// only an outstanding request still held; pages that the backend has mapped go to quarantine.
pub struct Queue<G: Guest> {
    link: FrontLink<Own<G::Pages>, Slot, Response, G::Channel>,
    grant: G::Grant,
    route: Route,
    /// The most segments that the backend takes.
    segments: usize,
    /// Where segments go that do not fit a slot: a page for each place in `outstanding`, granted
    /// for good.
    indirect: Option<(G::Pages, G::Grant)>,
    /// By the low bits of their ids.
    outstanding: Box<[Option<Outstanding<G>>]>,
    /// The vacant places in `outstanding`. The latest comes first, so that few are in use.
    vacant: Vec<u16>,
    /// How many ids were given.
    given: u64,
    violation: Option<Violation>,
}

/// An id is the place in `outstanding`, and above it a count that makes it unique.
const PLACE_BITS: u32 = 16;

impl<G: Guest> Queue<G> {
    /// Makes a ring of `pages` pages, grants it to domain `backend`, and allocates a port for it to
    /// bind to.
    ///
    /// # Errors
    /// Our own domain's: see [`QueueError`].
    pub fn new(guest: &G, backend: DomId, pages: usize) -> Result<Self, QueueError> {
        if !pages.is_power_of_two() || pages > 256 {
            return Err(QueueError::RingPages(pages));
        }
        let memory = guest.allocate(pages)?;
        let ring = Front::new(Own(memory.clone()))?;
        let grant = guest.grant(&memory, backend, Access::ReadWrite)?;
        let channel = guest.alloc_unbound(backend)?;
        // 256 pages have 8192 slots.
        let slots = ring.slots() as u16;
        Ok(Queue {
            link: FrontLink::new(ring, channel),
            grant,
            route: Route {
                frontend: guest.domid(),
                backend,
            },
            segments: MAX_SEGMENTS_PER_REQUEST,
            indirect: None,
            outstanding: (0..slots).map(|_| None).collect(),
            vacant: (0..slots).rev().collect(),
            given: 0,
            violation: None,
        })
    }

    /// Lets requests have up to `segments` segments (at most [`MAX_SEGMENTS`]), of which the
    /// backend has said that it takes them: `feature-max-indirect-segments`. Without this, and if
    /// it says less than a slot holds, they have 11.
    ///
    /// # Errors
    /// There is no memory for them, or it cannot be granted; requests then stay as short as they
    /// were.
    pub fn allow_segments(&mut self, guest: &G, segments: usize) -> Result<(), QueueError> {
        let segments = segments.min(MAX_SEGMENTS);
        if segments <= MAX_SEGMENTS_PER_REQUEST {
            self.segments = MAX_SEGMENTS_PER_REQUEST;
            return Ok(());
        }
        if self.indirect.is_none() {
            let pages = guest.allocate(self.capacity())?;
            // For writing too: a backend maps what it keeps mapped once, for whatever may come.
            let grant = guest.grant(&pages, self.route.backend, Access::ReadWrite)?;
            self.indirect = Some((pages, grant));
        }
        self.segments = segments;
        Ok(())
    }

    /// How many segments a request can have: pages that it reaches into.
    #[inline]
    pub fn max_segments(&self) -> usize {
        self.segments
    }

    /// The references of the ring's pages, in order: `ring-ref`.
    pub fn ring_refs(&self) -> &[GrantRef] {
        self.grant.refs()
    }

    /// The port that waits for the backend: `event-channel`.
    pub fn port(&self) -> Port {
        self.link.channel.port()
    }

    /// The domain that serves it.
    pub fn backend(&self) -> DomId {
        self.route.backend
    }

    pub(crate) fn route(&self) -> Route {
        self.route
    }

    /// How many requests can be outstanding.
    pub fn capacity(&self) -> usize {
        self.outstanding.len()
    }

    /// How many more requests can be submitted now.
    pub fn free(&self) -> usize {
        self.vacant.len()
    }

    /// The tokens of all requests that are outstanding, in no order.
    pub fn outstanding(&self) -> impl Iterator<Item = u64> {
        self.outstanding
            .iter()
            .flatten()
            .map(|request| request.token)
    }

    /// Asks to read or write the disk's sectors from `sector` on, as many as the bytes `range` of
    /// `buffer` are, in one request. It is named by `token` when it completes. The backend sees it
    /// when it is published.
    ///
    /// The disk's size is not known here: a request beyond its end comes back as failed.
    ///
    /// # Errors
    /// See [`SubmitError`].
    #[inline]
    pub fn submit(
        &mut self,
        token: u64,
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<(), SubmitError> {
        let transfer = Transfer::new(direction, sector, buffer, range, self.route)?;
        self.enqueue(token, Work::Transfer(transfer))
    }

    /// Asks to write as [`Queue::submit`] does, after everything that was submitted before and
    /// ahead of everything after, and durably. Only for a backend that offers it
    /// (`feature-barrier`).
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit_barrier(
        &mut self,
        token: u64,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<(), SubmitError> {
        let write = Transfer::new(Direction::Write, sector, buffer, range, self.route)?;
        self.enqueue(token, Work::Barrier(Some(write)))
    }

    /// Asks to do away with `count` sectors from `sector` on. Only for a backend that offers it
    /// (`feature-discard`, `discard-secure`).
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit_discard(
        &mut self,
        token: u64,
        sector: u64,
        count: u64,
        how: Erase,
    ) -> Result<(), SubmitError> {
        self.enqueue(token, Work::Discard { sector, count, how })
    }

    /// Asks to make durable all writes that have completed.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit_flush(&mut self, token: u64) -> Result<(), SubmitError> {
        self.enqueue(token, Work::Flush)
    }

    #[inline]
    pub(crate) fn enqueue(&mut self, token: u64, work: Work<G>) -> Result<(), SubmitError> {
        if let Some(violation) = self.violation {
            return Err(violation.into());
        }
        let &place = self.vacant.last().ok_or(Full)?;
        let id = self.given << PLACE_BITS | u64::from(place);
        let slot = self.slot(&work, place, id).ok_or(Unfit::TooLong {
            pages: work.segments(),
            most: self.segments,
        })?;
        self.link.ring.push(&slot)?;
        self.given = self.given.wrapping_add(1);
        self.vacant.pop();
        if let Some(vacancy) = self.outstanding.get_mut(usize::from(place)) {
            *vacancy = Some(Outstanding { id, token, work });
        }
        Ok(())
    }

    /// The slot for `work` in that place, if a request can hold it.
    #[inline]
    fn slot(&self, work: &Work<G>, place: u16, id: u64) -> Option<Slot> {
        if work.segments() <= MAX_SEGMENTS_PER_REQUEST {
            return work.slot(id);
        }
        if work.segments() > self.segments {
            return None;
        }
        let (pages, grant) = self.indirect.as_ref()?;
        let page = pages.view();
        let page = page.slice(usize::from(place) * PAGE_SIZE, PAGE_SIZE).ok()?;
        let gref = grant.refs().get(usize::from(place))?;
        work.indirect_slot(id, page, *gref)
    }

    /// Lets the backend see all that was submitted, and notifies it if it asked for that. True: it
    /// did. Submit many, then publish once.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.link.publish()
    }

    /// Takes the next completion, if there is one. It never waits.
    ///
    /// # Errors
    /// The backend broke the protocol, now or earlier. What is outstanding will not complete.
    #[inline]
    pub fn complete(&mut self) -> Result<Option<Completion>, Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        let taken = self.link.ring.take().map_err(Violation::from);
        let checked = taken.and_then(|response| response.map(|r| self.check(&r)).transpose());
        checked.inspect_err(|violation| self.violation = Some(*violation))
    }

    /// Matches a response with the request that it answers.
    #[inline]
    fn check(&mut self, response: &Response) -> Result<Completion, Violation> {
        let id = response.id;
        let stray = Violation::NotOutstanding { id };
        let place = (id & ((1 << PLACE_BITS) - 1)) as u16;
        let entry = self.outstanding.get_mut(usize::from(place)).ok_or(stray)?;
        let request = entry.take_if(|request| request.id == id).ok_or(stray)?;
        let asked = request.work.operation();
        // Backends answer an indirect request by the operation in it, as Linux's does.
        if response.operation != asked as u8 {
            let answered = response.operation;
            // It stays outstanding: nobody knows whether the backend has done with its memory.
            *entry = Some(request);
            return Err(Violation::WrongOperation { asked, answered });
        }
        self.vacant.push(place);
        Ok(Completion {
            token: request.token,
            result: Failure::check(response.status),
        })
    }

    /// All that is outstanding, by its token and in the order in which it was submitted. Nothing
    /// is from then on: whoever asks for this has seen the backend leave.
    pub(crate) fn take_outstanding(&mut self) -> Vec<(u64, Work<G>)> {
        let mut taken: Vec<_> = self
            .outstanding
            .iter_mut()
            .filter_map(Option::take)
            .collect();
        taken.sort_by_key(|request| request.id >> PLACE_BITS);
        let named = |request: Outstanding<G>| (request.token, request.work);
        taken.into_iter().map(named).collect()
    }

    /// Whether anything was answered, ever.
    pub(crate) fn has_answered(&self) -> bool {
        self.given > self.outstanding.iter().flatten().count() as u64
    }

    /// Ends the queue. How many of its own pages the backend has still mapped, if that can be told.
    pub(crate) fn end(self) -> usize {
        let Queue {
            grant, indirect, ..
        } = self;
        let indirect = indirect.map(|(_, grant)| grant);
        let grants = [Some(grant), indirect].into_iter().flatten();
        let held = grants.filter_map(|grant| grant.end().err());
        held.map(|StillMapped(pages)| pages).sum()
    }

    /// Ready when there is a completion to take; else `cx` is woken when there may be.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Violation>> {
        if let Some(violation) = self.violation {
            return Poll::Ready(Err(violation));
        }
        self.link.poll_ready(cx).map_err(|violation| {
            let violation = Violation::Ring(violation);
            self.violation = Some(violation);
            violation
        })
    }

    /// Waits until there is a completion to take.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub async fn wait(&mut self) -> Result<(), Violation> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }
}

impl<G: Guest> fmt::Debug for Queue<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("backend", &self.route.backend)
            .field("ring", &self.link.ring)
            .field("violation", &self.violation)
            .finish_non_exhaustive()
    }
}
