//! A client of any xenstored, on a bare socket: the same for everybody who is measured.

use anyhow::{Context, Result, bail, ensure};
use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation, PAYLOAD_MAX};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// How long an answer may take. C xenstored removes a large tree in seconds.
const STALL: Duration = Duration::from_secs(60);

/// A message from the server. Its payload is [`Client::payload`] until the next one is received.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) operation: u32,
    payload: Range<usize>,
}

impl Message {
    pub(crate) fn is(&self, operation: Operation) -> bool {
        self.operation == u32::from(operation)
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    queued: Vec<u8>,
    received: Box<[u8]>,
    /// What of `received` is filled and not taken yet.
    fresh: Range<usize>,
}

impl Client {
    /// # Errors
    /// Nobody listens.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connecting to xenstored")?;
        stream.set_read_timeout(Some(STALL))?;
        Ok(Self {
            stream,
            queued: Vec::new(),
            received: vec![0; 16 * (size_of::<MessageHeader>() + PAYLOAD_MAX)].into(),
            fresh: 0..0,
        })
    }

    /// Puts a request behind those to be sent by [`Client::flush`].
    pub(crate) fn queue(&mut self, operation: Operation, tx_id: u32, payload: &[&[u8]]) {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let header = MessageHeader {
            operation: operation.into(),
            req_id: 0,
            tx_id,
            len: len as u32,
        };
        self.queued.extend_from_slice(header.as_bytes());
        for part in payload {
            self.queued.extend_from_slice(part);
        }
    }

    /// Sends what is queued, in one go.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.queued).context("sending")?;
        self.queued.clear();
        Ok(())
    }

    pub(crate) fn send(&mut self, operation: Operation, tx: u32, payload: &[&[u8]]) -> Result<()> {
        self.queue(operation, tx, payload);
        self.flush()
    }

    /// The next message, once it is there.
    pub(crate) fn receive(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.take() {
                return Ok(message);
            }
            self.fill().context("waiting for an answer")?;
        }
    }

    /// The next message, if it is there.
    pub(crate) fn try_receive(&mut self) -> Result<Option<Message>> {
        if let Some(message) = self.take() {
            return Ok(Some(message));
        }
        self.stream.set_nonblocking(true)?;
        let filled = self.fill();
        self.stream.set_nonblocking(false)?;
        match filled {
            Ok(()) => Ok(self.take()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self) -> Option<Message> {
        let bytes = &self.received[self.fresh.clone()];
        let (header, rest) = MessageHeader::read_from_prefix(bytes).ok()?;
        rest.get(..header.len as usize)?;
        let start = self.fresh.start + size_of::<MessageHeader>();
        let payload = start..start + header.len as usize;
        self.fresh.start = payload.end;
        Some(Message {
            operation: header.operation,
            payload,
        })
    }

    fn fill(&mut self) -> std::io::Result<()> {
        self.received.copy_within(self.fresh.clone(), 0);
        self.fresh = 0..self.fresh.len();
        let got = loop {
            // A signal may come while we wait: to stop and go on is one.
            match self.stream.read(&mut self.received[self.fresh.end..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.fresh.end += got;
        Ok(())
    }

    pub(crate) fn payload(&self, message: &Message) -> &[u8] {
        &self.received[message.payload.clone()]
    }

    /// The next answer; events that come before it are passed over.
    pub(crate) fn answer(&mut self) -> Result<Message> {
        loop {
            let message = self.receive()?;
            if !message.is(Operation::WatchEvent) {
                return Ok(message);
            }
        }
    }

    /// Waits for an answer that must not be an error.
    pub(crate) fn done(&mut self) -> Result<Message> {
        let answer = self.answer()?;
        if answer.is(Operation::Error) {
            bail!("refused: {}", self.payload(&answer).escape_ascii());
        }
        Ok(answer)
    }

    /// Sends one request and waits for its answer, which must not be an error.
    pub(crate) fn ask(
        &mut self,
        operation: Operation,
        tx: u32,
        payload: &[&[u8]],
    ) -> Result<Message> {
        self.send(operation, tx, payload)?;
        self.done()
    }

    pub(crate) fn write(&mut self, tx: u32, path: &str, value: &[u8]) -> Result<()> {
        let payload: [&[u8]; 3] = [path.as_bytes(), b"\0", value];
        self.ask(Operation::Write, tx, &payload)?;
        Ok(())
    }

    /// The transaction that a message tells of.
    pub(crate) fn transaction(&self, message: &Message) -> Result<u32> {
        let text = std::str::from_utf8(self.payload(message))?;
        let id = text.trim_end_matches('\0').parse();
        let id = id.with_context(|| format!("a transaction called {text:?}"))?;
        ensure!(id != 0, "a transaction called 0");
        Ok(id)
    }
}
