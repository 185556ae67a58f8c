//! What each disk did, operations, bytes, and how long its backend took for them; and what each
//! vif did, frames, bytes, and why some went nowhere.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use parapet_blkback::stats::Kind;
use parapet_netback::drops::Drop;
use parapet_netback::stats::{QueueStats, Way};
use serde::Serialize;

use crate::host::{DiskReport, VifReport};

/// What one disk did.
#[derive(Debug, Clone, Serialize)]
pub struct DiskSummary {
    /// Whose it is.
    pub guest: String,
    /// What the guest knows it by.
    pub vdev: String,
    /// What it is kept in.
    pub target: String,
    /// How long its guest's program ran, in seconds, if it came to its end.
    pub seconds: Option<f64>,
    /// Its reads.
    pub read: KindSummary,
    /// Its writes.
    pub write: KindSummary,
    /// Its flushes.
    pub flush: KindSummary,
    /// Its discards.
    pub discard: KindSummary,
    /// Requests that asked for what cannot be.
    pub refused: u64,
}

/// What one kind of operation came to.
#[derive(Debug, Clone, Serialize)]
pub struct KindSummary {
    /// How many succeeded.
    pub operations: u64,
    /// Bytes in these.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
    /// How long they took, from when the backend took them off the ring until it answered.
    pub latency_ns: LatencySummary,
}

/// Latencies in nanoseconds; zeros if there was no operation.
#[derive(Debug, Clone, Serialize)]
pub struct LatencySummary {
    /// Half took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// 999 of 1000 took no longer.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl DiskSummary {
    /// Sums up a report of a disk whose guest ran its program for `time`, if it came to its end.
    pub fn new(report: &DiskReport, time: Option<Duration>) -> Self {
        let DiskReport { guest, disk, stats } = report;
        let stats = stats.sum();
        DiskSummary {
            guest: guest.clone(),
            vdev: disk.vdev.to_string(),
            target: disk.target.clone(),
            seconds: time.map(|time| time.as_secs_f64()),
            read: KindSummary::new(&stats.reads),
            write: KindSummary::new(&stats.writes),
            flush: KindSummary::new(&stats.flushes),
            discard: KindSummary::new(&stats.discards),
            refused: stats.refused.get(),
        }
    }

