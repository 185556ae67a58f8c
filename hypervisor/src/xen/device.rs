//! The edge: opening the devices, their ioctls, and memory mapped from them.

#![allow(
    unsafe_code,
    reason = "ioctls take addresses, and mapped memory becomes views"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap, mmap_anonymous, mremap, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::NotReady;
use crate::memory::{PAGE_SIZE, ReadOnly, View};
use crate::seam::Access;

/// A device's place and the module that makes it.
pub(super) struct Name {
    path: &'static str,
    /// None makes it: the kernel has it in domain 0, or not at all.
    module: Option<&'static str>,
}

pub(super) const GNTDEV: Name = Name {
    path: "/dev/xen/gntdev",
    module: Some("xen-gntdev"),
};
pub(super) const GNTALLOC: Name = Name {
    path: "/dev/xen/gntalloc",
    module: Some("xen-gntalloc"),
};
pub(super) const EVTCHN: Name = Name {
    path: "/dev/xen/evtchn",
    module: Some("xen-evtchn"),
};
pub(super) const PRIVCMD: Name = Name {
    path: "/dev/xen/privcmd",
    module: Some("xen-privcmd"),
};
/// Memory for hypercalls.
pub(super) const HYPERCALL: Name = Name {
    path: "/dev/xen/hypercall",
    module: Some("xen-privcmd"),
};
pub(super) const XENBUS_BACKEND: Name = Name {
    path: "/dev/xen/xenbus_backend",
    module: None,
};

impl Name {
    pub(super) fn open(&self) -> io::Result<Device> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(self.path)?;
        Ok(Device(file))
    }

    /// Opens it, and says what the host lacks if that fails.
    pub(super) fn open_checked(&self) -> Result<Device, NotReady> {
        let path = || Path::new(self.path).to_owned();
        self.open().map_err(|error| match error.kind() {
            ErrorKind::NotFound if !is_xen() => NotReady::NoXen { missing: path() },
            ErrorKind::NotFound => self.not_there(),
            ErrorKind::PermissionDenied => NotReady::NoPermission { path: path() },
            // A device node that was left behind, without a driver under it.
            _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                self.not_there()
            }
            _ => NotReady::Host {
                what: self.path.into(),
                error,
            },
        })
    }

    fn not_there(&self) -> NotReady {
        match self.module {
            Some(module) => NotReady::NoModule {
                missing: Path::new(self.path).to_owned(),
                module,
            },
            None => NotReady::NotPrivileged,
        }
    }
}

/// Whether the kernel found Xen under it.
fn is_xen() -> bool {
    std::fs::read("/sys/hypervisor/type").is_ok_and(|name| name.starts_with(b"xen"))
}

/// One open device.
pub(super) struct Device(File);

