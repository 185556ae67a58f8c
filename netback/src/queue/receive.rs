//! From the network into the buffers that the guest has posted.
//!
//! A buffer in a page that stays mapped is written straight away; into any other the bytes are
//! copied by grant, all of a batch at once. Each byte is copied once, from wherever its sender had
//! it: another guest's page, ours, or a head.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Backend, CopyEnd, CopyOp, Instant};
use parapet_packet::checksum::Sum;
use parapet_packet::headers::{ChecksumPlace, Headers};
use parapet_packet::segment::Segments;
use parapet_packet::{Checksum, Offloads};
use parapet_ring::{Back, Peer, Violation};
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::grant_table::GrantStatus;
use parapet_xen_sys::io::netif::{RxRequest, RxResponse, RxSlot, Status};

use super::transmit::emptied;
use super::{BATCH, Patience, QueueError, Shared};
use crate::capture::Direction;
use crate::drops::Drop;
use crate::frame::{Frame, Part, Pool, TAGGED_HEAD};
use crate::port::Port;
use crate::rx::{Fit, Form, Receives, Run, Runs, is_local};
use crate::statics::Statics;

/// The part of the pool that may be used for frames of others that wait: the rest is for what the
/// guest itself transmits.
const ASIDE_PART: usize = 2;

/// Buffers that a guest is expected to post within [`Patience::aside`] while frames wait for it:
/// one that posts them one by one would keep others' memory all the same.
const ENOUGH: usize = 64;

/// Pages for the heads that a batch copies by grant, into as many buffers as the ring has: one for
/// each, and where a frame is cut, some of its own head as well. None lies across two pages.
fn scratch_pages(slots: usize) -> usize {
    ((slots + BATCH) * TAGGED_HEAD).div_ceil(PAGE_SIZE - TAGGED_HEAD)
}

/// The receive ring, and the frames on their way into it.
pub(super) struct Receive<P: Backend> {
    ring: Back<Peer<P::Mapping>, RxSlot, RxSlot>,
    receives: Receives,
    patience: Patience,
    /// Buffers that were taken off the ring and not answered, in order.
    posted: VecDeque<RxRequest>,
    /// Frames that come before all others: what the port had, and what found no room.
    waiting: VecDeque<Frame<P>>,
    from_port: Vec<Frame<P>>,
    /// Frames that were given, while their bytes are being copied.
    given: Vec<Frame<P>>,
    responses: Vec<RxSlot>,
    pieces: Vec<Piece>,
    ops: Vec<CopyOp<'static, P::Pages>>,
    /// Where heads are copied from.
    scratch: P::Pages,
    scratch_used: usize,
    /// Where in it there is a page for what is copied a second time.
    second: usize,
    bytes: Box<[u8; PAGE_SIZE]>,
    blocked: Option<Blocked>,
    behind: Option<Behind>,
    /// Where to go on with the frame that waits first, which is being cut.
    cutting: Option<Cutting>,
    /// The last of those that were given is that frame.
    is_partly_given: bool,
    /// The first of those that were given had segments earlier that could not be copied.
    is_spoilt: bool,
}

/// A frame of which some segments have been given.
#[derive(Debug)]
struct Cutting {
    segments: Segments,
    /// Not all of these could be copied.
    is_spoilt: bool,
}

/// A guest that has posted too few buffers for the frame that comes next.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    since: Instant,
    /// Since when it has been behind.
    behind: Instant,
    needs: usize,
    stage: Stage,
}

/// A guest that has not had an empty inbox for a while.
#[derive(Debug, Clone, Copy)]
struct Behind {
    since: Instant,
    /// Buffers that it has posted since then.
    used: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It may be just about to.
    Fresh,
    /// Nobody else waits for it any more.
    Aside,
    /// Nothing waits for it any more.
    Drained,
    /// It is stalled.
    Stalled,
}

impl Blocked {
    /// What comes next, and when.
    fn next(&self, patience: &Patience) -> Option<(Stage, Instant)> {
        match self.stage {
            Stage::Fresh => Some((Stage::Aside, self.behind.after(patience.aside))),
            Stage::Aside => Some((Stage::Drained, self.since.after(patience.drain))),
            Stage::Drained => Some((Stage::Stalled, self.since.after(patience.stall))),
            Stage::Stalled => None,
        }
    }
}

