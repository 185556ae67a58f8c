//! The command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use parapet::daemon::blkback::{NAME, Status};
use parapet::daemon::{Failure, ask, completions, exit, level, manual, start_log};
use parapet_blkback::device::POLL;

use crate::serve::{self, Settings};

/// Serves the disks of a Xen host's guests: plain `disk=` lines of xl, on raw files and block
/// devices, without loop devices and without QEMU.
///
/// It runs in domain 0 or in a driver domain, in the foreground, until SIGTERM or SIGINT, and
/// serves every vbd that the toolstack makes there. It logs to standard error.
///
/// However it ends, by a signal or a crash, guests keep their disks, and wait: the next one that is
/// started goes on where it was.
#[derive(Debug, Parser)]
#[command(name = NAME, version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    serve: Serve,

    /// The folder for the lock and the status socket.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/parapet"
    )]
    run_dir: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  parapet-blkback                           serves disks until it is stopped
  parapet-blkback --log debug               says what guests do wrong, too
  parapet-blkback status                    what each disk does, as a table
  parapet-blkback status --json | jq '.vbds[] | select(.state == \"connected\")'

A guest's disk, in its xl.cfg:
  disk = [ \"format=raw, vdev=xvda, access=rw, script=block-parapet, target=/srv/guest.img\" ]

Exit status: 0 after SIGTERM or SIGINT; 1 after a failure; 2 if the host is not ready for it, with
one line that says what to do.";

#[derive(Debug, Args)]
struct Serve {
    /// What goes to the log [default: info; else what PARAPET_LOG or RUST_LOG says].
    #[arg(long, value_name = "LEVEL", value_parser = level())]
    log: Option<LevelFilter>,

    /// How long a queue may look for requests before it sleeps, in microseconds: latency for
    /// processor time. It looks for less, or not at all, where that is of no use [default: 100; 0
    /// if there is one processor only].
    #[arg(long, value_name = "MICROSECONDS")]
    poll: Option<u64>,

    /// How many queues a disk may have, each with a ring of its own, of which the guest takes as
    /// many as it likes [default: the number of processors, and at most 4].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=64))]
    queues: Option<u32>,

    #[command(flatten)]
    keep: Keep,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Keep {
    /// The folder of the journals, by which a daemon that starts again goes on where one before it
    /// crashed or was stopped, without the guests noticing. It has to outlive the daemon, and should
    /// be in memory [default: blkback in the folder of --run-dir].
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,

    /// Keeps no journals: guests whose daemon ended lose their disks, unless they can connect anew.
    #[arg(long)]
    no_journal: bool,
}

impl Keep {
    /// The folder, if there is to be one.
    fn folder(self, run_dir: &Path) -> Option<PathBuf> {
        match self.no_journal {
            true => None,
            false => Some(self.journal.unwrap_or_else(|| run_dir.join("blkback"))),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(name = "status")]
    Show(Show),
    #[command(hide = true)]
    Completions(Completions),
    #[command(hide = true)]
    Man(Man),
}

/// Prints what the running daemon has to say of each disk, those that are gone included.
#[derive(Debug, Args)]
#[command(name = "status", after_help = STATUS_EXAMPLES)]
struct Show {
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  parapet-blkback status
  parapet-blkback status --json | jq '.vbds[] | {frontend, name, state, reads, writes}'";

/// Prints the completions for a shell.
#[derive(Debug, Args)]
struct Completions {
    /// The shell.
    shell: Shell,
}

/// Writes the manual pages into a folder.
#[derive(Debug, Args)]
struct Man {
    /// The folder, as /usr/local/share/man/man1.
    folder: PathBuf,
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => {
            start_log(cli.serve.log);
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            let (poll, queues) = match processors {
                1 => (Duration::ZERO, 1),
                several => (POLL, several.min(4) as u32),
            };
            serve::serve(&Settings {
                journals: cli.serve.keep.folder(&cli.run_dir),
                run_dir: cli.run_dir,
                poll: cli.serve.poll.map_or(poll, Duration::from_micros),
                queues: cli.serve.queues.unwrap_or(queues),
            })
        }
        Some(Command::Show(args)) => show(&cli.run_dir, args.json).map_err(Failure::Failed),
        Some(Command::Completions(args)) => {
            completions::<Cli>(NAME, args.shell).map_err(Failure::Failed)
        }
        Some(Command::Man(args)) => manual::<Cli>(&args.folder).map_err(Failure::Failed),
    };
    exit(NAME, outcome)
}

fn show(run_dir: &Path, json: bool) -> anyhow::Result<()> {
    let status: Status = ask(run_dir, NAME)?;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &status)?;
        writeln!(out)?;
    } else {
        write!(out, "{status}")?;
    }
    Ok(())
}
