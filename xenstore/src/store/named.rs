//! Where each guest is named in the live tree, so that its end need not look at every node.
//!
//! ```text
//!   /local/domain/0/backend/vbd ── 5 ── 51712 ─┬─ frontend      n0 r5, from 5 down:
//!                                              └─ state         noted once, at .../vbd/5
//! ```
//!
//! Only where a name begins is noted: at a node that names a domain, as owner or in another entry,
//! and whose parent does not. Whoever follows the children that name it from there on finds the
//! others. What is noted may have changed since, so it is looked at again before it is used; and
//! once there is twice as much as was true when it was last looked through, it is looked through:
//! all of it, since a guest may name domains that never were.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use parapet_xen_sys::DomId;

use super::node::Node;
use super::path::Path;
use super::permissions::Permissions;
use super::tree::Tree;

/// How many places are not looked through.
const FEW: usize = 256;

/// The places, by domain.
#[derive(Debug, Default)]
pub(super) struct Named {
    places: BTreeMap<DomId, BTreeSet<Path>>,
    /// How many there are.
    len: usize,
    /// So many were true when they were last looked through.
    true_then: usize,
}

impl Named {
    /// A node has these permissions now, and the one above it those.
    pub(super) fn note(
        &mut self,
        path: &Path,
        here: &Permissions,
        above: Option<&Permissions>,
        tree: &Tree,
    ) {
        if above.is_some_and(|above| above.is(here)) {
            return;
        }
        for domid in here.names() {
            if above.is_none_or(|above| !above.name(domid)) {
                self.add(domid, path.clone(), tree);
            }
        }
    }

    /// A node's permissions are others than before: who is not named there any more may be named
    /// by its children.
    pub(super) fn note_below(
        &mut self,
        path: &Path,
        before: &Permissions,
        after: &Permissions,
        tree: &Tree,
    ) {
        let Some(node) = tree.get(path) else { return };
        for domid in before.names().filter(|&domid| !after.name(domid)) {
            for (name, child) in node.children() {
                if child.permissions().name(domid)
                    && let Ok(path) = path.join(name)
                {
                    self.add(domid, path, tree);
                }
            }
        }
    }

    fn add(&mut self, domid: DomId, path: Path, tree: &Tree) {
        let new = self.places.entry(domid).or_default().insert(path);
        self.len += usize::from(new);
        if self.len > FEW.max(2 * self.true_then) {
            self.places.retain(|&domid, paths| {
                paths.retain(|path| {
                    let node = tree.get(path);
                    node.is_some_and(|node| node.permissions().name(domid))
                });
                !paths.is_empty()
            });
            self.len = self.places.values().map(BTreeSet::len).sum();
            self.true_then = self.len;
        }
    }

    /// Forgets a domain: the nodes that name it, and whether they are its own and go with it. What
    /// is below one that goes is left out.
    pub(super) fn take(&mut self, domid: DomId, tree: &Tree) -> BTreeMap<Path, bool> {
        let mut found = BTreeMap::new();
        let places = self.places.remove(&domid).unwrap_or_default();
        self.len -= places.len();
        let at = |path: Path| Some((path.clone(), tree.get(&path)?));
        let mut todo: Vec<(Path, &Arc<Node>)> = places.into_iter().filter_map(at).collect();
        while let Some((path, node)) = todo.pop() {
            let permissions = node.permissions();
            if !permissions.name(domid) || found.contains_key(&path) {
                continue;
            }
            // The root and the special names stay, whoever owns them.
            let stays = path.parent().is_none();
            let owns = permissions.owner() == domid && !stays;
            if !owns {
                let below = |(name, child): (_, _)| Some((path.join(name).ok()?, child));
                todo.extend(
                    node.children()
                        .filter(|(_, child)| child.permissions().name(domid))
                        .filter_map(|(name, child)| below((name, child))),
                );
            }
            found.insert(path, owns);
        }
        found
    }

    /// How many places are noted.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}