/// A copy by grant into a buffer of the guest's.
#[derive(Debug, Clone, Copy)]
struct Piece {
    frame: usize,
    from: From,
    gref: GrantRef,
    to: u16,
    len: u16,
    /// Which response it belongs to.
    response: usize,
}

#[derive(Debug, Clone, Copy)]
enum From {
    Scratch(usize),
    Part(Part),
}

/// What became of a frame.
enum Outcome<P: Backend> {
    Given,
    Dropped,
    /// There are too few buffers; so many are needed.
    NoRoom(Frame<P>, usize),
    /// There are too few for all of its segments; so many are needed for the next.
    Partly(usize),
}

/// Where the bytes of a packet are: its own head, and the rest of a frame.
struct Bytes<'a, P: Backend> {
    head: &'a [u8],
    frame: &'a Frame<P>,
    /// Which of those that were given.
    index: usize,
    /// Bytes of the frame that follow the head.
    from: usize,
    len: usize,
}

impl<P: Backend> Receive<P> {
    pub(super) fn new(
        place: &P,
        ring: Peer<P::Mapping>,
        receives: Receives,
        patience: Patience,
    ) -> Result<Self, QueueError> {
        let ring = Back::<_, RxSlot, RxSlot>::resume(ring)?;
        let slots = ring.slots() as usize;
        Ok(Receive {
            ring,
            receives,
            patience,
            posted: VecDeque::with_capacity(slots),
            waiting: VecDeque::with_capacity(2 * BATCH),
            from_port: Vec::with_capacity(BATCH),
            given: Vec::with_capacity(BATCH),
            responses: Vec::with_capacity(slots),
            pieces: Vec::with_capacity(slots),
            ops: Vec::with_capacity(slots),
            scratch: place.allocate(scratch_pages(slots) + 1)?,
            scratch_used: 0,
            second: scratch_pages(slots) * PAGE_SIZE,
            bytes: Box::new([0; PAGE_SIZE]),
            blocked: None,
            behind: None,
            cutting: None,
            is_partly_given: false,
            is_spoilt: false,
        })
    }

    /// When it is time to lose patience.
    pub(super) fn alarm(&self) -> Option<Instant> {
        let (_, when) = self.blocked?.next(&self.patience)?;
        Some(when)
    }

    /// Whether frames in the inbox are looked at: not while the guest is expected to post buffers.
    pub(super) fn wants_frames(&self) -> bool {
        self.blocked
            .is_none_or(|blocked| blocked.stage > Stage::Fresh)
    }

    /// Gets what the port has for us, if there is room; where the guest says which frames are for
    /// which queue, some may be for others. Whether there is something to give.
    pub(super) fn poll_port(
        &mut self,
        port: &mut dyn Port<P>,
        shared: &Shared<P>,
        cx: &mut Context<'_>,
    ) -> Result<bool, QueueError> {
        if self.blocked.is_some() {
            return Ok(false);
        }
        if self.waiting.len() < BATCH
            && let Poll::Ready(received) = port.poll_receive(cx, &mut self.from_port, BATCH)
        {
            received?;
            if !shared.endpoint.is_steered() {
                self.waiting.extend(self.from_port.drain(..));
            }
            for frame in self.from_port.drain(..) {
                match shared.endpoint.deliver(shared.index, frame) {
                    Ok(queue) => shared.endpoint.ring(queue),
                    Err(_) => shared.stats.drops.count(Drop::ReceiverFull, 1),
                }
            }
        }
        Ok(!self.waiting.is_empty())
    }

