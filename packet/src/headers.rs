//! Where the headers of a packet are, and what the few fields say that concern us.

use core::ops::Range;

use crate::checksum::{Sum, pseudo};
use crate::mac::Mac;

/// The Ethernet header's length, without tags.
pub const ETHERNET: usize = 14;

/// Extension headers of IPv6 that are looked through; an honest packet has one or two.
const EXTENSIONS: usize = 8;

/// Numbers that name a protocol in an Ethernet header.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// Address resolution for it.
    pub const ARP: u16 = 0x0806;
    /// A VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// A service provider's VLAN tag.
    pub const SERVICE_VLAN: u16 = 0x88A8;
    /// IPv6.
    pub const IPV6: u16 = 0x86DD;
}

/// Numbers that name a protocol in an IP header.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6, neighbour discovery included.
    pub const ICMPV6: u8 = 58;
}

/// The first bytes of a packet, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// For whom it is.
    pub destination: Mac,
    /// Whom it is from.
    pub source: Mac,
    /// The VLAN that its outermost tag names.
    pub vlan: Option<u16>,
    /// What it carries, after all tags.
    pub ether_type: u16,
    /// Where that begins.
    pub network_at: usize,
    /// The network header, if it is one of IP that makes sense and was seen whole.
    pub network: Option<Network>,
}

/// An IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Whose.
    pub version: Version,
    /// Where the addresses are: the source's, then the destination's.
    pub addresses_at: usize,
    /// Where the packet ends, without padding.
    pub end: usize,
    /// Whether it is a part of a larger one.
    pub fragment: bool,
    /// The protocol of what follows.
    pub protocol: u8,
    /// Where that begins: for a fragment that is not the first, the middle of something.
    pub transport_at: usize,
    /// The transport header, if it is TCP's or UDP's, makes sense and was seen whole.
    pub transport: Option<Transport>,
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

impl Version {
    /// How long both addresses are together, in bytes.
    pub const fn addresses(self) -> usize {
        match self {
            Version::V4 => 8,
            Version::V6 => 32,
        }
    }
}

/// A transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP's.
    Tcp {
        /// Where its payload begins.
        payload_at: usize,
    },
    /// UDP's.
    Udp {
        /// Where its payload begins.
        payload_at: usize,
    },
}

impl Transport {
    /// Where the checksum is, from the header's beginning, in bytes.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Transport::Tcp { .. } => 16,
            Transport::Udp { .. } => 6,
        }
    }

    /// Where its payload begins.
    pub const fn payload_at(self) -> usize {
        match self {
            Transport::Tcp { payload_at } | Transport::Udp { payload_at } => payload_at,
        }
    }
}

/// A packet has not even an Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {0} bytes has no Ethernet header")]
pub struct Runt(pub usize);

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|&word| u16::from_be_bytes(word))
}

impl Headers {
    /// Understands the `head` of a packet of `len` bytes. What makes no sense is as if it were not
    /// there: an Ethernet carries anything.
    ///
    /// # Errors
    /// There is no Ethernet header.
    pub fn parse(head: &[u8], len: usize) -> Result<Self, Runt> {
        let runt = || Runt(head.len());
        let destination = Mac(*head.first_chunk().ok_or_else(runt)?);
        let source = head.get(6..).and_then(<[u8]>::first_chunk);
        let source = Mac(*source.ok_or_else(runt)?);
        let mut ether_type = word(head, 12).ok_or_else(runt)?;
        let mut network_at = ETHERNET;
        let mut vlan = None;
        for _ in 0..2 {
            if !matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN) {
                break;
            }
            let (Some(tag), Some(inner)) = (word(head, network_at), word(head, network_at + 2))
            else {
                break;
            };
            vlan = vlan.or(Some(tag & 0xFFF));
            ether_type = inner;
            network_at += 4;
        }
        let network = match ether_type {
            ether_type::IPV4 => v4(head, len, network_at),
            ether_type::IPV6 => v6(head, len, network_at),
            _ => None,
        };
        Ok(Headers {
            destination,
            source,
            vlan,
            ether_type,
            network_at,
            network,
        })
    }

    /// The network header and the transport header after it, if they are understood, and not of a
    /// fragment.
    pub fn transport(&self) -> Option<(Network, Transport)> {
        let network = self.network?;
        Some((network, network.transport?))
    }

    /// How long the headers are together, if they are understood up to the transport header's end.
    pub fn len(&self) -> Option<usize> {
        self.transport()
            .map(|(_, transport)| transport.payload_at())
    }

    /// Never: there is an Ethernet header.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// What a checksum left blank is to be made of, and where it goes.
    pub fn checksum(&self) -> Option<ChecksumPlace> {
        let (network, transport) = self.transport()?;
        let start = network.transport_at;
        Some(ChecksumPlace {
            covers: start..network.end,
            field: start + transport.checksum_offset(),
            is_udp: matches!(transport, Transport::Udp { .. }),
        })
    }

    /// The sum of its pseudo header, for a transport header and payload of `len` bytes. `head` is
    /// what this was parsed from.
    pub fn pseudo(&self, head: &[u8], len: u32) -> Option<Sum> {
        let network = self.network?;
        let from = network.addresses_at;
        let addresses = head.get(from..from + network.version.addresses())?;
        Some(pseudo(addresses, network.protocol, len))
    }
}