impl From<OwnedFd> for Device {
    fn from(descriptor: OwnedFd) -> Self {
        Device(descriptor.into())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A structure that is an ioctl's whole argument, without addresses in it: the kernel reads and
/// writes just its bytes.
///
/// # Safety
/// The size in the ioctl's number is the size of the structure, and the kernel follows no address
/// that is in it.
pub(super) unsafe trait Argument: FromBytes + IntoBytes + Immutable {
    /// The ioctl.
    const IOCTL: u32;
}

/// [`Argument`] for a structure whose last field is an array that goes on behind it.
///
/// # Safety
/// As for [`Argument`]; the kernel reads and writes `count` elements and not more, `count` being
/// what [`Listed::head`] was given.
pub(super) unsafe trait Listed: FromBytes + IntoBytes + Immutable {
    /// The ioctl.
    const IOCTL: u32;
    /// What the array has.
    type Element: FromBytes + IntoBytes + Immutable + Copy;
    /// Where in the structure the array begins.
    const ARRAY: usize;
    /// The structure with its `count` set.
    fn head(self, count: u32) -> Self;
}

impl Device {
    /// Does an ioctl.
    ///
    /// # Safety
    /// What the kernel reads and writes by `argument`, and by addresses in it, is there to be read
    /// and written.
    pub(super) unsafe fn ioctl(&self, number: u32, argument: *mut u8) -> io::Result<u32> {
        // SAFETY: the caller's contract; the descriptor is open.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number.into(), argument) };
        u32::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Does `T`'s ioctl, and returns what that returned.
    pub(super) fn call<T: Argument>(&self, argument: &mut T) -> io::Result<u32> {
        // SAFETY: the trait says that the kernel touches just these bytes.
        unsafe { self.ioctl(T::IOCTL, argument.as_mut_bytes().as_mut_ptr()) }
    }

    /// Does `T`'s ioctl on a list, which it may change.
    pub(super) fn call_listed<T: Listed>(
        &self,
        argument: T,
        list: &mut [T::Element],
    ) -> io::Result<T> {
        let count = u32::try_from(list.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let len = (T::ARRAY + size_of_val(list)).max(size_of::<T>());
        // Of words, so that it is aligned for any of these structures.
        let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
        let bytes = words.as_mut_bytes();
        let place = T::ARRAY..T::ARRAY + size_of_val(list);
        bytes[..T::ARRAY].copy_from_slice(&argument.head(count).as_bytes()[..T::ARRAY]);
        bytes[place.clone()].copy_from_slice(list.as_bytes());
        // SAFETY: the trait says that the kernel touches just the head and `count` elements.
        unsafe { self.ioctl(T::IOCTL, bytes.as_mut_ptr()) }?;
        list.as_mut_bytes().copy_from_slice(&bytes[place]);
        T::read_from_prefix(bytes)
            .map(|(head, _)| head)
            .map_err(|_| ErrorKind::InvalidData.into())
    }

    pub(super) fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(to)
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }
}

/// Pages in our address space.
pub(super) struct Area {
    start: NonNull<u8>,
    len: NonZeroUsize,
    access: Access,
}

// SAFETY: an area is an address range of its own; the bytes are only accessed through views.
unsafe impl Send for Area {}
// SAFETY: as for `Send`.
unsafe impl Sync for Area {}

impl Area {
    /// `pages` pages of memory of our own, all zero.
    pub(super) fn anonymous(pages: usize) -> io::Result<Self> {
        let len = length(pages)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches nobody else's memory.
        let start = unsafe {
            mmap_anonymous(
                None,
                len,
                protection(Access::ReadWrite),
                MapFlags::MAP_PRIVATE,
            )
        }?;
        Ok(Area {
            start: start.cast(),
            len,
            access: Access::ReadWrite,
        })
    }

    /// `pages` pages of a device, from what it calls `index`.
    pub(super) fn of_device(
        device: &Device,
        index: u64,
        pages: usize,
        access: Access,
    ) -> io::Result<Self> {
        let len = length(pages)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches nobody else's memory.
        let start = unsafe {
            mmap(
                None,
                len,
                protection(access),
                MapFlags::MAP_SHARED,
                device,
                index.cast_signed(),
            )
        }?;
        Ok(Area {
            start: start.cast(),
            len,
            access,
        })
    }

    /// Moves `fresh`, as long as this, to the place of what is here, with the contents of this:
    /// the addresses stay. What is written here by others meanwhile may be lost.
    ///
    /// Everything that is likely to fail has been done when `fresh` was made. Should the kernel
    /// not move it, the old memory may be gone, and views of it would lead nowhere: then the
    /// process ends.
    pub(super) fn become_other(&self, fresh: Area) {
        assert_eq!(self.len, fresh.len, "memory changes places with its like");
        if let Some(target) = fresh.view_mut() {
            let copied = self.view().copy_to(0, target, 0, self.len.get());
            debug_assert!(copied.is_ok(), "both are of one length");
        }
        // SAFETY: both ranges are whole mappings, each its area's own. The target stays mapped for
        // reading and writing, with other pages under it: views of it go on to be valid. Nobody
        // has a view of the source, which is forgotten.
        let moved = unsafe {
            mremap(
                fresh.start.cast(),
                self.len.get(),
                self.len.get(),
                MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED,
                Some(self.start.cast()),
            )
        };
        std::mem::forget(fresh);
        if let Err(error) = moved {
            log::error!("memory was lost in a move, and nothing can go on: {error}");
            std::process::abort();
        }
    }

    /// Where it is, for who follows addresses.
    pub(super) fn address(&self) -> u64 {
        self.start.addr().get() as u64
    }

    pub(super) fn pages(&self) -> usize {
        self.len.get() / PAGE_SIZE
    }

    /// All of it, to read.
    pub(super) fn view(&self) -> View<'_, ReadOnly> {
        // SAFETY: mapped for reading at least as long as `self` lives, and accessed only through
        // views.
        unsafe { View::from_raw(self.start, self.len.get()) }
    }

    /// All of it, to write, if it may be written.
    pub(super) fn view_mut(&self) -> Option<View<'_>> {
        // SAFETY: as for `view`, and mapped for writing, since the access says so.
        (self.access == Access::ReadWrite)
            .then(|| unsafe { View::from_raw(self.start, self.len.get()) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range is this area's own, and no view outlives it.
        let unmapped = unsafe { munmap(self.start.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be undone");
    }
}

fn protection(access: Access) -> ProtFlags {
    match access {
        Access::ReadOnly => ProtFlags::PROT_READ,
        Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
    }
}

fn length(pages: usize) -> io::Result<NonZeroUsize> {
    pages
        .checked_mul(PAGE_SIZE)
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| ErrorKind::InvalidInput.into())
}
