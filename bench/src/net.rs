//! The network rows: which frames go from where to where, by whom, in which placement.
//!
//! To add a contender, implement [`Contender`] and list it in [`contenders`]; to add a row, list it
//! in [`rows`]; what we aim at is in [`Row`].

mod copying;
mod iperf;
mod namespace;
mod ours;
mod tap;
mod testpmd;

use crate::contender::Standing;
use crate::machine::Machine;
use crate::measure::{Figures, Metric, warm_up};
use crate::neighbours::Neighbours;
use crate::peers::Program;
use crate::placement::{Cores, Cpus, Placement};
use crate::report::{self, Column, Outcome, Report, RowReport, Settings, choose};
use anyhow::{Context, Result, bail};
use glob::Pattern as Glob;
use nix::unistd::geteuid;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is sent to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// Frames of so many bytes from a guest to its backend, where they end.
    FrontToBack { frame: usize },
    /// The same to a TAP device of the host, whose stack drops them.
    FrontToTap { frame: usize },
    /// From guest to guest through the switch.
    GuestToGuest { frame: usize },
    /// So many guests on a switch, each sending to the next.
    Neighbours { guests: usize, frame: usize },
    /// TCP between the stacks of two network namespaces.
    Iperf { offloads: bool },
}

impl Load {
    /// Whether the frames are longer than any wire takes, and to be cut into segments.
    pub(crate) fn is_cut(frame: usize) -> bool {
        frame > 1514
    }
}

/// One line of the benchmark.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) placement: Placement,
}

/// What a contender is told of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) load: Load,
    pub(crate) placement: Placement,
    pub(crate) cores: Cores,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// Somebody who can move frames and be measured at it.
pub(crate) trait Contender {
    /// The name in tables and JSON.
    fn name(&self) -> &'static str;

    /// What it is to us.
    fn standing(&self) -> Standing;

    /// Whether it takes part in such a row at all.
    fn serves(&self, row: &Row) -> bool;

    /// Measures once, from nothing, and leaves nothing.
    ///
    /// # Errors
    /// It could not be started, or nothing came out at the other end.
    fn run(&mut self, task: &Task) -> Result<Figures>;
}

impl report::Row for Row {
    /// For example `front-to-back/64/split-polling`.
    fn name(&self) -> String {
        let load = match self.load {
            Load::FrontToBack { frame } => format!("front-to-back/{frame}"),
            Load::FrontToTap { frame } => format!("front-to-tap/{frame}"),
            Load::GuestToGuest { frame } => format!("guest-to-guest/{frame}"),
            Load::Neighbours { guests, frame } => format!("neighbours/{guests}-guests/{frame}"),
            Load::Iperf { offloads: true } => "iperf3/offloads-on".to_owned(),
            Load::Iperf { offloads: false } => "iperf3/offloads-off".to_owned(),
        };
        format!("{load}/{}", self.placement.slug())
    }

    fn headline(&self) -> &'static [Metric] {
        match self.load {
            Load::FrontToBack { frame: 64 } | Load::FrontToTap { .. } => {
                &[Metric::PacketsPerS, Metric::CpuNsPerPacket]
            }
            Load::FrontToBack { .. } | Load::GuestToGuest { .. } => {
                &[Metric::GbitPerS, Metric::CpuNsPerPacket]
            }
            Load::Neighbours { .. } => &[Metric::GbitPerS, Metric::Fairness],
            Load::Iperf { .. } => &[Metric::GbitPerS],
        }
    }

    fn aim(&self, metric: Metric, against: &str) -> Option<f64> {
        match (self.load, metric, against) {
            (Load::FrontToTap { .. }, Metric::PacketsPerS, tap::BARE) => Some(0.9),
            (Load::Iperf { .. }, Metric::GbitPerS, iperf::BRIDGE) => Some(1.0),
            _ => None,
        }
    }

    fn limit(&self, metric: Metric) -> Option<f64> {
        if self.placement != Placement::SplitPolling {
            return None;
        }
        match (self.load, metric) {
            (Load::FrontToBack { frame: 64 }, Metric::PacketsPerS) => Some(10e6),
            (Load::FrontToBack { frame: 1514 }, Metric::GbitPerS) => Some(60.0),
            (Load::GuestToGuest { frame }, Metric::GbitPerS) if Load::is_cut(frame) => Some(48.0),
            (Load::Neighbours { .. }, Metric::Fairness) => Some(0.95),
            _ => None,
        }
    }
}

/// The longest frame that is to be cut: what a stack hands down at most.
const LONG: usize = 65226;

/// All rows, in the order in which they are measured.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |load, placement| rows.push(Row { load, placement });
    for placement in Placement::ALL {
        for frame in [64, 1514] {
            row(Load::FrontToBack { frame }, placement);
        }
        for frame in [64, 1514, LONG] {
            row(Load::GuestToGuest { frame }, placement);
        }
    }
    for frame in [64, 1514, LONG] {
        row(Load::FrontToTap { frame }, Placement::SameCore);
        row(Load::FrontToTap { frame }, Placement::SplitPolling);
    }
    row(
        Load::Neighbours {
            guests: 64,
            frame: 1514,
        },
        Placement::SplitPolling,
    );
    for offloads in [true, false] {
        row(Load::Iperf { offloads }, Placement::SplitEvented);
    }
    rows
}

