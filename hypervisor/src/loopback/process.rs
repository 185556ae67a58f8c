//! A process in a domain: tasks that can be killed together, as a kernel would.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use atomic_waker::AtomicWaker;
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::grant_table::GrantRef;

use super::{Channel, Domain, Grant, Mapping, Pages};
use crate::seam::{
    Access, Clock, CopyOp, EventError, Events, GrantError, Grants, HostDescriptors, Identity,
    Instant, MapError, Memory, OutOfMemory, Tasks,
};
use crate::wait::lock;

/// What the tasks of a process have of their place, which is their domain: it is the same seam.
///
/// A process that is [killed](Process::kill) says and does nothing more: each of its tasks is
/// dropped where it waits, and with it what the task holds, as a kernel takes back mappings and
/// ports. Others in the domain go on, and another process can take up what it has left.
///
/// For tests of what a crash leaves behind there is [`Process::kill_after`], too.
#[derive(Clone)]
pub struct Process {
    domain: Domain,
    life: Arc<Life>,
}

/// In place of a panic's message: the process was killed here.
struct Killed;

#[derive(Default)]
struct Life {
    killed: AtomicBool,
    /// Uses of the seam until it dies, and zero for one that does not.
    fuse: AtomicU64,
    tasks: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    live: Vec<(u64, Arc<AtomicWaker>)>,
    /// Who waits for the last task to be gone.
    waiting: Vec<Waker>,
}

impl Life {
    fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        let tasks: Vec<_> = lock(&self.tasks).live.clone();
        for (_, waker) in tasks {
            waker.wake();
        }
    }

    /// Counts a use of the seam; it may have been the last.
    fn used(&self) {
        let burnt = |left: u64| left.checked_sub(1);
        let order = Ordering::SeqCst;
        if self.fuse.try_update(order, order, burnt) == Ok(1) {
            self.kill();
            // Not a panic: nobody is to be told of it.
            resume_unwind(Box::new(Killed));
        }
    }
}

/// A task, until it is dropped.
struct Live(Arc<Life>, u64);

