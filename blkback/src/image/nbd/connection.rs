//! One connection to a server: many requests at once, each waited for by a thread.
//!
//! Whoever waits and finds nobody reading reads: its own reply into its own memory, those of others
//! into memory that they find when they look.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::address::{NbdAddress, Server};
use super::wire::{self, Command, Export, GREETING, Going, OPTION_HEADER, REPLY_HEADER, Request};

/// How long a server may take for anything before it has taken up its work.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The most replies to one option: what we ask for has three.
const MOST_REPLIES: usize = 64;

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn open(server: &Server) -> io::Result<Self> {
        match server {
            Server::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path)?)),
            Server::Tcp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in (&**host, *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, HANDSHAKE) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            notice_silence(&stream)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }

    fn shutdown(&self) {
        // It may be gone already.
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// A host that vanished says nothing, for ever: the kernel asks after it.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &10)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &30_000)?;
    Ok(())
}

impl Read for &Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).read(to),
            Stream::Tcp(stream) => (&mut &*stream).read(to),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write(from),
            Stream::Tcp(stream) => (&mut &*stream).write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// Whoever sends has it, so that requests are not mixed.
    sending: Mutex<()>,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By handle: those that were sent and not answered, or not looked at.
    requests: HashMap<u64, Waiter>,
    /// Whether somebody reads.
    reading: bool,
    broken: bool,
    /// Memory for the replies of others.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Waiter {
    /// How many bytes a reply without an error has.
    len: usize,
    outcome: Option<(u32, Vec<u8>)>,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was answered, with this error or with none.
    Answered(u32),
    /// Nobody knows: the connection is no more.
    Lost,
}

/// What a request carries.
pub(super) enum Carries<'a> {
    /// Nothing.
    Nothing,
    /// What is to be written.
    Data(&'a [u8]),
    /// What is to be filled.
    Room(&'a mut [u8]),
}

impl Connection {
    /// Connects, and asks for the export.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn open(address: &NbdAddress) -> io::Result<(Self, Export)> {
        let stream = Stream::open(&address.server)?;
        stream.set_timeout(Some(HANDSHAKE))?;
        let mut greeting = [0; GREETING];
        (&stream).read_exact(&mut greeting)?;
        let answer = wire::answer(&greeting, &address.export).map_err(io::Error::other)?;
        (&stream).write_all(&answer)?;
        let mut going = Going::default();
        let mut found = None;
        for _ in 0..MOST_REPLIES {
            let mut header = [0; OPTION_HEADER];
            (&stream).read_exact(&mut header)?;
            let (kind, len) = Going::header(&header).map_err(io::Error::other)?;
            let mut bytes = vec![0; len];
            (&stream).read_exact(&mut bytes)?;
            if let Some(export) = going.reply(kind, &bytes).map_err(io::Error::other)? {
                found = Some(export);
                break;
            }
        }
        let export = found.ok_or_else(|| io::Error::other("it talks on and on"))?;
        let connection = Connection {
            stream,
            sending: Mutex::new(()),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
        };
        Ok((connection, export))
    }

    /// From now on a server may take as long as it likes for each request, as disks do.
    pub(super) fn settle(&self) -> io::Result<()> {
        self.stream.set_timeout(None)
    }

    /// Whether it is no more.
    pub(super) fn is_broken(&self) -> bool {
        self.waiting().broken
    }

    /// Makes a request, and waits for the reply.
    pub(super) fn exchange(&self, request: Request, carries: Carries<'_>) -> Outcome {
        let (data, mut room) = match carries {
            Carries::Nothing => (&[][..], None),
            Carries::Data(data) => (data, None),
            Carries::Room(room) => (&[][..], Some(room)),
        };
        let handle = {
            let mut waiting = self.waiting();
            if waiting.broken {
                return Outcome::Lost;
            }
            waiting.next += 1;
            let handle = waiting.next;
            let len = room.as_ref().map_or(0, |room| room.len());
            waiting
                .requests
                .insert(handle, Waiter { len, outcome: None });
            handle
        };
        if self.send(&request.encode(handle), data).is_err() {
            self.give_up();
        }
        let mut waiting = self.waiting();
        loop {
            let found = waiting.requests.get_mut(&handle);
            if let Some((error, bytes)) = found.and_then(|waiter| waiter.outcome.take()) {
                waiting.requests.remove(&handle);
                if let Some(room) = &mut room
                    && error == 0
                {
                    room.copy_from_slice(&bytes);
                }
                waiting.spare.push(bytes);
                return Outcome::Answered(error);
            }
            if waiting.broken {
                waiting.requests.remove(&handle);
                return Outcome::Lost;
            }
            if waiting.reading {
                waiting = self
                    .arrived
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            waiting.reading = true;
            drop(waiting);
            let read = self.read_one(handle, room.as_deref_mut());
            waiting = self.waiting();
            waiting.reading = false;
            match read {
                Ok(Some(error)) => {
                    waiting.requests.remove(&handle);
                    // Somebody else is to read now.
                    self.arrived.notify_all();
                    return Outcome::Answered(error);
                }
                Ok(None) => self.arrived.notify_all(),
                Err(_) => {
                    drop(waiting);
                    self.give_up();
                    waiting = self.waiting();
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.stream).write_all(header)?;
        (&self.stream).write_all(data)
    }

    /// Reads one reply. The error in it, if it is that to `own`, whose data then are in `room`.
    fn read_one(&self, own: u64, room: Option<&mut [u8]>) -> io::Result<Option<u32>> {
        let mut header = [0; REPLY_HEADER];
        (&self.stream).read_exact(&mut header)?;
        let (error, handle) = wire::reply(&header).map_err(io::Error::other)?;
        if handle == own {
            if let (Some(room), 0) = (room, error) {
                (&self.stream).read_exact(room)?;
            }
            return Ok(Some(error));
        }
        let (len, mut bytes) = {
            let mut waiting = self.waiting();
            let len = match waiting.requests.get(&handle) {
                Some(Waiter { len, outcome: None }) => *len,
                // To nothing that was asked, or for the second time.
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            (len, waiting.spare.pop().unwrap_or_default())
        };
        bytes.resize(if error == 0 { len } else { 0 }, 0);
        (&self.stream).read_exact(&mut bytes)?;
        if let Some(waiter) = self.waiting().requests.get_mut(&handle) {
            waiter.outcome = Some((error, bytes));
        }
        Ok(None)
    }

    /// It is no more: whoever waits is told so.
    pub(super) fn give_up(&self) {
        self.stream.shutdown();
        self.waiting().broken = true;
        self.arrived.notify_all();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let goodbye = Request {
            command: Command::Disconnect,
            offset: 0,
            len: 0,
        };
        // Out of politeness.
        let _ = self.stream.set_timeout(Some(Duration::from_millis(100)));
        let _ = self.send(&goodbye.encode(0), &[]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_server_that_talks_on_and_on_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
            let mut reply = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            reply.extend([0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 2, 0, 9]);
            while stream.write_all(&reply).is_ok() {}
        });
        let address = format!("nbd:unix:{}", socket.display()).parse().unwrap();
        let error = Connection::open(&address).unwrap_err();
        assert_eq!(error.to_string(), "it talks on and on");
        server.join().unwrap();
    }
}
