//! From the transmit ring into the network.
//!
//! A packet that lies in pages that stay mapped is not copied but for its head: its slots are
//! answered when the frame comes home. Any other is copied by grant, all of a batch at once, and
//! answered right after that: so a guest that takes its grants back, and a receiver that takes its
//! time, hold nobody up.

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Backend, CopyEnd, CopyOp, Instant};
use parapet_packet::headers::Headers;
use parapet_packet::vnet::VnetHeader;
use parapet_packet::{Checksum, Offloads};
use parapet_ring::{Back, Peer};
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::grant_table::GrantStatus;
use parapet_xen_sys::io::netif::{Status, TxResponse, TxSlot};

use super::{BATCH, LONGEST_WAIT, QueueError, Shared};
use crate::capture::Direction;
use crate::drops::Drop;
use crate::frame::{Frame, HEAD, LONGEST, Page, Part, Pool};
use crate::port::Port;
use crate::statics::Statics;
use crate::tx::{Malformed, Packet, SLOTS};

/// Pages that the longest frame takes.
const FRAME_PAGES: usize = LONGEST.div_ceil(PAGE_SIZE);

/// The tag of a frame whose slots have been answered.
const ANSWERED: u32 = u32::MAX;

/// The transmit ring, and the packets on their way from it.
pub(super) struct Transmit<P: Backend> {
    ring: Back<Peer<P::Mapping>, TxSlot, TxResponse>,
    packet: Packet,
    /// By tag of a frame: the slots that are answered when it comes home.
    open: Box<[Open]>,
    free: Vec<u32>,
    /// The frames of this batch.
    out: Vec<Frame<P>>,
    /// Those of them that are to be copied.
    copied: Vec<Copied>,
    pieces: Vec<Piece>,
    ops: Vec<CopyOp<'static, P::Pages>>,
    /// Where the heads of short frames are copied to.
    scratch: P::Pages,
    /// The pool has nothing to take.
    is_starved: bool,
    throttled: Option<Instant>,
}

/// Slots that were taken and not answered.
#[derive(Debug, Clone, Copy)]
struct Open {
    ids: [u16; SLOTS],
    grefs: [GrantRef; SLOTS],
    count: u16,
    extras: u16,
}

const NOTHING: Open = Open {
    ids: [0; SLOTS],
    grefs: [GrantRef(0); SLOTS],
    count: 0,
    extras: 0,
};

/// A frame whose bytes are being copied.
struct Copied {
    /// Which of the batch.
    frame: usize,
    /// Its slots.
    open: u32,
    /// Where its first bytes are copied to.
    head: Head,
    /// How many pieces, up to this one's last.
    pieces: usize,
    left: Left,
}

enum Head {
    Scratch(usize),
    Page(u16),
}

/// A copy from a page of the guest's to one of ours.
#[derive(Debug, Clone, Copy)]
struct Piece {
    gref: GrantRef,
    offset: u16,
    len: u16,
    /// In the scratch page, or the pool's.
    is_scratch: bool,
    to: usize,
}

/// An empty vector of operations with the memory of another, whatever that borrowed.
pub(super) fn emptied<'a, P>(mut ops: Vec<CopyOp<'_, P>>) -> Vec<CopyOp<'a, P>> {
    ops.clear();
    ops.into_iter()
        .map(|_| unreachable!("there are none"))
        .collect()
}

/// What is left to be done to a packet, and whether the sum of its pseudo header is missing.
type Left = (Offloads, bool);

/// Checks what is left to be done to a frame against its headers, which are ours by now.
#[inline]
fn inspect<P: Backend>(frame: &mut Frame<P>, (left, is_unsummed): Left) -> Result<(), Malformed> {
    frame.set_offloads(left);
    if left.checksum != Checksum::Blank {
        return Ok(());
    }
    let headers = Headers::parse(frame.head(), frame.len()).map_err(|_| Malformed::Offloads)?;
    VnetHeader::new(left, &headers).map_err(|_| Malformed::Offloads)?;
    if is_unsummed && let Some(place) = headers.checksum() {
        let len = place.covers.len() as u32;
        let sum = headers
            .pseudo(frame.head(), len)
            .ok_or(Malformed::Offloads)?;
        let field = frame.head_mut().get_mut(place.field..place.field + 2);
        let field = field.ok_or(Malformed::Offloads)?;
        field.copy_from_slice(&sum.folded().to_be_bytes());
    }
    Ok(())
}

