//! Time and tasks.

use core::future::Future;
use core::time::Duration;

/// A moment on a domain's clock: nanoseconds since some fixed point, never going back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanoseconds` after the clock's zero.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Instant(nanoseconds)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was, and zero if it is not earlier.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment and `later` more.
    pub fn after(self, later: Duration) -> Self {
        let nanos = u64::try_from(later.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

/// Telling the time, and waiting for it.
pub trait Clock {
    /// The domain's time.
    fn now(&self) -> Instant;

    /// Waits until it is `when`.
    fn sleep_until(&self, when: Instant) -> impl Future<Output = ()> + Send + 'static;

    /// Waits for `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        self.sleep_until(self.now().after(duration))
    }
}

/// Starting tasks. One queue of a device is one task.
pub trait Tasks {
    /// Runs `task` beside the caller, until it ends or the domain does.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
}

/// Lets the other tasks run first.
pub fn yield_now() -> impl Future<Output = ()> + Send + Unpin + 'static {
    let mut yielded = false;
    core::future::poll_fn(move |cx| {
        if core::mem::replace(&mut yielded, true) {
            core::task::Poll::Ready(())
        } else {
            cx.waker().wake_by_ref();
            core::task::Poll::Pending
        }
    })
}
