//! What the test asks of a xenstored, and the message that both sides speak.

use std::fmt;

use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation};
use zerocopy::{FromBytes, IntoBytes};

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// One of the processes that use the socket.
    Local(usize),
    /// A domain, over its ring.
    Guest(u16),
}

/// What becomes of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It shuts down, and is still there.
    ShutDown,
    /// It is gone.
    Dead,
    /// One with this id is there, new.
    Born,
}

/// A message, either way.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) operation: u32,
    pub(crate) req_id: u32,
    pub(crate) tx_id: u32,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    pub(crate) fn new(operation: Operation, tx_id: u32, payload: &[u8]) -> Self {
        Message {
            operation: operation.into(),
            req_id: 0,
            tx_id,
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = MessageHeader {
            operation: self.operation,
            req_id: self.req_id,
            tx_id: self.tx_id,
            len: self.payload.len().try_into().unwrap(),
        };
        [header.as_bytes(), &self.payload].concat()
    }

    /// Takes the first whole message from `bytes`.
    pub(crate) fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let (header, rest) = MessageHeader::read_from_prefix(bytes).ok()?;
        let payload = rest.get(..header.len as usize)?.to_vec();
        bytes.drain(..size_of::<MessageHeader>() + payload.len());
        Some(Message {
            operation: header.operation,
            req_id: header.req_id,
            tx_id: header.tx_id,
            payload,
        })
    }

    pub(crate) fn is_event(&self) -> bool {
        self.operation == u32::from(Operation::WatchEvent)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Operation::try_from(self.operation) {
            Ok(operation) => write!(f, "{operation:?}")?,
            Err(_) => write!(f, "operation {}", self.operation)?,
        }
        if self.tx_id != 0 {
            write!(f, " in {}", self.tx_id)?;
        }
        let shown = self.payload.get(..200).unwrap_or(&self.payload);
        write!(f, " \"{}\"", shown.escape_ascii())?;
        if shown.len() < self.payload.len() {
            write!(f, "... of {} bytes", self.payload.len())?;
        }
        Ok(())
    }
}

/// A xenstored with two local clients and whatever guests are introduced.
pub(crate) trait Xenstored {
    fn send(&mut self, who: Who, bytes: &[u8]);

    /// The next message for this client; none if it is served no more.
    fn receive(&mut self, who: Who) -> Option<Message>;

    fn befall(&mut self, domid: u16, fate: Fate);

    /// What waits in a guest's ring is forgotten at its end too: it was introduced again.
    fn forget(&mut self, who: Who);
}
