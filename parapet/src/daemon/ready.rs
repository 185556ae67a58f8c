//! Whether the host is ready for a backend: everything that must be there before a device can be
//! served, and what to do about each thing that is not.

use std::io;
use std::path::Path;
use std::time::Duration;

use parapet_hypervisor::seam::{Clock, HostDescriptors, Tasks};
use parapet_hypervisor::xen::{self, Xen};
use parapet_xen_sys::DomId;
use parapet_xenstore::client::{self, Client, blocking};
use parapet_xenstore::host::{self, SocketTransport, Unreachable};

use super::{Failure, LockError};

/// A backend that the kernel has, for the same devices as one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelBackend {
    /// What its devices are called in the xenstore, as `vbd`.
    pub kind: &'static str,
    /// The kernel's module.
    pub module: &'static str,
}

/// Why the host is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// No Xen, no module, no permission.
    #[error(transparent)]
    Xen(#[from] xen::NotReady),
    /// The kernel has the same devices.
    #[error(
        "the kernel's own backend {module} is loaded and would fight for the same devices: unload \
         it (modprobe -r {module}), and keep it from coming back (echo 'install {module} \
         /bin/true' > /etc/modprobe.d/parapet.conf)",
        module = .0.module
    )]
    KernelBackend(KernelBackend),
    /// No xenstored.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A xenstored that does not do its part.
    #[error("the xenstore does not tell which domain this is: {0}. Has xen-init-dom0 run?")]
    NoDomid(client::Error),
    /// The connection cannot be used.
    #[error("the connection to xenstored cannot be used: {0}")]
    Connection(io::Error),
    /// Another daemon, or no place for a lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No place for the socket.
    #[error("the status socket cannot be made: {0}")]
    Socket(io::Error),
}

impl From<NotReady> for Failure {
    fn from(reason: NotReady) -> Self {
        Failure::NotReady(reason.into())
    }
}

/// How long xenstored has to answer the first question. The kernel's connection can be opened
/// before there is a xenstored, and then waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often to look for another backend.
const LOOK: Duration = Duration::from_secs(5);

/// Takes part in the Xen host.
///
/// # Errors
/// What is missing.
pub fn place() -> Result<Xen, NotReady> {
    match domid() {
        Ok(domid) => Ok(Xen::open(domid)?),
        Err(reason) => {
            // Where there is no Xen, it is not the xenstore that is missing.
            Xen::with_workers(DomId::ZERO, 1)?;
            Err(reason)
        }
    }
}

/// Which domain this is: only the xenstore tells.
fn domid() -> Result<DomId, NotReady> {
    let mut client = blocking::Client::new(host::connect()?);
    client.set_patience(Some(PATIENCE));
    client.domid().map_err(NotReady::NoDomid)
}

/// A connection to the host's xenstored that tasks of `place` can share.
///
/// # Errors
/// There is none to be had.
pub fn store<P>(place: &P) -> Result<Client, NotReady>
where
    P: HostDescriptors + Tasks + Clone + Send + 'static,
    P::Channel: 'static,
{
    let stream = host::connect()?;
    let transport = SocketTransport::new(place, stream).map_err(NotReady::Connection)?;
    Ok(Client::start(place, transport))
}

impl KernelBackend {
    /// Sees that it does not serve the same devices, in the kernel whose files are in `sysfs`.
    ///
    /// # Errors
    /// It does.
    pub fn refuse(self, sysfs: &Path) -> Result<(), NotReady> {
        let driver = format!("bus/xen-backend/drivers/{}", self.kind);
        match sysfs.join(driver).exists() {
            true => Err(NotReady::KernelBackend(self)),
            false => Ok(()),
        }
    }

    /// Says so if somebody loads it while we run.
    pub async fn watch(self, place: impl Clock) {
        let mut there = false;
        loop {
            place.sleep(LOOK).await;
            let found = self.refuse(Path::new("/sys"));
            if let (false, Err(error)) = (there, &found) {
                log::error!("{error}");
            }
            there = found.is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_whose_kernel_serves_the_same_devices_is_not_ready() {
        let kernel = KernelBackend {
            kind: "vbd",
            module: "xen-blkback",
        };
        let sysfs = tempfile::tempdir().unwrap();
        kernel.refuse(sysfs.path()).unwrap();
        let driver = sysfs.path().join("bus/xen-backend/drivers/vbd");
        std::fs::create_dir_all(driver).unwrap();
        let error = kernel.refuse(sysfs.path()).unwrap_err().to_string();
        assert!(error.contains("modprobe -r xen-blkback"), "{error}");
    }
}
