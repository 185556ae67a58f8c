//! Worker threads: each runs its own tasks, and sleeps in the kernel when all of them wait.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_task::Runnable;
use crossbeam::queue::SegQueue;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::channel::Source;
use crate::seam::Instant;
use crate::wait::{Timekeeper, Timers, epoll_wait, lock};

thread_local! {
    /// The worker that this thread is, with the group that it belongs to: an address to compare
    /// with, never followed.
    static HERE: Cell<Option<(*const Workers, usize)>> = const { Cell::new(None) };
}

/// The epoll key of the doorbell; sources count from 1.
const DOORBELL: u64 = 0;

/// How many tasks are polled before the descriptors and timers are looked at, though there are
/// more tasks to poll.
const POLLS_PER_LOOK: usize = 32;

/// All worker threads of a handle.
pub(super) struct Workers {
    threads: Box<[Worker]>,
    born: std::time::Instant,
    next_worker: AtomicUsize,
    next_name: AtomicU64,
}

struct Worker {
    ready: SegQueue<Runnable>,
    /// Whether it is about to sleep, or does.
    asleep: AtomicBool,
    doorbell: EventFd,
    epoll: Epoll,
    timers: Timers,
    sources: Mutex<HashMap<u64, Arc<Source>>>,
    /// Tasks that have not ended.
    tasks: AtomicUsize,
}

impl Worker {
    fn new() -> io::Result<Self> {
        let doorbell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(doorbell.as_fd(), EpollEvent::new(edge(), DOORBELL))?;
        Ok(Worker {
            ready: SegQueue::new(),
            asleep: AtomicBool::new(false),
            doorbell,
            epoll,
            timers: Timers::new(),
            sources: Mutex::default(),
            tasks: AtomicUsize::new(0),
        })
    }

    /// Wakes the thread if it sleeps, or keeps it from doing so.
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // The counter would have to reach 2^64 - 1 for this to fail.
            let _ = self.doorbell.write(1);
        }
    }

    /// Runs tasks, but not for ever.
    fn run_tasks(&self) {
        for _ in 0..POLLS_PER_LOOK {
            let Some(task) = self.ready.pop() else { return };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task.run())) {
                // Not dropped: its drop may panic too, and this thread is everybody's.
                std::mem::forget(payload);
                log::error!("a task panicked, and is over; the others go on");
            }
        }
    }

    /// Waits in the kernel, for ever or so long, and tells what the descriptors have.
    fn wait(&self, sleep: Option<Duration>, events: &mut [EpollEvent]) {
        let count = epoll_wait(&self.epoll, events, sleep);
        self.asleep.store(false, Ordering::SeqCst);
        for event in events.iter().take(count) {
            let source = lock(&self.sources).get(&event.data()).cloned();
            if let Some(source) = source {
                source.raise();
            }
        }
    }

    /// The body of the thread.
    fn run(&self, now: impl Fn() -> Instant) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            self.run_tasks();
            self.timers.fire(now());
            // First say that we sleep, then look once more: whoever queues a task does it the
            // other way round, so one of the two sees the other.
            self.asleep.store(true, Ordering::SeqCst);
            let timer = self.timers.deadline();
            let sleep = if self.ready.is_empty() {
                timer.map(|deadline| deadline.since(now()))
            } else {
                Some(Duration::ZERO)
            };
            self.wait(sleep, &mut events);
        }
    }
}

/// Edge-triggered: each change is told once, and nobody has to read the doorbell's counter back.
fn edge() -> EpollFlags {
    EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
}

impl Workers {
    pub(super) fn start(count: usize) -> io::Result<Arc<Self>> {
        let threads = (0..count).map(|_| Worker::new());
        let workers = Arc::new(Workers {
            threads: threads.collect::<io::Result<_>>()?,
            born: std::time::Instant::now(),
            next_worker: AtomicUsize::new(0),
            next_name: AtomicU64::new(DOORBELL + 1),
        });
        for index in 0..count {
            let all = Arc::clone(&workers);
            std::thread::Builder::new()
                .name(format!("worker{index}"))
                .spawn(move || {
                    HERE.set(Some((Arc::as_ptr(&all), index)));
                    all.threads[index].run(|| all.now());
                })?;
        }
        Ok(workers)
    }

    pub(super) fn now(&self) -> Instant {
        Instant::from_nanos(self.born.elapsed().as_nanos() as u64)
    }

    /// The worker that the calling thread is.
    #[inline]
    pub(super) fn here(&self) -> Option<usize> {
        let (workers, index) = HERE.get()?;
        std::ptr::eq(workers, self).then_some(index)
    }

    /// Any worker, each in turn.
    pub(super) fn next(&self) -> usize {
        self.next_worker.fetch_add(1, Ordering::Relaxed) % self.threads.len()
    }

    /// Starts a task on the worker that has the fewest, where it stays.
    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let from = self.next();
        let count = self.threads.len();
        let in_turn = (from..from + count).map(|index| index % count);
        let index = in_turn
            .min_by_key(|&index| self.threads[index].tasks.load(Ordering::Relaxed))
            .unwrap_or(from);
        let counted = Counted::new(self, index);
        let all = Arc::clone(self);
        let (runnable, task) = async_task::spawn(
            async move {
                let _counted = counted;
                task.await;
            },
            move |runnable| {
                let worker = &all.threads[index];
                worker.ready.push(runnable);
                if all.here() != Some(index) {
                    worker.ring();
                }
            },
        );
        task.detach();
        runnable.schedule();
    }

    /// Has worker `index` tell `source` when its descriptor becomes readable; it counts as doing so
    /// if it is now. Returns the name to end that by.
    pub(super) fn watch(&self, index: usize, source: &Arc<Source>) -> io::Result<u64> {
        let worker = &self.threads[index];
        let name = self.next_name.fetch_add(1, Ordering::Relaxed);
        // Known before it is watched: the first event may come at once.
        lock(&worker.sources).insert(name, Arc::clone(source));
        let added = worker
            .epoll
            .add(source.descriptor(), EpollEvent::new(edge(), name));
        if added.is_err() {
            lock(&worker.sources).remove(&name);
        }
        added?;
        Ok(name)
    }

    pub(super) fn unwatch(&self, index: usize, name: u64, source: &Source) {
        let worker = &self.threads[index];
        let _ = worker.epoll.delete(source.descriptor());
        lock(&worker.sources).remove(&name);
    }
}

/// A task of a worker's.
struct Counted(Arc<Workers>, usize);

impl Counted {
    fn new(workers: &Arc<Workers>, index: usize) -> Self {
        workers.threads[index].tasks.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(workers), index)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Counted(workers, index) = self;
        workers.threads[*index]
            .tasks
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl Timekeeper for Workers {
    fn now(&self) -> Instant {
        Workers::now(self)
    }

    fn this_thread(&self) -> Option<usize> {
        self.here()
    }

    fn timers(&self, thread: usize) -> &Timers {
        &self.threads[thread].timers
    }

    fn ring(&self, thread: usize) {
        self.threads[thread].ring();
    }
}
