//! What the two ends of a ring have in common: nearly everything.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU32;

use parapet_hypervisor::memory::View;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::header;
use crate::notify::{Consumer, Direction, Producer};
use crate::{Full, RingMemory, TooSmall, Violation};

/// Which end of a ring: [`crate::Frontend`] or [`crate::Backend`], and nothing else.
///
/// The two differ in which direction is theirs to produce, and in how many entries there can be.
/// Both follow from one rule: a response goes into a slot whose request was taken, a request into
/// one whose response was taken.
pub trait Side: sealed::Side {}

pub(crate) mod sealed {
    use super::{AtomicU32, Direction, Indices, View};
    pub trait Side {
        /// What the end is called.
        const NAME: &'static str;

        /// The direction in which it produces.
        fn outgoing(view: View<'_>) -> Direction<'_, AtomicU32>;

        /// The direction in which it consumes.
        fn incoming(view: View<'_>) -> Direction<'_, AtomicU32>;

        /// How many entries it may make now.
        fn free(indices: &Indices) -> u32;

        /// How many entries it may find now.
        fn room(indices: &Indices) -> u32;
    }
}

/// All that an end knows by itself, and trusts.
#[derive(Debug)]
pub struct Indices {
    pub(crate) slots: u32,
    pub(crate) outgoing: Producer,
    pub(crate) incoming: Consumer,
}

impl Indices {
    /// Begins anew, with `made` entries made and `taken` taken.
    pub(crate) fn start_at(&mut self, made: u32, taken: u32) {
        self.outgoing = Producer::starting_at(made);
        self.incoming = Consumer::starting_at(taken);
    }
}

/// One end of a ring in memory `M`, which sends `Out` and gets `In`: a [`crate::Front`] or a
/// [`crate::Back`].
///
/// It is the only one that uses its side of the ring, and it never waits: see [`crate::Link`] for
/// that.
pub struct Ring<S, M, Out, In> {
    pub(crate) memory: M,
    pub(crate) indices: Indices,
    kind: PhantomData<fn(S, Out) -> In>,
}

impl<S, M, Out, In> Ring<S, M, Out, In>
where
    S: Side,
    M: RingMemory,
    Out: IntoBytes + Immutable,
    In: FromBytes,
{
    pub(crate) const SLOT: usize = header::slot_size::<Out, In>();

    /// An end that has made `made` entries and taken `taken`. Nothing is written.
    pub(crate) fn at(memory: M, made: u32, taken: u32) -> Result<Self, TooSmall> {
        let slots = header::slots(memory.view().len(), Self::SLOT)?;
        Ok(Ring {
            memory,
            indices: Indices {
                slots,
                outgoing: Producer::starting_at(made),
                incoming: Consumer::starting_at(taken),
            },
            kind: PhantomData,
        })
    }

    #[inline]
    fn slot(&self, index: u32) -> usize {
        header::SIZE + (index & (self.indices.slots - 1)) as usize * Self::SLOT
    }

    /// How many slots the ring has.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.indices.slots
    }

    /// Writes an entry into the next slot. The peer sees it once it is published.
    ///
    /// # Errors
    /// No slot is free: a frontend has as many requests outstanding as there are slots
    /// ([`crate::Front::free`] is zero), a backend has answered all that it took
    /// ([`crate::Back::unanswered`] is zero).
    #[inline]
    pub fn push(&mut self, entry: &Out) -> Result<(), Full> {
        if S::free(&self.indices) == 0 {
            return Err(Full);
        }
        let slot = self.slot(self.indices.outgoing.next());
        self.memory
            .view()
            .write(slot, entry)
            .expect("a masked index names a slot inside the ring");
        self.indices.outgoing.advance();
        Ok(())
    }

    /// Lets the peer see all that was pushed so far (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`,
    /// `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`). True: it asked to be notified of one of these.
    #[inline]
    #[must_use = "a peer that asked to be notified and is not sleeps for ever"]
    pub fn publish(&mut self) -> bool {
        let direction = S::outgoing(self.memory.view());
        self.indices.outgoing.publish(&direction)
    }

    /// Copies the next entry out of its slot, once (XSA-155), if there is one.
    ///
    /// What is in the copy is for the driver to check. The ring vouches only for its being there:
    /// a frontend takes no more responses than it published requests, a backend no more requests
    /// than there are slots without its answer.
    ///
    /// # Errors
    /// The peer claims more entries than there can be, now or earlier.
    #[inline]
    pub fn take(&mut self) -> Result<Option<In>, Violation> {
        let index = match self.indices.incoming.advance() {
            Some(index) => index,
            None => {
                self.look()?;
                match self.indices.incoming.advance() {
                    Some(index) => index,
                    None => return Ok(None),
                }
            }
        };
        let entry = self
            .memory
            .view()
            .read(self.slot(index))
            .expect("a masked index names a slot inside the ring");
        Ok(Some(entry))
    }

    /// Reads the peer's index, which [`Ring::take`] does only when all that was seen is taken.
    fn look(&mut self) -> Result<(), Violation> {
        let direction = S::incoming(self.memory.view());
        let room = S::room(&self.indices);
        self.indices.incoming.look(&direction, room)?;
        Ok(())
    }

    /// Asks to be notified of the next entry (`RING_FINAL_CHECK_FOR_REQUESTS`,
    /// `RING_FINAL_CHECK_FOR_RESPONSES`). True: there is one already, do not sleep.
    ///
    /// # Errors
    /// As [`Ring::take`].
    #[inline]
    pub fn arm(&mut self) -> Result<bool, Violation> {
        self.arm_after(1)
    }

    /// Asks to be notified only when `count` entries are there to take: one wake-up for many. More
    /// than can come are not waited for. True: so many are there already, do not sleep.
    ///
    /// # Errors
    /// As [`Ring::take`].
    pub fn arm_after(&mut self, count: u32) -> Result<bool, Violation> {
        let direction = S::incoming(self.memory.view());
        let room = S::room(&self.indices);
        self.indices.incoming.arm(&direction, room, count)
    }

    /// Gives the memory back, as it is.
    pub fn into_memory(self) -> M {
        self.memory
    }
}

impl<S: Side, M, Out, In> fmt::Debug for Ring<S, M, Out, In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(S::NAME).field(&self.indices).finish()
    }
}
