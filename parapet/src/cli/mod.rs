//! The command line.
//!
//! What a command prints on standard output is its result; errors are one line each on standard
//! error, beginning with `parapet:`, and make the exit status 1. A command line that makes no
//! sense is 2. `parapet xenstore` has the exit statuses of the tools that it stands for.

mod bench;
mod blk;
mod demonstration;
mod guests;
mod images;
mod net;
mod output;
mod run;
mod xenstore;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use parapet::daemon::{completions, manual};

/// Boots guests with paravirtual devices in one process, without Xen and without root.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    /// Says more: -v what happens to devices and why, -vv what peers do wrong, -vvv everything.
    ///
    /// RUST_LOG has the last word, as env_logger understands it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  parapet run                          a demonstration: a guest fills and verifies a disk
  parapet run host.toml                the guests that the file describes
  parapet blk sum disk.img             as `sha256sum disk.img`, through a guest's disk
  parapet blk copy old.img new.img     copies an image, through a guest with two disks
  parapet xenstore tree /local         the xenstore of this Xen host";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Run),
    Blk(blk::Blk),
    Net(net::Net),
    Xenstore(xenstore::Xenstore),
    Completions(Completions),
    Man(Man),
}

/// Boots a host, its domain 0 with xenstore and backends, and guests; waits for them, and prints
/// what each disk did.
///
/// FILE describes the guests in xl's words. A guest's `kernel` names what it runs: verify (fills
/// its disks, flushes, reads them back: what was on them is lost), sum (SHA-256), copy (from=xvda
/// to=xvdb) or idle (seconds=N); `cmdline` has its arguments.
///
/// No guest runs before every image of every guest is open. Without FILE it is a demonstration: a
/// guest verifies a disk of 256 MiB in the folder for temporary files (TMPDIR).
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
struct Run {
    /// A host and its guests, in TOML.
    file: Option<PathBuf>,

    /// Prints the report as JSON instead of text.
    #[arg(long)]
    json: bool,
}

const RUN_EXAMPLES: &str = r#"Examples:
  parapet run                          the demonstration
  parapet run host.toml                the guests of a file
  parapet run --json host.toml | jq '.disks[].read.latency_ns.p99'

A file with one guest:
  name = "verifier"
  memory = 64                          # MiB
  disk = ["format=raw, vdev=xvda, access=rw, target=/srv/scratch.img"]
  kernel = "verify"
  cmdline = "seed=7"

A file with several has each below a line [[guest]], and may begin with `pcpus = N`. A target is
a path (from the file's folder, if it is relative), null:SIZE, or memory:SIZE."#;

/// Prints the completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
struct Completions {
    /// The shell.
    shell: Shell,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  parapet completions bash > ~/.local/share/bash-completion/completions/parapet
  parapet completions fish > ~/.config/fish/completions/parapet.fish";

/// Writes the manual pages into a folder.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
struct Man {
    /// The folder, which is made if need be.
    folder: PathBuf,
}

const MAN_EXAMPLES: &str = "\
Examples:
  parapet man /usr/local/share/man/man1 && man parapet-xenstore-ls";

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let args = xenstore::by_name(std::env::args_os().collect());
    let Cli { verbose, command } = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &args),
    };
    start_log(verbose);
    let result = match command {
        Command::Run(args) => run::run(&args),
        Command::Blk(args) => blk::blk(&args),
        Command::Net(args) => net::net(&args),
        Command::Xenstore(args) => xenstore::xenstore(&args),
        Command::Completions(Completions { shell }) => done(completions::<Cli>("parapet", shell)),
        Command::Man(Man { folder }) => done(manual::<Cli>(&folder)),
    };
    result.unwrap_or_else(|error| {
        // Who reads the output has seen enough, as `head` has, and is not to be told so.
        if !is_broken_pipe(&error) {
            output::complain(&error);
        }
        ExitCode::FAILURE
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Says what is wrong with the arguments, or what was asked for instead, as the help.
fn refuse(error: &clap::Error, args: &[OsString]) -> ExitCode {
    // Nobody is left to hear that it cannot be said.
    let _ = error.print();
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        code => xenstore::nonsense(args).unwrap_or(ExitCode::from(u8::try_from(code).unwrap_or(2))),
    }
}

fn done(outcome: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Without -v there are only the errors of the command itself, each with its reason.
fn start_log(verbose: u8) {
    let mut log = env_logger::Builder::new();
    match verbose {
        0 => log.filter_level(LevelFilter::Error).format(|to, record| {
            let level = record.level().as_str().to_lowercase();
            writeln!(to, "parapet: {level}: {}", record.args())
        }),
        1 => log.filter_level(LevelFilter::Info),
        2 => log.filter_level(LevelFilter::Debug),
        _ => log.filter_level(LevelFilter::Trace),
    };
    log.parse_default_env().init();
}
