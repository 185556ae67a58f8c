//! What the two ends tell each other in the xenstore, as data.
//!
//! The keys are those of Xen's `io/blkif.h`; where it leaves a choice, what Linux does is what
//! frontends expect. Nothing here talks to a xenstore.

use std::fmt;

use parapet_xen_sys::io::blkif::{DiskInfo, SECTOR_SIZE};
use parapet_xen_sys::io::protocols;
use parapet_xen_sys::{GrantRef, Port};

use crate::image::{Access, Discard};
use crate::request::MAX_INDIRECT_SEGMENTS;

/// The largest ring that a frontend may have, as a power of two of pages: 16 of them, for 512
/// requests.
pub const MAX_RING_PAGE_ORDER: u32 = 4;

/// What the toolstack says of the disk, in the backend's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// `params`: the image, as [`crate::image::Spec`] understands it.
    pub params: String,
    /// `mode`: `r`, or `w` (also `w!`).
    pub access: Access,
    /// `device-type`: whether it is `cdrom`.
    pub cdrom: bool,
    /// `removable`.
    pub removable: bool,
    /// `discard-enable`: whether the frontend may be offered to discard, which it may unless the
    /// toolstack says otherwise.
    pub discard: bool,
    /// `dev`: what the toolstack calls the disk, as `xvda`. For people.
    pub name: Option<String>,
}

/// A key that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// It is not there.
    #[error("the key {0} is missing")]
    Missing(&'static str),
    /// It is there, and makes no sense.
    #[error("the key {key} is {value:?}, which is not {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
}

fn bad(key: &str, value: &str, expected: &'static str) -> BadKey {
    BadKey::Value {
        key: key.into(),
        // A peer chose it; it goes into a log.
        value: value.chars().take(64).collect(),
        expected,
    }
}

/// A key's value as a number: decimal digits and nothing else.
fn number<T: std::str::FromStr>(
    key: &str,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Option<T>, BadKey> {
    let Some(value) = get(key) else {
        return Ok(None);
    };
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(number) if digits => Ok(Some(number)),
        _ => Err(bad(key, &value, "a number in range")),
    }
}

fn flag(key: &str, get: impl Fn(&str) -> Option<String>) -> Result<bool, BadKey> {
    flag_or(key, false, get)
}

fn flag_or(key: &str, absent: bool, get: impl Fn(&str) -> Option<String>) -> Result<bool, BadKey> {
    Ok(number::<u32>(key, get)?.map_or(absent, |number| number != 0))
}

impl Assignment {
    /// The keys that [`Assignment::parse`] asks for.
    pub const KEYS: &[&str] = &[
        "params",
        "mode",
        "device-type",
        "removable",
        "discard-enable",
        "dev",
    ];

    /// Understands the toolstack's keys, which `get` looks up.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
        let mode = get("mode").ok_or(BadKey::Missing("mode"))?;
        let access = match mode.as_str() {
            "r" => Access::ReadOnly,
            "w" | "w!" => Access::ReadWrite,
            other => return Err(bad("mode", other, "r or w")),
        };
        Ok(Assignment {
            params: get("params").ok_or(BadKey::Missing("params"))?,
            access,
            cdrom: get("device-type").is_some_and(|kind| kind == "cdrom"),
            removable: flag("removable", &get)?,
            discard: flag_or("discard-enable", true, &get)?,
            name: get("dev"),
        })
    }
}

/// A disk, as a frontend is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Its size in units of 512 bytes, whatever else is said of sectors.
    pub sectors: u64,
    /// The unit in bytes that is written best.
    pub physical_sector_size: u32,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether it is a CD or DVD.
    pub cdrom: bool,
    /// Whether its medium can be changed.
    pub removable: bool,
    /// How sectors can be forgotten, if they can.
    pub discard: Option<Discard>,
}

impl Offer {
    /// The keys to write before the frontend is let in (state `InitWait`).
    pub fn keys(&self) -> Vec<(&'static str, String)> {
        let mut info = DiskInfo::empty();
        info.set(DiskInfo::CDROM, self.cdrom);
        info.set(DiskInfo::REMOVABLE, self.removable);
        info.set(DiskInfo::READONLY, self.read_only);
        let pages = 1u32 << MAX_RING_PAGE_ORDER;
        let mut keys = vec![
            ("max-ring-page-order", MAX_RING_PAGE_ORDER.to_string()),
            ("max-ring-pages", pages.to_string()),
            ("feature-persistent", "1".into()),
            ("feature-flush-cache", "1".into()),
            ("feature-barrier", "1".into()),
            (
                "feature-max-indirect-segments",
                MAX_INDIRECT_SEGMENTS.to_string(),
            ),
            (
                "feature-discard",
                u32::from(self.discard.is_some()).to_string(),
            ),
            ("sectors", self.sectors.to_string()),
            ("sector-size", SECTOR_SIZE.to_string()),
            (
                "physical-sector-size",
                self.physical_sector_size.to_string(),
            ),
            ("info", info.bits().to_string()),
        ];
        if let Some(discard) = self.discard {
            keys.extend([
                ("discard-granularity", discard.granularity.to_string()),
                ("discard-alignment", discard.alignment.to_string()),
                ("discard-secure", u32::from(discard.secure).to_string()),
            ]);
        }
        keys
    }
}

