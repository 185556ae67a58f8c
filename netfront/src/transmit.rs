//! The transmit ring, and the pages that frames leave in.
//!
//! The pages are granted once, for reading, and lent to one frame after another. A request's id is
//! the number of its page, so that an answer says which page is free again, and every page is
//! outstanding at most once.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::task::{Context, Poll, ready};

use parapet_hypervisor::memory::{OutOfView, PAGE_SIZE, View};
use parapet_hypervisor::seam::{Access, Channel, Grant, Guest, Pages};
use parapet_packet::{Checksum, GsoKind, Mac, Offloads};
use parapet_ring::{Front, FrontLink, Own};
use parapet_xen_sys::io::netif::{
    ExtraFlags, ExtraGso, ExtraHash, ExtraInfo, ExtraMulticast, ExtraType, GsoType, HashAlgorithm,
    Status, TxExtra, TxFlags, TxRequest, TxResponse, TxSlot,
};
use parapet_xen_sys::{DomId, GrantRef, Port};

use crate::assembly::Hash;
use crate::config::Features;
use crate::error::{LONGEST, QueueError, Unfit, Violation};
use crate::signal::Signal;

/// Bytes of an Ethernet header: what is shorter is no frame.
pub(crate) const ETHERNET_HEADER: usize = 14;

/// The most pages of a frame.
const PARTS: usize = LONGEST.div_ceil(PAGE_SIZE);

/// The most slots of extra information of a frame.
const EXTRAS: usize = 2;

/// The most slots of a frame.
pub(crate) const MOST_SLOTS: usize = PARTS + EXTRAS;

/// Frames up to this length leave room in their page.
const SHORT: usize = PAGE_SIZE / 2;

/// A line of a processor's cache.
const LINE: usize = 64;

/// What an interface's queue has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Parts of frames that the backend has refused or dropped.
    pub failed: u64,
    /// Parts of frames whose fate is unknown: they were under way when the backend left.
    pub lost: u64,
}

/// Why a frame was not taken by a ring.
pub(crate) enum Refused {
    NoRoom,
    Unfit(Unfit),
    Violation(Violation),
}

pub(crate) struct TxRing<G: Guest> {
    link: FrontLink<Own<G::Pages>, TxSlot, TxResponse, Signal<G::Channel>>,
    ring_grant: G::Grant,
    pages: G::Pages,
    grant: G::Grant,
    /// Pages that are not lent. The latest comes first, since it is the warmest.
    idle: Vec<u16>,
    /// Whether a page is outstanding.
    outstanding: Box<[bool]>,
    /// How many slots of extra information are.
    extras: u32,
    features: Features,
    pub(crate) counts: Sent,
    violation: Option<Violation>,
}

impl<G: Guest> TxRing<G> {
    pub(crate) fn new(
        guest: &G,
        backend: DomId,
        signal: Signal<G::Channel>,
        features: Features,
    ) -> Result<Self, QueueError> {
        let memory = guest.allocate(1)?;
        let ring = Front::new(Own(memory.clone()))?;
        let ring_grant = guest.grant(&memory, backend, Access::ReadWrite)?;
        // 256.
        let slots = ring.slots() as u16;
        let pages = guest.allocate(usize::from(slots))?;
        let grant = guest.grant(&pages, backend, Access::ReadOnly)?;
        Ok(TxRing {
            link: FrontLink::new(ring, signal),
            ring_grant,
            pages,
            grant,
            idle: (0..slots).rev().collect(),
            outstanding: (0..slots).map(|_| false).collect(),
            extras: 0,
            features,
            counts: Sent::default(),
            violation: None,
        })
    }

    pub(crate) fn ring_ref(&self) -> Option<GrantRef> {
        self.ring_grant.refs().first().copied()
    }

    pub(crate) fn port(&self) -> Port {
        self.link.channel.port()
    }

