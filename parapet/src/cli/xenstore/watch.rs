//! `watch`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Failed, Ignored, connect, text};

/// Prints the path of every node that changes at or below some nodes, as it happens.
///
/// For each of these nodes there is an event at the beginning, whether it exists or not.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Watch {
    /// The nodes; or @introduceDomain, or @releaseDomain.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,

    /// Ends after so many events, those at the beginning included.
    #[arg(short, long, value_name = "EVENTS")]
    number: Option<u64>,

    /// Sees so many levels below a node, and no more.
    #[arg(short, long, value_name = "LEVELS")]
    depth: Option<u32>,

    /// Prints one JSON object a line and event, with the node that is watched in `watch`.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore watch /local/domain/5/device
  parapet xenstore watch -n 2 /local/domain/5/control/shutdown     until it changes once
  parapet xenstore watch --json @introduceDomain @releaseDomain";

#[derive(Serialize)]
struct Event<'a> {
    path: &'a str,
    watch: &'a str,
}

pub(super) fn watch(args: &Watch) -> anyhow::Result<ExitCode> {
    let mut client = connect()?;
    for path in &args.paths {
        let begun = match args.depth {
            None => client.watch(path, path),
            Some(depth) => client.watch_depth(path, path, depth),
        };
        begun.map_err(Failed::to(format!("Unable to add watch on {path}")))?;
    }
    let mut out = io::stdout().lock();
    for _ in 0..args.number.unwrap_or(u64::MAX) {
        let event = client.next_event()?;
        let (path, watch) = (event.path.as_str(), event.token.as_str());
        match args.json {
            true => out.write_all(&text::line(&Event { path, watch }))?,
            false => writeln!(out, "{path}")?,
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}
