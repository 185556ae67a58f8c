//! Between the many tasks that use a disk and the one task that owns its queue.
//!
//! ```text
//!   task ── work ──> commands ──> ┌───────────┐
//!   task ── work ──>  (a queue)   │ the queue's│ ──> ring
//!   task <── result ── place 0 ── │   task    │ <── responses
//!   task <── result ── place 1 ── └───────────┘
//! ```
//!
//! Nobody locks anything. Who wants something takes a place, sends the work with the place's
//! number, and finds the result there. There are a few more places than slots in the ring, so that
//! the ring stays full while results are being fetched; who finds no place waits for one.
//!
//! A place belongs to its request until *both* sides are done with it: a caller that goes away
//! leaves it to the queue's task, which frees it when the answer comes.

use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use once_cell::race::OnceBox;
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::io::blkif::Status;

use crate::error::{Error, Gone};
use crate::places::Places;
use crate::queue::Failure;
use crate::request::Work;

/// A place's state: what it is doing, and above [`STATUS_SHIFT`] the status of an answer.
const IDLE: u32 = 0;
/// A request is under way and its caller wants the answer.
const WANTED: u32 = 1;
/// A request is under way and its caller has gone.
const UNWANTED: u32 = 2;
/// The answer is there to be fetched.
const ANSWERED: u32 = 3;
/// There will be no answer: see [`Mailbox::gone`].
const FAILED: u32 = 4;
const STATUS_SHIFT: u32 = 16;

struct Reply {
    state: AtomicU32,
    waker: AtomicWaker,
}

/// What somebody wants, and where the answer goes.
pub(crate) struct Command<G: Guest> {
    pub(crate) place: u16,
    pub(crate) work: Work<G>,
}

/// What the users of one queue and its task share.
pub(crate) struct Mailbox<G: Guest> {
    commands: ArrayQueue<Command<G>>,
    places: Places,
    replies: Box<[Reply]>,
    /// The queue's task.
    server: AtomicWaker,
    reason: OnceBox<Gone>,
    /// Set after the reason.
    closed: AtomicBool,
    /// There is no backend for the moment: what comes waits.
    halted: AtomicBool,
}

impl<G: Guest> Mailbox<G> {
    /// For a queue of `capacity` slots.
    pub(crate) fn new(capacity: usize) -> Self {
        let count = u16::try_from(capacity.saturating_mul(2)).unwrap_or(u16::MAX);
        let reply = |_| Reply {
            state: AtomicU32::new(IDLE),
            waker: AtomicWaker::new(),
        };
        Mailbox {
            commands: ArrayQueue::new(usize::from(count).max(1)),
            places: Places::new(count),
            replies: (0..count).map(reply).collect(),
            server: AtomicWaker::new(),
            reason: OnceBox::new(),
            closed: AtomicBool::new(false),
            halted: AtomicBool::new(false),
        }
    }

    /// Why there is no queue any more, if so.
    #[inline]
    pub(crate) fn gone(&self) -> Option<Gone> {
        self.reason.get().copied()
    }

    /// Whether there is no queue any more. A command that is pushed before this says no is found
    /// by [`Mailbox::fail_commands`], if it is called after the closing: both the push and this
    /// are sequentially consistent, and so is a pop that finds nothing.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends the queue, for the first reason that is given. All that is under way fails.
    pub(crate) fn close(&self, reason: Gone) {
        let _ = self.reason.set(Box::new(reason));
        self.closed.store(true, Ordering::SeqCst);
        self.server.wake();
    }

    /// Asks the queue's task to end, and to fail nothing; or takes that back, for the next one.
    pub(crate) fn halt(&self, halted: bool) {
        self.halted.store(halted, Ordering::SeqCst);
        self.server.wake();
    }

    /// Whether the queue's task should end. `cx` is woken when that changes, or when there is a
    /// command.
    #[inline]
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> bool {
        self.server.register(cx.waker());
        self.is_closed() || self.halted.load(Ordering::SeqCst)
    }

    /// The next command.
    #[inline]
    pub(crate) fn next(&self) -> Option<Command<G>> {
        self.commands.pop()
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.replies.len()
    }