    /// The references of the pages, which may be mapped for as long as there is the ring.
    pub(crate) fn page_refs(&self) -> &[GrantRef] {
        self.grant.refs()
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// How many pages are outstanding.
    pub(crate) fn under_way(&self) -> usize {
        self.outstanding.len() - self.idle.len()
    }

    #[inline]
    fn free(&self) -> usize {
        self.link.ring.free() as usize
    }

    /// Takes the answers that have come.
    pub(crate) fn collect(&mut self) -> Result<(), Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        let collected = self.take_answers();
        collected.inspect_err(|&violation| self.violation = Some(violation))
    }

    fn take_answers(&mut self) -> Result<(), Violation> {
        while let Some(TxResponse { id, status }) = self.link.ring.take()? {
            if status == Status::NULL {
                // Of these nobody has written the id.
                let left = self.extras.checked_sub(1);
                self.extras = left.ok_or(Violation::NotOutstanding { id })?;
                continue;
            }
            match self.outstanding.get_mut(usize::from(id)) {
                Some(outstanding @ true) => *outstanding = false,
                _ => return Err(Violation::NotOutstanding { id }),
            }
            self.idle.push(id);
            match status {
                Status::OKAY => {}
                Status::ERROR | Status::DROPPED => self.counts.failed += 1,
                Status(other) => return Err(Violation::Status(other)),
            }
        }
        Ok(())
    }

    /// Whether so many slots are free, if need be after a look at what was answered.
    #[inline]
    fn has_room(&mut self, slots: usize) -> Result<bool, Violation> {
        if self.free() >= slots {
            return Ok(true);
        }
        self.collect()?;
        Ok(self.free() >= slots)
    }

