//! The networks of a host, from tables of its configuration.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// A network that vifs are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// What vifs call it, as their `bridge`.
    pub name: String,
    /// What it leads to.
    pub kind: NetworkKind,
}

/// What a network leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkKind {
    /// The guests on it alone.
    Isolated,
    /// Whatever a bridge of Linux' leads to: each vif is a TAP device on it.
    Bridged {
        /// The bridge; none leaves the devices alone.
        bridge: Option<String>,
        /// The network namespace that all of that is in, by the file that stands for it, if it is
        /// not the process's own.
        namespace: Option<PathBuf>,
    },
    /// Nowhere: for measurements.
    Null,
    /// What the host reaches, which stands for the guests: they have addresses of a subnet of
    /// their own.
    Nat(Subnet),
}

/// A subnet, of which the host has the first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

/// A text that is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no subnet for guests: write one such as 192.168.77.0/24, of /8 to /29")]
pub struct NotASubnet(pub String);

impl Subnet {
    /// What a network has that says nothing else.
    pub const DEFAULT: Subnet = Subnet {
        network: u32::from_be_bytes([192, 168, 77, 0]),
        prefix: 24,
    };

    /// The host's own address.
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network + 1)
    }

    /// The first and the last address that guests are given.
    pub fn guests(&self) -> (Ipv4Addr, Ipv4Addr) {
        let last = self.network | (u32::MAX >> self.prefix);
        // The last one of all is for broadcasts.
        let [first, last] = [self.network + 2, last - 1];
        (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last))
    }

    /// How many bits all its addresses have in common.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The same as a mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(!(u32::MAX >> self.prefix))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.network), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = NotASubnet;

    fn from_str(text: &str) -> Result<Self, NotASubnet> {
        let parts = text.split_once('/').and_then(|(network, prefix)| {
            let network: Ipv4Addr = network.parse().ok()?;
            Some((network.to_bits(), prefix.parse().ok()?))
        });
        match parts {
            Some((network, prefix @ 8..=29)) if network & (u32::MAX >> prefix) == 0 => {
                Ok(Subnet { network, prefix })
            }
            _ => Err(NotASubnet(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_has_an_address_for_the_host_and_the_rest_for_guests() {
        let subnet: Subnet = "10.1.2.8/29".parse().unwrap();
        assert_eq!(subnet.host().to_string(), "10.1.2.9");
        let (first, last) = subnet.guests();
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("10.1.2.10".into(), "10.1.2.14".into())
        );
        assert_eq!(subnet.mask().to_string(), "255.255.255.248");
        assert_eq!(subnet.to_string(), "10.1.2.8/29");
        assert_eq!(Subnet::DEFAULT.to_string().parse(), Ok(Subnet::DEFAULT));
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.1/24",
            "10.0.0.0/30",
            "10.0.0.0/7",
            "fe80::/64",
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(NotASubnet(text.into())));
        }
    }
}
