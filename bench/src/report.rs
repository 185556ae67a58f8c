//! What was measured, and what follows from it: plain data, serialised as it stands to JSON and
//! shown as text by `table`.

mod table;

use crate::blk::{Aim, Row};
use crate::contender::Standing;
use crate::machine::Machine;
use crate::measure::{Metric, Sample, Summary};
use crate::peers::Program;
use serde::Serialize;
use std::collections::BTreeMap;

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// The peers' programs, with versions; one without a version is missing.
    pub(crate) programs: Vec<Program>,
    pub(crate) settings: Settings,
    pub(crate) rows: Vec<RowReport>,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
}

/// How long and how often.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
}

/// A row with everybody's figures.
#[derive(Debug, Serialize)]
pub(crate) struct RowReport {
    name: String,
    #[serde(flatten)]
    row: Row,
    /// The share of the row's CPUs, 0 to 1, that was taken by others while it was measured.
    others: Option<f64>,
    results: Vec<Outcome>,
    ratios: Vec<Ratio>,
}

/// One contender's figures in one row.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    contender: &'static str,
    standing: Standing,
    summary: BTreeMap<Metric, Summary>,
    /// In the order of the rounds.
    samples: Vec<Sample>,
}

impl Outcome {
    pub(crate) fn new(contender: &'static str, standing: Standing, samples: Vec<Sample>) -> Self {
        let summary = Metric::ALL
            .into_iter()
            .filter_map(|metric| {
                let values = samples.iter().filter_map(|sample| metric.of(sample));
                Some((metric, Summary::of(values)?))
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

impl RowReport {
    /// Compares every contender with those of lower standing.
    pub(crate) fn new(row: Row, others: Option<f64>, mut results: Vec<Outcome>) -> Self {
        results.sort_by_key(|outcome| outcome.standing);
        let name = row.name();
        let mut ratios = Vec::new();
        for &metric in row.headline() {
            for contender in &results {
                for against in &results {
                    if contender.standing < against.standing {
                        ratios.extend(Ratio::of(&name, metric, contender, against));
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
        }
    }
}

impl Ratio {
    /// `None` if either side does not know the figure.
    fn of(row: &str, metric: Metric, contender: &Outcome, against: &Outcome) -> Option<Self> {
        let (value, against_value) = (contender.median(metric)?, against.median(metric)?);
        let ratio = value / against_value;
        if !ratio.is_finite() {
            return None;
        }
        let higher_is_better = metric.higher_is_better();
        let aim = match contender.standing {
            Standing::Ours => Aim::of(row, metric, against.contender),
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
            reached: aim.map(|aim| {
                if higher_is_better {
                    ratio >= aim
                } else {
                    ratio <= aim
                }
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::rows;

    fn outcome(name: &'static str, standing: Standing, mean_ns: f64, cpu: Option<f64>) -> Outcome {
        let sample = Sample {
            iops: 1e9 / mean_ns,
            mb_per_s: None,
            mean_ns,
            p50_ns: mean_ns,
            p99_ns: mean_ns,
            cpu_ns_per_io: cpu,
            notifications_per_io: None,
        };
        Outcome::new(name, standing, vec![sample])
    }

    fn qd1_same_core(results: Vec<Outcome>) -> RowReport {
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
