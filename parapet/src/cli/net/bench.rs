//! `parapet net bench`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use parapet::host::Host;
use parapet::load::frames::{LONGEST, SHORTEST};
use parapet::load::net::{Counted, Load};
use parapet::load::page::{Results, Series, page, time};
use parapet::load::vifs::{Outcome, Plan, To, run};
use serde::Serialize;

use crate::cli::bench::{Latency, Placement, seconds, with_a_bar, word};
use crate::cli::output;

/// Measures vifs: how many packets and bits go through them in a second, and how long they are on
/// their way.
///
/// Guests send frames as fast as they go, made where they lie, each through its frontend, the rings
/// and the backend: to the next guest through the switch, to a TAP device, or to the backend, where
/// they end. One frame in 64 carries a stamp, by which its receiver knows how long it took.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Where the frames go.
    #[arg(long, value_enum, default_value_t = Goal::Guest)]
    to: Goal,

    /// Bytes of a frame, its Ethernet header included; several are sent in turn. Frames of more
    /// than 1514 are to be cut into segments by whoever takes them.
    #[arg(short, long, value_name = "BYTES", value_delimiter = ',', default_values_t = [1514usize], value_parser = size)]
    size: Vec<usize>,

    /// How many guests, if they send to each other; each sends to the next.
    #[arg(short, long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=256))]
    guests: u16,

    /// Of two guests, both send.
    #[arg(long)]
    both_ways: bool,

    /// How many queues a vif has.
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    queues: u32,

    /// Where the two halves run.
    #[arg(short, long, value_enum, default_value_t = Placement::Free)]
    placement: Placement,

    /// How long a backend looks for frames before it sleeps, in microseconds.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    poll: u32,

    /// Has every byte written and read, as a stack does; else only the headers are.
    #[arg(long)]
    touch: bool,

    /// The TAP device, for --to tap: made if there is none, and switched on.
    #[arg(long, value_name = "NAME", default_value = "parapet0")]
    tap: String,

    /// For how many seconds.
    #[arg(short, long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    time: Duration,

    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,

    /// Writes a page with plots, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  parapet net bench --size 64 --html net.html
  parapet net bench --size 65226 --both-ways --touch
  parapet net bench --to back --size 64 --placement split --poll 1000
  parapet net bench --guests 64 --size 64,1514,65226 --json | jq .fairness
  sudo parapet net bench --to tap --size 1514";

/// Where frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Goal {
    /// To the next guest.
    Guest,
    /// To the backend, where they end.
    Back,
    /// To a TAP device.
    Tap,
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ SHORTEST..=LONGEST) => Ok(size),
        _ => Err(format!("it should be {SHORTEST} to {LONGEST}")),
    }
}

/// For scripts.
#[derive(Serialize)]
struct Report<'a> {
    to: Goal,
    sizes: &'a [usize],
    guests: usize,
    both_ways: bool,
    queues: u32,
    placement: Placement,
    touch: bool,
    seconds: f64,
    packets: u64,
    packets_per_s: f64,
    bits_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<Latency>,
    /// Jain's index, where several guests counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    fairness: Option<f64>,
}

impl Args {
    fn plan(&self) -> Plan {
        let (to, guests) = match self.to {
            Goal::Guest => (To::Guests, self.guests.into()),
            Goal::Back => (To::Back, 1),
            Goal::Tap => {
                let name = self.tap.clone();
                let namespace = None;
                (To::Tap { name, namespace }, 1)
            }
        };
        Plan {
            to,
            guests,
            both_ways: self.both_ways,
            queues: self.queues,
            poll: Duration::from_micros(self.poll.into()),
            load: Load {
                sizes: self.size.clone(),
                touch: self.touch,
                poll: false,
                warm_up: (self.time / 5).min(Duration::from_millis(500)),
                time: self.time,
            },
        }
    }

    fn report(&self, outcome: &Outcome, total: &Counted) -> Report<'_> {
        let several = outcome.guests.len() > 1;
        Report {
            to: self.to,
            sizes: &self.size,
            guests: self.plan().guests,
            both_ways: self.both_ways,
            queues: self.queues,
            placement: self.placement,
            touch: self.touch,
            seconds: total.time.as_secs_f64(),
            packets: total.frames,
            packets_per_s: total.frames_per_second(),
            bits_per_s: total.bits_per_second(),
            latency_ns: (!total.latency.is_empty()).then(|| (&total.latency).into()),
            fairness: several.then(|| outcome.fairness()),
        }
    }
}

pub(super) fn bench(args: &Args) -> Result<ExitCode> {
    let plan = args.plan();
    let builder = args.placement.apply(Host::builder())?;
    let whole = plan.load.warm_up + plan.load.time;
    let outcome = with_a_bar(whole, || run(builder, &plan))?;
    let total = outcome.total()?;
    let report = args.report(&outcome, &total);
    if let Some(file) = &args.html {
        fs::write(file, html(&report, &total))
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
    let sizes: Vec<String> = report.sizes.iter().map(usize::to_string).collect();
    let yes = |is| if is { "yes" } else { "no" }.to_owned();
    vec![
        ("to", word(&report.to)),
        ("guests", report.guests.to_string()),
        ("frames", format!("{} bytes", sizes.join(", "))),
        ("both ways", yes(report.both_ways)),
        ("every byte touched", yes(report.touch)),
        ("queues", report.queues.to_string()),
        ("placement", word(&report.placement)),
        ("time", format!("{:.1} s", report.seconds)),
    ]
}

/// The figures, in words.
fn figures(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let mut figures = vec![
        ("packets/s", format!("{:.0}", report.packets_per_s)),
        ("Gbit/s", format!("{:.2}", report.bits_per_s / 1e9)),
    ];
    if let Some(fairness) = report.fairness {
        figures.push(("fairness (Jain)", format!("{fairness:.3}")));
    }
    figures
}

fn html(report: &Report<'_>, total: &Counted) -> String {
    let facts: Vec<_> = facts(report).into_iter().chain(figures(report)).collect();
    let results = Results {
        what: "packets",
        time: total.time,
        series: vec![Series {
            name: "packets",
            count: total.frames,
            latency: &total.latency,
            slices: &total.slices,
        }],
    };
    page("parapet net bench", &facts, &results)
}

fn print(report: &Report<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let words = |facts: Vec<(&str, String)>| {
        let words: Vec<_> = facts
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        words.join(", ")
    };
    writeln!(out, "{}", words(facts(report)))?;
    writeln!(out, "{}", words(figures(report)))?;
    if let Some(latency) = &report.latency_ns {
        writeln!(
            out,
            "on their way: mean {}, p50 {}, p99 {}, p99.9 {}, longest {}",
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
    fn a_frame_has_its_headers_and_is_no_longer_than_a_stack_makes_it() {
        assert_eq!(size("64"), Ok(64));
        assert_eq!(size("65226"), Ok(65226));
        for wrong in ["", "63", "65227", "-1", "1K"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
