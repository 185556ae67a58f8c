//! Disks that are reached by code that waits: done on threads.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::boxed::Box;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::vec;
use std::vec::Vec;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Completion, Extent, Lease, Operation, Refused};

/// How many bytes a thread moves at once. What is longer is done in pieces.
const BOUNCE: usize = 256 << 10;

/// A disk whose operations are over when the call returns. Any number of threads may use it at
/// once.
pub trait Disk: Send + Sync + 'static {
    /// Fills all of `to` from `offset` on.
    ///
    /// # Errors
    /// The host's.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes all of `from` at `offset`.
    ///
    /// # Errors
    /// The host's. Some of it may be written.
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Makes durable what was written and whose call had returned.
    ///
    /// # Errors
    /// The host's.
    fn sync(&self) -> io::Result<()>;

    /// Forgets `len` bytes at `offset`, which then read as zeroes.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// A few threads that do the operations of one queue on a [`Disk`].
///
/// It is used as a [`Uring`](super::Uring) is: operations are [started](Workers::start), which only
/// queues them, [submitted](Workers::submit) to the threads, and [completed](Workers::complete).
/// The descriptor ([`AsFd`]) is readable while completions wait.
///
/// Bytes go through a buffer of the thread's own: a disk gets slices, which a guest's memory never
/// is. Dropping it waits for all that was started.
pub struct Workers<L: Lease> {
    shared: Arc<Shared<L>>,
    threads: Vec<JoinHandle<()>>,
    /// Started, and not submitted yet.
    staged: Vec<Task<L>>,
    /// Taken from the threads, and not completed yet.
    ready: VecDeque<Completion<L>>,
    depth: usize,
    in_flight: usize,
}

struct Task<L> {
    tag: u32,
    operation: Operation,
    lease: L,
}

struct Shared<L> {
    disk: Arc<dyn Disk>,
    queues: Mutex<Queues<L>>,
    /// There are tasks, or there never will be any more.
    changed: Condvar,
    /// Whether `event` says that completions wait.
    signalled: AtomicBool,
    event: EventFd,
}

struct Queues<L> {
    tasks: VecDeque<Task<L>>,
    done: VecDeque<Completion<L>>,
    /// Threads that wait for a task.
    idle: usize,
    over: bool,
}

