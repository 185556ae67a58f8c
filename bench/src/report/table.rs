//! The report as text for people.

use super::{Column, Outcome, Report, Settings};
use crate::contender::Standing;
use crate::measure::Metric;
use crate::peers::Program;
use crate::placement::Placement;
use std::fmt::Write;

/// The share of the CPUs taken by others above which a row is not to be trusted.
const BUSY: f64 = 0.05;

impl<R> Report<R> {
    /// Everything as text: the machine, the figures, the ratios, what is missing.
    pub(crate) fn table(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{}, Linux {}, {}{}, parapet {}\n",
            machine.date,
            machine.kernel,
            machine.cpu,
            if machine.virtual_machine {
                " (virtual)"
            } else {
                ""
            },
            machine.parapet,
        );
        for version in self
            .programs
            .iter()
            .filter_map(|program| program.version.as_deref())
        {
            text.push_str(version);
            text.push('\n');
        }
        let Settings { seconds, rounds } = self.settings;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "Medians of {rounds} interleaved rounds of {seconds} s; [least..most] is the spread; \
             CPU is of {}.",
            self.cpu_of
        );
        for placement in Placement::ALL {
            if let Some(cores) = machine.used.cores(placement) {
                let _ = writeln!(text, "{}: {}", placement.slug(), placement.explain(cores));
            }
        }
        text.push('\n');
        if !self.rows.is_empty() {
            text.push_str(&columns(&self.figures()));
        }
        let ratios = self.ratios();
        if ratios.len() > 1 {
            text.push('\n');
            text.push_str(&columns(&ratios));
        }
        text.push('\n');
        if !self
            .rows
            .iter()
            .any(|row| row.results.iter().any(|r| r.standing == Standing::Ours))
        {
            text.push_str("Parapet itself did not take part: only the peers were measured.\n");
        }
        for row in &self.rows {
            if let Some(share) = row.others.filter(|&share| share > BUSY) {
                let _ = writeln!(
                    text,
                    "{}: others took {:.0} % of its CPUs; measure it again when they are idle.",
                    row.name,
                    share * 100.0
                );
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text.push_str(&missing(&self.programs));
        text
    }

    fn figures(&self) -> Vec<Vec<String>> {
        let mut titles = vec!["row".to_owned(), "who".to_owned()];
        for column in self.columns {
            titles.push(column.title.to_owned());
            titles.extend(column.spread.then(String::new));
        }
        let mut lines = vec![titles];
        for row in &self.rows {
            for (index, outcome) in row.results.iter().enumerate() {
                let name = if index == 0 {
                    row.name.clone()
                } else {
                    String::new()
                };
                let mut line = vec![name, outcome.contender.to_owned()];
                line.extend(self.cells(outcome));
                lines.push(line);
            }
        }
        lines
    }

    /// A contender's figures, by column.
    fn cells(&self, outcome: &Outcome) -> Vec<String> {
        let mut cells = Vec::new();
        for &Column { metric, spread, .. } in self.columns {
            let known = outcome.summary.get(&metric);
            cells.push(known.map_or("-".to_owned(), |known| show(metric, known.median)));
            if spread {
                cells.push(known.map_or(String::new(), |known| {
                    format!("[{}..{}]", show(metric, known.min), show(metric, known.max))
                }));
            }
        }
        cells
    }

    fn ratios(&self) -> Vec<Vec<String>> {
        let mut lines = vec![
            [
                "row", "figure", "of", "", "beside", "", "ratio", "better", "aim",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for row in &self.rows {
            for ratio in &row.ratios {
                let aim = match (ratio.aim, ratio.reached) {
                    (Some(aim), Some(reached)) => {
                        judged(&format!("{aim:.2}"), ratio.higher_is_better, reached)
                    }
                    _ => String::new(),
                };
                lines.push(vec![
                    row.name.clone(),
                    title(ratio.metric).to_owned(),
                    ratio.contender.to_owned(),
                    show(ratio.metric, ratio.value),
                    ratio.against.to_owned(),
                    show(ratio.metric, ratio.against_value),
                    format!("{:.2}", ratio.ratio),
                    better(ratio.higher_is_better),
                    aim,
                ]);
            }
            for limit in &row.limits {
                let aim = show(limit.metric, limit.aim);
                lines.push(vec![
                    row.name.clone(),
                    title(limit.metric).to_owned(),
                    limit.contender.to_owned(),
                    show(limit.metric, limit.value),
                    String::new(),
                    String::new(),
                    String::new(),
                    better(limit.higher_is_better),
                    judged(&aim, limit.higher_is_better, limit.reached),
                ]);
            }
        }
        lines
    }
}

fn better(higher: bool) -> String {
    if higher { "higher" } else { "lower" }.to_owned()
}

fn judged(aim: &str, higher_is_better: bool, reached: bool) -> String {
    let sign = if higher_is_better { ">=" } else { "<=" };
    let verdict = if reached { "reached" } else { "missed" };
    format!("{sign} {aim} {verdict}")
}

/// Which programs are missing and how to get them; empty if none is.
fn missing(programs: &[Program]) -> String {
    let missing: Vec<&Program> = programs.iter().filter(|p| p.version.is_none()).collect();
    if missing.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    let mut packages: Vec<&str> = missing.iter().map(|p| p.package).collect();
    packages.dedup();
    format!(
        "Not measured, because not installed: {}. On Debian:\n  apt-get install {}\n",
        names.join(", "),
        packages.join(" ")
    )
}

fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::Iops => "IOPS",
        Metric::MbPerS => "MB/s",
        Metric::MeanNs => "mean latency",
        Metric::P50Ns => "p50 latency",
        Metric::P99Ns => "p99 latency",
        Metric::CpuNsPerIo => "CPU/IO",
        Metric::NotificationsPerIo => "notifications/IO",
        Metric::Fairness => "fairness",
        Metric::PacketsPerS => "packets/s",
        Metric::GbitPerS => "Gbit/s",
        Metric::CpuNsPerPacket => "CPU/packet",
        Metric::OpsPerS => "operations/s",
        Metric::ServerCpuNsPerOp => "server's CPU/op",
        Metric::Seconds => "time",
        Metric::ResidentBeforeMib => "resident before",
        Metric::ResidentMib => "resident",
        Metric::RemovalMs => "removal",
        Metric::HeldUpMs => "held up",
    }
}