/// Where a transport checksum goes, and what it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumPlace {
    /// The transport header and its payload, in bytes of the packet.
    pub covers: Range<usize>,
    /// Where the field is.
    pub field: usize,
    /// Whether a zero means that there is none.
    pub is_udp: bool,
}

impl ChecksumPlace {
    /// What to write into the field, given the sum of all it covers, with the pseudo header's sum
    /// in the field.
    pub fn value(&self, sum: Sum) -> [u8; 2] {
        match sum.finish() {
            0 if self.is_udp => [0xFF; 2],
            value => value.to_be_bytes(),
        }
    }
}

fn v4(head: &[u8], len: usize, at: usize) -> Option<Network> {
    let header = head.get(at..)?;
    let first = *header.first()?;
    let header_len = usize::from(first & 0xF) * 4;
    let total = usize::from(word(header, 2)?);
    let fragment = word(header, 6)? & 0x3FFF != 0;
    let protocol = *header.get(9)?;
    let sane = first >> 4 == 4
        && header_len >= 20
        && header.len() >= header_len
        && total >= header_len
        && at + total <= len;
    let (end, transport_at) = (at + total, at + header_len);
    sane.then(|| Network {
        version: Version::V4,
        addresses_at: at + 12,
        end,
        fragment,
        protocol,
        transport_at,
        transport: transport(head, protocol, transport_at, end).filter(|_| !fragment),
    })
}

fn v6(head: &[u8], len: usize, at: usize) -> Option<Network> {
    let header = head.get(at..at + 40)?;
    let end = at + 40 + usize::from(word(header, 4)?);
    if header[0] >> 4 != 6 || end > len {
        return None;
    }
    let mut network = Network {
        version: Version::V6,
        addresses_at: at + 8,
        end,
        fragment: false,
        protocol: header[6],
        transport_at: at + 40,
        transport: None,
    };
    for _ in 0..EXTENSIONS {
        let extension = head.get(network.transport_at..);
        let field = |index: usize| extension.and_then(|bytes| bytes.get(index)).copied();
        let len = match network.protocol {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => field(1).map(|units| (usize::from(units) + 1) * 8),
            44 => {
                network.fragment = true;
                Some(8)
            }
            // Authentication.
            51 => field(1).map(|units| (usize::from(units) + 2) * 4),
            _ => {
                if !network.fragment {
                    network.transport =
                        transport(head, network.protocol, network.transport_at, end);
                }
                break;
            }
        };
        match (field(0), len) {
            (Some(next), Some(len)) if network.transport_at + len <= end => {
                network.protocol = next;
                network.transport_at += len;
            }
            _ => break,
        }
    }
    Some(network)
}

