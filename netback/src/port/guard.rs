//! What a vif may say of itself: its own Ethernet address and no other, and only IP addresses that
//! it was given.
//!
//! ```text
//!   Ethernet   source                        = the vif's
//!   ARP        sender's addresses            = the vif's, or 0.0.0.0 (asking who has an address)
//!   IPv4       source                        = the vif's, or 0.0.0.0 (asking for one by DHCP)
//!   IPv6       source                        = the vif's, link-local, or :: (asking who has one)
//!   discovery  addresses that it advertises  = the vif's; that it were a router: never
//! ```
//!
//! Sources: RFC 826, 2131, 4861 and 4862; RFC 6980 (no neighbour discovery in fragments).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use parapet_packet::Mac;
use parapet_packet::headers::{Headers, Network, Transport, Version, ether_type, protocol};

use super::Vif;

/// A text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IPv4 address nor one of IPv6")]
pub struct NotAnAddress(pub String);

/// What one vif may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    mac: Mac,
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    /// Whether there is a list, be it one of the other version.
    limited: bool,
}

impl Guard {
    /// For a vif, if it is locked.
    ///
    /// # Errors
    /// What it is said to have are no addresses.
    pub fn of(vif: &Vif) -> Result<Option<Self>, NotAnAddress> {
        match vif.locked {
            true => Self::new(vif.mac, &vif.addresses).map(Some),
            false => Ok(None),
        }
    }

    /// For a vif with that address, and these; any, if there are none. An address may have a prefix
    /// length behind it, which says nothing here.
    ///
    /// # Errors
    /// A text is no address.
    pub fn new(mac: Mac, addresses: &[String]) -> Result<Self, NotAnAddress> {
        let mut guard = Guard {
            mac,
            v4: Vec::new(),
            v6: Vec::new(),
            limited: !addresses.is_empty(),
        };
        for text in addresses {
            let address = text.split_once('/').map_or(text.as_str(), |(ip, _)| ip);
            match address.parse() {
                Ok(IpAddr::V4(address)) => guard.v4.push(address),
                Ok(IpAddr::V6(address)) => guard.v6.push(address),
                Err(_) => return Err(NotAnAddress(text.clone())),
            }
        }
        if !guard.v6.is_empty() {
            guard.v6.push(link_local(mac));
        }
        Ok(guard)
    }

    /// Whether the vif may send a frame that begins with `head` and is `len` bytes long.
    pub fn allows(&self, head: &[u8], len: usize) -> bool {
        let Ok(headers) = Headers::parse(head, len) else {
            return false;
        };
        if headers.source != self.mac {
            return false;
        }
        if !self.limited {
            return true;
        }
        let body = head.get(headers.network_at..).unwrap_or_default();
        match (headers.ether_type, headers.network) {
            (ether_type::ARP, _) => self.allows_arp(body),
            (ether_type::IPV4, Some(network)) => self.allows_v4(head, &network),
            (ether_type::IPV6, Some(network)) => self.allows_v6(head, &network),
            _ => false,
        }
    }

    fn allows_arp(&self, body: &[u8]) -> bool {
        // Ethernet and IPv4, of six and four bytes.
        let kind = body.get(..6) == Some(&[0, 1, 8, 0, 6, 4]);
        let mac = body.get(8..14) == Some(&self.mac.0);
        let ip = chunk(body, 14).map(Ipv4Addr::from_octets);
        kind && mac && ip.is_some_and(|ip| ip.is_unspecified() || self.v4.contains(&ip))
    }

    fn allows_v4(&self, head: &[u8], network: &Network) -> bool {
        let Some(source) = chunk(head, network.addresses_at).map(Ipv4Addr::from_octets) else {
            return false;
        };
        if !source.is_unspecified() {
            return self.v4.contains(&source);
        }
        // From a DHCP client to a server.
        let ports = chunk(head, network.transport_at);
        matches!(network.transport, Some(Transport::Udp { .. })) && ports == Some([0, 68, 0, 67])
    }

