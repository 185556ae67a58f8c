//! What the two ends tell each other in the xenstore, as data.
//!
//! The keys are those of Xen's `io/blkif.h`; where it leaves a choice, what Linux does is what
//! frontends expect. Nothing here talks to a xenstore.

use std::fmt;

pub use parapet_backend::keys::BadKey;
use parapet_backend::keys::{bad, flag, flag_or, number};
use parapet_xen_sys::io::blkif::{DiskInfo, SECTOR_SIZE};
use parapet_xen_sys::io::protocols;
use parapet_xen_sys::{GrantRef, Port};

use crate::image::{Access, Discard};
use crate::request::MAX_INDIRECT_SEGMENTS;
use crate::terms::Rate;

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
    /// How many queues the frontend may have.
    pub queues: u32,
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
            ("multi-queue-max-queues", self.queues.to_string()),
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

/// What a frontend has published of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueAnswer {
    /// The ring's pages, in order: one, or a power of two of them.
    pub ring: Vec<GrantRef>,
    /// Its port, which waits for us.
    pub port: Port,
}

/// What a frontend has published when it says `Initialised`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its queues, of which there is one at least. No two have a page or a port in common, and all
    /// rings are of one size.
    pub queues: Vec<QueueAnswer>,
    /// Its layout.
    pub protocol: Protocol,
    /// Whether its grants stay.
    pub persistent: bool,
}

impl Answer {
    /// How many queues the frontend has chosen to have, of `most` that it was offered.
    ///
    /// # Errors
    /// None, or more than that.
    pub fn queues(most: u32, get: impl Fn(&str) -> Option<String>) -> Result<u32, BadKey> {
        match number::<u32>(QUEUES, get)? {
            None => Ok(1),
            Some(queues) if (1..=most).contains(&queues) => Ok(queues),
            Some(queues) => {
                let expected = "from 1 to multi-queue-max-queues";
                Err(bad(QUEUES, &queues.to_string(), expected))
            }
        }
    }

    /// The keys that [`Answer::parse`] asks for, of a frontend that has chosen so many queues.
    pub fn keys(queues: u32) -> impl Iterator<Item = String> {
        let plain = [
            QUEUES,
            "protocol",
            "feature-persistent",
            "ring-page-order",
            "num-ring-pages",
        ];
        let of_queues = (0..queues).flat_map(move |queue| {
            let folder = folder(queues, queue);
            let refs = (0..1 << MAX_RING_PAGE_ORDER).map(ring_ref);
            ["event-channel", "ring-ref"]
                .into_iter()
                .map(String::from)
                .chain(refs)
                .map(move |key| format!("{folder}{key}"))
        });
        plain.into_iter().map(String::from).chain(of_queues)
    }

    /// Understands the frontend's keys, which `get` looks up, of a frontend that was offered `most`
    /// queues. They are read once; what the frontend writes later changes nothing.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn parse(most: u32, get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
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
        let count = Answer::queues(most, &get)?;
        let mut queues: Vec<QueueAnswer> = Vec::new();
        for number in 0..count {
            let folder = folder(count, number);
            let queue = QueueAnswer::parse(pages, &folder, &get)?;
            let refs = || queues.iter().flat_map(|before| &before.ring);
            for (at, gref) in queue.ring.iter().enumerate() {
                let earlier = queue.ring.get(..at).unwrap_or_default();
                if refs().chain(earlier).any(|before| before == gref) {
                    let key = format!("{folder}ring-ref");
                    return Err(bad(&key, &gref.0.to_string(), "a page of one ring only"));
                }
            }
            if queues.iter().any(|before| before.port == queue.port) {
                let (key, port) = (format!("{folder}event-channel"), queue.port.0.to_string());
                return Err(bad(&key, &port, "the port of one queue only"));
            }
            queues.push(queue);
        }
        let protocol = match get("protocol") {
            None => Protocol::X86_64,
            Some(name) if name == protocols::X86_64 => Protocol::X86_64,
            Some(name) if name == protocols::X86_32 => Protocol::X86_32,
            Some(name) => return Err(bad("protocol", &name, "x86_64-abi or x86_32-abi")),
        };
        Ok(Answer {
            queues,
            protocol,
            persistent: flag("feature-persistent", &get)?,
        })
    }
}