    /// Gives the guest a batch of what there is for it. Whether there was anything.
    pub(super) fn give(
        &mut self,
        shared: &Shared<P>,
        pool: &mut Pool<P>,
        statics: &Statics<P>,
    ) -> Result<bool, QueueError> {
        if let Some(blocked) = self.blocked {
            self.refill(blocked.needs)?;
            if self.posted.len() < blocked.needs {
                return Ok(self.be_patient(shared, pool));
            }
            self.blocked = None;
            shared.stats.stalled.set(0);
        }
        let session = shared.stats.capture.session();
        let session = session.map(|session| (session, shared.place.now()));
        let mut any = false;
        for _ in 0..BATCH {
            let next = self.waiting.pop_front();
            let Some(frame) = next.or_else(|| shared.endpoint.take(shared.index)) else {
                self.behind = None;
                break;
            };
            any = true;
            let copy = session.as_ref().and_then(|(session, now)| {
                let copy = session.copy(*now, Direction::ToGuest, &frame)?;
                Some((session, copy))
            });
            let outcome = self.give_one(frame, shared, statics);
            if let Some((session, copy)) = copy {
                match outcome {
                    Ok(Outcome::Given) => session.give(copy),
                    // One that is given in parts is when it is through.
                    _ => session.forget(copy),
                }
            }
            let needs = match outcome? {
                Outcome::Given | Outcome::Dropped => continue,
                Outcome::NoRoom(frame, needs) => {
                    self.waiting.push_front(frame);
                    needs
                }
                Outcome::Partly(needs) => {
                    self.is_partly_given = true;
                    needs
                }
            };
            self.block(needs, shared.place.now());
            break;
        }
        if any {
            self.finish(shared)?;
        }
        // What could not be given is no reason to look again at once.
        Ok(any && self.blocked.is_none())
    }

    /// Waits for so many buffers.
    fn block(&mut self, needs: usize, now: Instant) {
        let behind = match self.behind {
            Some(behind) if behind.used < ENOUGH => behind,
            _ => Behind {
                since: now,
                used: 0,
            },
        };
        self.behind = Some(behind);
        self.blocked = Some(Blocked {
            since: now,
            behind: behind.since,
            needs,
            stage: Stage::Fresh,
        });
    }

    /// Lets the frontend see what it was given. Whether it wants to be told.
    pub(super) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Whether the buffers that are waited for are there; if not, asks for an event when they are.
    /// After an event, also whether it announced any.
    pub(super) fn arm(&mut self, event: bool) -> Result<bool, QueueError> {
        let Some(blocked) = self.blocked else {
            let had = self.posted.len();
            if event {
                self.refill(had + 1)?;
            }
            return Ok(self.posted.len() > had);
        };
        let missing = blocked.needs.saturating_sub(self.posted.len());
        Ok(missing == 0 || self.ring.arm_after(missing as u32)?)
    }

    /// Drops all that waits, and what was being given; how many these were.
    pub(super) fn clear(&mut self) -> u64 {
        let frames = self.waiting.len() + self.from_port.len() + self.given.len();
        self.waiting.clear();
        self.from_port.clear();
        self.given.clear();
        self.cutting = None;
        frames as u64
    }

    /// Takes buffers off the ring until there are so many, or no more.
    #[inline]
    fn refill(&mut self, needs: usize) -> Result<(), Violation> {
        while self.posted.len() < needs {
            let Some(slot) = self.ring.take()? else {
                break;
            };
            self.posted.push_back(zerocopy::transmute!(slot));
        }
        Ok(())
    }

    /// Does what is to be done while there are too few buffers. Whether that was anything.
    fn be_patient(&mut self, shared: &Shared<P>, pool: &mut Pool<P>) -> bool {
        let Some(mut blocked) = self.blocked else {
            return false;
        };
        let now = shared.place.now();
        let stats = &shared.stats;
        let mut any = false;
        while let Some((stage, when)) = blocked.next(&self.patience)
            && now >= when
        {
            blocked.stage = stage;
            any = true;
            match stage {
                Stage::Fresh => {}
                Stage::Aside => {
                    for at in 0..self.waiting.len() {
                        let frame = self.waiting.pop_front();
                        let aside = frame.and_then(|frame| set_aside(&frame, shared, pool));
                        if at == 0 && aside.is_none() {
                            self.cutting = None;
                        }
                        self.waiting.extend(aside);
                    }
                }
                Stage::Drained => {
                    stats.drops.count(Drop::ReceiverStalled, self.clear());
                    // The frame that needed more is no more.
                    blocked.needs = 1;
                }
                Stage::Stalled => {
                    stats.stalls.add(1);
                    stats.stalled.set(1);
                    shared
                        .complaints
                        .info(now, || "the guest is stalled: it posts no buffers");
                }
            }
        }
        self.blocked = Some(blocked);
        if blocked.stage > Stage::Fresh {
            // No more than there are at once, so that who sends without end does not keep us here.
            for _ in 0..BATCH {
                let Some(frame) = shared.endpoint.take(shared.index) else {
                    break;
                };
                any = true;
                if blocked.stage > Stage::Aside {
                    stats.drops.count(Drop::ReceiverStalled, 1);
                } else {
                    self.waiting.extend(set_aside(&frame, shared, pool));
                }
            }
        }
        any
    }

