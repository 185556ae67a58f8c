//! io_uring with operations that own their memory.

#![allow(unsafe_code, reason = "the kernel is handed addresses")]

use core::fmt;
use std::boxed::Box;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::vec;
use std::vec::Vec;

use io_uring::{IoUring, opcode, squeue, types};

use super::lease::{NOWHERE, gather};
use super::{Extent, Lease, Page};

/// What to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill the lease's targets from the file.
    Read(Extent),
    /// Put the lease's sources into the file.
    Write(Extent),
    /// Make durable what was written and completed before (fdatasync). The lease's memory is not
    /// used.
    Sync,
    /// Give back the space of a stretch of the file, which then reads as zeroes (the punched hole
    /// of fallocate). The lease's memory is not used.
    Discard {
        /// Where it begins, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// An operation that was not started. The lease comes back.
#[derive(Debug)]
pub enum Refused<L> {
    /// As many operations are in flight as may be.
    Full(L),
    /// The lease has no bytes where the operation wants to work.
    NoMemory(L),
}

/// An operation that is over.
#[derive(Debug)]
pub struct Completion<L> {
    /// What the operation was called when it was started.
    pub tag: u32,
    /// How many bytes were transferred, which can be fewer than asked for (at the end of the file,
    /// when a file system gives up half-way, when the memory is in too many pieces), or the host's
    /// error.
    pub result: io::Result<usize>,
    /// The memory.
    pub lease: L,
}

/// An io_uring for one file.
///
/// Operations are [started](Uring::start), which only queues them; [submitted](Uring::submit) to
/// the kernel, any number with one system call; and [completed](Uring::complete), without one.
/// The ring's descriptor ([`AsFd`]) is readable while completions wait, so it can be bound as an
/// interrupt.
///
/// It may be used from one thread after another. It may not be from several at once, which the
/// `&mut` in its methods says. An operation belongs to the thread that submitted it: should that
/// one end, the kernel may cancel the operation, which then completes with `ECANCELED`.
///
/// Dropping it submits what is queued and waits for all that is in flight.
///
/// # Kernel features
/// Linux 5.10 suffices. Completions are not deferred to whichever system call the submitting
/// thread makes next (`COOP_TASKRUN`, `DEFER_TASKRUN`): tasks migrate between threads, so that
/// call may be long in coming, or be made by a thread that waits for this very completion.
pub struct Uring<L: Lease> {
    ring: IoUring,
    file: Handle,
    slots: Box<[Slot<L>]>,
    free: Vec<u16>,
    /// `vectors` for each slot, in the order of slots.
    iovecs: Box<[libc::iovec]>,
    vectors: usize,
    buffers: Box<[Option<L::Page>]>,
    /// Queued, and not submitted yet.
    queued: usize,
}

struct Slot<L> {
    tag: u32,
    lease: Option<L>,
}

/// The file, by number in the ring's own table where the kernel lets us, and open in any case.
struct Handle {
    file: File,
    registered: bool,
}

// SAFETY: the addresses in `iovecs`, which alone keep this from being `Send` by itself, are of
// memory that may be used from any thread (`View` is `Send`); all else is `Send`, leases and pages
// by the bounds of `Lease`.
unsafe impl<L: Lease> Send for Uring<L> {}

impl<L: Lease> Uring<L> {
    /// A ring for `file` with room for `depth` operations in flight, in up to `vectors` separate
    /// pieces of memory each, and for `buffers` registered buffers (none, should the kernel not
    /// have sparse tables: Linux 5.19).
    ///
    /// # Errors
    /// The host's: io_uring may be forbidden (`EPERM`) or absent (`ENOSYS`), or memory locked by
    /// the user's limit.
    ///
    /// # Panics
    /// If `vectors` is zero.
    pub fn new(file: File, depth: u16, vectors: usize, buffers: u16) -> io::Result<Self> {
        assert!(vectors > 0, "operations without memory");
        let depth = depth.clamp(1, 1 << 12);
        let ring = IoUring::builder()
            .setup_clamp()
            .build(u32::from(depth).next_power_of_two())?;
        let depth = depth.min(u16::try_from(ring.params().sq_entries()).unwrap_or(u16::MAX));
        let registered = ring.submitter().register_files(&[file.as_raw_fd()]).is_ok();
        let buffers = match buffers {
            0 => 0,
            _ if ring
                .submitter()
                .register_buffers_sparse(buffers.into())
                .is_ok() =>
            {
                buffers
            }
            _ => 0,
        };
        Ok(Uring {
            ring,
            file: Handle { file, registered },
            slots: (0..depth)
                .map(|_| Slot {
                    tag: 0,
                    lease: None,
                })
                .collect(),
            free: (0..depth).rev().collect(),
            iovecs: vec![NOWHERE; usize::from(depth) * vectors].into(),
            vectors,
            buffers: (0..buffers).map(|_| None).collect(),
            queued: 0,
        })
    }

    /// How many operations may be in flight.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// How many operations were started and not completed.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many places the table of registered buffers has.
    pub fn buffers(&self) -> u16 {
        // Made from a `u16`.
        self.buffers.len() as u16
    }

    /// Puts `page` into the table of registered buffers, so that operations on it spare the kernel
    /// the search for its pages. It stays mapped until [`Uring::unregister`] gives it back.
    ///
    /// # Errors
    /// The page comes back if the place does not exist or is taken, or the kernel does not want
    /// it (the user's limit of locked memory, say): operations go without.
    pub fn register(&mut self, place: u16, page: L::Page) -> Result<(), L::Page> {
        let Some(entry @ None) = self.buffers.get_mut(usize::from(place)) else {
            return Err(page);
        };
        // Where it stays before its address is taken: its bytes may be part of it.
        let view = entry.insert(page).view();
        let vector = libc::iovec {
            iov_base: view.as_ptr().cast(),
            iov_len: view.len(),
        };
        // SAFETY: the page is kept in `buffers`, and so mapped, while it is registered.
        let registered = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(place.into(), &[vector], None)
        };
        match registered {
            Ok(()) => Ok(()),
            Err(_) => entry.take().map_or(Ok(()), Err),
        }
    }

    /// Takes a page out of the table of registered buffers. Operations in flight on it go on; the
    /// kernel keeps its own hold of the page for them.
    pub fn unregister(&mut self, place: u16) -> Option<L::Page> {
        let page = self.buffers.get_mut(usize::from(place))?.take()?;
        // SAFETY: an empty vector names no memory.
        let unregistered = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(place.into(), &[NOWHERE], None)
        };
        debug_assert!(unregistered.is_ok(), "a place of our own can be emptied");
        Some(page)
    }

    /// Queues `operation` under the name `tag`, which the completion will bear. The kernel hears of
    /// it with the next [`Uring::submit`].
    pub fn start(&mut self, tag: u32, operation: Operation, lease: L) -> Result<(), Refused<L>> {
        let Some(&index) = self.free.last() else {
            return Err(Refused::Full(lease));
        };
        let number = usize::from(index);
        let slot = &mut self.slots[number];
        slot.tag = tag;
        // First the lease comes to rest; only then are addresses taken from it.
        let lease = &*slot.lease.insert(lease);
        let iovecs = &mut self.iovecs[number * self.vectors..][..self.vectors];
        let buffer = lease
            .registered()
            .filter(|&place| matches!(self.buffers.get(usize::from(place)), Some(Some(_))));
        let entry = match operation {
            Operation::Read(extent) => {
                let (used, _) = gather(lease.targets(), extent.skip, extent.len, iovecs);
                self.file.read(&iovecs[..used], extent.offset, buffer)
            }
            Operation::Write(extent) => {
                let (used, _) = gather(lease.sources(), extent.skip, extent.len, iovecs);
                self.file.write(&iovecs[..used], extent.offset, buffer)
            }
            Operation::Sync => Some(self.file.sync()),
            Operation::Discard { offset, len } => Some(self.file.discard(offset, len)),
        };
        let Some(entry) = entry else {
            return Err(Refused::NoMemory(take(slot)));
        };
        // SAFETY: the addresses are of views that the lease vouches for as long as it exists and
        // is borrowed. It rests in a slot of a boxed slice, and is only borrowed, until its
        // completion was reaped (`complete`); the slots outlive the operation also when `self` is
        // dropped (`Drop`) or forgotten. The vectors rest in a boxed slice, in a part that only
        // this slot writes. The file stays open in `self.file`, which is dropped after the wait.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(index.into())) };
        if pushed.is_err() {
            // Only possible when the kernel did not take what was submitted.
            return Err(Refused::Full(take(slot)));
        }
        self.free.pop();
        self.queued += 1;
        Ok(())
    }

    /// Hands all that is queued to the kernel, with one system call; with none if nothing is.
    ///
    /// # Errors
    /// The host's. What was not taken stays queued; `EAGAIN` and `EBUSY` say that a later attempt
    /// may fare better.
    pub fn submit(&mut self) -> io::Result<()> {
        while self.queued > 0 {
            match self.ring.submit() {
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(taken) => self.queued = self.queued.saturating_sub(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a completion, if there is one. No system call is made.
    pub fn complete(&mut self) -> Option<Completion<L>> {
        let entry = self.ring.completion().next()?;
        let index = u16::try_from(entry.user_data()).ok()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        let lease = slot.lease.take()?;
        self.free.push(index);
        Some(Completion {
            tag: slot.tag,
            result: usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().wrapping_neg())),
            lease,
        })
    }

    /// Submits what is queued and blocks the thread until a completion waits to be taken, or
    /// nothing is in flight.
    ///
    /// # Errors
    /// As [`Uring::submit`].
    pub fn wait(&mut self) -> io::Result<()> {
        self.submit()?;
        while self.in_flight() > 0 && self.ring.completion().is_empty() {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    /// Submits and reaps until nothing is in flight.
    fn drain(&mut self) -> io::Result<()> {
        while self.in_flight() > 0 {
            match self.wait() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::yield_now();
                }
                outcome => outcome?,
            }
            while self.complete().is_some() {}
        }
        Ok(())
    }
}

/// Takes back the lease of an operation that the kernel has not heard of.
fn take<L>(slot: &mut Slot<L>) -> L {
    slot.lease
        .take()
        .expect("a lease that was put there just now")
}

impl<L: Lease> Drop for Uring<L> {
    fn drop(&mut self) {
        if let Err(error) = self.drain() {
            // The kernel may still write there: lose the memory rather than reuse it.
            log::error!("an io_uring cannot be waited for, its memory is lost: {error}");
            core::mem::forget(core::mem::take(&mut self.slots));
            core::mem::forget(core::mem::take(&mut self.iovecs));
        }
    }
}

impl<L: Lease> AsFd for Uring<L> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open as long as it lives, and is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl<L: Lease> fmt::Debug for Uring<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("file", &self.file.file)
            .field("depth", &self.depth())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// Builds an entry for a registered file, or for a plain one: the crate has a type for each.
macro_rules! on_file {
    ($handle:expr, |$file:ident| $entry:expr) => {
        if $handle.registered {
            let $file = types::Fixed(0);
            $entry
        } else {
            let $file = types::Fd($handle.file.as_raw_fd());
            $entry
        }
    };
}

impl Handle {
    fn read(&self, to: &[libc::iovec], at: u64, buffer: Option<u16>) -> Option<squeue::Entry> {
        Some(on_file!(self, |file| match (to, buffer) {
            ([], _) => return None,
            ([one], Some(buffer)) => {
                let len = u32::try_from(one.iov_len).ok()?;
                opcode::ReadFixed::new(file, one.iov_base.cast(), len, buffer)
                    .offset(at)
                    .build()
            }
            // As many vectors as were asked for in `Uring::new`, far below 2^32.
            _ => opcode::Readv::new(file, to.as_ptr(), to.len() as u32)
                .offset(at)
                .build(),
        }))
    }

    fn write(&self, from: &[libc::iovec], at: u64, buffer: Option<u16>) -> Option<squeue::Entry> {
        Some(on_file!(self, |file| match (from, buffer) {
            ([], _) => return None,
            ([one], Some(buffer)) => {
                let len = u32::try_from(one.iov_len).ok()?;
                opcode::WriteFixed::new(file, one.iov_base.cast(), len, buffer)
                    .offset(at)
                    .build()
            }
            _ => opcode::Writev::new(file, from.as_ptr(), from.len() as u32)
                .offset(at)
                .build(),
        }))
    }

    fn sync(&self) -> squeue::Entry {
        on_file!(self, |file| opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build())
    }

    fn discard(&self, offset: u64, len: u64) -> squeue::Entry {
        on_file!(self, |file| opcode::Fallocate::new(file, len)
            .offset(offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build())
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    use std::sync::mpsc;
    use std::thread;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;
    use crate::host::lease::tests::Pieces;
    use crate::memory::Scratch;

    /// A file without a name, of `len` bytes that count up.
    fn counting_file(len: usize) -> File {
        let name = c"uring";
        let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(fd);
        file.write_all_at(&counting(len), 0).unwrap();
        file
    }

    fn counting(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 16 + i) as u8).collect()
    }

    fn extent(offset: u64, len: usize) -> Extent {
        Extent {
            offset,
            skip: 0,
            len,
        }
    }

    fn finish(uring: &mut Uring<Pieces>) -> Completion<Pieces> {
        uring.wait().unwrap();
        uring.complete().unwrap()
    }

    #[test]
    fn a_read_fills_the_pieces_in_order_and_gives_the_lease_back() {
        let file = counting_file(8192);
        let mut uring = Uring::new(file, 4, 4, 0).unwrap();
        let lease = Pieces {
            memory: Scratch::new(4096),
            pieces: vec![(2048, 512), (0, 512)],
            slot: None,
        };
        uring
            .start(9, Operation::Read(extent(1024, 1024)), lease)
            .unwrap();
        let done = finish(&mut uring);
        assert_eq!((done.tag, done.result.unwrap()), (9, 1024));
        let expected = counting(8192);
        let bytes = done.lease.bytes();
        assert_eq!(bytes[2048..2560], expected[1024..1536]);
        assert_eq!(bytes[..512], expected[1536..2048]);
        assert!(bytes[512..2048].iter().all(|&byte| byte == 0));
        assert_eq!(uring.in_flight(), 0);
    }

    #[test]
    fn a_write_lands_in_the_file_and_a_sync_completes() {
        let file = counting_file(4096);
        let mut uring = Uring::new(file.try_clone().unwrap(), 4, 4, 0).unwrap();
        let bytes = [0xa5; 512];
        uring
            .start(
                1,
                Operation::Write(extent(512, 512)),
                Pieces::holding(&bytes),
            )
            .unwrap();
        assert_eq!(finish(&mut uring).result.unwrap(), 512);
        uring.start(2, Operation::Sync, Pieces::whole(1)).unwrap();
        let done = finish(&mut uring);
        assert_eq!((done.tag, done.result.unwrap()), (2, 0));
        let mut back = vec![0; 4096];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back[512..1024], bytes);
        assert_eq!(back[..512], counting(512)[..]);
    }

    #[test]
    fn a_read_across_the_end_of_the_file_is_short() {
        let mut uring = Uring::new(counting_file(1024), 4, 4, 0).unwrap();
        uring
            .start(1, Operation::Read(extent(512, 1024)), Pieces::whole(1024))
            .unwrap();
        assert_eq!(finish(&mut uring).result.unwrap(), 512);
    }

    #[test]
    fn more_pieces_than_vectors_make_a_short_transfer_that_can_be_continued() {
        let mut uring = Uring::new(counting_file(4096), 4, 2, 0).unwrap();
        let lease = Pieces {
            memory: Scratch::new(4096),
            pieces: vec![(0, 512), (1024, 512), (2048, 512)],
            slot: None,
        };
        uring
            .start(1, Operation::Read(extent(0, 1536)), lease)
            .unwrap();
        let done = finish(&mut uring);
        assert_eq!(done.result.unwrap(), 1024);
        let rest = Extent {
            offset: 1024,
            skip: 1024,
            len: 512,
        };
        uring.start(1, Operation::Read(rest), done.lease).unwrap();
        let done = finish(&mut uring);
        assert_eq!(done.result.unwrap(), 512);
        assert_eq!(done.lease.bytes()[2048..2560], counting(4096)[1024..1536]);
    }

    #[test]
    fn an_operation_on_a_closed_range_reports_the_hosts_error() {
        let (read_end, _write_end) = nix::unistd::pipe().unwrap();
        let mut uring = Uring::new(File::from(read_end), 4, 4, 0).unwrap();
        uring
            .start(1, Operation::Write(extent(0, 16)), Pieces::whole(16))
            .unwrap();
        let error = finish(&mut uring).result.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_full_ring_refuses_and_returns_the_lease() {
        let mut uring = Uring::new(counting_file(4096), 2, 1, 0).unwrap();
        let read = Operation::Read(extent(0, 16));
        uring.start(1, read, Pieces::whole(16)).unwrap();
        uring.start(2, read, Pieces::whole(16)).unwrap();
        let lease = match uring.start(3, read, Pieces::holding(&[7; 16])) {
            Err(Refused::Full(lease)) => lease,
            other => panic!("{other:?}"),
        };
        assert_eq!(lease.bytes(), [7; 16]);
        finish(&mut uring);
        uring.start(3, read, lease).unwrap();
    }

    #[test]
    fn a_lease_without_memory_is_refused() {
        let mut uring = Uring::new(counting_file(4096), 2, 1, 0).unwrap();
        let past = Extent {
            offset: 0,
            skip: 16,
            len: 16,
        };
        let refused = uring.start(1, Operation::Read(past), Pieces::whole(16));
        assert!(matches!(refused, Err(Refused::NoMemory(_))), "{refused:?}");
        assert_eq!(uring.in_flight(), 0);
    }

    #[test]
    fn a_registered_buffer_is_read_and_written_through() {
        let file = counting_file(8192);
        let mut uring = Uring::new(file.try_clone().unwrap(), 4, 1, 2).unwrap();
        if uring.buffers() == 0 {
            return; // a kernel before 5.19
        }
        let memory = Scratch::new(4096);
        uring.register(1, memory.clone()).unwrap();
        assert!(uring.register(1, memory.clone()).is_err(), "taken");
        assert!(uring.register(2, memory.clone()).is_err(), "not there");
        let lease = Pieces {
            memory,
            pieces: vec![(512, 1024)],
            slot: Some(1),
        };
        uring
            .start(1, Operation::Read(extent(4096, 1024)), lease)
            .unwrap();
        let done = finish(&mut uring);
        assert_eq!(done.result.unwrap(), 1024);
        assert_eq!(done.lease.bytes()[512..1536], counting(8192)[4096..5120]);
        uring
            .start(2, Operation::Write(extent(0, 1024)), done.lease)
            .unwrap();
        let done = finish(&mut uring);
        assert_eq!(done.result.unwrap(), 1024);
        let mut back = [0; 1024];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back[..], counting(8192)[4096..5120]);
        // The hint is stale from here on, and nothing but speed depends on it.
        assert!(uring.unregister(1).is_some());
        assert!(uring.unregister(1).is_none());
        uring
            .start(3, Operation::Read(extent(0, 1024)), done.lease)
            .unwrap();
        assert_eq!(finish(&mut uring).result.unwrap(), 1024);
    }

    #[test]
    fn memory_outside_of_the_registered_buffer_is_an_error_and_not_touched() {
        let mut uring = Uring::new(counting_file(4096), 4, 1, 1).unwrap();
        if uring.buffers() == 0 {
            return;
        }
        uring.register(0, Scratch::new(4096)).unwrap();
        let elsewhere = Pieces {
            slot: Some(0),
            ..Pieces::whole(512)
        };
        uring
            .start(1, Operation::Read(extent(0, 512)), elsewhere)
            .unwrap();
        let done = finish(&mut uring);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        assert!(done.lease.bytes().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn dropping_a_ring_finishes_what_was_started() {
        let file = counting_file(4096);
        let mut uring = Uring::new(file.try_clone().unwrap(), 8, 1, 0).unwrap();
        for block in 0..8u8 {
            let lease = Pieces::holding(&[block; 512]);
            let at = extent(u64::from(block) * 512, 512);
            uring.start(0, Operation::Write(at), lease).unwrap();
        }
        drop(uring);
        let mut back = vec![0; 4096];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(
            back.iter()
                .enumerate()
                .all(|(i, &b)| usize::from(b) == i / 512)
        );
    }

    /// Submits on one thread, which goes on to compute and makes no system call; waits on another.
    #[test]
    fn an_edge_is_seen_for_each_batch_while_the_submitting_thread_computes() {
        let path = std::env::temp_dir().join(std::format!("uring-{}", std::process::id()));
        std::fs::write(&path, counting(1 << 16)).unwrap();
        // Not from the page cache, where a file system allows it: a completion that comes later.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .or_else(|_| File::open(&path))
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut uring = Uring::<Pieces>::new(file, 8, 1, 0).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(uring.as_fd(), edge).unwrap();

        let (to_worker, work) = mpsc::sync_channel::<Uring<Pieces>>(1);
        let (to_waiter, submitted) = mpsc::sync_channel(1);
        let worker = thread::spawn(move || {
            loop {
                let mut uring = match work.try_recv() {
                    Ok(uring) => uring,
                    Err(mpsc::TryRecvError::Empty) => {
                        core::hint::spin_loop();
                        continue;
                    }
                    Err(mpsc::TryRecvError::Disconnected) => return,
                };
                for tag in 0..4 {
                    let at = extent(u64::from(tag) * 4096, 4096);
                    let lease = Pieces::whole(4096);
                    uring.start(tag, Operation::Read(at), lease).unwrap();
                }
                uring.submit().unwrap();
                to_waiter.send(uring).unwrap();
            }
        });
        for _ in 0..50 {
            to_worker.send(uring).unwrap();
            uring = submitted.recv().unwrap();
            let mut seen = 0;
            while seen < 4 {
                let mut events = [EpollEvent::empty()];
                // Ten seconds are not a measure of speed: the event comes, or it is lost.
                let timeout = EpollTimeout::try_from(Duration::from_secs(10)).unwrap();
                match epoll.wait(&mut events, timeout) {
                    Ok(0) => panic!("completions came without an edge"),
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => panic!("{error}"),
                }
                while let Some(done) = uring.complete() {
                    assert_eq!(done.result.unwrap(), 4096);
                    seen += 1;
                }
            }
        }
        drop(to_worker);
        worker.join().unwrap();
    }
}
