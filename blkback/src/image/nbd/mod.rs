//! A disk behind an NBD server: how one on Ceph or S3 is reached, or one that another program has.
//!
//! ```text
//!   queue ─► threads ─► Client ─► Connection ═══ socket ═══► server
//!             bounce      │ log: writes that no flush has made durable yet
//!                         └ lost? connect, write those again, then ask again
//! ```
//!
//! A connection may break, and a server be started again: what was asked and not answered is asked
//! again, and a guest notices a pause. If there is no server for a minute, its requests fail.
//!
//! A server that is started again may have lost what it had answered and not been told to flush. To
//! a guest such a write was done, and a flush that follows makes it durable; so writes are kept
//! here until a flush has come back, and done again on a new connection before anything else. When
//! there are many of them the server is told to flush. With a server that knows no flush nothing
//! is kept: it says that what it answers is durable.
//!
//! A server that was started again is taken for the same disk if it is large enough.

mod address;
mod connection;
mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use parapet_hypervisor::host::{Disk, Lease};

use super::settle::Settler;
use super::threaded::{Threaded, Threads};
use super::{Access, Discard, Image, ImageQueue, Limits, OpenError, SECTOR_SIZE};
use connection::{Carries, Connection, Outcome};
use wire::{Command, Export, Request};

pub use address::{AddressError, NbdAddress};

/// How many threads an image has for all of its queues, and so requests under way.
const THREADS: usize = 16;

/// How long a request is tried.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(200);

/// How many bytes of writes are kept at most, and how many writes.
const KEPT: (usize, usize) = (32 << 20, 4096);

/// How much is made zero at once.
const ZEROES: u64 = 32 << 20;

/// The server is about to end (NBD_ESHUTDOWN).
const SHUTDOWN: u32 = 108;

/// A disk behind an NBD server.
#[derive(Debug)]
pub struct NbdImage {
    client: Arc<Client>,
    access: Access,
    threads: Arc<Threads>,
}

impl NbdImage {
    /// Connects to the server.
    ///
    /// # Errors
    /// One line that names it.
    pub fn open(address: &NbdAddress, access: Access) -> Result<Self, OpenError> {
        Self::open_patiently(address, access, PATIENCE)
    }

    /// The same, with another patience than a minute for a server that is lost later.
    ///
    /// # Errors
    /// As [`NbdImage::open`].
    pub fn open_patiently(
        address: &NbdAddress,
        access: Access,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let failed = |why: String| OpenError::Nbd {
            address: address.to_string(),
            why,
        };
        let (connection, export) =
            Connection::open(address).map_err(|error| failed(error.to_string()))?;
        let sector = SECTOR_SIZE as u64;
        if export.bytes == 0 || !export.bytes.is_multiple_of(sector) {
            return Err(failed(format!(
                "it has {} bytes, which is no whole number of sectors of 512, or none",
                export.bytes
            )));
        }
        if export.least > SECTOR_SIZE as u32 {
            let least = export.least;
            return Err(failed(format!(
                "it serves no less than {least} bytes at once"
            )));
        }
        if access == Access::ReadWrite && export.read_only() {
            return Err(failed(
                "it may only be read: attach it with access=ro".into(),
            ));
        }
        connection
            .settle()
            .map_err(|error| failed(error.to_string()))?;
        Ok(NbdImage {
            client: Arc::new(Client {
                address: address.clone(),
                export,
                patience,
                link: Mutex::new(Link::Up(Arc::new(connection))),
                changed: Condvar::new(),
                log: Mutex::default(),
                flushing: Settler::default(),
            }),
            access,
            threads: Threads::new(THREADS),
        })
    }
}

