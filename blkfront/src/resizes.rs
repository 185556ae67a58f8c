//! Who wants to know when the disk changes its size.

use alloc::sync::Arc;
use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::SegQueue;
use futures_core::Stream;
use parapet_hypervisor::seam::Guest;

use crate::disk::Core;

/// Everybody who waits for a change.
#[derive(Default)]
pub(crate) struct Listeners {
    queue: SegQueue<Arc<Listener>>,
    /// How often they were woken.
    woken: AtomicU64,
}

#[derive(Default)]
struct Listener {
    waker: AtomicWaker,
    /// Whether it is among those who are woken by the next change.
    queued: AtomicBool,
}

impl Listeners {
    fn wait(&self, listener: &Arc<Listener>, cx: &mut Context<'_>) {
        listener.waker.register(cx.waker());
        if !listener.queued.swap(true, Ordering::AcqRel) {
            let before = self.woken.load(Ordering::SeqCst);
            // Two of those who came before are looked at, so that who went away does not stay.
            for _ in 0..2 {
                if let Some(earlier) = self.queue.pop()
                    && Arc::strong_count(&earlier) > 1
                {
                    self.queue.push(earlier);
                }
            }
            self.queue.push(Arc::clone(listener));
            if self.woken.load(Ordering::SeqCst) != before {
                // Meanwhile, when one of them may have been in nobody's hands but ours.
                self.wake();
            }
        }
    }

    /// Wakes all of them.
    pub(crate) fn wake(&self) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        while let Some(listener) = self.queue.pop() {
            listener.queued.store(false, Ordering::Release);
            listener.waker.wake();
        }
    }
}

/// The sizes that a disk comes to have, as its backend changes it: see
/// [`Disk::resizes`](crate::Disk::resizes). It does not keep the disk open.
///
/// Changes that follow each other faster than they are taken are one.
pub struct Resizes<G: Guest> {
    core: Arc<Core<G>>,
    listener: Arc<Listener>,
    known: u64,
}

impl<G: Guest> Resizes<G> {
    pub(crate) fn new(core: Arc<Core<G>>) -> Self {
        Resizes {
            known: core.info().sectors,
            core,
            listener: Arc::default(),
        }
    }

    /// The size, in sectors of 512 bytes, once it is another than the one known; none when the
    /// disk is no more.
    pub async fn next(&mut self) -> Option<u64> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn look(&mut self) -> Poll<Option<u64>> {
        let now = self.core.info().sectors;
        if now != self.known {
            self.known = now;
            return Poll::Ready(Some(now));
        }
        match self.core.gone() {
            Some(_) => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        if let ready @ Poll::Ready(_) = self.look() {
            return ready;
        }
        self.core.listeners().wait(&self.listener, cx);
        // It may have changed before we were among the listeners.
        self.look()
    }
}

impl<G: Guest> Stream for Resizes<G> {
    type Item = u64;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        self.poll(cx)
    }
}

impl<G: Guest> fmt::Debug for Resizes<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resizes")
            .field("sectors", &self.known)
            .finish_non_exhaustive()
    }
}