    #[inline]
    fn give_one(
        &mut self,
        frame: Frame<P>,
        shared: &Shared<P>,
        statics: &Statics<P>,
    ) -> Result<Outcome<P>, Violation> {
        let drops = &shared.stats.drops;
        let cutting = self.cutting.take();
        let Some(to) = frame.destination() else {
            drops.count(Drop::Malformed, 1);
            return Ok(Outcome::Dropped);
        };
        if !shared.multicast.hears(to) {
            drops.count(Drop::Multicast, 1);
            return Ok(Outcome::Dropped);
        }
        let fit = self
            .receives
            .fit(frame.offloads(), frame.len(), frame.head());
        match fit {
            Fit::AsIs => self.give_whole(frame, shared, statics),
            Fit::Sum => match self.sum(frame, shared) {
                Some(frame) => self.give_whole(frame, shared, statics),
                None => Ok(Outcome::Dropped),
            },
            Fit::Cut { sum } => self.give_segments(frame, sum, cutting, shared, statics),
            Fit::TooLong => {
                drops.count(Drop::TooLong, 1);
                Ok(Outcome::Dropped)
            }
            Fit::Malformed => {
                drops.count(Drop::Malformed, 1);
                Ok(Outcome::Dropped)
            }
        }
    }

    /// Whether there are so many buffers: none if there never can be.
    #[inline]
    fn has_room(&mut self, needs: usize) -> Result<Option<bool>, Violation> {
        if self.posted.len() < needs {
            if needs > self.ring.slots() as usize {
                return Ok(None);
            }
            self.refill(needs)?;
        }
        Ok(Some(self.posted.len() >= needs))
    }

    #[inline]
    fn give_whole(
        &mut self,
        frame: Frame<P>,
        shared: &Shared<P>,
        statics: &Statics<P>,
    ) -> Result<Outcome<P>, Violation> {
        let hash = frame.hash().filter(|_| shared.endpoint.is_steered());
        let form = self.receives.form(frame.offloads(), hash);
        let needs = form.slots(frame.len());
        match self.has_room(needs)? {
            Some(true) => {}
            Some(false) => return Ok(Outcome::NoRoom(frame, needs)),
            None => {
                shared.stats.drops.count(Drop::TooLong, 1);
                return Ok(Outcome::Dropped);
            }
        }
        let head = frame.head();
        let bytes = Bytes {
            head,
            frame: &frame,
            index: self.given.len(),
            from: head.len(),
            len: frame.len() - head.len(),
        };
        self.put(&form, bytes, shared, statics);
        self.given.push(frame);
        Ok(Outcome::Given)
    }

    /// Cuts a frame into segments, and gives those, as many as there are buffers for: a guest may
    /// have posted as many as it ever does. `cutting` is where to go on.
    fn give_segments(
        &mut self,
        frame: Frame<P>,
        sum: bool,
        cutting: Option<Cutting>,
        shared: &Shared<P>,
        statics: &Statics<P>,
    ) -> Result<Outcome<P>, Violation> {
        let drops = &shared.stats.drops;
        let headers = Headers::parse(frame.head(), frame.len()).ok();
        let cut = headers
            .zip(frame.offloads().gso)
            .and_then(|(headers, gso)| {
                Some((headers.len()?, gso, Segments::new(&headers, gso).ok()?))
            });
        let Some((headers_len, gso, mut segments)) = cut else {
            drops.count(Drop::Malformed, 1);
            return Ok(Outcome::Dropped);
        };
        let hash = frame.hash().filter(|_| shared.endpoint.is_steered());
        let form = self.receives.form(
            Offloads {
                checksum: match sum {
                    true => Checksum::Intact,
                    false => Checksum::Blank,
                },
                gso: None,
            },
            hash,
        );
        let longest = headers_len + usize::from(gso.size.get()).min(frame.len() - headers_len);
        if longest > PAGE_SIZE && !self.receives.scatter {
            drops.count(Drop::TooLong, 1);
            return Ok(Outcome::Dropped);
        }
        // A frame is not to be worth more work than one that fills the ring.
        if segments.count() * form.slots(longest) > self.ring.slots() as usize {
            drops.count(Drop::TooLong, 1);
            return Ok(Outcome::Dropped);
        }
        let mut is_spoilt = false;
        if let Some(cutting) = cutting {
            Cutting {
                segments,
                is_spoilt,
            } = cutting;
        }
        let mut head = [0; TAGGED_HEAD];
        let mut count = 0;
        let mut missing = None;
        loop {
            let before = segments.clone();
            let Some(segment) = segments.next(frame.head(), &mut head) else {
                break;
            };
            let len = segment.headers + segment.payload.len();
            let needs = form.slots(len);
            if self.has_room(needs)? != Some(true) {
                self.cutting = Some(Cutting {
                    segments: before,
                    is_spoilt,
                });
                missing = Some(needs);
                break;
            }
            count += 1;
            let Some(own) = head.get_mut(..segment.headers) else {
                break;
            };
            if sum
                && let Some(place) = Headers::parse(own, len)
                    .ok()
                    .and_then(|headers| headers.checksum())
            {
                self.complete(own, &place, &frame, segment.payload.clone());
            }
            let bytes = Bytes {
                head: own,
                frame: &frame,
                index: self.given.len(),
                from: segment.payload.start,
                len: segment.payload.len(),
            };
            self.put(&form, bytes, shared, statics);
        }
        shared.stats.segments.add(count);
        if sum {
            shared.stats.sums.add(count);
        }
        match missing {
            Some(needs) if count == 0 => return Ok(Outcome::NoRoom(frame, needs)),
            _ => self.given.push(frame),
        }
        self.is_spoilt = is_spoilt;
        Ok(missing.map_or(Outcome::Given, Outcome::Partly))
    }

