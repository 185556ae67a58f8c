//! The xenstore rows: what is asked of which xenstored, by how many clients.
//!
//! To add a contender, teach [`peers::xenstored`](crate::peers::xenstored) to start it; to add a
//! row, list it in [`rows`]; what we aim at is in [`Row`].

mod client;
mod load;
pub(crate) mod soak;

use crate::machine::Machine;
use crate::measure::{Figures, Metric, warm_up};
use crate::neighbours::Neighbours;
use crate::peers::xenstored::{self, Packages, Xenstored};
use crate::placement::{Cores, Cpus, Placement, pin};
use crate::report::{self, Column, Outcome, Report, RowReport, Settings, choose};
use anyhow::{Context, Result, bail};
use glob::Pattern as Glob;
use load::{Cycle, Times};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    /// The same again and again, by each client.
    Cycle { cycle: Cycle, clients: usize },
    /// A change, until somebody hears of it.
    Watch { unrelated: usize },
    /// So many nodes, written one by one and removed at once.
    Nodes { count: usize },
    /// So many domains of forty nodes, a transaction each.
    Domains { count: usize },
}

/// One line of the benchmark.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) placement: Placement,
}

impl report::Row for Row {
    /// For example `read/8-clients/same-core`.
    fn name(&self) -> String {
        let load = match self.load {
            Load::Cycle { cycle, clients } => {
                let cycle = match cycle {
                    Cycle::Read => "read",
                    Cycle::Write => "write",
                    Cycle::Transaction => "transaction",
                };
                let plural = if clients == 1 { "" } else { "s" };
                format!("{cycle}/{clients}-client{plural}")
            }
            Load::Watch { unrelated } => format!("watch/{unrelated}-unrelated"),
            Load::Nodes { count } => format!("nodes/{count}"),
            Load::Domains { count } => format!("domains/{count}"),
        };
        format!("{load}/{}", self.placement.slug())
    }

    fn headline(&self) -> &'static [Metric] {
        match self.load {
            Load::Cycle { .. } => &[Metric::OpsPerS, Metric::ServerCpuNsPerOp],
            Load::Watch { .. } => &[Metric::P50Ns, Metric::P99Ns],
            Load::Nodes { .. } => &[
                Metric::Seconds,
                Metric::ResidentMib,
                Metric::RemovalMs,
                Metric::HeldUpMs,
            ],
            Load::Domains { .. } => &[Metric::Seconds, Metric::ResidentMib],
        }
    }

    /// The same beside each peer: so it is beside the better one.
    fn aim(&self, metric: Metric, _: &str) -> Option<f64> {
        match (self.load, metric) {
            (Load::Cycle { cycle, .. }, Metric::OpsPerS) => Some(match cycle {
                Cycle::Read | Cycle::Write => 1.5,
                Cycle::Transaction => 2.0,
            }),
            _ => None,
        }
    }

    fn limit(&self, metric: Metric) -> Option<f64> {
        match (self.load, metric) {
            (Load::Watch { .. }, Metric::P50Ns) => Some(8000.0),
            (Load::Nodes { count: 100_000 }, Metric::Seconds) => Some(1.0),
            (Load::Nodes { count: 100_000 }, Metric::ResidentMib) => Some(20.0),
            (Load::Nodes { count: 100_000 }, Metric::RemovalMs | Metric::HeldUpMs) => Some(50.0),
            (Load::Domains { count: 5000 }, Metric::Seconds) => Some(2.0),
            _ => None,
        }
    }
}

/// All rows, in the order in which they are measured; those of a size are small if it is to be
/// `quick`.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    let cycle = |cycle, clients| Load::Cycle { cycle, clients };
    let same_core = |load| Row {
        load,
        placement: Placement::SameCore,
    };
    let mut rows = Vec::new();
    for kind in [Cycle::Read, Cycle::Write, Cycle::Transaction] {
        rows.extend([1, 8].map(|clients| same_core(cycle(kind, clients))));
        rows.push(Row {
            load: cycle(kind, 8),
            placement: Placement::SplitEvented,
        });
    }
    rows.extend([0, 1000].map(|unrelated| same_core(Load::Watch { unrelated })));
    let (nodes, domains) = if quick { (2000, 50) } else { (100_000, 5000) };
    rows.push(same_core(Load::Nodes { count: nodes }));
    rows.push(same_core(Load::Domains { count: domains }));
    rows
}

