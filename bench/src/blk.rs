//! The block rows: what is read from which disk, by whom, in which placement.
//!
//! To add a contender, implement [`Contender`] and list it in [`contenders`]; to add a row, list
//! it in [`rows`]; what we aim at is in [`AIMS`].

use crate::contender::Contender;
use crate::disk::{Image, is_tmpfs};
use crate::machine::Machine;
use crate::measure::{Figures, Metric, warm_up};
use crate::neighbours::Neighbours;
use crate::ours;
use crate::peers::{Program, eventfd, fio, qsd};
use crate::placement::{Cores, Cpus, Placement};
use crate::report::{self, Column, Outcome, Report, Row as _, RowReport, Settings, choose};
use crate::workload::{Disk, Pattern, Workload};
use anyhow::{Context, Result, bail};
use glob::Pattern as Glob;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What lies behind the disk of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Medium {
    /// Nothing.
    Null,
    /// A file on a real file system.
    File,
    /// A file in memory.
    Tmpfs,
    /// Overlays of one file on a real file system.
    Overlay,
}

/// One line of the benchmark: a workload in a placement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) medium: Medium,
    pub(crate) pattern: Pattern,
    /// Bytes of a request.
    pub(crate) block: u32,
    /// Requests in flight in each queue.
    pub(crate) depth: usize,
    /// Queues of each guest.
    pub(crate) queues: usize,
    pub(crate) guests: usize,
    pub(crate) placement: Placement,
}

impl report::Row for Row {
    /// For example `null/randread-4k/qd32/same-core`, or `.../qd32/4-queues/same-core`.
    fn name(&self) -> String {
        let medium = match self.medium {
            Medium::Null => "null",
            Medium::File => "file",
            Medium::Tmpfs => "tmpfs",
            Medium::Overlay => "overlay",
        };
        let pattern = match self.pattern {
            Pattern::Random => "randread",
            Pattern::Sequential => "read",
        };
        let (block, depth) = (self.block / 1024, self.depth);
        let several = |count, what| match count {
            1 => String::new(),
            count => format!("{count}-{what}/"),
        };
        format!(
            "{medium}/{pattern}-{block}k/qd{depth}/{}{}{}",
            several(self.queues, "queues"),
            several(self.guests, "guests"),
            self.placement.slug()
        )
    }

    fn headline(&self) -> &'static [Metric] {
        match (self.pattern, self.depth) {
            _ if self.guests > 1 => &[Metric::Iops, Metric::CpuNsPerIo, Metric::Fairness],
            (Pattern::Sequential, _) => &[Metric::MbPerS, Metric::CpuNsPerIo],
            // The median beside the mean, because a neighbour on the CPU moves only the mean.
            (Pattern::Random, 1) => &[Metric::MeanNs, Metric::P50Ns, Metric::CpuNsPerIo],
            (Pattern::Random, _) => &[Metric::Iops, Metric::CpuNsPerIo],
        }
    }

    fn aim(&self, metric: Metric, against: &str) -> Option<f64> {
        let name = self.name();
        AIMS.iter()
            .find(|aim| aim.row == name && aim.metric == metric && aim.against == against)
            .map(|aim| aim.ratio)
    }
}

/// What the table shows.
const COLUMNS: [Column; 8] = [
    column(Metric::Iops, "IOPS", true),
    column(Metric::MbPerS, "MB/s", false),
    column(Metric::MeanNs, "mean", false),
    column(Metric::P50Ns, "p50", false),
    column(Metric::P99Ns, "p99", false),
    column(Metric::CpuNsPerIo, "CPU/IO", true),
    column(Metric::NotificationsPerIo, "notif/IO", false),
    column(Metric::Fairness, "Jain", false),
];

const fn column(metric: Metric, title: &'static str, spread: bool) -> Column {
    Column {
        metric,
        title,
        spread,
    }
}

