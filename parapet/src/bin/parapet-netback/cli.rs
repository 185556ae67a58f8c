//! The command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use parapet::config::{NetworkConfig, NetworkKind, NotASubnet, Subnet};
use parapet::daemon::netback::{NAME, Status};
use parapet::daemon::{Failure, ask, completions, exit, level, manual, start_log};
use parapet_netback::device::{Options, POLL};

use crate::serve::{self, Settings};

/// Serves the network interfaces of a Xen host's guests: plain `vif=` lines of xl, without the
/// kernel's backend.
///
/// It runs in domain 0 or in a driver domain, in the foreground, until SIGTERM or SIGINT, and
/// serves every vif that the toolstack makes there. It logs to standard error.
///
/// However it ends, by a signal or a crash, guests keep their vifs, and lose what is on its way: the
/// next one that is started goes on where it was.
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
  parapet-netback                           serves vifs until it is stopped
  parapet-netback --network lan=isolated    with a network for vifs that say bridge=lan
  parapet-netback --network out=nat:192.168.77.0/24
  parapet-netback --log debug               says what guests do wrong, too
  parapet-netback status                    what each vif does, as a table
  parapet-netback status --json | jq '.vifs[] | select(.state == \"connected\")'

A guest's vifs, in its xl.cfg. By default xl's own script, vif-bridge, joins their interfaces to a
bridge of the host's; with script=vif-parapet it is the daemon that does, and bridge= may name one of
its own networks:
  vif = [ \"mac=00:16:3e:01:02:03, bridge=xenbr0, rate=100Mb/s\",
          \"mac=00:16:3e:01:02:04, bridge=lan, script=vif-parapet\" ]

Exit status: 0 after SIGTERM or SIGINT; 1 after a failure; 2 if the host is not ready for it, with
one line that says what to do.";

#[derive(Debug, Args)]
struct Serve {
    /// What goes to the log [default: info; else what PARAPET_LOG or RUST_LOG says].
    #[arg(long, value_name = "LEVEL", value_parser = level())]
    log: Option<LevelFilter>,

    /// A network within the daemon, which vifs name as their bridge: KIND is isolated (its guests
    /// reach each other, and nobody else) or nat:SUBNET (they also reach what the host does, which
    /// gives them addresses). May be given several times; the first is that of vifs that name no
    /// bridge. Any other bridge is one of the host's: such a vif is an interface there, called
    /// vifDOMAIN.NUMBER.
    #[arg(long = "network", value_name = "NAME=KIND", value_parser = network)]
    networks: Vec<NetworkConfig>,

    /// How long a queue may look for frames before it sleeps, in microseconds: latency for processor
    /// time. It looks for less, or not at all, where that is of no use [default: 100; 0 if there is
    /// one processor only].
    #[arg(long, value_name = "MICROSECONDS")]
    poll: Option<u64>,

    /// How many queues a vif may have, each with rings of its own, of which the guest takes as many
    /// as it likes [default: the number of processors, and at most 4].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=64))]
    queues: Option<u32>,
}

/// A network, as `lan=isolated`.
fn network(text: &str) -> Result<NetworkConfig, String> {
    let (name, kind) = text.split_once('=').ok_or("write NAME=KIND")?;
    if name.is_empty() {
        return Err("the network needs a name".into());
    }
    let kind = match kind.split_once(':') {
        None if kind == "isolated" => NetworkKind::Isolated,
        None if kind == "nat" => NetworkKind::Nat(Subnet::DEFAULT),
        Some(("nat", subnet)) => {
            let subnet = subnet
                .parse()
                .map_err(|error: NotASubnet| error.to_string());
            NetworkKind::Nat(subnet?)
        }
        _ => return Err("a network is isolated, nat or nat:SUBNET".into()),
    };
    let name = name.into();
    Ok(NetworkConfig { name, kind })
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

/// Prints what the running daemon has to say of each vif, those that are gone included.
#[derive(Debug, Args)]
#[command(name = "status", after_help = STATUS_EXAMPLES)]
struct Show {
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  parapet-netback status
  parapet-netback status --json | jq '.vifs[] | {frontend, number, state, tx, rx, drops}'";

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
                run_dir: cli.run_dir,
                networks: cli.serve.networks,
                options: Options {
                    poll: cli.serve.poll.map_or(poll, Duration::from_micros),
                    queues: cli.serve.queues.unwrap_or(queues),
                    ..Options::default()
                },
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
