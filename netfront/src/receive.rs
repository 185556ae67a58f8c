//! The receive ring: pages that the backend fills.
//!
//! A page belongs to a slot of the ring for good, so that the request in a slot is always the same,
//! and the answer's id is the slot's number. Every page is posted, but for those of the one frame
//! that the user looks at.

use core::fmt;
use core::task::{Context, Poll};

use parapet_hypervisor::memory::{OutOfView, PAGE_SIZE, ReadOnly, View};
use parapet_hypervisor::seam::{Access, Channel, Grant, Guest, Pages};
use parapet_packet::Offloads;
use parapet_ring::{Front, FrontLink, Own};
use parapet_xen_sys::io::netif::{RxRequest, RxSlot};
use parapet_xen_sys::{DomId, GrantRef, Port};

use crate::assembly::{Assembly, Hash, Progress};
use crate::error::{QueueError, Violation};
use crate::signal::Signal;

/// Slots that are posted anew are published when there are so many of them, or nothing else to do.
const BATCH: u32 = 32;

/// What an interface's queue has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that the backend could not deliver, or that are shorter than an Ethernet header.
    pub failed: u64,
}

pub(crate) struct RxRing<G: Guest> {
    link: FrontLink<Own<G::Pages>, RxRequest, RxSlot, Signal<G::Channel>>,
    ring_grant: G::Grant,
    pages: G::Pages,
    grant: G::Grant,
    slots: u32,
    /// How many slots were posted, and how many of these were published.
    posted: u32,
    published: u32,
    /// How many answers were taken, and of how many the pages may be posted again.
    taken: u32,
    released: u32,
    assembly: Assembly,
    /// The frame in `assembly` is whole, and nobody has had it.
    whole: bool,
    pub(crate) counts: Received,
    violation: Option<Violation>,
}

impl<G: Guest> RxRing<G> {
    pub(crate) fn new(
        guest: &G,
        backend: DomId,
        signal: Signal<G::Channel>,
    ) -> Result<Self, QueueError> {
        let memory = guest.allocate(1)?;
        let ring = Front::new(Own(memory.clone()))?;
        let ring_grant = guest.grant(&memory, backend, Access::ReadWrite)?;
        let slots = ring.slots();
        let pages = guest.allocate(slots as usize)?;
        let grant = guest.grant(&pages, backend, Access::ReadWrite)?;
        let mut new = RxRing {
            link: FrontLink::new(ring, signal),
            ring_grant,
            pages,
            grant,
            slots,
            posted: 0,
            published: 0,
            taken: 0,
            released: 0,
            assembly: Assembly::new(),
            whole: false,
            counts: Received::default(),
            violation: None,
        };
        new.post();
        // Nobody is there to be notified.
        new.publish();
        Ok(new)
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

    /// Tells the backend to look.
    pub(crate) fn notify(&self) {
        self.link.channel.notify();
    }

    /// Posts all pages that are not.
    #[inline]
    fn post(&mut self) {
        let until = self.released.wrapping_add(self.slots);
        while self.posted != until {
            let slot = self.posted & (self.slots - 1);
            let Some(&gref) = self.grant.refs().get(slot as usize) else {
                return;
            };
            let request = RxRequest {
                // There are 256.
                id: slot as u16,
                _pad: 0,
                gref,
            };
            if self.link.ring.push(&request).is_err() {
                return;
            }
            self.posted = self.posted.wrapping_add(1);
        }
    }

    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.published != self.posted {
            self.published = self.posted;
            self.link.publish();
        }
    }

    /// The frame that was looked at is not any more.
    #[inline]
    fn release(&mut self) {
        self.whole = false;
        self.released = self.taken;
        self.post();
        if self.posted.wrapping_sub(self.published) >= BATCH {
            self.publish();
        }
    }

    /// Whether a whole frame has come. If not, everything that is free is posted.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<bool, Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        let looked = self.assemble();
        looked.inspect_err(|&violation| self.violation = Some(violation))
    }

    #[inline]
    fn assemble(&mut self) -> Result<bool, Violation> {
        while !self.whole {
            let Some(bytes) = self.link.ring.take()? else {
                self.publish();
                return Ok(false);
            };
            let slot = (self.taken & (self.slots - 1)) as u16;
            self.taken = self.taken.wrapping_add(1);
            match self.assembly.take(slot, bytes)? {
                Progress::More => {}
                Progress::Whole => {
                    self.counts.frames += 1;
                    self.counts.bytes += self.assembly.len as u64;
                    self.whole = true;
                }
                Progress::Failed => {
                    self.counts.failed += 1;
                    self.release();
                }
            }
        }
        Ok(true)
    }

    /// The frame that [`RxRing::look`] has found.
    #[inline]
    pub(crate) fn frame(&mut self) -> RxFrame<'_, G> {
        debug_assert!(self.whole, "nobody looked");
        RxFrame(self)
    }

    /// Asks to be notified of the next slot. True: there is one already.
    pub(crate) fn arm(&mut self) -> Result<bool, Violation> {
        if self.look()? {
            return Ok(true);
        }
        let armed = self.link.ring.arm().map_err(Violation::from);
        armed.inspect_err(|&violation| self.violation = Some(violation))
    }

    /// Ready when there is a whole frame.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Violation>> {
        // Parts of a frame are taken as they come, and end no wait; the bound is the ring's.
        for _ in 0..2 {
            if self.look()? {
                return Poll::Ready(Ok(()));
            }
            match self.link.poll_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(violation)) => {
                    let violation = Violation::from(violation);
                    self.violation = Some(violation);
                    return Poll::Ready(Err(violation));
                }
            }
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

/// A frame that has come, in the pages that the backend has put it in. They are posted again when
/// it is dropped.
///
/// The backend can change the bytes for as long as it likes: copy out what is to be checked, and
/// then check the copy.
pub struct RxFrame<'a, G: Guest>(&'a mut RxRing<G>);

impl<G: Guest> RxFrame<'_, G> {
    /// Its length in bytes: at least 14.
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.assembly.len
    }

    /// What is left to be done to it.
    #[inline]
    pub fn offloads(&self) -> Offloads {
        self.0.assembly.offloads
    }

    /// The hash that the backend made of its addresses, if it was asked to.
    #[inline]
    pub fn hash(&self) -> Option<Hash> {
        self.0.assembly.hash
    }

    /// Its bytes, page by page.
    #[inline]
    pub fn views(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
        let pages = self.0.pages.view().read_only();
        // Parts were checked when they were taken.
        self.0.assembly.parts().iter().filter_map(move |part| {
            let start = usize::from(part.slot) * PAGE_SIZE + usize::from(part.offset);
            pages.slice(start, usize::from(part.len)).ok()
        })
    }

    /// Copies bytes out, from `offset` on; how many there were.
    #[inline]
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for view in self.views() {
            let skipped = skip.min(view.len());
            skip -= skipped;
            let rest = to.get_mut(done..).unwrap_or_default();
            let len = (view.len() - skipped).min(rest.len());
            let read = rest.get_mut(..len).map(|to| view.read_bytes(skipped, to));
            if read == Some(Ok::<(), OutOfView>(())) {
                done += len;
            }
        }
        done
    }
}

impl<G: Guest> Drop for RxFrame<'_, G> {
    #[inline]
    fn drop(&mut self) {
        self.0.release();
    }
}

impl<G: Guest> fmt::Debug for RxFrame<'_, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxFrame({} bytes, {:?})", self.len(), self.offloads())
    }
}