impl<P: Backend> Transmit<P> {
    pub(super) fn new(place: &P, ring: Peer<P::Mapping>) -> Result<Self, QueueError> {
        let ring = Back::<_, TxSlot, TxResponse>::resume(ring)?;
        let slots = ring.slots();
        Ok(Transmit {
            packet: Packet::default(),
            open: vec![NOTHING; slots as usize].into(),
            free: (0..slots).rev().collect(),
            ring,
            out: Vec::with_capacity(BATCH),
            copied: Vec::with_capacity(BATCH),
            pieces: Vec::with_capacity(BATCH),
            ops: Vec::with_capacity(BATCH),
            scratch: place.allocate((BATCH * HEAD).div_ceil(PAGE_SIZE))?,
            is_starved: false,
            throttled: None,
        })
    }

    /// Until when nothing is taken, since the rate is used up.
    pub(super) fn throttled(&self) -> Option<Instant> {
        self.throttled
    }

    /// Whether a frame that is abroad lies in this page.
    pub(super) fn uses(&self, gref: GrantRef) -> bool {
        self.open.iter().any(|open| {
            let grefs = open.grefs.get(..usize::from(open.count));
            grefs.is_some_and(|grefs| grefs.contains(&gref))
        })
    }

    /// Takes back the frames that have come home, and answers their slots. Whether there were any.
    pub(super) fn collect(&mut self, pool: &mut Pool<P>) -> bool {
        pool.has_returned() && pool.collect(|tag| self.close(tag))
    }

    /// Answers all that is there as dropped. Of what a backend before us was about to answer the
    /// answers may lie over the requests: over their grants, but not over what says which they are.
    pub(super) fn forgo(&mut self) -> Result<(), QueueError> {
        while let Some(first) = self.ring.take().map_err(crate::tx::Broken::from)? {
            let ring = &mut self.ring;
            // Whether it makes sense does not matter any more.
            let _: Result<(), Malformed> = self.packet.read(first, || ring.take())?;
            self.answer(Status::DROPPED);
        }
        Ok(())
    }

    /// Takes a batch of packets, and makes frames of them. Whether there was any.
    pub(super) fn take(
        &mut self,
        shared: &Shared<P>,
        pool: &mut Pool<P>,
        statics: &Statics<P>,
    ) -> Result<bool, QueueError> {
        let stats = &shared.stats;
        let limited = shared.rate.is_limited();
        self.throttled = None;
        self.is_starved = false;
        let mut now = None;
        let (mut slots, mut taken) = (0, false);
        for _ in 0..BATCH {
            if limited {
                let now = *now.get_or_insert_with(|| shared.place.now());
                if shared.rate.is_empty(now) {
                    // The operator may change the rate meanwhile.
                    let soon = now.after(LONGEST_WAIT / 100);
                    let ready = shared.rate.ready_at();
                    self.throttled = Some(ready.clamp(soon, now.after(LONGEST_WAIT)));
                    stats.throttled.add(1);
                    break;
                }
            }
            if pool.idle() == 0 || pool.free_pages() < FRAME_PAGES {
                self.is_starved = true;
                break;
            }
            let Some(first) = self.ring.take().map_err(crate::tx::Broken::from)? else {
                break;
            };
            taken = true;
            let ring = &mut self.ring;
            let read = self.packet.read(first, || ring.take())?;
            slots += (self.packet.ids().len() + usize::from(self.packet.extras)) as u64;
            let made = match read {
                Ok(()) if self.packet.group.is_some() => {
                    self.change_groups(shared);
                    continue;
                }
                Ok(()) => self.make(pool, statics),
                Err(malformed) => Err(malformed),
            };
            if let Err(malformed) = made {
                self.refuse(shared, malformed);
                continue;
            }
            if limited {
                let now = *now.get_or_insert_with(|| shared.place.now());
                shared.rate.charge(now, u64::from(self.packet.len));
            }
        }
        if !self.copied.is_empty() {
            self.copy(shared, pool)?;
        }
        if taken {
            stats.tx.slots.add(slots);
            stats.tx.batches.add(1);
        }
        Ok(taken)
    }

