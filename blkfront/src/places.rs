//! Who may have a request under way: a bounded number of places, handed out first come, first
//! served.
//!
//! A place that comes back is handed to the one who has waited longest, and nobody else can take
//! it: a task that streams through the disk does not starve one that reads a block now and then.

use alloc::sync::Arc;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::{ArrayQueue, SegQueue};

/// Places, by number from 0.
pub(crate) struct Places {
    free: ArrayQueue<u16>,
    waiting: SegQueue<Arc<Waiter>>,
}

/// One who waits. It costs an allocation, which only those pay who would wait anyway.
struct Waiter {
    /// The place that was given, or one of the two below.
    given: AtomicU32,
    waker: AtomicWaker,
}

const NOTHING: u32 = u32::MAX;
/// It waits no more; a place that is given is lost on it.
const LEFT: u32 = u32::MAX - 1;

impl Places {
    pub(crate) fn new(count: u16) -> Self {
        let free = ArrayQueue::new(usize::from(count).max(1));
        for place in 0..count {
            // As many fit.
            let _ = free.push(place);
        }
        Places {
            free,
            waiting: SegQueue::new(),
        }
    }

    /// A place, if there is one and nobody waits for it.
    #[inline]
    pub(crate) fn try_take(&self) -> Option<u16> {
        if self.waiting.is_empty() {
            self.free.pop()
        } else {
            None
        }
    }

    /// How many are free: an estimate, as others take and return them.
    #[inline]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Waits for a place.
    #[inline]
    pub(crate) fn take(&self) -> Take<'_> {
        Take {
            places: self,
            waiter: None,
        }
    }

    #[inline]
    pub(crate) fn put_back(&self, place: u16) {
        // As many fit.
        let _ = self.free.push(place);
        self.hand_out();
    }

    /// Brings free places and waiters together. Whoever adds one or the other calls it after, so
    /// that of two who do both at the same moment at least one sees the other.
    fn hand_out(&self) {
        while !self.waiting.is_empty() {
            let Some(place) = self.free.pop() else {
                return;
            };
            if !self.give(place) {
                // Somebody may have come, and seen no place, since.
                let _ = self.free.push(place);
            }
        }
    }

    /// Gives it to the first who still waits, if anybody does.
    fn give(&self, place: u16) -> bool {
        while let Some(waiter) = self.waiting.pop() {
            let given = waiter.given.compare_exchange(
                NOTHING,
                u32::from(place),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if given.is_ok() {
                waiter.waker.wake();
                return true;
            }
        }
        false
    }
}

/// See [`Places::take`].
pub(crate) struct Take<'a> {
    places: &'a Places,
    waiter: Option<Arc<Waiter>>,
}

impl Future for Take<'_> {
    type Output = u16;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u16> {
        let places = self.places;
        let waiter = match &self.waiter {
            Some(waiter) => {
                waiter.waker.register(cx.waker());
                Arc::clone(waiter)
            }
            None => {
                if let Some(place) = places.try_take() {
                    return Poll::Ready(place);
                }
                let waiter = Arc::new(Waiter {
                    given: AtomicU32::new(NOTHING),
                    waker: AtomicWaker::new(),
                });
                waiter.waker.register(cx.waker());
                self.waiter = Some(Arc::clone(&waiter));
                places.waiting.push(Arc::clone(&waiter));
                places.hand_out();
                waiter
            }
        };
        match u16::try_from(waiter.given.load(Ordering::Acquire)) {
            Ok(place) => {
                self.waiter = None;
                Poll::Ready(place)
            }
            Err(_) => Poll::Pending,
        }
    }
}

impl Drop for Take<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take()
            && let Ok(place) = u16::try_from(waiter.given.swap(LEFT, Ordering::AcqRel))
        {
            self.places.put_back(place);
        }
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Waker;

    use parapet_hypervisor::block_on;

    use super::*;

    fn poll(take: &mut Take<'_>) -> Poll<u16> {
        Pin::new(take).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_waits_longest_comes_first_and_nobody_overtakes() {
        let places = Places::new(1);
        assert_eq!(places.try_take(), Some(0));
        let (mut first, mut second) = (places.take(), places.take());
        assert!(poll(&mut first).is_pending());
        assert!(poll(&mut second).is_pending());
        places.put_back(0);
        assert_eq!(places.try_take(), None, "it is spoken for");
        assert!(poll(&mut second).is_pending());
        assert_eq!(poll(&mut first), Poll::Ready(0));
        places.put_back(0);
        assert_eq!(poll(&mut second), Poll::Ready(0));
    }

    #[test]
    fn who_leaves_passes_on_what_was_given() {
        let places = Places::new(1);
        places.try_take();
        let (mut first, mut second, mut third) = (places.take(), places.take(), places.take());
        for take in [&mut first, &mut second, &mut third] {
            assert!(poll(take).is_pending());
        }
        drop(second);
        places.put_back(0);
        drop(first);
        assert_eq!(poll(&mut third), Poll::Ready(0));
        drop(third);
        places.put_back(0);
        assert_eq!(places.try_take(), Some(0));
    }

    #[test]
    fn under_contention_a_place_has_one_owner_and_everybody_gets_one() {
        const THREADS: usize = 4;
        let places = Places::new(2);
        let owners = [AtomicUsize::new(0), AtomicUsize::new(0)];
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (places, owners) = (&places, &owners);
                scope.spawn(move || {
                    for turn in 0..2000 {
                        if (thread + turn) % 5 == 0 {
                            // One who gives up.
                            let mut take = places.take();
                            if let Poll::Ready(place) = poll(&mut take) {
                                places.put_back(place);
                            }
                        }
                        let place = block_on(places.take());
                        let owner = &owners[usize::from(place)];
                        assert_eq!(owner.fetch_add(1, Ordering::SeqCst), 0);
                        owner.fetch_sub(1, Ordering::SeqCst);
                        places.put_back(place);
                    }
                });
            }
        });
        assert!(places.try_take().is_some());
        assert!(places.try_take().is_some());
        assert!(places.try_take().is_none());
    }
}
