//! The command line.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use parapet::daemon::xenstored::{NAME, Status};
use parapet::daemon::{Failure, ask, completions, exit, level, manual, metrics, start_log};

use crate::c_options::{self, Translated};
use crate::serve::{self, Follows, Settings};

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

    /// Seconds for which an event waits for a guest that does not read it, before that guest's
    /// connection ends; 0 for ever.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    event_timeout: u32,

    /// Goes on as this user once everything is open, with no privileges left.
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

    /// Says whether a daemon could go on from this state, with all other arguments, and ends: what
    /// a live update asks of the new program first.
    #[arg(long, value_name = "FILE")]
    check_state: Option<PathBuf>,

    /// Goes on where the program before it in this process stopped: what a live update starts the
    /// new program with. C xenstored's options are taken as well.
    #[arg(long, short = 'U')]
    live_update: bool,

    /// The lock that the program before it has left open under this number.
    #[arg(long, value_name = "NUMBER", requires = "live_update", hide = true)]
    inherit_lock: Option<i32>,
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

A newer version takes over, without a client noticing, by
  xenstore-control live-update /usr/sbin/parapet-xenstored
and so do C xenstored and this one from each other: give it then the arguments, too, as
  xenstore-control live-update -c --no-fork /usr/lib/xen-4.17/bin/xenstored

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

/// The arguments of the program that takes our place: those that were asked for, or else `own` if
/// it is one of our kind, which also inherits a `lock`.
pub(crate) fn arguments_after(
    own: impl IntoIterator<Item = OsString>,
    asked: Option<&[u8]>,
    lock: Option<RawFd>,
) -> Vec<OsString> {
    let mut own = own.into_iter();
    let mut arguments: Vec<OsString> = match (asked, lock) {
        (Some(line), _) => line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .map(|word| OsStr::from_bytes(word).to_owned())
            .collect(),
        // C xenstored would not start with ours; and we are in the foreground.
        (None, None) => vec!["--no-fork".into()],
        (None, Some(_)) => {
            let mut kept = Vec::new();
            while let Some(argument) = own.next() {
                match argument.to_str() {
                    Some("--live-update" | "-U") => {}
                    Some("--inherit-lock") => drop(own.next()),
                    _ => kept.push(argument),
                }
            }
            kept
        }
    };
    if !arguments.iter().any(|it| it == "-U") {
        arguments.push("-U".into());
    }
    if let Some(lock) = lock {
        arguments.extend(["--inherit-lock".into(), lock.to_string().into()]);
    }
    arguments
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| NAME.into());
    let follows = |it: &OsString| it == "--live-update" || it == "-U";
    let arguments: Vec<OsString> = arguments.collect();
    let translated = match arguments.iter().any(follows) {
        true => c_options::translate(arguments),
        false => Ok(Translated {
            rest: arguments,
            ..Translated::default()
        }),
    };
    let Translated { quotas, rest } = match translated {
        Ok(translated) => translated,
        Err(reason) => return exit(NAME, Err(Failure::NotReady(anyhow!(reason)))),
    };
    let cli = Cli::parse_from([program].into_iter().chain(rest));
    let outcome = match cli.command {
        None => {
            let settings = Settings {
                run_dir: cli.run_dir,
                no_domains: cli.serve.no_domains,
                user: cli.serve.user,
                event_timeout: Some(Duration::from_secs(cli.serve.event_timeout.into()))
                    .filter(|timeout| !timeout.is_zero()),
                metrics_file: cli.serve.metrics_file,
                metrics_interval: Duration::from_secs(cli.serve.metrics_interval),
                quotas,
                follows: cli.serve.live_update.then_some(Follows {
                    lock: cli.serve.inherit_lock,
                }),
            };
            if let Some(file) = cli.serve.check_state {
                serve::check(&settings, &file)
            } else {
                start_log(cli.serve.log);
                serve::serve(&settings)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn after(own: &str, asked: Option<&str>, lock: Option<RawFd>) -> String {
        let own = own.split_whitespace().map(OsString::from);
        let arguments = arguments_after(own, asked.map(str::as_bytes), lock);
        arguments.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn one_of_our_kind_gets_our_arguments_and_the_lock() {
        let own = "--no-domains --run-dir /x";
        let first = after(own, None, Some(5));
        assert_eq!(first, "--no-domains --run-dir /x -U --inherit-lock 5");
        assert_eq!(
            after(&first, None, Some(5)),
            first,
            "nothing is added again"
        );
        let asked = after(own, Some(" --log\tdebug -U "), Some(5));
        assert_eq!(asked, "--log debug -U --inherit-lock 5");
    }

    #[test]
    fn any_other_stays_in_the_foreground_unless_its_arguments_are_said() {
        assert_eq!(after("--no-domains", None, None), "--no-fork -U");
        assert_eq!(after("--no-domains", Some("-N -V"), None), "-N -V -U");
    }
}
