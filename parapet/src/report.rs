//! What each disk did: operations, bytes, and how long its backend took for them.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use parapet_blkback::stats::Kind;
use serde::Serialize;

use crate::host::DiskReport;

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
