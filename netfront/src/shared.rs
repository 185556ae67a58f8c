//! Where the users of an interface and the task that sees to its life meet.
//!
//! ```text
//!   Sender ──── look at `generation` at each call ──┐
//!   Receiver ───────────────────────────────────────┤
//!      ▲  fresh rings                               ▼
//!      └──────────── Berth ◀── Life ──▶ generation: one more when a backend comes or goes
//!                      │                 ▲
//!                      └── old rings ────┘ kept until the backend has let go
//! ```
//!
//! A queue's rings are owned by its users alone. When the backend goes they give them back, and get
//! others when it returns: by a queue of one place and not by a lock, which none takes on the way
//! of a frame.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::{ArrayQueue, SegQueue};
use once_cell::race::OnceBox;
use parapet_hypervisor::seam::Guest;
use parapet_packet::Mac;

use crate::control::{Control, Hashing};
use crate::error::Gone;
use crate::receive::RxRing;
use crate::transmit::TxRing;

/// Something that is made anew for each connection, on its way to its only user.
pub(crate) struct Berth<T> {
    /// With the generation that it is of.
    fresh: ArrayQueue<(u32, Box<T>)>,
    /// The user.
    waker: AtomicWaker,
}

impl<T> Berth<T> {
    pub(crate) fn new() -> Self {
        Berth {
            fresh: ArrayQueue::new(1),
            waker: AtomicWaker::new(),
        }
    }

    /// Puts one there. The one that nobody has fetched, back.
    pub(crate) fn put(&self, generation: u32, thing: Box<T>) -> Option<Box<T>> {
        let before = self.fresh.force_push((generation, thing));
        before.map(|(_, thing)| thing)
    }

    pub(crate) fn take(&self) -> Option<(u32, Box<T>)> {
        self.fresh.pop()
    }

    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    fn wake(&self) {
        self.waker.wake();
    }
}

/// A queue's two.
pub(crate) struct Berths<G: Guest> {
    pub(crate) transmit: Berth<TxRing<G>>,
    pub(crate) receive: Berth<RxRing<G>>,
}

/// What somebody has no more use for, but the backend may.
pub(crate) enum Retired<G: Guest> {
    Transmit(Box<TxRing<G>>),
    Receive(Box<RxRing<G>>),
    Control(Box<Control<G>>),
}

impl<G: Guest> Retired<G> {
    /// Ends its grants. How many pages the backend has kept, if that can be told.
    fn end(self) -> usize {
        match self {
            Retired::Transmit(ring) => ring.end(),
            Retired::Receive(ring) => ring.end(),
            Retired::Control(control) => control.end(),
        }
    }
}

/// What the user has told the backend, and a new one is to be told too.
pub(crate) enum Wish {
    Hash(Option<Hashing>),
    Join(Mac),
    Leave(Mac),
}

pub(crate) struct Shared<G: Guest> {
    generation: AtomicU32,
    pub(crate) queues: Box<[Berths<G>]>,
    pub(crate) control: Berth<Control<G>>,
    pub(crate) wishes: SegQueue<Wish>,
    retired: SegQueue<Retired<G>>,
    /// The backends of connections up to this one have let go of everything.
    detached: AtomicU32,
    connected: AtomicBool,
    gone: OnceBox<Gone>,
    carrier: AtomicBool,
    /// The task of its life.
    life: AtomicWaker,
    /// Who waits for its state to change.
    watcher: AtomicWaker,
}

impl<G: Guest> Shared<G> {
    pub(crate) fn new(queues: usize) -> Self {
        Shared {
            generation: AtomicU32::new(0),
            queues: (0..queues)
                .map(|_| Berths {
                    transmit: Berth::new(),
                    receive: Berth::new(),
                })
                .collect(),
            control: Berth::new(),
            wishes: SegQueue::new(),
            retired: SegQueue::new(),
            detached: AtomicU32::new(0),
            connected: AtomicBool::new(false),
            gone: OnceBox::new(),
            carrier: AtomicBool::new(false),
            life: AtomicWaker::new(),
            watcher: AtomicWaker::new(),
        }
    }

    /// Which connection it is, or which time between two.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn turn(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.wake_users();
    }

    fn wake_users(&self) {
        for queue in &self.queues {
            queue.transmit.wake();
            queue.receive.wake();
        }
        self.control.wake();
        self.watcher.wake();
    }

    /// Ends the interface, unless it has ended: the first reason counts.
    pub(crate) fn close(&self, gone: Gone) {
        if self.gone.set(Box::new(gone)).is_ok() {
            // So that whoever looks at the generation only sees it.
            self.turn();
            self.life.wake();
        }
    }

    /// Why it is no more, if so.
    pub(crate) fn gone(&self) -> Option<Gone> {
        self.gone.get().copied()
    }

    /// For the task of its life: ready when it is to end.
    pub(crate) fn poll_closed(&self, cx: &Context<'_>) -> Poll<Gone> {
        self.life.register(cx.waker());
        match self.gone() {
            Some(gone) => Poll::Ready(gone),
            None => Poll::Pending,
        }
    }

    /// Whether a backend serves us.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// A backend serves us from now on, or no longer. Has everybody look.
    pub(crate) fn connect(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
        self.turn();
    }

    pub(crate) fn carrier(&self) -> bool {
        self.carrier.load(Ordering::Acquire)
    }

    pub(crate) fn set_carrier(&self, carrier: bool) {
        if self.carrier.swap(carrier, Ordering::AcqRel) != carrier {
            self.watcher.wake();
        }
    }

    pub(crate) fn watch(&self, cx: &Context<'_>) {
        self.watcher.register(cx.waker());
    }

    /// Takes back what its user has no more use for. It was made for connection `generation`.
    pub(crate) fn retire(&self, generation: u32, thing: Retired<G>) {
        if generation <= self.detached.load(Ordering::SeqCst) {
            thing.end();
            return;
        }
        self.retired.push(thing);
        if self.detached.load(Ordering::SeqCst) == FOR_GOOD {
            self.end_retired();
        }
    }

    /// Takes back what nobody has fetched.
    pub(crate) fn retire_fresh(&self) {
        for queue in &self.queues {
            if let Some((generation, ring)) = queue.transmit.take() {
                self.retire(generation, Retired::Transmit(ring));
            }
            if let Some((generation, ring)) = queue.receive.take() {
                self.retire(generation, Retired::Receive(ring));
            }
        }
        if let Some((generation, control)) = self.control.take() {
            self.retire(generation, Retired::Control(control));
        }
    }

    /// The backend has let go of everything. How many pages it has kept all the same.
    pub(crate) fn detach(&self) -> usize {
        self.retire_fresh();
        self.detached.store(self.generation(), Ordering::SeqCst);
        self.end_retired()
    }

    /// The same, and no other will come.
    pub(crate) fn finish(&self) {
        self.retire_fresh();
        self.detached.store(FOR_GOOD, Ordering::SeqCst);
        self.end_retired();
    }

    fn end_retired(&self) -> usize {
        let mut kept = 0;
        while let Some(thing) = self.retired.pop() {
            kept += thing.end();
        }
        kept
    }
}

/// No generation comes after it.
const FOR_GOOD: u32 = u32::MAX;

/// Held by every user: the last one to go closes the interface.
pub(crate) struct Keep<G: Guest>(pub(crate) alloc::sync::Arc<Shared<G>>);

impl<G: Guest> Drop for Keep<G> {
    fn drop(&mut self) {
        self.0.close(Gone::Closed);
    }
}
