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
use crate::loopback::memory::lock;
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
    /// `vcpu` became runnable (it was woken, or its slice ended): queue it. The result is a
    /// physical CPU that should look at its queue, and is woken if it sleeps.
    fn enqueue(&self, vcpu: Arc<Vcpu>, idle: &IdleCpus) -> usize;

    /// The vCPU that physical CPU `pcpu` runs now, and how long it may before others get a turn.
    fn next(&self, pcpu: usize) -> Option<(Arc<Vcpu>, Duration)>;

    /// Whether [`Policy::next`] would find one for `pcpu`.
    fn has_work(&self, pcpu: usize) -> bool;

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

    /// One that sleeps, if any does.
    pub fn any(&self) -> Option<usize> {
        let idle = self.0.load(Ordering::Relaxed);
        (idle != 0).then(|| idle.trailing_zeros() as usize)
    }
}

/// Every vCPU gets its turn, in the order in which they became runnable.
///
/// A vCPU stays with the physical CPU it last ran on, where its cache lines are and where a wake-up
/// by a neighbour costs no system call. When others wait there already and some physical CPU
/// sleeps, that one takes it over, unless the vCPU is pinned.
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
        first
    }

    /// Takes the first that may run elsewhere, if more than one waits.
    fn steal(&self) -> Option<Arc<Vcpu>> {
        if self.len.load(Ordering::SeqCst) < 2 {
            return None;
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
    fn enqueue(&self, vcpu: Arc<Vcpu>, idle: &IdleCpus) -> usize {
        let home = vcpu.pinned().unwrap_or_else(|| vcpu.last_pcpu());
        let movable = vcpu.pinned().is_none();
        let waiting = self.queue(home).push(vcpu);
        if movable && waiting > 1 {
            idle.any().unwrap_or(home)
        } else {
            home
        }
    }

    fn next(&self, pcpu: usize) -> Option<(Arc<Vcpu>, Duration)> {
        let own = self.queue(pcpu).pop();
        let vcpu = own.or_else(|| {
            let others = (1..self.queues.len()).map(|step| self.queue(pcpu + step));
            others.filter_map(Queue::steal).next()
        })?;
        Some((vcpu, self.slice))
    }

    fn has_work(&self, pcpu: usize) -> bool {
        let len = |queue: &Queue| queue.len.load(Ordering::SeqCst);
        len(self.queue(pcpu)) > 0
    }

    fn charge(&self, _vcpu: &Vcpu, _pcpu: usize, _ran: Duration) {}
}
