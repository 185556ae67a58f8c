//! The task of a queue, and what it answers for.
//!
//! ```text
//!   Mailbox ── command ──> Desk ── parts that fit a request ──> Queue
//!                           │  remembers how many are out
//!                           └── the answer, once all are in
//! ```
//!
//! A [`Desk`] outlives queues: when the backend goes away it takes back what was outstanding, and
//! the task of the next queue begins with that, in the order in which it was asked for. A request
//! that the earlier backend has answered is not among it, and one that the earlier backend did but
//! did not answer is done again, which changes nothing: nobody was told that it was done, so
//! nobody has relied on it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Context, Poll};

use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::io::blkif::Status;

use crate::error::Gone;
use crate::info::Info;
use crate::mailbox::{Command, Mailbox};
use crate::queue::{Completion, Failure, Queue, SubmitError, Violation};
use crate::request::{Erase, Work};

/// How far the request of a place is.
#[derive(Clone, Copy)]
struct Parts {
    /// How many are not answered, whether they were submitted or not.
    left: u32,
    /// The first failure among the others.
    status: Status,
}

/// All that one mailbox has asked for and that is not answered yet.
///
/// Dropping it fails all that: its task was dropped, as with its domain, or gave up.
pub(crate) struct Desk<G: Guest> {
    mailbox: Arc<Mailbox<G>>,
    /// By place.
    parts: Box<[Parts]>,
    /// What comes before any new command.
    backlog: VecDeque<Command<G>>,
}

impl<G: Guest> Desk<G> {
    pub(crate) fn new(mailbox: Arc<Mailbox<G>>) -> Self {
        let none = Parts {
            left: 0,
            status: Status::OKAY,
        };
        Desk {
            parts: (0..mailbox.places()).map(|_| none).collect(),
            mailbox,
            backlog: VecDeque::new(),
        }
    }

    fn parts(&mut self, place: u16) -> &mut Parts {
        self.parts
            .get_mut(usize::from(place))
            .expect("a place has a number below their count")
    }

    /// What to submit next.
    #[inline]
    fn next(&mut self) -> Option<Command<G>> {
        if let Some(command) = self.backlog.pop_front() {
            return Some(command);
        }
        let command = self.mailbox.next()?;
        *self.parts(command.place) = Parts {
            left: 1,
            status: Status::OKAY,
        };
        Some(command)
    }

    /// What to submit next, so long as a request carries it; the rest comes after it.
    #[inline]
    fn next_part(&mut self, most: usize) -> Option<Command<G>> {
        let mut command = self.next()?;
        match command.work.cut(most) {
            None => Some(command),
            Some(work) => {
                let place = command.place;
                self.parts(place).left += 1;
                self.backlog.push_front(command);
                Some(Command { place, work })
            }
        }
    }

    /// A part of the request of `place` has come to its end.
    #[inline]
    fn answered(&mut self, place: u16, result: Result<(), Failure>) {
        let parts = self.parts(place);
        parts.left = parts.left.saturating_sub(1);
        if parts.status == Status::OKAY {
            parts.status = match result {
                Ok(()) => Status::OKAY,
                Err(Failure::Unsupported) => Status::EOPNOTSUPP,
                Err(Failure::Io(status)) => status,
            };
        }
        let Parts { left, status } = *parts;
        if left == 0 {
            self.mailbox.answer(place, status);
        }
    }

    /// Fails everything, for the reason that the mailbox is closed for.
    pub(crate) fn fail_all(&mut self) {
        self.backlog.clear();
        for (place, parts) in self.parts.iter_mut().enumerate() {
            if core::mem::take(&mut parts.left) > 0 {
                // There are fewer places than numbers.
                self.mailbox.fail(place as u16);
            }
        }
        self.mailbox.fail_commands();
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.backlog.len()
    }

