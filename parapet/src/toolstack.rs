//! What `xl` does for a domain: the nodes that name it and its devices, in the order and with the
//! permissions of libxl, on which backends and frontends rely.

use parapet_blkback::report::Vbd;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::Permission;
use parapet_xenstore::client::{Client, Error};
use parapet_xenstore::xenbus::{self, DeviceNodes, Keys};

use crate::config::{DeviceType, DiskAccess, DiskConfig, GuestConfig};

/// Why a disk could not be attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The backend will not serve it, for the reason that it left in the xenstore.
    #[error("{0}")]
    Backend(String),
    /// The xenstore does not do its part.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The toolstack of a host, in domain 0.
#[derive(Clone)]
pub(crate) struct Toolstack {
    store: Client,
}

impl Toolstack {
    /// A toolstack that writes by `store`, domain 0's connection.
    pub(crate) fn new(store: Client) -> Self {
        Toolstack { store }
    }

    /// Makes a domain's home, before the domain runs.
    pub(crate) async fn make_home(&self, domid: DomId, config: &GuestConfig) -> Result<(), Error> {
        let home = home(domid);
        let (home, kib) = (&home, config.memory / 1024);
        self.store
            .transaction(|tx| async move {
                // A reused id inherits nothing.
                ignore_missing(tx.remove(home).await)?;
                tx.mkdir(home).await?;
                let readable = [Permission::none(DomId::ZERO), Permission::read(domid)];
                tx.set_permissions(home, &readable).await?;
                tx.write(&format!("{home}/name"), &config.name).await?;
                tx.write(&format!("{home}/domid"), domid.to_string())
                    .await?;
                tx.write(&format!("{home}/memory/target"), kib.to_string())
                    .await?;
                for folder in ["data", "error", "drivers", "feature", "attr"] {
                    let path = format!("{home}/{folder}");
                    tx.mkdir(&path).await?;
                    tx.set_permissions(&path, &[Permission::none(domid)])
                        .await?;
                }
                Ok(())
            })
            .await
    }

    /// Makes the nodes of a disk's two ends, and waits until the backend has opened the image.
    pub(crate) async fn attach(&self, vbd: Vbd, disk: &DiskConfig) -> Result<(), AttachError> {
        let keys = backend_keys(disk);
        let frontend_keys = [
            ("virtual-device", vbd.number.to_string()),
            ("device-type", device_type(disk).into()),
        ];
        let nodes = nodes(vbd, &frontend_keys, &keys);
        let back = nodes.backend_path();
        let mut watch = self.store.watch(&format!("{back}/state")).await?;
        nodes.create(&self.store).await?;
        loop {
            match self.state(&back).await? {
                XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected => {
                    return Ok(());
                }
                XenbusState::Closing | XenbusState::Closed => {
                    let reason = match self.store.read(&format!("{back}/hotplug-error")).await {
                        Err(error) if error.is_not_found() => b"its backend gave it up".to_vec(),
                        reason => reason?,
                    };
                    let reason = String::from_utf8_lossy(&reason).into_owned();
                    return Err(AttachError::Backend(reason));
                }
                _ => {
                    watch.next().await?;
                }
            }
        }
    }

    /// Takes a disk away from a guest that no longer runs, as `xl destroy` does: the frontend's
    /// nodes first, so that the backend does not wait for it.
    pub(crate) async fn detach(&self, vbd: Vbd) -> Result<(), Error> {
        let nodes = nodes(vbd, &[], &[]);
        let back = nodes.backend_path();
        let mut watch = self.store.watch(&format!("{back}/state")).await?;
        ignore_missing(self.store.remove(&nodes.frontend_path()).await)?;
        ignore_missing(nodes.detach(&self.store).await)?;
        while self.state(&back).await? != XenbusState::Closed {
            watch.next().await?;
        }
        nodes.remove(&self.store).await
    }

    /// Removes what is left of a domain.
    pub(crate) async fn forget(&self, domid: DomId) -> Result<(), Error> {
        let dom0 = home(DomId::ZERO);
        let left = [
            home(domid),
            format!("{dom0}/backend/vbd/{domid}"),
            format!("{dom0}/error/backend/vbd/{domid}"),
        ];
        for path in left {
            ignore_missing(self.store.remove(&path).await)?;
        }
        Ok(())
    }

    /// The state under a directory; one that is gone has closed.
    async fn state(&self, path: &str) -> Result<XenbusState, Error> {
        match Keys::new(self.store.clone(), path).state().await {
            Ok(state) => Ok(state),
            Err(xenbus::Error::Store(error)) => Err(error),
            // Nobody but a backend of ours writes there.
            Err(_) => Ok(XenbusState::Unknown),
        }
    }
}

fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

fn nodes<'a>(
    vbd: Vbd,
    frontend_keys: &'a [(&'a str, String)],
    backend_keys: &'a [(&'a str, String)],
) -> DeviceNodes<'a> {
    DeviceNodes {
        kind: "vbd",
        devid: vbd.number,
        frontend: vbd.frontend,
        backend: DomId::ZERO,
        frontend_keys,
        backend_keys,
    }
}

fn backend_keys(disk: &DiskConfig) -> Vec<(&'static str, String)> {
    let mode = match disk.access {
        DiskAccess::ReadOnly => "r",
        DiskAccess::ReadWrite => "w",
    };
    let mut keys = vec![
        ("params", disk.target.clone()),
        ("type", "phy".into()),
        ("removable", "0".into()),
        ("bootable", "1".into()),
        ("dev", disk.vdev.to_string()),
        ("mode", mode.into()),
        ("device-type", device_type(disk).into()),
        ("discard-enable", u32::from(disk.discard).to_string()),
    ];
    for (key, burst, rate) in [
        ("rate-iops", "rate-iops-burst", disk.rates.operations),
        ("rate-bytes", "rate-bytes-burst", disk.rates.bytes),
    ] {
        if let Some(rate) = rate {
            keys.push((key, rate.per_second.to_string()));
            keys.push((burst, rate.burst.to_string()));
        }
    }
    keys
}

fn device_type(disk: &DiskConfig) -> &'static str {
    match disk.devtype {
        DeviceType::Disk => "disk",
        DeviceType::Cdrom => "cdrom",
    }
}

fn ignore_missing(result: Result<(), Error>) -> Result<(), Error> {
    result.or_else(|error| match error.is_not_found() {
        true => Ok(()),
        false => Err(error),
    })
}