impl<L: Lease> Image<L> for NbdImage {
    fn sectors(&self) -> u64 {
        self.client.export.bytes / SECTOR_SIZE as u64
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn physical_sector_size(&self) -> u32 {
        4096
    }

    fn discard(&self) -> Option<Discard> {
        // Not NBD_CMD_TRIM, after which anything may be read.
        let offered = self.access == Access::ReadWrite && self.client.export.writes_zeroes();
        offered.then_some(Discard {
            granularity: 4096,
            alignment: 0,
            secure: false,
        })
    }

    fn open_queue(&self, limits: Limits) -> io::Result<Box<dyn ImageQueue<L>>> {
        let disk: Arc<dyn Disk> = self.client.clone();
        Ok(Box::new(Threaded::new(disk, &self.threads, limits)?))
    }
}

struct Client {
    address: NbdAddress,
    /// As it was at first.
    export: Export,
    patience: Duration,
    link: Mutex<Link>,
    changed: Condvar,
    log: Mutex<Log>,
    flushing: Settler,
}

enum Link {
    Up(Arc<Connection>),
    /// Somebody connects.
    Coming,
    Down,
}

/// Writes that were answered, and may not be durable; in the order in which they were answered, so
/// that of two where one was begun after the other had been answered it is the later one.
#[derive(Default)]
struct Log {
    writes: VecDeque<Kept>,
    bytes: usize,
    /// How many were ever added.
    added: u64,
}

struct Kept {
    request: Request,
    data: Arc<[u8]>,
}

impl Log {
    fn add(&mut self, kept: Kept) {
        self.bytes += kept.data.len();
        self.added += 1;
        self.writes.push_back(kept);
    }

    fn is_full(&self) -> bool {
        self.bytes > KEPT.0 || self.writes.len() > KEPT.1
    }

