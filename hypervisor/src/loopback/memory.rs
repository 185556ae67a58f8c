//! A domain's memory: one memfd, mapped whole, handed out by the page.

#![allow(
    unsafe_code,
    reason = "pages of a memfd become views, and scattered ones a run"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock};

use buddy_system_allocator::FrameAllocator;
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::memory::{PAGE_SIZE, ReadOnly, View};
use crate::seam::{self, Access, OutOfMemory};
use crate::wait::lock;

/// All of a domain's memory. It lives as long as anybody maps a page of it.
pub(super) struct DomainMemory {
    file: OwnedFd,
    writable: MmapRaw,
    /// Made when the first page is mapped read-only: a writer through it would be stopped by the
    /// processor, and so is the host kernel.
    readable: OnceLock<MmapRaw>,
    frames: u32,
    free: Mutex<FrameAllocator<33>>,
}

impl DomainMemory {
    /// `frames` pages, of which the first `reserved` are never handed out.
    pub(super) fn new(name: &str, frames: u32, reserved: u32) -> io::Result<Arc<Self>> {
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        let bytes = frames as usize * PAGE_SIZE;
        nix::unistd::ftruncate(&file, bytes as i64)?;
        let writable = MmapOptions::new().len(bytes).map_raw(&file)?;
        let mut free = FrameAllocator::new();
        free.add_frame(reserved as usize, frames as usize);
        Ok(Arc::new(DomainMemory {
            file,
            writable,
            readable: OnceLock::new(),
            frames,
            free: Mutex::new(free),
        }))
    }

    /// How many pages the domain has.
    pub(super) fn frames(&self) -> u32 {
        self.frames
    }

    fn start(map: &MmapRaw, frame: u32) -> NonNull<u8> {
        NonNull::new(map.as_mut_ptr().wrapping_add(frame as usize * PAGE_SIZE))
            .unwrap_or(NonNull::dangling())
    }

    /// The `count` pages from `first` on, all of them the domain's.
    pub(super) fn view(&self, first: u32, count: u32) -> View<'_> {
        assert!(
            first <= self.frames && count <= self.frames - first,
            "frames {first}+{count} are not the domain's"
        );
        // SAFETY: the range was just found inside the mapping, which lives as long as `self` and
        // is accessed only through views.
        unsafe {
            View::from_raw(
                Self::start(&self.writable, first),
                count as usize * PAGE_SIZE,
            )
        }
    }

    pub(super) fn allocate(self: &Arc<Self>, count: usize) -> Result<Pages, OutOfMemory> {
        let none = OutOfMemory { count };
        if count == 0 || count > self.frames as usize {
            return Err(none);
        }
        let first = lock(&self.free).alloc(count).ok_or(none)?;
        // Both fit: the allocator only knows numbers below `frames`.
        let (first, count) = (first as u32, count as u32);
        self.view(first, count).zero();
        Ok(Pages(Arc::new(Run {
            memory: Arc::clone(self),
            first,
            count,
            allocated: true,
        })))
    }

    /// One of the pages that are never handed out.
    pub(super) fn reserved(self: &Arc<Self>, frame: u32) -> Pages {
        Pages(Arc::new(Run {
            memory: Arc::clone(self),
            first: frame,
            count: 1,
            allocated: false,
        }))
    }

    /// Maps the pages of `frames`, all of them the domain's, as one run in that order.
    pub(super) fn map(self: &Arc<Self>, frames: &[u32], access: Access) -> io::Result<Region> {
        let run = frames
            .windows(2)
            .all(|pair| pair[0].checked_add(1) == Some(pair[1]));
        let len = frames.len() * PAGE_SIZE;
        let start = match frames.first() {
            Some(&first) if run => match access {
                Access::ReadWrite => Self::start(&self.writable, first),
                Access::ReadOnly => Self::start(self.readable()?, first),
            },
            _ => return Stitched::new(self, frames, access).map(Region::from),
        };
        Ok(Region {
            start,
            len,
            access,
            _owner: RegionOwner::Domain(Arc::clone(self)),
        })
    }

    fn readable(&self) -> io::Result<&MmapRaw> {
        if self.readable.get().is_none() {
            let map = MmapOptions::new()
                .len(self.frames as usize * PAGE_SIZE)
                .map_raw_read_only(&self.file)?;
            // Another thread may have been faster; then its mapping serves as well.
            let _ = self.readable.set(map);
        }
        self.readable
            .get()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

struct Run {
    memory: Arc<DomainMemory>,
    first: u32,
    count: u32,
    /// Whether the allocator gave it, and wants it back.
    allocated: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.allocated {
            return;
        }
        lock(&self.memory.free).dealloc(self.first as usize, self.count as usize);
    }
}

/// Pages of a loopback domain. Clones share them; the last gives them back.
#[derive(Clone)]
pub struct Pages(Arc<Run>);

