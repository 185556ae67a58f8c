//! A client for tools and plain threads: one request at a time.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use parapet_xen_sys::io::xs_wire::Operation;
use parapet_xen_sys::{DomId, Errno};

use super::{Error, WatchEvent, reply};
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
}

fn broken(error: io::Error) -> Error {
    Error::Broken(match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Broken::Closed,
        _ => Broken::Host(error.raw_os_error().unwrap_or(0)),
    })
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
        }
    }

    fn receive(&mut self) -> Result<Message, Error> {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Ok(message);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Broken::Closed.into()),
                Ok(len) => self.decoder.push(bytes.get(..len).unwrap_or(&[])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
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
        let req_id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut bytes = Vec::new();
        request.encode(req_id, self.tx.0, &mut bytes)?;
        self.stream.write_all(&bytes).map_err(broken)?;
        loop {
            let message = self.receive()?;
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
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.receive()?;
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

    /// A node's value.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.call(&Request::Read(path.as_bytes()))
    }

    /// Sets a node's value, and creates the node and those above it where they are missing.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        let (path, value) = (path.as_bytes(), value.as_ref());
        self.call(&Request::Write { path, value }).map(drop)
    }

    /// The names of a node's children, however many.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let path = path.as_bytes();
        match self.call(&Request::Directory(path)) {
            Ok(payload) => reply::names(Operation::Directory, &payload),
            Err(error) if error.errno() == Some(Errno::E2BIG) => {
                let mut parts = reply::Parts::default();
                loop {
                    let offset = parts.offset();
                    let part = self.call(&Request::DirectoryPart { path, offset })?;
                    if let Some(names) = parts.add(&part)? {
                        return Ok(names);
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a node where it is missing.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.call(&Request::Mkdir(path.as_bytes())).map(drop)
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.call(&Request::Rm(path.as_bytes())).map(drop)
    }

    /// A node's permissions, the owner's first.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn permissions(&mut self, path: &str) -> Result<Vec<Permission>, Error> {
        let payload = self.call(&Request::GetPerms(path.as_bytes()))?;
        reply::permissions(&payload)
    }

    /// Sets a node's permissions, the owner's first.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn set_permissions(&mut self, path: &str, permissions: &[Permission]) -> Result<(), Error> {
        let request = Request::SetPerms {
            path: path.as_bytes(),
            permissions: permissions.to_vec(),
        };
        self.call(&request).map(drop)
    }

    /// Watches a node and all below it, under a name of the caller's choice.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        let request = Request::Watch {
            path: path.as_bytes(),
            token: token.as_bytes(),
            depth: None,
        };
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

    /// Runs `body` in a transaction, and again from its beginning as long as somebody else
    /// interferes; `body` is not to begin another. If it fails nothing is changed.
    ///
    /// # Errors
    /// Those of `body`, and any other [`Error`] of beginning and ending.
    pub fn transaction<R>(
        &mut self,
        mut body: impl FnMut(&mut Client) -> Result<R, Error>,
    ) -> Result<R, Error> {
        loop {
            let id = self.call(&Request::TransactionStart)?;
            self.tx = TransactionId(reply::number(&id)?);
            let result = body(self);
            let commit = result.is_ok();
            let ended = self.call(&Request::TransactionEnd { commit });
            self.tx = TransactionId::NONE;
            match (result, ended) {
                (Ok(_), Err(error)) if error.errno() == Some(Errno::EAGAIN) => {}
                (Ok(result), Ok(_)) => return Ok(result),
                (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            }
        }
    }
}
