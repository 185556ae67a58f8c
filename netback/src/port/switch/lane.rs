//! One queue's way into a switch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Instant, Pages};
use parapet_packet::headers::ether_type;

use super::table::{Found, Learned, Place, Slot, Station};
use super::{Connection, Member, Seam};
use crate::drops::{Drop, Drops};
use crate::frame::{Frame, Page, Part, Pool};
use crate::port::Port;
use crate::port::guard::Guard;

/// Stations that a lane remembers as receivers.
const RECEIVERS: usize = 256;
/// Stations that it remembers as senders.
const SENDERS: usize = 32;
/// Copies of a queue's frames that are under way.
const COPIES: u16 = 256;
/// Pages that they may have together; short ones need none.
const COPY_PAGES: u16 = 64;
/// How often a station that goes on sending says so.
const HEARD: Duration = Duration::from_secs(1);

/// One queue's port.
pub(super) struct Lane<P: Seam> {
    connection: Arc<Connection<P>>,
    queue: usize,
    guard: Option<Guard>,
    /// The table's changes that all below goes with.
    changes: u64,
    members: Arc<[Option<Member<P>>]>,
    receivers: Cache<Receiver, RECEIVERS>,
    senders: Cache<Sender, SENDERS>,
    /// Who was given something in a batch, by slot: a bit for each of their queues.
    given: Vec<u64>,
    /// Those slots.
    woken: Vec<Slot>,
    copies: Copies<P>,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy)]
enum Way {
    To(Slot),
    ToAll { vlan: u16 },
}

/// Who is behind an address.
#[derive(Clone, Default)]
enum Receiver {
    /// Nobody knows.
    #[default]
    Unknown,
    /// A vif, whose own it is.
    Own(Slot),
    Station(Arc<Station>),
}

/// What is known of somebody who has sent before.
#[derive(Clone)]
enum Sender {
    /// It is the vif itself.
    Own,
    /// Whether it may send was asked then, and it is not to be said where it is.
    Other { may: bool, asked: Instant },
    /// It was said then that it was heard.
    Station {
        station: Arc<Station>,
        said: Instant,
    },
}

/// What a lane remembers, by place: where two are of the same number the later stays.
struct Cache<T, const N: usize>(Box<[Option<(Place, T)>; N]>);

impl<T, const N: usize> Cache<T, N> {
    fn new() -> Self {
        Cache(Box::new([const { None }; N]))
    }

    #[inline]
    fn entry(&mut self, place: Place) -> &mut Option<(Place, T)> {
        let [a, b, c, d, e, f] = place.mac.0;
        let [g, h] = place.vlan.to_le_bytes();
        // What comes last differs most.
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
        // The rest of a division by `N`.
        &mut self.0[mixed as usize % N]
    }

    #[inline]
    fn get(&mut self, place: Place) -> Option<&mut T> {
        match self.entry(place) {
            Some((known, value)) if *known == place => Some(value),
            _ => None,
        }
    }

    fn put(&mut self, place: Place, value: T) {
        *self.entry(place) = Some((place, value));
    }

    fn clear(&mut self) {
        self.0.fill_with(|| None);
    }
}

impl<P: Seam> Lane<P> {
    pub(super) fn new(connection: Arc<Connection<P>>, queue: usize, guard: Option<Guard>) -> Self {
        Lane {
            connection,
            queue,
            guard,
            changes: 0,
            members: Arc::new([]),
            receivers: Cache::new(),
            senders: Cache::new(),
            given: Vec::new(),
            woken: Vec::new(),
            copies: Copies::default(),
        }
    }

    /// Forgets what does not hold any more.
    #[inline]
    fn look_anew(&mut self) {
        let shared = &self.connection.shared;
        if shared.changes.load(Ordering::Acquire) == self.changes {
            return;
        }
        self.receivers.clear();
        self.senders.clear();
        let core = shared.lock();
        self.members = Arc::clone(&core.members);
        self.changes = core.table.changes();
        drop(core);
        self.given.resize(self.members.len(), 0);
    }