fn transport(head: &[u8], protocol: u8, at: usize, end: usize) -> Option<Transport> {
    let header = head.get(at..)?;
    let found = match protocol {
        protocol::TCP => {
            let header_len = usize::from(*header.get(12)? >> 4) * 4;
            let payload_at = at + header_len;
            (header_len >= 20).then_some(Transport::Tcp { payload_at })?
        }
        protocol::UDP => Transport::Udp { payload_at: at + 8 },
        _ => return None,
    };
    let payload_at = found.payload_at();
    (payload_at <= head.len() && payload_at <= end).then_some(found)
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// A packet of TCP or UDP with a blank checksum.
    pub(crate) fn packet(version: Version, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = if protocol == protocol::TCP { 20 } else { 8 };
        let transport_len = header_len + payload.len();
        let mut bytes = vec![0xFF; 6];
        bytes.extend([0, 0x16, 0x3e, 1, 2, 3]);
        let addresses: Vec<u8>;
        match version {
            Version::V4 => {
                bytes.extend(ether_type::IPV4.to_be_bytes());
                addresses = vec![10, 0, 0, 1, 10, 0, 0, 2];
                let mut header = vec![0x45, 0];
                header.extend(((20 + transport_len) as u16).to_be_bytes());
                header.extend([0x12, 0xFF, 0x40, 0, 64, protocol, 0, 0]);
                header.extend(&addresses);
                let sum = Sum::new().and(&header).finish();
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend(header);
            }
            Version::V6 => {
                bytes.extend(ether_type::IPV6.to_be_bytes());
                addresses = (0..32).collect();
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend((transport_len as u16).to_be_bytes());
                bytes.extend([protocol, 64]);
                bytes.extend(&addresses);
            }
        }
        let blank = pseudo(&addresses, protocol, transport_len as u32).folded();
        let mut header = vec![0; header_len];
        header[..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        if protocol == protocol::TCP {
            header[4..8].copy_from_slice(&0xFFFF_FF00u32.to_be_bytes());
            header[12] = 0x50;
            header[13] = 0b1001_1001;
            header[16..18].copy_from_slice(&blank.to_be_bytes());
        } else {
            header[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            header[6..8].copy_from_slice(&blank.to_be_bytes());
        }
        bytes.extend(header);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn the_headers_of_tcp_and_udp_are_found_under_tags_and_extensions() {
        for version in [Version::V4, Version::V6] {
            for protocol in [protocol::TCP, protocol::UDP] {
                let plain = packet(version, protocol, b"hello");
                let headers = Headers::parse(&plain, plain.len()).unwrap();
                let payload_at = plain.len() - 5;
                assert_eq!(headers.len(), Some(payload_at));
                assert_eq!(headers.vlan, None);

                let mut tagged = plain.clone();
                tagged.splice(12..12, [0x81, 0, 0x20, 42]);
                let headers = Headers::parse(&tagged, tagged.len()).unwrap();
                assert_eq!(headers.vlan, Some(42));
                assert_eq!(headers.len(), Some(payload_at + 4));
            }
        }
        let mut extended = packet(Version::V6, protocol::UDP, b"hello");
        extended.splice(54..54, [protocol::UDP, 0, 0, 0, 0, 0, 0, 0]);
        extended[20] = 0;
        let payload = (extended.len() - 54) as u16;
        extended[18..20].copy_from_slice(&payload.to_be_bytes());
        let headers = Headers::parse(&extended, extended.len()).unwrap();
        assert_eq!(headers.len(), Some(extended.len() - 5));
    }

    #[test]
    fn a_fragment_has_no_transport_header() {
        let mut bytes = packet(Version::V4, protocol::UDP, b"hello");
        bytes[20] = 0x20;
        let headers = Headers::parse(&bytes, bytes.len()).unwrap();
        assert!(headers.network.unwrap().fragment);
        assert_eq!(headers.transport(), None);
    }

    #[test]
    fn lengths_past_the_end_are_not_believed() {
        for version in [Version::V4, Version::V6] {
            let bytes = packet(version, protocol::TCP, b"hello");
            let headers = Headers::parse(&bytes, bytes.len() - 1).unwrap();
            assert_eq!(headers.network, None);
        }
        let mut bytes = packet(Version::V4, protocol::TCP, b"");
        // A TCP header of sixty bytes, where there are twenty.
        bytes[46] = 0xF0;
        let headers = Headers::parse(&bytes, bytes.len()).unwrap();
        assert_eq!(headers.transport(), None);
    }

    #[test]
    fn a_blank_checksum_is_completed_by_the_sum_of_all_it_covers() {
        for version in [Version::V4, Version::V6] {
            for protocol in [protocol::TCP, protocol::UDP] {
                let mut bytes = packet(version, protocol, b"some payload");
                let headers = Headers::parse(&bytes, bytes.len()).unwrap();
                let place = headers.checksum().unwrap();
                let value = place.value(Sum::new().and(&bytes[place.covers.clone()]));
                bytes[place.field..place.field + 2].copy_from_slice(&value);
                let len = place.covers.len() as u32;
                let pseudo = headers.pseudo(&bytes, len).unwrap();
                assert!(pseudo.and(&bytes[place.covers]).is_intact());
            }
        }
    }

    proptest! {
        #[test]
        fn all_that_is_found_is_inside_what_was_seen(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0usize..4,
            more in 0usize..100,
        ) {
            let starts: [&[u8]; 4] =
                [&[0x08, 0, 0x45], &[0x86, 0xDD, 0x60], &[0x81, 0, 0, 1, 8, 0, 0x46], &[0x88, 0xA8]];
            let start = starts[kind];
            if bytes.len() >= 12 + start.len() {
                bytes[12..12 + start.len()].copy_from_slice(start);
            }
            let len = bytes.len() + more;
            let Ok(headers) = Headers::parse(&bytes, len) else {
                prop_assert!(bytes.len() < ETHERNET);
                return Ok(());
            };
            prop_assert!(headers.network_at <= bytes.len());
            if let Some(network) = headers.network {
                prop_assert!(network.end <= len);
                prop_assert!(network.transport_at <= network.end);
                let addresses = network.addresses_at + network.version.addresses();
                prop_assert!(addresses <= bytes.len());
            }
            if let Some(place) = headers.checksum() {
                prop_assert!(place.field + 2 <= bytes.len());
                prop_assert!(place.covers.end <= len);
            }
        }
    }
}