    /// How many requests more it would take without letting anybody wait: an estimate.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.places.free()
    }

    /// A place, if there is one now.
    #[inline]
    pub(crate) fn try_place(&self) -> Option<Place<'_, G>> {
        self.places.try_take().map(|place| Place(self, place))
    }

    /// Waits for a place.
    #[inline]
    pub(crate) async fn place(&self) -> Place<'_, G> {
        Place(self, self.places.take().await)
    }

    fn reply(&self, place: u16) -> &Reply {
        self.replies
            .get(usize::from(place))
            .expect("a place has a number below their count")
    }

    /// Both sides are done with the place.
    fn release(&self, place: u16) {
        self.reply(place).state.store(IDLE, Ordering::Relaxed);
        self.places.put_back(place);
    }

    /// The request of that place has come to its end.
    #[inline]
    pub(crate) fn answer(&self, place: u16, status: Status) {
        self.leave(place, u32::from(status.0 as u16) << STATUS_SHIFT | ANSWERED);
    }

    /// The request of that place fails for the reason that the mailbox is closed for.
    pub(crate) fn fail(&self, place: u16) {
        self.leave(place, FAILED);
    }

    /// The queue's task is done with the place, and leaves `state` there for the caller.
    fn leave(&self, place: u16, state: u32) {
        let reply = self.reply(place);
        let left = reply
            .state
            .compare_exchange(WANTED, state, Ordering::AcqRel, Ordering::Acquire);
        match left {
            Ok(_) => reply.waker.wake(),
            Err(_) => self.release(place),
        }
    }

    /// Fails all that the queue's task has not taken, when it will not any more.
    pub(crate) fn fail_commands(&self) {
        while let Some(command) = self.commands.pop() {
            self.fail(command.place);
        }
    }
}

/// The right to send one request. Dropping it gives it back.
pub(crate) struct Place<'a, G: Guest>(&'a Mailbox<G>, u16);

impl<'a, G: Guest> Place<'a, G> {
    /// Sends `work` to the queue's task.
    #[inline]
    pub(crate) fn send(self, work: Work<G>) -> Ticket<'a, G> {
        let Place(mailbox, place) = self;
        core::mem::forget(self);
        mailbox.reply(place).state.store(WANTED, Ordering::Relaxed);
        if mailbox.commands.push(Command { place, work }).is_err() {
            unreachable!("a command fits for each place");
        }
        if mailbox.is_closed() {
            mailbox.fail_commands();
        }
        mailbox.server.wake();
        Ticket {
            mailbox,
            place: Some(place),
        }
    }
}

impl<G: Guest> Drop for Place<'_, G> {
    fn drop(&mut self) {
        self.0.places.put_back(self.1);
    }
}

/// A request under way: the future of its result. Dropping it forgets the result, not the request.
pub(crate) struct Ticket<'a, G: Guest> {
    mailbox: &'a Mailbox<G>,
    /// None when the result was fetched.
    place: Option<u16>,
}

impl<G: Guest> Future for Ticket<'_, G> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mailbox = self.mailbox;
        let place = self.place.expect("a ticket is not polled after its result");
        let reply = mailbox.reply(place);
        let mut state = reply.state.load(Ordering::Acquire);
        if state == WANTED {
            reply.waker.register(cx.waker());
            state = reply.state.load(Ordering::Acquire);
            if state == WANTED {
                return Poll::Pending;
            }
        }
        self.place = None;
        mailbox.release(place);
        Poll::Ready(if state == FAILED {
            Err(mailbox.gone().unwrap_or(Gone::Stopped).into())
        } else {
            // The upper half is the status as it came.
            Failure::check(Status((state >> STATUS_SHIFT) as u16 as i16)).map_err(Error::from)
        })
    }
}

impl<G: Guest> Drop for Ticket<'_, G> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let left = self.mailbox.reply(place).state.compare_exchange(
                WANTED,
                UNWANTED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if left.is_err() {
                self.mailbox.release(place);
            }
        }
    }
}
