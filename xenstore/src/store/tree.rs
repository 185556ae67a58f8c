//! The tree of nodes.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use parapet_xen_sys::DomId;

use super::node::Node;
use super::path::{self, Path};
use super::permissions::Permissions;
use crate::Permission;

/// All nodes. A clone is a snapshot: it costs two reference counts, and shares every node that is
/// not changed afterwards.
#[derive(Clone)]
pub(super) struct Tree {
    root: Arc<Node>,
    /// What `@introduceDomain` and `@releaseDomain` are children of: apart from the nodes, since
    /// nothing lists or removes them, but with permissions all the same.
    special: Arc<Node>,
}

/// Where a walk down a path ended.
pub(super) struct Nearest<'a> {
    /// The lowest node that is there.
    pub(super) node: &'a Node,
    /// How many names of the path lead to it.
    pub(super) depth: usize,
}

impl Tree {
    /// What a fresh xenstored starts with.
    pub(super) fn new() -> Self {
        let private = || Permissions::private(DomId::ZERO, 0);
        let empty = || Node::new(&[], private(), 0);
        let mut tool = empty();
        tool.add("xenstored", Arc::new(empty()), 0);
        let mut root = empty();
        root.add("tool", Arc::new(tool), 0);

        let everybody = [Permission::none(DomId::ZERO), Permission::read(DomId::ANY)];
        let release = Permissions::new(&everybody, 0).unwrap_or_else(|_| private());
        let mut special = empty();
        special.add("@releaseDomain", Arc::new(Node::new(&[], release, 0)), 0);
        special.add("@introduceDomain", Arc::new(empty()), 0);
        Tree {
            root: Arc::new(root),
            special: Arc::new(special),
        }
    }

    /// The root, or what the special names are children of.
    pub(super) fn top(&self, special: bool) -> &Arc<Node> {
        if special { &self.special } else { &self.root }
    }

    fn top_mut(&mut self, special: bool) -> &mut Arc<Node> {
        if special {
            &mut self.special
        } else {
            &mut self.root
        }
    }

    pub(super) fn get(&self, path: &Path) -> Option<&Arc<Node>> {
        path.names()
            .try_fold(self.top(path.is_special()), |node, name| node.child(name))
    }

    /// [`Tree::get`] for text that is a whole number of names of a checked path.
    pub(super) fn get_str(&self, path: &str) -> Option<&Arc<Node>> {
        path::names(path).try_fold(self.top(path.starts_with('@')), |node, name| {
            node.child(name)
        })
    }

    /// The node, or the lowest above it that is there. Above a special name is the root.
    pub(super) fn nearest(&self, path: &Path) -> Nearest<'_> {
        let mut node = &**self.top(path.is_special());
        let mut depth = 0;
        for name in path.names() {
            match node.child(name) {
                Some(child) => node = child,
                None => break,
            }
            depth += 1;
        }
        if depth == 0 && path.is_special() {
            node = &self.root;
        }
        Nearest { node, depth }
    }

    /// Changes a node, and copies it and those above it first where a snapshot shares them: so it is
    /// to be there.
    pub(super) fn change<R>(
        &mut self,
        path: &Path,
        change: impl FnOnce(&mut Node) -> R,
    ) -> Option<R> {
        self.change_str(path.as_str(), 0, change)
    }

    /// [`Tree::change`] for text, when so many `levels` are to be added below the node.
    fn change_str<R>(
        &mut self,
        path: &str,
        levels: usize,
        change: impl FnOnce(&mut Node) -> R,
    ) -> Option<R> {
        let names = path::names(path);
        let mut below = levels + names.clone().count();
        let mut node = Arc::make_mut(self.top_mut(path.starts_with('@')));
        for name in names {
            if levels > 0 {
                node.grow(below);
            }
            below -= 1;
            node = Arc::make_mut(node.child_mut(name)?);
        }
        if levels > 0 {
            node.grow(below);
        }
        Some(change(node))
    }

    /// Adds a node with all below it where there is none. Its parent is there.
    pub(super) fn insert(&mut self, path: &Path, node: Arc<Node>, now: u64) {
        let (Some(parent), Some(name)) = (path.parent(), path.names().next_back()) else {
            return;
        };
        self.change_str(parent, 1 + node.height(), |parent| {
            parent.add(name, node, now);
        });
    }

    /// The nodes at the top.
    pub(super) fn into_tops(self) -> [Arc<Node>; 2] {
        [self.root, self.special]
    }

    /// Removes a node with all below it.
    pub(super) fn remove(&mut self, path: &Path, now: u64) -> Option<Arc<Node>> {
        let name = path.names().next_back()?;
        self.get(path)?;
        self.change_str(path.parent()?, 0, |parent| parent.remove(name, now))?
    }

    /// Every node with its path, parents before children, specials included. What is below a node
    /// to which `enter` says no is left out.
    pub(super) fn walk(&self, mut enter: impl FnMut(&str, &Node) -> bool) {
        for (name, special) in self.special.children() {
            walk(name, special, &mut enter);
        }
        walk("/", &self.root, &mut enter);
    }
}

/// Finds one node after another, each from where the one before has led to: so many in a deep place
/// take no more steps than there are nodes on the way.
pub(super) struct Places<'a> {
    tree: &'a Tree,
    last: &'a str,
    /// The nodes on the way to the last one, and where in its path the name of each ends.
    way: Vec<(usize, &'a Arc<Node>)>,
}

impl<'a> Places<'a> {
    pub(super) fn of(tree: &'a Tree) -> Self {
        let (last, way) = ("", Vec::new());
        Places { tree, last, way }
    }

    /// [`Tree::get`].
    pub(super) fn get(&mut self, path: &'a Path) -> Option<&'a Arc<Node>> {
        let path = path.as_str();
        let (bytes, last) = (path.as_bytes(), self.last.as_bytes());
        let alike = bytes.iter().zip(last).take_while(|(a, b)| a == b).count();
        let same = |end: usize| end <= alike && bytes.get(end).is_none_or(|&byte| byte == b'/');
        while self.way.pop_if(|(end, _)| !same(*end)).is_some() {}
        self.last = path;
        let (mut end, mut node) = match self.way.last() {
            Some(&(end, node)) => (end, node),
            None => (0, self.tree.top(path.starts_with('@'))),
        };
        for name in path::names(path.get(end..)?) {
            node = node.child(name)?;
            let slash = bytes.get(end) == Some(&b'/');
            end += usize::from(slash) + name.len();
            self.way.push((end, node));
        }
        Some(node)
    }
}

/// [`Tree::walk`] from `top` on, whose path is `path`.
pub(super) fn walk(path: &str, top: &Arc<Node>, enter: &mut impl FnMut(&str, &Node) -> bool) {
    let mut todo = Vec::from([(String::from(path), top)]);
    while let Some((path, node)) = todo.pop() {
        if enter(&path, node) {
            let above = if path == "/" { "" } else { &path };
            let children = node.children();
            todo.extend(children.map(|(name, child)| (format!("{above}/{name}"), child)));
        }
    }
}
