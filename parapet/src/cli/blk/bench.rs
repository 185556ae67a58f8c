//! `parapet blk bench`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use parapet::config::{DiskConfig, GuestConfig};
use parapet::guest::Guest;
use parapet::host::{Host, StartError};
use parapet::load::page::{page, time};
use parapet::load::{self, Kind, Load, Measured, Pattern};
use parapet_blkback::image::Spec;
use serde::Serialize;

use crate::cli::bench::{Latency, Placement, seconds, with_a_bar, word};
use crate::cli::output;

/// Measures an image, through a guest's disk: how many requests it does, and how long each takes.
///
/// A guest keeps so many requests under way for so long, through its frontend, the ring and the
/// backend. Writing loses what is on the image, and has to be allowed by --force, unless it is
/// null:SIZE or memory:SIZE.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The image: a path, or what a disk's target may be, as null:SIZE or memory:SIZE.
    image: String,

    /// What is asked for.
    #[arg(short, long, value_enum, default_value_t = Mode::Randread)]
    mode: Mode,

    /// How many of a hundred requests are reads, where both are asked for.
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,

    /// Bytes of a request, as 512, 4K or 1M.
    #[arg(short, long, value_name = "BYTES", default_value = "4K", value_parser = bytes)]
    block: u32,

    /// Requests under way at once.
    #[arg(short, long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,

    /// How many queues the disk has.
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    queues: u32,

    /// Where the two halves run.
    #[arg(short, long, value_enum, default_value_t = Placement::Free)]
    placement: Placement,

    /// For how many seconds.
    #[arg(short, long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    time: Duration,

    /// Allows to write: what is on the image is lost.
    #[arg(short, long)]
    force: bool,

    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,

    /// Writes a page with plots, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk bench null:1G --depth 128 --placement same-core
  parapet blk bench disk.img --html disk.html
  parapet blk bench disk.img --mode randrw --reads 50 --block 64K --force
  parapet blk bench memory:256M --mode write --json | jq .write.per_second";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Reads in order.
    Read,
    /// Writes in order.
    Write,
    /// Reads at random.
    Randread,
    /// Writes at random.
    Randwrite,
    /// Reads and writes in order.
    Rw,
    /// Reads and writes at random.
    Randrw,
}

fn bytes(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['m', 'M']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    let number = digits.parse::<u32>().ok();
    match number.and_then(|number| number.checked_mul(unit)) {
        Some(bytes) if bytes > 0 && bytes.is_multiple_of(512) && bytes <= 16 << 20 => Ok(bytes),
        _ => Err("it should be a multiple of 512, and no more than 16M".into()),
    }
}

/// For scripts.
#[derive(Serialize)]
struct Report<'a> {
    image: &'a str,
    mode: Mode,
    block: u32,
    depth: u16,
    queues: usize,
    placement: Placement,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<Figures>,
}

#[derive(Serialize)]
struct Figures {
    requests: u64,
    per_second: f64,
    mb_per_s: f64,
    latency_ns: Latency,
}

impl Figures {
    /// None if there was nothing of the kind.
    fn of(kind: &Kind, block: u32, time: Duration) -> Option<Self> {
        let latency = &kind.latency;
        let per_second = kind.per_second(time);
        (!latency.is_empty()).then(|| Figures {
            requests: latency.len(),
            per_second,
            mb_per_s: per_second * f64::from(block) / 1e6,
            latency_ns: latency.into(),
        })
    }
}

impl Args {
    fn load(&self) -> Load {
        let pattern = match self.mode {
            Mode::Read | Mode::Write | Mode::Rw => Pattern::Sequential,
            Mode::Randread | Mode::Randwrite | Mode::Randrw => Pattern::Random,
        };
        let reads = match self.mode {
            Mode::Read | Mode::Randread => 100,
            Mode::Write | Mode::Randwrite => 0,
            Mode::Rw | Mode::Randrw => self.reads,
        };
        Load {
            pattern,
            reads,
            block: self.block,
            depth: self.depth.into(),
            warm_up: (self.time / 5).min(Duration::from_millis(500)),
            time: self.time,
        }
    }

