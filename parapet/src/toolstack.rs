//! What `xl` does for a domain: the nodes that name it and its devices, in the order and with the
//! permissions of libxl, on which backends and frontends rely.

use parapet_backend::report::DeviceId;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::Permission;
use parapet_xenstore::client::{Client, Error};
use parapet_xenstore::xenbus::{self, DeviceNodes, Keys};

use crate::config::{DeviceType, DiskAccess, DiskConfig, GuestConfig, VifConfig};

/// A device of a guest: its kind, and which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    Vbd(DeviceId),
    Vif(DeviceId),
}

impl Device {
    fn nodes<'a>(self, more: &'a MoreKeys) -> DeviceNodes<'a> {
        let (kind, id) = match self {
            Device::Vbd(id) => ("vbd", id),
            Device::Vif(id) => ("vif", id),
        };
        DeviceNodes {
            kind,
            devid: id.number,
            frontend: id.frontend,
            backend: DomId::ZERO,
            frontend_keys: &more.frontend,
            backend_keys: &more.backend,
        }
    }
}

/// Keys that a kind of device has beside those of all.
#[derive(Default)]
pub(crate) struct MoreKeys {
    frontend: Vec<(&'static str, String)>,
    backend: Vec<(&'static str, String)>,
}

impl MoreKeys {
    /// A disk's, with that number.
    pub(crate) fn of_disk(number: u32, disk: &DiskConfig) -> Self {
        MoreKeys {
            frontend: vec![
                ("virtual-device", number.to_string()),
                ("device-type", device_type(disk).into()),
            ],
            backend: backend_keys(disk),
        }
    }

    /// A vif's, with that number.
    pub(crate) fn of_vif(number: u32, vif: &VifConfig) -> Self {
        let mac = vif.mac.unwrap_or_default().to_string();
        let mut frontend = vec![("handle", number.to_string()), ("mac", mac.clone())];
        let mut backend = vec![
            ("handle", number.to_string()),
            ("mac", mac),
            ("type", "vif".into()),
        ];
        let mut add = |key, value: Option<String>| {
            backend.extend(value.map(|value| (key, value)));
        };
        let vlan = vif.vlan.map(|vlan| format!(".{vlan}"));
        let bridge = vif.bridge.as_deref();
        match (bridge, vlan) {
            (None, None) => {}
            (bridge, vlan) => {
                let bridge = bridge.unwrap_or_default();
                add(
                    "bridge",
                    Some(bridge.to_owned() + &vlan.unwrap_or_default()),
                );
            }
        }
        let addresses: Vec<String> = vif.addresses.iter().map(ToString::to_string).collect();
        add("ip", Some(addresses.join(" ")).filter(|ip| !ip.is_empty()));
        add("vifname", vif.name.clone());
        let rate = vif.rate;
        add(
            "rate",
            rate.map(|rate| format!("{},{}", rate.bytes, rate.micros)),
        );
        add("locked", vif.locked.then(|| "1".into()));
        add("isolated", vif.isolated.then(|| "1".into()));
        if let Some(mtu) = vif.mtu {
            add("mtu", Some(mtu.to_string()));
            frontend.push(("mtu", mtu.to_string()));
        }
        MoreKeys { frontend, backend }
    }
}

/// Why a device could not be attached.
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

    /// Makes the nodes of a device's two ends, and waits until the backend has what is behind it:
    /// an image, a place on a network.
    pub(crate) async fn attach(&self, device: Device, keys: &MoreKeys) -> Result<(), AttachError> {
        let nodes = device.nodes(keys);
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

    /// Takes a device away from a guest that no longer runs, as `xl destroy` does: the frontend's
    /// nodes first, so that the backend does not wait for it.
    pub(crate) async fn detach(&self, device: Device) -> Result<(), Error> {
        let none = MoreKeys::default();
        let nodes = device.nodes(&none);
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
            format!("{dom0}/backend/vif/{domid}"),
            format!("{dom0}/error/backend/vif/{domid}"),
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
