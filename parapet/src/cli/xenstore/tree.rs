//! `tree`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use parapet_xenstore::Permission;
use serde::Serialize;

use super::text::{self, escape, line};
use super::{Client, Failed, below, connect};

/// Draws what is below a node: values, permissions where they change, and sizes.
///
/// The permissions of a node are shown, as (n5,r0), where they are not those of the node above.
/// Sizes are counts of nodes, and bytes of names and values. There are colours on a terminal,
/// unless NO_COLOR is set.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Tree {
    /// The node.
    #[arg(default_value = "/")]
    path: String,

    /// Draws so many levels; what is below is counted.
    #[arg(short, long, value_name = "LEVELS")]
    depth: Option<usize>,

    /// Shows the permissions of every node.
    #[arg(short, long)]
    permissions: bool,

    /// Shows how much there is in every node that has others below it.
    #[arg(short, long)]
    sizes: bool,

    /// Prints one JSON object a line and node; `nodes` and `bytes` are those of it and all below.
    #[arg(long, conflicts_with_all = ["permissions", "sizes"])]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore tree /local/domain/5
  parapet xenstore tree --depth 1 --sizes /local/domain         who keeps how much
  parapet xenstore tree --json | jq -s 'max_by(.bytes | select(. < 1000000))'";

/// A node with all that is below it counted.
struct Node {
    path: String,
    /// Of the first the whole path.
    name: String,
    depth: usize,
    value: Vec<u8>,
    permissions: Option<Vec<Permission>>,
    size: Size,
    /// No other child of its parent follows.
    last: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Node {
    fn has_children(&self) -> bool {
        self.size.nodes > 1
    }
}

pub(super) fn tree(args: &Tree) -> anyhow::Result<ExitCode> {
    let mut nodes = collect(&mut connect()?, &args.path)?;
    count(&mut nodes);
    let most = args.depth.unwrap_or(usize::MAX);
    let shown: Vec<_> = nodes.iter().filter(|node| node.depth <= most).collect();
    // It knows of terminals and of NO_COLOR.
    let mut out = BufWriter::new(anstream::stdout().lock());
    if args.json {
        for node in shown {
            out.write_all(&line(&Told::new(node)))?;
        }
    } else {
        draw(&shown, args, most, &mut out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// All nodes from `path` down, each before its children. What goes away meanwhile is left out.
fn collect(client: &mut Client, path: &str) -> Result<Vec<Node>, Failed> {
    let mut nodes = Vec::new();
    let mut left = vec![(path.to_owned(), path.to_owned(), 0)];
    while let Some((path, name, depth)) = left.pop() {
        let read = client.read(&path);
        let listed = client.list(&path);
        let (value, names) = match (read, listed) {
            (Ok(value), Ok(names)) => (value, names),
            (Err(error), _) | (_, Err(error)) if depth > 0 && error.errno().is_some() => {
                log::info!("{path} is left out: {error}");
                continue;
            }
            (Err(error), _) | (_, Err(error)) => {
                return Err(Failed::to(format!("couldn't read path {path}"))(error));
            }
        };
        for child in names.into_iter().rev() {
            left.push((below(&path, &child), child, depth + 1));
        }
        nodes.push(Node {
            permissions: client.permissions(&path).ok(),
            path,
            name,
            depth,
            value,
            size: Size::default(),
            last: false,
        });
    }
    Ok(nodes)
}

/// Counts what is below each, and finds which is the last of its parent: from the end, where the
/// children come first.
fn count(nodes: &mut [Node]) {
    // What there is so far at each depth below the parent that is still to come.
    let mut below: Vec<Size> = Vec::new();
    for node in nodes.iter_mut().rev() {
        let children = match below.len() > node.depth + 1 {
            true => below.pop().unwrap_or_default(),
            false => Size::default(),
        };
        below.resize(node.depth + 1, Size::default());
        node.size = Size {
            nodes: 1 + children.nodes,
            bytes: node.name.len() + node.value.len() + children.bytes,
        };
        if let Some(all) = below.last_mut() {
            node.last = all.nodes == 0;
            all.nodes += node.size.nodes;
            all.bytes += node.size.bytes;
        }
    }
}

const NAME: Style = AnsiColor::Blue.on_default().bold();
const VALUE: Style = AnsiColor::Green.on_default();
const ASIDE: Style = Style::new().dimmed();

fn draw(nodes: &[&Node], args: &Tree, most: usize, out: &mut impl Write) -> anyhow::Result<()> {
    // The nodes above the one that is drawn.
    let mut above: Vec<&Node> = Vec::new();
    for &node in nodes {
        above.truncate(node.depth);
        write!(out, "{ASIDE}")?;
        for ancestor in above.iter().skip(1) {
            out.write_all(if ancestor.last { "    " } else { "│   " }.as_bytes())?;
        }
        if node.depth > 0 {
            out.write_all(
                if node.last {
                    "└── "
                } else {
                    "├── "
                }
                .as_bytes(),
            )?;
        }
        write!(out, "{ASIDE:#}")?;
        match node.has_children() {
            true => write!(out, "{NAME}{}{NAME:#}", node.name)?,
            false => write!(out, "{}", node.name)?,
        }
        if !node.value.is_empty() {
            write!(out, " = {VALUE}\"{}\"{VALUE:#}", escape(&node.value))?;
        }
        let inherited = above.last().map(|parent| &parent.permissions);
        if (args.permissions || inherited != Some(&node.permissions))
            && let Some(entries) = &node.permissions
        {
            write!(out, "  {ASIDE}({}){ASIDE:#}", text::permissions(entries))?;
        }
        if node.has_children() && (args.sizes || node.depth == most) {
            write!(out, "  {ASIDE}{}{ASIDE:#}", node.size.words())?;
        }
        writeln!(out)?;
        above.push(node);
    }
    if let Some(root) = nodes.first() {
        writeln!(out, "\n{}", root.size.words())?;
    }
    Ok(())
}

impl Size {
    fn words(self) -> String {
        let Size { nodes, bytes } = self;
        let s = if nodes == 1 { "" } else { "s" };
        format!("{nodes} node{s}, {bytes} bytes")
    }
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    node: text::Node<'a>,
    depth: usize,
    #[serde(flatten)]
    size: Size,
}

impl<'a> Told<'a> {
    fn new(node: &'a Node) -> Self {
        let Node { depth, size, .. } = *node;
        let told = text::Node::new(&node.path, &node.value);
        Told {
            node: told.with(node.permissions.as_deref()),
            depth,
            size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, depth: usize) -> Node {
        Node {
            path: path.into(),
            name: path.rsplit('/').next().unwrap().into(),
            depth,
            value: b"12".to_vec(),
            permissions: None,
            size: Size::default(),
            last: false,
        }
    }

    #[test]
    fn what_is_below_is_counted_and_the_last_child_known() {
        let paths = ["/a", "/a/b", "/a/b/c", "/a/b/d", "/a/e", "/a/e/f", "/a/g"];
        let depths = [0, 1, 2, 2, 1, 2, 1];
        let mut nodes: Vec<_> = paths
            .iter()
            .zip(depths)
            .map(|(path, depth)| node(path, depth))
            .collect();
        count(&mut nodes);
        let counted = |path: &str| {
            let node = nodes.iter().find(|node| node.path == path).unwrap();
            (node.size.nodes, node.size.bytes, node.last)
        };
        assert_eq!(counted("/a"), (7, 21, true));
        assert_eq!(counted("/a/b"), (3, 9, false));
        assert_eq!(counted("/a/b/c"), (1, 3, false));
        assert_eq!(counted("/a/b/d"), (1, 3, true));
        assert_eq!(counted("/a/e"), (2, 6, false));
        assert_eq!(counted("/a/g"), (1, 3, true));
    }
}
