//! What command lines have in common, those of daemons and others.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::Shell;
use log::LevelFilter;

/// Why a daemon ended that was not asked to.
#[derive(Debug)]
pub enum Failure {
    /// It has not begun: the host is not ready for it.
    NotReady(anyhow::Error),
    /// It could not go on.
    Failed(anyhow::Error),
}

/// The value of `--log`.
pub fn level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|level| level.parse::<LevelFilter>())
}

/// How the daemon `name` exits: 0, 1 after a failure, 2 if the host is not ready, the latter two
/// with a line on standard error that says why.
pub fn exit(name: &str, outcome: Result<(), Failure>) -> ExitCode {
    let (reason, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        // It says all that there is to say by itself.
        Err(Failure::NotReady(reason)) => (reason.to_string(), ExitCode::from(2)),
        Err(Failure::Failed(reason)) => (format!("{reason:#}"), ExitCode::FAILURE),
    };
    // Nobody is left to hear that it cannot be said.
    let _ = writeln!(io::stderr(), "{name}: {reason}");
    code
}

/// Prints the completions of the command `C`, called `name`, for a shell.
///
/// # Errors
/// Standard output's.
pub fn completions<C: CommandFactory>(name: &str, shell: Shell) -> anyhow::Result<()> {
    // The generator panics when it cannot write, which memory always can be.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut C::command(), name, &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

/// Writes the manual pages of the command `C` and of all that it has below it into a folder, which
/// is made if need be.
///
/// # Errors
/// The host's.
pub fn manual<C: CommandFactory>(folder: &Path) -> anyhow::Result<()> {
    let wrote =
        fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(C::command(), folder));
    wrote.with_context(|| format!("manual pages cannot be written to {}", folder.display()))
}

/// Says to systemd how far the daemon is, as `READY=1`; that it cannot be told is no reason to stop.
pub fn tell(state: &str) {
    if let Err(error) = super::notify(state) {
        log::warn!("systemd cannot be told {state}: {error}");
    }
}
