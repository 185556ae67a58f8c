//! A physical CPU: a thread that runs vCPUs, and sleeps in the kernel when there are none.

#![allow(unsafe_code, reason = "a system call that has no wrapper")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::vcpu::Stop;
use crate::loopback::machine::Machine;
use crate::loopback::memory::lock;
use crate::seam::Instant;

/// How long a busy physical CPU lets its descriptors wait at the most.
const DESCRIPTORS_EVERY: Duration = Duration::from_micros(50);

/// The epoll key of the doorbell; registrations count from 1.
const DOORBELL: u64 = 0;

/// What a physical CPU does when no vCPU can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Idle {
    /// Sleep until a wake-up, a timer or a descriptor.
    #[default]
    Sleep,
    /// Look again and again: the quickest answer, for a whole core's price.
    Poll,
}

pub(in crate::loopback) struct Pcpu {
    index: usize,
    doorbell: EventFd,
    epoll: Epoll,
    timers: Mutex<Timers>,
    /// The earliest timer, or `u64::MAX`.
    deadline: AtomicU64,
}

#[derive(Default)]
struct Timers {
    next: u64,
    waiting: BTreeMap<(Instant, u64), Waker>,
}

impl Pcpu {
    pub(in crate::loopback) fn new(index: usize) -> io::Result<Self> {
        let doorbell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Edge-triggered: each ring wakes once, and nobody has to read the counter back.
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(doorbell.as_fd(), EpollEvent::new(edge, DOORBELL))?;
        Ok(Pcpu {
            index,
            doorbell,
            epoll,
            timers: Mutex::default(),
            deadline: AtomicU64::new(u64::MAX),
        })
    }

    /// Wakes the thread from its sleep.
    pub(in crate::loopback) fn ring(&self) {
        // The counter would have to reach 2^64 - 1 for this to fail.
        let _ = self.doorbell.write(1);
    }

    /// Interrupts are told by `registration` when `descriptor` becomes readable.
    pub(in crate::loopback) fn watch(
        &self,
        descriptor: BorrowedFd<'_>,
        registration: u64,
    ) -> io::Result<()> {
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self
            .epoll
            .add(descriptor, EpollEvent::new(edge, registration))?)
    }

    pub(in crate::loopback) fn unwatch(&self, descriptor: BorrowedFd<'_>) {
        let _ = self.epoll.delete(descriptor);
    }

    /// The body of the physical CPU's thread.
    pub(in crate::loopback) fn run(&self, machine: &Arc<Machine>) {
        let mut events = [EpollEvent::empty(); 64];
        // The clock is read once a turn: the end of one vCPU's run is the start of the next one's.
        let mut now = machine.now();
        let mut looked = now;
        while !machine.is_stopping() {
            let Some((vcpu, slice)) = machine.policy.next(self.index, now) else {
                self.idle(machine, &mut events);
                now = machine.now();
                looked = now;
                continue;
            };
            // A vCPU whose domain is gone has nothing left to run.
            let Some(domain) = vcpu.domain() else {
                continue;
            };
            let started = now;
            let over = || {
                let now = machine.now();
                self.service(machine, now, &mut looked, &mut events);
                now.since(started) >= slice && machine.policy.has_work(self.index)
            };
            let stop = vcpu.run(&domain, self.index, over);
            now = machine.now();
            let ran = now.since(started);
            vcpu.charge(ran);
            machine.policy.charge(&vcpu, self.index, ran);
            match stop {
                Stop::Blocked => (),
                Stop::Preempted => machine.enqueue(vcpu),
                Stop::Dead => domain.vcpu_died(),
            }
            self.service(machine, now, &mut looked, &mut events);
        }
    }

    /// Fires what is due, and looks at the descriptors if that was long ago.
    fn service(
        &self,
        machine: &Machine,
        now: Instant,
        looked: &mut Instant,
        events: &mut [EpollEvent],
    ) {
        self.fire_timers(now);
        if now.since(*looked) >= DESCRIPTORS_EVERY {
            *looked = now;
            self.wait(machine, Some(Duration::ZERO), events);
        }
    }

    fn idle(&self, machine: &Machine, events: &mut [EpollEvent]) {
        let now = machine.now();
        self.fire_timers(now);
        if machine.idle == Idle::Poll {
            let until = now.after(DESCRIPTORS_EVERY);
            while !machine.policy.has_work(self.index)
                && !machine.is_stopping()
                && machine.now() < until
            {
                std::hint::spin_loop();
            }
            self.wait(machine, Some(Duration::ZERO), events);
            return;
        }
        // First say that we sleep, then look once more: whoever queues a vCPU does it the other way
        // round, so one of the two sees the other.
        machine.idle_cpus.set(self.index, true);
        let deadline = self.deadline.load(Ordering::SeqCst);
        if machine.policy.has_work(self.index)
            || machine.is_stopping()
            || now.as_nanos() >= deadline
        {
            machine.idle_cpus.claim(self.index);
            return;
        }
        let timer = (deadline != u64::MAX).then(|| Instant::from_nanos(deadline).since(now));
        // Looked at after the idle mark was set, as the queues are.
        let sleep = match (timer, machine.policy.patience(self.index)) {
            (Some(timer), Some(patience)) => Some(timer.min(patience)),
            (timer, patience) => timer.or(patience),
        };
        self.wait(machine, sleep, events);
        self.fire_timers(machine.now());
    }

    /// Waits in the kernel, for ever or so long, and delivers what the descriptors have.
    fn wait(&self, machine: &Machine, sleep: Option<Duration>, events: &mut [EpollEvent]) {
        let count = epoll_wait(&self.epoll, events, sleep);
        machine.idle_cpus.claim(self.index);
        for event in events.iter().take(count) {
            if event.data() != DOORBELL {
                machine.interrupt(event.data());
            }
        }
    }

    fn fire_timers(&self, now: Instant) {
        if now.as_nanos() < self.deadline.load(Ordering::SeqCst) {
            return;
        }
        let mut timers = lock(&self.timers);
        let later = timers.waiting.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut timers.waiting, later);
        self.note_deadline(&timers);
        drop(timers);
        for waker in due.into_values() {
            waker.wake();
        }
    }

    fn note_deadline(&self, timers: &Timers) {
        let first = timers.waiting.keys().next();
        let deadline = first.map_or(u64::MAX, |(when, _)| when.as_nanos());
        self.deadline.store(deadline, Ordering::SeqCst);
    }
}

