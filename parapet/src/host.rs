//! A loopback host: domain 0 with its xenstore and backends, and guests that run programs.
//!
//! ```text
//!   Host ── builder ──> hypervisor ─ domain 0 ─ xenstored, blkback and netback, networks
//!    │
//!    └ start(config, program) ──> Running ── the guest's domain ─ your async function
//!                                    └ wait() ──> what it returned; then the domain is destroyed
//! ```

use std::any::Any;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use parapet_blkback::device::{Disks, Options};
use parapet_blkback::report::{Reports, Vbd};
use parapet_blkback::service::Service;
use parapet_blkback::stats::DiskStats;
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::sched::policy::Policy;
use parapet_hypervisor::loopback::{
    Config, CreateError, Domain, DomainConfig, Hypervisor, Idle, Process, ShutdownReason,
};
use parapet_hypervisor::seam::Backend;
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::device::Vifs;
use parapet_netback::report::VifStats;
use parapet_netback::{device as vif, report as vifs, service as vif_service};
use parapet_xen_sys::DomId;
use parapet_xen_sys::Errno;
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::store::Store;

use crate::config::{DiskConfig, GuestConfig, NetworkConfig, VifConfig};
use crate::guest::{Guest, Progress};
use crate::network::{NetworkError, Networks};
use crate::toolstack::{AttachError, Device, MoreKeys, Toolstack};

/// Domain 0's memory: its pages are touched only as its xenstore and backends need them.
const DOM0_MEMORY: u64 = 256 << 20;

/// Why a host or a guest on it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine under it has no thread, descriptor or memory left.
    #[error("the host cannot start: {0}")]
    Host(#[from] io::Error),
    /// A domain cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A disk of the guest cannot be served.
    #[error("guest {guest}: disk {vdev}: {reason}")]
    Disk {
        /// The guest.
        guest: String,
        /// The disk.
        vdev: String,
        /// The backend's words.
        reason: String,
    },
    /// A network interface of the guest cannot be served.
    #[error("guest {guest}: vif {number}: {reason}")]
    Vif {
        /// The guest.
        guest: String,
        /// The vif.
        number: u32,
        /// The backend's words.
        reason: String,
    },
    /// A network cannot be had.
    #[error("network {name}: {error}")]
    Network {
        /// The network.
        name: String,
        /// Why.
        error: NetworkError,
    },
    /// The xenstore does not take the domain in.
    #[error("xenstored does not take in domain {0}: {1}")]
    Introduce(DomId, Errno),
    /// The xenstore does not do its part.
    #[error(transparent)]
    Store(#[from] client::Error),
}

/// How a host is to be made.
#[derive(Default)]
pub struct HostBuilder {
    config: Config,
    options: Options,
    queues: Option<u32>,
    networks: Vec<NetworkConfig>,
    killable: bool,
    apart: bool,
}

impl HostBuilder {
    /// How many physical CPUs: threads that run vCPUs. One a core of the machine if not said.
    pub fn pcpus(mut self, pcpus: usize) -> Self {
        self.config.pcpus = pcpus;
        self
    }

    /// The machine's cores that they are pinned to, in order; those without one float.
    pub fn cores(mut self, cores: Vec<usize>) -> Self {
        self.config.cores = cores;
        self
    }

    /// What a physical CPU does that has nothing to run: sleep, if not said.
    pub fn idle(mut self, idle: Idle) -> Self {
        self.config.idle = idle;
        self
    }

    /// Who runs when: a fair round robin, if not said.
    pub fn policy(mut self, policy: Box<dyn Policy>) -> Self {
        self.config.policy = Some(policy);
        self
    }

    /// How long a backend looks for requests before it sleeps: not at all, if not said.
    pub fn poll(mut self, poll: Duration) -> Self {
        self.options.poll = poll;
        self
    }

    /// The networks that vifs are on: one that leads nowhere else, if there are none.
    pub fn networks(mut self, networks: Vec<NetworkConfig>) -> Self {
        self.networks = networks;
        self
    }

    /// How many queues a disk or a vif may have: as many as there are physical CPUs, and no more than four,
    /// if not said.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Pins domain 0 to the last physical CPU, and the guests to the first.
    pub fn apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// Lets the backends be killed without warning: [`Host::restart_backends`].
    pub fn killable_backends(mut self) -> Self {
        self.killable = true;
        self
    }

    /// Boots the host: domain 0, in which xenstored and the backends run.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(self) -> Result<Host, StartError> {
        let vcpus = self.config.pcpus.clamp(1, 32);
        let options = Options {
            queues: self.queues.unwrap_or(vcpus.min(4) as u32),
            ..self.options
        };
        let last = self.config.pcpus.saturating_sub(1);
        let hypervisor = Hypervisor::new(self.config)?;
        let dom0 = hypervisor.create(DomainConfig {
            name: "Domain-0".into(),
            memory: DOM0_MEMORY,
            vcpus,
            pinned: self.apart.then_some(last),
            ..DomainConfig::default()
        })?;
        let neighbours = dom0.clone();
        let (xenstored, handle) = Daemon::new(dom0.clone(), Store::default(), {
            move |domid| neighbours.is_alive(domid)
        });
        dom0.run(async move |_| xenstored.run().await);
        let store = connect(&dom0, &handle)?;
        let networks = self.networks;
        let backends = match self.killable {
            true => Backends::killable(&dom0, &store, options, &networks),
            false => Backends::start(&dom0, &store, options, &networks),
        };
        let backends = backends?;
        Ok(Host {
            hypervisor,
            dom0,
            xenstored: handle,
            toolstack: Toolstack::new(store.clone()),
            store,
            options,
            networks,
            apart: self.apart,
            backends: Mutex::new(backends),
            disks: Mutex::default(),
            vifs: Mutex::default(),
        })
    }
}

