//! `write`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::text::unescape;
use super::{Failed, Ignored, connect, transaction};

/// Sets the values of nodes, and creates those that are missing.
///
/// Several are written in one transaction. Values may be escaped, as `read` prints them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Write {
    /// The nodes, and the value of each.
    #[arg(required = true, value_names = ["PATH", "VALUE"], num_args = 2..)]
    pairs: Vec<OsString>,

    /// Takes values as they are: a backslash is just that.
    #[arg(short = 'R', long)]
    raw: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = r"Examples:
  parapet xenstore write /a/b hello
  parapet xenstore write /a/b 'two\nlines' /a/c '\xff\000'";

pub(super) fn write(args: &Write) -> anyhow::Result<ExitCode> {
    let (pairs, []) = args.pairs.as_chunks::<2>() else {
        bail!("a value is missing: every node takes one");
    };
    let mut client = connect()?;
    let set = |client: &mut super::Client, [path, value]: &[OsString; 2]| {
        let path = path.to_string_lossy();
        let value = value.as_encoded_bytes();
        let value = match args.raw {
            true => value.to_vec(),
            false => unescape(value),
        };
        let written = client.write(&path, value);
        written.map_err(Failed::to(format!("could not write path {path}")))
    };
    match pairs {
        [pair] => set(&mut client, pair)?,
        pairs => transaction(&mut client, |tx| {
            pairs.iter().try_for_each(|pair| set(tx, pair))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}