/// `epoll_wait` with a time-out in nanoseconds, which the older call rounds to milliseconds.
fn epoll_wait(epoll: &Epoll, events: &mut [EpollEvent], sleep: Option<Duration>) -> usize {
    use nix::sys::epoll::EpollTimeout;
    let timeout = match sleep {
        None => EpollTimeout::NONE,
        Some(Duration::ZERO) => EpollTimeout::ZERO,
        Some(sleep) if sleep < Duration::from_secs(1) => return epoll_pwait2(epoll, events, sleep),
        // A sleep may end early; what was waited for is looked at again.
        Some(_) => EpollTimeout::from(1000u16),
    };
    epoll.wait(events, timeout).unwrap_or(0)
}

fn epoll_pwait2(epoll: &Epoll, events: &mut [EpollEvent], sleep: Duration) -> usize {
    use nix::sys::epoll::EpollTimeout;
    use std::os::fd::AsRawFd;
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

/// Waits for a moment on the host's clock.
pub(in crate::loopback) struct Sleep {
    machine: Arc<Machine>,
    when: Instant,
    entry: Option<(usize, u64)>,
}

impl Sleep {
    pub(in crate::loopback) fn new(machine: Arc<Machine>, when: Instant) -> Self {
        Sleep {
            machine,
            when,
            entry: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.machine.now() >= self.when {
            return Poll::Ready(());
        }
        let here = self.machine.pcpu_of_this_thread();
        let index = here.unwrap_or(0);
        let pcpu = &self.machine.pcpus[self.entry.map_or(index, |(pcpu, _)| pcpu)];
        let mut timers = lock(&pcpu.timers);
        let id = match self.entry {
            Some((_, id)) => id,
            None => {
                timers.next += 1;
                timers.next
            }
        };
        timers.waiting.insert((self.when, id), cx.waker().clone());
        pcpu.note_deadline(&timers);
        let first = timers.waiting.keys().next() == Some(&(self.when, id));
        drop(timers);
        let pcpu = pcpu.index;
        if first && here != Some(pcpu) {
            // It may be asleep with a later deadline in mind.
            self.machine.pcpus[pcpu].ring();
        }
        self.entry = Some((pcpu, id));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((pcpu, id)) = self.entry {
            let pcpu = &self.machine.pcpus[pcpu];
            let mut timers = lock(&pcpu.timers);
            timers.waiting.remove(&(self.when, id));
            pcpu.note_deadline(&timers);
        }
    }
}
