//! Cutting a packet into segments, where nobody further on does it.

use core::num::NonZeroUsize;
use core::ops::Range;

use crate::checksum::Sum;
use crate::headers::{Headers, Network, Transport, Version};
use crate::offloads::{Gso, GsoKind};

/// TCP's flags for the last segment alone: FIN and PSH.
const LAST_ONLY: u8 = 0x09;
/// For the first alone: CWR, the answer to one mark of congestion.
const FIRST_ONLY: u8 = 0x80;

/// The segments of a packet, one after the other.
#[derive(Debug, Clone)]
pub struct Segments {
    network_at: usize,
    network: Network,
    payload_at: usize,
    size: NonZeroUsize,
    next: usize,
    index: u16,
}

/// A packet cannot be cut as it is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotCut {
    /// It is another protocol's.
    #[error("it is to be cut as {0:?}, and is not such a packet")]
    Protocol(GsoKind),
}

/// One segment: its headers have been written, its payload is still where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// How long its headers are.
    pub headers: usize,
    /// Its payload, in bytes of the packet that is cut.
    pub payload: Range<usize>,
}

/// Whether a packet with these headers can be cut so.
pub fn is_fit(gso: Gso, headers: &Headers) -> bool {
    let version = match gso.kind {
        GsoKind::TcpV4 => Version::V4,
        GsoKind::TcpV6 => Version::V6,
    };
    matches!(
        headers.transport(),
        Some((network, Transport::Tcp { .. })) if network.version == version
    )
}

impl Segments {
    /// The segments of a packet with these headers.
    ///
    /// # Errors
    /// It is another protocol's.
    pub fn new(headers: &Headers, gso: Gso) -> Result<Self, NotCut> {
        let (Some((network, transport)), true) = (headers.transport(), is_fit(gso, headers)) else {
            return Err(NotCut::Protocol(gso.kind));
        };
        Ok(Segments {
            network_at: headers.network_at,
            network,
            payload_at: transport.payload_at(),
            size: gso.size.into(),
            next: 0,
            index: 0,
        })
    }

    /// How many there are: at least one.
    pub fn count(&self) -> usize {
        let payload = self.network.end - self.payload_at;
        payload.div_ceil(self.size.get()).max(1)
    }