impl<L: Lease> Workers<L> {
    /// `threads` threads, at least one, for up to `depth` operations in flight on `disk`.
    ///
    /// # Errors
    /// The host's, when it has no thread or no descriptor to give.
    pub fn new(disk: Arc<dyn Disk>, threads: usize, depth: u16) -> io::Result<Self> {
        let depth = usize::from(depth.max(1));
        let shared = Arc::new(Shared {
            disk,
            queues: Mutex::new(Queues {
                tasks: VecDeque::with_capacity(depth),
                done: VecDeque::with_capacity(depth),
                idle: 0,
                over: false,
            }),
            changed: Condvar::new(),
            signalled: AtomicBool::new(false),
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let mut workers = Workers {
            shared,
            threads: Vec::new(),
            staged: Vec::with_capacity(depth),
            ready: VecDeque::with_capacity(depth),
            depth,
            in_flight: 0,
        };
        for _ in 0..threads.clamp(1, depth) {
            let shared = Arc::clone(&workers.shared);
            let thread = thread::Builder::new().name("disk".into());
            workers.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(workers)
    }

    /// How many operations may be in flight.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Queues `operation` under the name `tag`, which the completion will bear. The threads hear of
    /// it with the next [`Workers::submit`].
    pub fn start(&mut self, tag: u32, operation: Operation, lease: L) -> Result<(), Refused<L>> {
        if self.in_flight == self.depth {
            return Err(Refused::Full(lease));
        }
        self.in_flight += 1;
        self.staged.push(Task {
            tag,
            operation,
            lease,
        });
        Ok(())
    }

    /// Hands all that is queued to the threads.
    pub fn submit(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut queues = self.shared.lock();
        let wanted = self.staged.len().min(queues.idle);
        queues.tasks.extend(self.staged.drain(..));
        drop(queues);
        for _ in 0..wanted {
            self.shared.changed.notify_one();
        }
    }

    /// Takes a completion, if there is one.
    pub fn complete(&mut self) -> Option<Completion<L>> {
        if self.ready.is_empty() && self.shared.signalled.swap(false, Ordering::AcqRel) {
            // Before the completions are taken: what comes after them is signalled again.
            let _ = self.shared.event.read();
            core::mem::swap(&mut self.ready, &mut self.shared.lock().done);
        }
        let completion = self.ready.pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }
}

impl<L: Lease> Drop for Workers<L> {
    fn drop(&mut self) {
        self.submit();
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in the disk's code was caught and told already.
            let _ = thread.join();
        }
    }
}

impl<L: Lease> AsFd for Workers<L> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl<L: Lease> fmt::Debug for Workers<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &self.threads.len())
            .field("depth", &self.depth)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl<L: Lease> Shared<L> {
    /// Whole at all times: nothing in between can panic.
    fn lock(&self) -> MutexGuard<'_, Queues<L>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does until there will be no more tasks.
    fn work(&self) {
        let mut bounce: Box<[u8]> = vec![0; BOUNCE].into();
        while let Some(Task {
            tag,
            operation,
            lease,
        }) = self.next()
        {
            let run = AssertUnwindSafe(|| run(&*self.disk, operation, &lease, &mut bounce));
            let result = catch_unwind(run).unwrap_or_else(|_| {
                log::error!("a disk's {operation:?} panicked: it is answered as an error");
                Err(io::Error::other("the disk's code panicked"))
            });
            self.lock()
                .done
                .push_back(Completion { tag, result, lease });
            if !self.signalled.swap(true, Ordering::AcqRel) {
                // Cannot fail: it would have to overflow.
                let _ = self.event.write(1);
            }
        }
    }

    fn next(&self) -> Option<Task<L>> {
        let mut queues = self.lock();
        loop {
            if let Some(task) = queues.tasks.pop_front() {
                return Some(task);
            }
            if queues.over {
                return None;
            }
            queues.idle += 1;
            queues = self
                .changed
                .wait(queues)
                .unwrap_or_else(PoisonError::into_inner);
            queues.idle -= 1;
        }
    }
}

/// Does all of it, or fails. How many bytes that were.
fn run<L: Lease>(
    disk: &dyn Disk,
    operation: Operation,
    lease: &L,
    bounce: &mut [u8],
) -> io::Result<usize> {
    match operation {
        Operation::Read(extent) => in_pieces(extent, bounce.len(), |offset, skip, len| {
            let bytes = bounce.get_mut(..len).unwrap_or_default();
            disk.read(offset, bytes)?;
            scatter(lease, skip, bytes)
        }),
        Operation::Write(extent) => in_pieces(extent, bounce.len(), |offset, skip, len| {
            let bytes = bounce.get_mut(..len).unwrap_or_default();
            collect(lease, skip, bytes)?;
            disk.write(offset, bytes)
        }),
        Operation::Sync => disk.sync().map(|()| 0),
        Operation::Discard { offset, len } => disk.discard(offset, len).map(|()| 0),
    }
}

fn in_pieces(
    extent: Extent,
    most: usize,
    mut piece: impl FnMut(u64, usize, usize) -> io::Result<()>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < extent.len {
        let len = most.min(extent.len - done);
        piece(extent.offset + done as u64, extent.skip + done, len)?;
        done += len;
    }
    Ok(done)
}

/// Puts `bytes` into the lease's memory, after the first `skip` bytes of that.
fn scatter<L: Lease>(lease: &L, mut skip: usize, mut bytes: &[u8]) -> io::Result<()> {
    for part in lease.targets() {
        let skipped = skip.min(part.len());
        skip -= skipped;
        let (now, rest) = bytes.split_at(bytes.len().min(part.len() - skipped));
        part.write_bytes(skipped, now).map_err(io::Error::other)?;
        bytes = rest;
        if bytes.is_empty() {
            return Ok(());
        }
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// Fills `bytes` from the lease's memory, after the first `skip` bytes of that.
fn collect<L: Lease>(lease: &L, mut skip: usize, mut bytes: &mut [u8]) -> io::Result<()> {
    for part in lease.sources() {
        let skipped = skip.min(part.len());
        skip -= skipped;
        let (now, rest) = bytes.split_at_mut(bytes.len().min(part.len() - skipped));
        part.read_bytes(skipped, now).map_err(io::Error::other)?;
        bytes = rest;
        if bytes.is_empty() {
            return Ok(());
        }
    }
    Err(io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;
    use crate::host::lease::tests::Pieces;
    use crate::memory::Scratch;

    /// Bytes behind a lock. A read at `BAD` panics, one at `SLOW` waits to be told to go on.
    struct Bytes {
        bytes: Mutex<Vec<u8>>,
        gate: Mutex<mpsc::Receiver<()>>,
    }

    const BAD: u64 = 1 << 40;
    const SLOW: u64 = 1 << 41;

    fn bytes(len: usize) -> (Arc<Bytes>, mpsc::Sender<()>) {
        let (open, gate) = mpsc::channel();
        let bytes = Bytes {
            bytes: Mutex::new(vec![0; len]),
            gate: Mutex::new(gate),
        };
        (Arc::new(bytes), open)
    }

    impl Disk for Bytes {
        fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
            assert!(offset != BAD, "as it is meant to");
            if offset == SLOW {
                self.gate.lock().unwrap().recv().unwrap();
                return Ok(());
            }
            let offset = offset as usize;
            to.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + to.len()]);
            Ok(())
        }

        fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
            let offset = offset as usize;
            self.bytes.lock().unwrap()[offset..offset + from.len()].copy_from_slice(from);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
            let offset = offset as usize;
            self.bytes.lock().unwrap()[offset..offset + len as usize].fill(0);
            Ok(())
        }
    }

