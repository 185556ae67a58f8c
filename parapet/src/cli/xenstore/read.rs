//! `read`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::text::{Node, escape};
use super::{Failed, Ignored, connect, transaction};

/// Prints the values of nodes, a line each.
///
/// Several nodes are read in one transaction. What is not printable ASCII is escaped: \n, \\,
/// \x7f, \000.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Read {
    /// The nodes.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,

    /// Prints before each value its path and a colon.
    #[arg(short, long)]
    prefix: bool,

    /// Prints just the bytes: nothing is escaped, and no line ended.
    #[arg(short = 'R', long)]
    raw: bool,

    /// Prints one JSON object a line; a value that is no text as hexadecimal digits, in `hex`.
    #[arg(long, conflicts_with_all = ["raw", "prefix"])]
    json: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore read /local/domain/5/name
  parapet xenstore read --json /local/domain/5/name /local/domain/5/domid | jq -r .value";

pub(super) fn read(args: &Read) -> anyhow::Result<ExitCode> {
    let mut client = connect()?;
    let mut out = Vec::new();
    let outcome = match args.paths.as_slice() {
        [path] => show(&mut client, args, path, &mut out),
        paths => transaction(&mut client, |tx| {
            out.clear();
            paths
                .iter()
                .try_for_each(|path| show(tx, args, path, &mut out))
        }),
    };
    // Those before one that cannot be read are printed.
    io::stdout().write_all(&out)?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn show(
    client: &mut super::Client,
    args: &Read,
    path: &str,
    out: &mut Vec<u8>,
) -> Result<(), Failed> {
    let value = client.read(path);
    let value = value.map_err(Failed::to(format!("couldn't read path {path}")))?;
    if args.prefix {
        out.extend_from_slice(format!("{path}: ").as_bytes());
    }
    if args.json {
        out.extend(super::text::line(&Node::new(path, &value)));
    } else if args.raw {
        out.extend_from_slice(&value);
    } else {
        out.extend_from_slice(format!("{}\n", escape(&value)).as_bytes());
    }
    Ok(())
}
