//! What the two ends tell each other in the xenstore, as data.
//!
//! The keys are those of Xen's `io/netif.h`, and for what toolstacks write those of
//! `docs/misc/xenstore-paths.pandoc` and `libxl`; where these leave a choice, what Linux does is what
//! frontends expect. Nothing here talks to a xenstore.

use std::fmt;

pub use parapet_backend::keys::BadKey;
use parapet_backend::keys::{bad, flag, number};
use parapet_backend::rate::Rate;
use parapet_packet::Mac;
use parapet_xen_sys::{DomId, GrantRef, Port};

use crate::port::Vif;
use crate::rx::{GsoForm, Receives};

/// The longest packet without its Ethernet header, if nobody says otherwise.
pub const MTU: u16 = 1500;

/// The shortest that may be the longest: what IPv4 demands of everybody.
const LEAST_MTU: u16 = 68;

/// What the toolstack says of the vif, in the backend's own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// `mac`: its guest's Ethernet address.
    pub mac: Mac,
    /// `handle`: which of its guest's it is; if that is not there, what its directory is called.
    pub handle: Option<u32>,
    /// `vifname`: what it is to be called on the host.
    pub name: Option<String>,
    /// `bridge`: what it is to be on.
    pub bridge: Option<String>,
    /// `ip`: the addresses that it may use, as texts; any if there are none.
    pub addresses: Vec<String>,
    /// `mtu`.
    pub mtu: u16,
    /// `locked`, of our own toolstack: see [`Vif::locked`].
    pub locked: bool,
    /// `isolated`, of our own toolstack: see [`Vif::isolated`].
    pub isolated: bool,
}

impl Assignment {
    /// The keys that [`Assignment::parse`] asks for.
    pub const KEYS: &[&str] = &[
        "mac", "handle", "vifname", "bridge", "ip", "mtu", "locked", "isolated",
    ];

    /// Understands the toolstack's keys, which `get` looks up.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
        let mac = get("mac").ok_or(BadKey::Missing("mac"))?;
        let mac = match mac.parse() {
            Ok(mac) if Mac::is_station(mac) => mac,
            _ => return Err(bad("mac", &mac, "the Ethernet address of a station")),
        };
        let mtu = match number::<u16>("mtu", &get)? {
            None => MTU,
            Some(mtu) if mtu >= LEAST_MTU => mtu,
            Some(mtu) => return Err(bad("mtu", &mtu.to_string(), "from 68 to 65535")),
        };
        let some = |key: &str| get(key).filter(|value| !value.is_empty());
        let name = match some("vifname") {
            Some(name) if !is_name(&name) => {
                let expected = "the name of an interface: at most 15 characters, none of / and :";
                return Err(bad("vifname", &name, expected));
            }
            name => name,
        };
        let addresses = get("ip").unwrap_or_default();
        Ok(Assignment {
            mac,
            handle: number("handle", &get)?,
            name,
            bridge: some("bridge"),
            addresses: addresses.split_whitespace().map(String::from).collect(),
            mtu,
            locked: flag("locked", &get)?,
            isolated: flag("isolated", &get)?,
        })
    }

    /// The vif that it is: number `number` of domain `frontend`. `named` says whether it is called
    /// what the toolstack wants: a toolstack that has a script gives it its name by that.
    pub fn vif(self, frontend: DomId, number: u32, named: bool) -> Vif {
        let name = self.name.filter(|_| named);
        Vif {
            frontend,
            handle: self.handle.unwrap_or(number),
            name: name.unwrap_or_else(|| format!("vif{frontend}.{number}")),
            mac: self.mac,
            addresses: self.addresses,
            bridge: self.bridge,
            mtu: self.mtu,
            locked: self.locked,
            isolated: self.isolated,
        }
    }
}

/// Whether Linux lets an interface have this name.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    name.len() < 16 && name != "." && name != ".." && name.chars().all(plain)
}