    fn wait(workers: &mut Workers<Pieces>) -> Completion<Pieces> {
        workers.submit();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        epoll.add(workers.as_fd(), readable).unwrap();
        loop {
            if let Some(completion) = workers.complete() {
                return completion;
            }
            let mut event = [EpollEvent::empty()];
            epoll.wait(&mut event, EpollTimeout::NONE).unwrap();
        }
    }

    fn all(offset: u64, len: usize) -> Extent {
        Extent {
            offset,
            skip: 0,
            len,
        }
    }

    #[test]
    fn what_is_longer_than_a_buffer_is_moved_whole_and_in_order() {
        let len = 2 * BOUNCE + 1234;
        let (disk, _gate) = bytes(len);
        let mut workers = Workers::new(disk, 3, 4).unwrap();
        let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let write = Operation::Write(all(0, len));
        workers.start(1, write, Pieces::holding(&content)).unwrap();
        assert_eq!(wait(&mut workers).result.unwrap(), len);
        // Into pieces that are no neighbours, and not in order.
        let lease = Pieces {
            memory: Scratch::new(len),
            pieces: vec![(len - 1000, 1000), (0, len - 1000)],
            slot: None,
        };
        workers
            .start(2, Operation::Read(all(0, len)), lease)
            .unwrap();
        let read = wait(&mut workers);
        assert_eq!(read.tag, 2);
        let read = read.lease.bytes();
        assert_eq!(read[len - 1000..], content[..1000]);
        assert_eq!(read[..len - 1000], content[1000..]);
    }

    #[test]
    fn an_error_and_a_panic_are_the_operations_own() {
        let (disk, _gate) = bytes(512);
        let mut workers = Workers::new(disk, 1, 4).unwrap();
        workers.start(1, Operation::Sync, Pieces::whole(1)).unwrap();
        let error = wait(&mut workers).result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let bad = Operation::Read(all(BAD, 512));
        workers.start(2, bad, Pieces::whole(512)).unwrap();
        wait(&mut workers).result.unwrap_err();
        let good = Operation::Read(all(0, 512));
        workers.start(3, good, Pieces::whole(512)).unwrap();
        wait(&mut workers).result.unwrap();
    }

    #[test]
    fn there_are_no_more_in_flight_than_the_depth() {
        let (disk, gate) = bytes(512);
        let mut workers = Workers::new(disk, 2, 2).unwrap();
        for tag in 0..2 {
            let slow = Operation::Read(all(SLOW, 512));
            workers.start(tag, slow, Pieces::whole(512)).unwrap();
        }
        workers.submit();
        let more = workers.start(2, Operation::Sync, Pieces::whole(1));
        assert!(matches!(more, Err(Refused::Full(_))));
        gate.send(()).unwrap();
        wait(&mut workers);
        workers.start(2, Operation::Sync, Pieces::whole(1)).unwrap();
        gate.send(()).unwrap();
        for _ in 0..2 {
            wait(&mut workers);
        }
    }

    #[test]
    fn what_was_started_is_done_before_they_are_gone() {
        let (disk, _gate) = bytes(16 * 512);
        let mut workers = Workers::new(disk.clone(), 2, 16).unwrap();
        for tag in 0..16 {
            let write = Operation::Write(all(u64::from(tag) * 512, 512));
            workers
                .start(tag, write, Pieces::holding(&[7; 512]))
                .unwrap();
        }
        drop(workers);
        assert!(disk.bytes.lock().unwrap().iter().all(|&byte| byte == 7));
    }
}
