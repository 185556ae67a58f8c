//! What a guest program is given.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parapet_blkfront::vdev::{NotAVdev, Vdev};
use parapet_blkfront::{self as blkfront, ConnectError, Disk};
use parapet_hypervisor::loopback::Domain;
use parapet_xenstore::client::{self, Client};

/// A guest, from the inside: its domain, its xenstore and its disks. Clones are the same guest.
#[derive(Clone)]
pub struct Guest(Arc<Inner>);

struct Inner {
    name: String,
    domain: Domain,
    store: Client,
    progress: Arc<Progress>,
    disks: blkfront::Config,
}

/// Why a guest has no such disk.
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

fn list(vdevs: &[Vdev]) -> String {
    if vdevs.is_empty() {
        return "none".into();
    }
    let names: Vec<String> = vdevs.iter().map(Vdev::to_string).collect();
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
        let names = match self.store().list("device/vbd").await {
            Err(error) if error.is_not_found() => Vec::new(),
            names => names?,
        };
        let mut vdevs: Vec<Vdev> = names
            .iter()
            .filter_map(|name| name.parse().ok().map(Vdev::new))
            .collect();
        vdevs.sort();
        Ok(vdevs)
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
