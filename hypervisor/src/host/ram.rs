//! Memory of the host's own to play a disk.

#![allow(unsafe_code, reason = "fresh memory of the kernel becomes views")]

use core::fmt;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use std::io;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{Lease, Page};
use crate::memory::{ReadOnly, View};

/// Zeroed memory that takes up room only where it was written to. Several threads may use it at
/// once: as on a disk, bytes that are written and read at the same time are some mixture.
pub struct Ram {
    start: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the memory is only ever accessed through views.
unsafe impl Send for Ram {}
// SAFETY: as for `Send`.
unsafe impl Sync for Ram {}

impl Ram {
    /// `len` bytes, all zero.
    ///
    /// # Errors
    /// The host's, when it has no such amount of memory to promise.
    pub fn new(len: NonZeroUsize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice touches nobody else's memory.
        let start = unsafe {
            mmap_anonymous(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        Ok(Ram {
            start: start.cast(),
            len,
        })
    }

    /// All of it.
    pub fn view(&self) -> View<'_> {
        // SAFETY: mapped for reading and writing as long as `self` lives; nobody has another way
        // to it.
        unsafe { View::from_raw(self.start, self.len.get()) }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no view outlives `self`.
        let unmapped = unsafe { munmap(self.start.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be undone");
    }
}

impl Page for Ram {
    fn view(&self) -> View<'_> {
        Ram::view(self)
    }
}

/// For who uses a disk in this very process: all of it, in order.
impl Lease for Ram {
    type Page = Ram;

    fn targets(&self) -> impl Iterator<Item = View<'_>> {
        core::iter::once(Ram::view(self))
    }

    fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
        core::iter::once(Ram::view(self).read_only())
    }

    fn registered(&self) -> Option<u16> {
        None
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ram({:#x})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_and_keeps_what_is_written() {
        let ram = Ram::new(NonZeroUsize::new(1 << 30).unwrap()).unwrap();
        let end = (1 << 30) - 4;
        assert_eq!(ram.view().read::<u32>(end).unwrap(), 0);
        ram.view().write(end, &7u32).unwrap();
        assert_eq!(ram.view().read::<u32>(end).unwrap(), 7);
    }

    #[test]
    fn more_than_the_host_has_is_an_error() {
        assert!(Ram::new(NonZeroUsize::new(1 << 60).unwrap()).is_err());
    }
}