    /// Sends the frames of the batch.
    pub(super) fn send(&mut self, port: &mut dyn Port<P>, pool: &mut Pool<P>, shared: &Shared<P>) {
        if self.out.is_empty() {
            return;
        }
        let (mut bytes, mut gso) = (0, 0);
        for frame in &self.out {
            bytes += frame.len() as u64;
            gso += u64::from(frame.offloads().gso.is_some());
        }
        let way = &shared.stats.tx;
        way.packets.add(self.out.len() as u64);
        way.bytes.add(bytes);
        if gso > 0 {
            way.gso.add(gso);
        }
        if let Some(session) = shared.stats.capture.session() {
            let now = shared.place.now();
            for frame in &self.out {
                let copy = session.copy(now, Direction::FromGuest, frame);
                copy.into_iter().for_each(|copy| session.give(copy));
            }
        }
        port.send(&mut self.out, &shared.stats.drops);
        let mut out = std::mem::take(&mut self.out);
        for frame in out.drain(..) {
            self.close(frame.tag());
            pool.recycle(frame);
        }
        self.out = out;
    }

    /// Gives up what was taken in a batch that came to no end; how many frames that were.
    pub(super) fn abandon(&mut self, pool: &mut Pool<P>) -> u64 {
        let frames = self.out.len() as u64;
        self.out.drain(..).for_each(|frame| pool.recycle(frame));
        frames
    }

    /// Lets the frontend see the answers. Whether it wants to be told.
    pub(super) fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Whether there is something to take; if not, asks for an event when there is. Nothing is
    /// asked for while nothing could be taken.
    pub(super) fn arm(&mut self) -> Result<bool, QueueError> {
        if self.is_starved || self.throttled.is_some() {
            return Ok(false);
        }
        Ok(self.ring.arm().map_err(crate::tx::Broken::from)?)
    }

    /// Makes a frame of the packet just read.
    #[inline]
    fn make(&mut self, pool: &mut Pool<P>, statics: &Statics<P>) -> Result<(), Malformed> {
        let Some(mut frame) = pool.take() else {
            // There was one.
            return Err(Malformed::Slots(0));
        };
        match self.build(&mut frame, pool, statics) {
            Ok(true) => {}
            Ok(false) => {
                pool.recycle(frame);
                self.begin_copy(pool);
                return Ok(());
            }
            Err(malformed) => {
                pool.recycle(frame);
                return Err(malformed);
            }
        }
        if frame.parts().is_empty() {
            self.answer(Status::OKAY);
            frame.set_tag(ANSWERED);
        } else {
            frame.set_tag(self.open());
        }
        self.out.push(frame);
        Ok(())
    }

    /// Copies the head of a frame out of pages that are mapped, and leaves the rest there. False:
    /// not all are.
    #[inline]
    fn build(
        &self,
        frame: &mut Frame<P>,
        pool: &Pool<P>,
        statics: &Statics<P>,
    ) -> Result<bool, Malformed> {
        let head = usize::from(self.packet.len).min(HEAD);
        frame.make_head(head).map_err(|_| Malformed::Sizes)?;
        let mut done = 0;
        for slot in self.packet.slots() {
            let Some(page) = statics.find(slot.gref) else {
                return Ok(false);
            };
            let len = slot.len.min((head - done) as u16);
            let mut part = Part {
                page,
                offset: slot.offset,
                len,
            };
            if len > 0 {
                let view = pool.memory().view(part).map_err(|_| Malformed::Sizes)?;
                let end = done + usize::from(len);
                let to = frame.head_mut().get_mut(done..end);
                let to = to.ok_or(Malformed::Sizes)?;
                view.read_bytes(0, to).map_err(|_| Malformed::Sizes)?;
                done = end;
            }
            if slot.len > len {
                part.offset += len;
                part.len = slot.len - len;
                frame.push(part).map_err(|_| Malformed::Sizes)?;
            }
        }
        frame.set_hash(self.packet.hash);
        inspect(frame, (self.packet.offloads, self.packet.is_unsummed)).map(|()| true)
    }

