//! Where a network puts what it has for a guest: an inbox for each queue of its vif.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use parapet_hypervisor::seam::Grants;

use crate::bell::Bell;
use crate::frame::Frame;
use crate::steering::Steering;

/// Frames that may wait for a queue.
pub const WAITING: usize = 512;

/// The receiving side of a connected vif. Anybody may deliver to it.
pub struct Endpoint<P: Grants> {
    inboxes: Box<[Inbox<P>]>,
    steering: Arc<Steering>,
}

struct Inbox<P: Grants> {
    frames: ArrayQueue<Frame<P>>,
    bell: Arc<Bell>,
    /// Its queue takes no more.
    closed: AtomicBool,
}

impl<P: Grants> Endpoint<P> {
    /// An endpoint with an inbox for each of these bells, which wake the queues' tasks. The
    /// frontend may set in `steering` which frames are for which queue.
    pub fn new(bells: impl IntoIterator<Item = Arc<Bell>>, steering: Arc<Steering>) -> Self {
        let inbox = |bell| Inbox {
            frames: ArrayQueue::new(WAITING),
            bell,
            closed: AtomicBool::new(false),
        };
        Endpoint {
            inboxes: bells.into_iter().map(inbox).collect(),
            steering,
        }
    }

    /// Whether its guest has said which frames are for which queue, and wants to be told their
    /// hashes.
    #[inline]
    pub fn is_steered(&self) -> bool {
        self.steering.is_on()
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
    /// There is no room, or the queue has closed: a frame back, which is to be counted as dropped.
    #[inline]
    pub fn deliver(&self, hint: usize, mut frame: Frame<P>) -> Result<usize, Frame<P>> {
        let mut queue = hint % self.inboxes.len().max(1);
        if self.steering.is_on() {
            let steered = self
                .steering
                .steer(frame.head(), frame.len(), self.inboxes.len());
            frame.set_hash(steered.map(|(_, hash)| hash));
            queue = steered.map_or(queue, |(queue, _)| queue);
        }
        let Some(inbox) = self.inboxes.get(queue) else {
            return Err(frame);
        };
        if inbox.closed.load(Ordering::Relaxed) {
            return Err(frame);
        }
        inbox.frames.push(frame)?;
        // Either this sees that it is closed, or who closed it sees the frame: both write before
        // they read. One is taken back for one put in, so that each is counted once.
        match inbox.closed.load(Ordering::SeqCst) {
            true => inbox.frames.pop().map_or(Ok(queue), Err),
            false => Ok(queue),
        }
    }

    /// Takes no more frames for a queue, and lets go of those that wait; how many these were.
    pub fn close(&self, queue: usize) -> u64 {
        let mut waiting = 0;
        if let Some(inbox) = self.inboxes.get(queue) {
            inbox.closed.store(true, Ordering::SeqCst);
            while inbox.frames.pop().is_some() {
                waiting += 1;
            }
        }
        waiting
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
