//! `rm`.

use std::process::ExitCode;

use clap::Args;

use super::{Client, Failed, Ignored, connect, transaction};

/// Removes nodes and all below them, in one transaction.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Rm {
    /// The nodes.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,

    /// Removes those above a node, too, that have neither a value nor children any more.
    #[arg(short, long)]
    tidy: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore rm /local/domain/5/data
  parapet xenstore rm --tidy /vm/a1b2/device/vif/0";

pub(super) fn rm(args: &Rm) -> anyhow::Result<ExitCode> {
    transaction(&mut connect()?, |tx| {
        for path in &args.paths {
            remove(tx, path)?;
            let mut above = path.as_str();
            while args.tidy
                && let Some((parent, _)) = above.rsplit_once('/')
                && is_bare(tx, parent)
            {
                remove(tx, parent)?;
                above = parent;
            }
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn remove(client: &mut Client, path: &str) -> Result<(), Failed> {
    let removed = client.remove(path);
    removed.map_err(Failed::to(format!("could not remove path {path}")))
}

/// Whether a node has neither a value nor children. The root, whose path is empty here, stays.
fn is_bare(client: &mut Client, path: &str) -> bool {
    client.read(path).is_ok_and(|value| value.is_empty())
        && client.list(path).is_ok_and(|children| children.is_empty())
}