    /// Plans to copy the packet just read into pages of ours, of which there are enough.
    fn begin_copy(&mut self, pool: &mut Pool<P>) {
        let len = usize::from(self.packet.len);
        let Some(mut frame) = pool.take() else {
            return self.answer(Status::ERROR);
        };
        let mut pages = [0; FRAME_PAGES];
        let head = if len <= HEAD {
            Head::Scratch(self.copied.len() * HEAD)
        } else {
            for (page, at) in pages.iter_mut().zip((0..len).step_by(PAGE_SIZE)) {
                let taken = pool.take_page();
                debug_assert!(taken.is_some(), "there were enough");
                *page = taken.unwrap_or_default();
                // The head is read from the first page once it is there.
                let from = if at == 0 { HEAD } else { 0 };
                let part = Part {
                    page: Page::Local(*page),
                    offset: from as u16,
                    len: ((len - at).min(PAGE_SIZE) - from) as u16,
                };
                if at == 0 {
                    let _: Result<_, _> = frame.make_head(HEAD);
                }
                let pushed = frame.push(part);
                debug_assert!(pushed.is_ok(), "a page of ours");
            }
            Head::Page(pages[0])
        };
        if let Head::Scratch(_) = head {
            let _: Result<_, _> = frame.make_head(len);
        }
        let mut done = 0;
        for slot in self.packet.slots() {
            let (mut offset, mut left) = (slot.offset, usize::from(slot.len));
            while left > 0 {
                let (is_scratch, to) = match head {
                    Head::Scratch(at) => (true, at + done),
                    Head::Page(_) => {
                        let page = pages.get(done / PAGE_SIZE).copied().unwrap_or_default();
                        (false, usize::from(page) * PAGE_SIZE + done % PAGE_SIZE)
                    }
                };
                let piece = left.min(PAGE_SIZE - to % PAGE_SIZE);
                self.pieces.push(Piece {
                    gref: slot.gref,
                    offset,
                    len: piece as u16,
                    is_scratch,
                    to,
                });
                offset += piece as u16;
                left -= piece;
                done += piece;
            }
        }
        frame.set_tag(ANSWERED);
        frame.set_hash(self.packet.hash);
        let open = self.open();
        self.copied.push(Copied {
            frame: self.out.len(),
            open,
            head,
            pieces: self.pieces.len(),
            left: (self.packet.offloads, self.packet.is_unsummed),
        });
        self.out.push(frame);
    }

    /// Copies all that was planned, and answers it.
    fn copy(&mut self, shared: &Shared<P>, pool: &mut Pool<P>) -> Result<(), QueueError> {
        let mut ops = emptied(std::mem::take(&mut self.ops));
        ops.extend(self.pieces.iter().map(|piece| CopyOp {
            from: CopyEnd::Granted {
                domid: shared.peer,
                gref: piece.gref,
                offset: piece.offset,
            },
            to: CopyEnd::Local {
                pages: match piece.is_scratch {
                    true => &self.scratch,
                    false => pool.memory().local(),
                },
                offset: piece.to,
            },
            len: piece.len,
            status: GrantStatus::OKAY,
        }));
        shared.place.copy(&mut ops).map_err(QueueError::Copy)?;
        shared.stats.copies.add(ops.len() as u64);
        let mut copied = std::mem::take(&mut self.copied);
        let mut from = 0;
        // Which frames came to nothing, the last first.
        let mut failed = Vec::new();
        for one in copied.drain(..) {
            let mut done = ops.iter().zip(&self.pieces).take(one.pieces).skip(from);
            let bad = done.find(|(op, _)| op.status != GrantStatus::OKAY);
            from = one.pieces;
            let Some(frame) = self.out.get_mut(one.frame) else {
                continue;
            };
            let (pages, at) = match one.head {
                Head::Scratch(at) => (&self.scratch, at),
                Head::Page(page) => (pool.memory().local(), usize::from(page) * PAGE_SIZE),
            };
            let outcome = match bad {
                Some((op, piece)) => {
                    let (status, gref) = (op.status, piece.gref);
                    let now = shared.place.now();
                    shared.complaints.debug(now, || {
                        format!("a packet cannot be copied from grant {gref}: {status}")
                    });
                    Err(Drop::BadGrant)
                }
                None => match pages.view().read_bytes(at, frame.head_mut()) {
                    Ok(()) => inspect(frame, one.left).map_err(|_| Drop::Malformed),
                    Err(_) => Err(Drop::Host),
                },
            };
            let status = match outcome {
                Ok(()) => Status::OKAY,
                Err(why) => {
                    shared.stats.drops.count(why, 1);
                    shared.stats.tx.errors.add(1);
                    failed.push(one.frame);
                    Status::ERROR
                }
            };
            // As `close`, while `ops` borrows the rest.
            answer_open(
                &mut self.ring,
                &mut self.open,
                &mut self.free,
                one.open,
                status,
            );
        }
        self.ops = emptied(ops);
        self.pieces.clear();
        self.copied = copied;
        for frame in failed.into_iter().rev() {
            pool.recycle(self.out.remove(frame));
        }
        Ok(())
    }

