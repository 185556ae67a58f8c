//! What a guest program is given.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parapet_blkfront::vdev::{NotAVdev, Vdev};
use parapet_blkfront::{self as blkfront, ConnectError, Disk};
use parapet_hypervisor::loopback::Domain;
use parapet_netfront::{self as netfront, Interface, Queue};
use parapet_xenstore::client::{self, Client};

/// A guest, from the inside: its domain, its xenstore, its disks and its network interfaces. Clones are the same guest.
#[derive(Clone)]
pub struct Guest(Arc<Inner>);

struct Inner {
    name: String,
    domain: Domain,
    store: Client,
    progress: Arc<Progress>,
    disks: blkfront::Config,
    interfaces: netfront::Config,
}

/// A network interface, and its queues: one at least.
pub type Connected = (Interface<Domain>, Vec<Queue<Domain>>);

/// Why a guest has no such device.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// That is no name of a disk.
    #[error(transparent)]
    Vdev(#[from] NotAVdev),
    /// The guest was given no disk of that name.
    #[error("there is no disk {vdev}: the guest has {}", list(has))]
    NoDisk {
        /// What was asked for.
        vdev: Vdev,
        /// What there is.
        has: Vec<Vdev>,
    },
    /// The guest was given no network interface of that number.
    #[error("there is no interface {number}: the guest has {}", list(has))]
    NoInterface {
        /// What was asked for.
        number: u32,
        /// What there is.
        has: Vec<u32>,
    },
    /// An interface's backend and we did not come together.
    #[error("interface {number}: {error}")]
    Interface {
        /// The interface.
        number: u32,
        /// Why.
        error: netfront::ConnectError,
    },
    /// Its backend and we did not come together.
    #[error("disk {vdev}: {error}")]
    Connect {
        /// The disk.
        vdev: Vdev,
        /// Why.
        error: ConnectError,
    },
    /// The xenstore does not do its part.
    #[error(transparent)]
    Store(#[from] client::Error),
}

fn list(what: &[impl fmt::Display]) -> String {
    if what.is_empty() {
        return "none".into();
    }
    let names: Vec<String> = what.iter().map(ToString::to_string).collect();
    names.join(", ")
}

impl Guest {
    pub(crate) fn new(
        name: String,
        domain: Domain,
        store: Client,
        progress: Arc<Progress>,
        vcpus: usize,
    ) -> Self {
        // More than a few are of no use to anybody.
        let queues = vcpus.clamp(1, 4) as u32;
        Guest(Arc::new(Inner {
            name,
            domain,
            store,
            progress,
            disks: blkfront::Config::new().queues(queues),
            interfaces: netfront::Config::new().queues(queues),
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its domain: the guest's side of the seam, for pages, grants, events, time and tasks.
    pub fn domain(&self) -> &Domain {
        &self.0.domain
    }

    /// Its connection to the xenstore. A relative path is one below its own `/local/domain/N`.
    pub fn store(&self) -> &Client {
        &self.0.store
    }

    /// How far its program is.
    pub fn progress(&self) -> &Progress {
        &self.0.progress
    }

    /// How its disks are connected, if nothing else is said: with a queue for each vCPU, up to
    /// four.
    pub fn disk_config(&self) -> blkfront::Config {
        self.0.disks
    }

    /// Connects the disk that its configuration calls `vdev`, for example `xvda`. Each disk can be
    /// connected once at a time.
    ///
    /// # Errors
    /// There is no such disk, or its backend refuses.
    pub async fn disk(&self, vdev: &str) -> Result<Disk<Domain>, GuestError> {
        self.disk_as(vdev, self.disk_config()).await
    }

    /// As [`Guest::disk`], connected as `config` has it.
    ///
    /// # Errors
    /// As there.
    pub async fn disk_as(
        &self,
        vdev: &str,
        config: blkfront::Config,
    ) -> Result<Disk<Domain>, GuestError> {
        let vdev: Vdev = vdev.parse()?;
        let has = self.vdevs().await?;
        if !has.contains(&vdev) {
            return Err(GuestError::NoDisk { vdev, has });
        }
        self.connect(vdev, config).await
    }

    /// Connects all its disks, in the order of their numbers.
    ///
    /// # Errors
    /// A backend refuses.
    pub async fn disks(&self) -> Result<Vec<(Vdev, Disk<Domain>)>, GuestError> {
        let mut disks = Vec::new();
        for vdev in self.vdevs().await? {
            disks.push((vdev, self.connect(vdev, self.disk_config()).await?));
        }
        Ok(disks)
    }

    /// The disks that the toolstack gave it, in the order of their numbers.
    ///
    /// # Errors
    /// The xenstore's.
    pub async fn vdevs(&self) -> Result<Vec<Vdev>, GuestError> {
        let numbers = self.numbers("device/vbd").await?;
        Ok(numbers.into_iter().map(Vdev::new).collect())
    }

    /// The numbers of the devices of a kind, in order.
    async fn numbers(&self, folder: &str) -> Result<Vec<u32>, GuestError> {
        let names = match self.store().list(folder).await {
            Err(error) if error.is_not_found() => Vec::new(),
            names => names?,
        };
        let numbers = names.iter().filter_map(|name| name.parse().ok());
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.sort();
        Ok(numbers)
    }

    /// The numbers of the network interfaces that the toolstack gave it, in order.
    ///
    /// # Errors
    /// The xenstore's.
    pub async fn vifs(&self) -> Result<Vec<u32>, GuestError> {
        self.numbers("device/vif").await
    }

    /// How its network interfaces are connected, if nothing else is said: with a queue for each
    /// vCPU, up to four.
    pub fn interface_config(&self) -> netfront::Config {
        self.0.interfaces
    }

    /// Connects the network interface with that number: the first `vif` of its configuration is
    /// number 0. Each can be connected once at a time.
    ///
    /// # Errors
    /// There is no such interface, or its backend refuses.
    pub async fn interface(&self, number: u32) -> Result<Connected, GuestError> {
        self.interface_as(number, self.interface_config()).await
    }

    /// As [`Guest::interface`], connected as `config` has it.
    ///
    /// # Errors
    /// As there.
    pub async fn interface_as(
        &self,
        number: u32,
        config: netfront::Config,
    ) -> Result<Connected, GuestError> {
        let has = self.vifs().await?;
        if !has.contains(&number) {
            return Err(GuestError::NoInterface { number, has });
        }
        let path = format!("device/vif/{number}");
        config
            .connect(self.domain(), self.store(), &path)
            .await
            .map_err(|error| GuestError::Interface { number, error })
    }

    async fn connect(
        &self,
        vdev: Vdev,
        config: blkfront::Config,
    ) -> Result<Disk<Domain>, GuestError> {
        let path = format!("device/vbd/{}", vdev.number());
        config
            .connect(self.domain(), self.store(), &path)
            .await
            .map_err(|error| GuestError::Connect { vdev, error })
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guest").field(&self.0.name).finish()
    }
}

/// How far a guest's program is, in units of its own, for whoever watches from outside.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Says how much there is to do.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Says that so much more is done.
    pub fn add(&self, done: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    /// How much is done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How much there is to do, as far as the program knows; zero at first.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}
