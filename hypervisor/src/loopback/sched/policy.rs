//! Who runs where, and for how long.
//!
//! A [`Policy`] decides; it never runs, wakes or blocks anything itself. The mechanism calls it
//! with a vCPU that became runnable, asks for the next one to run on a physical CPU, and tells how
//! long it ran.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parapet_xen_sys::DomId;

pub use super::vcpu::Vcpu;
use crate::seam::Instant;
use crate::wait::lock;
use std::sync::Arc;

/// A vCPU as a policy sees it: who it is, where it last ran, where it may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VcpuId {
    /// Its domain.
    pub domid: DomId,
    /// Its index in the domain.
    pub index: usize,
}

/// Decides which vCPU a physical CPU runs. Its methods are called from all physical CPUs at once.
pub trait Policy: Send + Sync + 'static {
    /// `vcpu` became runnable (it was woken, or its slice ended): queue it. `from` is the physical
    /// CPU that says so, if it is one. The result is a physical CPU that should look at its queue,
    /// and is woken if it sleeps.
    fn enqueue(&self, vcpu: Arc<Vcpu>, from: Option<usize>, idle: &IdleCpus) -> usize;

    /// The vCPU that physical CPU `pcpu` runs now, and how long it may before others get a turn.
    fn next(&self, pcpu: usize, now: Instant) -> Option<(Arc<Vcpu>, Duration)>;

    /// Whether a vCPU waits for `pcpu`.
    fn has_work(&self, pcpu: usize) -> bool;

    /// How long `pcpu` may sleep, with nothing to run, before it asks again whether there is
    /// something for it; none: until it is woken.
    fn patience(&self, pcpu: usize) -> Option<Duration>;

    /// `vcpu` ran for `ran` on `pcpu`.
    fn charge(&self, vcpu: &Vcpu, pcpu: usize, ran: Duration);
}

/// The physical CPUs that sleep, or are about to.
#[derive(Debug, Default)]
pub struct IdleCpus(AtomicU64);

impl IdleCpus {
    pub(crate) fn set(&self, pcpu: usize, idle: bool) {
        let bit = 1 << pcpu;
        if idle {
            self.0.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.0.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Clears the mark of `pcpu`, and tells whether it was there.
    pub(crate) fn claim(&self, pcpu: usize) -> bool {
        let bit = 1 << pcpu;
        self.0.load(Ordering::SeqCst) & bit != 0
            && self.0.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Whether `pcpu` sleeps.
    pub fn has(&self, pcpu: usize) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << pcpu != 0
    }

    /// One that sleeps, if any does.
    pub fn any(&self) -> Option<usize> {
        let idle = self.0.load(Ordering::Relaxed);
        (idle != 0).then(|| idle.trailing_zeros() as usize)
    }
}

/// Every vCPU gets its turn, in the order in which they became runnable.
///
/// A vCPU stays with the physical CPU it last ran on, where its cache lines are and where a wake-up
/// by a neighbour costs no system call. A physical CPU with nothing to do takes over, unless it is
/// pinned, one that has to wait behind others, or that has waited for a slice.
///
/// A vCPU that was woken by its neighbour, which then computes without ever awaiting, is the one
/// that nobody looks for while all other physical CPUs sleep: to wake one at every such wake-up
/// would cost the system call that staying together saves.
#[derive(Debug)]
pub struct RoundRobin {
    slice: Duration,
    queues: Box<[Queue]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Queue {
    waiting: Mutex<VecDeque<Arc<Vcpu>>>,
    /// The queue's length, to be looked at without its lock.
    len: AtomicUsize,
    /// How many vCPUs were taken from it.
    turns: AtomicU64,
    /// What `turns` was when an idle physical CPU first saw it so, and when that was.
    seen: Mutex<(u64, Instant)>,
}

impl Queue {
    fn push(&self, vcpu: Arc<Vcpu>) -> usize {
        let mut waiting = lock(&self.waiting);
        waiting.push_back(vcpu);
        self.len.store(waiting.len(), Ordering::SeqCst);
        waiting.len()
    }

    fn pop(&self) -> Option<Arc<Vcpu>> {
        if self.len.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        let first = waiting.pop_front();
        self.len.store(waiting.len(), Ordering::SeqCst);
        let turns = self.turns.load(Ordering::Relaxed);
        self.turns.store(turns.wrapping_add(1), Ordering::Relaxed);
        first
    }

    /// Takes the first that may run elsewhere, if more than one waits or nothing has moved here
    /// for a slice.
    fn steal(&self, now: Instant, slice: Duration) -> Option<Arc<Vcpu>> {
        match self.len.load(Ordering::SeqCst) {
            0 => return None,
            1 => {
                let turns = self.turns.load(Ordering::Relaxed);
                let mut seen = lock(&self.seen);
                if seen.0 != turns {
                    *seen = (turns, now);
                }
                if now.since(seen.1) < slice {
                    return None;
                }
            }
            _ => {}
        }
        let mut waiting = lock(&self.waiting);
        let index = waiting.iter().position(|vcpu| vcpu.pinned().is_none())?;
        let stolen = waiting.remove(index);
        self.len.store(waiting.len(), Ordering::SeqCst);
        stolen
    }
}

impl RoundRobin {
    /// A round robin for `pcpus` physical CPUs.
    pub fn new(pcpus: usize, slice: Duration) -> Self {
        RoundRobin {
            slice,
            queues: (0..pcpus).map(|_| Queue::default()).collect(),
        }
    }

    fn queue(&self, pcpu: usize) -> &Queue {
        &self.queues[pcpu % self.queues.len()]
    }
}

impl Policy for RoundRobin {
    fn enqueue(&self, vcpu: Arc<Vcpu>, from: Option<usize>, idle: &IdleCpus) -> usize {
        let home = vcpu.pinned().unwrap_or_else(|| vcpu.last_pcpu());
        let movable = vcpu.pinned().is_none();
        let waiting = self.queue(home).push(vcpu);
        if movable && !idle.has(home) && (waiting > 1 || from != Some(home)) {
            idle.any().unwrap_or(home)
        } else {
            home
        }
    }

    fn next(&self, pcpu: usize, now: Instant) -> Option<(Arc<Vcpu>, Duration)> {
        let own = self.queue(pcpu).pop();
        let vcpu = own.or_else(|| {
            let others = (1..self.queues.len()).map(|step| self.queue(pcpu + step));
            others
                .filter_map(|queue| queue.steal(now, self.slice))
                .next()
        })?;
        Some((vcpu, self.slice))
    }

    fn has_work(&self, pcpu: usize) -> bool {
        self.queue(pcpu).len.load(Ordering::SeqCst) > 0
    }

    fn patience(&self, _pcpu: usize) -> Option<Duration> {
        let waits = |queue: &Queue| queue.len.load(Ordering::SeqCst) > 0;
        self.queues.iter().any(waits).then_some(self.slice)
    }

    fn charge(&self, _vcpu: &Vcpu, _pcpu: usize, _ran: Duration) {}
}
