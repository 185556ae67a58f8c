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
use alloc::sync::Arc;
use core::future::{Future, poll_fn};
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
use crate::queue::{Failure, Queue, SubmitError, Violation};
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

struct Command<G: Guest> {
    place: u16,
    work: Work<G>,
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
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends the queue, for the first reason that is given. All that is under way fails.
    pub(crate) fn close(&self, reason: Gone) {
        let _ = self.reason.set(Box::new(reason));
        self.closed.store(true, Ordering::SeqCst);
        self.server.wake();
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

    /// The queue's task is done with the place, and leaves `state` there for the caller.
    fn answer(&self, place: u16, state: u32) {
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
    fn fail_commands(&self) {
        while let Some(command) = self.commands.pop() {
            self.answer(command.place, FAILED);
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

/// A queue's task: owns the queue alone, and ends with it.
pub(crate) struct Server<G: Guest> {
    /// None once it was given up.
    queue: Option<Queue<G>>,
    mailbox: Arc<Mailbox<G>>,
}

impl<G: Guest> Server<G> {
    pub(crate) fn new(queue: Queue<G>, mailbox: Arc<Mailbox<G>>) -> Self {
        Server {
            queue: Some(queue),
            mailbox,
        }
    }

    /// Serves until the mailbox is closed or the backend breaks the protocol. Then everything
    /// fails, and the queue is given up: it still has the memory that the backend may be using.
    pub(crate) async fn run(mut self) -> Option<Queue<G>> {
        poll_fn(|cx| self.poll(cx)).await;
        self.fail_all();
        self.queue.take()
    }

    /// One turn: takes what was answered, submits what was asked for, and goes behind the others.
    /// Each turn is bounded by the number of slots.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Server { queue, mailbox } = self;
        mailbox.server.register(cx.waker());
        let Some(queue) = queue.as_mut().filter(|_| !mailbox.is_closed()) else {
            return Poll::Ready(());
        };
        let ready = match turn(queue, mailbox) {
            Ok(()) => queue.poll_ready(cx),
            Err(violation) => Poll::Ready(Err(violation)),
        };
        match ready {
            Poll::Ready(Err(violation)) => {
                mailbox.close(violation.into());
                Poll::Ready(())
            }
            Poll::Ready(Ok(())) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn fail_all(&self) {
        self.mailbox.close(Gone::Stopped);
        for place in self.queue.iter().flat_map(Queue::outstanding) {
            // A token is the number of a place.
            self.mailbox.answer(place as u16, FAILED);
        }
        self.mailbox.fail_commands();
    }
}

fn turn<G: Guest>(queue: &mut Queue<G>, mailbox: &Mailbox<G>) -> Result<(), Violation> {
    while let Some(completion) = queue.complete()? {
        let status = match completion.result {
            Ok(()) => Status::OKAY,
            Err(Failure::Unsupported) => Status::EOPNOTSUPP,
            Err(Failure::Io(status)) => status,
        };
        let state = u32::from(status.0 as u16) << STATUS_SHIFT | ANSWERED;
        mailbox.answer(completion.token as u16, state);
    }
    while queue.free() > 0
        && let Some(Command { place, work }) = mailbox.commands.pop()
    {
        match queue.enqueue(place.into(), work) {
            Ok(()) => {}
            Err(SubmitError::Violation(violation)) => {
                mailbox.close(violation.into());
                mailbox.answer(place, FAILED);
                return Err(violation);
            }
            Err(error @ (SubmitError::Full(_) | SubmitError::Unfit(_))) => {
                unreachable!("a slot is free and the work was checked: {error}")
            }
        }
    }
    queue.publish();
    Ok(())
}

/// When the task is dropped, as with its domain, nobody is left to answer.
impl<G: Guest> Drop for Server<G> {
    fn drop(&mut self) {
        if self.queue.is_some() {
            self.fail_all();
        }
    }
}
