//! What `parapet-blkback` tells of its disks.

use std::fmt::{self, Write};

use parapet_blkback::image::{Access, SECTOR_SIZE};
use parapet_blkback::negotiation::Rates;
use parapet_blkback::report::{self, Report};
use parapet_blkback::stats::Kind;
use parapet_blkfront::vdev::Vdev;
use parapet_xen_sys::DomId;
use serde::{Deserialize, Serialize};

use super::State;
use crate::report::lines;

/// The daemon's name: of its program, its lock and its socket.
pub const NAME: &str = "parapet-blkback";

/// How the daemon fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The domain that it runs in.
    pub domid: u16,
    /// Every vbd that it has met, those that ended first, as far as it remembers them.
    pub vbds: Vec<VbdStatus>,
}

/// One vbd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VbdStatus {
    /// The frontend's domain.
    pub frontend: u16,
    /// The vbd's number.
    pub number: u32,
    /// What a guest calls it.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// Its image; none if that could not be opened.
    pub image: Option<String>,
    /// `r` or `w`.
    pub mode: Option<String>,
    /// Its size in units of 512 bytes.
    pub sectors: Option<u64>,
    /// What was agreed on with the frontend that is, or was last, connected.
    pub connection: Option<Connection>,
    /// How often a frontend has connected.
    pub connections: u64,
    /// What went wrong most recently.
    pub error: Option<String>,
    /// Its reads.
    pub reads: Requests,
    /// Its writes.
    pub writes: Requests,
    /// Its flushes, with what they had to write.
    pub flushes: Requests,
    /// Its discards.
    pub discards: Requests,
    /// How fast it may be used; nothing if there is no limit.
    pub limits: Limits,
    /// Requests that asked for what cannot be.
    pub refused: u64,
    /// Notifications sent to the frontend.
    pub notifications: u64,
    /// How often a queue of it went to sleep.
    pub sleeps: u64,
    /// How often one had to wait because the limits were reached.
    pub throttled: u64,
    /// Events that brought no request.
    pub spurious: u64,
    /// Grants that had to be mapped.
    pub maps: u64,
    /// Pages of the frontend that stay mapped, as of now.
    pub persistent_pages: u64,
}

/// What was agreed on with a frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// How slots are laid out, as `x86_64-abi`.
    pub protocol: String,
    /// How many queues there are.
    pub queues: usize,
    /// Pages in the ring of each.
    pub ring_pages: usize,
    /// Whether pages stay mapped between requests.
    pub persistent: bool,
}

/// How fast a disk may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Operations a second.
    pub iops: Option<u64>,
    /// Operations at once after a pause.
    pub iops_burst: Option<u64>,
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Bytes at once after a pause.
    pub bytes_burst: Option<u64>,
}

impl From<Rates> for Limits {
    fn from(rates: Rates) -> Self {
        Limits {
            iops: rates.operations.map(|rate| rate.per_second),
            iops_burst: rates.operations.map(|rate| rate.burst),
            bytes: rates.bytes.map(|rate| rate.per_second),
            bytes_burst: rates.bytes.map(|rate| rate.burst),
        }
    }
}

/// Requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// How many succeeded.
    pub requests: u64,
    /// Sectors of 512 bytes in these.
    pub sectors: u64,
    /// Bytes in these.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
}

impl Status {
    /// The status of this process in domain `domid`, whose service has these reports.
    pub fn new(domid: DomId, reports: &[Report]) -> Self {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            domid: domid.0,
            vbds: reports.iter().map(VbdStatus::new).collect(),
        }
    }
}

impl VbdStatus {
    fn new(report: &Report) -> Self {
        let Report { device, about, .. } = report;
        let stats = about.stats.sum();
        let disk = about.disk.as_ref();
        VbdStatus {
            frontend: device.frontend.0,
            number: device.number,
            name: Vdev::new(device.number).to_string(),
            state: report.stage.into(),
            image: disk.map(|disk| disk.image.clone()),
            mode: disk.map(|disk| match disk.access {
                Access::ReadOnly => "r".into(),
                Access::ReadWrite => "w".into(),
            }),
            sectors: disk.map(|disk| disk.sectors),
            connection: about.connection.map(Connection::from),
            connections: report.connections,
            error: report.error.clone(),
            reads: Requests::new(&stats.reads),
            writes: Requests::new(&stats.writes),
            flushes: Requests::new(&stats.flushes),
            discards: Requests::new(&stats.discards),
            limits: about.rates.into(),
            refused: stats.refused.get(),
            notifications: stats.notifications.get(),
            sleeps: stats.sleeps.get(),
            throttled: stats.throttled.get(),
            spurious: stats.spurious.get(),
            maps: stats.maps.get(),
            persistent_pages: stats.persistent_pages.get(),
        }
    }