    /// Makes the checksum of a frame that has it left blank.
    fn sum(&mut self, mut frame: Frame<P>, shared: &Shared<P>) -> Option<Frame<P>> {
        let headers = Headers::parse(frame.head(), frame.len()).ok();
        let Some(place) = headers.and_then(|headers| headers.checksum()) else {
            shared.stats.drops.count(Drop::Malformed, 1);
            return None;
        };
        let mut head = [0; TAGGED_HEAD];
        let len = frame.head().len();
        let own = head.get_mut(..len)?;
        own.copy_from_slice(frame.head());
        self.complete(own, &place, &frame, len..place.covers.end.max(len));
        frame.head_mut().copy_from_slice(own);
        frame.set_offloads(Offloads {
            checksum: Checksum::Intact,
            gso: None,
        });
        shared.stats.sums.add(1);
        Some(frame)
    }

    /// Writes the checksum into a head, given which bytes of the frame follow it.
    fn complete(
        &mut self,
        head: &mut [u8],
        place: &ChecksumPlace,
        frame: &Frame<P>,
        rest: std::ops::Range<usize>,
    ) {
        let own = head.get(place.covers.start..place.covers.end.min(head.len()));
        let mut sum = Sum::new().and(own.unwrap_or_default());
        let mut at = rest.start;
        while at < rest.end {
            let len = (rest.end - at).min(PAGE_SIZE);
            let Some(to) = self.bytes.get_mut(..len) else {
                break;
            };
            let copied = frame.copy_out(at, to);
            sum = sum.and(to.get(..copied).unwrap_or_default());
            at += len;
        }
        if let Some(field) = head.get_mut(place.field..place.field + 2) {
            field.copy_from_slice(&place.value(sum));
        }
    }

