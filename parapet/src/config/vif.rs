//! One network interface of a guest, from a string in xl's words.
//!
//! ```text
//! bridge=lan                                                   all else made up
//! mac=00:16:3e:12:34:56, bridge=xenbr0, rate=100Mb/s, type=vif
//! bridge=lan, ip=192.168.77.9, locked                          its own addresses and no other
//! bridge=lan, vlan=10, isolated
//! ```
//!
//! The bridge names a network of the host's configuration, or else a bridge of Linux'. Two flags
//! are not xl's: `locked` lets the vif send from its own addresses only, and `isolated` keeps it
//! from other vifs that are isolated. What xl knows and changes nothing here (`model`, `type`,
//! `script`, `gatewaydev`, `trusted` and its opposite) is accepted, and noted in the log where
//! somebody may have counted on it.
//!
//! Source: Xen's `docs/man/xl-network-configuration.5`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use parapet_packet::{Mac, NotAMac};

use super::nearest::Hint;

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VifConfig {
    /// Its number, if one is said: else the lowest that is free.
    pub devid: Option<u32>,
    /// Its Ethernet address; made up if none is said.
    pub mac: Option<Mac>,
    /// The network that it is on; the host's default if none is said.
    pub bridge: Option<String>,
    /// The VLAN that it is in.
    pub vlan: Option<u16>,
    /// The addresses that it has.
    pub addresses: Vec<IpAddr>,
    /// What it is called on the host, if not `vifDOMID.DEVID`.
    pub name: Option<String>,
    /// How much it may send.
    pub rate: Option<VifRate>,
    /// The longest packet without its Ethernet header, in bytes; 1500 if nothing is said.
    pub mtu: Option<u16>,
    /// It may send from its own addresses only.
    pub locked: bool,
    /// It is kept from other vifs that are isolated.
    pub isolated: bool,
}

/// How much a vif may send: so many bytes in each interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VifRate {
    /// Bytes.
    pub bytes: u64,
    /// The interval in microseconds.
    pub micros: u32,
}

/// A text that describes no vif, or one that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VifError {
    /// A parameter that xl does not know either.
    #[error("unknown parameter `{name}`{hint}")]
    Unknown {
        /// Its name.
        name: String,
        /// What may have been meant.
        hint: Hint,
    },
    /// A parameter was given twice.
    #[error("`{0}` is given twice: keep one")]
    Repeated(String),
    /// A parameter has a value that it cannot have.
    #[error("`{key}` is {value:?}: it should be {expected}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// Its address is none.
    #[error("`mac` is {0:?}: {1}")]
    Mac(String, NotAMac),
    /// It makes sense, but not here.
    #[error("`{what}` cannot be had: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not, and what to do.
        why: &'static str,
    },
}

/// Parameters and flags, for hints.
const KNOWN: [&str; 18] = [
    "mac",
    "bridge",
    "ip",
    "rate",
    "mtu",
    "vlan",
    "vifname",
    "devid",
    "type",
    "model",
    "script",
    "backend",
    "gatewaydev",
    "netdev",
    "trusted",
    "untrusted",
    "locked",
    "isolated",
];

/// What is accepted and changes nothing, and why.
const IGNORED: [(&str, &str); 4] = [
    (
        "model",
        "there are no emulated devices, the vif is paravirtual",
    ),
    (
        "script",
        "no script is run, the bridge says which network the vif is on",
    ),
    (
        "gatewaydev",
        "nothing is routed by a script; a network of type nat routes",
    ),
    (
        "netdev",
        "nothing is routed by a script; a network of type nat routes",
    ),
];

impl FromStr for VifConfig {
    type Err = VifError;

    fn from_str(text: &str) -> Result<Self, VifError> {
        let mut vif = VifConfig::default();
        let mut seen: Vec<&str> = Vec::new();
        for word in text.split(',').map(str::trim) {
            if word.is_empty() {
                continue;
            }
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key.trim_end(), Some(value.trim_start())),
                None => (word, None),
            };
            if seen.contains(&key) {
                return Err(VifError::Repeated(key.to_owned()));
            }
            seen.push(key);
            vif.set(key, value)?;
        }
        Ok(vif)
    }
}