/// What the table shows.
const COLUMNS: [Column; 10] = [
    column(Metric::OpsPerS, "ops/s", true),
    column(Metric::MeanNs, "mean", false),
    column(Metric::P50Ns, "p50", false),
    column(Metric::P99Ns, "p99", false),
    column(Metric::ServerCpuNsPerOp, "CPU/op", true),
    column(Metric::Seconds, "time", true),
    column(Metric::ResidentBeforeMib, "before", false),
    column(Metric::ResidentMib, "resident", false),
    column(Metric::RemovalMs, "removal", true),
    column(Metric::HeldUpMs, "held up", false),
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
    /// Small stores only.
    pub(crate) quick: bool,
    /// The measured time of one sample.
    pub(crate) duration: Duration,
    /// Samples of each contender in each row.
    pub(crate) rounds: usize,
}

/// Measures the chosen rows, one after the other.
///
/// # Errors
/// A contender that is there failed, ours is not there, or `interrupted` was set.
pub(crate) fn run(options: &Options, interrupted: &AtomicBool) -> Result<Report<Row>> {
    let rows = choose(rows(options.quick), &options.only)?;
    let cpus = Cpus::discover()?;
    let machine = Machine::discover(cpus)?;
    let packages = Packages::find()?;
    let (contenders, programs) = xenstored::all(packages.as_ref())?;
    let times = Times {
        warm_up: warm_up(options.duration),
        duration: options.duration,
    };
    let progress = report::progress(rows.len())?;
    let (mut reports, mut notes) = (Vec::new(), Vec::new());
    for row in rows {
        let name = report::Row::name(&row);
        let Some(cores) = cpus.cores(row.placement) else {
            notes.push(format!("{name}: skipped, it takes two CPUs"));
            continue;
        };
        let neighbours = Neighbours::watch(cores);
        let mut taking_part: Vec<(&Xenstored, Vec<Figures>)> =
            contenders.iter().map(|one| (one, Vec::new())).collect();
        for round in 1..=options.rounds {
            for (contender, samples) in &mut taking_part {
                let who = contender.name();
                let at = format!("{name}, {who}, round {round} of {}", options.rounds);
                progress.set_message(at.clone());
                if interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted; nothing is reported");
                }
                let figures = measure(contender, packages.as_ref(), row.load, cores, times);
                samples.push(figures.context(at)?);
            }
        }
        let others = neighbours.share();
        let outcomes = taking_part
            .into_iter()
            .map(|(contender, samples)| {
                Outcome::new(contender.name(), contender.standing(), samples)
            })
            .collect();
        reports.push(RowReport::new(row, others, outcomes));
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
        cpu_of: "the server alone",
    })
}

/// Once, from an empty store.
fn measure(
    contender: &Xenstored,
    packages: Option<&Packages>,
    load: Load,
    cores: Cores,
    times: Times,
) -> Result<Figures> {
    let daemon = contender.start(packages, cores.back)?;
    pin(cores.front)?;
    match load {
        Load::Cycle { cycle, clients } => load::cycles(&daemon, cycle, clients, times),
        Load::Watch { unrelated } => load::watch(&daemon, unrelated, times),
        Load::Nodes { count } => load::nodes(&daemon, count),
        Load::Domains { count } => load::domains(&daemon, count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Row as _;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        for quick in [false, true] {
            let names: BTreeSet<String> = rows(quick).iter().map(Row::name).collect();
            assert_eq!(names.len(), rows(quick).len());
        }
    }

    #[test]
    fn what_we_aim_at_is_said_of_every_full_row_and_is_among_its_headlines() {
        for row in rows(false) {
            let headline = row.headline().iter();
            let aims = headline.filter(|&&metric| {
                row.aim(metric, "anybody").is_some() || row.limit(metric).is_some()
            });
            assert!(aims.count() > 0, "{}", row.name());
        }
    }
}
