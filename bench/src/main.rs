//! `parapet-bench`: the device halves and xenstored beside their peers, in the same run.
//!
//! ```text
//!  main      the command line
//!   |
//!  blk       which rows there are ---------------> report   table, JSON, ratios
//!   |  for each row, for each round, for each contender: run              ^
//!   v                                                                     |
//!  contender (a trait)  <- peers/qsd  peers/fio  peers/eventfd            |
//!   |                          |      (and our own halves)                |
//!   |                      peers/vhost    a Queue                         |
//!   v                          v                                          |
//!  placement  pins         measure    closed loop, stopwatch, CPU account |
//!   ^                          ^                                          |
//!   |                      xenstore/load   what a client of a socket asks |
//!  peers/xenstored             |                                          |
//!   a daemon each  <------ xenstore  which rows there are ----------------+
//! ```
//!
//! Figures are medians of interleaved rounds (A B A B), every thread pinned, every row labelled
//! with its placement. Absolute numbers drift with the machine; the ratios are the result.

#![deny(unsafe_code)]

mod blk;
mod contender;
mod disk;
mod machine;
mod measure;
mod neighbours;
mod net;
mod ours;
mod peers;
mod placement;
mod report;
mod workload;
mod xenstore;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use report::{Report, Row, choose};
use serde::Serialize;
use std::fs::File;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Measures Parapet's device halves and its xenstored beside their peers in the same run.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Blk(Blk),
    Net(Net),
    Xenstore(Xenstore),
}

/// Block devices: null and file disks, beside qemu-storage-daemon and raw fio.
///
/// Every figure is a median over interleaved rounds with all threads pinned. The rows of a null
/// disk at queue depth 1 also show the bare round trip of two eventfds. A peer that is not
/// installed is named, with the line that installs it, and the run goes on without it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Blk {
    #[command(flatten)]
    common: Common,

    /// Folder for the image of the file rows [default: a temporary one on a real file system].
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,

    /// Size of that image in MiB [default: 1024, quick: 64].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    size: Option<u32>,
}

/// What is chosen of any benchmark.
#[derive(Debug, Args)]
struct Common {
    /// Makes everything short and small (for CI: it shows that it works, not how fast).
    #[arg(long)]
    quick: bool,

    /// Also writes the report as JSON; `-` for standard output, the table then goes to standard
    /// error.
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,

    /// Measures only the rows whose name matches (`*` and `?`); may be repeated.
    #[arg(long, value_name = "ROW-GLOB")]
    only: Vec<glob::Pattern>,

    /// Lists the names of the rows and ends.
    #[arg(long)]
    list: bool,

    /// Measured time of one sample, in seconds [default: 1, quick: 0.1].
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,

    /// Samples of each contender in each row [default: 5, quick: as few as will do].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
}

impl Common {
    /// How long a sample is, and how many there are.
    fn times(&self) -> (Duration, usize) {
        let (seconds, rounds) = if self.quick { (0.1, 1) } else { (1.0, 5) };
        let duration = self.seconds.unwrap_or(Duration::from_secs_f64(seconds));
        (duration, self.rounds.unwrap_or(rounds).into())
    }
}

const EXAMPLES: &str = "\
Examples:
  parapet-bench blk                                    all rows, some five minutes
  parapet-bench blk --quick                            all rows, briefly
  parapet-bench blk --only 'null/*' --json null.json   the null disk only, and JSON
  parapet-bench blk --only '*/qd1/*' --rounds 9        every row at queue depth 1
  parapet-bench blk --only 'file/*' --dir /mnt/nvme    the disk under /mnt/nvme";

/// Network devices: frames to the back half, to TAP devices, and from guest to guest, beside
/// testpmd, bare writes, and iperf3 over the kernel's own ways.
///
/// Every figure is a median over interleaved rounds. Only root makes the network namespaces that the
/// rows with TAP devices want; without, they are left out, and the report says so.
#[derive(Debug, Args)]
#[command(after_help = NET_EXAMPLES)]
struct Net {
    #[command(flatten)]
    common: Common,
}

const NET_EXAMPLES: &str = "\
Examples:
  parapet-bench net                                  all rows, some minutes
  parapet-bench net --quick                          all rows, briefly
  parapet-bench net --only 'front-to-back/*'         beside testpmd
  parapet-bench net --only 'iperf3/*' --seconds 5    between two stacks of Linux";

/// xenstored: ours beside Debian's C xenstored and oxenstored, over their sockets.
///
/// Every daemon gets the same requests from the same client, all threads pinned, an empty store each
/// time; figures are medians over interleaved rounds. Ours is the `parapet-xenstored` beside this
/// program. Debian's are those of an installed xen-utils-4.17, or of one that tests/system/run
/// unpacked; without them the run goes on, and says so.
#[derive(Debug, Args)]
#[command(after_help = XENSTORE_EXAMPLES)]
struct Xenstore {
    #[command(flatten)]
    common: Common,

