//! A client: what it asks for, and what is under way for it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parapet_blkfront::{Disk, Erase, Error};
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::io::blkif::SECTOR_SIZE;
use parapet_xenstore::transport::{Broken, Transport};

use super::handshake::{Export, Handshake, Progress};
use super::wire::{Errno, Fault, Kind, MAX_LENGTH, REPLY, Request, Requests, reply};

/// The most requests of a client at once.
const REQUESTS: usize = 128;

/// How much is read from a socket at once.
const CHUNK: usize = 256 << 10;

/// How often a client is looked after before the others have their turn.
const TURNS: usize = 32;

/// Pages of zeroes that are written at once.
const ZEROES: usize = 64;

/// A request under way: it becomes its reply, and how much was held for it.
type Job = Pin<Box<dyn Future<Output = (Vec<u8>, usize)> + Send>>;

/// Why a client is served no more.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Serves a client until it leaves.
pub(super) async fn serve<G: Guest, T: Transport>(
    transport: T,
    export: Arc<Export>,
    disk: Disk<G>,
) {
    let mut client = Client {
        transport,
        disk,
        input: vec![0; CHUNK],
        unread: 0..0,
        requests: Requests::default(),
        jobs: FuturesUnordered::new(),
        output: VecDeque::new(),
        written: 0,
        held: 0,
        leaves: false,
    };
    let end = async {
        match client.negotiate(&export).await? {
            None => Ok::<_, End>(()),
            Some(early) => client.serve(early).await,
        }
    };
    match end.await {
        Ok(()) | Err(End::Broken(Broken::Closed)) => {}
        Err(error) => log::info!("an NBD client is cut off: {error}"),
    }
}

struct Client<G: Guest, T> {
    transport: T,
    disk: Disk<G>,
    input: Vec<u8>,
    /// What of that was not looked at yet.
    unread: Range<usize>,
    requests: Requests,
    jobs: FuturesUnordered<Job>,
    output: VecDeque<Vec<u8>>,
    /// How much of the first of these was written.
    written: usize,
    /// Bytes of requests under way, and of replies that were not taken.
    held: usize,
    /// It asks for nothing more.
    leaves: bool,
}

impl<G: Guest, T: Transport> Client<G, T> {
    /// Agrees with the client on an export, and gives what it has sent beyond that; nothing if it
    /// wants none.
    async fn negotiate(&mut self, export: &Export) -> Result<Option<Vec<u8>>, End> {
        let mut greeting = Vec::new();
        let mut handshake = Handshake::new(export, &mut greeting);
        self.send(greeting);
        let mut unread = Vec::new();
        loop {
            let mut input = &unread[..];
            let mut answers = Vec::new();
            let progress = handshake.next(&mut input, &mut answers)?;
            unread = input.to_vec();
            if !answers.is_empty() {
                self.send(answers);
            }
            match progress {
                Progress::Done => return Ok(Some(unread)),
                Progress::Leaves => {
                    poll_fn(|cx| self.poll_written(cx)).await?;
                    return Ok(None);
                }
                Progress::More => {
                    let count = poll_fn(|cx| self.poll_read(cx)).await?;
                    unread.extend_from_slice(self.input.get(..count).unwrap_or_default());
                }
            }
        }
    }

