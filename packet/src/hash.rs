//! Which flow a packet belongs to: Toeplitz's hash, as network devices make it to spread packets
//! over queues.
//!
//! Sources: `XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ` of `io/netif.h`; Microsoft's "RSS hashing
//! types" and its "Verifying the RSS hash calculation", whose examples are tests here.

use parapet_xen_sys::io::netif::{HashType, HashTypes};

use crate::headers::{Headers, Transport, Version};

/// The longest key, in bytes.
pub const LONGEST_KEY: usize = 40;

/// The longest input: two IPv6 addresses and two ports.
const LONGEST_INPUT: usize = 36;

/// A key, made ready: for each four bits of input, at each place, what they add to the hash.
#[derive(Debug, Clone)]
pub struct Toeplitz([[u32; 16]; LONGEST_INPUT * 2]);

impl Toeplitz {
    /// Makes a key ready. One shorter than [`LONGEST_KEY`] is as if zeroes followed, of one that is
    /// longer only so much counts.
    pub fn new(key: &[u8]) -> Self {
        let byte = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
        let mut table = [[0; 16]; LONGEST_INPUT * 2];
        for (nibble, sums) in table.iter_mut().enumerate() {
            // The forty bits of the key from this input byte's place on.
            let at = nibble / 2;
            let window = (at..at + 5).fold(0, |window, at| window << 8 | byte(at));
            for (value, sum) in sums.iter_mut().enumerate() {
                for bit in 0..4 {
                    if value & (8 >> bit) != 0 {
                        let shift = 8 - (nibble % 2) * 4 - bit;
                        *sum ^= (window >> shift) as u32;
                    }
                }
            }
        }
        Toeplitz(table)
    }

    /// The hash of some bytes, of which the first 36 count.
    pub fn of(&self, input: &[u8]) -> u32 {
        input
            .iter()
            .zip(self.0.chunks_exact(2))
            .fold(0, |hash, (&byte, sums)| {
                hash ^ sums[0][usize::from(byte >> 4)] ^ sums[1][usize::from(byte & 0xF)]
            })
    }

    /// The hash of a packet, and of what it was made, if it is one of `types`. `head` is what
    /// `headers` was parsed from.
    pub fn of_packet(
        &self,
        head: &[u8],
        headers: &Headers,
        types: HashTypes,
    ) -> Option<(HashType, u32)> {
        let network = headers.network?;
        let len = network.version.addresses();
        let mut input = [0; LONGEST_INPUT];
        let from = network.addresses_at;
        input[..len].copy_from_slice(head.get(from..from + len)?);
        let (tcp, tcp_type, ip, ip_type) = match network.version {
            Version::V4 => (
                HashTypes::IPV4_TCP,
                HashType::Ipv4Tcp,
                HashTypes::IPV4,
                HashType::Ipv4,
            ),
            Version::V6 => (
                HashTypes::IPV6_TCP,
                HashType::Ipv6Tcp,
                HashTypes::IPV6,
                HashType::Ipv6,
            ),
        };
        if types.contains(tcp) && matches!(network.transport, Some(Transport::Tcp { .. })) {
            let ports = head.get(network.transport_at..network.transport_at + 4)?;
            input[len..len + 4].copy_from_slice(ports);
            return Some((tcp_type, self.of(&input[..len + 4])));
        }
        types
            .contains(ip)
            .then(|| (ip_type, self.of(&input[..len])))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::vec::Vec;

    use super::*;
    use crate::headers::protocol;
    use crate::headers::tests::packet;

    /// The key of Microsoft's examples.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn the_published_examples_for_ipv4_come_out() {
        let examples = [
            (
                "66.9.149.187",
                2794,
                "161.142.100.80",
                1766,
                0x323e8fc2,
                0x51ccc178,
            ),
            (
                "199.92.111.2",
                14230,
                "65.69.140.83",
                4739,
                0xd718262a,
                0xc626b0ea,
            ),
            (
                "24.19.198.95",
                12898,
                "12.22.207.184",
                38024,
                0xd2d0a5de,
                0x5c2b394a,
            ),
            (
                "38.27.205.30",
                48228,
                "209.142.163.6",
                2217,
                0x82989176,
                0xafc7327f,
            ),
            (
                "153.39.163.191",
                44251,
                "202.188.127.2",
                1303,
                0x5d1809c5,
                0x10e828a2,
            ),
        ];
        let key = Toeplitz::new(&KEY);
        for (source, source_port, destination, port, ip, tcp) in examples {
            let address = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
            let mut input: Vec<u8> = address(source).into();
            input.extend(address(destination));
            assert_eq!(key.of(&input), ip, "{source}");
            input.extend(u16::to_be_bytes(source_port));
            input.extend(u16::to_be_bytes(port));
            assert_eq!(key.of(&input), tcp, "{source}");
        }
    }

    #[test]
    fn the_published_examples_for_ipv6_come_out() {
        let examples = [
            (
                "3ffe:2501:200:1fff::7",
                2794,
                "3ffe:2501:200:3::1",
                1766,
                0x2cc18cd5,
                0x40207d3d,
            ),
            (
                "3ffe:501:8::260:97ff:fe40:efab",
                14230,
                "ff02::1",
                4739,
                0x0f0c461c,
                0xdde51bbf,
            ),
            (
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                "fe80::200:f8ff:fe21:67cf",
                38024,
                0x4b61e985,
                0x02d1feef,
            ),
        ];
        let key = Toeplitz::new(&KEY);
        for (source, source_port, destination, port, ip, tcp) in examples {
            let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
            let mut input: Vec<u8> = address(source).into();
            input.extend(address(destination));
            assert_eq!(key.of(&input), ip, "{source}");
            input.extend(u16::to_be_bytes(source_port));
            input.extend(u16::to_be_bytes(port));
            assert_eq!(key.of(&input), tcp, "{source}");
        }
    }

    #[test]
    fn ports_count_only_for_tcp_and_only_where_wanted() {
        let key = Toeplitz::new(&KEY);
        let of = |bytes: &[u8], types| {
            let headers = Headers::parse(bytes, bytes.len()).unwrap();
            key.of_packet(bytes, &headers, types).map(|(kind, _)| kind)
        };
        let both = HashTypes::IPV4 | HashTypes::IPV4_TCP;
        let tcp = packet(Version::V4, protocol::TCP, b"x");
        let udp = packet(Version::V4, protocol::UDP, b"x");
        assert_eq!(of(&tcp, both), Some(HashType::Ipv4Tcp));
        assert_eq!(of(&tcp, HashTypes::IPV4), Some(HashType::Ipv4));
        assert_eq!(of(&udp, both), Some(HashType::Ipv4));
        assert_eq!(of(&udp, HashTypes::IPV4_TCP), None);
        assert_eq!(of(&udp, HashTypes::IPV6), None);
    }
}