    /// Puts a packet into buffers, of which there are enough.
    #[inline]
    fn put(&mut self, form: &Form, bytes: Bytes<'_, P>, shared: &Shared<P>, statics: &Statics<P>) {
        if let Some(request) = self.posted.front()
            && let Some(prefix) = form.prefix(request.id)
        {
            self.posted.pop_front();
            self.responses.push(prefix);
        }
        let parts = bytes.frame.parts();
        let frame_head = bytes.frame.head().len();
        let mut own = 0;
        let mut rest = Runs::new(frame_head, parts, bytes.from);
        let mut left = bytes.head.len() + bytes.len;
        let mut rest_left = bytes.len;
        let mut is_first = true;
        while left > 0 {
            let Some(buffer) = self.posted.pop_front() else {
                break;
            };
            let len = left.min(PAGE_SIZE);
            left -= len;
            let target = statics.writable(buffer.gref).and_then(|(mapping, page)| {
                mapping.view_mut()?.slice(page * PAGE_SIZE, PAGE_SIZE).ok()
            });
            let mut done = 0;
            while done < len {
                let room = len - done;
                // First the head, then the rest of the frame.
                let run = match bytes.head.len() - own {
                    0 => match rest.next(room.min(rest_left)) {
                        Some(run) => {
                            rest_left -= run.len();
                            match run {
                                Run::Head { from, len } => {
                                    Source::Bytes(bytes.frame.head().get(from..from + len))
                                }
                                Run::Part(part) => Source::Part(part),
                            }
                        }
                        None => break,
                    },
                    head => {
                        let from = own;
                        own += head.min(room);
                        Source::Bytes(bytes.head.get(from..own))
                    }
                };
                done += match run {
                    Source::Bytes(None) => break,
                    Source::Bytes(Some(own)) => {
                        match target {
                            Some(target) => {
                                let _: Result<_, _> = target.write_bytes(done, own);
                            }
                            None => self.plan_head(own, bytes.index, buffer.gref, done),
                        }
                        own.len()
                    }
                    Source::Part(part) => {
                        match (target, bytes.frame.memory().view(part)) {
                            (Some(target), Ok(view)) => {
                                let _: Result<_, _> = view.copy_to(0, target, done, view.len());
                            }
                            _ => self.pieces.push(Piece {
                                frame: bytes.index,
                                from: From::Part(part),
                                gref: buffer.gref,
                                to: done as u16,
                                len: part.len,
                                response: self.responses.len(),
                            }),
                        }
                        usize::from(part.len)
                    }
                };
            }
            self.responses.push(zerocopy::transmute!(RxResponse {
                id: buffer.id,
                offset: 0,
                flags: form.flags(is_first, left == 0),
                // At most a page.
                status: len as i16,
            }));
            if std::mem::take(&mut is_first) {
                for extra in form.extras() {
                    // It lies in a buffer's slot.
                    self.posted.pop_front();
                    self.responses.push(extra);
                }
            }
        }
        let way = &shared.stats.rx;
        way.bytes.add((bytes.head.len() + bytes.len) as u64);
        if form.gso.is_some() {
            way.gso.add(1);
        }
    }

    /// Plans to copy bytes of ours.
    fn plan_head(&mut self, bytes: &[u8], frame: usize, gref: GrantRef, to: usize) {
        let within = PAGE_SIZE - self.scratch_used % PAGE_SIZE;
        if within < bytes.len() {
            self.scratch_used += within;
        }
        let at = self.scratch_used;
        let written = self.scratch.view().write_bytes(at, bytes);
        debug_assert!(written.is_ok(), "the scratch pages are full");
        self.scratch_used += bytes.len();
        self.pieces.push(Piece {
            frame,
            from: From::Scratch(at),
            gref,
            to: to as u16,
            len: bytes.len() as u16,
            response: self.responses.len(),
        });
    }

    /// Copies what was planned, answers the buffers, and lets the frames go.
    fn finish(&mut self, shared: &Shared<P>) -> Result<(), QueueError> {
        let spoilt = std::mem::take(&mut self.is_spoilt).then_some(0);
        let (mut bad, last_bad) = match self.pieces.is_empty() {
            true => (u64::from(spoilt.is_some()), spoilt),
            false => self.copy(shared, spoilt)?,
        };
        for response in &self.responses {
            let pushed = self.ring.push(response);
            debug_assert!(
                pushed.is_ok(),
                "a buffer that was taken has room for its answer"
            );
        }
        let stats = &shared.stats;
        stats.rx.slots.add(self.responses.len() as u64);
        stats.rx.batches.add(1);
        if let Some(behind) = &mut self.behind {
            behind.used += self.responses.len();
        }
        if std::mem::take(&mut self.is_partly_given)
            && let Some(frame) = self.given.pop()
        {
            self.waiting.push_front(frame);
            if last_bad == Some(self.given.len())
                && let Some(cutting) = &mut self.cutting
            {
                // It counts when it is through.
                bad -= 1;
                cutting.is_spoilt = true;
            }
        }
        stats.rx.packets.add(self.given.len() as u64 - bad);
        if bad > 0 {
            stats.drops.count(Drop::BadGrant, bad);
            stats.rx.errors.add(bad);
        }
        self.responses.clear();
        self.scratch_used = 0;
        self.given.clear();
        Ok(())
    }