    /// Writes answers, until there are none left.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            self.write()?;
            if self.output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.transport.poll_ready(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Writes answers, and reads something into `input` meanwhile; how much.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        loop {
            self.write()?;
            // Who does not take its answers is not listened to.
            if self.output.is_empty() {
                let count = self.transport.read(&mut self.input)?;
                if count > 0 {
                    return Poll::Ready(Ok(count));
                }
            }
            if self.transport.poll_ready(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn send(&mut self, bytes: Vec<u8>) {
        self.held += bytes.len();
        self.output.push_back(bytes);
    }

    /// Writes as much as the client takes; whether that was anything.
    fn write(&mut self) -> Result<bool, Broken> {
        let mut moved = false;
        while let Some(first) = self.output.front() {
            let left = first.get(self.written..).unwrap_or_default();
            let count = self.transport.write(left)?;
            moved |= count > 0;
            if count < left.len() {
                self.written += count;
                break;
            }
            self.written = 0;
            self.held = self.held.saturating_sub(first.len());
            self.output.pop_front();
        }
        Ok(moved)
    }

    /// Carries out requests until the client leaves.
    async fn serve(&mut self, early: Vec<u8>) -> Result<(), End> {
        self.unread = 0..early.len();
        self.input = early;
        self.input.resize(self.unread.end.max(CHUNK), 0);
        poll_fn(|cx| {
            for _ in 0..TURNS {
                let mut moved = self.write()?;
                while let Poll::Ready(Some((reply, held))) = self.jobs.poll_next_unpin(cx) {
                    self.held = self.held.saturating_sub(held);
                    self.send(reply);
                    moved = true;
                }
                if self.leaves && self.jobs.is_empty() && self.output.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                if self.has_room() {
                    if self.unread.is_empty() {
                        self.unread = 0..self.transport.read(&mut self.input)?;
                    }
                    moved |= !self.unread.is_empty();
                    self.accept()?;
                }
                if !moved && self.transport.poll_ready(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn has_room(&self) -> bool {
        !self.leaves
            && self.held < MAX_LENGTH as usize
            && self.jobs.len() + self.output.len() < REQUESTS
    }

    /// Begins what is asked for, as long as there is room.
    fn accept(&mut self) -> Result<(), Fault> {
        while self.has_room() {
            let mut input = self.input.get(self.unread.clone()).unwrap_or_default();
            let next = self.requests.next(&mut input)?;
            self.unread.start = self.unread.end - input.len();
            let Some((request, data)) = next else {
                break;
            };
            if request.kind == Kind::Disconnect {
                self.leaves = true;
                break;
            }
            let reads = match request.kind {
                Kind::Read if request.length <= MAX_LENGTH => request.length as usize,
                _ => 0,
            };
            let held = data.len() + reads;
            self.held += held;
            let answer = answer(self.disk.clone(), request, data);
            self.jobs
                .push(Box::pin(async move { (answer.await, held) }));
        }
        Ok(())
    }
}

/// Carries out a request, and makes the reply.
async fn answer<G: Guest>(disk: Disk<G>, request: Request, data: Vec<u8>) -> Vec<u8> {
    if request.kind == Kind::Read {
        return read(&disk, request).await;
    }
    let result = async {
        match request.kind {
            Kind::Write => disk.write_at(request.offset, &data).await?,
            Kind::Flush => return flush(&disk).await,
            Kind::Trim => trim(&disk, request).await?,
            Kind::WriteZeroes => write_zeroes(&disk, request).await?,
            Kind::Read | Kind::Disconnect | Kind::Other(_) => return Err(Error::Unsupported),
        }
        match request.durable {
            true => flush(&disk).await,
            false => Ok(()),
        }
    };
    let errno = result.await.map_err(|error| errno(request.kind, error));
    reply(request.cookie, errno).to_vec()
}

async fn read<G: Guest>(disk: &Disk<G>, request: Request) -> Vec<u8> {
    if request.length > MAX_LENGTH {
        return reply(request.cookie, Err(Errno::INVALID)).to_vec();
    }
    let mut bytes = vec![0; REPLY + request.length as usize];
    let (head, data) = bytes.split_at_mut(REPLY);
    match disk.read_at(request.offset, data).await {
        Ok(()) => head.copy_from_slice(&reply(request.cookie, Ok(()))),
        Err(error) => {
            let errno = errno(request.kind, error);
            bytes = reply(request.cookie, Err(errno)).to_vec();
        }
    }
    bytes
}

/// What is written to a disk without a cache is as durable as it will be.
async fn flush<G: Guest>(disk: &Disk<G>) -> Result<(), Error> {
    match disk.flush().await {
        Err(Error::Unsupported) => Ok(()),
        flushed => flushed,
    }
}

/// Forgets the whole sectors of a range.
async fn trim<G: Guest>(disk: &Disk<G>, request: Request) -> Result<(), Error> {
    let sector = SECTOR_SIZE as u64;
    let first = request.offset.div_ceil(sector);
    let end = request.offset.saturating_add(request.length.into()) / sector;
    match end.checked_sub(first) {
        None | Some(0) => Ok(()),
        Some(count) => disk.discard(first, count, Erase::Forget).await,
    }
}

async fn write_zeroes<G: Guest>(disk: &Disk<G>, request: Request) -> Result<(), Error> {
    let sector_size = u64::from(disk.info().sector_size);
    let end = request.offset.saturating_add(request.length.into());
    if !request.offset.is_multiple_of(sector_size) || !end.is_multiple_of(sector_size) {
        return Err(Error::Misaligned {
            offset: request.offset,
            end,
            sector_size: disk.info().sector_size,
        });
    }
    let mut zeroes = disk.buffer(ZEROES)?;
    let mut at = request.offset;
    while at < end {
        let count = usize::try_from(end - at).map_or(zeroes.len(), |left| left.min(zeroes.len()));
        let result;
        (result, zeroes) = disk.write(at / SECTOR_SIZE as u64, zeroes, ..count).await;
        result?;
        at += count as u64;
    }
    Ok(())
}

/// What the protocol calls an error.
fn errno(kind: Kind, error: Error) -> Errno {
    match error {
        Error::Io(_) => Errno::IO,
        Error::Unsupported => match kind {
            Kind::Other(_) => Errno::INVALID,
            _ => Errno::NOT_SUPPORTED,
        },
        Error::OutOfRange { .. } => match kind {
            Kind::Write | Kind::WriteZeroes => Errno::NO_SPACE,
            _ => Errno::INVALID,
        },
        Error::ReadOnly => Errno::PERM,
        Error::Misaligned { .. } | Error::Unfit(_) => Errno::INVALID,
        Error::Buffer(_) => Errno::NO_MEMORY,
        Error::Gone(_) => Errno::SHUTDOWN,
    }
}