/// A figure with its unit, to three digits or so.
fn show(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Seconds => format!("{value:.2} s"),
        Metric::ResidentBeforeMib | Metric::ResidentMib => format!("{value:.1} MiB"),
        Metric::RemovalMs | Metric::HeldUpMs => format!("{value:.2} ms"),
        Metric::Iops | Metric::OpsPerS | Metric::PacketsPerS if value >= 1e6 => {
            format!("{:.2}M", value / 1e6)
        }
        Metric::Iops | Metric::OpsPerS | Metric::PacketsPerS if value >= 1e3 => {
            format!("{:.1}k", value / 1e3)
        }
        Metric::Iops | Metric::OpsPerS | Metric::PacketsPerS | Metric::MbPerS => {
            format!("{value:.0}")
        }
        Metric::GbitPerS => format!("{value:.2}"),
        Metric::NotificationsPerIo | Metric::Fairness => format!("{value:.3}"),
        Metric::MeanNs
        | Metric::P50Ns
        | Metric::P99Ns
        | Metric::CpuNsPerIo
        | Metric::CpuNsPerPacket
        | Metric::ServerCpuNsPerOp => {
            if value >= 1e5 {
                format!("{:.0} us", value / 1e3)
            } else if value >= 1e3 {
                format!("{:.2} us", value / 1e3)
            } else {
                format!("{value:.0} ns")
            }
        }
    }
}

/// Lines of cells, each column as wide as its widest cell; text to the left, figures to the right.
fn columns(lines: &[Vec<String>]) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(String::len)
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let figure = cell.starts_with(|c: char| c.is_ascii_digit());
            let _ = if figure {
                write!(padded, "{cell:>width$}  ")
            } else {
                write!(padded, "{cell:<width$}  ")
            };
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_named_with_the_line_that_installs_them() {
        let program = |name, package, version: Option<&str>| Program {
            name,
            package,
            version: version.map(str::to_owned),
        };
        let text = missing(&[
            program("qemu-storage-daemon", "qemu-system-common", None),
            program("fio", "fio", Some("fio-3.33")),
        ]);
        assert!(text.contains("qemu-storage-daemon."), "{text}");
        assert!(
            text.contains("apt-get install qemu-system-common\n"),
            "{text}"
        );
    }

    #[test]
    fn columns_line_up_and_figures_are_flush_right() {
        let lines = [
            vec!["a".into(), "1".into()],
            vec!["bcd".into(), "23".into()],
        ];
        assert_eq!(columns(&lines), "a     1\nbcd  23\n");
    }
}
