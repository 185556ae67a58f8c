//! Waiting on the host: descriptors by epoll, moments by timers. What the threads of the loopback
//! world and those of a real Xen host have in common.

#![allow(unsafe_code, reason = "a system call that has no wrapper")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

use crate::seam::Instant;

/// The lock, also when its last holder panicked: what these locks guard is whole at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `epoll_wait` with a time-out in nanoseconds, which the older call rounds to milliseconds. It may
/// return early; how many events there are is the result.
pub(crate) fn epoll_wait(
    epoll: &Epoll,
    events: &mut [EpollEvent],
    sleep: Option<Duration>,
) -> usize {
    let timeout = match sleep {
        None => EpollTimeout::NONE,
        Some(Duration::ZERO) => EpollTimeout::ZERO,
        Some(sleep) if sleep < Duration::from_secs(1) => return epoll_pwait2(epoll, events, sleep),
        // What was waited for is looked at again.
        Some(_) => EpollTimeout::from(1000u16),
    };
    epoll.wait(events, timeout).unwrap_or(0)
}

fn epoll_pwait2(epoll: &Epoll, events: &mut [EpollEvent], sleep: Duration) -> usize {
    let timeout = libc::timespec {
        tv_sec: sleep.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(sleep.subsec_nanos()),
    };
    // SAFETY: `EpollEvent` is a transparent wrapper of `epoll_event`; the kernel writes at most
    // `events.len()` of them, and only reads the time-out.
    let count = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.0.as_raw_fd(),
            events.as_mut_ptr().cast::<libc::epoll_event>(),
            events.len(),
            &raw const timeout,
            std::ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    match usize::try_from(count) {
        Ok(count) => count,
        Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => 0,
        // An old kernel, or a container that does not allow the call.
        Err(_) => {
            let millis = sleep.as_millis().min(1000) as u16 + 1;
            epoll.wait(events, EpollTimeout::from(millis)).unwrap_or(0)
        }
    }
}

/// The moments that one thread waits for.
pub(crate) struct Timers {
    waiting: Mutex<Waiting>,
    /// The earliest, or `u64::MAX`.
    deadline: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    timers: BTreeMap<(Instant, u64), Waker>,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Timers {
            waiting: Mutex::default(),
            deadline: AtomicU64::new(u64::MAX),
        }
    }

    /// The earliest moment that somebody waits for.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let deadline = self.deadline.load(Ordering::SeqCst);
        (deadline != u64::MAX).then(|| Instant::from_nanos(deadline))
    }

    /// Wakes everybody whose moment is `now` or was before.
    pub(crate) fn fire(&self, now: Instant) {
        if now.as_nanos() < self.deadline.load(Ordering::SeqCst) {
            return;
        }
        let mut waiting = lock(&self.waiting);
        let later = waiting.timers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut waiting.timers, later);
        self.note_deadline(&waiting);
        drop(waiting);
        for waker in due.into_values() {
            waker.wake();
        }
    }

    /// Sets a timer, anew if it has a number already. Returns its number, and whether it is the
    /// first of all to come.
    fn set(&self, when: Instant, number: Option<u64>, waker: &Waker) -> (u64, bool) {
        let mut waiting = lock(&self.waiting);
        let number = number.unwrap_or_else(|| {
            waiting.next += 1;
            waiting.next
        });
        waiting.timers.insert((when, number), waker.clone());
        self.note_deadline(&waiting);
        let first = waiting.timers.keys().next() == Some(&(when, number));
        (number, first)
    }

    fn remove(&self, when: Instant, number: u64) {
        let mut waiting = lock(&self.waiting);
        waiting.timers.remove(&(when, number));
        self.note_deadline(&waiting);
    }

    fn note_deadline(&self, waiting: &Waiting) {
        let first = waiting.timers.keys().next();
        let deadline = first.map_or(u64::MAX, |(when, _)| when.as_nanos());
        self.deadline.store(deadline, Ordering::SeqCst);
    }
}

/// Threads that keep timers.
pub(crate) trait Timekeeper {
    /// The time.
    fn now(&self) -> Instant;
    /// Which of the threads the caller is on, if any.
    fn this_thread(&self) -> Option<usize>;
    /// The timers of a thread.
    fn timers(&self, thread: usize) -> &Timers;
    /// Wakes a thread from its sleep.
    fn ring(&self, thread: usize);
}

/// Waits for a moment.
pub(crate) struct Sleep<T: Timekeeper> {
    threads: Arc<T>,
    when: Instant,
    /// The thread whose timer it is, and the timer's number.
    entry: Option<(usize, u64)>,
}

impl<T: Timekeeper> Sleep<T> {
    pub(crate) fn new(threads: Arc<T>, when: Instant) -> Self {
        Sleep {
            threads,
            when,
            entry: None,
        }
    }
}

impl<T: Timekeeper> Future for Sleep<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.threads.now() >= self.when {
            return Poll::Ready(());
        }
        let here = self.threads.this_thread();
        let (thread, number) = match self.entry {
            Some((thread, number)) => (thread, Some(number)),
            None => (here.unwrap_or(0), None),
        };
        let timers = self.threads.timers(thread);
        let (number, first) = timers.set(self.when, number, cx.waker());
        if first && here != Some(thread) {
            // It may be asleep with a later deadline in mind.
            self.threads.ring(thread);
        }
        self.entry = Some((thread, number));
        Poll::Pending
    }
}

impl<T: Timekeeper> Drop for Sleep<T> {
    fn drop(&mut self) {
        if let Some((thread, number)) = self.entry {
            self.threads.timers(thread).remove(self.when, number);
        }
    }
}
