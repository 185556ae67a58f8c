//! What was measured, and what follows from it: plain data, serialised as it stands to JSON and
//! shown as text by `table`.

mod table;

use crate::contender::Standing;
use crate::machine::Machine;
use crate::measure::{Figures, Metric, Summary};
use crate::peers::Program;
use anyhow::{Result, bail};
use glob::Pattern;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One line of a benchmark.
pub(crate) trait Row: Serialize {
    /// The name by which `--only` picks it.
    fn name(&self) -> String;

    /// The figures that the row is about: the others are context.
    fn headline(&self) -> &'static [Metric];

    /// The ratio to `against` that we aim at: at least, where higher is better; else at most.
    fn aim(&self, metric: Metric, against: &str) -> Option<f64>;

    /// The figure that we aim at, whatever the peers do.
    fn limit(&self, _: Metric) -> Option<f64> {
        None
    }
}

/// How far the rows are, for whoever waits.
///
/// # Errors
/// None, as long as its template is right.
pub(crate) fn progress(rows: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} {msg}")?;
    Ok(ProgressBar::new(rows as u64).with_style(style))
}

/// The rows whose names match one of the patterns, or all if there is none.
///
/// # Errors
/// A pattern that matches nothing, with the names that there are.
pub(crate) fn choose<R: Row>(mut rows: Vec<R>, only: &[Pattern]) -> Result<Vec<R>> {
    if let Some(glob) = only
        .iter()
        .find(|glob| !rows.iter().any(|row| glob.matches(&row.name())))
    {
        let names: Vec<String> = rows.iter().map(Row::name).collect();
        bail!(
            "--only {glob}: no such row; there are\n  {}",
            names.join("\n  ")
        );
    }
    if !only.is_empty() {
        rows.retain(|row| only.iter().any(|glob| glob.matches(&row.name())));
    }
    Ok(rows)
}

/// A column of the table of figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) metric: Metric,
    pub(crate) title: &'static str,
    /// Whether the extremes are shown beside the median.
    pub(crate) spread: bool,
}

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report<R> {
    pub(crate) machine: Machine,
    /// The peers' programs, with versions; one without a version is missing.
    pub(crate) programs: Vec<Program>,
    pub(crate) settings: Settings,
    pub(crate) rows: Vec<RowReport<R>>,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
    /// What the table shows.
    #[serde(skip)]
    pub(crate) columns: &'static [Column],
    /// Whose CPU time is counted.
    #[serde(skip)]
    pub(crate) cpu_of: &'static str,
}

/// How long and how often.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
}

/// A row with everybody's figures.
#[derive(Debug, Serialize)]
pub(crate) struct RowReport<R> {
    name: String,
    #[serde(flatten)]
    row: R,
    /// The share of the row's CPUs, 0 to 1, that was taken by others while it was measured.
    others: Option<f64>,
    results: Vec<Outcome>,
    ratios: Vec<Ratio>,
    limits: Vec<Limit>,
}

/// One contender's figures in one row.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    contender: &'static str,
    standing: Standing,
    summary: BTreeMap<Metric, Summary>,
    /// In the order of the rounds.
    samples: Vec<Figures>,
}

impl Outcome {
    pub(crate) fn new(contender: &'static str, standing: Standing, samples: Vec<Figures>) -> Self {
        let metrics: BTreeSet<Metric> = samples.iter().flat_map(|s| s.keys().copied()).collect();
        let summary = metrics
            .into_iter()
            .filter_map(|metric| {
                let values = samples.iter().filter_map(|sample| sample.get(&metric));
                Some((metric, Summary::of(values.copied())?))
            })
            .collect();
        Self {
            contender,
            standing,
            summary,
            samples,
        }
    }

    fn median(&self, metric: Metric) -> Option<f64> {
        self.summary.get(&metric).map(|summary| summary.median)
    }
}

/// A contender's median divided by that of another.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    metric: Metric,
    contender: &'static str,
    value: f64,
    against: &'static str,
    against_value: f64,
    ratio: f64,
    higher_is_better: bool,
    /// What we aim at: at least this where higher is better, else at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    aim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<bool>,
}

/// One of our figures beside the one that we aim at.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Limit {
    metric: Metric,
    contender: &'static str,
    value: f64,
    aim: f64,
    higher_is_better: bool,
    reached: bool,
}

/// Whether `value` is at least `aim` where higher is better, else at most.
fn reaches(value: f64, aim: f64, higher_is_better: bool) -> bool {
    if higher_is_better {
        value >= aim
    } else {
        value <= aim
    }
}

