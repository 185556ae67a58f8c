//! A hypervisor in a process: both halves of a driver run as they are, without Xen and without
//! root.
//!
//! ```text
//!   Hypervisor ── create ──> Domain: the handle of a guest, and its side of the seam
//!       │                      │ pages       a memfd a domain                    (memory)
//!       │                      │ grants      v1 entries in the domain's pages    (grant_table)
//!       │                      │ mappings    of others' pages, counted           (mapping)
//!       │                      │ events      bits in the shared-info page        (ports, channel)
//!       │                      └ tasks       on vCPUs                            (sched)
//!       └ physical CPUs: threads that run vCPUs and sleep in epoll
//! ```
//!
//! Domains are told apart by types, not by page tables: a handle reaches its own pages and what
//! others granted to it. What a guest writes into pages that it shares (its grant table, its event
//! bits, its rings) is not trusted by anybody else.
//!
//! Tasks are cooperative: one that never awaits holds its physical CPU. A task that panics takes
//! its domain down ([`ShutdownReason::Crash`]) and no other.
//!
//! ```
//! use parapet_hypervisor::loopback::{DomainConfig, Hypervisor, ShutdownReason};
//! use parapet_hypervisor::seam::{Access, Grant, Grants, Identity, Mapping, Memory, Pages};
//!
//! let hypervisor = Hypervisor::new(Default::default()).unwrap();
//! let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
//! let guest = hypervisor.create(DomainConfig::default()).unwrap();
//!
//! let page = guest.allocate(1).unwrap();
//! page.view().write_bytes(0, b"hello").unwrap();
//! let grant = guest.grant(&page, dom0.domid(), Access::ReadOnly).unwrap();
//!
//! let mapped = dom0.map(guest.domid(), grant.refs(), Access::ReadOnly).unwrap();
//! let mut seen = [0; 5];
//! mapped.view().read_bytes(0, &mut seen).unwrap();
//! assert_eq!(&seen, b"hello");
//! assert!(grant.end().is_err(), "still mapped: the page goes to quarantine");
//!
//! guest.run(async |guest| guest.shut_down(ShutdownReason::Poweroff));
//! assert_eq!(guest.wait_shutdown_blocking(), ShutdownReason::Poweroff);
//! ```

mod channel;
mod domain;
mod grant_table;
mod handle;
mod machine;
mod mapping;
mod memory;
mod ports;
mod process;
pub mod sched;

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use parapet_xen_sys::DomId;
pub use parapet_xen_sys::sched::ShutdownReason;

pub use channel::Channel;
pub use domain::{CreateError, DomainConfig};
pub use handle::{Domain, XenstoreInterface};
pub use mapping::{Grant, Mapping};
pub use memory::Pages;
pub use ports::PortStatus;
pub use process::Process;
pub use sched::pcpu::Idle;

use domain::DomainInner;
use machine::Machine;
use sched::policy::{Policy, RoundRobin};

/// What a machine is to be made of.
pub struct Config {
    /// How many physical CPUs: threads that run vCPUs. At most 64.
    pub pcpus: usize,
    /// The host's cores that they are pinned to, in order; those without one float.
    pub cores: Vec<usize>,
    /// What a physical CPU does when it has nothing to run.
    pub idle: Idle,
    /// Who runs when: a fair round robin if none is given.
    pub policy: Option<Box<dyn Policy>>,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Config {
            pcpus: cores.min(64),
            cores: Vec::new(),
            idle: Idle::Sleep,
            policy: None,
        }
    }
}

/// How long a vCPU of the default policy runs while others wait.
const SLICE: Duration = Duration::from_millis(1);

/// The machine: physical CPUs and the domains on them. Dropping it destroys every domain and ends
/// the threads.
pub struct Hypervisor {
    machine: Arc<Machine>,
    threads: Vec<JoinHandle<()>>,
    last_domid: Mutex<Option<DomId>>,
}

impl Hypervisor {
    /// Starts the physical CPUs. The first domain that is created is domain 0.
    ///
    /// # Errors
    /// The host has no thread or descriptor left, or `pcpus` is not 1 to 64.
    pub fn new(config: Config) -> io::Result<Self> {
        if config.pcpus == 0 || config.pcpus > 64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a machine has 1 to 64 physical CPUs",
            ));
        }
        let policy = config
            .policy
            .unwrap_or_else(|| Box::new(RoundRobin::new(config.pcpus, SLICE)));
        let machine = Arc::new(Machine::new(config.pcpus, policy, config.idle)?);
        let threads = machine.start(&config.cores)?;
        Ok(Hypervisor {
            machine,
            threads,
            last_domid: Mutex::new(None),
        })
    }

    /// Makes a domain; its vCPUs run what is given to [`Domain::run`] from now on.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(&self, config: DomainConfig) -> Result<Domain, CreateError> {
        let mut last_domid = crate::wait::lock(&self.last_domid);
        let domid = self
            .free_domid(*last_domid)
            .ok_or_else(|| CreateError::NoDomid {
                name: config.name.clone(),
            })?;
        let domain = DomainInner::new(&self.machine, domid, &config)?;
        self.machine.insert(Arc::clone(&domain));
        *last_domid = Some(domid);
        Ok(Domain(domain))
    }

    /// The next id after `last` that nobody has: an id comes again as late as possible, and 0 never.
    fn free_domid(&self, last: Option<DomId>) -> Option<DomId> {
        let Some(DomId(last)) = last else {
            return Some(DomId::ZERO);
        };
        let later = (last.saturating_add(1)..DomId::FIRST_RESERVED.0).map(DomId);
        let wrapped = (1..=last).map(DomId);
        later
            .chain(wrapped)
            .find(|domid| self.machine.domain(*domid).is_none())
    }

    /// The domain with that id, if it is alive.
    pub fn domain(&self, domid: DomId) -> Option<Domain> {
        self.machine.domain(domid).map(Domain)
    }

    /// Every domain that is alive, in no order.
    pub fn domains(&self) -> Vec<Domain> {
        self.machine.domains().into_iter().map(Domain).collect()
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        // Guests first: a backend may still be needed to let go of their pages.
        let mut domains = self.machine.domains();
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.domid));
        for domain in domains {
            Domain(domain).destroy_blocking();
        }
        self.machine.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