/// The backends at work.
struct Backends {
    disks: Reports,
    vifs: vifs::Reports,
    /// What can be killed of them.
    process: Option<Process>,
    /// What the vifs are on, for as long as they are served: of a type that depends on the place.
    _networks: Box<dyn Any + Send + Sync>,
}

impl Backends {
    /// Starts them at a place in domain 0.
    fn start<P: Backend>(
        place: &P,
        store: &Client,
        options: Options,
        networks: &[NetworkConfig],
    ) -> Result<Self, StartError> {
        let networks = Networks::start(place, networks)
            .map_err(|(name, error)| StartError::Network { name, error })?;
        let networks = Arc::new(networks);
        let of_vifs = vif::Options {
            poll: options.poll,
            queues: options.queues,
            ..vif::Options::default()
        };
        let disks = Service::new(place.clone(), store.clone(), Disks::new(options));
        let vifs = Vifs::new(of_vifs, Arc::clone(&networks) as _);
        let vifs = vif_service::Service::new(place.clone(), store.clone(), vifs);
        let backends = Backends {
            disks: disks.reports(),
            vifs: vifs.reports(),
            process: None,
            _networks: Box::new(networks),
        };
        // xenstored is a task of the same domain: it goes only when that does.
        place.spawn(async move {
            if let Err(error) = disks.run().await {
                log::debug!("the block backends end: {error}");
            }
        });
        place.spawn(async move {
            if let Err(error) = vifs.run().await {
                log::debug!("the network backends end: {error}");
            }
        });
        Ok(backends)
    }

    fn killable(
        dom0: &Domain,
        store: &Client,
        options: Options,
        networks: &[NetworkConfig],
    ) -> Result<Self, StartError> {
        let process = dom0.process();
        let backends = Self::start(&process, store, options, networks)?;
        Ok(Backends {
            process: Some(process),
            ..backends
        })
    }
}

/// Introduces a domain to xenstored, and gives its end of the connection.
fn connect(domain: &Domain, xenstored: &Handle) -> Result<Client, StartError> {
    let domid = domain.domid();
    let interface = domain.xenstore().expect("a domain is connected once");
    let port = interface.channel.port();
    let introduced = block_on(xenstored.introduce(domid, port));
    introduced.map_err(|errno| StartError::Introduce(domid, errno))?;
    let client = Client::over_ring(domain, interface.page, interface.channel);
    Ok(client.expect("a xenstore page is a page long"))
}