    /// Requests that failed or were refused.
    fn errors(&self) -> u64 {
        let kinds = [self.reads, self.writes, self.flushes, self.discards];
        let failed: u64 = kinds.iter().map(|kind| kind.errors).sum();
        failed.saturating_add(self.refused)
    }
}

impl From<report::Connection> for Connection {
    fn from(connection: report::Connection) -> Self {
        Connection {
            protocol: connection.protocol.to_string(),
            queues: connection.queues,
            ring_pages: connection.ring_pages,
            persistent: connection.persistent,
        }
    }
}

impl Requests {
    fn new(kind: &Kind) -> Self {
        let bytes = kind.bytes.get();
        Requests {
            requests: kind.operations.get(),
            sectors: bytes / SECTOR_SIZE as u64,
            bytes,
            errors: kind.errors.get(),
        }
    }
}

const HEAD: [&str; 13] = [
    "dom", "disk", "state", "image", "mode", "MiB", "reads", "MB", "writes", "MB", "flushes",
    "discards", "errors",
];
/// The columns that are text, and so flush left.
const TEXT: usize = 5;

/// For people: a row for each vbd, and below what went wrong with some.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEAD.map(str::to_owned)];
        let mut errors = String::new();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        for vbd in &self.vbds {
            let mebibytes = vbd.sectors.map(|sectors| sectors / (1 << 11));
            let megabytes = |kind: Requests| format!("{:.1}", kind.bytes as f64 / 1e6);
            rows.push([
                vbd.frontend.to_string(),
                vbd.name.clone(),
                vbd.state.to_string(),
                or_dash(vbd.image.clone()),
                or_dash(vbd.mode.clone()),
                or_dash(mebibytes.map(|size| size.to_string())),
                vbd.reads.requests.to_string(),
                megabytes(vbd.reads),
                vbd.writes.requests.to_string(),
                megabytes(vbd.writes),
                vbd.flushes.requests.to_string(),
                vbd.discards.requests.to_string(),
                vbd.errors().to_string(),
            ]);
            if let Some(error) = &vbd.error {
                writeln!(errors, "domain {} {}: {error}", vbd.frontend, vbd.name)?;
            }
        }
        if self.vbds.is_empty() {
            return writeln!(f, "no disk was attached yet");
        }
        f.write_str(&lines(&rows, TEXT))?;
        f.write_str(&errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_disk_and_its_error_below() {
        let none = Requests {
            requests: 0,
            sectors: 0,
            bytes: 0,
            errors: 0,
        };
        let vbd = VbdStatus {
            frontend: 5,
            number: 51712,
            name: "xvda".into(),
            state: State::Connected,
            image: Some("/srv/a.img".into()),
            mode: Some("w".into()),
            sectors: Some(2048),
            connection: None,
            connections: 1,
            error: None,
            reads: Requests {
                requests: 10,
                sectors: 80,
                bytes: 40960,
                errors: 1,
            },
            writes: none,
            flushes: none,
            discards: none,
            limits: Limits::default(),
            refused: 2,
            notifications: 9,
            sleeps: 8,
            throttled: 0,
            spurious: 7,
            maps: 6,
            persistent_pages: 5,
        };
        let failed = VbdStatus {
            name: "xvdb".into(),
            state: State::Closed,
            image: None,
            mode: None,
            sectors: None,
            error: Some("no image".into()),
            reads: none,
            refused: 0,
            ..vbd.clone()
        };
        let status = Status {
            version: "1".into(),
            pid: 1,
            domid: 0,
            vbds: vec![vbd, failed],
        };
        let expected = "\
dom  disk  state      image       mode  MiB  reads   MB  writes   MB  flushes  discards  errors
5    xvda  connected  /srv/a.img  w       1     10  0.0       0  0.0        0         0       3
5    xvdb  closed     -           -       -      0  0.0       0  0.0        0         0       0
domain 5 xvdb: no image
";
        assert_eq!(status.to_string(), expected);
    }
}