impl QueueAnswer {
    fn parse(
        pages: Option<u32>,
        folder: &str,
        get: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, BadKey> {
        let get = |key: &str| get(&format!("{folder}{key}"));
        // Its whole name, in case it is to blame.
        let whole = |error| match error {
            BadKey::Value {
                key,
                value,
                expected,
            } => BadKey::Value {
                key: format!("{folder}{key}"),
                value,
                expected,
            },
            missing => missing,
        };
        let reference = |key: &str, missing| {
            let found = number(key, get).map_err(whole)?;
            found.map(GrantRef).ok_or(BadKey::Missing(missing))
        };
        let ring = match pages {
            // One page may go by either name.
            None | Some(1) if get("ring-ref").is_some() => vec![reference("ring-ref", "ring-ref")?],
            None => return Err(BadKey::Missing("ring-ref")),
            Some(pages) => (0..pages)
                .map(|page| reference(&ring_ref(page), "ring-refN"))
                .collect::<Result<_, _>>()?,
        };
        let port = number("event-channel", get).map_err(whole)?;
        let port = Port(port.ok_or(BadKey::Missing("event-channel"))?);
        Ok(QueueAnswer { ring, port })
    }
}

/// The key in which a frontend says how many queues it has.
const QUEUES: &str = "multi-queue-num-queues";

/// Where the keys of a queue are: one alone has them where disks without queues have theirs.
fn folder(queues: u32, queue: u32) -> String {
    match queues {
        1 => String::new(),
        _ => format!("queue-{queue}/"),
    }
}

/// How fast a disk may be used: what the operator says in the backend's own directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// Operations, if these are limited.
    pub operations: Option<Rate>,
    /// Bytes read and written, if these are limited.
    pub bytes: Option<Rate>,
}

impl Rates {
    /// The keys that [`Rates::parse`] asks for.
    pub const KEYS: &[&str] = &[
        "rate-iops",
        "rate-iops-burst",
        "rate-bytes",
        "rate-bytes-burst",
    ];

    /// Understands the operator's keys, which `get` looks up. A rate that is not there or zero is
    /// no limit; a burst that is not there is a tenth of a second's worth.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
        let rate = |key: &str, burst: &str| {
            let per_second = number::<u64>(key, &get)?.unwrap_or(0);
            let burst = number(burst, &get)?;
            Ok((per_second > 0).then(|| Rate::new(per_second, burst)))
        };
        Ok(Rates {
            operations: rate("rate-iops", "rate-iops-burst")?,
            bytes: rate("rate-bytes", "rate-bytes-burst")?,
        })
    }
}

