//! What a toolstack does: make a device's nodes, and take them away.

use alloc::format;
use alloc::string::{String, ToString};

use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;

use super::Keys;
use crate::Permission;
use crate::client::{Client, Error};

/// The nodes of a device: a directory at each end.
#[derive(Debug, Clone)]
pub struct DeviceNodes<'a> {
    /// `vbd`, `vif`, ...
    pub kind: &'a str,
    /// Its number, as `51712` for `xvda`.
    pub devid: u32,
    /// The guest.
    pub frontend: DomId,
    /// Who serves it.
    pub backend: DomId,
    /// More keys for the frontend's directory.
    pub frontend_keys: &'a [(&'a str, String)],
    /// More keys for the backend's directory.
    pub backend_keys: &'a [(&'a str, String)],
}

impl DeviceNodes<'_> {
    /// The frontend's directory.
    pub fn frontend_path(&self) -> String {
        let DeviceNodes { kind, devid, .. } = self;
        format!("/local/domain/{}/device/{kind}/{devid}", self.frontend)
    }

    /// The backend's directory.
    pub fn backend_path(&self) -> String {
        let DeviceNodes { kind, devid, .. } = self;
        let (backend, frontend) = (self.backend, self.frontend);
        format!("/local/domain/{backend}/backend/{kind}/{frontend}/{devid}")
    }

    /// Makes both directories in one transaction, so that neither end ever sees half a device.
    /// Each belongs to its own end and may be read by the other, as libxl has it.
    ///
    /// # Errors
    /// The store's.
    pub async fn create(&self, client: &Client) -> Result<(), Error> {
        let (front, back) = (self.frontend_path(), self.backend_path());
        let (front, back) = (&front, &back);
        client
            .transaction(|tx| async move {
                let make = async |path: &String, owner, reader| {
                    tx.remove(path).await.or_else(|error| {
                        if error.is_not_found() {
                            Ok(())
                        } else {
                            Err(error)
                        }
                    })?;
                    tx.mkdir(path).await?;
                    let entries = [Permission::none(owner), Permission::read(reader)];
                    tx.set_permissions(path, &entries).await?;
                    Ok::<_, Error>(Keys::new(tx.clone(), path.clone()))
                };
                let initialising = u32::from(XenbusState::Initialising);

                let keys = make(front, self.frontend, self.backend).await?;
                keys.set("backend", back).await?;
                keys.set("backend-id", self.backend).await?;
                for (key, value) in self.frontend_keys {
                    keys.set(key, value).await?;
                }
                keys.set("state", initialising).await?;

                let keys = make(back, self.backend, self.frontend).await?;
                keys.set("frontend", front).await?;
                keys.set("frontend-id", self.frontend).await?;
                keys.set("online", 1).await?;
                for (key, value) in self.backend_keys {
                    keys.set(key, value).await?;
                }
                keys.set("state", initialising).await
            })
            .await
    }

    /// Asks the backend to let the device go, in order: it will close, and then the frontend. One
    /// that has closed already is only told not to wait for another frontend, as libxl has it.
    ///
    /// # Errors
    /// The store's.
    pub async fn detach(&self, client: &Client) -> Result<(), Error> {
        let back = self.backend_path();
        client
            .transaction(|tx| {
                let keys = Keys::new(tx.clone(), back.clone());
                async move {
                    keys.set("online", 0).await?;
                    let state = tx.read(&keys.path("state")).await?;
                    if state == u32::from(XenbusState::Closed).to_string().as_bytes() {
                        return Ok(());
                    }
                    keys.set("state", u32::from(XenbusState::Closing)).await
                }
            })
            .await
    }

    /// Removes both directories.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove(&self, client: &Client) -> Result<(), Error> {
        let (front, back) = (self.frontend_path(), self.backend_path());
        client
            .transaction(|tx| {
                let (front, back) = (front.clone(), back.clone());
                async move {
                    for path in [front, back] {
                        match tx.remove(&path).await {
                            Err(error) if !error.is_not_found() => return Err(error),
                            _ => {}
                        }
                    }
                    Ok(())
                }
            })
            .await
    }
}
