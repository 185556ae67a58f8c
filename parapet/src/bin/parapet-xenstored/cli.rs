//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use parapet::daemon::{Failure, completions, exit, level, start_log};

use crate::serve::{self, Settings};

/// The daemon's name: of its program and its lock.
pub(crate) const NAME: &str = "parapet-xenstored";

/// The store of a Xen host, in place of Xen's own xenstored: for domain 0's kernel, for guests, and
/// for libxl, xl and the xenstore-* tools unchanged.
///
/// It runs in domain 0, in the foreground, until SIGTERM or SIGINT, and logs to standard error. On a
/// Xen host it is to be started once, before xen-init-dom0, and to run as long as the host: what it
/// keeps is in memory, and a kernel that has lost its xenstored finds no other.
#[derive(Debug, Parser)]
#[command(name = NAME, version, after_help = EXAMPLES)]
struct Cli {
    /// Serves the socket alone, and no domain: for trying clients where there is no Xen.
    #[arg(long)]
    no_domains: bool,

    /// What goes to the log [default: info; else what PARAPET_LOG or RUST_LOG says].
    #[arg(long, value_name = "LEVEL", value_parser = level())]
    log: Option<LevelFilter>,

    /// The folder for the lock.
    #[arg(long, value_name = "DIR", default_value = "/run/parapet")]
    run_dir: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  parapet-xenstored                 on a Xen host, before xen-init-dom0
  parapet-xenstored --log debug     says which domains come and go, too

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
    /// Prints the completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => {
            start_log(cli.log);
            serve::serve(&Settings {
                run_dir: cli.run_dir,
                no_domains: cli.no_domains,
            })
        }
        Some(Command::Completions { shell }) => {
            completions::<Cli>(NAME, shell).map_err(Failure::Failed)
        }
    };
    exit(NAME, outcome)
}
