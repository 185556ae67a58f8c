//! A disk that many tasks share.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::ops::{Bound, Range, RangeBounds};
use core::sync::atomic::{AtomicU64, Ordering};

use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE};

use crate::buffer::{Buffer, BufferError, Pool, Route};
use crate::error::{Error, Gone};
use crate::info::Info;
use crate::mailbox::{Mailbox, Server, Ticket};
use crate::queue::Queue;
use crate::request::{Direction, Transfer, Work, fit, pieces};

/// A disk. Clones are handles of the same one; when the last is dropped it is closed.
///
/// Offsets and lengths must be multiples of [`Info::sector_size`], and within the disk; nothing
/// else is sent to the backend. Requests under way at the same time are done in any order, those
/// of one call included. A call that is too long for one request is split, with many under way.
///
/// Every future here may be dropped at any moment. What was sent by then is still done; the memory
/// it uses is kept until it is.
pub struct Disk<G: Guest>(Arc<Shared<G>>);

impl<G: Guest> Clone for Disk<G> {
    fn clone(&self) -> Self {
        Disk(Arc::clone(&self.0))
    }
}

struct Shared<G: Guest> {
    guest: G,
    route: Route,
    info: Info,
    /// The disk's size, which may change under way; `info` has what it was.
    sectors: AtomicU64,
    /// One for each queue, which is served by a task of its own.
    queues: Box<[Arc<Mailbox<G>>]>,
    /// For those who bring memory of their own, each as long as the longest request.
    pool: Pool<G>,
}

impl<G: Guest> Drop for Shared<G> {
    fn drop(&mut self) {
        self.close(Gone::Closed);
    }
}

impl<G: Guest> Shared<G> {
    fn close(&self, reason: Gone) {
        for queue in &self.queues {
            queue.close(reason);
        }
    }

    /// The queue for the next request.
    #[inline]
    fn queue(&self) -> &Mailbox<G> {
        self.queues.first().expect("a disk has a queue")
    }
}

impl<G: Guest> Disk<G> {
    /// Starts the task that serves `queue`, to which a backend is connected that described its
    /// disk by `info`.
    ///
    /// This is for those who have told the backend of the queue in their own way; see
    /// [`Disk::connect`].
    pub fn start(guest: &G, queue: Queue<G>, info: Info) -> Self {
        let (disk, server) = Disk::assemble(guest, queue, info);
        guest.spawn(async move { drop(server.run().await) });
        disk
    }

    /// A disk, and the server of its queue, which must run for anything to happen.
    pub(crate) fn assemble(guest: &G, queue: Queue<G>, info: Info) -> (Self, Server<G>) {
        let route = queue.route();
        let capacity = queue.capacity();
        let mailbox = Arc::new(Mailbox::new(capacity));
        let disk = Disk(Arc::new(Shared {
            guest: guest.clone(),
            route,
            info,
            sectors: AtomicU64::new(info.sectors),
            queues: Box::new([Arc::clone(&mailbox)]),
            pool: Pool::new(guest, route.backend, MAX_SEGMENTS_PER_REQUEST, capacity),
        }));
        (disk, Server::new(queue, mailbox))
    }

    /// What its tasks and its handles share, one for each queue.
    pub(crate) fn mailboxes(&self) -> Box<[Arc<Mailbox<G>>]> {
        self.0.queues.clone()
    }

    /// What kind of disk it is, and its present size.
    pub fn info(&self) -> Info {
        Info {
            sectors: self.0.sectors.load(Ordering::Relaxed),
            ..self.0.info
        }
    }

    /// Why the disk is no more, if so.
    pub fn gone(&self) -> Option<Gone> {
        self.0.queue().gone()
    }

    /// Ends the disk, for the first reason that is given: everything that is under way fails with
    /// it, and everything to come. A disk that was connected then takes leave of its backend in
    /// order.
    pub fn close(&self, reason: Gone) {
        self.0.close(reason);
    }

    /// Memory that requests of this disk can use without a copy.
    ///
    /// # Errors
    /// There is none.
    pub fn buffer(&self, pages: usize) -> Result<Buffer<G>, BufferError> {
        Buffer::new(&self.0.guest, self.0.route.backend, pages)
    }

    /// Reads into the bytes `range` of `buffer` from `sector` (of 512 bytes) on. The buffer comes
    /// back in any case; after an error the range has undefined content.
    pub async fn read(
        &self,
        sector: u64,
        buffer: Buffer<G>,
        range: impl RangeBounds<usize>,
    ) -> (Result<(), Error>, Buffer<G>) {
        let range = absolute(range, buffer.len());
        let result = self.move_range(Direction::Read, sector, &buffer, range);
        (result.await, buffer)
    }

    /// Writes the bytes `range` of `buffer` to the disk from `sector` (of 512 bytes) on. The buffer
    /// comes back in any case; after an error the sectors have undefined content.
    pub async fn write(
        &self,
        sector: u64,
        buffer: Buffer<G>,
        range: impl RangeBounds<usize>,
    ) -> (Result<(), Error>, Buffer<G>) {
        let range = absolute(range, buffer.len());
        let result = self.move_range(Direction::Write, sector, &buffer, range);
        (result.await, buffer)
    }

    /// Makes durable all writes that have completed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the disk has no cache to be flushed ([`Info::flush`]).
    pub async fn flush(&self) -> Result<(), Error> {
        if !self.0.info.flush {
            return Err(Error::Unsupported);
        }
        self.0.queue().place().await.send(Work::Flush).await
    }

