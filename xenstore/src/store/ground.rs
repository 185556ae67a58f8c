//! A tree that is being changed, with its accounts.
//!
//! ```text
//!   request ──▶ Workspace ──▶ Ground ──┬─ Tree      the live one, or a transaction's
//!                                      └─ Books ────┬─ Live   accounts, names, remains
//!                                                   └─ Draft  growth, until the commit
//! ```
//!
//! Every change of a node goes through here, so what a domain owns is counted at one place: in the
//! live tree at once, in a transaction's for the quotas alone. A commit makes its changes in the
//! live tree like any request, and is counted by what it finds there.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;

use parapet_xen_sys::DomId;

use super::domains::Domains;
use super::named::Named;
use super::node::Node;
use super::path::Path;
use super::permissions::Permissions;
use super::remains::{self, Remains};
use super::tree::{self, Tree};

/// Nodes and bytes that belong to a domain, more or less than before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) nodes: isize,
    pub(super) bytes: isize,
}

impl Owned {
    /// A node, with its path; the bytes are those that C xenstored counts.
    pub(super) fn node(path: usize, node: &Node) -> Self {
        Owned {
            nodes: 1,
            bytes: (path + node.size()).cast_signed(),
        }
    }

    fn bytes(bytes: isize) -> Self {
        Owned { nodes: 0, bytes }
    }

    pub(super) fn less(self) -> Self {
        Owned {
            nodes: -self.nodes,
            bytes: -self.bytes,
        }
    }
}

/// Who owns how much more, or less, by a transaction.
#[derive(Debug, Default)]
pub(super) struct Growth(BTreeMap<DomId, Owned>);

impl Growth {
    pub(super) fn add(&mut self, owner: DomId, more: Owned) {
        let owned = self.0.entry(owner).or_default();
        owned.nodes += more.nodes;
        owned.bytes += more.bytes;
    }

    /// How many nodes more a domain owns.
    pub(super) fn nodes(&self, domid: DomId) -> isize {
        self.0.get(&domid).map_or(0, |owned| owned.nodes)
    }

    /// How many bytes more there are altogether.
    pub(super) fn bytes(&self) -> usize {
        let sum: isize = self.0.values().map(|owned| owned.bytes).sum();
        sum.max(0).cast_unsigned()
    }

    /// Who owns more nodes, and how many.
    pub(super) fn grown(&self) -> impl Iterator<Item = (DomId, usize)> {
        let all = self.0.iter().map(|(&domid, owned)| (domid, owned.nodes));
        all.filter(|&(_, nodes)| nodes > 0)
            .map(|(domid, nodes)| (domid, nodes.cast_unsigned()))
    }
}

/// Where a change is counted.
pub(super) enum Books<'a> {
    /// In the accounts.
    Live {
        named: &'a mut Named,
        remains: &'a mut Remains,
    },
    /// In a transaction's own.
    Draft(&'a mut Growth),
}

/// A tree to change.
pub(super) struct Ground<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) domains: &'a mut Domains,
    pub(super) books: Books<'a>,
    /// The generation that the change makes.
    pub(super) now: u64,
}

impl Ground<'_> {
    fn own(&mut self, owner: DomId, more: Owned) {
        match &mut self.books {
            Books::Live { .. } => self.domains.own(owner, more),
            Books::Draft(growth) => growth.add(owner, more),
        }
    }

    /// A name is added to (or taken from) the list of a node's children.
    fn list(&mut self, parent: &str, bytes: isize) {
        if let Some(parent) = self.tree.get_str(parent) {
            let owner = parent.permissions().owner();
            self.own(owner, Owned::bytes(bytes));
        }
    }

    /// Adds a node with all below it where there is none. Its parent is there.
    pub(super) fn insert(&mut self, path: &Path, top: Arc<Node>) {
        let Some(parent) = path.parent() else { return };
        let name = path.as_str().rsplit('/').next().unwrap_or("");
        self.list(parent, (name.len() + 1).cast_signed());
        tree::walk(path.as_str(), &top, &mut |path, node| {
            let owner = node.permissions().owner();
            self.own(owner, Owned::node(path.len(), node));
            true
        });
        self.tree.insert(path, top, self.now);
        let Books::Live { named, .. } = &mut self.books else {
            return;
        };
        // It is in the tree by now: what is noted of it is true.
        let above = self.tree.get_str(parent).map(|node| node.permissions());
        let Some(top) = self.tree.get(path) else {
            return;
        };
        named.note(path, top.permissions(), above, self.tree);
        tree::walk(path.as_str(), top, &mut |path, node| {
            let above = node.permissions();
            for (name, child) in node.children() {
                if !child.permissions().is(above)
                    && let Ok(path) = Path::new(&format!("{path}/{name}"))
                {
                    named.note(&path, child.permissions(), Some(above), self.tree);
                }
            }
            true
        });
    }

    /// Removes a node with all below it.
    pub(super) fn remove(&mut self, path: &Path) -> Option<Arc<Node>> {
        let gone = self.tree.remove(path, self.now)?;
        let len = path.as_str().len();
        let (parent, name) = path.as_str().rsplit_once('/').unwrap_or_default();
        self.list(parent, -(name.len() + 1).cast_signed());
        match &mut self.books {
            Books::Live { remains, .. } => remains.bury(gone.clone(), len, self.now),
            Books::Draft(growth) => remains::count(&gone, len, growth),
        }
        Some(gone)
    }

    pub(super) fn set_value(&mut self, path: &Path, value: &[u8]) {
        let now = self.now;
        let changed = self.tree.change(path, |node| {
            let before = node.size().cast_signed();
            node.set_value(value, now);
            let more = node.size().cast_signed() - before;
            (node.permissions().owner(), Owned::bytes(more))
        });
        if let Some((owner, more)) = changed {
            self.own(owner, more);
        }
    }

    pub(super) fn set_permissions(&mut self, path: &Path, permissions: Permissions) {
        let (now, len) = (self.now, path.as_str().len());
        let changed = self.tree.change(path, |node| {
            let before = (node.permissions().clone(), Owned::node(len, node));
            node.set_permissions(permissions.clone(), now);
            (before, Owned::node(len, node))
        });
        let Some(((before, was), is)) = changed else {
            return;
        };
        self.own(before.owner(), was.less());
        self.own(permissions.owner(), is);
        if let Books::Live { named, .. } = &mut self.books {
            let above = path.parent().and_then(|parent| self.tree.get_str(parent));
            let above = above.map(|node| node.permissions());
            named.note(path, &permissions, above, self.tree);
            named.note_below(path, &before, &permissions, self.tree);
        }
    }

    /// Gives a node the value and the permissions of another.
    pub(super) fn set_content(&mut self, path: &Path, from: &Node) {
        self.set_value(path, from.value());
        let here = self.tree.get(path).map(|node| node.permissions());
        if here.is_some_and(|here| !here.is(from.permissions())) {
            self.set_permissions(path, from.permissions().clone());
        }
    }
}