/// What the table shows.
const COLUMNS: [Column; 6] = [
    column(Metric::PacketsPerS, "packets/s", true),
    column(Metric::GbitPerS, "Gbit/s", false),
    column(Metric::CpuNsPerPacket, "CPU/packet", false),
    column(Metric::P50Ns, "p50", false),
    column(Metric::P99Ns, "p99", false),
    column(Metric::Fairness, "Jain", false),
];

const fn column(metric: Metric, title: &'static str, spread: bool) -> Column {
    Column {
        metric,
        title,
        spread,
    }
}

/// What the caller chose.
#[derive(Debug)]
pub(crate) struct Options {
    /// Name patterns of the rows to measure; none for all.
    pub(crate) only: Vec<Glob>,
    /// The measured time of one sample.
    pub(crate) duration: Duration,
    /// Samples of each contender in each row.
    pub(crate) rounds: usize,
}

/// Everybody who may take part.
type Contenders = Vec<Box<dyn Contender>>;

/// Everybody who may take part and is installed, and the programs that were looked for.
fn contenders() -> Result<(Contenders, Vec<Program>)> {
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(ours::Halves)];
    let (testpmd, iperf) = (testpmd::program(), iperf::program());
    if testpmd.version.is_some() {
        contenders.push(Box::new(testpmd::Testpmd));
    }
    contenders.push(Box::new(copying::Copying));
    contenders.push(Box::new(tap::Bare));
    if iperf.version.is_some() {
        contenders.extend(iperf::all()?);
    }
    Ok((contenders, vec![testpmd, iperf]))
}

/// Measures the chosen rows, one after the other.
///
/// # Errors
/// A contender that is there failed, or `interrupted` was set.
pub(crate) fn run(options: &Options, interrupted: &AtomicBool) -> Result<Report<Row>> {
    let rows = choose(rows(), &options.only)?;
    let cpus = Cpus::discover()?;
    let machine = Machine::discover(cpus)?;
    let (mut contenders, programs) = contenders()?;
    let progress = report::progress(rows.len())?;
    let (mut reports, mut notes) = (Vec::new(), Vec::new());
    for row in rows {
        let name = report::Row::name(&row);
        let Some(cores) = cpus.cores(row.placement) else {
            notes.push(format!("{name}: skipped, it takes two CPUs"));
            continue;
        };
        let needs_root = matches!(row.load, Load::FrontToTap { .. } | Load::Iperf { .. });
        if needs_root && !geteuid().is_root() {
            notes.push(format!(
                "{name}: skipped, only root makes network namespaces"
            ));
            continue;
        }
        let task = Task {
            load: row.load,
            placement: row.placement,
            cores,
            warm_up: warm_up(options.duration),
            duration: options.duration,
        };
        let neighbours = Neighbours::watch(cores);
        let mut taking_part: Vec<_> = contenders
            .iter_mut()
            .filter(|contender| contender.serves(&row))
            .map(|contender| (contender, Vec::new()))
            .collect();
        for round in 1..=options.rounds {
            for (contender, samples) in &mut taking_part {
                let who = contender.name();
                let at = format!("{name}, {who}, round {round} of {}", options.rounds);
                progress.set_message(at.clone());
                if interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted; nothing is reported");
                }
                samples.push(contender.run(&task).context(at)?);
            }
        }
        let others = neighbours.share();
        let outcomes: Vec<Outcome> = taking_part
            .into_iter()
            .map(|(contender, samples)| {
                Outcome::new(contender.name(), contender.standing(), samples)
            })
            .collect();
        if outcomes.is_empty() {
            notes.push(format!("{name}: skipped, nobody is there to be measured"));
        } else {
            reports.push(RowReport::new(row, others, outcomes));
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(Report {
        machine,
        programs,
        settings: Settings {
            seconds: options.duration.as_secs_f64(),
            rounds: options.rounds,
        },
        rows: reports,
        notes,
        columns: &COLUMNS,
        cpu_of: "both sides together",
    })
}

/// What is known of so many packets of `frame` bytes in `elapsed`.
pub(crate) fn figures(
    packets: u64,
    frame: usize,
    elapsed: Duration,
    cpu_ns: Option<u64>,
) -> Figures {
    let rate = packets as f64 / elapsed.as_secs_f64();
    let mut figures = Figures::from([
        (Metric::PacketsPerS, rate),
        (Metric::GbitPerS, rate * frame as f64 * 8.0 / 1e9),
    ]);
    if let Some(cpu) = cpu_ns
        && packets > 0
    {
        figures.insert(Metric::CpuNsPerPacket, cpu as f64 / packets as f64);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Row as _;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let names: BTreeSet<String> = rows().iter().map(Row::name).collect();
        assert_eq!(names.len(), rows().len());
    }

    #[test]
    fn figures_follow_from_what_was_counted() {
        let figures = figures(
            1_000_000,
            1250,
            Duration::from_millis(500),
            Some(250_000_000),
        );
        assert_eq!(figures[&Metric::PacketsPerS], 2e6);
        assert_eq!(figures[&Metric::GbitPerS], 20.0);
        assert_eq!(figures[&Metric::CpuNsPerPacket], 250.0);
    }
}