    /// Copies what was planned. How many frames the guest's buffers could not take, `spoilt`
    /// included, and the last of them.
    fn copy(
        &mut self,
        shared: &Shared<P>,
        spoilt: Option<usize>,
    ) -> Result<(u64, Option<usize>), QueueError> {
        let mut ops = emptied(std::mem::take(&mut self.ops));
        let scratch = &self.scratch;
        for piece in &self.pieces {
            let from = match piece.from {
                From::Scratch(offset) => Some(CopyEnd::Local {
                    pages: scratch,
                    offset,
                }),
                From::Part(part) => self
                    .given
                    .get(piece.frame)
                    .and_then(|frame| frame.memory().copy_end(part)),
            };
            ops.push(operation(
                from.unwrap_or(CopyEnd::Local {
                    pages: scratch,
                    offset: self.second,
                }),
                piece,
                shared,
            ));
        }
        shared.place.copy(&mut ops).map_err(QueueError::Copy)?;
        shared.stats.copies.add(ops.len() as u64);
        let (mut bad, mut last) = (u64::from(spoilt.is_some()), spoilt);
        for (op, piece) in ops.iter().zip(&self.pieces) {
            if op.status == GrantStatus::OKAY || self.copy_again(piece, shared)? {
                continue;
            }
            let now = shared.place.now();
            let status = op.status;
            shared.complaints.debug(now, || {
                format!("buffer {} cannot be written: {status}", piece.gref)
            });
            if let Some(response) = self.responses.get_mut(piece.response) {
                let failed = RxResponse {
                    status: Status::ERROR.0,
                    ..zerocopy::transmute!(*response)
                };
                *response = zerocopy::transmute!(failed);
            }
            if last.replace(piece.frame) != Some(piece.frame) {
                bad += 1;
            }
        }
        self.ops = emptied(ops);
        self.pieces.clear();
        Ok((bad, last))
    }

    /// Tries a copy that failed once more, from a page of ours if it was from a sender's that took
    /// its grant back. What is mapped can still be read: the sender is not to be able to make a
    /// receiver's buffers look bad. Whether it went well.
    fn copy_again(&self, piece: &Piece, shared: &Shared<P>) -> Result<bool, QueueError> {
        let (From::Part(part), Some(frame)) = (piece.from, self.given.get(piece.frame)) else {
            return Ok(false);
        };
        let Ok(view) = frame.memory().view(part) else {
            return Ok(false);
        };
        if is_local(part) {
            return Ok(false);
        }
        let offset = self.second;
        let to = self.scratch.view();
        if view.copy_to(0, to, offset, view.len()).is_err() {
            return Ok(false);
        }
        let from = CopyEnd::Local {
            pages: &self.scratch,
            offset,
        };
        let mut again = [operation(from, piece, shared)];
        shared.place.copy(&mut again).map_err(QueueError::Copy)?;
        Ok(again[0].status == GrantStatus::OKAY)
    }
}

/// A run of bytes to be put into a buffer.
enum Source<'a> {
    /// Ours.
    Bytes(Option<&'a [u8]>),
    /// A frame's.
    Part(Part),
}

fn operation<'a, P: Backend>(
    from: CopyEnd<'a, P::Pages>,
    piece: &Piece,
    shared: &Shared<P>,
) -> CopyOp<'a, P::Pages> {
    CopyOp {
        from,
        to: CopyEnd::Granted {
            domid: shared.peer,
            gref: piece.gref,
            offset: piece.to,
        },
        len: piece.len,
        status: GrantStatus::OKAY,
    }
}

/// Copies a frame that lies in others' memory into our own, if there is room for it, and counts it
/// as dropped if there is none.
fn set_aside<P: Backend>(
    frame: &Frame<P>,
    shared: &Shared<P>,
    pool: &mut Pool<P>,
) -> Option<Frame<P>> {
    let (frames, pages) = pool.size();
    let rest = frame.len() - frame.head().len();
    let wanted = rest.div_ceil(PAGE_SIZE);
    let has_room =
        pool.idle() > frames / ASIDE_PART && pool.free_pages() > pages / ASIDE_PART + wanted;
    let copy = match has_room {
        true => pool.copy_of(frame),
        false => None,
    };
    let why = match copy {
        Some(_) => {
            shared.stats.set_aside.add(1);
            return copy;
        }
        None => Drop::ReceiverFull,
    };
    shared.stats.drops.count(why, 1);
    None
}
