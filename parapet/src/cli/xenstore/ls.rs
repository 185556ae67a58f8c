//! `ls`.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::vec;

use clap::Args;
use rustix::termios::{Winsize, tcgetwinsize};

use super::text::{Node, escape, line, permissions};
use super::{Client, Failed, Ignored, below, connect};

/// Prints all that is below nodes, with values.
///
/// A line ends where the terminal does, or after 80 columns, and `\...` shows that there is more
/// of the value.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Ls {
    /// The nodes [default: /].
    #[arg(value_name = "PATH")]
    paths: Vec<String>,

    /// Prints whole paths, without indentation.
    #[arg(short, long)]
    flat: bool,

    /// Prints permissions, too.
    #[arg(short, long)]
    prefix: bool,

    /// Prints one JSON object a line and node, with the whole value and permissions.
    #[arg(long, conflicts_with_all = ["flat", "prefix"])]
    json: bool,

    #[command(flatten)]
    _ignored: Ignored,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore ls -f | grep state
  parapet xenstore ls -p /local/domain/5
  parapet xenstore ls --json / | jq -r 'select(.value == \"\").path'";

/// Where lines end, and where permissions begin.
struct Columns {
    most: usize,
    permissions: usize,
}

impl Columns {
    fn of(args: &Ls) -> Self {
        let permissions = if args.flat { 0 } else { 60 };
        let most = match tcgetwinsize(io::stdout()) {
            // A terminal that does not know how wide it is.
            Ok(Winsize { ws_col: 0..2, .. }) => None,
            Ok(Winsize { ws_col, .. }) => Some(usize::from(ws_col) - 2),
            Err(_) if args.flat => None,
            Err(_) => Some(80),
        };
        Columns {
            permissions: most.map_or(0, |_| permissions),
            most: most.unwrap_or(usize::MAX / 2),
        }
    }
}

/// What the tools leave room for in a line: ` = "..."`.
const TAG: usize = 8;

pub(super) fn ls(args: &Ls) -> anyhow::Result<ExitCode> {
    let root = ["/".to_owned()];
    let paths = match args.paths.as_slice() {
        [] => &root,
        paths => paths,
    };
    let columns = Columns::of(args);
    let mut client = connect()?;
    let mut out = BufWriter::new(io::stdout().lock());
    for path in paths {
        let shown = show(&mut client, args, &columns, path, &mut out);
        // Those before an error are printed.
        out.flush()?;
        shown?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A node whose children are being shown.
struct Open {
    path: String,
    left: vec::IntoIter<String>,
}

fn show(
    client: &mut Client,
    args: &Ls,
    columns: &Columns,
    path: &str,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut open: Vec<Open> = Vec::new();
    let mut next = Some(path.to_owned());
    loop {
        if let Some(path) = next.take() {
            match client.list(&path) {
                Ok(names) => open.push(Open {
                    path,
                    left: names.into_iter(),
                }),
                // It was there a moment ago.
                Err(error) if !open.is_empty() && error.is_not_found() => {}
                Err(error) => {
                    let failed = Failed::to(format!("xs_directory ({path})"))(error);
                    return Err(failed.into());
                }
            }
        }
        let depth = open.len().saturating_sub(1);
        let Some(parent) = open.last_mut() else {
            return Ok(());
        };
        let Some(name) = parent.left.next() else {
            open.pop();
            continue;
        };
        let path = below(&parent.path, &name);
        if args.json {
            json(client, &path, out)?;
        } else {
            print(client, args, columns, &path, &name, depth, out)?;
        }
        next = Some(path);
    }
}

fn json(client: &mut Client, path: &str, out: &mut impl Write) -> anyhow::Result<()> {
    // What has gone meanwhile is not told of.
    if let (Ok(value), permissions) = (client.read(path), client.permissions(path).ok()) {
        out.write_all(&line(&Node::new(path, &value).with(permissions.as_deref())))?;
    }
    Ok(())
}

/// Prints a line, as wide as the tools would make it.
fn print(
    client: &mut Client,
    args: &Ls,
    columns: &Columns,
    path: &str,
    name: &str,
    depth: usize,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    // Where there is no room at all the tools do not cut anything off.
    let room = |used: usize| columns.most.checked_sub(TAG + used).unwrap_or(usize::MAX);
    let mut width = 0;
    if args.flat {
        out.write_all(path.as_bytes())?;
    } else {
        let name: String = name.chars().take(room(depth)).collect();
        write!(out, "{:depth$}{name}", "")?;
        width = depth + name.len();
    }
    match client.read(path) {
        Err(_) => out.write_all(b":\n")?,
        Ok(value) if columns.most < width + value.len() + TAG => {
            let text: String = escape(&value).chars().take(room(width)).collect();
            write!(out, " = \"{text}\\...\"")?;
        }
        Ok(value) => {
            let text = format!(" = \"{}\"", escape(&value));
            out.write_all(text.as_bytes())?;
            width += text.len();
            if args.prefix {
                let end = columns.permissions.min(columns.most);
                let dots = (width + 1..end).map(|column| [b' ', b'.'][column % 2]);
                out.write_all(b" ")?;
                out.write_all(&dots.collect::<Vec<_>>())?;
            }
        }
    }
    if args.prefix {
        match client.permissions(path) {
            Ok(entries) => write!(out, "  ({})", permissions(&entries))?,
            Err(error) => {
                let failed = Failed::to(format!("could not access permissions for {name}"))(error);
                crate::cli::output::complain(&failed.into());
            }
        }
    }
    out.write_all(b"\n")?;
    Ok(())
}