/// The key in which a backend says how many queues a frontend may have.
pub const MOST_QUEUES: &str = "multi-queue-max-queues";

/// What a frontend is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// How many queues it may have.
    pub queues: u32,
}

impl Offer {
    /// The keys to write before the frontend is let in (state `InitWait`).
    pub fn keys(&self) -> Vec<(&'static str, String)> {
        let features = [
            ("feature-sg", true),
            ("feature-gso-tcpv4", true),
            ("feature-gso-tcpv6", true),
            ("feature-ipv6-csum-offload", true),
            ("feature-rx-copy", true),
            // A page given away for each packet: of frontends older than any that still runs.
            ("feature-rx-flip", false),
            ("feature-multicast-control", true),
            ("feature-dynamic-multicast-control", true),
            ("feature-split-event-channels", true),
            ("feature-ctrl-ring", true),
            ("carrier", true),
        ];
        let features = features.map(|(key, set)| (key, u32::from(set).to_string()));
        let queues = (MOST_QUEUES, self.queues.to_string());
        features.into_iter().chain([queues]).collect()
    }
}

/// The event channels of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// One for both rings.
    Joint(Port),
    /// One each.
    Split {
        /// The transmit ring's.
        tx: Port,
        /// The receive ring's.
        rx: Port,
    },
}

impl Ports {
    fn each(self) -> impl Iterator<Item = Port> {
        let (one, other) = match self {
            Ports::Joint(port) => (port, None),
            Ports::Split { tx, rx } => (tx, Some(rx)),
        };
        std::iter::once(one).chain(other)
    }
}

/// What a frontend has published of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueAnswer {
    /// The transmit ring's page.
    pub tx: GrantRef,
    /// The receive ring's.
    pub rx: GrantRef,
    /// Its ports, which wait for us.
    pub ports: Ports,
}

/// What a frontend has published of its control ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlAnswer {
    /// The ring's page.
    pub ring: GrantRef,
    /// Its port.
    pub port: Port,
}

/// What a frontend has published when it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its queues, of which there is one at least.
    pub queues: Vec<QueueAnswer>,
    /// Its control ring, if it has one. No two rings have a page or a port in common.
    pub control: Option<ControlAnswer>,
    /// What it takes.
    pub receives: Receives,
    /// Whether it says when it has posted buffers: `feature-rx-notify`.
    pub notifies: bool,
}

/// Where a frontend says whether it hears only the multicast groups that it asks for, at any time.
pub const MULTICAST: &str = "request-multicast-control";

/// The key in which a frontend says how many queues it has.
const QUEUES: &str = "multi-queue-num-queues";

