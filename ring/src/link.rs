//! A ring and the event channel that belongs to it: entries to wait for.

use core::future::poll_fn;
use core::task::{Context, Poll, ready};

use parapet_hypervisor::seam::Channel;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::ring::{Ring, Side};
use crate::{Backend, Frontend, RingMemory, Violation};

/// A frontend's ring and its event channel.
pub type FrontLink<M, Req, Rsp, C> = Link<Frontend, M, Req, Rsp, C>;

/// A backend's ring and its event channel.
pub type BackLink<M, Req, Rsp, C> = Link<Backend, M, Rsp, Req, C>;

/// One end of a ring, with our port of the event channel over which the two ends wake each other.
#[derive(Debug)]
pub struct Link<S: Side, M, Out, In, C> {
    /// The ring.
    pub ring: Ring<S, M, Out, In>,
    /// The event channel.
    pub channel: C,
}

impl<S, M, Out, In, C> Link<S, M, Out, In, C>
where
    S: Side,
    M: RingMemory,
    Out: IntoBytes + Immutable,
    In: FromBytes,
    C: Channel,
{
    /// Joins the two.
    pub fn new(ring: Ring<S, M, Out, In>, channel: C) -> Self {
        Link { ring, channel }
    }

    /// Lets the peer see all that was pushed, and notifies it if it asked for that. True: it did.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let notify = self.ring.publish();
        if notify {
            self.channel.notify();
        }
        notify
    }

    /// Ready when there is an entry to take; else `cx` is woken when there may be.
    ///
    /// An event that brings no entry is swallowed once; at the second the task is queued again
    /// behind the others, so that a peer which notifies in a loop does not pin our processor here
    /// (XSA-332 and its like).
    ///
    /// # Errors
    /// The peer broke the ring.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Violation>> {
        for _ in 0..2 {
            if self.ring.arm()? {
                return Poll::Ready(Ok(()));
            }
            ready!(self.channel.poll_wait(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until there is an entry to take.
    ///
    /// # Errors
    /// The peer broke the ring.
    pub async fn wait(&mut self) -> Result<(), Violation> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Waits for the next entry and takes it.
    ///
    /// # Errors
    /// The peer broke the ring.
    pub async fn next(&mut self) -> Result<In, Violation> {
        loop {
            if let Some(entry) = self.ring.take()? {
                return Ok(entry);
            }
            self.wait().await?;
        }
    }
}
