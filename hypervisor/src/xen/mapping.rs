//! `/dev/xen/gntdev`: what others granted, mapped.
//!
//! The kernel maps what was announced in one ioctl by one `mmap`, all or nothing, and says only
//! that it failed. Which grant is to blame comes out by trying to copy a byte of each.
//!
//! Pages of one `mmap` are unmapped together: Linux does not reliably give back a part of such a
//! mapping.

#![allow(unsafe_code, reason = "which ioctl takes which structure")]

use std::io;
use std::mem::offset_of;
use std::sync::Arc;

use parapet_xen_sys::grant_table::{GrantRef, GrantStatus};
use parapet_xen_sys::linux::gntdev::{
    ForeignGrant, MAP_GRANT_REF, MapGrantRef, NotifyAction, SET_UNMAP_NOTIFY, UNMAP_GRANT_REF,
    UnmapGrantRef, UnmapNotify,
};
use parapet_xen_sys::{DomId, Port};

use super::copy;
use super::device::{Area, Argument, Device, Listed};
use super::{Channel, errno};
use crate::memory::{PAGE_SIZE, ReadOnly, View};
use crate::seam::{self, Access, Channel as _, MapError};

// SAFETY: `struct ioctl_gntdev_map_grant_ref` of xen/sys/gntdev.h ends in `refs`, of which the
// kernel reads `count`; there is no address in it.
unsafe impl Listed for MapGrantRef {
    const IOCTL: u32 = MAP_GRANT_REF;
    type Element = ForeignGrant;
    const ARRAY: usize = offset_of!(MapGrantRef, refs);

    fn head(self, count: u32) -> Self {
        MapGrantRef { count, ..self }
    }
}

// SAFETY: `struct ioctl_gntdev_unmap_grant_ref`, numbers only.
unsafe impl Argument for UnmapGrantRef {
    const IOCTL: u32 = UNMAP_GRANT_REF;
}

// SAFETY: `struct ioctl_gntdev_unmap_notify`; its index is an offset in the device, which the
// kernel looks up among the grants that are mapped.
unsafe impl Argument for UnmapNotify {
    const IOCTL: u32 = SET_UNMAP_NOTIFY;
}

/// What the kernel does when a mapping goes, be it that this process is killed: how a peer learns
/// of it that cannot be told any more.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastWords<'a> {
    /// Write zero to this byte of the run.
    pub clear: Option<usize>,
    /// Notify by this channel.
    pub notify: Option<&'a Channel>,
}

impl LastWords<'_> {
    /// As the ioctls of gntdev and gntalloc want it for a run of `pages` from `index` on: an
    /// offset, what to do, and a port.
    ///
    /// # Errors
    /// `EINVAL` if the byte is not of the run: the kernel would look for it among all that is
    /// mapped.
    pub(super) fn parts(&self, index: u64, pages: usize) -> Result<(u64, NotifyAction, Port), i32> {
        let byte = self.clear.unwrap_or(0);
        if byte >= pages * PAGE_SIZE {
            return Err(libc::EINVAL);
        }
        let mut action = NotifyAction::empty();
        action.set(NotifyAction::CLEAR_BYTE, self.clear.is_some());
        action.set(NotifyAction::SEND_EVENT, self.notify.is_some());
        let port = self.notify.map_or(Port(0), |channel| channel.port());
        Ok((index + byte as u64, action, port))
    }
}

/// What was announced in one ioctl, and mapped by one `mmap`.
struct Run {
    device: Arc<Device>,
    index: u64,
    /// None only while it is dropped.
    area: Option<Area>,
}

impl Run {
    /// Maps all of `refs` or none. Linux has but one word for all that Xen may say: `EINVAL`.
    fn attempt(
        device: &Arc<Device>,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> io::Result<Self> {
        let mut list: Vec<ForeignGrant> = refs
            .iter()
            .map(|&gref| ForeignGrant {
                domid: from.0.into(),
                gref,
            })
            .collect();
        let announced = MapGrantRef {
            count: 0,
            _pad: 0,
            index: 0,
            refs: [ForeignGrant {
                domid: 0,
                gref: GrantRef(0),
            }],
        };
        let index = device.call_listed(announced, &mut list)?.index;
        match Area::of_device(device, index, refs.len(), access) {
            Ok(area) => Ok(Run {
                device: Arc::clone(device),
                index,
                area: Some(area),
            }),
            Err(error) => {
                forget(device, index, refs.len());
                Err(error)
            }
        }
    }

    /// [`Run::attempt`], and a search for the one to blame if it fails.
    fn map(
        device: &Arc<Device>,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> Result<Self, MapError> {
        Run::attempt(device, from, refs, access).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => find_blame(device, from, refs, access),
            _ => MapError::Host(errno(&error)),
        })
    }