/// Where a frontend says whether its packets may be copied.
const COPY: &str = "request-rx-copy";

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
            COPY,
            "feature-rx-notify",
            "feature-sg",
            "feature-gso-tcpv4",
            "feature-gso-tcpv6",
            "feature-gso-tcpv4-prefix",
            "feature-gso-tcpv6-prefix",
            "feature-no-csum-offload",
            "feature-ipv6-csum-offload",
            "ctrl-ring-ref",
            "event-channel-ctrl",
        ];
        let of_queues = (0..queues).flat_map(move |queue| {
            let folder = folder(queues, queue);
            [
                "tx-ring-ref",
                "rx-ring-ref",
                "event-channel",
                "event-channel-tx",
                "event-channel-rx",
            ]
            .map(|key| format!("{folder}{key}"))
        });
        plain.into_iter().map(String::from).chain(of_queues)
    }

    /// Understands the frontend's keys, which `get` looks up, of a frontend that was offered `most`
    /// queues. They are read once; what the frontend writes later changes nothing.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn parse(most: u32, get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
        if !flag(COPY, &get)? {
            let value = get(COPY).unwrap_or_else(|| "not there".into());
            let expected = "1: pages are not given away, and this frontend takes no copies";
            return Err(bad(COPY, &value, expected));
        }
        let count = Answer::queues(most, &get)?;
        let mut seen = Seen::default();
        let mut queues = Vec::new();
        for number in 0..count {
            let folder = folder(count, number);
            let queue = QueueAnswer::parse(&folder, &get)?;
            seen.page(&format!("{folder}tx-ring-ref"), queue.tx)?;
            seen.page(&format!("{folder}rx-ring-ref"), queue.rx)?;
            for port in queue.ports.each() {
                seen.port(&format!("{folder}event-channel"), port)?;
            }
            queues.push(queue);
        }
        let control = match number("ctrl-ring-ref", &get)? {
            None => None,
            Some(ring) => {
                let port = number("event-channel-ctrl", &get)?;
                Some(ControlAnswer {
                    ring: GrantRef(ring),
                    port: Port(port.ok_or(BadKey::Missing("event-channel-ctrl"))?),
                })
            }
        };
        if let Some(control) = control {
            seen.page("ctrl-ring-ref", control.ring)?;
            seen.port("event-channel-ctrl", control.port)?;
        }
        let gso = |plain: &str, prefix: &str| {
            Ok(match (flag(plain, &get)?, flag(prefix, &get)?) {
                (true, _) => GsoForm::Extra,
                (false, true) => GsoForm::Prefix,
                (false, false) => GsoForm::None,
            })
        };
        Ok(Answer {
            queues,
            control,
            receives: Receives {
                scatter: flag("feature-sg", &get)?,
                gso_v4: gso("feature-gso-tcpv4", "feature-gso-tcpv4-prefix")?,
                gso_v6: gso("feature-gso-tcpv6", "feature-gso-tcpv6-prefix")?,
                blank_v4: !flag("feature-no-csum-offload", &get)?,
                blank_v6: flag("feature-ipv6-csum-offload", &get)?,
            },
            notifies: flag("feature-rx-notify", &get)?,
        })
    }
}

/// What other rings of the vif have.
#[derive(Default)]
struct Seen {
    pages: Vec<GrantRef>,
    ports: Vec<Port>,
}

impl Seen {
    fn page(&mut self, key: &str, page: GrantRef) -> Result<(), BadKey> {
        if self.pages.contains(&page) {
            return Err(bad(key, &page.0.to_string(), "the page of one ring only"));
        }
        self.pages.push(page);
        Ok(())
    }

    fn port(&mut self, key: &str, port: Port) -> Result<(), BadKey> {
        if self.ports.contains(&port) {
            return Err(bad(key, &port.0.to_string(), "the port of one ring only"));
        }
        self.ports.push(port);
        Ok(())
    }
}

impl QueueAnswer {
    fn parse(folder: &str, get: impl Fn(&str) -> Option<String>) -> Result<Self, BadKey> {
        let find = |key: &str| number::<u32>(&format!("{folder}{key}"), &get);
        let ring = |key: &'static str| Ok(GrantRef(find(key)?.ok_or(BadKey::Missing(key))?));
        let (tx, rx) = (ring("tx-ring-ref")?, ring("rx-ring-ref")?);
        let ports = match (find("event-channel-tx")?, find("event-channel-rx")?) {
            (Some(tx), Some(rx)) => Ports::Split {
                tx: Port(tx),
                rx: Port(rx),
            },
            // As in Linux, half of a pair is none.
            _ => {
                let port = find("event-channel")?;
                Ports::Joint(Port(port.ok_or(BadKey::Missing("event-channel"))?))
            }
        };
        Ok(QueueAnswer { tx, rx, ports })
    }
}

/// Where the keys of a queue are: one alone has them where vifs without queues have theirs.
fn folder(queues: u32, queue: u32) -> String {
    match queues {
        1 => String::new(),
        _ => format!("queue-{queue}/"),
    }
}

/// The key by which the operator says how fast a guest may transmit.
pub const RATE: &str = "rate";