    fn host(&self) -> Result<Host> {
        let builder = Host::builder().queues(self.queues);
        Ok(self.placement.apply(builder)?.build()?)
    }
}

pub(super) fn bench(args: &Args) -> Result<ExitCode> {
    let load = args.load();
    let writes = load.reads < 100;
    if writes && !args.force && matches!(args.image.parse(), Ok(Spec::File(_))) {
        bail!(
            "{} would be written, and what is on it lost: give --force if it may be",
            args.image
        );
    }
    let access = if writes { "rw" } else { "ro" };
    let disk: DiskConfig = format!("vdev=xvda, access={access}, target={}", args.image).parse()?;
    let host = args.host()?;
    let guest = GuestConfig {
        disks: vec![disk],
        vcpus: match args.placement {
            Placement::Free => args.queues as usize,
            _ => 1,
        },
        // The buffers, and the rings.
        memory: (256 << 20) + 2 * u64::from(args.block.max(4096)) * u64::from(args.depth),
        ..GuestConfig::new("bench")
    };
    let queues = args.queues;
    // 32 requests fit a page of the ring.
    let per_queue = u32::from(args.depth).div_ceil(queues).div_ceil(32);
    let order = per_queue.next_power_of_two().ilog2();
    let program = async move |guest: Guest| {
        let config = guest.disk_config().queues(queues).ring_order(order);
        let disk = guest.disk_as("xvda", config).await?;
        let measured = load::run(guest.domain(), &disk, load).await?;
        Ok((measured, disk.queues()))
    };
    let running = host.start(&guest, program).map_err(|error| match error {
        StartError::Disk { reason, .. } => anyhow!(reason),
        error => error.into(),
    })?;
    let whole = load.warm_up + load.time;
    let (measured, queues) = with_a_bar(whole, || running.wait())?;

    let figures = |kind| Figures::of(kind, args.block, measured.time);
    let report = Report {
        image: &args.image,
        mode: args.mode,
        block: args.block,
        depth: args.depth,
        queues,
        placement: args.placement,
        seconds: measured.time.as_secs_f64(),
        read: figures(&measured.reads),
        write: figures(&measured.writes),
    };
    if let Some(file) = &args.html {
        fs::write(file, html(&report, &measured))
            .with_context(|| format!("{}: cannot be written", file.display()))?;
    }
    match args.json {
        true => output::json(&report)?,
        false => print(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured, in words: name and value.
fn facts(report: &Report<'_>) -> Vec<(&'static str, String)> {
    vec![
        ("image", report.image.to_owned()),
        ("mode", word(&report.mode)),
        ("block", format!("{} bytes", report.block)),
        ("depth", report.depth.to_string()),
        ("queues", report.queues.to_string()),
        ("placement", word(&report.placement)),
        ("time", format!("{:.1} s", report.seconds)),
    ]
}

fn html(report: &Report<'_>, measured: &Measured) -> String {
    page("parapet blk bench", &facts(report), &measured.results())
}

fn print(report: &Report<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let facts = facts(report);
    let facts: Vec<_> = facts
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    writeln!(out, "{}", facts.join(", "))?;
    let kinds = [("reads", &report.read), ("writes", &report.write)];
    for (name, figures) in kinds
        .into_iter()
        .filter_map(|(name, it)| Some((name, it.as_ref()?)))
    {
        let latency = &figures.latency_ns;
        writeln!(
            out,
            "{name:6} {:.0}/s, {:.1} MB/s; mean {}, p50 {}, p99 {}, p99.9 {}, longest {}",
            figures.per_second,
            figures.mb_per_s,
            time(latency.mean),
            time(latency.p50 as f64),
            time(latency.p99 as f64),
            time(latency.p999 as f64),
            time(latency.max as f64),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_a_multiple_of_a_sector_in_the_units_that_people_use() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("4K"), Ok(4096));
        assert_eq!(bytes("1m"), Ok(1 << 20));
        for wrong in ["", "0", "513", "K", "-4K", "4G", "8388608K", "17M"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