impl VifConfig {
    fn set(&mut self, key: &str, given: Option<&str>) -> Result<(), VifError> {
        if let Some((known, why)) = IGNORED.iter().find(|(known, _)| *known == key) {
            log::warn!(
                "vif: `{known}={}` is ignored: {why}",
                given.unwrap_or_default()
            );
            return Ok(());
        }
        match (key, given) {
            ("mac", Some(text)) => self.mac = Some(mac(text)?),
            ("bridge", Some(text)) => self.bridge = some(text),
            ("ip", Some(text)) => self.addresses = addresses(text)?,
            ("rate", Some(text)) => self.rate = Some(rate(text)?),
            ("mtu", Some(text)) => {
                let mtu = text.parse().ok().filter(|mtu| *mtu >= 68);
                let expected = "a number of bytes, from 68 to 65535";
                self.mtu = Some(mtu.ok_or_else(|| value("mtu", text, expected))?);
            }
            ("vlan", Some(text)) => {
                let id = text.strip_suffix('p').unwrap_or(text).parse().ok();
                let id = id.filter(|id| (1..4095).contains(id));
                let expected = "the number of one VLAN, from 1 to 4094";
                self.vlan = Some(id.ok_or_else(|| value("vlan", text, expected))?);
            }
            ("vifname", Some(text)) => {
                let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%' | ',');
                let fits = (1..16).contains(&text.len()) && ![".", ".."].contains(&text);
                if !fits || !text.chars().all(plain) {
                    let expected = "the name of an interface, of at most 15 characters";
                    return Err(value("vifname", text, expected));
                }
                self.name = some(text);
            }
            ("devid", Some(text)) => {
                let id = text.parse().ok().filter(|id| *id < 1 << 16);
                let expected = "the number of the vif, from 0";
                self.devid = Some(id.ok_or_else(|| value("devid", text, expected))?);
            }
            ("type", Some("vif" | "ioemu")) => {}
            ("type", Some(text)) => return Err(value("type", text, "vif")),
            ("backend", Some("" | "0" | "Domain-0")) => {}
            ("backend", Some(text)) => {
                let expected = "left out: domain 0 serves every vif";
                return Err(value("backend", text, expected));
            }
            ("trusted" | "untrusted", None) => {}
            ("locked", None) => self.locked = true,
            ("isolated", None) => self.isolated = true,
            (name, _) if name.starts_with("colo_") || name == "forwarddev" => {
                return Err(VifError::Unsupported {
                    what: name.to_owned(),
                    why: "guests are not replicated to another host; leave it out",
                });
            }
            (name, _) => {
                return Err(VifError::Unknown {
                    name: name.to_owned(),
                    hint: Hint::new(name, &KNOWN),
                });
            }
        }
        Ok(())
    }