    fn way(&mut self, frame: &Frame<P>, now: Instant) -> Result<Way, Drop> {
        let head = frame.head();
        if let Some(guard) = &self.guard
            && !guard.allows(head, frame.len())
        {
            return Err(Drop::Spoofed);
        }
        let (Some(destination), Some(source)) = (frame.destination(), frame.source()) else {
            return Err(Drop::Malformed);
        };
        let slot = usize::from(self.connection.slot);
        let Some(Some(own)) = self.members.get(slot) else {
            return Err(Drop::Gone);
        };
        let is_ours = |endpoint: &Arc<_>| Arc::ptr_eq(endpoint, &self.connection.endpoint);
        if !own.endpoint.as_ref().is_some_and(is_ours) {
            // The slot is another's by now, or the frontend has connected anew.
            return Err(Drop::Gone);
        }
        let vlan = match (tag(head), own.vlan) {
            (tag, None) => tag,
            (0, Some(vlan)) => vlan,
            // It is in its VLAN, and has no other.
            (_, Some(_)) => return Err(Drop::NoWay),
        };
        if !source.is_station() {
            return Err(Drop::Spoofed);
        }
        let place = |mac| Place { mac, vlan };
        if !self.hear(place(source), now) {
            return Err(Drop::Spoofed);
        }
        if destination.is_group() {
            return Ok(Way::ToAll { vlan });
        }
        match self.find(place(destination), now) {
            None => Ok(Way::ToAll { vlan }),
            Some(slot) if self.reaches(slot, vlan) => Ok(Way::To(slot)),
            Some(_) => Err(Drop::NoWay),
        }
    }

    /// Learns whom a frame is from; false if it cannot be from there.
    #[inline]
    fn hear(&mut self, place: Place, now: Instant) -> bool {
        match self.senders.get(place) {
            Some(Sender::Own) => return true,
            Some(Sender::Other { may, asked }) if now.since(*asked) < HEARD => return *may,
            Some(Sender::Station { said, .. }) if now.since(*said) < HEARD => return true,
            Some(Sender::Station { station, said })
                if station.silence(now) < self.connection.shared.age =>
            {
                *said = now;
                station.hear(now);
                return true;
            }
            _ => {}
        }
        self.learn(place, now)
    }

    #[cold]
    fn learn(&mut self, place: Place, now: Instant) -> bool {
        let shared = &self.connection.shared;
        let learned = {
            let mut core = shared.lock();
            let learned = core.table.learn(place, self.connection.slot, now);
            shared.publish(&core);
            learned
        };
        if matches!(learned, Learned::Refused) {
            shared.stats.unlearned.fetch_add(1, Ordering::Relaxed);
        }
        let may = !matches!(learned, Learned::Taken);
        let sender = match learned {
            Learned::Own => Sender::Own,
            Learned::Here(station) => Sender::Station { station, said: now },
            Learned::Taken | Learned::Refused => Sender::Other { may, asked: now },
        };
        self.senders.put(place, sender);
        may
    }

    #[inline]
    fn find(&mut self, place: Place, now: Instant) -> Option<Slot> {
        let age = self.connection.shared.age;
        match self.receivers.get(place) {
            Some(Receiver::Own(slot)) => return Some(*slot),
            Some(Receiver::Station(station)) if station.silence(now) < age => {
                return Some(station.slot);
            }
            Some(Receiver::Unknown) => return None,
            Some(Receiver::Station(_)) | None => {}
        }
        self.look_up(place, now)
    }

    #[cold]
    fn look_up(&mut self, place: Place, now: Instant) -> Option<Slot> {
        let found = self.connection.shared.lock().table.find(place, now);
        let (receiver, slot) = match found {
            None => (Receiver::Unknown, None),
            Some(Found::Own(slot)) => (Receiver::Own(slot), Some(slot)),
            Some(Found::Station(station)) => {
                let slot = station.slot;
                (Receiver::Station(station), Some(slot))
            }
        };
        self.receivers.put(place, receiver);
        slot
    }

    /// Whether a frame of that VLAN may go from here to there.
    #[inline]
    fn reaches(&self, slot: Slot, vlan: u16) -> bool {
        let member = |slot: Slot| self.members.get(usize::from(slot))?.as_ref();
        let (Some(from), Some(to)) = (member(self.connection.slot), member(slot)) else {
            return false;
        };
        slot != self.connection.slot
            && !(from.isolated && to.isolated)
            && to.vlan.is_none_or(|own| own == vlan)
            && to.endpoint.is_some()
    }

