//! The command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use parapet::daemon::xenstored::{NAME, Status};
use parapet::daemon::{Failure, ask, completions, exit, level, manual, metrics, start_log};

use crate::serve::{self, Settings};

/// The store of a Xen host, in place of Xen's own xenstored: for domain 0's kernel, for guests, and
/// for libxl, xl and the xenstore-* tools unchanged.
///
/// It runs in domain 0, in the foreground, until SIGTERM or SIGINT, and logs to standard error. On a
/// Xen host it is to be started once, before xen-init-dom0, and to run as long as the host: what it
/// keeps is in memory, and a kernel that has lost its xenstored finds no other.
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

#[derive(Debug, Args)]
struct Serve {
    /// Serves the socket alone, and no domain: for trying clients where there is no Xen.
    #[arg(long)]
    no_domains: bool,

    /// What goes to the log [default: info; else what PARAPET_LOG or RUST_LOG says].
    #[arg(long, value_name = "LEVEL", value_parser = level())]
    log: Option<LevelFilter>,

    /// Goes on as this user once everything is open, with no privileges left.
    ///
    /// On a Xen host it must be able to open /dev/xen/evtchn, for the domains that are yet to come.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// Writes metrics for Prometheus to this file, for node_exporter's textfile collector.
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,

    /// How often the metrics are written, in seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 15,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    metrics_interval: u64,
}

const EXAMPLES: &str = "\
Examples:
  parapet-xenstored                 on a Xen host, before xen-init-dom0
  parapet-xenstored --log debug     says which domains come and go, too
  parapet-xenstored status          what it was asked, and what each domain uses
  parapet-xenstored --metrics-file /var/lib/prometheus/node-exporter/xenstored.prom

  export XENSTORED_PATH=/tmp/xenstored/socket                    anywhere:
  parapet-xenstored --no-domains --run-dir /tmp/xenstored &
  xenstore-write /a/b hello && xenstore-ls -f

The socket is the one that systemd hands over, or else where every client looks for it:
$XENSTORED_PATH, $XENSTORED_RUNDIR/socket, or /run/xenstored/socket. Who can connect to it may do
everything, so only its owner can.

Exit status: 0 after SIGTERM or SIGINT; 1 after a failure; 2 if the host is not ready for it, with
one line that says what to do.";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(name = "status")]
    Show(Show),
    /// Prints the completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Writes the manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// The folder, as /usr/local/share/man/man1.
        folder: PathBuf,
    },
}

/// Prints what the running daemon was asked, and what it holds for whom.
#[derive(Debug, Args)]
#[command(name = "status", after_help = STATUS_EXAMPLES)]
struct Show {
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Prints metrics for Prometheus instead.
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  parapet-xenstored status
  parapet-xenstored status --json | jq '.domains[] | select(.nodes > 500).domid'
  parapet-xenstored status --metrics | grep transactions";

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => {
            start_log(cli.serve.log);
            serve::serve(&Settings {
                run_dir: cli.run_dir,
                no_domains: cli.serve.no_domains,
                user: cli.serve.user,
                metrics_file: cli.serve.metrics_file,
                metrics_interval: Duration::from_secs(cli.serve.metrics_interval),
            })
        }
        Some(Command::Show(args)) => show(&cli.run_dir, &args).map_err(Failure::Failed),
        Some(Command::Completions { shell }) => {
            completions::<Cli>(NAME, shell).map_err(Failure::Failed)
        }
        Some(Command::Man { folder }) => manual::<Cli>(&folder).map_err(Failure::Failed),
    };
    exit(NAME, outcome)
}

fn show(run_dir: &Path, args: &Show) -> anyhow::Result<()> {
    let status: Status = ask(run_dir, NAME)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &status)?;
        writeln!(out)?;
    } else if args.metrics {
        out.write_all(metrics(&status).as_bytes())?;
    } else {
        write!(out, "{status}")?;
    }
    Ok(())
}
