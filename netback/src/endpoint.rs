//! Where a network puts what it has for a guest: an inbox for each queue of its vif.

use std::fmt;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use parapet_hypervisor::seam::Grants;

use crate::bell::Bell;
use crate::frame::Frame;

/// Frames that may wait for a queue.
pub const WAITING: usize = 512;

/// The receiving side of a connected vif. Anybody may deliver to it.
pub struct Endpoint<P: Grants> {
    inboxes: Box<[Inbox<P>]>,
}

struct Inbox<P: Grants> {
    frames: ArrayQueue<Frame<P>>,
    bell: Arc<Bell>,
}

impl<P: Grants> Endpoint<P> {
    /// An endpoint with an inbox for each of these bells, which wake the queues' tasks.
    pub fn new(bells: impl IntoIterator<Item = Arc<Bell>>) -> Self {
        let inbox = |bell| Inbox {
            frames: ArrayQueue::new(WAITING),
            bell,
        };
        Endpoint {
            inboxes: bells.into_iter().map(inbox).collect(),
        }
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.inboxes.len()
    }

    /// Puts a frame where its queue finds it, which [`Endpoint::ring`] is then to be told of, once
    /// for many frames. `hint` is the queue that it came from, or anything that is the same for all
    /// frames of a flow.
    ///
    /// # Errors
    /// There is no room: the frame back.
    #[inline]
    pub fn deliver(&self, hint: usize, frame: Frame<P>) -> Result<usize, Frame<P>> {
        let queue = hint % self.inboxes.len().max(1);
        match self.inboxes.get(queue) {
            Some(inbox) => inbox.frames.push(frame).map(|()| queue),
            None => Err(frame),
        }
    }

    /// Wakes a queue that was delivered to.
    #[inline]
    pub fn ring(&self, queue: usize) {
        if let Some(inbox) = self.inboxes.get(queue) {
            inbox.bell.ring();
        }
    }

    /// Takes the next frame for a queue: its own task alone does.
    #[inline]
    pub fn take(&self, queue: usize) -> Option<Frame<P>> {
        self.inboxes.get(queue)?.frames.pop()
    }

    /// Whether nothing waits for a queue.
    #[inline]
    pub fn is_empty(&self, queue: usize) -> bool {
        self.inboxes
            .get(queue)
            .is_none_or(|inbox| inbox.frames.is_empty())
    }
}

impl<P: Grants> fmt::Debug for Endpoint<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} queues)", self.queues())
    }
}