    /// The next segment: its headers are written to the beginning of `to`, made from `head`, the
    /// packet's own. Its checksum is left blank: the field has the pseudo header's sum. Nothing
    /// when there are no more, or `to` or `head` is too short for the headers.
    pub fn next(&mut self, head: &[u8], to: &mut [u8]) -> Option<Segment> {
        let payload = self.network.end - self.payload_at;
        if self.next > 0 && self.next >= payload {
            return None;
        }
        let headers = self.payload_at;
        to.get_mut(..headers)?.copy_from_slice(head.get(..headers)?);
        let len = self.size.get().min(payload - self.next);
        let is_last = self.next + len >= payload;

        let ip_len = headers - self.network_at + len;
        let ip = self.network_at;
        match self.network.version {
            Version::V4 => {
                let id = u16::from_be_bytes([to[ip + 4], to[ip + 5]]).wrapping_add(self.index);
                // No longer than the packet, which is of at most 2^16 bytes.
                put(to, ip + 2, ip_len as u16);
                put(to, ip + 4, id);
                put(to, ip + 10, 0);
                let sum = Sum::new().and(&to[ip..self.network.transport_at]).finish();
                put(to, ip + 10, sum);
            }
            Version::V6 => put(to, ip + 4, (ip_len - 40) as u16),
        }

        let tcp = self.network.transport_at;
        let sequence = [to[tcp + 4], to[tcp + 5], to[tcp + 6], to[tcp + 7]];
        let sequence = u32::from_be_bytes(sequence).wrapping_add(self.next as u32);
        to[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        if !is_last {
            to[tcp + 13] &= !LAST_ONLY;
        }
        if self.index > 0 {
            to[tcp + 13] &= !FIRST_ONLY;
        }
        let from = self.network.addresses_at;
        let addresses = &to[from..from + self.network.version.addresses()];
        let transport_len = (headers - tcp + len) as u32;
        let blank = crate::checksum::pseudo(addresses, self.network.protocol, transport_len);
        put(to, tcp + 16, blank.folded());

        let start = self.payload_at + self.next;
        self.next += len.max(1);
        self.index = self.index.wrapping_add(1);
        Some(Segment {
            headers,
            payload: start..start + len,
        })
    }
}

fn put(to: &mut [u8], at: usize, word: u16) {
    to[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::num::NonZeroU16;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::headers::tests::packet;
    use crate::headers::{Headers, protocol};

    fn gso(kind: GsoKind, size: u16) -> Gso {
        Gso {
            kind,
            size: NonZeroU16::new(size).unwrap(),
        }
    }

    fn cut(bytes: &[u8], gso: Gso) -> Vec<Vec<u8>> {
        let headers = Headers::parse(bytes, bytes.len()).unwrap();
        let mut segments = Segments::new(&headers, gso).unwrap();
        let count = segments.count();
        let mut to = [0; 256];
        let mut out = Vec::new();
        while let Some(segment) = segments.next(bytes, &mut to) {
            let mut packet = to[..segment.headers].to_vec();
            packet.extend(&bytes[segment.payload]);
            out.push(packet);
        }
        assert_eq!(out.len(), count);
        out
    }

    #[test]
    fn what_is_no_such_packet_is_not_cut() {
        let udp = packet(Version::V4, protocol::UDP, &[0; 100]);
        let headers = Headers::parse(&udp, udp.len()).unwrap();
        assert!(Segments::new(&headers, gso(GsoKind::TcpV4, 10)).is_err());
        let tcp = packet(Version::V4, protocol::TCP, &[0; 100]);
        let headers = Headers::parse(&tcp, tcp.len()).unwrap();
        assert!(Segments::new(&headers, gso(GsoKind::TcpV6, 10)).is_err());
    }

    #[test]
    fn a_packet_without_payload_is_one_segment() {
        let bytes = packet(Version::V6, protocol::TCP, b"");
        assert_eq!(cut(&bytes, gso(GsoKind::TcpV6, 1)), [bytes]);
    }

    #[test]
    fn flags_that_belong_to_one_end_are_only_there() {
        let bytes = packet(Version::V4, protocol::TCP, &[7; 25]);
        let flags: Vec<u8> = cut(&bytes, gso(GsoKind::TcpV4, 10))
            .iter()
            .map(|segment| segment[47])
            .collect();
        assert_eq!(flags, [0b1001_0000, 0b0001_0000, 0b0001_1001]);
    }

    proptest! {
        #[test]
        fn segments_are_packets_that_together_have_the_payload_once(
            payload in proptest::collection::vec(any::<u8>(), 0..4000),
            size in 1u16..1500,
            v6 in any::<bool>(),
        ) {
            let (version, kind) = match v6 {
                true => (Version::V6, GsoKind::TcpV6),
                false => (Version::V4, GsoKind::TcpV4),
            };
            let bytes = packet(version, protocol::TCP, &payload);
            let mut together: Vec<u8> = Vec::new();
            for segment in cut(&bytes, gso(kind, size)) {
                let headers = Headers::parse(&segment, segment.len()).unwrap();
                let network = headers.network.unwrap();
                prop_assert_eq!(network.end, segment.len());
                let place = headers.checksum().unwrap();
                // Blank: the sum of the pseudo header is in the field.
                let blank = headers.pseudo(&segment, place.covers.len() as u32).unwrap().folded();
                let field = u16::from_be_bytes([segment[place.field], segment[place.field + 1]]);
                prop_assert_eq!(field, blank);
                if !v6 {
                    prop_assert!(Sum::new().and(&segment[14..34]).is_intact());
                }
                let tcp = network.transport_at;
                let sequence = u32::from_be_bytes(segment[tcp + 4..tcp + 8].try_into().unwrap());
                prop_assert_eq!(sequence, 0xFFFF_FF00u32.wrapping_add(together.len() as u32));
                let own = &segment[headers.len().unwrap()..];
                prop_assert!(own.len() <= usize::from(size));
                together.extend(own);
            }
            prop_assert_eq!(together, payload);
        }
    }
}