/// Understands the key `rate`: bytes, and the microseconds in which so many may be sent. Nothing is
/// no limit, and so is a time of zero.
///
/// # Errors
/// It is not two numbers.
pub fn rate(value: Option<&str>) -> Result<Option<Rate>, BadKey> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let read = |text: &str| number::<u64>(RATE, |_| Some(text.into())).ok().flatten();
    let (bytes, micros) = value.split_once(',').unwrap_or((value, ""));
    let (Some(bytes), Some(micros)) = (read(bytes), read(micros)) else {
        return Err(bad(RATE, value, "BYTES,MICROSECONDS"));
    };
    if micros == 0 {
        return Ok(None);
    }
    let per_second = u128::from(bytes) * 1_000_000 / u128::from(micros);
    let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
    Ok(Some(Rate::new(per_second, Some(bytes))))
}

/// What was agreed on with a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// How many queues there are.
    pub queues: usize,
    /// Whether each ring has an event channel of its own.
    pub split: bool,
    /// Whether there is a control ring.
    pub control: bool,
    /// What the frontend takes.
    pub receives: Receives,
}

impl From<&Answer> for Agreed {
    fn from(answer: &Answer) -> Self {
        let split = |queue: &QueueAnswer| matches!(queue.ports, Ports::Split { .. });
        Agreed {
            queues: answer.queues.len(),
            split: answer.queues.iter().any(split),
            control: answer.control.is_some(),
            receives: answer.receives,
        }
    }
}

impl Agreed {
    /// What a frontend takes, in the words of `netif.h`.
    pub fn features(&self) -> impl Iterator<Item = &'static str> {
        let Receives {
            scatter,
            gso_v4,
            gso_v6,
            blank_v4,
            blank_v6,
        } = self.receives;
        [
            (scatter, "sg"),
            (gso_v4 != GsoForm::None, "gso-tcpv4"),
            (gso_v6 != GsoForm::None, "gso-tcpv6"),
            (blank_v4, "csum-offload"),
            (blank_v6, "ipv6-csum-offload"),
            (self.split, "split-event-channels"),
            (self.control, "ctrl-ring"),
        ]
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.queues {
            1 => f.write_str("a queue")?,
            queues => write!(f, "{queues} queues")?,
        }
        for feature in self.features() {
            write!(f, ", {feature}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn lookup<'a>(keys: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        let keys: BTreeMap<_, _> = keys.iter().copied().collect();
        move |key| keys.get(key).map(|&value| value.to_owned())
    }

    const PLAIN: &[(&str, &str)] = &[
        ("request-rx-copy", "1"),
        ("tx-ring-ref", "8"),
        ("rx-ring-ref", "9"),
        ("event-channel", "5"),
    ];

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [PLAIN, more].concat()
    }

    fn wrong(keys: &[(&str, &str)]) -> String {
        Answer::parse(4, lookup(keys)).unwrap_err().to_string()
    }

    #[test]
    fn what_libxl_writes_is_a_vif() {
        let keys = [
            ("mac", "00:16:3e:01:02:03"),
            ("handle", "0"),
            ("bridge", "xenbr0"),
            ("ip", "10.0.0.2 fd00::2"),
            ("mtu", "9000"),
            ("vifname", "blue"),
            ("type", "vif"),
        ];
        let assignment = Assignment::parse(lookup(&keys)).unwrap();
        let vif = assignment.clone().vif(DomId(5), 0, true);
        let expected = Vif {
            frontend: DomId(5),
            handle: 0,
            name: "blue".into(),
            mac: Mac([0, 0x16, 0x3e, 1, 2, 3]),
            addresses: vec!["10.0.0.2".into(), "fd00::2".into()],
            bridge: Some("xenbr0".into()),
            mtu: 9000,
            locked: false,
            isolated: false,
        };
        assert_eq!(vif, expected);
        // The script renames it.
        assert_eq!(assignment.vif(DomId(5), 0, false).name, "vif5.0");
        let keys = [
            ("mac", "00:16:3e:01:02:03"),
            ("vifname", ""),
            ("bridge", ""),
        ];
        let vif = Assignment::parse(lookup(&keys))
            .unwrap()
            .vif(DomId(7), 2, true);
        assert_eq!((vif.name.as_str(), vif.handle), ("vif7.2", 2));
        assert_eq!((vif.bridge, vif.mtu), (None, 1500));
    }