    /// Reads into memory that the backend cannot reach, from byte `offset` of the disk on.
    ///
    /// # Errors
    /// See [`Error`]; `to` then has undefined content.
    pub async fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        let len = to.len();
        let first = self.admit(Direction::Read, offset, len)?;
        let prepare = |piece: Range<usize>| {
            let buffer = self.0.pool.take()?;
            let sector = sector_of(first, piece.start);
            let work = self.work(Direction::Read, sector, &buffer, 0..piece.len())?;
            Ok((work, (buffer, piece)))
        };
        let finished = |(buffer, piece): (Buffer<G>, Range<usize>)| {
            let to = to.get_mut(piece).expect("a piece is within the whole");
            buffer.view().read_bytes(0, to).expect("it fits the buffer");
        };
        self.many(pieces(0..len), prepare, finished).await
    }

    /// Writes memory that the backend cannot reach, from byte `offset` of the disk on.
    ///
    /// # Errors
    /// See [`Error`]; the sectors then have undefined content.
    pub async fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let first = self.admit(Direction::Write, offset, from.len())?;
        let prepare = |piece: Range<usize>| {
            let buffer = self.0.pool.take()?;
            let (sector, range) = (sector_of(first, piece.start), 0..piece.len());
            let from = from.get(piece).expect("a piece is within the whole");
            let written = buffer.view().write_bytes(0, from);
            written.expect("it fits the buffer");
            Ok((self.work(Direction::Write, sector, &buffer, range)?, ()))
        };
        self.many(pieces(0..from.len()), prepare, drop).await
    }

    /// Moves the bytes `range` of `buffer`, in one request if it can be.
    async fn move_range(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<(), Error> {
        let pages = fit(&range, buffer.len())?;
        let sector_size = self.0.info.sector_size as usize;
        if !range.start.is_multiple_of(sector_size) {
            return Err(self.misaligned(range.start as u64, range.len()));
        }
        // What does not fit 64 bits is beyond every disk.
        let Some(offset) = sector.checked_mul(SECTOR_SIZE as u64) else {
            return Err(self.out_of_range(sector, range.len()));
        };
        let first = self.admit(direction, offset, range.len())?;
        if pages.len() <= MAX_SEGMENTS_PER_REQUEST {
            let work = self.work(direction, first, buffer, range)?;
            return self.0.queue().place().await.send(work).await;
        }
        let start = range.start;
        let prepare = |piece: Range<usize>| {
            let sector = sector_of(first, piece.start - start);
            Ok((self.work(direction, sector, buffer, piece)?, ()))
        };
        self.many(pieces(range), prepare, drop).await
    }

    /// Checks what a caller asks for against the disk; the sector that it begins with.
    fn admit(&self, direction: Direction, offset: u64, len: usize) -> Result<u64, Error> {
        let Info {
            sector_size,
            read_only,
            sectors,
            ..
        } = self.info();
        if direction == Direction::Write && read_only {
            return Err(Error::ReadOnly);
        }
        let bytes = len as u64;
        if !offset.is_multiple_of(sector_size.into()) || !bytes.is_multiple_of(sector_size.into()) {
            return Err(self.misaligned(offset, len));
        }
        match offset.checked_add(bytes) {
            Some(end) if end / SECTOR_SIZE as u64 <= sectors => Ok(offset / SECTOR_SIZE as u64),
            _ => Err(self.out_of_range(offset / SECTOR_SIZE as u64, len)),
        }
    }

    fn out_of_range(&self, first: u64, len: usize) -> Error {
        Error::OutOfRange {
            first,
            count: (len / SECTOR_SIZE) as u64,
            sectors: self.info().sectors,
        }
    }

    fn misaligned(&self, offset: u64, len: usize) -> Error {
        Error::Misaligned {
            offset,
            end: offset.saturating_add(len as u64),
            sector_size: self.0.info.sector_size,
        }
    }

    fn work(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<Work<G>, Error> {
        let transfer = Transfer::new(direction, sector, buffer, range, self.0.route)?;
        Ok(Work::Transfer(transfer))
    }

    /// Sends a request for each piece, as many at the same time as there are places, and hands to
    /// `finished`, in order, what `prepare` kept for it. After the first error nothing more is
    /// sent, and what was sent is waited for: the memory is the caller's again.
    async fn many<T>(
        &self,
        pieces: impl Iterator<Item = Range<usize>>,
        mut prepare: impl FnMut(Range<usize>) -> Result<(Work<G>, T), Error>,
        mut finished: impl FnMut(T),
    ) -> Result<(), Error> {
        let queue = self.0.queue();
        let mut window = VecDeque::<(Ticket<'_, G>, T)>::new();
        let mut outcome = Ok(());
        for piece in pieces {
            // Who has results to fetch does not wait for a place: everybody could have some, and
            // nobody a place.
            let place = loop {
                if let Some(place) = queue.try_place() {
                    break Some(place);
                }
                match window.pop_front() {
                    None => break Some(queue.place().await),
                    Some((ticket, kept)) => outcome = ticket.await.map(|()| finished(kept)),
                }
                if outcome.is_err() {
                    break None;
                }
            };
            let Some(place) = place else { break };
            match prepare(piece) {
                Ok((work, kept)) => window.push_back((place.send(work), kept)),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        for (ticket, kept) in window {
            let result = ticket.await;
            if outcome.is_ok() {
                outcome = result.map(|()| finished(kept));
            }
        }
        outcome
    }
}

/// The sector `bytes` after `first`, on a disk that is known to have it.
fn sector_of(first: u64, bytes: usize) -> u64 {
    first.saturating_add((bytes / SECTOR_SIZE) as u64)
}

impl<G: Guest> fmt::Debug for Disk<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("info", &self.info())
            .field("gone", &self.gone())
            .finish_non_exhaustive()
    }
}

fn absolute(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    start..end
}
