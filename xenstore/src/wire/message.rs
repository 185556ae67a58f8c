//! Messages in a stream of bytes.

use alloc::vec::Vec;

use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation, PAYLOAD_MAX};
use zerocopy::{FromBytes, IntoBytes};

const HEADER: usize = size_of::<MessageHeader>();

/// One message, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// An [`Operation`], or what a peer made of it.
    pub operation: u32,
    /// The client's number for its request, returned in the answer; zero in an event.
    pub req_id: u32,
    /// The transaction; zero for none.
    pub tx_id: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// A payload longer than [`PAYLOAD_MAX`]. Where a peer announces one, its stream cannot be
/// followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a xenstore message has {len} bytes of payload; {PAYLOAD_MAX} are allowed")]
pub struct TooLong {
    /// How many bytes.
    pub len: usize,
}

/// Appends a message to `out`, its payload given in parts.
///
/// # Errors
/// The payload is too long; nothing is appended.
pub fn encode(
    out: &mut Vec<u8>,
    operation: Operation,
    req_id: u32,
    tx_id: u32,
    payload: &[&[u8]],
) -> Result<(), TooLong> {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let wire_len = u32::try_from(len).map_err(|_| TooLong { len })?;
    if len > PAYLOAD_MAX {
        return Err(TooLong { len });
    }
    let header = MessageHeader {
        operation: operation.into(),
        req_id,
        tx_id,
        len: wire_len,
    };
    out.extend_from_slice(header.as_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Makes messages of a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How many of `bytes` were used already.
    used: usize,
}

impl Decoder {
    /// Takes in what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The bytes that wait to be made messages of.
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.used..).unwrap_or(&[])
    }

    /// How many bytes wait to be made messages of.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// Whether none do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next message, if it is complete.
    ///
    /// # Errors
    /// The header announces too long a payload. It does so again at every further call.
    pub fn message(&mut self) -> Result<Option<Message>, TooLong> {
        let bytes = self.rest();
        let Ok((header, rest)) = MessageHeader::read_from_prefix(bytes) else {
            return Ok(None);
        };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > PAYLOAD_MAX {
            return Err(TooLong { len });
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let message = Message {
            operation: header.operation,
            req_id: header.req_id,
            tx_id: header.tx_id,
            payload: payload.to_vec(),
        };
        self.used += HEADER + len;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(req_id: u32, payload: &[u8]) -> Message {
        Message {
            operation: Operation::Write.into(),
            req_id,
            tx_id: 3,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn a_payload_over_the_limit_ends_the_stream() {
        let mut out = Vec::new();
        encode(&mut out, Operation::Read, 1, 0, &[&[0; PAYLOAD_MAX]]).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&out);
        assert!(decoder.message().unwrap().is_some());
        let len = PAYLOAD_MAX + 1;
        let refused = encode(&mut out, Operation::Read, 1, 0, &[&[0; PAYLOAD_MAX], &[1]]);
        assert_eq!(refused, Err(TooLong { len }));
        let header = MessageHeader {
            operation: 2,
            req_id: 0,
            tx_id: 0,
            len: len as u32,
        };
        decoder.push(header.as_bytes());
        assert_eq!(decoder.message(), Err(TooLong { len }));
        decoder.push(&[0; 100]);
        assert_eq!(decoder.message(), Err(TooLong { len }));
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_the_stream_is_cut(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..8),
            cuts in proptest::collection::vec(1usize..40, 1..40),
        ) {
            let mut stream = Vec::new();
            for (payload, req_id) in payloads.iter().zip(0..) {
                let (a, b) = payload.split_at(payload.len() / 2);
                encode(&mut stream, Operation::Write, req_id, 3, &[a, b]).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut messages = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.push(now);
                while let Some(message) = decoder.message().unwrap() {
                    messages.push(message);
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let expected: Vec<_> = payloads.iter().zip(0..).map(|(p, id)| message(id, p)).collect();
            prop_assert_eq!(messages, expected);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn arbitrary_bytes_make_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(message)) = decoder.message() {
                prop_assert!(message.payload.len() <= PAYLOAD_MAX);
            }
        }
    }
}
