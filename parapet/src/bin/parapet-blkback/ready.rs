//! Whether the host is ready: everything that must be there before a disk can be served, and what
//! to do about each thing that is not.

use std::io;
use std::path::Path;
use std::time::Duration;

use parapet::daemon::LockError;
use parapet_blkback::journal::Journals;
use parapet_hypervisor::seam::HostDescriptors;
use parapet_hypervisor::xen::{self, Xen};
use parapet_xen_sys::DomId;
use parapet_xenstore::client::{self, Client, blocking};
use parapet_xenstore::host::{self, SocketTransport, Unreachable};

/// Why the host is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    /// No Xen, no module, no permission.
    #[error(transparent)]
    Xen(#[from] xen::NotReady),
    /// The kernel has the same disks.
    #[error(
        "the kernel's own block backend is loaded and would fight for the same disks: unload it \
         (modprobe -r xen-blkback), and keep it from coming back (echo 'install xen-blkback \
         /bin/true' > /etc/modprobe.d/parapet.conf)"
    )]
    KernelBackend,
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
    /// No place for the journals.
    #[error(
        "no journals can be kept in {folder}: {error}. Name another folder with --journal, or do \
         without one (--no-journal), in which case guests notice when this daemon ends"
    )]
    Journals {
        /// The folder.
        folder: String,
        /// What the host says.
        error: io::Error,
    },
    /// No place for the socket.
    #[error("the status socket cannot be made: {0}")]
    Socket(io::Error),
}

/// How long xenstored has to answer the first question. The kernel's connection can be opened
/// before there is a xenstored, and then waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The kernel's drivers for backends.
const KERNEL_BACKEND: &str = "bus/xen-backend/drivers/vbd";

/// Takes part in the Xen host.
pub(crate) fn place() -> Result<Xen, NotReady> {
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

/// Sees that nobody else serves the same disks.
pub(crate) fn no_kernel_backend(sysfs: &Path) -> Result<(), NotReady> {
    match sysfs.join(KERNEL_BACKEND).exists() {
        true => Err(NotReady::KernelBackend),
        false => Ok(()),
    }
}

/// The folder of the journals.
pub(crate) fn journals(folder: &Path) -> Result<Journals, NotReady> {
    Journals::in_folder(folder).map_err(|error| NotReady::Journals {
        folder: folder.display().to_string(),
        error,
    })
}

/// How many mappings this process may have, as the kernel whose files are in `proc` says.
pub(crate) fn mappings(proc: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(proc.join("sys/vm/max_map_count")).ok()?;
    text.trim().parse().ok()
}

/// A connection to the host's xenstored that tasks of `place` can share.
pub(crate) fn store<P>(place: &P) -> Result<Client, NotReady>
where
    P: HostDescriptors + parapet_hypervisor::seam::Tasks + Clone + Send + 'static,
    P::Channel: 'static,
{
    let stream = host::connect()?;
    let transport = SocketTransport::new(place, stream).map_err(NotReady::Connection)?;
    Ok(Client::start(place, transport))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_many_mappings_there_may_be() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(mappings(proc.path()), None);
        std::fs::create_dir_all(proc.path().join("sys/vm")).unwrap();
        std::fs::write(proc.path().join("sys/vm/max_map_count"), "65530\n").unwrap();
        assert_eq!(mappings(proc.path()), Some(65530));
    }

    #[test]
    fn a_host_whose_kernel_serves_disks_is_not_ready() {
        let sysfs = tempfile::tempdir().unwrap();
        no_kernel_backend(sysfs.path()).unwrap();
        std::fs::create_dir_all(sysfs.path().join(KERNEL_BACKEND)).unwrap();
        let error = no_kernel_backend(sysfs.path()).unwrap_err().to_string();
        assert!(error.contains("modprobe -r xen-blkback"), "{error}");
    }
}
