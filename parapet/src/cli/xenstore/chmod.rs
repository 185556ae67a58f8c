//! `chmod`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use parapet_xen_sys::io::xs_wire::Operation;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::client::Error;
use parapet_xenstore::{Access, Permission};

use super::{Client, Failed, Ignored, below, connect, transaction};

/// Sets the permissions of a node, in one transaction with all others that it is about.
///
/// A permission is a letter and a domain: n5 (nothing), r5 (reads), w5 (writes), b5 (both). The
/// first names the node's owner, who may do everything, and says what all may do that are not
/// named.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Chmod {
    /// The node.
    path: String,

    /// The permissions, the owner's first.
    #[arg(value_name = "PERMISSION")]
    permissions: Vec<String>,

    /// Sets the permissions of all nodes above it, too, up to the root.
    #[arg(short, long)]
    upto: bool,

    /// Sets the permissions of all nodes below it, too.
    #[arg(short, long)]
    recurse: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore chmod /local/domain/5/data n5          domain 5's, and nobody else reads it
  parapet xenstore chmod -r /tool/test r0 b5              domain 5 may write, all may read";

pub(super) fn chmod(args: &Chmod) -> anyhow::Result<ExitCode> {
    let entries = args.permissions.iter().map(|text| permission(text));
    let entries: Vec<_> = entries.collect::<anyhow::Result<_>>()?;
    // An id that no domain can have is refused as xenstored would.
    let entries: Option<Vec<_>> = entries.into_iter().collect();
    let set = |client: &mut Client, path: &str| {
        let done = match &entries {
            Some(entries) => client.set_permissions(path, entries),
            None => Err(Error::Refused {
                operation: Operation::SetPerms,
                path: path.into(),
                error: Errno::EINVAL,
            }),
        };
        let what = format!("Error occurred setting permissions on '{path}'");
        done.map_err(Failed::to(what))
    };
    if args.upto && !args.path.starts_with('/') {
        let first = args.path.split('/').next().unwrap_or_default();
        bail!("Unable to locate path separator '/' in '{first}'");
    }
    transaction(&mut connect()?, |tx| {
        set(tx, &args.path)?;
        let mut above = args.path.as_str();
        while args.upto
            && let Some((parent, _)) = above.rsplit_once('/')
            && !parent.is_empty()
        {
            set(tx, parent)?;
            above = parent;
        }
        let mut left = match args.recurse {
            true => vec![args.path.clone()],
            false => vec![],
        };
        while let Some(path) = left.pop() {
            if path != args.path {
                set(tx, &path)?;
            }
            // Those of a node that cannot be listed are passed over.
            let names = tx.list(&path).unwrap_or_default();
            left.extend(names.iter().map(|name| below(&path, name)));
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A letter and a number, which like C's `atoi` begins a text or is zero; none if no domain has
/// that number.
fn permission(text: &str) -> anyhow::Result<Option<Permission>> {
    let mut rest = text.chars();
    let access = match rest.next() {
        Some('n') => Access::None,
        Some('r') => Access::Read,
        Some('w') => Access::Write,
        Some('b') => Access::Both,
        letter => bail!(
            "Invalid permission specification: '{}'",
            letter.map(String::from).unwrap_or_default()
        ),
    };
    let text = rest.as_str().trim_ascii_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit());
    let domid = match (end.map_or(text, |end| &text[..end]), text.starts_with('-')) {
        ("", true) => None,
        ("", false) => Some(0),
        (digits, _) => digits.parse().ok(),
    };
    Ok(domid.map(|domid| Permission {
        domid: DomId(domid),
        access,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_is_read_as_c_reads_it() {
        let read = |text| permission(text).unwrap().map(|entry| entry.to_string());
        for (text, entry) in [("n5", "n5"), ("b", "b0"), ("r 7x", "r7"), ("w+1", "w1")] {
            assert_eq!(read(text).as_deref(), Some(entry), "{text}");
        }
        assert_eq!(read("n70000"), None);
        assert_eq!(read("n-1"), None);
        assert!(permission("x1").is_err() && permission("").is_err());
    }
}
