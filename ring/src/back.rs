//! The backend's end: it takes requests and makes responses.

use core::sync::atomic::{AtomicU32, Ordering};

use parapet_hypervisor::memory::View;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::header;
use crate::notify::Direction;
use crate::ring::{Indices, Ring, Side, sealed};
use crate::{RingMemory, TooSmall};

/// The backend's end of a ring of requests `Req` and responses `Rsp`, in memory `M`.
pub type Back<M, Req, Rsp> = Ring<Backend, M, Rsp, Req>;

/// The side that answers requests.
#[derive(Debug, Clone, Copy)]
pub enum Backend {}

impl Side for Backend {}

impl sealed::Side for Backend {
    const NAME: &'static str = "Back";

    #[inline]
    fn outgoing(view: View<'_>) -> Direction<'_, AtomicU32> {
        header::responses(view)
    }

    #[inline]
    fn incoming(view: View<'_>) -> Direction<'_, AtomicU32> {
        header::requests(view)
    }

    /// Requests taken and not yet answered.
    #[inline]
    fn free(ring: &Indices) -> u32 {
        ring.incoming.next().wrapping_sub(ring.outgoing.next())
    }

    /// Slots in which there is no request that was taken: an honest frontend makes none in those
    /// (`RING_REQUEST_PROD_OVERFLOW`).
    #[inline]
    fn room(ring: &Indices) -> u32 {
        ring.slots.saturating_sub(Self::free(ring))
    }
}

impl<M, Req, Rsp> Back<M, Req, Rsp>
where
    M: RingMemory,
    Req: FromBytes,
    Rsp: IntoBytes + Immutable,
{
    /// Takes the back end of a ring that the frontend has just made (`BACK_RING_INIT`).
    ///
    /// # Errors
    /// Not even one slot fits.
    pub fn attach(memory: M) -> Result<Self, TooSmall> {
        Self::attach_at(memory, 0)
    }

    /// Takes the back end of a ring of which the first `index` requests have been taken and
    /// answered (`BACK_RING_ATTACH`).
    ///
    /// # Errors
    /// Not even one slot fits.
    pub fn attach_at(memory: M, index: u32) -> Result<Self, TooSmall> {
        Self::at(memory, index, index)
    }

    /// Takes the back end of a ring on which another backend died, when it is known from elsewhere
    /// how many requests that had taken, and to how many it had published its responses. Those in
    /// between, at most as many as there are slots, are to be answered by us: their slots may hold
    /// anything by now, also responses that were not published.
    ///
    /// # Errors
    /// Not even one slot fits.
    pub fn attach_between(memory: M, answered: u32, taken: u32) -> Result<Self, TooSmall> {
        Self::at(memory, answered, taken)
    }

    /// How many responses have been published, as the shared page tells: the frontend could have
    /// set it.
    ///
    /// # Errors
    /// Not even one slot fits.
    pub fn published_in(memory: &M) -> Result<u32, TooSmall> {
        header::slots(memory.view().len(), Self::SLOT)?;
        let responses = header::responses(memory.view());
        Ok(responses.producer.load(Ordering::Acquire))
    }

    /// Takes the back end of a ring that another backend has left, at the place that the shared
    /// page tells. On a ring just made it is [`Back::attach`].
    ///
    /// The other must have answered all that it took. One that died in the middle may have put an
    /// answer over a request that it took earlier and had not answered; then only who has kept a
    /// copy of that knows what is outstanding: see [`Back::attach_between`].
    ///
    /// # Errors
    /// Not even one slot fits.
    pub fn resume(memory: M) -> Result<Self, TooSmall> {
        let answered = Self::published_in(&memory)?;
        Self::attach_at(memory, answered)
    }

    /// How many requests were taken and not yet answered.
    #[inline]
    pub fn unanswered(&self) -> u32 {
        <Backend as sealed::Side>::free(&self.indices)
    }
}