    fn allows_v6(&self, head: &[u8], network: &Network) -> bool {
        debug_assert_eq!(network.version, Version::V6);
        let Some(source) = chunk(head, network.addresses_at).map(Ipv6Addr::from_octets) else {
            return false;
        };
        if network.protocol == protocol::ICMPV6 {
            return !network.fragment && self.allows_icmp(head, network, source);
        }
        // What hides behind more extension headers than we look through is not looked at by others.
        let understood = network.fragment || !is_extension(network.protocol);
        understood && self.v6.contains(&source)
    }

    fn allows_icmp(&self, head: &[u8], network: &Network, source: Ipv6Addr) -> bool {
        let end = network.end.min(head.len());
        let Some(message) = head.get(network.transport_at..end) else {
            return false;
        };
        const LISTENING: [u8; 2] = [131, 143];
        const ROUTER_SOLICITATION: u8 = 133;
        const ROUTER_ADVERTISEMENT: u8 = 134;
        const SOLICITATION: u8 = 135;
        const ADVERTISEMENT: u8 = 136;
        const REDIRECT: u8 = 137;
        let Some(&kind) = message.first() else {
            return false;
        };
        let from_nobody = source.is_unspecified()
            && (LISTENING.contains(&kind) || [ROUTER_SOLICITATION, SOLICITATION].contains(&kind));
        if !from_nobody && !self.v6.contains(&source) {
            return false;
        }
        match kind {
            ROUTER_ADVERTISEMENT | REDIRECT => false,
            ROUTER_SOLICITATION => self.names_itself(message.get(8..)),
            SOLICITATION => self.names_itself(message.get(24..)),
            ADVERTISEMENT => {
                let target = chunk(message, 8).map(Ipv6Addr::from_octets);
                target.is_some_and(|target| self.v6.contains(&target))
                    && self.names_itself(message.get(24..))
            }
            _ => true,
        }
    }

    /// Whether each Ethernet address among the options of neighbour discovery is the vif's.
    fn names_itself(&self, options: Option<&[u8]>) -> bool {
        let Some(mut options) = options else {
            return false;
        };
        while let [kind, units, ..] = *options {
            let len = usize::from(units) * 8;
            let (Some(option), 1..) = (options.get(..len), units) else {
                return false;
            };
            if matches!(kind, 1 | 2) && option.get(2..8) != Some(&self.mac.0) {
                return false;
            }
            options = options.get(len..).unwrap_or_default();
        }
        true
    }
}

fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60)
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The address that a station makes of its Ethernet address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from_octets([
        0xFE,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xFF,
        0xFE,
        d,
        e,
        f,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0, 0x16, 0x3e, 1, 2, 3]);
    const OTHER: Mac = Mac([0, 0x16, 0x3e, 9, 9, 9]);

    fn guard() -> Guard {
        Guard::new(MAC, &["10.0.0.5/24".into(), "2001:db8::5".into()]).unwrap()
    }

    fn frame(source: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
        [&[0xFF; 6], &source.0[..], &kind.to_be_bytes(), body].concat()
    }

    fn allows(frame: &[u8]) -> bool {
        guard().allows(frame, frame.len())
    }

    fn arp(mac: Mac, ip: [u8; 4]) -> Vec<u8> {
        let body = [
            &[0, 1, 8, 0, 6, 4, 0, 1],
            &mac.0[..],
            &ip,
            &[0; 6],
            &[10, 0, 0, 1],
        ];
        frame(MAC, ether_type::ARP, &body.concat())
    }

    fn v4(source: [u8; 4], from: u16, to: u16) -> Vec<u8> {
        let mut body = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        body.extend(source);
        body.extend([255; 4]);
        body.extend(from.to_be_bytes());
        body.extend(to.to_be_bytes());
        body.extend([0, 8, 0, 0]);
        frame(MAC, ether_type::IPV4, &body)
    }

    fn v6(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        let mut body = vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 255];
        body.extend(source.octets());
        body.extend([0xFF; 16]);
        body.extend(payload);
        frame(MAC, ether_type::IPV6, &body)
    }

    fn discovery(kind: u8, target: &str, option: u8, mac: Mac) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let message = [
            &[kind, 0, 0, 0, 0, 0, 0, 0],
            &target.octets()[..],
            &[option, 1],
            &mac.0,
        ];
        message.concat()
    }

    #[test]
    fn only_its_own_ethernet_address_is_a_vifs() {
        let open = Guard::new(MAC, &[]).unwrap();
        let other = frame(OTHER, 0x88B5, &[0; 50]);
        let own = frame(MAC, 0x88B5, &[0; 50]);
        assert!(!open.allows(&other, other.len()));
        assert!(open.allows(&own, own.len()));
        assert!(!allows(&own), "with addresses, nothing but IP and ARP");
    }

    #[test]
    fn arp_speaks_for_the_vifs_addresses_alone() {
        assert!(allows(&arp(MAC, [10, 0, 0, 5])));
        assert!(allows(&arp(MAC, [0; 4])), "asking whether it is free");
        assert!(!allows(&arp(MAC, [10, 0, 0, 1])));
        assert!(!allows(&arp(OTHER, [10, 0, 0, 5])));
        let short = arp(MAC, [10, 0, 0, 5]);
        assert!(!allows(&short[..30]));
    }

    #[test]
    fn ipv4_comes_from_the_vifs_addresses_or_asks_for_one() {
        assert!(allows(&v4([10, 0, 0, 5], 1, 2)));
        assert!(!allows(&v4([10, 0, 0, 6], 1, 2)));
        assert!(allows(&v4([0; 4], 68, 67)));
        assert!(!allows(&v4([0; 4], 1, 2)));
        let mut tagged = v4([10, 0, 0, 6], 1, 2);
        tagged.splice(12..12, [0x81, 0, 0, 7, 0x81, 0, 0, 8]);
        assert!(!allows(&tagged), "tags hide nothing");
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert!(!allows(&tagged), "nor do more than are looked through");
    }

    #[test]
    fn ipv6_comes_from_the_vifs_addresses() {
        assert!(allows(&v6("2001:db8::5", 17, &[0; 8])));
        assert!(allows(&v6("fe80::216:3eff:fe01:203", 17, &[0; 8])));
        assert!(!allows(&v6("2001:db8::6", 17, &[0; 8])));
        assert!(!allows(&v6("::", 17, &[0; 8])));
    }

    #[test]
    fn neighbours_are_told_of_the_vifs_addresses_alone() {
        let own = "2001:db8::5";
        let icmp = |source: &str, message: &[u8]| allows(&v6(source, 58, message));
        assert!(icmp(own, &discovery(136, own, 2, MAC)));
        assert!(!icmp(own, &discovery(136, "2001:db8::1", 2, MAC)));
        assert!(!icmp(own, &discovery(136, own, 2, OTHER)));
        assert!(icmp(own, &discovery(135, "2001:db8::1", 1, MAC)));
        assert!(!icmp(own, &discovery(135, "2001:db8::1", 1, OTHER)));
        assert!(icmp("::", &discovery(135, own, 14, OTHER)));
        assert!(!icmp("::", &discovery(136, own, 2, MAC)));
        assert!(!icmp(own, &discovery(134, own, 1, MAC)), "it is no router");
        assert!(!icmp(own, &[]));
        let mut endless = discovery(135, own, 1, MAC);
        endless[25] = 0;
        assert!(!icmp(own, &endless), "an option of no length");
    }

    #[test]
    fn discovery_does_not_hide_behind_extension_headers() {
        let message = discovery(136, "2001:db8::1", 2, MAC);
        let options = [&[58, 0, 0, 0, 0, 0, 0, 0], &message[..]].concat();
        assert!(!allows(&v6("2001:db8::5", 60, &options)));
        let fragment = [&[58, 0, 0, 1, 0, 0, 0, 0], &message[..]].concat();
        assert!(!allows(&v6("2001:db8::5", 44, &fragment)));
        let mut deep = [60, 0, 0, 0, 0, 0, 0, 0].repeat(9);
        deep.extend([58, 0, 0, 0, 0, 0, 0, 0]);
        deep.extend(&message);
        assert!(!allows(&v6("2001:db8::5", 60, &deep)));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let error = Guard::new(MAC, &["10.0.0".into()]).unwrap_err();
        assert_eq!(error, NotAnAddress("10.0.0".into()));
    }
}