/// A loopback host. Dropping it destroys its guests.
pub struct Host {
    hypervisor: Hypervisor,
    dom0: Domain,
    xenstored: Handle,
    toolstack: Toolstack,
    store: Client,
    options: Options,
    networks: Vec<NetworkConfig>,
    /// Whether guests are kept from domain 0's physical CPU.
    apart: bool,
    backends: Mutex<Backends>,
    disks: Mutex<Vec<DiskReport>>,
    vifs: Mutex<Vec<VifReport>>,
}

/// What is known of a disk, also after its guest is gone.
#[derive(Debug, Clone)]
pub struct DiskReport {
    /// Whose it is.
    pub guest: String,
    /// Which one, and what it is kept in.
    pub disk: DiskConfig,
    /// What its backend did, queue by queue.
    pub stats: DiskStats,
}

/// What is known of a vif, also after its guest is gone.
#[derive(Debug, Clone)]
pub struct VifReport {
    /// Whose it is.
    pub guest: String,
    /// Which one.
    pub number: u32,
    /// What it was to be.
    pub vif: VifConfig,
    /// What its backend did, queue by queue.
    pub stats: VifStats,
}

impl Host {
    /// How a host is made.
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// Domain 0: to start a backend of your own in it.
    pub fn dom0(&self) -> &Domain {
        &self.dom0
    }

    /// xenstored, to connect to.
    pub fn xenstored(&self) -> &Handle {
        &self.xenstored
    }

    /// How the vbds of its block backends fare.
    pub fn reports(&self) -> Reports {
        self.backends().disks.clone()
    }

    /// How the vifs of its network backends fare.
    pub fn vif_reports(&self) -> vifs::Reports {
        self.backends().vifs.clone()
    }

    fn backends(&self) -> MutexGuard<'_, Backends> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the backends in the middle of whatever they are about, as `kill -9` does, and starts
    /// others in their place, with the networks made anew. False: the host was not built so that
    /// they can be ([`HostBuilder::killable_backends`]).
    ///
    /// # Errors
    /// The others cannot be started: then there are none.
    pub fn restart_backends(&self) -> Result<bool, StartError> {
        let mut backends = self.backends();
        let Some(process) = backends.process.take() else {
            return Ok(false);
        };
        block_on(process.kill());
        // Before there are others of the same names.
        backends._networks = Box::new(());
        *backends = Backends::killable(&self.dom0, &self.store, self.options, &self.networks)?;
        Ok(true)
    }

    /// What every vif did that was ever attached, in that order.
    pub fn vifs(&self) -> Vec<VifReport> {
        self.lock_vifs().clone()
    }

    fn lock_vifs(&self) -> MutexGuard<'_, Vec<VifReport>> {
        self.vifs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every disk did that was ever attached, in that order.
    pub fn disks(&self) -> Vec<DiskReport> {
        self.lock_disks().clone()
    }

    fn lock_disks(&self) -> MutexGuard<'_, Vec<DiskReport>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a guest with its disks and vifs, and runs `program` in it. Its result is what
    /// [`Running::wait`] gives; when it is done the guest is.
    ///
    /// # Errors
    /// The guest cannot be made, or an image not be opened: then nothing of it runs or is left.
    pub fn start<T, P, F>(
        &self,
        config: &GuestConfig,
        program: P,
    ) -> Result<Running<'_, T>, StartError>
    where
        P: FnOnce(Guest) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let domain = self.hypervisor.create(DomainConfig {
            name: config.name.clone(),
            memory: config.memory,
            vcpus: config.vcpus,
            pinned: self.apart.then_some(0),
            ..DomainConfig::default()
        })?;
        let mut running = Running {
            host: self,
            name: config.name.clone(),
            domain,
            attached: Vec::new(),
            progress: Arc::new(Progress::default()),
            outcome: Arc::new(Mutex::new(None)),
            destroyed: false,
        };
        let domid = running.domain.domid();
        block_on(self.toolstack.make_home(domid, config))?;
        let store = connect(&running.domain, &self.xenstored)?;
        for disk in &config.disks {
            running.attach_disk(disk)?;
        }
        for (index, vif) in (0..).zip(&config.vifs) {
            running.attach_vif(index, vif)?;
        }

        let guest = Guest::new(
            config.name.clone(),
            running.domain.clone(),
            store,
            Arc::clone(&running.progress),
            config.vcpus,
        );
        let outcome = Arc::clone(&running.outcome);
        running.domain.run(move |domain| async move {
            let result = program(guest).await;
            *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            domain.shut_down(ShutdownReason::Poweroff);
        });
        Ok(running)
    }
}

