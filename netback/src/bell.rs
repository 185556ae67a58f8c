//! Waking a task that sleeps, and not bothering one that does not.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Waker};

use atomic_waker::AtomicWaker;

/// What wakes a queue's task from within this process: a frame in its inbox, or one that came home.
///
/// Who rings has put something somewhere before; who sleeps listens, and then looks there once
/// more. With a full barrier on both sides at least one of them sees the other.
#[derive(Debug, Default)]
pub struct Bell {
    waker: AtomicWaker,
    listening: AtomicBool,
}

impl Bell {
    /// Wakes the task if it listens.
    #[inline]
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.listening.load(Ordering::Relaxed) && self.listening.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Has the task woken by the next ring. Look at everything that is rung for after this, and
    /// [`hush`](Bell::hush) if there is something.
    pub fn listen(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
        self.listening.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Is awake, and does not need to be rung for.
    #[inline]
    pub fn hush(&self) {
        self.listening.store(false, Ordering::Relaxed);
    }

    /// As [`Bell::listen`], for tests and threads of their own.
    pub fn listen_with(&self, waker: &Waker) {
        self.listen(&Context::from_waker(waker));
    }
}