/// How a frontend lays out its slots: the key `protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Also of a frontend that does not say.
    X86_64,
    /// Of a 32-bit x86 guest.
    X86_32,
}

/// As frontends name it.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::X86_64 => protocols::X86_64,
            Protocol::X86_32 => protocols::X86_32,
        })
    }
}

/// What a frontend has published when it says `Initialised`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The ring's pages, in order: one, or a power of two of them.
    pub ring: Vec<GrantRef>,
    /// Its port, which waits for us.
    pub port: Port,
    /// Its layout.
    pub protocol: Protocol,
    /// Whether its grants stay.
    pub persistent: bool,
}

impl Answer {
    /// The keys that [`Answer::parse`] asks for.
    pub fn keys() -> impl Iterator<Item = String> {
        let plain = [
            "event-channel",
            "protocol",
            "feature-persistent",
            "ring-page-order",
            "num-ring-pages",
            "ring-ref",
        ];
        let refs = (0..1 << MAX_RING_PAGE_ORDER).map(ring_ref);
        plain.into_iter().map(String::from).chain(refs)
    }

    /// Understands the frontend's keys, which `get` looks up. They are read once; what the
    /// frontend writes later changes nothing.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
        let pages = match number::<u32>("ring-page-order", &get)? {
            Some(order) if order <= MAX_RING_PAGE_ORDER => Some(1 << order),
            Some(order) => {
                let expected = "at most max-ring-page-order";
                return Err(bad("ring-page-order", &order.to_string(), expected));
            }
            // The other spelling, of which Xen's header says that it is older.
            None => match number::<u32>("num-ring-pages", &get)? {
                Some(pages) if !pages.is_power_of_two() || pages > 1 << MAX_RING_PAGE_ORDER => {
                    let expected = "a power of two, and at most max-ring-pages";
                    return Err(bad("num-ring-pages", &pages.to_string(), expected));
                }
                pages => pages,
            },
        };
        let reference = |key: &str, missing| {
            number(key, &get)?
                .map(GrantRef)
                .ok_or(BadKey::Missing(missing))
        };
        let ring = match pages {
            // One page may go by either name.
            None | Some(1) if get("ring-ref").is_some() => vec![reference("ring-ref", "ring-ref")?],
            None => return Err(BadKey::Missing("ring-ref")),
            Some(pages) => (0..pages)
                .map(|page| reference(&ring_ref(page), "ring-refN"))
                .collect::<Result<_, _>>()?,
        };
        let port = number("event-channel", &get)?;
        let protocol = match get("protocol") {
            None => Protocol::X86_64,
            Some(name) if name == protocols::X86_64 => Protocol::X86_64,
            Some(name) if name == protocols::X86_32 => Protocol::X86_32,
            Some(name) => return Err(bad("protocol", &name, "x86_64-abi or x86_32-abi")),
        };
        Ok(Answer {
            ring,
            port: Port(port.ok_or(BadKey::Missing("event-channel"))?),
            protocol,
            persistent: flag("feature-persistent", &get)?,
        })
    }
}