impl Drop for Live {
    fn drop(&mut self) {
        let waiting = {
            let mut tasks = lock(&self.0.tasks);
            tasks.live.retain(|(id, _)| *id != self.1);
            match tasks.live.is_empty() {
                true => std::mem::take(&mut tasks.waiting),
                false => Vec::new(),
            }
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Process {
    pub(super) fn new(domain: &Domain) -> Self {
        Process {
            domain: domain.clone(),
            life: Arc::default(),
        }
    }

    /// Kills it, and waits until everything of it is gone.
    pub async fn kill(&self) {
        self.life.kill();
        self.gone().await;
    }

    /// Lets it die at the `uses`th use of its place from now on, in the middle of whatever it is
    /// about then: of mapping a page, of telling the time.
    pub fn kill_after(&self, uses: u64) {
        self.life.fuse.store(uses, Ordering::SeqCst);
    }

    /// Whether it was killed.
    pub fn is_killed(&self) -> bool {
        self.life.is_killed()
    }

    /// Waits until it has no task.
    pub async fn gone(&self) {
        poll_fn(|cx| {
            let mut tasks = lock(&self.life.tasks);
            if tasks.live.is_empty() {
                return Poll::Ready(());
            }
            tasks.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The domain that it is in.
    pub fn domain(&self) -> &Domain {
        self.life.used();
        &self.domain
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Process({:?})", self.domain)
    }
}

impl Tasks for Process {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let waker = Arc::new(AtomicWaker::new());
        let live = {
            let mut tasks = lock(&self.life.tasks);
            tasks.next += 1;
            let id = tasks.next;
            tasks.live.push((id, Arc::clone(&waker)));
            Live(Arc::clone(&self.life), id)
        };
        let life = Arc::clone(&self.life);
        self.domain.spawn(async move {
            // Dropped last.
            let _live = live;
            let mut task = Box::pin(task);
            poll_fn(|cx| {
                waker.register(cx.waker());
                if life.is_killed() {
                    return Poll::Ready(());
                }
                match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
                    Ok(polled) => polled,
                    Err(killed) if killed.is::<Killed>() => Poll::Ready(()),
                    Err(panic) => resume_unwind(panic),
                }
            })
            .await;
        });
    }
}

impl Identity for Process {
    fn domid(&self) -> DomId {
        self.domain.domid()
    }
}

impl Memory for Process {
    type Pages = Pages;

    fn allocate(&self, count: usize) -> Result<Pages, OutOfMemory> {
        self.domain().allocate(count)
    }
}

impl Grants for Process {
    type Grant = Grant;
    type Mapping = Mapping;

    fn grant(&self, pages: &Pages, to: DomId, access: Access) -> Result<Grant, GrantError> {
        self.domain().grant(pages, to, access)
    }

    fn map(&self, from: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping, MapError> {
        self.domain().map(from, refs, access)
    }

    fn map_each(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<Mapping, MapError>>,
    ) {
        self.domain().map_each(from, refs, access, out);
    }

    fn copy(&self, ops: &mut [CopyOp<'_, Pages>]) -> Result<(), i32> {
        self.domain().copy(ops)
    }
}

impl Events for Process {
    type Channel = Channel;

    fn alloc_unbound(&self, peer: DomId) -> Result<Channel, EventError> {
        self.domain().alloc_unbound(peer)
    }

    fn bind(&self, peer: DomId, port: Port) -> Result<Channel, EventError> {
        self.domain().bind(peer, port)
    }
}

impl HostDescriptors for Process {
    fn bind_descriptor(&self, descriptor: BorrowedFd<'_>) -> io::Result<Channel> {
        self.domain().bind_descriptor(descriptor)
    }
}

impl Clock for Process {
    fn now(&self) -> Instant {
        self.domain().now()
    }

    fn sleep_until(&self, when: Instant) -> impl Future<Output = ()> + Send + 'static {
        self.domain().sleep_until(when)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::block_on;
    use crate::loopback::{Config, DomainConfig, Hypervisor, PortStatus};
    use crate::seam::{Channel as _, Grant as _, yield_now};

    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn machine() -> (Hypervisor, Domain, Domain) {
        let hypervisor = Hypervisor::new(Config::default()).unwrap();
        let domain = || hypervisor.create(DomainConfig::default()).unwrap();
        let (back, front) = (domain(), domain());
        (hypervisor, back, front)
    }

    #[test]
    fn what_a_killed_process_held_is_given_back_and_the_next_gets_it() {
        let (_hypervisor, back, front) = machine();
        let port = front.alloc_unbound(back.domid()).unwrap();
        let page = front.allocate(1).unwrap();
        let grant = front.grant(&page, back.domid(), Access::ReadWrite).unwrap();
        for _ in 0..3 {
            let process = back.process();
            let ours = process.bind(front.domid(), port.port()).unwrap();
            assert!(process.bind(front.domid(), port.port()).is_err());
            let mapped = process.map(front.domid(), grant.refs(), Access::ReadWrite);
            process.spawn(async move {
                let _mapped = mapped.unwrap();
                loop {
                    ours.wait().await;
                }
            });
            block_on(process.kill());
            assert_eq!(back.mappings(), 0);
            assert_eq!(front.grants_in_use(), 0);
            let unbound = PortStatus::Unbound(back.domid());
            assert_eq!(front.port_status(port.port()), unbound);
        }
        assert!(back.shutdown_reason().is_none());
    }

    #[test]
    fn a_killed_process_runs_nothing_and_starts_nothing() {
        let (_hypervisor, back, _front) = machine();
        let dropped = Arc::new(AtomicUsize::new(0));
        let process = back.process();
        for _ in 0..10 {
            let (counted, process) = (Counted(Arc::clone(&dropped)), process.clone());
            process.clone().spawn(async move {
                let _counted = counted;
                loop {
                    yield_now().await;
                    let _ = process.now();
                }
            });
        }
        block_on(process.kill());
        assert_eq!(dropped.load(Ordering::SeqCst), 10);
        let counted = Counted(Arc::clone(&dropped));
        process.spawn(async move {
            let _counted = counted;
            unreachable!("it is dead");
        });
        block_on(process.gone());
        assert_eq!(dropped.load(Ordering::SeqCst), 11);
    }

    #[test]
    fn a_process_dies_at_the_use_that_was_said_and_the_domain_lives() {
        let (_hypervisor, back, _front) = machine();
        let uses = Arc::new(AtomicUsize::new(0));
        let process = back.process();
        process.kill_after(5);
        let (place, used) = (process.clone(), Arc::clone(&uses));
        process.spawn(async move {
            loop {
                let _ = place.now();
                used.fetch_add(1, Ordering::SeqCst);
            }
        });
        block_on(process.gone());
        assert!(process.is_killed());
        assert_eq!(uses.load(Ordering::SeqCst), 4);
        assert!(back.shutdown_reason().is_none());
    }
}
