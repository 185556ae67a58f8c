//! A client for tools and plain threads: one request at a time.
//!
//! ```
//! use parapet_xenstore::client::{Error, blocking::Client};
//! # use parapet_hypervisor::loopback::{DomainConfig, Hypervisor};
//! # use parapet_hypervisor::seam::Tasks;
//! # use parapet_xenstore::server::{daemon::Daemon, socket};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("socket");
//! # let hypervisor = Hypervisor::new(Default::default())?;
//! # let place = hypervisor.create(DomainConfig::default())?;
//! # let (daemon, xenstored) = Daemon::new(place.clone(), Default::default(), |_| true);
//! # place.spawn(daemon.run());
//! # let listener = std::os::unix::net::UnixListener::bind(&path)?;
//! # place.spawn(socket::accept(place.clone(), listener, xenstored)?);
//!
//! let mut client = Client::connect(&path)?;
//! client.watch("/counters", "mine")?;
//! assert_eq!(client.next_event()?.path, "/counters");
//!
//! client.write("/counters/a", "41")?;
//! let a = client.transaction(|tx| {
//!     let text = tx.read("/counters/a")?;
//!     let a: u32 = String::from_utf8_lossy(&text).parse().unwrap_or(0);
//!     tx.write("/counters/a", (a + 1).to_string())?;
//!     Ok(a + 1)
//! })?;
//! assert_eq!(a, 42);
//! let event = client.next_event()?;
//! assert_eq!((&*event.path, &*event.token), ("/counters/a", "mine"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use parapet_xen_sys::io::xs_wire::{Operation, ServerFeatures};
use parapet_xen_sys::{DomId, Errno, Port};

use super::verbs::verbs;
use super::{Error, TRANSACTION_TRIES, WatchEvent, reply};
use crate::transport::Broken;
use crate::wire::{Decoder, Message, Request, strings};
use crate::{Permission, TransactionId};

/// A connection of its own to xenstored. Events that arrive while it waits for an answer are kept
/// for [`Client::next_event`].
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    events: VecDeque<WatchEvent>,
    next: u32,
    tx: TransactionId,
    patience: Option<Duration>,
}

fn broken(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Broken::Closed.into(),
        // What a socket with a time-out says.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::TimedOut,
        _ => Broken::Host(error.raw_os_error().unwrap_or(0)).into(),
    }
}