    /// Gives a frame to a port that it reaches.
    #[inline]
    fn give(&mut self, slot: Slot, vlan: Option<u16>, mut frame: Frame<P>) -> Result<(), Drop> {
        let index = usize::from(slot);
        let to = self.members.get(index).and_then(Option::as_ref);
        let (Some(to), Some(given)) = (to, self.given.get_mut(index)) else {
            return Err(Drop::Gone);
        };
        // Who is in a VLAN has no tags, who is in none has them.
        match (vlan, to.vlan) {
            (Some(vlan), None) => frame.push_tag(vlan).map_err(|_| Drop::TooLong)?,
            (None, Some(_)) => frame.pop_tag(),
            _ => {}
        }
        let endpoint = to.endpoint.as_ref().ok_or(Drop::Gone)?;
        match endpoint.deliver(self.queue, frame) {
            Ok(queue) if queue < 64 => {
                if *given == 0 {
                    self.woken.push(slot);
                }
                *given |= 1 << queue;
                Ok(())
            }
            Ok(queue) => {
                endpoint.ring(queue);
                Ok(())
            }
            Err(_) => Err(Drop::ReceiverFull),
        }
    }

    /// Gives a frame to all whom it reaches: copies to all but the last.
    #[cold]
    fn give_to_all(&mut self, vlan: u16, frame: Frame<P>) -> Result<(), Drop> {
        let own_vlan = self.own_vlan();
        let shared = Arc::clone(&self.connection.shared);
        shared.stats.flooded.fetch_add(1, Ordering::Relaxed);
        // At most as many as there are slots.
        let slots = self.members.len() as Slot;
        let receivers = (0..slots).filter(|&slot| self.reaches(slot, vlan)).count();
        let share = |all: u16| usize::from(all).div_ceil(receivers.max(1));
        let share = (share(COPIES).max(4), share(COPY_PAGES));
        let (mut left, mut got, mut last) = (receivers, false, Drop::NoWay);
        let mut frame = Some(frame);
        for slot in 0..slots {
            if left == 0 || !self.reaches(slot, vlan) {
                continue;
            }
            left -= 1;
            let copy = match left {
                0 => frame.take().ok_or(Drop::Host),
                _ => match &frame {
                    Some(frame) => self.copies.of(&shared.place, frame, slot, share),
                    None => Err(Drop::Host),
                },
            };
            shared
                .stats
                .copies
                .fetch_add(u64::from(left > 0 && copy.is_ok()), Ordering::Relaxed);
            match copy.and_then(|copy| self.give(slot, own_vlan, copy)) {
                Ok(()) => got = true,
                Err(why) => {
                    last = why;
                    shared.stats.lost.count(why, 1);
                }
            }
        }
        if got { Ok(()) } else { Err(last) }
    }

    fn own_vlan(&self) -> Option<u16> {
        let own = self.members.get(usize::from(self.connection.slot));
        own.and_then(|own| own.as_ref()?.vlan)
    }

    /// Wakes everybody who was given something.
    fn ring(&mut self) {
        for slot in self.woken.drain(..) {
            let slot = usize::from(slot);
            let to = self.members.get(slot).and_then(Option::as_ref);
            let endpoint = to.and_then(|to| to.endpoint.as_ref());
            let (Some(endpoint), Some(given)) = (endpoint, self.given.get_mut(slot)) else {
                continue;
            };
            while *given != 0 {
                endpoint.ring(given.trailing_zeros() as usize);
                *given &= *given - 1;
            }
        }
    }
}

/// Copies of frames to all, each of which goes to one receiver. No receiver holds so many that
/// there are none left for the others.
struct Copies<P: Seam> {
    pool: Option<Pool<P>>,
    /// By slot: copies, and pages of these.
    held: Vec<(u16, u16)>,
}

impl<P: Seam> Default for Copies<P> {
    fn default() -> Self {
        Copies {
            pool: None,
            held: Vec::new(),
        }
    }
}