    #[test]
    fn what_cannot_be_an_interface_is_refused() {
        let mac = ("mac", "00:16:3e:01:02:03");
        for keys in [
            &[("mac", "01:00:5e:00:00:01")][..],
            &[("mac", "00:00:00:00:00:00")],
            &[("mac", "a disk")],
            &[("bridge", "xenbr0")],
            &[mac, ("mtu", "67")],
            &[mac, ("mtu", "65536")],
            &[mac, ("vifname", "sixteen-letters-")],
            &[mac, ("vifname", "../../etc")],
            &[mac, ("vifname", "a b")],
            &[mac, ("vifname", "%d")],
            &[mac, ("handle", "-1")],
        ] {
            assert!(Assignment::parse(lookup(keys)).is_err(), "{keys:?}");
        }
    }

    #[test]
    fn the_oldest_frontend_has_a_queue_and_nothing_else() {
        let answer = Answer::parse(4, lookup(PLAIN)).unwrap();
        let queue = QueueAnswer {
            tx: GrantRef(8),
            rx: GrantRef(9),
            ports: Ports::Joint(Port(5)),
        };
        let receives = Receives {
            blank_v4: true,
            ..Receives::default()
        };
        let expected = Answer {
            queues: vec![queue],
            control: None,
            receives,
            notifies: false,
        };
        assert_eq!(answer, expected);
        assert_eq!(Agreed::from(&answer).to_string(), "a queue, csum-offload");
    }

    #[test]
    fn a_frontend_that_uses_everything_is_understood() {
        let keys = [
            ("request-rx-copy", "1"),
            ("feature-rx-notify", "1"),
            ("feature-sg", "1"),
            ("feature-gso-tcpv4", "1"),
            ("feature-gso-tcpv6-prefix", "1"),
            ("feature-no-csum-offload", "1"),
            ("feature-ipv6-csum-offload", "1"),
            ("multi-queue-num-queues", "2"),
            ("queue-0/tx-ring-ref", "10"),
            ("queue-0/rx-ring-ref", "11"),
            ("queue-0/event-channel-tx", "12"),
            ("queue-0/event-channel-rx", "13"),
            ("queue-1/tx-ring-ref", "20"),
            ("queue-1/rx-ring-ref", "21"),
            ("queue-1/event-channel", "22"),
            ("ctrl-ring-ref", "30"),
            ("event-channel-ctrl", "31"),
        ];
        let answer = Answer::parse(2, lookup(&keys)).unwrap();
        let (tx, rx) = (Port(12), Port(13));
        assert_eq!(answer.queues[0].ports, Ports::Split { tx, rx });
        assert_eq!(answer.queues[1].ports, Ports::Joint(Port(22)));
        let (ring, port) = (GrantRef(30), Port(31));
        assert_eq!(answer.control, Some(ControlAnswer { ring, port }));
        let receives = Receives {
            scatter: true,
            gso_v4: GsoForm::Extra,
            gso_v6: GsoForm::Prefix,
            blank_v4: false,
            blank_v6: true,
        };
        assert_eq!((answer.receives, answer.notifies), (receives, true));
        // All that is asked for is among what is read.
        let read: Vec<String> = Answer::keys(2).collect();
        assert!(keys.iter().all(|(key, _)| read.iter().any(|it| it == key)));
    }

