//! `list`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Failed, Ignored, connect, text, transaction};

/// Prints the names of the children of nodes, a line each.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {
    /// The nodes.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,

    /// Prints before each name the path and a slash.
    #[arg(short, long)]
    prefix: bool,

    /// Prints one JSON object a line and node.
    #[arg(long, conflicts_with = "prefix")]
    json: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore list /local/domain
  parapet xenstore list --json /local/domain | jq -r '.children[]'";

#[derive(Serialize)]
struct Children<'a> {
    path: &'a str,
    children: Vec<String>,
}

pub(super) fn list(args: &List) -> anyhow::Result<ExitCode> {
    let mut out = Vec::new();
    let outcome = transaction(&mut connect()?, |tx| {
        out.clear();
        for path in &args.paths {
            let children = tx.list(path);
            let children = children.map_err(Failed::to(format!("could not list path {path}")))?;
            if args.json {
                out.extend(text::line(&Children { path, children }));
                continue;
            }
            for name in children {
                if args.prefix {
                    out.extend_from_slice(format!("{path}/").as_bytes());
                }
                out.extend_from_slice(format!("{name}\n").as_bytes());
            }
        }
        Ok(())
    });
    // Those before one that cannot be listed are printed.
    io::stdout().write_all(&out)?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}
