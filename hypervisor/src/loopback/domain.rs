//! Domains: their life, and what the hypervisor keeps of each.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::grant_table::GrantRef;
use parapet_xen_sys::sched::ShutdownReason;
use parapet_xen_sys::start_info::{DomUConsole, StartInfo};
use zerocopy::FromZeros;

use super::grant_table::GrantTable;
use super::machine::Machine;
use super::memory::DomainMemory;
use super::ports::{Binding, Ports};
use super::sched::policy::VcpuId;
use super::sched::vcpu::Vcpu;
use crate::guest::event_bits::{EventBits, VCPUS};
use crate::memory::{PAGE_SIZE, View};
use crate::seam::{Access, EventError};
use crate::wait::lock;

/// Where the pages that every domain has lie in its memory.
pub(super) const SHARED_INFO: u32 = 0;
pub(super) const START_INFO: u32 = 1;
pub(super) const XENSTORE: u32 = 2;
pub(super) const CONSOLE: u32 = 3;
const GRANT_TABLE: u32 = 4;

/// What a domain is to be made of.
#[derive(Debug, Clone)]
pub struct DomainConfig {
    /// For logs, and for the name of its memory's memfd.
    pub name: String,
    /// Its memory in bytes. Pages that are never touched cost nothing.
    pub memory: u64,
    /// How many vCPUs, at most 32.
    pub vcpus: usize,
    /// The physical CPU that may run it, if it is not to move.
    pub pinned: Option<usize>,
    /// Pages of its grant table: 512 grants each.
    pub grant_frames: u32,
    /// How many pages of others it may have mapped at once.
    pub max_mappings: usize,
    /// How many event channel ports it may have, at most 4096.
    pub max_ports: u32,
}

impl Default for DomainConfig {
    fn default() -> Self {
        DomainConfig {
            name: "domain".into(),
            memory: 64 << 20,
            vcpus: 1,
            pinned: None,
            grant_frames: 64,
            max_mappings: 1 << 20,
            max_ports: 4096,
        }
    }
}

/// Why a domain could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A number in the configuration that no domain can have.
    #[error("domain {name}: {what}")]
    Config {
        /// The domain's name.
        name: String,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The host has no memory or descriptors for it.
    #[error("domain {name}: the host refused its memory: {error}")]
    Host {
        /// The domain's name.
        name: String,
        /// The host's error.
        error: io::Error,
    },
    /// Every domain id is in use.
    #[error("domain {name}: no domain id is left")]
    NoDomid {
        /// The domain's name.
        name: String,
    },
}

#[derive(Default)]
struct Life {
    shutdown: Option<ShutdownReason>,
    dead: bool,
    waiting: Vec<Waker>,
}

pub(super) struct DomainInner {
    pub(super) domid: DomId,
    pub(super) name: String,
    pub(super) machine: Arc<Machine>,
    pub(super) memory: Arc<DomainMemory>,
    pub(super) grants: GrantTable,
    pub(super) ports: Ports,
    pub(super) vcpus: Box<[Arc<Vcpu>]>,
    pub(super) max_mappings: usize,
    /// Pages of others that this domain has mapped.
    pub(super) mappings: AtomicUsize,
    pub(super) next_vcpu: AtomicUsize,
    /// Whether the xenstore page and port were taken.
    pub(super) xenstore_taken: AtomicBool,
    /// Held while a virtual interrupt is bound, each of which may be bound once.
    pub(super) virqs: Mutex<()>,
    dying: AtomicBool,
    vcpus_alive: AtomicUsize,
    life: Mutex<Life>,
}

