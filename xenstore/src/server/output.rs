//! What a connection is still to be sent.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use parapet_hypervisor::seam::Instant;
use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation};
use zerocopy::FromBytes;

use crate::store::ClientId;
use crate::wire::{TooLong, encode};

/// Messages on their way to one client, as bytes.
///
/// An event that waits here already is not queued again (XSA-349): the client has to look once
/// however often something changes before it does.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// How many of `bytes`, at their beginning, are the rest of a message that began before them.
    begun: usize,
    /// How many bytes were ever queued before `bytes`.
    base: u64,
    waiting: BTreeSet<Arc<[u8]>>,
    /// All events that wait, and the answers for which somebody has a debt, in order.
    order: VecDeque<Waiting>,
}

struct Waiting {
    /// Where its message begins, counted in all bytes ever.
    start: u64,
    /// None for an answer.
    event: Option<Event>,
    debt: Option<Debt>,
}

struct Event {
    payload: Arc<[u8]>,
    /// The bytes of its message.
    len: usize,
    /// When it was queued.
    since: Instant,
}

/// Something that waits here because of a guest's request, which is outstanding until it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Debt {
    pub(super) causer: ClientId,
    /// Its number among those of the causer.
    pub(super) request: u64,
    /// The bytes of an event that waits at another client. An answer is its client's own.
    pub(super) bytes: usize,
}

