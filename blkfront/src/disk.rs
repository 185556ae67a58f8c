//! A disk that many tasks share.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::ops::{Bound, Range, RangeBounds};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_utils::atomic::AtomicCell;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::io::blkif::{MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE};

use crate::buffer::{Buffer, BufferError, Pool, Route};
use crate::error::{Error, Gone};
use crate::info::Info;
use crate::mailbox::{Mailbox, Ticket};
use crate::queue::Queue;
use crate::request::{Direction, Erase, MAX_REQUEST, Transfer, Work, fit, pieces};
use crate::resizes::{Listeners, Resizes};
use crate::server::{Desk, Server, flush};

/// A disk. Clones are handles of the same one; when the last is dropped it is closed.
///
/// Offsets and lengths must be multiples of [`Info::sector_size`], and within the disk; nothing
/// else is sent to the backend. Requests under way at the same time are done in any order, those
/// of one call included. A call that is too long for one request is split, with many under way.
///
/// When the backend goes away and the toolstack has not removed the disk, requests wait until it is
/// back, and what it had not answered is asked for again: [`Away`](crate::Away).
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
    core: Arc<Core<G>>,
    /// For those who bring memory of their own: what fits a slot, and what is longer.
    short: Pool<G>,
    long: Pool<G>,
}

/// What a disk's handles share with the tasks that serve it.
pub(crate) struct Core<G: Guest> {
    route: Route,
    /// One for each queue, which is served by a task of its own.
    queues: Box<[Arc<Mailbox<G>>]>,
    info: AtomicCell<Info>,
    listeners: Listeners,
    /// Who takes leave of the backend when the disk is closed.
    keeper: AtomicWaker,
}

impl<G: Guest> Drop for Shared<G> {
    fn drop(&mut self) {
        self.core.close(Gone::Closed);
    }
}

impl<G: Guest> Core<G> {
    pub(crate) fn info(&self) -> Info {
        self.info.load()
    }

    /// The disk is described otherwise now.
    pub(crate) fn describe(&self, info: Info) {
        if self.info.swap(info).sectors != info.sectors {
            self.listeners.wake();
        }
    }

    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    pub(crate) fn route(&self) -> Route {
        self.route
    }

    pub(crate) fn mailboxes(&self) -> &[Arc<Mailbox<G>>] {
        &self.queues
    }

    pub(crate) fn gone(&self) -> Option<Gone> {
        self.queues.first()?.gone()
    }

    /// Ends all queues, for the first reason that is given.
    pub(crate) fn close(&self, reason: Gone) {
        // One queue may have ended by itself: it takes the others with it.
        let first = self.queues.iter().find_map(|queue| queue.gone());
        let reason = first.unwrap_or(reason);
        for queue in &self.queues {
            queue.close(reason);
        }
        self.keeper.wake();
        self.listeners.wake();
    }

    /// Ready once the disk is closed, for the one task that sees to that.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        self.keeper.register(cx.waker());
        match self.gone() {
            Some(gone) => Poll::Ready(gone),
            None => Poll::Pending,
        }
    }

    /// The queue for the next request: the one that has most room.
    #[inline]
    fn queue(&self) -> &Mailbox<G> {
        match &*self.queues {
            [only] => only,
            queues => {
                let roomiest = queues.iter().rev().max_by_key(|queue| queue.room());
                roomiest.expect("a disk has a queue")
            }
        }
    }
}

/// Pages of a buffer for those who bring longer memory of their own, where requests can be so long.
const LONG: usize = 64;
/// How many of these are kept while nobody uses them.
const KEEP_LONG: usize = 16;

impl<G: Guest> Disk<G> {
    /// Starts the task that serves `queue`, to which a backend is connected that described its
    /// disk by `info`.
    ///
    /// This is for those who have told the backend of the queue in their own way; see
    /// [`Disk::connect`].
    pub fn start(guest: &G, queue: Queue<G>, info: Info) -> Self {
        let (disk, servers) = Disk::assemble(guest, vec![queue], info);
        for server in servers {
            guest.spawn(async move { drop(server.run().await) });
        }
        disk
    }