impl DomainInner {
    pub(super) fn new(
        machine: &Arc<Machine>,
        domid: DomId,
        config: &DomainConfig,
    ) -> Result<Arc<Self>, CreateError> {
        let wrong = |what: &str| CreateError::Config {
            name: config.name.clone(),
            what: what.into(),
        };
        if config.vcpus == 0 || config.vcpus > VCPUS {
            return Err(wrong("vcpus must be 1 to 32"));
        }
        if config
            .pinned
            .is_some_and(|pcpu| pcpu >= machine.pcpus.len())
        {
            return Err(wrong(
                "it is pinned to a physical CPU that the machine does not have",
            ));
        }
        if config.grant_frames == 0 || config.grant_frames > 4096 {
            return Err(wrong("grant_frames must be 1 to 4096"));
        }
        let reserved = GRANT_TABLE + config.grant_frames;
        let frames = u32::try_from(config.memory / PAGE_SIZE as u64)
            .map_err(|_| wrong("memory must be less than 16 TiB"))?;
        if frames <= reserved {
            return Err(wrong(
                "memory must be more than the grant table and four pages take",
            ));
        }
        let memory = DomainMemory::new(&config.name, frames, reserved).map_err(|error| {
            CreateError::Host {
                name: config.name.clone(),
                error,
            }
        })?;
        let pcpus = machine.pcpus.len();
        let domain = Arc::new_cyclic(|this| {
            let vcpus = (0..config.vcpus).map(|index| {
                let home = config.pinned.unwrap_or((domid.0 as usize + index) % pcpus);
                let id = VcpuId { domid, index };
                Arc::new(Vcpu::new(id, this.clone(), home, config.pinned))
            });
            DomainInner {
                domid,
                name: config.name.clone(),
                machine: Arc::clone(machine),
                grants: GrantTable::new(Arc::clone(&memory), GRANT_TABLE, config.grant_frames),
                memory,
                ports: Ports::new(config.max_ports),
                vcpus: vcpus.collect(),
                max_mappings: config.max_mappings,
                mappings: AtomicUsize::new(0),
                next_vcpu: AtomicUsize::new(0),
                xenstore_taken: AtomicBool::new(false),
                virqs: Mutex::new(()),
                dying: AtomicBool::new(false),
                vcpus_alive: AtomicUsize::new(config.vcpus),
                life: Mutex::default(),
            }
        });
        domain
            .write_start_info()
            .map_err(|_| wrong("max_ports must leave room for xenstore and console"))?;
        Ok(domain)
    }

    /// What a toolstack's domain builder does: ports and grants for xenstore and console, and the
    /// page that tells the guest of them.
    fn write_start_info(&self) -> Result<(), EventError> {
        let dom0 = DomId::ZERO;
        let store = self.ports.allocate(0, Binding::Unbound(dom0))?;
        let console = self.ports.allocate(0, Binding::Unbound(dom0))?;
        let refs = [
            (GrantRef::RESERVED_XENSTORE, XENSTORE),
            (GrantRef::RESERVED_CONSOLE, CONSOLE),
        ];
        for (gref, frame) in refs {
            self.grants.permit_at(gref, frame, dom0, Access::ReadWrite);
        }
        let mut info = StartInfo::new_zeroed();
        let magic = b"xen-4.17-x86_64";
        info.magic[..magic.len()].copy_from_slice(magic);
        info.nr_pages = u64::from(self.memory.frames());
        info.shared_info = u64::from(SHARED_INFO) * PAGE_SIZE as u64;
        info.store_mfn = u64::from(XENSTORE);
        info.store_evtchn = store;
        info.console = DomUConsole {
            mfn: u64::from(CONSOLE),
            evtchn: console,
            ..DomUConsole::new_zeroed()
        };
        self.page(START_INFO)
            .write(0, &info)
            .expect("a start info fits a page");
        Ok(())
    }

