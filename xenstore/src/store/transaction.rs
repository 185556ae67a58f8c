//! What a request or a transaction saw and changed, and whether it still holds.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use parapet_hypervisor::seam::Instant;
use parapet_xen_sys::Errno;

use super::domains::Domains;
use super::ground::{Ground, Growth};
use super::node::Node;
use super::path::Path;
use super::permissions::Permissions;
use super::remains::Remains;
use super::tree::{Places, Tree};

/// How a transaction depends on a node.
#[derive(Debug, Clone, Copy, Default)]
struct Touch {
    /// On its value, its permissions, or its absence.
    content: bool,
    /// On the list of its children.
    list: bool,
    /// On everything below it, because it removed all that.
    subtree: bool,
    /// It changed, created or removed the node.
    modified: bool,
    /// It is among the changes.
    told: bool,
}

/// The bytes that a touched node costs besides those of its path, as those of a node's header.
const ENTRY: usize = 16;

/// Something that watchers may want to know of.
pub(super) struct Change {
    pub(super) path: Path,
    /// The permissions that the node had before, if it was there.
    pub(super) before: Option<Permissions>,
    /// What was removed: the node, with all that was below it.
    pub(super) gone: Option<Arc<Node>>,
}

/// The trace that a request, or all requests of a transaction, leave.
#[derive(Default)]
pub(super) struct Log {
    /// Kept in a transaction only.
    touched: Option<BTreeMap<Path, Touch>>,
    /// In order; at most one for a node.
    changes: Vec<Change>,
    /// What is kept of it, in bytes.
    bytes: usize,
    /// A quota was exceeded in the middle of a request: the transaction can only be dropped.
    pub(super) failed: bool,
}

impl Log {
    /// What can only be dropped needs no trace, or a quota would not end its growth.
    fn touch(&mut self, path: &Path, note: impl FnOnce(&mut Touch)) {
        if let Some(touched) = self.touched.as_mut().filter(|_| !self.failed) {
            let before = touched.len();
            note(touched.entry(path.clone()).or_default());
            if touched.len() > before {
                self.bytes += path.as_str().len() + ENTRY;
            }
        }
    }

    pub(super) fn saw(&mut self, path: &Path) {
        self.touch(path, |touch| touch.content = true);
    }

    pub(super) fn saw_list(&mut self, path: &Path) {
        self.touch(path, |touch| touch.list = true);
    }

    /// A node was changed or created; not by itself news for watchers.
    pub(super) fn modified(&mut self, path: &Path) {
        self.touch(path, |touch| touch.modified = true);
    }

    /// A node was removed with all below it.
    pub(super) fn removed(&mut self, path: &Path) {
        self.touch(path, |touch| {
            touch.modified = true;
            touch.subtree = true;
        });
    }

    /// In a transaction, news of a node counts once, however often it is changed; and what the
    /// node was before is found out at the end, so that nothing removed is kept until then.
    pub(super) fn news(&mut self, mut change: Change) {
        if self.touched.is_some() {
            let mut first = false;
            self.touch(&change.path, |touch| {
                first = !mem::replace(&mut touch.told, true);
            });
            if !first {
                return;
            }
            (change.before, change.gone) = (None, None);
        }
        self.changes.push(change);
    }

    /// Whether there is a trace: a transaction's.
    pub(super) fn is_kept(&self) -> bool {
        self.touched.is_some()
    }