    /// Takes up what waits in the mailbox, and sees to all that waits that it makes sense for the
    /// disk as it is described now; what does not fails.
    pub(crate) fn readmit(&mut self, info: &Info) {
        while let Some(command) = self.mailbox.next() {
            *self.parts(command.place) = Parts {
                left: 1,
                status: Status::OKAY,
            };
            self.backlog.push_back(command);
        }
        for command in core::mem::take(&mut self.backlog) {
            let Command { place, work } = command;
            match fit(work, info) {
                Ok(work) => self.backlog.push_back(Command { place, work }),
                Err(failure) => self.answered(place, Err(failure)),
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.mailbox.is_closed()
    }
}

/// What was admitted to a disk, as it can be asked of one that is now like `info`.
fn fit<G: Guest>(work: Work<G>, info: &Info) -> Result<Work<G>, Failure> {
    if let Some((sector, count, changes)) = work.extent() {
        let inside = sector
            .checked_add(count)
            .is_some_and(|end| end <= info.sectors);
        if !inside || (changes && info.read_only) {
            return Err(Failure::Io(Status::ERROR));
        }
    }
    match work {
        Work::Flush | Work::Barrier(None) => flush(info).ok_or(Failure::Unsupported),
        Work::Barrier(Some(_)) if !info.barrier => Err(Failure::Unsupported),
        Work::Discard { how, .. } => match info.discard {
            Some(discard) if how == Erase::Forget || discard.secure => Ok(work),
            _ => Err(Failure::Unsupported),
        },
        work => Ok(work),
    }
}

/// How a disk is flushed, if it can be.
pub(crate) fn flush<G: Guest>(info: &Info) -> Option<Work<G>> {
    match info {
        Info { flush: true, .. } => Some(Work::Flush),
        Info { barrier: true, .. } => Some(Work::Barrier(None)),
        _ => None,
    }
}

impl<G: Guest> Drop for Desk<G> {
    fn drop(&mut self) {
        self.mailbox.close(Gone::Stopped);
        self.fail_all();
    }
}

/// A request's name on the ring: which desk, and which of its places.
const DESK_SHIFT: u32 = 16;

/// The task of a queue: owns it, alone, for as long as it lasts.
pub(crate) struct Server<G: Guest> {
    queue: Queue<G>,
    /// One, unless a backend that came back has fewer queues than it had.
    desks: Vec<Desk<G>>,
}

impl<G: Guest> Server<G> {
    pub(crate) fn new(queue: Queue<G>, desks: Vec<Desk<G>>) -> Self {
        Server { queue, desks }
    }

    /// Serves until it is told to end, or the backend breaks the protocol. If the disk is no more
    /// by then, everything fails. The queue still has the memory that the backend may be using.
    pub(crate) async fn run(mut self) -> Self {
        poll_fn(|cx| self.poll(cx)).await;
        for desk in &mut self.desks {
            if desk.is_closed() {
                desk.fail_all();
            }
        }
        self
    }

    /// One turn: takes what was answered, submits what was asked for, and goes behind the others.
    /// Each turn is bounded by the number of slots.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // All of them, so that each knows whom to wake.
        let mut end = false;
        for desk in &self.desks {
            end |= desk.mailbox.poll_end(cx);
        }
        if end {
            return Poll::Ready(());
        }
        let ready = match self.turn() {
            Ok(()) => self.queue.poll_ready(cx),
            Err(violation) => Poll::Ready(Err(violation)),
        };
        match ready {
            Poll::Ready(Err(violation)) => {
                self.close(violation.into());
                Poll::Ready(())
            }
            Poll::Ready(Ok(())) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn close(&self, reason: Gone) {
        for desk in &self.desks {
            desk.mailbox.close(reason);
        }
    }

    fn turn(&mut self) -> Result<(), Violation> {
        self.take_answers()?;
        let most = self.queue.max_segments();
        let mut idle = 0;
        for at in (0..self.desks.len()).cycle() {
            let Some(desk) = self.desks.get_mut(at).filter(|_| self.queue.free() > 0) else {
                break;
            };
            let Some(Command { place, work }) = desk.next_part(most) else {
                idle += 1;
                if idle == self.desks.len() {
                    break;
                }
                continue;
            };
            idle = 0;
            let token = (at as u64) << DESK_SHIFT | u64::from(place);
            match self.queue.enqueue(token, work) {
                Ok(()) => {}
                Err(SubmitError::Violation(violation)) => return Err(violation),
                // A barrier that another backend would have taken.
                Err(SubmitError::Unfit(_)) => desk.answered(place, Err(Failure::Unsupported)),
                Err(SubmitError::Full(full)) => unreachable!("a slot is free: {full}"),
            }
        }
        self.queue.publish();
        Ok(())
    }

    fn take_answers(&mut self) -> Result<(), Violation> {
        while let Some(Completion { token, result }) = self.queue.complete()? {
            if let Some(desk) = self.desks.get_mut((token >> DESK_SHIFT) as usize) {
                // The rest of a token is the number of a place.
                desk.answered(token as u16, result);
            }
        }
        Ok(())
    }

    /// Takes leave of a backend that has let go of the queue: what it answered counts, what it
    /// did not comes before whatever else waits at the desks.
    ///
    /// # Errors
    /// The backend broke the protocol with its last words.
    pub(crate) fn retire(mut self) -> Result<Retired<G>, Violation> {
        if let Err(violation) = self.take_answers() {
            self.close(violation.into());
            return Err(violation);
        }
        let answered = self.queue.has_answered();
        for (token, work) in self.queue.take_outstanding().into_iter().rev() {
            if let Some(desk) = self.desks.get_mut((token >> DESK_SHIFT) as usize) {
                let place = token as u16;
                desk.backlog.push_front(Command { place, work });
            }
        }
        Ok(Retired {
            desks: self.desks,
            answered,
            held: self.queue.end(),
        })
    }
}

/// What is left of a server whose backend has gone.
pub(crate) struct Retired<G: Guest> {
    pub(crate) desks: Vec<Desk<G>>,
    /// Whether the backend answered anything.
    pub(crate) answered: bool,
    /// How many pages of the queue it has kept.
    pub(crate) held: usize,
}