impl<R: Row> RowReport<R> {
    /// Compares every contender with those of lower standing.
    pub(crate) fn new(row: R, others: Option<f64>, mut results: Vec<Outcome>) -> Self {
        results.sort_by_key(|outcome| outcome.standing);
        let name = row.name();
        let mut ratios = Vec::new();
        let mut limits = Vec::new();
        for &metric in row.headline() {
            let ours = results.iter().filter(|r| r.standing == Standing::Ours);
            limits.extend(ours.filter_map(|ours| Limit::of(&row, metric, ours)));
            for contender in &results {
                for against in &results {
                    if contender.standing < against.standing {
                        ratios.extend(Ratio::of(&row, metric, contender, against));
                    }
                }
            }
        }
        Self {
            name,
            row,
            others,
            results,
            ratios,
            limits,
        }
    }
}

impl Limit {
    fn of(row: &impl Row, metric: Metric, ours: &Outcome) -> Option<Self> {
        let (value, aim) = (ours.median(metric)?, row.limit(metric)?);
        let higher_is_better = metric.higher_is_better();
        Some(Self {
            metric,
            contender: ours.contender,
            value,
            aim,
            higher_is_better,
            reached: reaches(value, aim, higher_is_better),
        })
    }
}

impl Ratio {
    /// `None` if either side does not know the figure.
    fn of(row: &impl Row, metric: Metric, contender: &Outcome, against: &Outcome) -> Option<Self> {
        let (value, against_value) = (contender.median(metric)?, against.median(metric)?);
        let ratio = value / against_value;
        if !ratio.is_finite() {
            return None;
        }
        let higher_is_better = metric.higher_is_better();
        let aim = match contender.standing {
            Standing::Ours => row.aim(metric, against.contender),
            Standing::Peer | Standing::Floor => None,
        };
        Some(Self {
            metric,
            contender: contender.contender,
            value,
            against: against.contender,
            against_value,
            ratio,
            higher_is_better,
            aim,
            reached: aim.map(|aim| reaches(ratio, aim, higher_is_better)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::{self, rows};
    use crate::measure::Sample;

    fn outcome(name: &'static str, standing: Standing, mean_ns: f64, cpu: Option<f64>) -> Outcome {
        let sample = Sample {
            iops: 1e9 / mean_ns,
            mb_per_s: None,
            mean_ns,
            p50_ns: mean_ns,
            p99_ns: mean_ns,
            cpu_ns_per_io: cpu,
            notifications_per_io: None,
            fairness: None,
        };
        Outcome::new(name, standing, vec![sample.figures()])
    }

    fn qd1_same_core(results: Vec<Outcome>) -> RowReport<blk::Row> {
        let row = rows()
            .into_iter()
            .find(|r| r.name() == "null/randread-4k/qd1/same-core");
        RowReport::new(row.unwrap(), None, results)
    }

    #[test]
    fn a_contender_is_compared_only_with_those_of_lower_standing() {
        let report = qd1_same_core(vec![
            outcome("eventfd round trip", Standing::Floor, 2000.0, None),
            outcome("qemu-storage-daemon", Standing::Peer, 4000.0, None),
            outcome("parapet", Standing::Ours, 500.0, None),
        ]);
        let pairs: Vec<_> = report
            .ratios
            .iter()
            .filter(|r| r.metric == Metric::MeanNs)
            .map(|r| (r.contender, r.against, r.ratio))
            .collect();
        assert_eq!(
            pairs,
            [
                ("parapet", "qemu-storage-daemon", 0.125),
                ("parapet", "eventfd round trip", 0.25),
                ("qemu-storage-daemon", "eventfd round trip", 2.0),
            ]
        );
    }

    #[test]
    fn an_aim_is_judged_in_the_better_direction_and_only_for_us() {
        let judge = |mean| {
            let report = qd1_same_core(vec![
                outcome("parapet", Standing::Ours, mean, None),
                outcome("qemu-storage-daemon", Standing::Peer, 4000.0, None),
            ]);
            report.ratios[0].reached
        };
        assert_eq!(judge(1000.0), Some(true));
        assert_eq!(judge(1001.0), Some(false));
        let peer = qd1_same_core(vec![
            outcome("qemu-storage-daemon", Standing::Peer, 4000.0, None),
            outcome("eventfd round trip", Standing::Floor, 2000.0, None),
        ]);
        assert_eq!(peer.ratios[0].reached, None);
    }

    #[test]
    fn a_figure_that_one_side_does_not_know_gives_no_ratio() {
        let report = qd1_same_core(vec![
            outcome("parapet", Standing::Ours, 1.0, Some(1.0)),
            outcome("qemu-storage-daemon", Standing::Peer, 1.0, None),
        ]);
        assert!(!report.ratios.is_empty());
        assert!(
            report
                .ratios
                .iter()
                .all(|ratio| ratio.metric != Metric::CpuNsPerIo)
        );
    }
}