    /// Measures nothing, but has eight clients do so many random operations on ours at full speed,
    /// and fails unless its memory stays as it was early on.
    #[arg(long, value_name = "OPERATIONS", value_parser = clap::value_parser!(u64).range(1000..))]
    soak: Option<u64>,
}

const XENSTORE_EXAMPLES: &str = "\
Examples:
  parapet-bench xenstore                                   all rows; C xenstored takes minutes
  parapet-bench xenstore --quick                           all rows, briefly
  parapet-bench xenstore --only 'read/*' --json read.json  READ only, and JSON
  parapet-bench xenstore --soak 50000000                   eight clients for some minutes";

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Bench::Blk(args) => blk(&args),
        Bench::Net(args) => net(&args),
        Bench::Xenstore(args) => xenstore(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("parapet-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn blk(args: &Blk) -> Result<()> {
    if args.common.list {
        return list(&choose(blk::rows(), &args.common.only)?);
    }
    let interrupted = interrupted()?;
    // Before the minutes of measuring, not after them.
    let output = Output::open(args.common.json.as_deref())?;
    output.publish(&blk::run(&options(args)?, &interrupted)?)
}

fn net(args: &Net) -> Result<()> {
    let common = &args.common;
    if common.list {
        return list(&choose(net::rows(), &common.only)?);
    }
    let interrupted = interrupted()?;
    let (duration, rounds) = common.times();
    let options = net::Options {
        only: common.only.clone(),
        duration,
        rounds,
    };
    let output = Output::open(common.json.as_deref())?;
    output.publish(&net::run(&options, &interrupted)?)
}

fn xenstore(args: &Xenstore) -> Result<()> {
    if args.common.list {
        return list(&choose(
            xenstore::rows(args.common.quick),
            &args.common.only,
        )?);
    }
    let interrupted = interrupted()?;
    if let Some(operations) = args.soak {
        return xenstore::soak::run(operations, &interrupted);
    }
    let (duration, rounds) = args.common.times();
    let options = xenstore::Options {
        only: args.common.only.clone(),
        quick: args.common.quick,
        duration,
        rounds,
    };
    let output = Output::open(args.common.json.as_deref())?;
    output.publish(&xenstore::run(&options, &interrupted)?)
}

fn list(rows: &[impl Row]) -> Result<()> {
    let names: Vec<String> = rows.iter().map(Row::name).collect();
    writeln!(stdout(), "{}", names.join("\n"))?;
    Ok(())
}

/// Set by a signal: ending by the normal path removes images and kills daemons. A second signal
/// ends at once.
fn interrupted() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let flag = Arc::clone(&interrupted);
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, flag)?;
    }
    Ok(interrupted)
}

/// Where a report goes.
enum Output {
    Table,
    /// The table, and a file of JSON.
    File(File),
    /// JSON on standard output, the table on standard error.
    Json,
}

impl Output {
    fn open(json: Option<&Path>) -> Result<Self> {
        match json {
            None => Ok(Output::Table),
            Some(path) if path == Path::new("-") => Ok(Output::Json),
            Some(path) => {
                let file = File::create(path);
                let file = file.with_context(|| format!("{}: cannot write", path.display()))?;
                Ok(Output::File(file))
            }
        }
    }

    fn publish(self, report: &Report<impl Serialize>) -> Result<()> {
        let json = || serde_json::to_string_pretty(report);
        match self {
            Output::Table => write!(stdout(), "{}", report.table())?,
            Output::File(mut file) => {
                write!(stdout(), "{}", report.table())?;
                writeln!(file, "{}", json()?)?;
            }
            Output::Json => {
                write!(stderr(), "{}", report.table())?;
                writeln!(stdout(), "{}", json()?)?;
            }
        }
        Ok(())
    }
}

fn options(args: &Blk) -> Result<blk::Options> {
    let (seconds, rounds, size) = if args.common.quick {
        (0.1, 2, 64)
    } else {
        (1.0, 5, 1024)
    };
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => disk::real_file_system().context(
            "no folder for temporary files is on a real file system; name one with --dir",
        )?,
    };
    ensure!(
        dir.is_dir(),
        "{}: not a folder; name another with --dir",
        dir.display()
    );
    Ok(blk::Options {
        only: args.common.only.clone(),
        duration: args
            .common
            .seconds
            .unwrap_or(Duration::from_secs_f64(seconds)),
        rounds: args.common.rounds.unwrap_or(rounds).into(),
        dir,
        size: u64::from(args.size.unwrap_or(size)) << 20,
    })
}

/// From a hundredth of a second, below which nothing but noise is measured, to an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds between 0.01 and 3600".to_owned()),
    }
}
