//! `/dev/xen/xenbus_backend`: domain 0's kernel as a client of a xenstored in domain 0.

#![allow(unsafe_code, reason = "an ioctl without an argument")]

use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::linux::xenbus::BACKEND_EVTCHN;

use super::NotReady;
use super::device::{self, Area};
use crate::memory::{ReadOnly, View};
use crate::seam::{self, Access};

/// The page that domain 0's kernel shares with its xenstored, mapped.
pub struct KernelXenstore {
    area: Area,
    port: Port,
}

impl KernelXenstore {
    /// Maps it. There is one only in domain 0.
    ///
    /// # Errors
    /// What is missing on this host, with what to do about it.
    pub fn open() -> Result<Self, NotReady> {
        let failed = |error| NotReady::Host {
            what: "the kernel's connection to xenstored".into(),
            error,
        };
        let device = device::XENBUS_BACKEND.open_checked()?;
        // SAFETY: this ioctl has no argument: the kernel touches no memory of ours.
        let port = unsafe { device.ioctl(BACKEND_EVTCHN, std::ptr::null_mut()) };
        let port = Port(port.map_err(failed)?);
        let area = Area::of_device(&device, 0, 1, Access::ReadWrite).map_err(failed)?;
        Ok(KernelXenstore { area, port })
    }

    /// The kernel's port, to be bound.
    pub fn port(&self) -> Port {
        self.port
    }
}

impl seam::Mapping for KernelXenstore {
    fn view(&self) -> View<'_, ReadOnly> {
        self.area.view()
    }

    fn view_mut(&self) -> Option<View<'_>> {
        self.area.view_mut()
    }
}

impl std::fmt::Debug for KernelXenstore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KernelXenstore(port {})", self.port)
    }
}