impl Output {
    /// What to send next.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or(&[])
    }

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// How many events wait.
    pub(super) fn events(&self) -> usize {
        self.order.len()
    }

    /// The first `len` of [`Output::bytes`] are gone. The debts that end with that: an event's
    /// does once its message begins to go.
    pub(super) fn sent(&mut self, len: usize) -> Vec<Debt> {
        self.sent = self.bytes.len().min(self.sent + len);
        let sent = self.base + self.sent as u64;
        let mut ended = Vec::new();
        while let Some(Waiting { event, debt, .. }) = self.order.pop_front_if(|e| e.start < sent) {
            if let Some(event) = event {
                self.waiting.remove(&event.payload);
            }
            ended.extend(debt);
        }
        // What is left to move is less than what was gained, or the buffer is empty.
        if self.sent * 2 >= self.bytes.len() {
            self.begun = match self.sent == self.bytes.len() {
                true => 0,
                false => self.partial(),
            };
            self.bytes.drain(..self.sent);
            self.base += self.sent as u64;
            self.sent = 0;
        }
        ended
    }

    /// How many bytes at the beginning of [`Output::bytes`] are the rest of a message that is sent
    /// in part.
    pub(super) fn partial(&self) -> usize {
        let mut end = self.begun;
        while end < self.sent {
            let message = self.bytes.get(end..).unwrap_or(&[]);
            let Ok((header, _)) = MessageHeader::read_from_prefix(message) else {
                break;
            };
            let payload = usize::try_from(header.len).unwrap_or(usize::MAX);
            end = end.saturating_add(size_of::<MessageHeader>().saturating_add(payload));
        }
        end.saturating_sub(self.sent)
    }

    /// What another xenstored was still to send, of which `partial` bytes are the rest of a message.
    pub(super) fn restore(&mut self, bytes: &[u8], partial: usize) {
        self.bytes = bytes.into();
        self.begun = partial;
    }

    pub(super) fn answer(
        &mut self,
        operation: Operation,
        req_id: u32,
        tx_id: u32,
        payload: &[u8],
        debt: Option<Debt>,
    ) -> Result<(), TooLong> {
        let start = self.base + self.bytes.len() as u64;
        encode(&mut self.bytes, operation, req_id, tx_id, &[payload])?;
        if debt.is_some() {
            let event = None;
            self.order.push_back(Waiting { start, event, debt });
        }
        Ok(())
    }

    /// Queues an event, unless the same waits already or it is longer than a message may be.
    /// xenstored's own events are never left out: each is for another domain.
    ///
    /// If there is a request of a guest's to charge, its debt is returned.
    pub(super) fn event(
        &mut self,
        path: &str,
        token: &[u8],
        since: Instant,
        causer: Option<(ClientId, u64)>,
    ) -> Option<Debt> {
        let payload = [path.as_bytes(), b"\0", token, b"\0"].concat();
        let payload: Arc<[u8]> = payload.into();
        let unique = !path.starts_with('@');
        if unique && self.waiting.contains(&payload) {
            return None;
        }
        let before = self.bytes.len();
        encode(&mut self.bytes, Operation::WatchEvent, 0, 0, &[&payload]).ok()?;
        if unique {
            self.waiting.insert(payload.clone());
        }
        let len = self.bytes.len() - before;
        let debt = causer.map(|(causer, request)| Debt {
            causer,
            request,
            bytes: len,
        });
        self.order.push_back(Waiting {
            start: self.base + before as u64,
            event: Some(Event {
                payload,
                len,
                since,
            }),
            debt,
        });
        debt
    }

    /// Since when the oldest event waits of which nothing is sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let mut events = self.order.iter().filter_map(|it| it.event.as_ref());
        events.next().map(|event| event.since)
    }

    /// Drops the events of which nothing is sent and that are `old`: how many those were, and the
    /// debts that end with that.
    pub(super) fn expire(&mut self, old: impl Fn(Instant) -> bool) -> (u64, Vec<Debt>) {
        let (mut kept, mut ended) = (Vec::new(), Vec::new());
        let before = self.order.len();
        let (mut done, mut cut) = (0, 0);
        self.order.retain_mut(|it| {
            let Some(event) = it.event.as_ref().filter(|event| old(event.since)) else {
                it.start -= cut;
                return true;
            };
            let start = usize::try_from(it.start - self.base).unwrap_or(usize::MAX);
            kept.extend_from_slice(self.bytes.get(done..start).unwrap_or(&[]));
            done = start.saturating_add(event.len);
            cut += event.len as u64;
            self.waiting.remove(&event.payload);
            ended.extend(it.debt);
            false
        });
        kept.extend_from_slice(self.bytes.get(done..).unwrap_or(&[]));
        self.bytes = kept;
        ((before - self.order.len()) as u64, ended)
    }

    /// Forgets all that waits. The debts that end with that.
    pub(super) fn clear(&mut self) -> Vec<Debt> {
        let all = mem::take(self);
        all.order.into_iter().filter_map(|e| e.debt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Decoder;

    const NOW: Instant = Instant::from_nanos(0);

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
            output.event("/a", b"t", NOW, None);
            output.event("/b", b"t", NOW, None);
        }
        assert_eq!(events(output.bytes()), [b"/a\0t\0", b"/b\0t\0"]);
        output.sent(1);
        output.event("/a", b"t", NOW, None);
        output.event("/b", b"t", NOW, None);
        assert_eq!(output.len(), 3 * 21 - 1);
        output.sent(output.len());
        output.event("/b", b"t", NOW, None);
        assert_eq!(events(output.bytes()), [b"/b\0t\0"]);
    }

    #[test]
    fn the_rest_of_a_message_is_told_from_the_next_wherever_sending_stopped() {
        let mut whole = Output::default();
        let ends = [1, 30, 0].map(|len| {
            whole
                .answer(Operation::Read, 1, 0, &[b'x'; 30][..len], None)
                .unwrap();
            whole.len()
        });
        let message = whole.bytes().to_vec();
        for first in 0..=message.len() {
            for second in 0..=message.len() - first {
                let mut output = Output::default();
                output.restore(&message, 0);
                output.sent(first);
                output.sent(second);
                let at = first + second;
                let end = [0].into_iter().chain(ends).find(|end| *end >= at);
                assert_eq!(output.partial(), end.unwrap() - at, "{first} {second}");
            }
        }
    }

    #[test]
    fn every_special_event_is_told() {
        let mut output = Output::default();
        output.event("@releaseDomain", b"t", NOW, None);
        output.event("@releaseDomain", b"t", NOW, None);
        assert_eq!(events(output.bytes()).len(), 2);
    }

    #[test]
    fn an_event_too_long_for_a_message_is_left_out() {
        let mut output = Output::default();
        assert_eq!(
            output.event("/a", &[b'x'; 4096], NOW, Some((ClientId(1), 1))),
            None
        );
        assert_eq!(output.len(), 0);
    }

    #[test]
    fn a_debt_ends_once_its_event_begins_to_go_or_all_is_forgotten() {
        let mut output = Output::default();
        let mut cause = |path, causer| output.event(path, b"t", NOW, Some((ClientId(causer), 1)));
        let first = cause("/a", 1).unwrap();
        assert_eq!((first.causer, first.bytes), (ClientId(1), 21));
        assert_eq!(cause("/a", 2), None, "it waits already, at another's cost");
        let second = cause("@releaseDomain", 2).unwrap();
        let third = cause("/c", 1).unwrap();
        assert_eq!(output.sent(1), [first]);
        assert_eq!(output.sent(20), []);
        assert_eq!(output.sent(second.bytes), [second]);
        assert_eq!(output.clear(), [third]);
        assert_eq!((output.len(), output.clear()), (0, Vec::new()));
    }

    #[test]
    fn events_too_old_are_dropped_and_what_was_begun_is_not() {
        let mut output = Output::default();
        let at = Instant::from_nanos;
        let (causer, request, bytes) = (ClientId(1), 7, 0);
        let answer = Some(Debt {
            causer,
            request,
            bytes,
        });
        output.event("/begun", b"t", at(1), None);
        let old = output.event("/old", b"t", at(1), Some((causer, 3)));
        output.answer(Operation::Read, 9, 0, b"x", answer).unwrap();
        output.event("@old", b"t", at(2), None);
        output.event("/new", b"t", at(3), None);
        output.sent(1);
        assert_eq!(output.oldest(), Some(at(1)));
        assert_eq!(
            output.expire(|since| since < at(3)),
            (2, Vec::from_iter(old))
        );
        assert_eq!(output.oldest(), Some(at(3)));
        let mut whole = Vec::new();
        encode(&mut whole, Operation::WatchEvent, 0, 0, &[b"/begun\0t\0"]).unwrap();
        encode(&mut whole, Operation::Read, 9, 0, &[b"x"]).unwrap();
        encode(&mut whole, Operation::WatchEvent, 0, 0, &[b"/new\0t\0"]).unwrap();
        assert_eq!(output.bytes(), &whole[1..]);
        assert_eq!(output.sent(whole.len() - 25), Vec::from_iter(answer));
        output.event("/old", b"t", at(4), None);
        assert!(output.bytes().ends_with(b"/old\0t\0"));
    }
}