    /// An Ethernet address for the vif number `index` of guest `guest`, the same each time, out of
    /// those that are Xen's to give away. `attempt` makes another, if that one is somebody's.
    pub fn made_up_mac(guest: &str, index: u32, attempt: u32) -> Mac {
        // FNV-1a, which is the same on every machine and in every release.
        let numbers = [index, attempt].map(u32::to_le_bytes).concat();
        let bytes = guest.bytes().chain([0]).chain(numbers);
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        // Of the upper half, which is mixed best.
        let [.., a, b, c] = (hash >> 32).to_be_bytes();
        Mac([0x00, 0x16, 0x3E, a, b, c])
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn value(key: &'static str, value: &str, expected: &'static str) -> VifError {
    VifError::Value {
        key,
        value: value.to_owned(),
        expected,
    }
}

fn mac(text: &str) -> Result<Mac, VifError> {
    let mac: Mac = text
        .parse()
        .map_err(|error| VifError::Mac(text.to_owned(), error))?;
    match mac.is_station() {
        true => Ok(mac),
        false => Err(value("mac", text, "the address of one station")),
    }
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, VifError> {
    let one = |word: &str| {
        let expected = "IPv4 or IPv6 addresses, with blanks between them";
        word.parse().map_err(|_| value("ip", text, expected))
    };
    text.split_whitespace().map(one).collect()
}

fn rate(text: &str) -> Result<VifRate, VifError> {
    let fault = || {
        let expected = "such as 100Mb/s or 10MB/s@20ms";
        value("rate", text, expected)
    };
    let (rate, interval) = match text.split_once('@') {
        Some((rate, interval)) => (rate, Some(interval)),
        None => (text, None),
    };
    let rate = rate.strip_suffix("/s").ok_or_else(fault)?;
    let (number, unit) = number(rate).ok_or_else(fault)?;
    // In bits.
    let unit = match unit {
        "GB" => 8_000_000_000,
        "MB" => 8_000_000,
        "KB" => 8_000,
        "B" | "" => 8,
        "Gb" => 1_000_000_000,
        "Mb" => 1_000_000,
        "Kb" => 1_000,
        "b" => 1,
        _ => return Err(fault()),
    };
    let micros = match interval {
        None => 50_000,
        Some(interval) => {
            let (number, unit) = self::number(interval).ok_or_else(fault)?;
            let unit = match unit {
                "s" => 1_000_000,
                "ms" => 1_000,
                "us" | "" => 1,
                _ => return Err(fault()),
            };
            number.checked_mul(unit).ok_or_else(fault)?
        }
    };
    let micros = u32::try_from(micros).ok().filter(|micros| *micros > 0);
    let micros = micros.ok_or_else(fault)?;
    let bits = u128::from(number) * unit;
    let bytes = bits * u128::from(micros) / 8_000_000;
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
    Ok(VifRate {
        bytes: bytes.ok_or_else(fault)?,
        micros,
    })
}

fn number(text: &str) -> Option<(u64, &str)> {
    let split = text.find(|c: char| !c.is_ascii_digit());
    let (digits, unit) = text.split_at(split.unwrap_or(text.len()));
    Some((digits.parse().ok()?, unit))
}

impl fmt::Display for VifConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        let mut add = |key: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{key}={value}")));
        };
        add("devid", self.devid.map(|id| id.to_string()));
        add("mac", self.mac.map(|mac| mac.to_string()));
        add("bridge", self.bridge.clone());
        add("vlan", self.vlan.map(|vlan| vlan.to_string()));
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        add("ip", some(&addresses.join(" ")));
        add("vifname", self.name.clone());
        add("mtu", self.mtu.map(|mtu| mtu.to_string()));
        if let Some(VifRate { bytes, micros }) = self.rate {
            // Rounded up, so that it is the same number of bytes when it is read again, in
            // intervals of up to a second.
            let per_second = (u128::from(bytes) * 1_000_000).div_ceil(u128::from(micros.max(1)));
            add("rate", Some(format!("{per_second}B/s@{micros}us")));
        }
        for (flag, set) in [("locked", self.locked), ("isolated", self.isolated)] {
            if set {
                words.push(flag.to_owned());
            }
        }
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<VifConfig, VifError> {
        text.parse()
    }

    #[test]
    fn a_line_of_xls_is_understood() {
        let vif =
            parse("mac=00:16:3e:12:34:56, bridge=xenbr0, rate=100Mb/s, type=vif, ip=10.0.0.5 fe80::1, vifname=web0, script=vif-bridge, mtu=9000, model=e1000, devid=3").unwrap();
        let expected = VifConfig {
            devid: Some(3),
            mac: Some(Mac([0, 0x16, 0x3e, 0x12, 0x34, 0x56])),
            bridge: Some("xenbr0".into()),
            vlan: None,
            addresses: vec!["10.0.0.5".parse().unwrap(), "fe80::1".parse().unwrap()],
            name: Some("web0".into()),
            rate: Some(VifRate {
                bytes: 625_000,
                micros: 50_000,
            }),
            mtu: Some(9000),
            locked: false,
            isolated: false,
        };
        assert_eq!(vif, expected);
        assert_eq!(parse(""), Ok(VifConfig::default()));
        let flags = parse("vlan=10p,locked ,isolated, untrusted").unwrap();
        assert_eq!(
            (flags.vlan, flags.locked, flags.isolated),
            (Some(10), true, true)
        );
    }

    #[test]
    fn rates_are_what_xl_makes_of_them() {
        // From Xen's tools/xl/check-xl-vif-parse.
        for (text, bytes, micros) in [
            ("1000B/s", 50, 50_000),
            ("1000b/s", 6, 50_000),
            ("1GB/s", 50_000_000, 50_000),
            ("1000Mb/s", 6_250_000, 50_000),
            ("5Kb/s", 31, 50_000),
            ("1MB/s@100000", 100_000, 100_000),
            ("1MB/s@50ms", 50_000, 50_000),
            ("1MB/s@10s", 10_000_000, 10_000_000),
        ] {
            let rate = parse(&format!("rate={text}")).unwrap().rate;
            assert_eq!(rate, Some(VifRate { bytes, micros }), "{text}");
        }
    }

    #[test]
    fn an_address_that_is_made_up_is_the_same_each_time() {
        let mac = VifConfig::made_up_mac("web", 0, 0);
        assert_eq!(mac, VifConfig::made_up_mac("web", 0, 0));
        assert!(mac.to_string().starts_with("00:16:3e:"));
        for other in [("web", 1, 0), ("web", 0, 1), ("mail", 0, 0)] {
            assert_ne!(mac, VifConfig::made_up_mac(other.0, other.1, other.2));
        }
    }

    #[test]
    fn each_fault_is_one_line_that_names_the_thing() {
        for (text, fault) in [
            ("mac=00:16:3e", r#"`mac` is "00:16:3e""#),
            ("mac=ff:ff:ff:ff:ff:ff", "one station"),
            ("brigde=x", "did you mean `bridge`?"),
            ("bridge=a,bridge=b", "`bridge` is given twice"),
            ("rate=10", "100Mb/s"),
            ("rate=10Tb/s", "100Mb/s"),
            ("rate=0B/s", "100Mb/s"),
            ("rate=99999999999999999999GB/s", "100Mb/s"),
            ("rate=1MB/s@0", "100Mb/s"),
            ("mtu=67", "from 68"),
            ("vlan=10/20", "one VLAN"),
            ("vlan=4095", "one VLAN"),
            ("vifname=a/b", "name of an interface"),
            ("vifname=a-name-of-16-chars", "name of an interface"),
            ("ip=10.0.0", "IPv4 or IPv6"),
            ("type=tap", "it should be vif"),
            ("backend=dom1", "domain 0"),
            ("locked=1", "unknown parameter `locked`"),
            ("devid=-1", "from 0"),
            ("forwarddev=x", "replicated"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(fault), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    proptest! {
        #[test]
        fn a_vif_prints_as_it_is_parsed(
            rate in 1u64..1 << 40, micros in 1u32..=1_000_000, vlan in 1u16..4095, locked: bool,
        ) {
            let vif = VifConfig {
                mac: Some(VifConfig::made_up_mac("x", 1, 0)),
                bridge: Some("lan".into()),
                vlan: Some(vlan),
                rate: Some(VifRate { bytes: rate, micros }),
                locked,
                ..VifConfig::default()
            };
            prop_assert_eq!(parse(&vif.to_string()), Ok(vif));
        }

        #[test]
        fn no_text_panics(text in "[a-z=, /:@0-9]{0,40}") {
            let _ = parse(&text);
        }
    }
}
