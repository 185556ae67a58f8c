//! `parapet-bench`: the device halves beside their peers, in the same run.
//!
//! ```text
//!  main      the command line
//!   |
//!  blk       which rows there are ---------------> report   table, JSON, ratios
//!   |  for each row, for each round, for each contender: run
//!   v
//!  contender (a trait)  <- peers/qsd  peers/fio  peers/eventfd  (and our own halves)
//!   |                          |
//!   |                      peers/vhost    a Queue
//!   v                          v
//!  placement  pins         measure    closed loop over a Queue, stopwatch, CPU account
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
mod ours;
mod peers;
mod placement;
mod report;
mod workload;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use std::fs::File;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Measures Parapet's device halves beside their peers in the same run.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Blk(Blk),
}

/// Block devices: null and file disks, beside qemu-storage-daemon and raw fio.
///
/// Every figure is a median over interleaved rounds with all threads pinned. The rows of a null
/// disk at queue depth 1 also show the bare round trip of two eventfds. A peer that is not
/// installed is named, with the line that installs it, and the run goes on without it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Blk {
    /// Makes everything short (for CI: it shows that it works, not how fast).
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

    /// Samples of each contender in each row [default: 5, quick: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// Folder for the image of the file rows [default: a temporary one on a real file system].
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,

    /// Size of that image in MiB [default: 1024, quick: 64].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    size: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  parapet-bench blk                                    all rows, some five minutes
  parapet-bench blk --quick                            all rows, briefly
  parapet-bench blk --only 'null/*' --json null.json   the null disk only, and JSON
  parapet-bench blk --only '*/qd1/*' --rounds 9        every row at queue depth 1
  parapet-bench blk --only 'file/*' --dir /mnt/nvme    the disk under /mnt/nvme";

fn main() -> ExitCode {
    let Cli {
        command: Bench::Blk(args),
    } = Cli::parse();
    match blk(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("parapet-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn blk(args: &Blk) -> Result<()> {
    if args.list {
        let names: Vec<String> = blk::choose(&args.only)?
            .iter()
            .map(blk::Row::name)
            .collect();
        writeln!(stdout(), "{}", names.join("\n"))?;
        return Ok(());
    }

    // Ending by the normal path removes images and kills daemons; a second signal ends at once.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let flag = Arc::clone(&interrupted);
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, flag)?;
    }

    // Before the minutes of measuring, not after them.
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let file = match &args.json {
        Some(path) if !to_stdout => {
            Some(File::create(path).with_context(|| format!("{}: cannot write", path.display()))?)
        }
        _ => None,
    };
    let report = blk::run(&options(args)?, &interrupted)?;

    if to_stdout {
        write!(stderr(), "{}", report.table())?;
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout(), "{}", report.table())?;
    }
    if let Some(mut file) = file {
        writeln!(file, "{}", serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

fn options(args: &Blk) -> Result<blk::Options> {
    let (seconds, rounds, size) = if args.quick {
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
        only: args.only.clone(),
        duration: args.seconds.unwrap_or(Duration::from_secs_f64(seconds)),
        rounds: args.rounds.unwrap_or(rounds).into(),
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
