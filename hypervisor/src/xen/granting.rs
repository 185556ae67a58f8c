//! `/dev/xen/gntalloc`: pages of our own, granted.
//!
//! Linux grants only pages that it allocated for that, to one domain, all of them at once. So
//! pages begin as plain memory, and change places with granted ones when they are granted: the
//! addresses stay, the contents are copied over. They change back when the grant ends, and the
//! kernel keeps what it granted for as long as the peer maps it.

#![allow(unsafe_code, reason = "which ioctl takes which structure")]

use std::io;
use std::mem::offset_of;
use std::sync::{Arc, Mutex};

use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::GrantRef;
use parapet_xen_sys::linux::gntalloc::{
    ALLOC_GREF, AllocFlags, AllocGref, DEALLOC_GREF, DeallocGref, SET_UNMAP_NOTIFY, UnmapNotify,
};

use super::device::{self, Area, Argument, Device, Listed};
use super::errno;
use super::mapping::LastWords;
use crate::memory::View;
use crate::seam::{self, Access, GrantError, OutOfMemory, StillMapped};
use crate::wait::lock;

// SAFETY: `struct ioctl_gntalloc_alloc_gref` of xen/sys/gntalloc.h ends in `gref_ids`, of which
// the kernel writes `count`; there is no address in it.
unsafe impl Listed for AllocGref {
    const IOCTL: u32 = ALLOC_GREF;
    type Element = GrantRef;
    const ARRAY: usize = offset_of!(AllocGref, gref_ids);

    fn head(self, count: u32) -> Self {
        AllocGref { count, ..self }
    }
}

// SAFETY: `struct ioctl_gntalloc_dealloc_gref`, numbers only.
unsafe impl Argument for DeallocGref {
    const IOCTL: u32 = DEALLOC_GREF;
}

// SAFETY: `struct ioctl_gntalloc_unmap_notify`; its index is an offset in the device, which the
// kernel looks up among the pages that it allocated.
unsafe impl Argument for UnmapNotify {
    const IOCTL: u32 = SET_UNMAP_NOTIFY;
}

/// A run of pages of our own. Clones share them; the last gives them back.
///
/// They can be granted to one domain at a time. While they are being granted, and while a grant
/// of them is being ended, their contents move: what another thread writes in that moment may be
/// lost.
#[derive(Clone)]
pub struct Pages(Arc<Owned>);

struct Owned {
    area: Area,
    /// Whether they are granted; held while they change places.
    granted: Mutex<bool>,
}

impl Pages {
    pub(super) fn allocate(count: usize) -> Result<Self, OutOfMemory> {
        let area = Area::anonymous(count).map_err(|_| OutOfMemory { count })?;
        Ok(Pages(Arc::new(Owned {
            area,
            granted: Mutex::new(false),
        })))
    }
}

impl seam::Pages for Pages {
    #[inline]
    fn view(&self) -> View<'_> {
        self.0
            .area
            .view_mut()
            .expect("memory of our own is writable")
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({:?})", seam::Pages::view(self))
    }
}

/// Pages that a peer may reach.
pub struct Grant {
    device: Device,
    index: u64,
    refs: Vec<GrantRef>,
    pages: Pages,
}

/// Grants `pages` to domain `to`.
pub(super) fn grant(pages: &Pages, to: DomId, access: Access) -> Result<Grant, GrantError> {
    let host = |error: io::Error| GrantError::Host(errno(&error));
    let mut granted = lock(&pages.0.granted);
    if *granted {
        return Err(GrantError::NotGrantable(to));
    }
    // A descriptor each: closing it takes back whatever was allocated by it.
    let device = device::GNTALLOC.open().map_err(host)?;
    let mut flags = AllocFlags::empty();
    flags.set(AllocFlags::WRITABLE, access == Access::ReadWrite);
    let wanted = AllocGref {
        domid: to,
        flags,
        count: 0,
        index: 0,
        gref_ids: [GrantRef(0)],
        _pad: 0,
    };
    let count = pages.0.area.pages();
    let mut refs = vec![GrantRef(0); count];
    let allocated = device.call_listed(wanted, &mut refs);
    let index = allocated
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSPC) => GrantError::TableFull { limit: limit() },
            _ => host(error),
        })?
        .index;
    let shared = Area::of_device(&device, index, count, Access::ReadWrite).map_err(host)?;
    pages.0.area.become_other(shared);
    *granted = true;
    drop(granted);
    Ok(Grant {
        device,
        index,
        refs,
        pages: pages.clone(),
    })
}

/// How many pages gntalloc grants, to all of the domain's processes together; zero if it does not
/// say.
fn limit() -> usize {
    let text = std::fs::read_to_string("/sys/module/xen_gntalloc/parameters/limit");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

impl Grant {
    /// Has the kernel say so to the peer when these pages go.
    ///
    /// # Errors
    /// The host's, as an errno.
    pub fn last_words(&self, words: LastWords<'_>) -> Result<(), i32> {
        let pages = self.pages.0.area.pages();
        let (index, action, event_channel_port) = words.parts(self.index, pages)?;
        let mut notify = UnmapNotify {
            index,
            action,
            event_channel_port,
        };
        match self.device.call(&mut notify) {
            Ok(_) => Ok(()),
            Err(error) => Err(errno(&error)),
        }
    }
}

impl seam::Grant for Grant {
    fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    fn end(self) -> Result<(), StillMapped> {
        // Dropped. A page that is still mapped goes to the kernel's own quarantine.
        Ok(())
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut granted = lock(&self.pages.0.granted);
        match Area::anonymous(self.pages.0.area.pages()) {
            Ok(own) => self.pages.0.area.become_other(own),
            Err(error) => {
                // They stay granted, and can be used, but not granted again.
                log::warn!("pages cannot be taken back from a grant: {error}");
                return;
            }
        }
        *granted = false;
        let mut gone = DeallocGref {
            index: self.index,
            count: self.refs.len() as u32,
            _pad: 0,
        };
        if let Err(error) = self.device.call(&mut gone) {
            log::warn!("{} grants stay until the process ends: {error}", gone.count);
        }
    }
}
