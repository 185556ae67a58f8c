//! What a connection is still to be sent.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use parapet_xen_sys::io::xs_wire::Operation;

use crate::wire::{TooLong, encode};

/// Messages on their way to one client, as bytes.
///
/// An event that waits here already is not queued again (XSA-349): the client has to look once
/// however often something changes before it does.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// How many bytes were ever queued before `bytes`.
    base: u64,
    waiting: BTreeSet<Arc<[u8]>>,
    /// The same in order, each with where its message begins, counted in all bytes ever.
    order: VecDeque<(u64, Arc<[u8]>)>,
}

impl Output {
    /// What to send next.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or(&[])
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// The first `len` of [`Output::bytes`] are gone.
    pub(super) fn sent(&mut self, len: usize) {
        self.sent = self.bytes.len().min(self.sent + len);
        let sent = self.base + self.sent as u64;
        while let Some((_, event)) = self.order.pop_front_if(|(start, _)| *start < sent) {
            self.waiting.remove(&event);
        }
        // What is left to move is less than what was gained, or the buffer is empty.
        if self.sent * 2 >= self.bytes.len() {
            self.bytes.drain(..self.sent);
            self.base += self.sent as u64;
            self.sent = 0;
        }
    }

    pub(super) fn answer(
        &mut self,
        operation: Operation,
        req_id: u32,
        tx_id: u32,
        payload: &[u8],
    ) -> Result<(), TooLong> {
        encode(&mut self.bytes, operation, req_id, tx_id, &[payload])
    }

    /// Queues an event, unless the same waits already or it is longer than a message may be.
    /// xenstored's own events are never left out: each is for another domain.
    pub(super) fn event(&mut self, path: &str, token: &[u8]) {
        let payload = [path.as_bytes(), b"\0", token, b"\0"].concat();
        let payload: Arc<[u8]> = payload.into();
        let unique = !path.starts_with('@');
        if unique && self.waiting.contains(&payload) {
            return;
        }
        let start = self.base + self.bytes.len() as u64;
        let fits = encode(&mut self.bytes, Operation::WatchEvent, 0, 0, &[&payload]).is_ok();
        if unique && fits {
            self.waiting.insert(payload.clone());
            self.order.push_back((start, payload));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Output::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Decoder;

    fn events(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        core::iter::from_fn(|| decoder.message().unwrap())
            .map(|message| message.payload)
            .collect()
    }

    #[test]
    fn an_event_that_waits_is_not_queued_again_until_it_is_sent() {
        let mut output = Output::default();
        for _ in 0..3 {
            output.event("/a", b"t");
            output.event("/b", b"t");
        }
        assert_eq!(events(output.bytes()), [b"/a\0t\0", b"/b\0t\0"]);
        output.sent(1);
        output.event("/a", b"t");
        output.event("/b", b"t");
        assert_eq!(output.len(), 3 * 21 - 1);
        output.sent(output.len());
        output.event("/b", b"t");
        assert_eq!(events(output.bytes()), [b"/b\0t\0"]);
    }

    #[test]
    fn every_special_event_is_told() {
        let mut output = Output::default();
        output.event("@releaseDomain", b"t");
        output.event("@releaseDomain", b"t");
        assert_eq!(events(output.bytes()).len(), 2);
    }

    #[test]
    fn an_event_too_long_for_a_message_is_left_out() {
        let mut output = Output::default();
        output.event("/a", &[b'x'; 4096]);
        assert_eq!(output.len(), 0);
    }
}