/// Understands the key `resize-to`: a size in bytes. The sectors that it comes to.
///
/// # Errors
/// It is not a number of whole sectors, or none.
pub fn resize_to(value: String) -> Result<u64, BadKey> {
    let sector = SECTOR_SIZE as u64;
    let bytes = number::<u64>("resize-to", |_| Some(value.clone()))?.unwrap_or(0);
    match bytes.is_multiple_of(sector) && bytes > 0 {
        true => Ok(bytes / sector),
        false => Err(bad("resize-to", &value, "a multiple of 512 bytes")),
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
        Answer::parse(4, lookup(keys))
    }

    #[test]
    fn a_frontend_that_says_the_least_has_one_page_and_our_layout() {
        let expected = Answer {
            queues: vec![QueueAnswer {
                ring: vec![GrantRef(8)],
                port: Port(15),
            }],
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
            assert_eq!(answer(&keys).unwrap().queues[0].ring, expected);
        }
        let one = [("ring-page-order", "0"), refs[0], refs[1]];
        assert_eq!(answer(&one).unwrap().queues[0].ring, [GrantRef(10)]);
        let one = [("ring-page-order", "0"), refs[0], ("ring-ref", "7")];
        assert_eq!(answer(&one).unwrap().queues[0].ring, [GrantRef(7)]);
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
            ("multi-queue-num-queues", "0"),
            ("multi-queue-num-queues", "5"),
            ("multi-queue-num-queues", "-1"),
            ("multi-queue-num-queues", "4294967295"),
            ("multi-queue-num-queues", "4294967296"),
            ("multi-queue-num-queues", "many"),
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
    fn each_of_several_queues_has_a_folder_and_one_alone_has_none() {
        let keys = [
            ("multi-queue-num-queues", "2"),
            ("ring-page-order", "1"),
            ("queue-0/ring-ref0", "8"),
            ("queue-0/ring-ref1", "9"),
            ("queue-0/event-channel", "3"),
            ("queue-1/ring-ref0", "10"),
            ("queue-1/ring-ref1", "11"),
            ("queue-1/event-channel", "4"),
            // Of nobody's.
            ("ring-ref", "99"),
            ("event-channel", "99"),
        ];
        let queue = |refs: [u32; 2], port| QueueAnswer {
            ring: refs.map(GrantRef).into(),
            port: Port(port),
        };
        let expected = [queue([8, 9], 3), queue([10, 11], 4)];
        assert_eq!(answer(&keys).unwrap().queues, expected);
        for (key, _) in keys {
            assert!(Answer::keys(2).any(|asked| asked == key) || !key.contains('/'));
        }

        let one = [
            ("multi-queue-num-queues", "1"),
            ("ring-ref", "8"),
            ("event-channel", "3"),
        ];
        assert_eq!(answer(&one).unwrap().queues[0].port, Port(3));
    }

    #[test]
    fn two_queues_cannot_have_a_page_or_a_port_in_common() {
        let good = [
            ("multi-queue-num-queues", "2"),
            ("queue-0/ring-ref", "8"),
            ("queue-0/event-channel", "3"),
            ("queue-1/ring-ref", "9"),
            ("queue-1/event-channel", "4"),
        ];
        assert!(answer(&good).is_ok());
        for (at, value) in [(3, "8"), (4, "3"), (3, "x"), (4, "-1")] {
            let mut keys = good;
            keys[at].1 = value;
            match answer(&keys) {
                Err(BadKey::Value { key, .. }) => assert_eq!(key, keys[at].0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(answer(&good[..4]), Err(BadKey::Missing("event-channel")));
        let twice = [
            ("ring-page-order", "1"),
            ("ring-ref0", "8"),
            ("ring-ref1", "8"),
            ("event-channel", "1"),
        ];
        assert!(answer(&twice).is_err());
    }

    #[test]
    fn rates_are_numbers_and_a_burst_is_a_tenth_of_a_second() {
        let rates = |keys: &[(&str, &str)]| Rates::parse(lookup(keys));
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        assert_eq!(rates(&[]), Ok(Rates::default()));
        assert_eq!(rates(&[("rate-iops", "0")]), Ok(Rates::default()));
        assert_eq!(
            rates(&[
                ("rate-iops", "5"),
                ("rate-bytes", "1000000"),
                ("rate-bytes-burst", "9")
            ]),
            Ok(Rates {
                operations: rate(5, 1),
                bytes: rate(1_000_000, 9),
            })
        );
        let most = "18446744073709551615";
        assert!(rates(&[("rate-bytes", most), ("rate-bytes-burst", most)]).is_ok());
        for value in ["-1", "", "fast", "1.5", "18446744073709551616"] {
            assert!(rates(&[("rate-iops", value)]).is_err(), "{value}");
        }
    }

    #[test]
    fn a_size_to_resize_to_is_of_whole_sectors() {
        assert_eq!(resize_to("1048576".into()), Ok(2048));
        for value in ["0", "1", "513", "-512", "", "1M", "99999999999999999999"] {
            let error = resize_to(value.into()).unwrap_err();
            assert!(error.to_string().contains("resize-to"), "{error}");
        }
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
            queues: 3,
        };
        let keys: BTreeMap<_, _> = offer.keys().into_iter().collect();
        assert_eq!(keys["info"], "5");
        assert_eq!(keys["sectors"], "99");
        assert_eq!(keys["sector-size"], "512");
        assert_eq!(keys["physical-sector-size"], "4096");
        assert_eq!(keys["multi-queue-max-queues"], "3");
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
            if let Ok(answer) = Answer::parse(4, |key| values.get(key).cloned()) {
                prop_assert!((1..=4).contains(&answer.queues.len()));
                for queue in answer.queues {
                    prop_assert!(queue.ring.len().is_power_of_two());
                    prop_assert!(queue.ring.len() <= 1 << MAX_RING_PAGE_ORDER);
                }
            }
        }
    }
}
