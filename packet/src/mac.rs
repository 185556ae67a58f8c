//! Ethernet addresses.

use core::fmt;
use core::str::FromStr;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

/// That is no Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address is six hexadecimal numbers of two digits, as in 00:16:3e:12:34:56")]
pub struct NotAMac;

impl Mac {
    /// Every station's.
    pub const BROADCAST: Mac = Mac([0xFF; 6]);

    /// Whether it is that of a group of stations, [`Mac::BROADCAST`] included.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a station may have it: it is neither a group's nor zero.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Mac::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(NotAMac)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(NotAMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        match parts.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err(NotAMac),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let mac: Mac = "00:16:3E:0a:b0:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "00:16:3e:0a:b0:ff");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "00:16:3e:00:00",
            "00:16:3e:00:00:00:00",
            "00:16:3e:00:00:+1",
            "0:16:3e:0:0:0",
            "00-16-3e-00-00-00",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(NotAMac), "{text:?}");
        }
    }
}
