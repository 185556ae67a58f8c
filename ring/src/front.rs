//! The frontend's end: it makes requests and takes responses.

use core::sync::atomic::{AtomicU32, Ordering};

use parapet_hypervisor::memory::View;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::header;
use crate::notify::Direction;
use crate::ring::{Indices, Ring, Side, sealed};
use crate::{AttachError, RingMemory, TooSmall, Violation};

/// The frontend's end of a ring of requests `Req` and responses `Rsp`, in memory `M`.
pub type Front<M, Req, Rsp> = Ring<Frontend, M, Req, Rsp>;

/// The side that makes requests.
#[derive(Debug, Clone, Copy)]
pub enum Frontend {}

impl Side for Frontend {}

impl sealed::Side for Frontend {
    const NAME: &'static str = "Front";

    #[inline]
    fn outgoing(view: View<'_>) -> Direction<'_, AtomicU32> {
        header::requests(view)
    }

    #[inline]
    fn incoming(view: View<'_>) -> Direction<'_, AtomicU32> {
        header::responses(view)
    }

    /// Slots in which there is neither a request nor a response not yet taken.
    #[inline]
    fn free(ring: &Indices) -> u32 {
        ring.slots - ring.outgoing.next().wrapping_sub(ring.incoming.next())
    }

    /// Published requests whose response was not taken.
    #[inline]
    fn room(ring: &Indices) -> u32 {
        ring.outgoing.published().wrapping_sub(ring.incoming.next())
    }
}

impl<M, Req, Rsp> Front<M, Req, Rsp>
where
    M: RingMemory,
    Req: IntoBytes + Immutable,
    Rsp: FromBytes,
{
    /// Makes an empty ring in `memory` and takes its front end (`XEN_FRONT_RING_INIT`). Do it
    /// before the backend hears of the memory.
    ///
    /// # Errors
    /// Not even one slot fits.
    pub fn new(memory: M) -> Result<Self, TooSmall> {
        let front = Self::at(memory, 0, 0)?;
        header::initialise(front.memory.view());
        Ok(front)
    }

    /// Takes the front end of a ring that is in use, as after a restart of the frontend with its
    /// pages kept (`FRONT_RING_ATTACH`): requests published in it are outstanding, responses
    /// published in it count as taken.
    ///
    /// # Errors
    /// Not even one slot fits, or more requests would be outstanding than there are slots.
    pub fn attach(memory: M) -> Result<Self, AttachError> {
        let mut front = Self::at(memory, 0, 0)?;
        let view = front.memory.view();
        let (requests, responses) = (header::requests(view), header::responses(view));
        let requested = requests.producer.load(Ordering::Acquire);
        let answered = responses.producer.load(Ordering::Acquire);
        let least = requested.wrapping_sub(front.slots());
        if requested.wrapping_sub(answered) > front.slots() {
            return Err(AttachError::Violation(Violation::Index {
                name: responses.name,
                value: answered,
                least,
                most: requested,
            }));
        }
        front.indices.start_at(requested, answered);
        Ok(front)
    }

    /// How many requests may be pushed now (`RING_FREE_REQUESTS`).
    #[inline]
    pub fn free(&self) -> u32 {
        <Frontend as sealed::Side>::free(&self.indices)
    }
}