impl Pages {
    pub(super) fn frames(&self) -> std::ops::Range<u32> {
        self.0.first..self.0.first + self.0.count
    }

    pub(super) fn is_of(&self, memory: &Arc<DomainMemory>) -> bool {
        Arc::ptr_eq(&self.0.memory, memory)
    }
}

impl seam::Pages for Pages {
    #[inline]
    fn view(&self) -> View<'_> {
        self.0.memory.view(self.0.first, self.0.count)
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({:?})", self.frames())
    }
}

/// A run of another domain's pages in our address space.
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
    access: Access,
    _owner: RegionOwner,
}

enum RegionOwner {
    Domain(#[allow(dead_code, reason = "held so that the memory stays mapped")] Arc<DomainMemory>),
    Stitched(#[allow(dead_code, reason = "held so that the memory stays mapped")] Stitched),
}

// SAFETY: a region is an address and what keeps it mapped; the bytes are only accessed through
// views.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl Region {
    #[inline]
    pub(super) fn view(&self) -> View<'_, ReadOnly> {
        // SAFETY: `_owner` keeps the bytes mapped, for reading at least.
        unsafe { View::from_raw(self.start, self.len) }
    }

    #[inline]
    pub(super) fn view_mut(&self) -> Option<View<'_>> {
        // SAFETY: `_owner` keeps the bytes mapped, and for writing, since access says so.
        (self.access == Access::ReadWrite).then(|| unsafe { View::from_raw(self.start, self.len) })
    }
}

impl From<Stitched> for Region {
    fn from(stitched: Stitched) -> Self {
        Region {
            start: stitched.start,
            len: stitched.len,
            access: stitched.access,
            _owner: RegionOwner::Stitched(stitched),
        }
    }
}

/// Pages that are not neighbours, mapped as if they were.
struct Stitched {
    start: NonNull<u8>,
    len: usize,
    access: Access,
}

impl Stitched {
    fn new(memory: &DomainMemory, frames: &[u32], access: Access) -> io::Result<Self> {
        let len = frames.len() * PAGE_SIZE;
        // SAFETY: a fresh reservation at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stitched = Stitched {
            start: NonNull::new(at.cast()).ok_or_else(io::Error::last_os_error)?,
            len,
            access,
        };
        let protection = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        for (index, &frame) in frames.iter().enumerate() {
            // SAFETY: replaces one page of the reservation above, which nobody else knows yet.
            let page = unsafe {
                libc::mmap(
                    at.byte_add(index * PAGE_SIZE),
                    PAGE_SIZE,
                    protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    memory.file.as_raw_fd(),
                    frame as i64 * PAGE_SIZE as i64,
                )
            };
            if page == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(stitched)
    }
}

impl Drop for Stitched {
    fn drop(&mut self) {
        // SAFETY: the range was reserved in `new`, and its last view is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::Pages as _;

    #[test]
    fn pages_come_zeroed_also_when_used_before() {
        let memory = DomainMemory::new("test", 64, 8).unwrap();
        let pages = memory.allocate(3).unwrap();
        assert!(
            pages.frames().start >= 8,
            "reserved frames are not handed out"
        );
        pages.view().write_bytes(100, &[7; 5000]).unwrap();
        drop(pages);
        for _ in 0..20 {
            let pages = memory.allocate(3).unwrap();
            let mut all = [1; 3 * PAGE_SIZE];
            pages.view().read_bytes(0, &mut all).unwrap();
            assert!(all.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn memory_runs_out_with_an_error_and_comes_back() {
        let memory = DomainMemory::new("test", 16, 4).unwrap();
        assert!(memory.allocate(0).is_err());
        assert!(memory.allocate(13).is_err());
        let all: Vec<_> = std::iter::from_fn(|| memory.allocate(1).ok()).collect();
        assert_eq!(all.len(), 12);
        drop(all);
        assert!(memory.allocate(8).is_ok());
    }

    #[test]
    fn scattered_frames_map_as_one_run_in_the_order_given() {
        let memory = DomainMemory::new("test", 16, 0).unwrap();
        for frame in 0..16 {
            memory.view(frame, 1).write(0, &frame).unwrap();
        }
        for frames in [&[5u32, 3, 9][..], &[4, 5, 6], &[7, 7]] {
            let region = memory.map(frames, Access::ReadWrite).unwrap();
            for (index, frame) in frames.iter().enumerate() {
                let seen: u32 = region.view().read(index * PAGE_SIZE).unwrap();
                assert_eq!(seen, *frame);
            }
            let view = region.view_mut().unwrap();
            view.write(8, &0xabcdu32).unwrap();
            let seen: u32 = memory.view(frames[0], 1).read(8).unwrap();
            assert_eq!(seen, 0xabcd);
            view.write(8, &0u32).unwrap();
        }
        let region = memory.map(&[2], Access::ReadOnly).unwrap();
        assert!(region.view_mut().is_none());
        assert_eq!(region.view().read::<u32>(0).unwrap(), 2);
    }
}