    /// How many nodes were touched.
    pub(super) fn len(&self) -> usize {
        self.touched.as_ref().map_or(0, BTreeMap::len)
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// A snapshot, a tree of its own, and the trace of what was done in it.
pub(super) struct Transaction {
    base: Tree,
    pub(super) tree: Tree,
    pub(super) log: Log,
    pub(super) growth: Growth,
    /// The generation in which it began.
    began: u64,
    /// The time at which it began.
    pub(super) since: Instant,
    /// The bytes that were counted for who began it.
    pub(super) counted: usize,
}

impl Transaction {
    pub(super) fn new(live: &Tree, began: u64, since: Instant) -> Self {
        Transaction {
            began,
            since,
            growth: Growth::default(),
            counted: 0,
            base: live.clone(),
            tree: live.clone(),
            log: Log {
                touched: Some(BTreeMap::new()),
                ..Log::default()
            },
        }
    }

    /// The bytes that are kept for it: of what it touched, and of what it made.
    pub(super) fn bytes(&self) -> usize {
        self.log.bytes + self.growth.bytes()
    }

    /// Ends it in generation `now`, when all is done that was to be done with it.
    pub(super) fn retire(self, remains: &mut Remains, now: u64) {
        remains.retire([self.base, self.tree], self.began, now);
    }

    /// Whether nothing that it depends on has changed in `live` since it began.
    ///
    /// It is asked node by node, and a node's content and its list of children apart: so two
    /// transactions that add children to one directory do not disturb each other.
    fn holds(&self, live: &Tree, domains: &Domains) -> bool {
        let touched = self.log.touched.iter().flatten();
        let mut places = Places::of(&self.tree);
        let mut owner_lives = |path| {
            places.get(path).is_none_or(|node| {
                let permissions = node.permissions();
                domains.is_since(permissions.owner(), permissions.since())
            })
        };
        // The owner that it gave a node is to be the domain that was meant.
        self.disturbances(live).next().is_none()
            && touched
                .filter(|(_, touch)| touch.modified)
                .all(|(path, _)| owner_lives(path))
    }

    /// The generations of the changes in `live` that it does not agree with.
    pub(super) fn disturbances<'a>(&'a self, live: &'a Tree) -> impl Iterator<Item = u64> + 'a {
        let touched = self.log.touched.iter().flatten();
        let (mut before, mut now) = (Places::of(&self.base), Places::of(live));
        touched.filter_map(
            move |(path, touch)| match (before.get(path), now.get(path)) {
                (None, None) => None,
                (None, Some(live)) => Some(live.content_generation()),
                // Whoever removed it changed the list of which it, or a node above it, was part.
                (Some(_), None) => Some(live.nearest(path).node.list_generation()),
                (Some(base), Some(live)) if Arc::ptr_eq(base, live) => None,
                (Some(base), Some(live)) if touch.subtree => Some(difference(base, live)),
                (Some(base), Some(live)) => {
                    let content = live.content_generation();
                    let list = live.list_generation();
                    if touch.content && base.content_generation() != content {
                        Some(content)
                    } else {
                        (touch.list && base.list_generation() != list).then_some(list)
                    }
                }
            },
        )
    }

    /// Makes its changes in the live tree: what there is to tell of them.
    ///
    /// # Errors
    /// `EAGAIN`, with nothing changed, if what it depends on has changed meanwhile.
    pub(super) fn commit(&mut self, mut live: Ground<'_>) -> Result<Vec<Change>, Errno> {
        if !self.holds(live.tree, live.domains) {
            return Err(Errno::EAGAIN);
        }
        // In the order of paths, so parents before children.
        let touched = self.log.touched.iter().flatten();
        let mut places = Places::of(&self.tree);
        // It and all below it is in the live tree as it is here.
        let mut same: Option<&Path> = None;
        for (path, _) in touched.filter(|(_, touch)| touch.modified) {
            if same.is_some_and(|above| path.levels_below(above.as_str()).is_some()) {
                continue;
            }
            let Some(node) = places.get(path) else {
                live.remove(path);
                continue;
            };
            let there = live.tree.get(path);
            if there.is_some_and(|there| Arc::ptr_eq(there, node)) {
                same = Some(path);
            } else if there.is_some_and(|there| there.born() == node.born()) {
                live.set_content(path, node);
            } else {
                // Born in this transaction, and so is all below it.
                live.remove(path);
                live.insert(path, node.clone());
                same = Some(path);
            }
        }
        Ok(self.take_changes())
    }

    /// The changes, each set against the tree that the transaction began with.
    fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = mem::take(&mut self.log.changes);
        let touched = self.log.touched.take().unwrap_or_default();
        for change in &mut changes {
            let node = self.base.get(&change.path);
            let removed = touched.get(&change.path).is_some_and(|touch| touch.subtree);
            change.before = node.map(|node| node.permissions().clone());
            change.gone = node.filter(|_| removed).cloned();
        }
        changes
    }
}

/// The generation of a change by which `live` differs from `base`, at or below it.
fn difference(base: &Arc<Node>, live: &Arc<Node>) -> u64 {
    let (mut base, mut live) = (base, live);
    loop {
        if base.content_generation() != live.content_generation() {
            return live.content_generation();
        }
        let below = live.children().find_map(|(name, live)| {
            let base = base.child(name)?;
            (!Arc::ptr_eq(base, live)).then_some((base, live))
        });
        match below {
            Some(pair) if base.list_generation() == live.list_generation() => (base, live) = pair,
            _ => return live.list_generation(),
        }
    }
}

#[cfg(test)]
mod tests {
    use parapet_xen_sys::DomId;

    use super::*;
    use crate::TransactionId;
    use crate::store::{Caller, ClientId, Limit, Quota, Quotas, Store};

    const GUEST: ClientId = ClientId(7);

    /// A guest's store with an open transaction.
    fn open(quotas: Quotas) -> (Store, TransactionId) {
        let mut store = Store::new(quotas);
        let domid = DomId(7);
        store.know(domid);
        store.attach(ClientId(0), Caller::PRIVILEGED);
        store.attach(GUEST, Caller::domain(domid));
        let home = Path::of_domain(domid);
        let live = TransactionId::NONE;
        store.mkdir(ClientId(0), live, &home).unwrap();
        let entries = [crate::Permission::none(domid)];
        store
            .set_permissions(ClientId(0), live, &home, &entries)
            .unwrap();
        let tx = store.begin(GUEST).unwrap();
        (store, tx)
    }

    fn log(store: &Store, tx: TransactionId) -> &Log {
        &store.clients[&GUEST].transactions[&tx].log
    }

    #[test]
    fn a_node_changed_again_and_again_in_a_transaction_is_one_change() {
        let (mut store, tx) = open(Quotas::default());
        let path = Path::new("/local/domain/7/x").unwrap();
        for _ in 0..1000 {
            store.write(GUEST, tx, &path, b"1").unwrap();
            store.write(GUEST, tx, &path, b"2").unwrap();
            store.remove(GUEST, tx, &path).unwrap();
        }
        let [change] = &log(&store, tx).changes[..] else {
            panic!("{} changes", log(&store, tx).changes.len())
        };
        assert!(change.gone.is_none(), "nothing removed is kept");
    }

    #[test]
    fn a_transaction_that_exceeded_its_quota_grows_no_more() {
        let mut quotas = Quotas::default();
        quotas[Limit::hard(Quota::TransactionNodes)] = 4;
        let (mut store, tx) = open(quotas);
        let read = |store: &mut Store, n: u32| {
            let path = alloc::format!("/local/domain/7/{n}");
            let _ = store.read(GUEST, tx, &Path::new(&path).unwrap());
            log(store, tx).len()
        };
        for n in 0..10 {
            read(&mut store, n);
        }
        let exceeded = log(&store, tx).len();
        assert!(log(&store, tx).failed && exceeded > 4);
        assert_eq!(read(&mut store, 10), exceeded);
    }
}
