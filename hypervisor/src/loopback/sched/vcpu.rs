//! A vCPU: the tasks of a guest that run one after another, and the upcalls that wake them.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_task::{Runnable, Task};
use crossbeam::queue::SegQueue;

use super::policy::VcpuId;
use crate::loopback::domain::DomainInner;
use crate::wait::lock;

/// Somebody has something for the vCPU: it is queued, or will look again before it blocks.
const KICKED: u8 = 1;
/// A physical CPU is running it.
const RUNNING: u8 = 2;
/// It will never run again.
const DEAD: u8 = 4;

/// How many tasks are polled between two looks at the clock.
const POLLS_PER_LOOK: u32 = 64;

thread_local! {
    /// The vCPU that this thread is running: an address to compare with, never followed.
    static CURRENT: Cell<*const Vcpu> = const { Cell::new(std::ptr::null()) };
}

/// A virtual CPU of a loopback domain.
pub struct Vcpu {
    id: VcpuId,
    domain: Weak<DomainInner>,
    state: AtomicU8,
    ready: SegQueue<Runnable>,
    tasks: Mutex<Tasks>,
    last_pcpu: AtomicUsize,
    pinned: Option<usize>,
    ran: AtomicU64,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    running: HashMap<u64, Task<()>>,
    /// Futures that were not dropped yet.
    live: usize,
    closed: bool,
}

/// Why a vCPU stopped running.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::loopback) enum Stop {
    /// All its tasks wait.
    Blocked,
    /// Its slice is over, and there is more to do.
    Preempted,
    /// Its domain is being destroyed, and its last task is gone.
    Dead,
}

impl Vcpu {
    pub(in crate::loopback) fn new(
        id: VcpuId,
        domain: Weak<DomainInner>,
        home: usize,
        pinned: Option<usize>,
    ) -> Self {
        Vcpu {
            id,
            domain,
            state: AtomicU8::new(0),
            ready: SegQueue::new(),
            tasks: Mutex::new(Tasks::default()),
            last_pcpu: AtomicUsize::new(home),
            pinned,
            ran: AtomicU64::new(0),
        }
    }

    /// Who it is.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Its domain, unless that is gone.
    pub(in crate::loopback) fn domain(&self) -> Option<Arc<DomainInner>> {
        self.domain.upgrade()
    }

    /// The physical CPU that it ran on last, or was assigned to at first.
    pub fn last_pcpu(&self) -> usize {
        self.last_pcpu.load(Ordering::Relaxed)
    }

    /// The only physical CPU that may run it, if it is pinned.
    pub fn pinned(&self) -> Option<usize> {
        self.pinned
    }

    /// How long it has run in all.
    pub fn ran(&self) -> Duration {
        Duration::from_nanos(self.ran.load(Ordering::Relaxed))
    }

    /// Whether the calling thread is running it.
    pub(in crate::loopback) fn is_current(&self) -> bool {
        std::ptr::eq(CURRENT.get(), self)
    }

    /// Says that there is something to do. The result tells the caller to queue the vCPU.
    #[inline]
    pub(in crate::loopback) fn kick(&self) -> bool {
        // While we run it ourselves it will look once more before it blocks.
        !self.is_current() && self.state.fetch_or(KICKED, Ordering::SeqCst) == 0
    }

    /// Starts a task here.
    pub(in crate::loopback) fn spawn(
        self: &Arc<Self>,
        domain: &Arc<DomainInner>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut tasks = lock(&self.tasks);
        if tasks.closed {
            return;
        }
        let id = tasks.next;
        tasks.next += 1;
        let ended = Ended(Arc::clone(self), id);
        let (vcpu, home) = (Arc::clone(self), Arc::clone(domain));
        let (runnable, handle) = async_task::spawn(
            async move {
                let _ended = ended;
                task.await;
            },
            move |runnable| {
                vcpu.ready.push(runnable);
                if vcpu.kick() {
                    home.machine.enqueue(Arc::clone(&vcpu));
                }
            },
        );
        tasks.running.insert(id, handle);
        tasks.live += 1;
        drop(tasks);
        runnable.schedule();
    }

    /// Runs upcalls and tasks until all of them wait, or `over` says that the slice is.
    pub(in crate::loopback) fn run(
        &self,
        domain: &Arc<DomainInner>,
        pcpu: usize,
        mut over: impl FnMut() -> bool,
    ) -> Stop {
        if self.last_pcpu.load(Ordering::Relaxed) != pcpu {
            self.last_pcpu.store(pcpu, Ordering::Relaxed);
        }
        let outer = CURRENT.replace(self);
        let stop = self.run_current(domain, &mut over);
        CURRENT.set(outer);
        stop
    }

    fn run_current(&self, domain: &Arc<DomainInner>, over: &mut impl FnMut() -> bool) -> Stop {
        let mut polls = 0u32;
        loop {
            self.state.swap(RUNNING, Ordering::SeqCst);
            if domain.is_dying() {
                if self.bury() {
                    return Stop::Dead;
                }
                // A task is on its way here by another thread, which will wake us for it.
                if self.block() {
                    return Stop::Blocked;
                }
                continue;
            }
            loop {
                domain.upcall(self.id.index);
                let Some(task) = self.ready.pop() else { break };
                let id = self.id;
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task.run())) {
                    // Not dropped: its drop may panic too, and this thread is everybody's.
                    std::mem::forget(payload);
                    log::error!("a task of domain {} panicked: the domain crashes", id.domid);
                    domain.crash();
                }
                polls = polls.wrapping_add(1);
                if polls.is_multiple_of(POLLS_PER_LOOK) {
                    if domain.is_dying() {
                        break;
                    }
                    if over() {
                        self.state.store(KICKED, Ordering::SeqCst);
                        return Stop::Preempted;
                    }
                }
            }
            if domain.is_dying() {
                continue;
            }
            if self.block() {
                return Stop::Blocked;
            }
        }
    }

    /// Goes to wait, unless somebody has kicked us meanwhile.
    fn block(&self) -> bool {
        self.state
            .compare_exchange(RUNNING, 0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    pub(in crate::loopback) fn charge(&self, ran: Duration) {
        self.ran.fetch_add(ran.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Drops every task, whatever it waits for. True: the last is gone, and so are we.
    fn bury(&self) -> bool {
        let mut tasks = lock(&self.tasks);
        tasks.closed = true;
        let running = std::mem::take(&mut tasks.running);
        drop(tasks);
        // To drop a task's handle is to cancel it; it comes to the ready queue once more, and what
        // it owns is dropped when it is run.
        drop(running);
        while let Some(task) = self.ready.pop() {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task.run())) {
                std::mem::forget(payload);
            }
        }
        let empty = lock(&self.tasks).live == 0;
        if empty {
            self.state.store(DEAD, Ordering::SeqCst);
        }
        empty
    }
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("id", &self.id)
            .field("last_pcpu", &self.last_pcpu())
            .field("pinned", &self.pinned)
            .finish_non_exhaustive()
    }
}

/// Forgets a task's handle when the task is done.
struct Ended(Arc<Vcpu>, u64);

impl Drop for Ended {
    fn drop(&mut self) {
        let mut tasks = lock(&self.0.tasks);
        tasks.live -= 1;
        let handle = tasks.running.remove(&self.1);
        drop(tasks);
        if let Some(handle) = handle {
            handle.detach();
        }
    }
}
