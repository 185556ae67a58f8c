//! Sharing by message: a queue that wakes the one who waits for it.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;
use crossbeam_queue::SegQueue;

/// A bit that says "look", and wakes the one who waits for it.
#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    waiting: AtomicWaker,
}

impl Bell {
    /// Says "look". Whether that was news.
    pub(crate) fn ring(&self) -> bool {
        let news = !self.rung.swap(true, Ordering::AcqRel);
        if news {
            self.waiting.wake();
        }
        news
    }

    /// Takes the bit.
    pub(crate) fn take(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting.register(cx.waker());
        if self.take() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Many may put something in; one takes it out, and may wait for it.
pub(crate) struct Mailbox<T> {
    letters: SegQueue<T>,
    reader: AtomicWaker,
    closed: AtomicBool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Mailbox {
            letters: SegQueue::new(),
            reader: AtomicWaker::new(),
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn put(&self, letter: T) {
        self.letters.push(letter);
        self.reader.wake();
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.letters.pop()
    }

    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Wakes the reader, to look at something else.
    pub(crate) fn wake(&self) {
        self.reader.wake();
    }

    /// Nothing will be put in any more; what is in it can still be taken.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Wakes the reader when something is put in from now on. Look again afterwards.
    pub(crate) fn register(&self, waker: &Waker) {
        self.reader.register(waker);
    }

    /// The next letter, or none once it is closed and empty.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(letter) = self.take() {
            return Poll::Ready(Some(letter));
        }
        self.register(cx.waker());
        // Closed first: what was put in before the closing is then seen below.
        let closed = self.is_closed();
        match self.take() {
            None if !closed => Poll::Pending,
            letter => Poll::Ready(letter),
        }
    }
}