    #[test]
    fn a_frontend_that_wants_pages_given_away_is_told_that_it_gets_none() {
        for keys in [&PLAIN[1..], &[("request-rx-copy", "0"), PLAIN[1]]] {
            let error = wrong(keys);
            assert!(error.contains("request-rx-copy"), "{error}");
            assert!(error.contains("copies"), "{error}");
        }
    }

    #[test]
    fn what_a_frontend_must_not_say_is_refused_by_name() {
        for (keys, name) in [
            (
                with(&[("multi-queue-num-queues", "0")]),
                "multi-queue-num-queues",
            ),
            (
                with(&[("multi-queue-num-queues", "5")]),
                "multi-queue-num-queues",
            ),
            // Two queues have their keys in folders.
            (with(&[("multi-queue-num-queues", "2")]), "tx-ring-ref"),
            (with(&[("rx-ring-ref", "8")]), "rx-ring-ref"),
            (with(&[("tx-ring-ref", "-8")]), "tx-ring-ref"),
            (with(&[("feature-sg", "yes")]), "feature-sg"),
            (with(&[("ctrl-ring-ref", "30")]), "event-channel-ctrl"),
            (
                with(&[("ctrl-ring-ref", "8"), ("event-channel-ctrl", "6")]),
                "ctrl-ring-ref",
            ),
            (
                with(&[("ctrl-ring-ref", "30"), ("event-channel-ctrl", "5")]),
                "event-channel-ctrl",
            ),
            (
                with(&[("event-channel-tx", "7"), ("event-channel-rx", "7")]),
                "event-channel",
            ),
        ] {
            let error = wrong(&keys);
            assert!(error.contains(name), "{error}");
        }
        // Half a pair of ports is none.
        assert!(Answer::parse(1, lookup(&with(&[("event-channel-tx", "7")]))).is_ok());
    }

    #[test]
    fn a_rate_is_bytes_in_a_time() {
        let found = rate(Some("625000,50000")).unwrap();
        let expected = Rate {
            per_second: 12_500_000,
            burst: 625_000,
        };
        assert_eq!(found, Some(expected));
        for no_limit in [None, Some(""), Some("5,0"), Some("18446744073709551615,0")] {
            assert_eq!(rate(no_limit), Ok(None), "{no_limit:?}");
        }
        for wrong in ["1", "a,b", "1,2,3", ",", "-1,5", "1, 5"] {
            assert!(rate(Some(wrong)).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_has_a_page_or_a_port_twice_whatever_is_said(
            values in proptest::collection::vec("[0-9]{0,2}|[ -~]{0,4}", 24),
            queues in 1u32..4,
        ) {
            let mut keys: BTreeMap<String, String> =
                Answer::keys(queues).zip(values.iter().cloned()).collect();
            keys.insert("request-rx-copy".into(), "1".into());
            keys.insert("multi-queue-num-queues".into(), queues.to_string());
            let Ok(answer) = Answer::parse(3, |key| keys.get(key).cloned()) else {
                return Ok(());
            };
            prop_assert_eq!(answer.queues.len(), queues as usize);
            let mut pages: Vec<_> = answer.queues.iter().flat_map(|it| [it.tx, it.rx]).collect();
            let mut ports: Vec<_> = answer.queues.iter().flat_map(|it| it.ports.each()).collect();
            pages.extend(answer.control.map(|it| it.ring));
            ports.extend(answer.control.map(|it| it.port));
            let (all_pages, all_ports) = (pages.len(), ports.len());
            pages.sort_unstable();
            pages.dedup();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!((pages.len(), ports.len()), (all_pages, all_ports));
        }

        #[test]
        fn a_rate_never_wraps(bytes in any::<u64>(), micros in 1u64..) {
            let found = rate(Some(&format!("{bytes},{micros}"))).unwrap().unwrap();
            prop_assert!(found.per_second >= 1 && found.burst >= 1);
        }
    }
}