    /// Forgets those that were there when `added` had been added.
    fn forget(&mut self, added: u64) {
        let gone = self.added - self.writes.len() as u64;
        for _ in gone..added {
            if let Some(kept) = self.writes.pop_front() {
                self.bytes -= kept.data.len();
            }
        }
    }
}

impl Client {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that works as far as anybody knows; a new one if need be, within `until`, which
    /// begins to count when there is trouble for the first time.
    fn connection(&self, until: &mut Option<Instant>) -> io::Result<Arc<Connection>> {
        let mut link = self.link();
        loop {
            if let Link::Up(connection) = &*link {
                if !connection.is_broken() {
                    return Ok(Arc::clone(connection));
                }
                log::warn!("{}: the connection is lost", self.address);
                *link = Link::Down;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + self.patience);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(gone());
            }
            if matches!(*link, Link::Down) {
                *link = Link::Coming;
                drop(link);
                // Also after a panic, so that others do not wait for ever.
                let mut coming = Coming(self, Link::Down);
                match self.connect() {
                    Ok(connection) => {
                        log::info!("{}: connected again", self.address);
                        coming.1 = Link::Up(Arc::new(connection));
                    }
                    Err(error) => log::debug!("{}: {error}", self.address),
                }
                drop(coming);
                link = self.link();
                if matches!(*link, Link::Up(_)) {
                    continue;
                }
            }
            let pause = match *link {
                Link::Coming => left,
                _ => left.min(PAUSE),
            };
            let waited = self.changed.wait_timeout(link, pause);
            link = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Connects, and does again what the server may have lost. Nobody adds to the log meanwhile:
    /// the link is not up.
    fn connect(&self) -> io::Result<Connection> {
        let (connection, export) = Connection::open(&self.address)?;
        let same = Export {
            bytes: self.export.bytes,
            ..export
        };
        if export.bytes < self.export.bytes || same != self.export {
            return Err(io::Error::other("there is another disk now"));
        }
        let mut done = None;
        loop {
            let next = {
                let log = self.log();
                let first = log.added - log.writes.len() as u64;
                let at = done.map_or(first, |done: u64| (done + 1).max(first));
                let kept = log.writes.get((at - first) as usize);
                kept.map(|kept| (at, kept.request, Arc::clone(&kept.data)))
            };
            let Some((at, request, data)) = next else {
                break;
            };
            let carries = match request.command {
                Command::Write => Carries::Data(&data),
                _ => Carries::Nothing,
            };
            match connection.exchange(request, carries) {
                Outcome::Answered(0) => done = Some(at),
                Outcome::Answered(code) => return Err(error(code)),
                Outcome::Lost => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        connection.settle()?;
        Ok(connection)
    }

    /// Makes a request, on as many connections as it takes. The one that it was answered on.
    fn request(&self, request: Request, carries: &mut Carries<'_>) -> io::Result<Arc<Connection>> {
        let mut until = None;
        for attempt in 0.. {
            if attempt > 1 {
                // It comes, and goes again.
                thread::sleep(PAUSE);
            }
            let connection = self.connection(&mut until)?;
            let again = match carries {
                Carries::Nothing => Carries::Nothing,
                Carries::Data(data) => Carries::Data(data),
                Carries::Room(room) => Carries::Room(room),
            };
            match connection.exchange(request, again) {
                Outcome::Answered(0) => return Ok(connection),
                Outcome::Answered(SHUTDOWN) => connection.give_up(),
                Outcome::Answered(code) => return Err(error(code)),
                Outcome::Lost => {}
            }
            if until.is_some_and(|until| Instant::now() > until) {
                break;
            }
            until.get_or_insert_with(|| Instant::now() + self.patience);
        }
        Err(gone())
    }

    /// Makes a request that changes the disk.
    fn change(&self, request: Request, data: &[u8]) -> io::Result<()> {
        let mut carries = match request.command {
            Command::Write => Carries::Data(data),
            _ => Carries::Nothing,
        };
        if !self.export.flushes() {
            return self.request(request, &mut carries).map(drop);
        }
        if self.log().is_full() {
            self.sync()?;
        }
        let kept = Kept {
            request,
            data: data.into(),
        };
        loop {
            let connection = self.request(request, &mut carries)?;
            let link = self.link();
            // Had the connection been lost since, a new one might have been made without this.
            if matches!(&*link, Link::Up(now) if Arc::ptr_eq(now, &connection)) {
                self.log().add(kept);
                return Ok(());
            }
        }
    }

    /// No more than the server takes at once, in whole sectors.
    fn piece(&self, len: u64) -> u64 {
        let most = u64::from(self.export.most) / SECTOR_SIZE as u64 * SECTOR_SIZE as u64;
        len.min(most)
    }
}

/// What the link is to be when whoever connects is done.
struct Coming<'a>(&'a Client, Link);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        *self.0.link() = std::mem::replace(&mut self.1, Link::Down);
        self.0.changed.notify_all();
    }
}

impl Disk for Client {
    fn read(&self, mut offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            let len = self.piece(to.len() as u64);
            let (now, rest) = to.split_at_mut(len as usize);
            let request = Request {
                command: Command::Read,
                offset,
                len: len as u32,
            };
            self.request(request, &mut Carries::Room(now))?;
            to = rest;
            offset += len;
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            let len = self.piece(from.len() as u64);
            let (now, rest) = from.split_at(len as usize);
            let request = Request {
                command: Command::Write,
                offset,
                len: len as u32,
            };
            self.change(request, now)?;
            from = rest;
            offset += len;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if !self.export.flushes() {
            return Ok(());
        }
        self.flushing.settle(|| {
            let added = self.log().added;
            let request = Request {
                command: Command::Flush,
                offset: 0,
                len: 0,
            };
            self.request(request, &mut Carries::Nothing)?;
            self.log().forget(added);
            Ok(())
        })
    }

    fn discard(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let now = len.min(ZEROES);
            let request = Request {
                command: Command::WriteZeroes,
                offset,
                len: now as u32,
            };
            self.change(request, &[])?;
            offset += now;
            len -= now;
        }
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the NBD server did not come back")
}

/// NBD's errors have Linux's numbers.
fn error(code: u32) -> io::Error {
    let known = [
        libc::EPERM,
        libc::ENOMEM,
        libc::EINVAL,
        libc::ENOSPC,
        libc::EOVERFLOW,
        libc::EOPNOTSUPP,
    ];
    let code = i32::try_from(code).unwrap_or(libc::EIO);
    io::Error::from_raw_os_error(if known.contains(&code) {
        code
    } else {
        libc::EIO
    })
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.address).finish()
    }
}