    fn refuse(&mut self, shared: &Shared<P>, malformed: Malformed) {
        shared.stats.drops.count(Drop::Malformed, 1);
        shared.stats.tx.errors.add(1);
        let now = shared.place.now();
        shared
            .complaints
            .debug(now, || format!("a packet was refused: {malformed}"));
        self.answer(Status::ERROR);
    }

    fn change_groups(&mut self, shared: &Shared<P>) {
        let changed = self
            .packet
            .group
            .map(|group| shared.multicast.change(group));
        self.answer(match changed {
            Some(Err(_)) => Status::ERROR,
            _ => Status::OKAY,
        });
    }

    /// Answers all slots of the packet just read.
    #[inline]
    fn answer(&mut self, status: Status) {
        respond(
            &mut self.ring,
            self.packet.ids(),
            self.packet.extras,
            status,
        );
    }

    /// Notes the slots of the packet just read, to be answered later. There are as many places as
    /// slots, so there is one.
    fn open(&mut self) -> u32 {
        let tag = self.free.pop().unwrap_or_default();
        if let Some(open) = self.open.get_mut(tag as usize) {
            open.count = 0;
            open.extras = self.packet.extras;
            let places = open.ids.iter_mut().zip(&mut open.grefs);
            let slots = self.packet.ids().iter().zip(self.packet.slots());
            for ((to_id, to_gref), (id, slot)) in places.zip(slots) {
                (*to_id, *to_gref) = (*id, slot.gref);
                open.count += 1;
            }
        }
        tag
    }

    /// Answers the slots of a frame that is home, if they have not been.
    #[inline]
    fn close(&mut self, tag: u32) {
        if tag != ANSWERED {
            answer_open(
                &mut self.ring,
                &mut self.open,
                &mut self.free,
                tag,
                Status::OKAY,
            );
        }
    }
}

fn answer_open<M: parapet_ring::RingMemory>(
    ring: &mut Back<M, TxSlot, TxResponse>,
    open: &mut [Open],
    free: &mut Vec<u32>,
    tag: u32,
    status: Status,
) {
    if let Some(open) = open.get_mut(tag as usize) {
        let ids = open.ids.get(..usize::from(open.count)).unwrap_or_default();
        respond(ring, ids, open.extras, status);
        open.count = 0;
        free.push(tag);
    }
}

/// Answers slots: each of data with its id, each of extra information with nothing.
#[inline]
fn respond<M: parapet_ring::RingMemory>(
    ring: &mut Back<M, TxSlot, TxResponse>,
    ids: &[u16],
    extras: u16,
    status: Status,
) {
    for &id in ids {
        let pushed = ring.push(&TxResponse { id, status });
        debug_assert!(
            pushed.is_ok(),
            "a slot that was taken has room for its answer"
        );
    }
    for _ in 0..extras {
        let id = 0;
        let status = Status::NULL;
        let pushed = ring.push(&TxResponse { id, status });
        debug_assert!(
            pushed.is_ok(),
            "a slot that was taken has room for its answer"
        );
    }
}