/// A guest at work. Dropping it destroys the guest.
pub struct Running<'a, T> {
    host: &'a Host,
    name: String,
    domain: Domain,
    attached: Vec<Device>,
    progress: Arc<Progress>,
    outcome: Arc<Mutex<Option<anyhow::Result<T>>>>,
    destroyed: bool,
}

impl<T> Running<'_, T> {
    /// The guest's domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// How far its program is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Whether its program is done.
    pub fn is_done(&self) -> bool {
        self.domain.shutdown_reason().is_some()
    }

    /// Waits for the program, takes the guest down in order, and gives the program's result.
    ///
    /// # Errors
    /// The program's own; or the guest crashed.
    pub fn wait(mut self) -> anyhow::Result<T> {
        let reason = self.domain.wait_shutdown_blocking();
        let outcome = self
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.destroy()
            .with_context(|| format!("taking down guest {}", self.name))?;
        let name = &self.name;
        outcome.unwrap_or_else(|| Err(anyhow!("guest {name} ended without a result: {reason:?}")))
    }

    fn attach_disk(&mut self, disk: &DiskConfig) -> Result<(), StartError> {
        let vbd = Vbd {
            frontend: self.domain.domid(),
            number: disk.vdev.number(),
        };
        let keys = MoreKeys::of_disk(vbd.number, disk);
        self.attach(Device::Vbd(vbd), &keys, |guest, reason| StartError::Disk {
            guest,
            vdev: disk.vdev.to_string(),
            reason,
        })?;
        if let Some(report) = self.host.reports().of(vbd) {
            self.host.lock_disks().push(DiskReport {
                guest: self.name.clone(),
                disk: disk.clone(),
                stats: report.about.stats,
            });
        }
        Ok(())
    }

    /// Attaches the vif that is number `index` of its configuration.
    fn attach_vif(&mut self, index: u32, vif: &VifConfig) -> Result<(), StartError> {
        let number = vif.devid.unwrap_or(index);
        let mac = vif
            .mac
            .unwrap_or_else(|| VifConfig::made_up_mac(&self.name, number, 0));
        let vif = VifConfig {
            devid: Some(number),
            mac: Some(mac),
            ..vif.clone()
        };
        let id = vifs::DeviceId {
            frontend: self.domain.domid(),
            number,
        };
        let keys = MoreKeys::of_vif(number, &vif);
        self.attach(Device::Vif(id), &keys, |guest, reason| StartError::Vif {
            guest,
            number,
            reason,
        })?;
        if let Some(report) = self.host.vif_reports().of(id) {
            self.host.lock_vifs().push(VifReport {
                guest: self.name.clone(),
                number,
                vif,
                stats: report.about.stats,
            });
        }
        Ok(())
    }

    fn attach(
        &mut self,
        device: Device,
        keys: &MoreKeys,
        refused: impl FnOnce(String, String) -> StartError,
    ) -> Result<(), StartError> {
        self.attached.push(device);
        let attached = block_on(self.host.toolstack.attach(device, keys));
        attached.map_err(|error| match error {
            AttachError::Store(error) => StartError::Store(error),
            AttachError::Backend(reason) => refused(self.name.clone(), reason),
        })
    }

    /// Takes the guest down: its devices, so that what is behind them is let go, then the domain.
    fn destroy(&mut self) -> Result<(), client::Error> {
        if std::mem::replace(&mut self.destroyed, true) {
            return Ok(());
        }
        let domid = self.domain.domid();
        let detached = block_on(async {
            for device in self.attached.drain(..) {
                self.host.toolstack.detach(device).await?;
                // By then its image is closed, or its place on the network free, for the next
                // guest to have it.
                match device {
                    Device::Vbd(vbd) => self.host.reports().ended(vbd).await,
                    Device::Vif(vif) => self.host.vif_reports().ended(vif).await,
                }
            }
            Ok(())
        });
        self.domain.destroy_blocking();
        block_on(self.host.xenstored.release(domid));
        detached.and(block_on(self.host.toolstack.forget(domid)))
    }
}

impl<T> Drop for Running<'_, T> {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            log::warn!("guest {}: {error}", self.name);
        }
    }
}
