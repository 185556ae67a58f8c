//! `exists`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Failed, Ignored, connect, text, transaction};

/// Tells by the exit status whether nodes exist: 0 if all do, and else 1.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Exists {
    /// The nodes.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,

    /// Prints one JSON object a line and node.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore exists /local/domain/5 && echo it is there
  parapet xenstore exists --json /local/domain/{1..9} | jq -r 'select(.exists).path'";

#[derive(Serialize)]
struct Found<'a> {
    path: &'a str,
    exists: bool,
}

pub(super) fn exists(args: &Exists) -> anyhow::Result<ExitCode> {
    let found = transaction(&mut connect()?, |tx| {
        let look = |path: &String| match tx.read(path) {
            Ok(_) => Ok(true),
            // A path that cannot be is that of no node.
            Err(error) if error.errno().is_some() => Ok(false),
            Err(error) => Err(Failed::to(format!("couldn't read path {path}"))(error)),
        };
        args.paths.iter().map(look).collect::<Result<Vec<_>, _>>()
    })?;
    if args.json {
        let mut out = io::stdout().lock();
        for (path, &exists) in args.paths.iter().zip(&found) {
            out.write_all(&text::line(&Found { path, exists }))?;
        }
    }
    Ok(match found.contains(&false) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