impl Client {
    /// Connects to the socket of a xenstored; for the host's own there is [`host::connect`](crate::host::connect).
    ///
    /// # Errors
    /// Nobody listens there, or may not be talked to.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        UnixStream::connect(path).map(Client::new)
    }

    /// Takes over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Client {
            stream,
            decoder: Decoder::default(),
            events: VecDeque::new(),
            next: 1,
            tx: TransactionId::NONE,
            patience: None,
        }
    }

    /// Gives up on an answer that has not come in so much time, with [`Error::TimedOut`]. Without
    /// this a client waits for ever. The connection can be used on: a late answer is passed over.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    /// The next message, if it comes before `end`.
    fn receive(&mut self, end: Option<Instant>) -> Result<Message, Error> {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Ok(message);
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::TimedOut);
            }
            self.stream.set_read_timeout(left).map_err(broken)?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Broken::Closed.into()),
                Ok(len) => self.decoder.push(bytes.get(..len).unwrap_or(&[])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Keeps an event; gives back anything else.
    fn sort(&mut self, message: Message) -> Option<Message> {
        if message.operation != u32::from(Operation::WatchEvent) {
            return Some(message);
        }
        let mut parts = strings(&message.payload).map(|part| String::from_utf8_lossy(part).into());
        if let (Some(path), Some(token)) = (parts.next(), parts.next()) {
            self.events.push_back(WatchEvent { path, token });
        }
        None
    }

    /// Asks, and gives the payload of the answer.
    ///
    /// # Errors
    /// Any [`Error`], as with all requests.
    pub fn call(&mut self, request: &Request<'_>) -> Result<Vec<u8>, Error> {
        let end = self.patience.map(|patience| Instant::now() + patience);
        let req_id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut bytes = Vec::new();
        request.encode(req_id, self.tx.0, &mut bytes)?;
        self.stream.write_all(&bytes).map_err(broken)?;
        loop {
            let message = self.receive(end)?;
            match self.sort(message) {
                Some(answer) if answer.req_id == req_id => return reply::payload(request, answer),
                _ => {}
            }
        }
    }

    /// Waits for the next event of any watch.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn next_event(&mut self) -> Result<WatchEvent, Error> {
        self.event_before(None)
    }

    /// Waits so long at most for the next event of any watch.
    ///
    /// # Errors
    /// The connection is gone, or [`Error::TimedOut`].
    pub fn next_event_within(&mut self, time: Duration) -> Result<WatchEvent, Error> {
        self.event_before(Some(Instant::now() + time))
    }

    fn event_before(&mut self, end: Option<Instant>) -> Result<WatchEvent, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.receive(end)?;
            self.sort(message);
        }
    }

    /// The domain that the connection is of: the one that this process runs in, if it is its
    /// host's.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn domid(&mut self) -> Result<DomId, Error> {
        let value = self.read("domid")?;
        let number = str::from_utf8(&value)
            .ok()
            .and_then(|text| text.parse().ok());
        number.map(DomId).ok_or(Error::Garbled(Operation::Read))
    }

    /// Watches a node and all below it, under a name of the caller's choice.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.begin_watch(path, token, None)
    }

    /// Watches a node and all that is at most `depth` levels below it: with zero the node alone.
    ///
    /// # Errors
    /// Any [`Error`]; `EINVAL` from a xenstored that knows of no depth, as Xen's own before 4.22.
    pub fn watch_depth(&mut self, path: &str, token: &str, depth: u32) -> Result<(), Error> {
        self.begin_watch(path, token, Some(depth))
    }

    fn begin_watch(&mut self, path: &str, token: &str, depth: Option<u32>) -> Result<(), Error> {
        let (path, token) = (path.as_bytes(), token.as_bytes());
        let request = Request::Watch { path, token, depth };
        self.call(&request).map(drop)
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        let (path, token) = (path.as_bytes(), token.as_bytes());
        self.call(&Request::Unwatch { path, token }).map(drop)
    }

    /// Runs `body` in a transaction, and again from its beginning when somebody else interfered,
    /// up to [`TRANSACTION_TRIES`] times; `body` is not to begin another. If it fails nothing is
    /// changed.
    ///
    /// # Errors
    /// Those of `body`, and any other [`Error`] of beginning and ending; `EAGAIN` when the tries
    /// are used up.
    pub fn transaction<R>(
        &mut self,
        mut body: impl FnMut(&mut Client) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut left = TRANSACTION_TRIES;
        loop {
            left -= 1;
            let id = self.call(&Request::TransactionStart)?;
            self.tx = TransactionId(reply::number(&id)?);
            let result = body(self);
            let commit = result.is_ok();
            let ended = self.call(&Request::TransactionEnd { commit });
            self.tx = TransactionId::NONE;
            match (result, ended) {
                (Ok(_), Err(error)) if error.errno() == Some(Errno::EAGAIN) && left > 0 => {}
                (Ok(result), Ok(_)) => return Ok(result),
                (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            }
        }
    }
}

verbs! { Client: (&mut) self () }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::encode;

    fn answer(to: &mut UnixStream, req_id: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode(&mut bytes, Operation::Read, req_id, 0, &[payload]).unwrap();
        to.write_all(&bytes).unwrap();
    }

    #[test]
    fn who_waited_in_vain_can_ask_again_and_is_not_given_the_late_answer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours);
        client.set_patience(Some(Duration::from_millis(20)));
        assert_eq!(client.read("/first"), Err(Error::TimedOut));
        answer(&mut theirs, 1, b"late");
        answer(&mut theirs, 2, b"in time");
        client.set_patience(None);
        assert_eq!(client.read("/second").unwrap(), b"in time");
    }

    #[test]
    fn an_event_is_waited_for_no_longer_than_was_said() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours);
        let short = Duration::from_millis(20);
        assert_eq!(client.next_event_within(short), Err(Error::TimedOut));
        let mut bytes = Vec::new();
        encode(&mut bytes, Operation::WatchEvent, 0, 0, &[b"/w\0t\0"]).unwrap();
        theirs.write_all(&bytes).unwrap();
        let event = client.next_event_within(Duration::from_secs(60)).unwrap();
        assert_eq!((&*event.path, &*event.token), ("/w", "t"));
        drop(theirs);
        let gone = client.next_event_within(Duration::from_secs(60));
        assert_eq!(gone, Err(Error::Broken(Broken::Closed)));
    }
}