    /// A disk, and the servers of its queues, which must run for anything to happen. There is at
    /// least one queue.
    pub(crate) fn assemble(guest: &G, queues: Vec<Queue<G>>, info: Info) -> (Self, Vec<Server<G>>) {
        let first = queues.first().expect("a disk has a queue");
        let (route, capacity, segments) = (first.route(), first.capacity(), first.max_segments());
        let serve = |queue: Queue<G>| {
            let mailbox = Arc::new(Mailbox::new(queue.capacity()));
            let desk = Desk::new(Arc::clone(&mailbox));
            (mailbox, Server::new(queue, vec![desk]))
        };
        let (mailboxes, servers): (Vec<_>, Vec<_>) = queues.into_iter().map(serve).unzip();
        let disk = Disk(Arc::new(Shared {
            guest: guest.clone(),
            core: Arc::new(Core {
                route,
                queues: mailboxes.into(),
                info: AtomicCell::new(info),
                listeners: Listeners::default(),
                keeper: AtomicWaker::new(),
            }),
            // As many as can be under way, so that one that the backend keeps mapped is used again.
            short: Pool::new(guest, route.backend, MAX_SEGMENTS_PER_REQUEST, 2 * capacity),
            long: Pool::new(guest, route.backend, segments.min(LONG), KEEP_LONG),
        }));
        (disk, servers)
    }

    pub(crate) fn core(&self) -> &Arc<Core<G>> {
        &self.0.core
    }

    /// What kind of disk it is, and its present size.
    pub fn info(&self) -> Info {
        self.0.core.info()
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.0.core.queues.len()
    }

    /// The sizes that it comes to have from now on, which operators change while it is in use.
    pub fn resizes(&self) -> Resizes<G> {
        Resizes::new(Arc::clone(&self.0.core))
    }

    /// Waits until its size is another than it is now; the new one in sectors of 512 bytes, or
    /// none if the disk is no more.
    pub fn resized(&self) -> impl Future<Output = Option<u64>> + Send + use<G> {
        let mut resizes = self.resizes();
        async move { resizes.next().await }
    }

    /// Why the disk is no more, if so.
    pub fn gone(&self) -> Option<Gone> {
        self.0.core.gone()
    }

    /// Ends the disk, for the first reason that is given: everything that is under way fails with
    /// it, and everything to come. A disk that was connected then takes leave of its backend in
    /// order.
    pub fn close(&self, reason: Gone) {
        self.0.core.close(reason);
    }

    /// Memory that requests of this disk can use without a copy.
    ///
    /// # Errors
    /// There is none.
    pub fn buffer(&self, pages: usize) -> Result<Buffer<G>, BufferError> {
        Buffer::new(&self.0.guest, self.0.core.route.backend, pages)
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

    /// Writes as [`Disk::write`] does, after everything that its queue was asked for before and
    /// ahead of everything after, and durably. It has to fit one request, which has as many pages as
    /// [`Info::indirect_segments`] says, and at least 11.
    ///
    /// Other queues know nothing of it: who wants the order of a whole disk has one queue.
    pub async fn write_barrier(
        &self,
        sector: u64,
        buffer: Buffer<G>,
        range: impl RangeBounds<usize>,
    ) -> (Result<(), Error>, Buffer<G>) {
        let range = absolute(range, buffer.len());
        let result = async {
            let transfer = self.transfer(Direction::Write, sector, &buffer, range)?;
            if !self.info().barrier {
                return Err(Error::Unsupported);
            }
            let queue = self.0.core.queue();
            queue
                .place()
                .await
                .send(Work::Barrier(Some(transfer)))
                .await
        };
        (result.await, buffer)
    }

    /// Makes durable all writes that have completed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the disk has no cache to be flushed ([`Info::flush`],
    /// [`Info::barrier`]).
    pub async fn flush(&self) -> Result<(), Error> {
        let work = flush(&self.info()).ok_or(Error::Unsupported)?;
        self.0.core.queue().place().await.send(work).await
    }

    /// Does away with `count` sectors (of 512 bytes) from `sector` on. To forget sectors is a
    /// wish: only the whole pieces among them are ([`Info::discard`]), and what is read there then
    /// is undefined. To erase them is an order, which is done or fails.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the disk does not offer it; see [`Error`].
    pub async fn discard(&self, sector: u64, count: u64, how: Erase) -> Result<(), Error> {
        let info = self.info();
        if info.read_only {
            return Err(Error::ReadOnly);
        }
        let discard = info.discard.ok_or(Error::Unsupported)?;
        if how == Erase::Secure && !discard.secure {
            return Err(Error::Unsupported);
        }
        if sector
            .checked_add(count)
            .is_none_or(|end| end > info.sectors)
        {
            return Err(Error::OutOfRange {
                first: sector,
                count,
                sectors: info.sectors,
            });
        }
        let pieces = match how {
            Erase::Forget => discard.whole(sector, count),
            Erase::Secure => (count > 0).then_some((sector, count)),
        };
        let Some((sector, count)) = pieces else {
            return Ok(());
        };
        let work = Work::Discard { sector, count, how };
        self.0.core.queue().place().await.send(work).await
    }

    /// Reads into memory that the backend cannot reach, from byte `offset` of the disk on.
    ///
    /// # Errors
    /// See [`Error`]; `to` then has undefined content.
    pub async fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        let len = to.len();
        let first = self.admit(Direction::Read, offset, len)?;
        let (pool, most) = self.pool(len);
        let prepare = |piece: Range<usize>| {
            let buffer = pool.take()?;
            let sector = sector_of(first, piece.start);
            let work = self.work(Direction::Read, sector, &buffer, 0..piece.len())?;
            Ok((work, (buffer, piece)))
        };
        let finished = |(buffer, piece): (Buffer<G>, Range<usize>)| {
            let to = to.get_mut(piece).expect("a piece is within the whole");
            buffer.view().read_bytes(0, to).expect("it fits the buffer");
        };
        self.many(pieces(len, most), prepare, finished).await
    }

