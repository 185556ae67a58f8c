//! The machine under the domains: physical CPUs, the table of domains, the registered descriptors.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;

use super::domain::DomainInner;
use super::sched::pcpu::{Idle, Pcpu};
use super::sched::policy::{IdleCpus, Policy};
use super::sched::vcpu::Vcpu;
use crate::seam::Instant;
use crate::wait::{Timekeeper, Timers, lock};

thread_local! {
    /// The physical CPU that this thread is, with the machine that it belongs to.
    static PCPU: Cell<Option<(*const Machine, usize)>> = const { Cell::new(None) };
}

pub(super) struct Machine {
    pub(super) pcpus: Box<[Pcpu]>,
    pub(super) policy: Box<dyn Policy>,
    pub(super) idle: Idle,
    pub(super) idle_cpus: IdleCpus,
    born: std::time::Instant,
    stopping: AtomicBool,
    domains: RwLock<HashMap<DomId, Arc<DomainInner>>>,
    descriptors: Mutex<HashMap<u64, Registered>>,
    next_registration: AtomicU64,
}

/// A host descriptor that interrupts a port.
struct Registered {
    descriptor: OwnedFd,
    domain: Weak<DomainInner>,
    port: Port,
    pcpu: usize,
}

impl Machine {
    pub(super) fn new(pcpus: usize, policy: Box<dyn Policy>, idle: Idle) -> io::Result<Self> {
        Ok(Machine {
            pcpus: (0..pcpus).map(Pcpu::new).collect::<io::Result<_>>()?,
            policy,
            idle,
            idle_cpus: IdleCpus::default(),
            born: std::time::Instant::now(),
            stopping: AtomicBool::new(false),
            domains: RwLock::default(),
            descriptors: Mutex::default(),
            next_registration: AtomicU64::new(1),
        })
    }

    /// Starts the threads, each on its core if `cores` names one for it.
    pub(super) fn start(self: &Arc<Self>, cores: &[usize]) -> io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(self.pcpus.len());
        for index in 0..self.pcpus.len() {
            let machine = Arc::clone(self);
            let core = cores.get(index).copied();
            let thread = std::thread::Builder::new()
                .name(format!("pcpu{index}"))
                .spawn(move || {
                    if let Some(core) = core {
                        let mut set = CpuSet::new();
                        let pinned = set
                            .set(core)
                            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
                        if let Err(error) = pinned {
                            log::warn!("pcpu{index} cannot be pinned to core {core}: {error}");
                        }
                    }
                    PCPU.set(Some((Arc::as_ptr(&machine), index)));
                    machine.pcpus[index].run(&machine);
                });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for pcpu in &self.pcpus {
            pcpu.ring();
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn now(&self) -> Instant {
        Instant::from_nanos(self.born.elapsed().as_nanos() as u64)
    }

    /// The physical CPU that the calling thread is, if it is one of the machine's.
    #[inline]
    pub(super) fn pcpu_of_this_thread(&self) -> Option<usize> {
        let (machine, index) = PCPU.get()?;
        std::ptr::eq(machine, self).then_some(index)
    }

    /// Queues a vCPU that became runnable, and wakes who should run it.
    #[inline]
    pub(super) fn enqueue(&self, vcpu: Arc<Vcpu>) {
        let pcpu = self
            .policy
            .enqueue(vcpu, self.pcpu_of_this_thread(), &self.idle_cpus);
        if self.idle_cpus.claim(pcpu) {
            self.pcpus[pcpu].ring();
        }
    }

    pub(super) fn domain(&self, domid: DomId) -> Option<Arc<DomainInner>> {
        let domains = self.domains.read();
        domains.ok()?.get(&domid).cloned()
    }

    pub(super) fn domains(&self) -> Vec<Arc<DomainInner>> {
        let domains = self.domains.read();
        domains.map_or_else(
            |_| Vec::new(),
            |domains| domains.values().cloned().collect(),
        )
    }

    pub(super) fn insert(&self, domain: Arc<DomainInner>) {
        if let Ok(mut domains) = self.domains.write() {
            domains.insert(domain.domid, domain);
        }
    }

    pub(super) fn remove(&self, domid: DomId) {
        if let Ok(mut domains) = self.domains.write() {
            domains.remove(&domid);
        }
    }

    /// A number for a descriptor that is about to be bound.
    pub(super) fn registration(&self) -> u64 {
        self.next_registration.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets `descriptor` interrupt `port`, which is bound to `registration`.
    pub(super) fn register(
        &self,
        registration: u64,
        descriptor: BorrowedFd<'_>,
        domain: &Arc<DomainInner>,
        port: Port,
        pcpu: usize,
    ) -> io::Result<()> {
        let descriptor = descriptor.try_clone_to_owned()?;
        let mut descriptors = lock(&self.descriptors);
        // Known before it is watched: the first interrupt may come at once.
        self.pcpus[pcpu].watch(descriptor.as_fd(), registration)?;
        descriptors.insert(
            registration,
            Registered {
                descriptor,
                domain: Arc::downgrade(domain),
                port,
                pcpu,
            },
        );
        Ok(())
    }

    pub(super) fn unregister(&self, registration: u64) {
        if let Some(gone) = lock(&self.descriptors).remove(&registration) {
            self.pcpus[gone.pcpu].unwatch(gone.descriptor.as_fd());
        }
    }

    /// A descriptor became readable.
    pub(super) fn interrupt(&self, registration: u64) {
        let found = lock(&self.descriptors)
            .get(&registration)
            .and_then(|entry| Some((entry.domain.upgrade()?, entry.port)));
        if let Some((domain, port)) = found {
            domain.deliver(port, registration);
        }
    }
}

impl Timekeeper for Machine {
    fn now(&self) -> Instant {
        Machine::now(self)
    }

    fn this_thread(&self) -> Option<usize> {
        self.pcpu_of_this_thread()
    }

    fn timers(&self, thread: usize) -> &Timers {
        &self.pcpus[thread].timers
    }

    fn ring(&self, thread: usize) {
        self.pcpus[thread].ring();
    }
}
