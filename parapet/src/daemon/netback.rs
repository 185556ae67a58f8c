//! What `parapet-netback` tells of its vifs.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use parapet_backend::rate::Rate;
use parapet_netback::drops::Drop;
use parapet_netback::negotiation::Agreed;
use parapet_netback::report::{Report, VifStats};
use parapet_netback::stats::{QueueStats, Way};
use parapet_xen_sys::DomId;
use serde::{Deserialize, Serialize};

use super::State;
use crate::report::lines;

/// The daemon's name: of its program, its lock and its socket.
pub const NAME: &str = "parapet-netback";

/// How the daemon fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The domain that it runs in.
    pub domid: u16,
    /// Every vif that it has met, those that ended first, as far as it remembers them.
    pub vifs: Vec<VifStatus>,
}

/// One vif.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VifStatus {
    /// The frontend's domain.
    pub frontend: u16,
    /// The vif's number.
    pub number: u32,
    /// How far it is.
    pub state: State,
    /// What it was called on the host when it was made; none if it could not be.
    pub name: Option<String>,
    /// Its guest's Ethernet address.
    pub mac: Option<String>,
    /// The bridge or network that it is to be on.
    pub bridge: Option<String>,
    /// The longest packet without its Ethernet header, in bytes.
    pub mtu: Option<u16>,
    /// What was agreed on with the frontend that is, or was last, connected.
    pub connection: Option<Connection>,
    /// How often a frontend has connected.
    pub connections: u64,
    /// What went wrong most recently.
    pub error: Option<String>,
    /// How fast the guest may transmit; nothing if there is no limit.
    pub limit: Option<Limit>,
    /// Frames from the guest.
    pub tx: Frames,
    /// Frames to the guest.
    pub rx: Frames,
    /// Frames that were dropped, by reason: those of which there were some.
    pub drops: BTreeMap<String, u64>,
    /// Requests that were answered with an error, either way.
    pub errors: u64,
    /// Pages that were copied by grant.
    pub copies: u64,
    /// Checksums that were made for the guest.
    pub sums: u64,
    /// Segments that were cut for the guest.
    pub segments: u64,
    /// Queues that are stalled, as of now: their guest posts no buffers.
    pub stalled: u64,
    /// How often a queue was.
    pub stalls: u64,
    /// How often a queue of it went to sleep.
    pub sleeps: u64,
    /// How often one had to wait because the limit was reached.
    pub throttled: u64,
    /// Events that brought nothing.
    pub spurious: u64,
    /// Pages of the guest that stay mapped because it asked for that, as of now.
    pub statics: u64,
}

/// What was agreed on with a frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// How many queues there are.
    pub queues: usize,
    /// What the frontend takes, in the words of Xen's `netif.h`.
    pub features: Vec<String>,
}

/// How fast a guest may transmit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bytes a second.
    pub bytes: u64,
    /// Bytes at once after a pause.
    pub burst: u64,
}

/// Frames one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// How many.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that came to be cut into segments.
    pub gso: u64,
    /// Slots of rings that they took.
    pub slots: u64,
    /// Batches in which they went.
    pub batches: u64,
    /// Notifications sent to the frontend.
    pub notifications: u64,
}

impl Status {
    /// The status of this process in domain `domid`, whose service has these reports.
    pub fn new(domid: DomId, reports: &[Report]) -> Self {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            domid: domid.0,
            vifs: reports.iter().map(VifStatus::new).collect(),
        }
    }
}

impl VifStatus {
    fn new(report: &Report) -> Self {
        let Report { device, about, .. } = report;
        let (vif, stats) = (about.vif.as_ref(), &about.stats);
        let drops = Drop::ALL.map(|why| (why.name().to_owned(), stats.dropped(why)));
        VifStatus {
            frontend: device.frontend.0,
            number: device.number,
            state: report.stage.into(),
            name: vif.map(|vif| vif.name.clone()),
            mac: vif.map(|vif| vif.mac.to_string()),
            bridge: vif.and_then(|vif| vif.bridge.clone()),
            mtu: vif.map(|vif| vif.mtu),
            connection: about.connection.as_ref().map(Connection::from),
            connections: report.connections,
            error: report.error.clone(),
            limit: about.rate.map(Limit::from),
            tx: Frames::new(stats, |queue| &queue.tx),
            rx: Frames::new(stats, |queue| &queue.rx),
            drops: drops.into_iter().filter(|(_, count)| *count > 0).collect(),
            errors: stats.sum(|queue| queue.tx.errors.get() + queue.rx.errors.get()),
            copies: stats.sum(|queue| queue.copies.get()),
            sums: stats.sum(|queue| queue.sums.get()),
            segments: stats.sum(|queue| queue.segments.get()),
            stalled: stats.sum(|queue| queue.stalled.get()),
            stalls: stats.sum(|queue| queue.stalls.get()),
            sleeps: stats.sum(|queue| queue.sleeps.get()),
            throttled: stats.sum(|queue| queue.throttled.get()),
            spurious: stats.sum(|queue| queue.spurious.get()),
            statics: stats.sum(|queue| queue.statics.get()),
        }
    }
}