    /// Writes memory that the backend cannot reach, from byte `offset` of the disk on.
    ///
    /// # Errors
    /// See [`Error`]; the sectors then have undefined content.
    pub async fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let first = self.admit(Direction::Write, offset, from.len())?;
        let (pool, most) = self.pool(from.len());
        let prepare = |piece: Range<usize>| {
            let buffer = pool.take()?;
            let (sector, range) = (sector_of(first, piece.start), 0..piece.len());
            let from = from.get(piece).expect("a piece is within the whole");
            let written = buffer.view().write_bytes(0, from);
            written.expect("it fits the buffer");
            Ok((self.work(Direction::Write, sector, &buffer, range)?, ()))
        };
        self.many(pieces(from.len(), most), prepare, drop).await
    }

    /// Where memory for `len` bytes comes from, and how many of them a buffer there has room for.
    fn pool(&self, len: usize) -> (&Pool<G>, usize) {
        match len <= MAX_REQUEST {
            true => (&self.0.short, MAX_REQUEST),
            false => (&self.0.long, self.0.long.pages() * PAGE_SIZE),
        }
    }

    /// Moves the bytes `range` of `buffer`, in one request if it can be.
    async fn move_range(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<(), Error> {
        let transfer = self.transfer(direction, sector, buffer, range)?;
        let place = self.0.core.queue().place().await;
        place.send(Work::Transfer(transfer)).await
    }

    /// Checks it against buffer and disk.
    fn transfer(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<Transfer<G>, Error> {
        fit(&range, buffer.len())?;
        let sector_size = self.info().sector_size as usize;
        if !range.start.is_multiple_of(sector_size) {
            return Err(self.misaligned(range.start as u64, range.len()));
        }
        // What does not fit 64 bits is beyond every disk.
        let Some(offset) = sector.checked_mul(SECTOR_SIZE as u64) else {
            return Err(self.out_of_range(sector, range.len()));
        };
        let first = self.admit(direction, offset, range.len())?;
        let route = self.0.core.route;
        Ok(Transfer::new(direction, first, buffer, range, route)?)
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
            sector_size: self.info().sector_size,
        }
    }

    fn work(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
    ) -> Result<Work<G>, Error> {
        let route = self.0.core.route;
        let transfer = Transfer::new(direction, sector, buffer, range, route)?;
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
        let mut window = VecDeque::<(Ticket<'_, G>, T)>::new();
        let mut outcome = Ok(());
        for piece in pieces {
            let queue = self.0.core.queue();
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