    /// Pages for a frame of `len` bytes.
    #[inline]
    pub(crate) fn reserve(&mut self, len: usize) -> Result<Draft<'_, G>, Refused> {
        let most = self.features.longest();
        if len < ETHERNET_HEADER {
            return Err(Refused::Unfit(Unfit::TooShort(len)));
        }
        if len > most {
            return Err(Refused::Unfit(Unfit::TooLong { len, most }));
        }
        if let Some(violation) = self.violation {
            return Err(Refused::Violation(violation));
        }
        let count = len.div_ceil(PAGE_SIZE);
        match self.has_room(count + EXTRAS) {
            Err(violation) => return Err(Refused::Violation(violation)),
            Ok(false) => return Err(Refused::NoRoom),
            Ok(true) => {}
        }
        // There are as many pages as slots.
        let rest = self.idle.len().saturating_sub(count);
        let mut pages = [0; PARTS];
        for (to, from) in pages.iter_mut().zip(self.idle.drain(rest..)) {
            *to = from;
        }
        // Short ones begin in different places, since the same place in every page is the same few
        // lines of a processor's cache.
        let offset = match pages {
            [page, ..] if len <= SHORT => page % (SHORT / LINE) as u16 * LINE as u16,
            _ => 0,
        };
        Ok(Draft {
            ring: self,
            pages,
            offset,
            // At most `PARTS`.
            count: count as u8,
            len: len as u16,
            hash: None,
        })
    }

    #[inline]
    fn push(&mut self, slot: TxSlot) {
        let pushed = self.link.ring.push(&slot);
        debug_assert!(pushed.is_ok(), "there was room");
    }

    fn push_extra<E>(&mut self, extra: E)
    where
        E: zerocopy::IntoBytes + zerocopy::Immutable,
    {
        let mut slot: TxSlot = [0; 12];
        let bytes = extra.as_bytes();
        if let Some(to) = slot.get_mut(..bytes.len()) {
            to.copy_from_slice(bytes);
        }
        self.push(slot);
        self.extras += 1;
    }

    /// Asks the backend to let a group's frames through, or not any more. False: there is no room.
    pub(crate) fn multicast(&mut self, group: Mac, join: bool) -> Result<bool, Violation> {
        if !self.has_room(2)? {
            return Ok(false);
        }
        let Some(page) = self.idle.pop() else {
            return Ok(false);
        };
        self.lend(page, TxFlags::EXTRA_INFO, 0, 0);
        let kind = match join {
            true => ExtraType::MulticastAdd,
            false => ExtraType::MulticastDel,
        };
        self.push_extra(ExtraMulticast {
            extra: kind as u8,
            flags: ExtraFlags::empty(),
            addr: group.0,
        });
        Ok(true)
    }

    /// Writes a slot with data of `page`, which is outstanding from then on.
    #[inline]
    fn lend(&mut self, page: u16, flags: TxFlags, offset: u16, size: u16) {
        let at = usize::from(page);
        let (Some(&gref), Some(outstanding)) =
            (self.grant.refs().get(at), self.outstanding.get_mut(at))
        else {
            return;
        };
        *outstanding = true;
        let request = TxRequest {
            gref,
            offset,
            flags,
            id: page,
            size,
        };
        self.push(zerocopy::transmute!(request));
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        self.link.publish()
    }

    /// Tells the backend to look, whether it asked to be told or not.
    pub(crate) fn notify(&self) {
        self.link.channel.notify();
    }

    /// Asks to be notified when there may be room for so many slots. True: there is.
    pub(crate) fn arm(&mut self, slots: usize) -> Result<bool, Violation> {
        self.publish();
        loop {
            if self.has_room(slots)? {
                return Ok(true);
            }
            // A quarter of what is under way at once, and not a wake-up for each.
            let used = self.outstanding.len().saturating_sub(self.free());
            let wanted = slots.saturating_sub(self.free()).max(used / 4);
            // As many as there are slots.
            let armed = self.link.ring.arm_after(wanted as u32);
            let armed = armed.map_err(Violation::from);
            if !armed.inspect_err(|&violation| self.violation = Some(violation))? {
                return Ok(false);
            }
            // So many have come: whether they are enough is seen above, and each time there are
            // fewer to come.
        }
    }

    /// Ready when there is room for so many slots. What was sent is published before it waits.
    pub(crate) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        slots: usize,
    ) -> Poll<Result<(), Violation>> {
        for _ in 0..2 {
            if self.arm(slots)? {
                return Poll::Ready(Ok(()));
            }
            ready!(self.link.channel.poll_wait(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends the grants. How many pages the backend has kept, if that can be told.
    pub(crate) fn end(self) -> usize {
        let held = [self.ring_grant, self.grant].map(|grant| match grant.end() {
            Ok(()) => 0,
            Err(still) => still.0,
        });
        held.iter().sum()
    }
}

/// How many slots a frame of that length takes at most.
#[inline]
pub(crate) fn slots_for(len: usize) -> usize {
    (len.div_ceil(PAGE_SIZE) + EXTRAS).min(MOST_SLOTS)
}

/// Pages that are to be filled with a frame and then sent: no copy is made of what is written
/// here. Dropping it gives them back.
///
/// What was in the pages before is still there; write all of the frame.
pub struct Draft<'a, G: Guest> {
    ring: &'a mut TxRing<G>,
    pages: [u16; PARTS],
    count: u8,
    /// Where it begins in the first.
    offset: u16,
    len: u16,
    hash: Option<Hash>,
}

impl<G: Guest> Draft<'_, G> {
    /// The length of the frame in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[inline]
    fn pages(&self) -> &[u16] {
        self.pages
            .get(..usize::from(self.count))
            .unwrap_or_default()
    }

    /// The memory of the frame, page by page: together as long as it is.
    #[inline]
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        let memory = self.ring.pages.view();
        let mut left = self.len();
        let offset = usize::from(self.offset);
        self.pages().iter().filter_map(move |&page| {
            let len = left.min(PAGE_SIZE);
            left -= len;
            memory
                .slice(usize::from(page) * PAGE_SIZE + offset, len)
                .ok()
        })
    }

    /// Writes bytes of the frame, from `at` on.
    ///
    /// # Errors
    /// The frame is not so long; then some may have been written.
    #[inline]
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), OutOfView> {
        let (mut skip, mut from) = (at, from);
        for view in self.views() {
            if from.is_empty() {
                return Ok(());
            }
            let skipped = skip.min(view.len());
            skip -= skipped;
            let len = (view.len() - skipped).min(from.len());
            let (now, later) = from.split_at(len);
            view.write_bytes(skipped, now)?;
            from = later;
        }
        if from.is_empty() {
            return Ok(());
        }
        Err(OutOfView {
            offset: at,
            len: from.len(),
            size: self.len(),
        })
    }

    /// Makes the frame shorter, when less came than there was room for.
    ///
    /// # Errors
    /// [`Unfit::TooShort`] for an Ethernet header, or [`Unfit::TooLong`]; it is as it was then.
    pub fn shorten(&mut self, len: usize) -> Result<(), Unfit> {
        if len < ETHERNET_HEADER {
            return Err(Unfit::TooShort(len));
        }
        let most = self.len();
        if len > most {
            return Err(Unfit::TooLong { len, most });
        }
        while usize::from(self.count) > len.div_ceil(PAGE_SIZE) {
            self.count -= 1;
            if let Some(&page) = self.pages.get(usize::from(self.count)) {
                self.ring.idle.push(page);
            }
        }
        // Less than it was.
        self.len = len as u16;
        Ok(())
    }

    /// Gives the frame a hash, of which the backend may make use: only for one that was told to
    /// hash (`Interface::set_hash`).
    pub fn set_hash(&mut self, hash: Hash) {
        self.hash = Some(hash);
    }

    /// Sends it. The backend sees it when it is published.
    ///
    /// # Errors
    /// The backend does not do what is left to be done to it.
    #[inline]
    pub fn send(self, offloads: Offloads) -> Result<(), Unfit> {
        self.ring.features.take(offloads)?;
        let (offset, len, hash) = (self.offset, self.len, self.hash);
        let mut this = self;
        let mut flags = match offloads.checksum {
            Checksum::Unchecked => TxFlags::empty(),
            Checksum::Intact => TxFlags::DATA_VALIDATED,
            Checksum::Blank => TxFlags::DATA_VALIDATED | TxFlags::CSUM_BLANK,
        };
        let gso = offloads.gso;
        if gso.is_some() {
            flags |= TxFlags::DATA_VALIDATED | TxFlags::CSUM_BLANK;
        }
        if gso.is_some() || hash.is_some() {
            flags |= TxFlags::EXTRA_INFO;
        }
        let count = usize::from(core::mem::take(&mut this.count));
        let pages = this.pages;
        let ring = &mut *this.ring;
        ring.counts.frames += 1;
        ring.counts.bytes += u64::from(len);
        let mut left = usize::from(len);
        for (at, &page) in pages.iter().take(count).enumerate() {
            let last = at + 1 == count;
            let own = left.min(PAGE_SIZE);
            left -= own;
            let more = match last {
                true => TxFlags::empty(),
                false => TxFlags::MORE_DATA,
            };
            if at > 0 {
                // At most a page.
                ring.lend(page, more, 0, own as u16);
                continue;
            }
            ring.lend(page, flags | more, offset, len);
            if let Some(gso) = gso {
                ring.push_extra(ExtraGso {
                    extra: ExtraType::Gso as u8,
                    flags: match hash {
                        Some(_) => ExtraFlags::MORE,
                        None => ExtraFlags::empty(),
                    },
                    size: gso.size.get(),
                    gso: match gso.kind {
                        GsoKind::TcpV4 => GsoType::TcpV4,
                        GsoKind::TcpV6 => GsoType::TcpV6,
                    } as u8,
                    _pad: 0,
                    features: 0,
                });
            }
            if let Some(hash) = hash {
                ring.push_extra(ExtraHash {
                    extra: ExtraType::Hash as u8,
                    flags: ExtraFlags::empty(),
                    hash: hash.kind,
                    algorithm: HashAlgorithm::Toeplitz as u8,
                    value: hash.value.to_le_bytes(),
                });
            }
        }
        Ok(())
    }
}

impl<G: Guest> Drop for Draft<'_, G> {
    #[inline]
    fn drop(&mut self) {
        let count = usize::from(self.count);
        if let Some(pages) = self.pages.get(..count) {
            self.ring.idle.extend_from_slice(pages);
        }
    }
}

impl<G: Guest> fmt::Debug for Draft<'_, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} bytes)", self.len)
    }
}

const _: () = assert!(size_of::<ExtraInfo>() <= size_of::<TxExtra>());