impl From<&Agreed> for Connection {
    fn from(agreed: &Agreed) -> Self {
        Connection {
            queues: agreed.queues,
            features: agreed.features().map(String::from).collect(),
        }
    }
}

impl From<Rate> for Limit {
    fn from(rate: Rate) -> Self {
        Limit {
            bytes: rate.per_second,
            burst: rate.burst,
        }
    }
}

impl Frames {
    fn new(stats: &VifStats, way: fn(&QueueStats) -> &Way) -> Self {
        Frames {
            frames: stats.sum(|queue| way(queue).packets.get()),
            bytes: stats.sum(|queue| way(queue).bytes.get()),
            gso: stats.sum(|queue| way(queue).gso.get()),
            slots: stats.sum(|queue| way(queue).slots.get()),
            batches: stats.sum(|queue| way(queue).batches.get()),
            notifications: stats.sum(|queue| way(queue).notifications.get()),
        }
    }
}

const HEAD: [&str; 13] = [
    "dom",
    "vif",
    "state",
    "interface",
    "mac",
    "on",
    "queues",
    "sent",
    "MB",
    "received",
    "MB",
    "dropped",
    "errors",
];
/// The columns that are text, and so flush left.
const TEXT: usize = 6;

/// For people: a row for each vif, and below what went wrong with some. What is sent is sent by the
/// guest.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEAD.map(str::to_owned)];
        let mut errors = String::new();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        for vif in &self.vifs {
            let megabytes = |frames: Frames| format!("{:.1}", frames.bytes as f64 / 1e6);
            let queues = vif.connection.as_ref().map(|it| it.queues.to_string());
            rows.push([
                vif.frontend.to_string(),
                vif.number.to_string(),
                vif.state.to_string(),
                or_dash(vif.name.clone()),
                or_dash(vif.mac.clone()),
                or_dash(vif.bridge.clone()),
                or_dash(queues),
                vif.tx.frames.to_string(),
                megabytes(vif.tx),
                vif.rx.frames.to_string(),
                megabytes(vif.rx),
                vif.drops.values().sum::<u64>().to_string(),
                vif.errors.to_string(),
            ]);
            if let Some(error) = &vif.error {
                writeln!(
                    errors,
                    "domain {} vif {}: {error}",
                    vif.frontend, vif.number
                )?;
            }
        }
        if self.vifs.is_empty() {
            return writeln!(f, "no vif was attached yet");
        }
        f.write_str(&lines(&rows, TEXT))?;
        f.write_str(&errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_vif_and_its_error_below() {
        let vif = VifStatus {
            frontend: 5,
            number: 0,
            state: State::Connected,
            name: Some("vif5.0".into()),
            mac: Some("00:16:3e:01:02:03".into()),
            bridge: Some("xenbr0".into()),
            mtu: Some(1500),
            connection: Some(Connection {
                queues: 2,
                features: vec!["sg".into()],
            }),
            connections: 1,
            error: None,
            limit: None,
            tx: Frames {
                frames: 10,
                bytes: 2_000_000,
                ..Frames::default()
            },
            rx: Frames::default(),
            drops: BTreeMap::from([("spoofed".into(), 3), ("no-way".into(), 4)]),
            errors: 1,
            copies: 0,
            sums: 0,
            segments: 0,
            stalled: 0,
            stalls: 0,
            sleeps: 0,
            throttled: 0,
            spurious: 0,
            statics: 0,
        };
        let failed = VifStatus {
            number: 1,
            state: State::Closed,
            name: None,
            mac: None,
            bridge: None,
            connection: None,
            error: Some("no bridge".into()),
            tx: Frames::default(),
            drops: BTreeMap::new(),
            errors: 0,
            ..vif.clone()
        };
        let status = Status {
            version: "1".into(),
            pid: 1,
            domid: 0,
            vifs: vec![vif, failed],
        };
        let expected = "\
dom  vif  state      interface  mac                on      queues  sent   MB  received   MB  dropped  errors
5    0    connected  vif5.0     00:16:3e:01:02:03  xenbr0       2    10  2.0         0  0.0        7       1
5    1    closed     -          -                  -            -     0  0.0         0  0.0        0       0
domain 5 vif 1: no bridge
";
        assert_eq!(status.to_string(), expected);
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}