    fn area(&self) -> &Area {
        self.area.as_ref().expect("taken only by drop")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let area = self.area.take();
        let pages = area.as_ref().map_or(0, Area::pages);
        drop(area);
        forget(&self.device, self.index, pages);
    }
}

/// Why `refs` cannot be mapped: the grant that is to blame, or else our host.
fn find_blame(device: &Arc<Device>, from: DomId, refs: &[GrantRef], access: Access) -> MapError {
    let refused = |gref, status| MapError::Refused {
        domid: from,
        gref,
        status,
    };
    match copy::find_refused(device, from, refs) {
        Err(errno) => return MapError::Host(errno),
        Ok(Some((gref, status))) => return refused(gref, status),
        Ok(None) => {}
    }
    // All can be read. One that can be mapped to be read and not to be written is the peer's fault;
    // any other is for want of our own room.
    if access == Access::ReadWrite {
        for gref in refs {
            let alone = std::slice::from_ref(gref);
            let fails = |access| Run::attempt(device, from, alone, access).is_err();
            if fails(Access::ReadWrite) && !fails(Access::ReadOnly) {
                return refused(*gref, GrantStatus::PERMISSION_DENIED);
            }
        }
    }
    MapError::Host(libc::ENOSPC)
}

/// Takes back the announcement of grants that are not mapped any more.
fn forget(device: &Device, index: u64, pages: usize) {
    let mut gone = UnmapGrantRef {
        index,
        count: pages as u32,
        _pad: 0,
    };
    if let Err(error) = device.call(&mut gone) {
        log::warn!("{pages} grants stay announced to the kernel: {error}");
    }
}

/// A run of a peer's pages, mapped.
pub struct Mapping {
    run: Arc<Run>,
    first: usize,
    pages: usize,
}

impl Mapping {
    /// Has the kernel say so to the peer when this run goes. Of use for what was mapped by
    /// [`seam::Grants::map`]; the pages of [`seam::Grants::map_each`] may go together.
    ///
    /// # Errors
    /// The host's, as an errno.
    pub fn last_words(&self, words: LastWords<'_>) -> Result<(), i32> {
        let start = self.run.index + (self.first * PAGE_SIZE) as u64;
        let (index, action, event_channel_port) = words.parts(start, self.pages)?;
        let mut notify = UnmapNotify {
            index,
            action,
            event_channel_port,
        };
        match self.run.device.call(&mut notify) {
            Ok(_) => Ok(()),
            Err(error) => Err(errno(&error)),
        }
    }
}

impl seam::Mapping for Mapping {
    #[inline]
    fn view(&self) -> View<'_, ReadOnly> {
        let all = self.run.area().view();
        all.slice(self.first * PAGE_SIZE, self.pages * PAGE_SIZE)
            .expect("within the run it was made of")
    }

    #[inline]
    fn view_mut(&self) -> Option<View<'_>> {
        let all = self.run.area().view_mut()?;
        all.slice(self.first * PAGE_SIZE, self.pages * PAGE_SIZE)
            .ok()
    }
}

/// Maps `refs` as one run.
pub(super) fn map(
    device: &Arc<Device>,
    from: DomId,
    refs: &[GrantRef],
    access: Access,
) -> Result<Mapping, MapError> {
    if refs.is_empty() {
        return Err(MapError::Host(libc::EINVAL));
    }
    Ok(Mapping {
        run: Arc::new(Run::map(device, from, refs, access)?),
        first: 0,
        pages: refs.len(),
    })
}

/// Maps `refs` in one go if all can be mapped, and else one by one.
pub(super) fn map_each(
    device: &Arc<Device>,
    from: DomId,
    refs: &[GrantRef],
    access: Access,
    out: &mut Vec<Result<Mapping, MapError>>,
) {
    if refs.len() > 1
        && let Ok(run) = Run::attempt(device, from, refs, access)
    {
        let run = Arc::new(run);
        out.extend((0..refs.len()).map(|first| {
            Ok(Mapping {
                run: Arc::clone(&run),
                first,
                pages: 1,
            })
        }));
        return;
    }
    out.extend(
        refs.iter()
            .map(|gref| map(device, from, std::slice::from_ref(gref), access)),
    );
}