    pub(super) fn page(&self, frame: u32) -> View<'_> {
        self.memory.view(frame, 1)
    }

    #[inline]
    pub(super) fn event_bits(&self) -> EventBits<'_> {
        EventBits::new(self.page(SHARED_INFO)).expect("a shared info fits a page")
    }

    /// Sets a port's pending bit, and wakes the vCPU that it notifies.
    #[inline]
    pub(super) fn set_pending(&self, port: Port) {
        self.tell(port, |bits, vcpu| bits.set_pending(port, vcpu));
    }

    pub(super) fn unmask(&self, port: Port) {
        self.tell(port, |bits, vcpu| {
            Ok(bits.unmask(port)? && bits.raise(port, vcpu)?)
        });
    }

    #[inline]
    fn tell(
        &self,
        port: Port,
        change: impl FnOnce(EventBits<'_>, usize) -> Result<bool, crate::memory::OutOfView>,
    ) {
        let Some(entry) = self.ports.entry(port) else {
            return;
        };
        let index = entry.vcpu.load(Ordering::Relaxed);
        // A port or vCPU out of range cannot be: both were checked when the port was made.
        if change(self.event_bits(), index) == Ok(true)
            && let Some(vcpu) = self.vcpus.get(index)
            && vcpu.kick()
        {
            self.machine.enqueue(Arc::clone(vcpu));
        }
    }

    pub(super) fn forget_pending(&self, port: Port) {
        // The port's number was checked when it was made.
        let _ = self.event_bits().reset(port);
    }

    /// The guest's upcall: wakes those who wait for the pending ports of `vcpu`.
    #[inline]
    pub(super) fn upcall(&self, vcpu: usize) {
        let found = |port| {
            if let Some(entry) = self.ports.entry(port) {
                entry.waiter.wake();
            }
        };
        // The vCPU's number was checked when it was made.
        let _ = self.event_bits().upcall(vcpu, found);
    }

    /// The vCPU that the calling thread runs, if it is one of this domain's.
    pub(super) fn current_vcpu(&self) -> Option<usize> {
        self.vcpus.iter().position(|vcpu| vcpu.is_current())
    }

    pub(super) fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }

    /// A domain that is being destroyed gets nothing new.
    pub(super) fn check_alive(&self) -> Result<(), EventError> {
        if self.is_dying() {
            Err(EventError::Host(libc::ESRCH))
        } else {
            Ok(())
        }
    }

    pub(super) fn shut_down(&self, reason: ShutdownReason) {
        let mut life = lock(&self.life);
        if life.shutdown.is_none() {
            life.shutdown = Some(reason);
            self.announce(life);
        }
    }

    pub(super) fn crash(&self) {
        self.shut_down(ShutdownReason::Crash);
    }

    /// Wakes all who wait for this domain's end, and tells domain 0.
    fn announce(&self, mut life: std::sync::MutexGuard<'_, Life>) {
        let waiting = std::mem::take(&mut life.waiting);
        drop(life);
        for waker in waiting {
            waker.wake();
        }
        if self.domid != DomId::ZERO
            && let Some(dom0) = self.machine.domain(DomId::ZERO)
        {
            dom0.raise_virq(parapet_xen_sys::event_channel::Virq::DomExc as u32);
        }
    }

    pub(super) fn shutdown_reason(&self) -> Option<ShutdownReason> {
        lock(&self.life).shutdown
    }

    pub(super) fn is_dead(&self) -> bool {
        lock(&self.life).dead
    }

    /// Tells whether `over` holds of (shutdown, dead), or registers to be woken.
    pub(super) fn poll_life<R>(
        &self,
        waker: &Waker,
        over: impl FnOnce(Option<ShutdownReason>, bool) -> Option<R>,
    ) -> Option<R> {
        let mut life = lock(&self.life);
        let answer = over(life.shutdown, life.dead);
        if answer.is_none() && !life.waiting.iter().any(|known| known.will_wake(waker)) {
            life.waiting.push(waker.clone());
        }
        answer
    }

    /// Begins to destroy the domain: every vCPU drops its tasks as soon as it can.
    pub(super) fn destroy(&self) {
        if self.dying.swap(true, Ordering::SeqCst) {
            return;
        }
        for vcpu in &self.vcpus {
            if vcpu.kick() {
                self.machine.enqueue(Arc::clone(vcpu));
            }
        }
    }

    /// The last tasks of one vCPU are gone; with those of the last vCPU the domain is.
    pub(super) fn vcpu_died(self: &Arc<Self>) {
        if self.vcpus_alive.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.unbind_all_ports();
        self.machine.remove(self.domid);
        let mut life = lock(&self.life);
        life.dead = true;
        life.shutdown.get_or_insert(ShutdownReason::Poweroff);
        self.announce(life);
    }

    pub(super) fn unbind_all_ports(self: &Arc<Self>) {
        for port in self.ports.in_use() {
            if let Some(registration) = self.registration(port) {
                self.machine.unregister(registration);
            }
            self.unbind_port(port);
        }
    }

    pub(super) fn raise_virq(&self, virq: u32) {
        if let Some(port) = self.virq_port(virq) {
            let is = |binding: &Binding| matches!(binding, Binding::Virq(bound) if *bound == virq);
            self.set_pending_if(port, is);
        }
    }
}