    fn kinds(&self) -> [(&'static str, &KindSummary); 4] {
        [
            ("read", &self.read),
            ("write", &self.write),
            ("flush", &self.flush),
            ("discard", &self.discard),
        ]
    }

    /// How many operations failed, those included that were refused.
    pub fn errors(&self) -> u64 {
        let failed = self
            .kinds()
            .iter()
            .map(|(_, kind)| kind.errors)
            .sum::<u64>();
        failed.saturating_add(self.refused)
    }
}

impl KindSummary {
    fn new(kind: &Kind) -> Self {
        let mut latencies = Histogram::<u64>::new(3).expect("three digits are few enough");
        kind.latencies.add_to(&mut latencies);
        let at = |quantile| latencies.value_at_quantile(quantile);
        KindSummary {
            operations: kind.operations.get(),
            bytes: kind.bytes.get(),
            errors: kind.errors.get(),
            latency_ns: LatencySummary {
                p50: at(0.5),
                p99: at(0.99),
                p999: at(0.999),
                max: at(1.0),
            },
        }
    }
}

/// What one vif did.
#[derive(Debug, Clone, Serialize)]
pub struct VifSummary {
    /// Whose it is.
    pub guest: String,
    /// Its number.
    pub number: u32,
    /// Its Ethernet address.
    pub mac: String,
    /// The network that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// How long its guest's program ran, in seconds, if it came to its end.
    pub seconds: Option<f64>,
    /// What the guest sent.
    pub sent: WaySummary,
    /// What the guest got.
    pub received: WaySummary,
    /// Frames that went nowhere, by the reason's name.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// Frames one way.
#[derive(Debug, Clone, Serialize)]
pub struct WaySummary {
    /// Frames: one that is cut into segments later counts once.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl VifSummary {
    /// Sums up a report of a vif whose guest ran its program for `time`, if it came to its end.
    pub fn new(report: &VifReport, time: Option<Duration>) -> Self {
        let way = |way: fn(&QueueStats) -> &Way| WaySummary {
            frames: report.stats.sum(|queue| way(queue).packets.get()),
            bytes: report.stats.sum(|queue| way(queue).bytes.get()),
        };
        let dropped = Drop::ALL.map(|why| (why.name(), report.stats.dropped(why)));
        VifSummary {
            guest: report.guest.clone(),
            number: report.number,
            mac: report.vif.mac.unwrap_or_default().to_string(),
            bridge: report.vif.bridge.clone(),
            seconds: time.map(|time| time.as_secs_f64()),
            sent: way(|queue| &queue.tx),
            received: way(|queue| &queue.rx),
            dropped: dropped
                .into_iter()
                .filter(|(_, frames)| *frames > 0)
                .collect(),
        }
    }
}

const VIF_HEAD: [&str; 10] = [
    "guest", "vif", "mac", "network", "sent", "MB", "received", "MB", "dropped", "why",
];
/// The columns of it that are text, and so flush left.
const VIF_TEXT: usize = 4;

/// A table for people: a row for each vif. Empty if there are none.
pub fn vif_table(vifs: &[VifSummary]) -> String {
    if vifs.is_empty() {
        return String::new();
    }
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let mut rows = vec![VIF_HEAD.map(str::to_owned)];
    for vif in vifs {
        let why: Vec<&str> = vif.dropped.keys().copied().collect();
        rows.push([
            vif.guest.clone(),
            vif.number.to_string(),
            vif.mac.clone(),
            vif.bridge.clone().unwrap_or_else(|| "-".into()),
            vif.sent.frames.to_string(),
            megabytes(vif.sent.bytes),
            vif.received.frames.to_string(),
            megabytes(vif.received.bytes),
            vif.dropped.values().sum::<u64>().to_string(),
            why.join(" "),
        ]);
    }
    lines(&rows, VIF_TEXT)
}

const HEAD: [&str; 11] = [
    "guest", "disk", "what", "ops", "MB", "MB/s", "p50 us", "p99 us", "p99.9 us", "max us",
    "errors",
];
/// The columns that are text, and so flush left.
const TEXT: usize = 3;

/// A table for people: a row for each kind of operation that a disk did. MB/s are over the whole
/// time that the guest's program ran. Empty if none did anything.
pub fn table(disks: &[DiskSummary]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for disk in disks {
        for (what, kind) in disk.kinds() {
            if kind.operations > 0 || kind.errors > 0 {
                rows.push(row(disk, what, kind));
            }
        }
        if disk.refused > 0 {
            let mut row = [const { String::new() }; HEAD.len()];
            let cells = [&disk.guest, &disk.vdev, "refused"].map(str::to_owned);
            row[..TEXT].clone_from_slice(&cells);
            row[HEAD.len() - 1] = disk.refused.to_string();
            rows.push(row);
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    lines(&rows, TEXT)
}

fn row(disk: &DiskSummary, what: &str, kind: &KindSummary) -> [String; HEAD.len()] {
    let megabytes = kind.bytes as f64 / 1e6;
    let rate = match disk.seconds {
        Some(seconds) if kind.bytes > 0 && seconds > 0.0 => format!("{:.0}", megabytes / seconds),
        _ => "-".into(),
    };
    let micros = |nanos: u64| match kind.operations {
        0 => "-".into(),
        _ => format!("{:.1}", nanos as f64 / 1e3),
    };
    let LatencySummary {
        p50,
        p99,
        p999,
        max,
    } = kind.latency_ns;
    [
        disk.guest.clone(),
        disk.vdev.clone(),
        what.into(),
        kind.operations.to_string(),
        if kind.bytes > 0 {
            format!("{megabytes:.1}")
        } else {
            "-".into()
        },
        rate,
        micros(p50),
        micros(p99),
        micros(p999),
        micros(max),
        kind.errors.to_string(),
    ]
}

/// Rows, each column as wide as its widest cell, the first `text` of them flush left.
pub(crate) fn lines<const COLUMNS: usize>(rows: &[[String; COLUMNS]], text: usize) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut all = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match column < text {
                true => write!(line, "{cell:<width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        all.push_str(line.trim_end());
        all.push('\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(operations: u64, bytes: u64, errors: u64) -> KindSummary {
        KindSummary {
            operations,
            bytes,
            errors,
            latency_ns: LatencySummary {
                p50: 1500,
                p99: 20_000,
                p999: 30_000,
                max: 40_000,
            },
        }
    }

    #[test]
    fn a_vif_has_a_row_that_says_what_went_nowhere() {
        let way = |frames, bytes| WaySummary { frames, bytes };
        let vif = VifSummary {
            guest: "a".into(),
            number: 0,
            mac: "00:16:3e:00:00:01".into(),
            bridge: Some("lan".into()),
            seconds: None,
            sent: way(10, 1_500_000),
            received: way(2, 120),
            dropped: [("no-way", 3), ("spoofed", 1)].into(),
        };
        let expected = "\
guest  vif  mac                network  sent   MB  received   MB  dropped             why
a      0    00:16:3e:00:00:01  lan        10  1.5         2  0.0        4  no-way spoofed
";
        assert_eq!(vif_table(&[vif]), expected);
        assert_eq!(vif_table(&[]), "");
    }

    #[test]
    fn a_table_has_a_row_for_what_was_done_and_no_other() {
        let disk = DiskSummary {
            guest: "a".into(),
            vdev: "xvda".into(),
            target: "/x".into(),
            seconds: Some(0.5),
            read: kind(0, 0, 0),
            write: kind(100, 4_000_000, 1),
            flush: kind(1, 0, 0),
            discard: kind(0, 0, 0),
            refused: 2,
        };
        assert_eq!(disk.errors(), 3);
        let expected = "\
guest  disk  what     ops   MB  MB/s  p50 us  p99 us  p99.9 us  max us  errors
a      xvda  write    100  4.0     8     1.5    20.0      30.0    40.0       1
a      xvda  flush      1    -     -     1.5    20.0      30.0    40.0       0
a      xvda  refused                                                         2
";
        assert_eq!(table(&[disk]), expected);
    }
}