/// All rows, in the order in which they are measured.
pub(crate) fn rows() -> Vec<Row> {
    let random = |medium, depth, placement| Row {
        medium,
        pattern: Pattern::Random,
        block: 4 << 10,
        depth,
        queues: 1,
        guests: 1,
        placement,
    };
    let mut rows = Vec::new();
    for placement in Placement::ALL {
        rows.extend([1, 32, 128].map(|depth| random(Medium::Null, depth, placement)));
    }
    for placement in [Placement::SameCore, Placement::SplitEvented] {
        rows.extend([2, 4].map(|queues| Row {
            queues,
            ..random(Medium::Null, 32, placement)
        }));
        rows.extend([2, 8, 64].map(|guests| Row {
            guests,
            ..random(Medium::Null, 4, placement)
        }));
    }
    let same_core = Placement::SameCore;
    rows.extend([1, 32, 128].map(|depth| random(Medium::File, depth, same_core)));
    rows.push(Row {
        medium: Medium::File,
        pattern: Pattern::Sequential,
        block: 128 << 10,
        depth: 8,
        queues: 1,
        guests: 1,
        placement: same_core,
    });
    rows.extend([1, 32].map(|depth| random(Medium::Tmpfs, depth, same_core)));
    rows.extend([2, 64].map(|guests| Row {
        guests,
        ..random(Medium::Overlay, 4, Placement::SplitEvented)
    }));
    rows
}

/// A ratio that our halves should reach.
#[derive(Debug)]
struct Aim {
    row: &'static str,
    metric: Metric,
    against: &'static str,
    /// At least, where higher is better; else at most.
    ratio: f64,
}

const fn aim(row: &'static str, metric: Metric, against: &'static str, ratio: f64) -> Aim {
    Aim {
        row,
        metric,
        against,
        ratio,
    }
}

const DAEMON: &str = "qemu-storage-daemon";
const RAW: &str = "raw fio";

/// What we aim at, by row.
const AIMS: [Aim; 9] = [
    aim(
        "null/randread-4k/qd1/same-core",
        Metric::MeanNs,
        DAEMON,
        0.25,
    ),
    aim(
        "null/randread-4k/qd32/same-core",
        Metric::CpuNsPerIo,
        DAEMON,
        0.50,
    ),
    aim(
        "null/randread-4k/qd1/split-evented",
        Metric::MeanNs,
        "eventfd round trip",
        1.10,
    ),
    aim(
        "file/randread-4k/qd1/same-core",
        Metric::MeanNs,
        RAW,
        1.0 / 0.95,
    ),
    aim("file/randread-4k/qd32/same-core", Metric::Iops, RAW, 0.95),
    aim("file/randread-4k/qd128/same-core", Metric::Iops, RAW, 0.90),
    aim("file/read-128k/qd8/same-core", Metric::MbPerS, RAW, 0.95),
    aim(
        "tmpfs/randread-4k/qd1/same-core",
        Metric::MeanNs,
        RAW,
        1.0 / 0.60,
    ),
    aim("tmpfs/randread-4k/qd32/same-core", Metric::Iops, RAW, 1.0),
];

/// What the caller chose.
#[derive(Debug)]
pub(crate) struct Options {
    /// Name patterns of the rows to measure; none for all.
    pub(crate) only: Vec<Glob>,
    /// The measured time of one sample.
    pub(crate) duration: Duration,
    /// Samples of each contender in each row.
    pub(crate) rounds: usize,
    /// Where the image goes.
    pub(crate) dir: PathBuf,
    /// Bytes of the image.
    pub(crate) size: u64,
}

/// Everybody who may take part and is installed, and the programs that were looked for.
fn contenders() -> (Vec<Box<dyn Contender>>, Vec<Program>) {
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(ours::Halves)];
    let (daemon, fio) = (qsd::StorageDaemon::program(), fio::Fio::program());
    if daemon.version.is_some() {
        contenders.push(Box::new(qsd::StorageDaemon));
    }
    if fio.version.is_some() {
        contenders.push(Box::new(fio::Fio));
    }
    contenders.push(Box::new(eventfd::RoundTrip));
    (contenders, vec![daemon, fio])
}

