//! A physical CPU: a thread that runs vCPUs, and sleeps in the kernel when there are none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::vcpu::Stop;
use crate::loopback::machine::Machine;
use crate::seam::Instant;
use crate::wait::{Timers, epoll_wait};

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
    pub(in crate::loopback) timers: Timers,
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
            timers: Timers::new(),
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
        self.timers.fire(now);
        if now.since(*looked) >= DESCRIPTORS_EVERY {
            *looked = now;
            self.wait(machine, Some(Duration::ZERO), events);
        }
    }

    fn idle(&self, machine: &Machine, events: &mut [EpollEvent]) {
        let now = machine.now();
        self.timers.fire(now);
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
        let timer = self.timers.deadline().map(|deadline| deadline.since(now));
        if machine.policy.has_work(self.index)
            || machine.is_stopping()
            || timer == Some(Duration::ZERO)
        {
            machine.idle_cpus.claim(self.index);
            return;
        }
        // Looked at after the idle mark was set, as the queues are.
        let sleep = match (timer, machine.policy.patience(self.index)) {
            (Some(timer), Some(patience)) => Some(timer.min(patience)),
            (timer, patience) => timer.or(patience),
        };
        self.wait(machine, sleep, events);
        self.timers.fire(machine.now());
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
}