fn ring_ref(page: u32) -> String {
    format!("ring-ref{page}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn lookup<'a>(keys: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |wanted| {
            let found = keys.iter().find(|(key, _)| *key == wanted);
            found.map(|(_, value)| (*value).into())
        }
    }

    fn answer(keys: &[(&str, &str)]) -> Result<Answer, BadKey> {
        Answer::parse(lookup(keys))
    }

    #[test]
    fn a_frontend_that_says_the_least_has_one_page_and_our_layout() {
        let expected = Answer {
            ring: vec![GrantRef(8)],
            port: Port(15),
            protocol: Protocol::X86_64,
            persistent: false,
        };
        let keys = [("ring-ref", "8"), ("event-channel", "15")];
        assert_eq!(answer(&keys), Ok(expected));
    }

    #[test]
    fn rings_of_several_pages_come_in_both_spellings() {
        let refs = [
            ("event-channel", "1"),
            ("ring-ref0", "10"),
            ("ring-ref1", "12"),
            ("ring-ref2", "11"),
            ("ring-ref3", "13"),
        ];
        let expected: Vec<_> = [10, 12, 11, 13].map(GrantRef).into();
        for size in [("ring-page-order", "2"), ("num-ring-pages", "4")] {
            let keys = [&refs[..], &[size]].concat();
            assert_eq!(answer(&keys).unwrap().ring, expected);
        }
        let one = [("ring-page-order", "0"), refs[0], refs[1]];
        assert_eq!(answer(&one).unwrap().ring, [GrantRef(10)]);
        let one = [("ring-page-order", "0"), refs[0], ("ring-ref", "7")];
        assert_eq!(answer(&one).unwrap().ring, [GrantRef(7)]);
    }

    #[test]
    fn numbers_that_are_absent_negative_huge_or_none_are_refused_by_name() {
        let good = [("ring-ref", "8"), ("event-channel", "15")];
        for (at, key) in ["ring-ref", "event-channel"].into_iter().enumerate() {
            for value in [
                "-1",
                "+1",
                "4294967296",
                "99999999999999999999",
                "",
                "x",
                "0x8",
                " 8",
            ] {
                let mut keys = good;
                keys[at].1 = value;
                match answer(&keys) {
                    Err(BadKey::Value { key: named, .. }) => assert_eq!(named, key),
                    other => panic!("{key}={value}: {other:?}"),
                }
            }
            let others: Vec<_> = good.into_iter().filter(|(name, _)| *name != key).collect();
            assert_eq!(answer(&others), Err(BadKey::Missing(key)));
        }
        for size in [
            ("ring-page-order", "5"),
            ("ring-page-order", "4294967295"),
            ("num-ring-pages", "3"),
            ("num-ring-pages", "0"),
            ("num-ring-pages", "32"),
            ("protocol", "arm-abi"),
            ("feature-persistent", "yes"),
        ] {
            let keys = [good[0], good[1], size];
            assert!(
                matches!(answer(&keys), Err(BadKey::Value { .. })),
                "{size:?}"
            );
        }
        let hole = [("num-ring-pages", "2"), ("ring-ref0", "1"), good[1]];
        assert_eq!(answer(&hole), Err(BadKey::Missing("ring-refN")));
    }

    #[test]
    fn what_a_peer_wrote_is_repeated_only_in_part() {
        let long = "9".repeat(4000);
        let error = answer(&[("ring-ref", &long), ("event-channel", "1")]).unwrap_err();
        assert!(error.to_string().len() < 200);
    }

    #[test]
    fn the_kind_of_disk_is_in_the_info_bits() {
        let offer = Offer {
            sectors: 99,
            physical_sector_size: 4096,
            read_only: true,
            cdrom: true,
            removable: false,
            discard: None,
        };
        let keys: BTreeMap<_, _> = offer.keys().into_iter().collect();
        assert_eq!(keys["info"], "5");
        assert_eq!(keys["sectors"], "99");
        assert_eq!(keys["sector-size"], "512");
        assert_eq!(keys["physical-sector-size"], "4096");
        assert_eq!(keys["feature-discard"], "0");
        assert!(!keys.contains_key("discard-granularity"));

        let discard = Discard {
            granularity: 65536,
            alignment: 512,
            secure: true,
        };
        let offer = Offer {
            discard: Some(discard),
            ..offer
        };
        let keys: BTreeMap<_, _> = offer.keys().into_iter().collect();
        for (key, value) in [
            ("feature-discard", "1"),
            ("discard-granularity", "65536"),
            ("discard-alignment", "512"),
            ("discard-secure", "1"),
            ("feature-barrier", "1"),
            ("feature-max-indirect-segments", "256"),
        ] {
            assert_eq!(keys[key], value, "{key}");
        }
    }

    #[test]
    fn the_toolstacks_mode_is_needed_and_understood() {
        let keys = |mode| [("params", "/x.img"), ("mode", mode), ("removable", "1")];
        let parsed = Assignment::parse(lookup(&keys("r"))).unwrap();
        assert_eq!((parsed.access, parsed.removable), (Access::ReadOnly, true));
        let parsed = Assignment::parse(lookup(&keys("w!"))).unwrap();
        assert_eq!(parsed.access, Access::ReadWrite);
        assert!(Assignment::parse(lookup(&keys("rw"))).is_err());
        let missing = Assignment::parse(lookup(&[("mode", "r")]));
        assert_eq!(missing, Err(BadKey::Missing("params")));
    }

    proptest! {
        #[test]
        fn no_text_brings_the_parser_down(
            values in proptest::collection::btree_map(
                prop_oneof![
                    Just("ring-page-order".to_owned()), Just("num-ring-pages".into()),
                    Just("ring-ref".into()), Just("event-channel".into()),
                    (0u32..17).prop_map(ring_ref),
                ],
                prop_oneof!["[0-9]{0,3}", ".{0,8}"],
                0..8,
            )
        ) {
            if let Ok(answer) = Answer::parse(|key| values.get(key).cloned()) {
                prop_assert!(answer.ring.len().is_power_of_two());
                prop_assert!(answer.ring.len() <= 1 << MAX_RING_PAGE_ORDER);
            }
        }
    }
}