/// Measures the chosen rows, one after the other.
///
/// # Errors
/// A contender that is there failed, the image could not be made, or `interrupted` was set.
pub(crate) fn run(options: &Options, interrupted: &AtomicBool) -> Result<Report<Row>> {
    let rows = choose(rows(), &options.only)?;
    let cpus = Cpus::discover()?;
    let machine = Machine::discover(cpus)?;
    let (mut contenders, programs) = contenders();
    let mut images = Images::new(options);
    let mut notes = Vec::new();

    let progress = report::progress(rows.len())?;
    let mut reports = Vec::new();
    for row in rows {
        let disk = match images.disk(&row)? {
            Ok(disk) => disk,
            Err(reason) => {
                notes.push(format!("{}: skipped, {reason}", row.name()));
                continue;
            }
        };
        let Some(cores) = cpus.cores(row.placement) else {
            notes.push(format!("{}: skipped, it takes two CPUs", row.name()));
            continue;
        };
        let workload = Workload {
            disk,
            block: row.block,
            pattern: row.pattern,
            depth: row.depth,
            queues: row.queues,
            guests: row.guests,
            stream: 0,
            warm_up: warm_up(options.duration),
            duration: options.duration,
        };
        let neighbours = Neighbours::watch(cores);
        let outcomes = measure(
            &row,
            &workload,
            cores,
            options.rounds,
            &mut contenders,
            &mut |at| {
                progress.set_message(at);
                if interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted; nothing is reported");
                }
                Ok(())
            },
        )?;
        let others = neighbours.share();
        if outcomes.is_empty() {
            notes.push(format!(
                "{}: skipped, nobody is there to be measured",
                row.name()
            ));
        } else {
            reports.push(RowReport::new(row, others, outcomes));
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if is_tmpfs(&options.dir) {
        notes.push(format!(
            "{} is a tmpfs: the file rows are tmpfs rows",
            options.dir.display()
        ));
    }
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

/// All rounds of a row: everybody once, then everybody again.
fn measure(
    row: &Row,
    workload: &Workload,
    cores: Cores,
    rounds: usize,
    contenders: &mut [Box<dyn Contender>],
    announce: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let mut taking_part: Vec<(&mut Box<dyn Contender>, Vec<Figures>)> = contenders
        .iter_mut()
        .filter(|contender| contender.serves(workload, row.placement))
        .map(|contender| (contender, Vec::new()))
        .collect();
    for round in 1..=rounds {
        for (contender, samples) in &mut taking_part {
            let at = format!(
                "{}, {}, round {round} of {rounds}",
                row.name(),
                contender.name()
            );
            announce(at.clone())?;
            let sample = contender.run(workload, row.placement, cores).context(at)?;
            samples.push(sample.figures());
        }
    }
    Ok(taking_part
        .into_iter()
        .map(|(contender, samples)| Outcome::new(contender.name(), contender.standing(), samples))
        .collect())
}

/// The images, made when the first row needs them.
struct Images<'a> {
    options: &'a Options,
    file: Option<Image>,
    tmpfs: Option<Image>,
}

impl<'a> Images<'a> {
    fn new(options: &'a Options) -> Self {
        Self {
            options,
            file: None,
            tmpfs: None,
        }
    }

    /// The disk of a medium, or why this machine does not have it.
    ///
    /// # Errors
    /// There is no room where the caller wanted the image.
    fn disk(&mut self, row: &Row) -> Result<Result<Disk, String>> {
        match row.medium {
            Medium::Null => Ok(Ok(Disk::Null { size: 1 << 30 })),
            Medium::File => image(&mut self.file, &self.options.dir, self.options.size).map(Ok),
            Medium::Overlay => {
                let (dir, size) = (&self.options.dir, self.options.size);
                made(&mut self.file, dir, size)?
                    .overlays(row.guests)
                    .map(Ok)
            }
            Medium::Tmpfs => {
                let shm = Path::new("/dev/shm");
                if !is_tmpfs(shm) {
                    return Ok(Err("/dev/shm is not a tmpfs".to_owned()));
                }
                // It takes memory, and more of it shows nothing more.
                let size = self.options.size.min(256 << 20);
                // In a container it is often tiny, and not the caller's choice.
                Ok(image(&mut self.tmpfs, shm, size).map_err(|error| format!("{error:#}")))
            }
        }
    }
}

/// The disk of an image that is made if it is not there yet.
fn image(image: &mut Option<Image>, dir: &Path, size: u64) -> Result<Disk> {
    Ok(made(image, dir, size)?.disk())
}

/// An image, which is made if it is not there yet.
fn made<'a>(image: &'a mut Option<Image>, dir: &Path, size: u64) -> Result<&'a mut Image> {
    let there = match image.take() {
        Some(image) => image,
        None => Image::create(dir, size)?,
    };
    Ok(image.insert(there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Standing;
    use crate::measure::Sample;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let names: BTreeSet<String> = rows().iter().map(Row::name).collect();
        assert_eq!(names.len(), rows().len());
    }

    #[test]
    fn every_aim_is_about_a_headline_of_a_row() {
        for aim in &AIMS {
            let row = rows()
                .into_iter()
                .find(|row| row.name() == aim.row)
                .unwrap();
            assert!(row.headline().contains(&aim.metric), "{aim:?}");
        }
    }

    #[test]
    fn a_pattern_picks_rows_across_slashes_and_one_that_picks_none_is_refused() {
        let chosen = choose(rows(), &[Glob::new("null/*/split-polling").unwrap()]).unwrap();
        assert_eq!(chosen.len(), 3);
        let error = choose(rows(), &[Glob::new("nul").unwrap()])
            .unwrap_err()
            .to_string();
        assert!(error.contains("null/randread-4k/qd1/same-core"), "{error}");
    }

    struct Scribe(&'static str, Rc<RefCell<Vec<&'static str>>>);

    impl Contender for Scribe {
        fn name(&self) -> &'static str {
            self.0
        }

        fn standing(&self) -> Standing {
            Standing::Peer
        }

        fn serves(&self, _: &Workload, _: Placement) -> bool {
            self.0 != "absent"
        }

        fn run(&mut self, _: &Workload, _: Placement, _: Cores) -> Result<Sample> {
            self.1.borrow_mut().push(self.0);
            Ok(Sample {
                iops: 1.0,
                mb_per_s: None,
                mean_ns: 1.0,
                p50_ns: 1.0,
                p99_ns: 1.0,
                cpu_ns_per_io: None,
                notifications_per_io: None,
                fairness: None,
            })
        }
    }

    #[test]
    fn contenders_of_a_row_are_interleaved_round_by_round() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut contenders: Vec<Box<dyn Contender>> = ["a", "absent", "b"]
            .map(|name| Box::new(Scribe(name, Rc::clone(&order))) as Box<dyn Contender>)
            .into();
        let row = rows()[0];
        let workload = Workload {
            disk: Disk::Null { size: 4096 },
            block: row.block,
            pattern: row.pattern,
            depth: row.depth,
            queues: row.queues,
            guests: row.guests,
            stream: 0,
            warm_up: Duration::ZERO,
            duration: Duration::ZERO,
        };
        let cores = Cores { front: 0, back: 0 };
        let outcomes =
            measure(&row, &workload, cores, 2, &mut contenders, &mut |_| Ok(())).unwrap();
        assert_eq!(*order.borrow(), ["a", "b", "a", "b"]);
        assert_eq!(outcomes.len(), 2);
    }
}