impl<P: Seam> Copies<P> {
    /// A copy of a frame for the receiver with that number, which may have so many copies, and
    /// pages of these: more only in a single one.
    fn of(
        &mut self,
        place: &P,
        frame: &Frame<P>,
        slot: Slot,
        (most, most_pages): (usize, usize),
    ) -> Result<Frame<P>, Drop> {
        let pool = match &mut self.pool {
            Some(pool) => pool,
            none => {
                let bell = Arc::default();
                let pool = Pool::new(place, place.domid(), COPIES, COPY_PAGES, bell);
                none.insert(pool.map_err(|_| Drop::Host)?)
            }
        };
        let held = &mut self.held;
        pool.collect(|tag| {
            let [low, high, pages, _] = tag.to_le_bytes();
            let slot = usize::from(u16::from_le_bytes([low, high]));
            if let Some((copies, of_these)) = held.get_mut(slot) {
                *copies = copies.saturating_sub(1);
                *of_these = of_these.saturating_sub(pages.into());
            }
        });
        let index = usize::from(slot);
        if held.len() <= index {
            held.resize(index + 1, (0, 0));
        }
        let body = frame.len().saturating_sub(frame.head().len());
        // A frame is shorter than 64 KiB.
        let pages = body.div_ceil(PAGE_SIZE) as u16;
        let (copies, of_these) = &mut held[index];
        let has_pages = *of_these > 0 && usize::from(*of_these + pages) > most_pages;
        if usize::from(*copies) >= most || (has_pages && pages > 0) {
            return Err(Drop::ReceiverFull);
        }
        if pool.free_pages() < usize::from(pages) {
            return Err(Drop::Host);
        }
        let mut copy = pool.take().ok_or(Drop::Host)?;
        if fill(&mut copy, frame, pool).is_err() {
            pool.recycle(copy);
            return Err(Drop::Host);
        }
        copy.set_offloads(frame.offloads());
        copy.set_hash(frame.hash());
        copy.set_tag(u32::from(slot) | u32::from(pages) << 16);
        *copies += 1;
        *of_these += pages;
        Ok(copy)
    }
}

/// The copy cannot be made.
struct NoCopy;

/// Copies a frame's bytes into another, and pages of its pool.
fn fill<P: Seam>(to: &mut Frame<P>, from: &Frame<P>, pool: &mut Pool<P>) -> Result<(), NoCopy> {
    let head = from.head();
    to.make_head(head.len())
        .map_err(|_| NoCopy)?
        .copy_from_slice(head);
    let mut left = from.len() - head.len();
    let mut views = from.views();
    // What is left of the view that is being copied.
    let mut rest = None;
    while left > 0 {
        let page = pool.take_page().ok_or(NoCopy)?;
        let len = left.min(PAGE_SIZE);
        let mut done = 0;
        while done < len {
            let Some(view) = rest.take().or_else(|| views.next()) else {
                pool.give_back(page);
                return Err(NoCopy);
            };
            let some = view.len().min(len - done);
            let local = pool.memory().local().view();
            let at = usize::from(page) * PAGE_SIZE + done;
            let copied = view.copy_to(0, local, at, some);
            rest = view.slice(some, view.len() - some).ok();
            rest = rest.filter(|rest| !rest.is_empty());
            if copied.is_err() {
                pool.give_back(page);
                return Err(NoCopy);
            }
            done += some;
        }
        let part = Part {
            page: Page::Local(page),
            offset: 0,
            // At most a page.
            len: len as u16,
        };
        if to.push(part).is_err() {
            pool.give_back(page);
            return Err(NoCopy);
        }
        left -= len;
    }
    Ok(())
}

/// The VLAN of a frame's outermost tag; 0 if it has none, or one that is none (a priority).
#[inline]
fn tag(head: &[u8]) -> u16 {
    const VLAN: [u8; 2] = ether_type::VLAN.to_be_bytes();
    const SERVICE_VLAN: [u8; 2] = ether_type::SERVICE_VLAN.to_be_bytes();
    match head.get(12..).and_then(<[u8]>::first_chunk) {
        Some(&[a, b, high, low]) if [VLAN, SERVICE_VLAN].contains(&[a, b]) => {
            u16::from_be_bytes([high, low]) & 0xFFF
        }
        _ => 0,
    }
}

impl<P: Seam> Port<P> for Lane<P> {
    fn send(&mut self, frames: &mut Vec<Frame<P>>, drops: &Drops) {
        self.look_anew();
        let now = self.connection.shared.place.now();
        let vlan = self.own_vlan();
        for frame in frames.drain(..) {
            let outcome = match self.way(&frame, now) {
                Ok(Way::To(slot)) => self.give(slot, vlan, frame),
                Ok(Way::ToAll { vlan }) => self.give_to_all(vlan, frame),
                Err(why) => Err(why),
            };
            if let Err(why) = outcome {
                drops.count(why, 1);
            }
        }
        self.ring();
    }

    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Vec<Frame<P>>,
        _: usize,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn is_quiet(&self) -> bool {
        true
    }
}
