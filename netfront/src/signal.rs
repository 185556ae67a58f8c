//! The event channel of a ring: its own, or one that both rings of a queue share.

use alloc::sync::Arc;
use alloc::task::Wake;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;
use parapet_hypervisor::seam::Channel;
use parapet_xen_sys::Port;

/// What the backend tells one ring by.
pub(crate) enum Signal<C> {
    /// A channel for this ring alone.
    Own(C),
    /// One for both.
    Joint(Arc<Joint<C>>, Side),
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Transmit = 0,
    Receive = 1,
}

/// A channel with two who wait: an event wakes both, as it does not say for whom it is.
pub(crate) struct Joint<C> {
    channel: C,
    sides: Arc<Sides>,
    /// Wakes both.
    waker: Waker,
}

#[derive(Default)]
struct Sides([Waiter; 2]);

#[derive(Default)]
struct Waiter {
    /// An event came that it has not seen.
    pending: AtomicBool,
    waker: AtomicWaker,
}

impl Wake for Sides {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        for side in &self.0 {
            side.waker.wake();
        }
    }
}

impl Sides {
    fn of(&self, side: Side) -> (&Waiter, &Waiter) {
        let [transmit, receive] = &self.0;
        match side {
            Side::Transmit => (transmit, receive),
            Side::Receive => (receive, transmit),
        }
    }
}

impl<C> Joint<C> {
    fn new(channel: C) -> Self {
        let sides = Arc::<Sides>::default();
        let waker = Arc::clone(&sides).into();
        Joint {
            channel,
            sides,
            waker,
        }
    }
}

impl<C: Channel> Signal<C> {
    /// One channel for the two rings of a queue.
    pub(crate) fn joint(channel: C) -> (Self, Self) {
        let joint = Arc::new(Joint::new(channel));
        (
            Signal::Joint(Arc::clone(&joint), Side::Transmit),
            Signal::Joint(joint, Side::Receive),
        )
    }

    fn channel(&self) -> &C {
        match self {
            Signal::Own(channel) => channel,
            Signal::Joint(joint, _) => &joint.channel,
        }
    }
}

impl<C: Channel> Channel for Signal<C> {
    fn port(&self) -> Port {
        self.channel().port()
    }

    #[inline]
    fn notify(&self) {
        self.channel().notify();
    }

    #[inline]
    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        let (joint, side) = match self {
            Signal::Own(channel) => return channel.poll_wait(cx),
            Signal::Joint(joint, side) => (joint, *side),
        };
        let (own, _) = joint.sides.of(side);
        own.waker.register(cx.waker());
        if self.take() {
            return Poll::Ready(());
        }
        match joint
            .channel
            .poll_wait(&mut Context::from_waker(&joint.waker))
        {
            Poll::Ready(()) => {
                joint.pass_on(side);
                Poll::Ready(())
            }
            // The other may have taken an event for both meanwhile, and woken us before.
            Poll::Pending if own.pending.swap(false, Ordering::AcqRel) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn take(&self) -> bool {
        match self {
            Signal::Own(channel) => channel.take(),
            Signal::Joint(joint, side) => {
                if joint.channel.take() {
                    joint.pass_on(*side);
                    return true;
                }
                let (own, _) = joint.sides.of(*side);
                own.pending.swap(false, Ordering::AcqRel)
            }
        }
    }

    fn mask(&self) {
        self.channel().mask();
    }

    fn unmask(&self) {
        self.channel().unmask();
    }
}

impl<C> Joint<C> {
    /// Lets the other know of an event that this one took.
    fn pass_on(&self, side: Side) {
        let (_, other) = self.sides.of(side);
        other.pending.store(true, Ordering::Release);
        other.waker.wake();
    }
}
