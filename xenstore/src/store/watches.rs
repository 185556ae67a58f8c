//! Who wants to hear of what.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::ops::Bound;

use parapet_xen_sys::Errno;

use super::ClientId;
use super::node::Node;
use super::path::Path;

/// One watch of one client.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    pub(super) client: ClientId,
    pub(super) token: Arc<[u8]>,
    /// How many levels below its path it looks; none for all.
    pub(super) depth: Option<u32>,
    /// How many bytes of a path its owner does not want to see, having given a relative one.
    skip: usize,
    /// Orders a client's watches.
    pub(super) number: u64,
}

impl Watch {
    /// Its path as its owner gave it.
    pub(super) fn as_given<'a>(&self, path: &'a Path) -> &'a str {
        path.as_str().get(self.skip..).unwrap_or("")
    }
}

/// Something that a client is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whom to tell.
    pub client: ClientId,
    path: Path,
    skip: usize,
    /// The token of its watch.
    pub token: Arc<[u8]>,
}

impl Event {
    pub(super) fn new(watch: &Watch, path: Path) -> Self {
        Event {
            client: watch.client,
            path,
            skip: watch.skip,
            token: watch.token.clone(),
        }
    }

    /// The path that changed, relative if that of the watch was.
    pub fn path(&self) -> &str {
        self.path.as_str().get(self.skip..).unwrap_or("")
    }
}

/// How an event meets the watches on its path and above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A node changed: all who watch it, or a node above, as deep as they look.
    Below,
    /// `@releaseDomain` itself: those who did not ask for the domain's id.
    Plain,
    /// `@releaseDomain/5`: those who watch just that, or asked for the id.
    WithDomain,
}

/// All watches, by the path that they are on: an event looks at its own path and those above it,
/// however many other watches there are.
#[derive(Debug, Default)]
pub(super) struct Watches {
    by_path: BTreeMap<Path, Vec<Watch>>,
    marks: Marks,
    next: u64,
}

/// Where to look for watches: an event asks for its path and each above it, and mostly there is
/// none. What is not marked here is not in the map; what is marked may be. It is as fast for a
/// thousand watches as for ten, however much their paths have in common.
#[derive(Debug, Default)]
struct Marks(Vec<u32>);

impl Marks {
    /// A path's place is found by its length and its end.
    fn place(path: &str) -> usize {
        let end = path.bytes().rev().take(8);
        let end = end.fold(0u64, |end, byte| end << 8 | u64::from(byte));
        let mixed = (end ^ path.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (u64::BITS - Marks::BITS)) as usize
    }

    const BITS: u32 = 13;

    fn add(&mut self, path: &str) {
        self.0.resize(1 << Marks::BITS, 0);
        if let Some(mark) = self.0.get_mut(Marks::place(path)) {
            *mark += 1;
        }
    }

    fn remove(&mut self, path: &str) {
        if let Some(mark) = self.0.get_mut(Marks::place(path)) {
            *mark -= 1;
        }
    }

    fn has(&self, path: &str) -> bool {
        self.0.get(Marks::place(path)).is_some_and(|&mark| mark > 0)
    }
}

impl Watches {
    /// # Errors
    /// `EEXIST` if the client has one with this path and token.
    pub(super) fn add(
        &mut self,
        client: ClientId,
        path: &Path,
        token: Arc<[u8]>,
        depth: Option<u32>,
        skip: usize,
    ) -> Result<&Watch, Errno> {
        let number = self.next;
        let here = self.by_path.entry(path.clone()).or_default();
        let same = |watch: &Watch| watch.client == client && watch.token == token;
        if here.iter().any(same) {
            return Err(Errno::EEXIST);
        }
        self.next += 1;
        if here.is_empty() {
            self.marks.add(path.as_str());
        }
        here.push(Watch {
            client,
            token,
            depth,
            skip,
            number,
        });
        here.last().ok_or(Errno::EIO)
    }

    pub(super) fn find(&self, client: ClientId, path: &Path, token: &[u8]) -> Option<&Watch> {
        let here = self.by_path.get(path)?;
        here.iter()
            .find(|watch| watch.client == client && *watch.token == *token)
    }

    /// Whether there was one.
    pub(super) fn remove(&mut self, client: ClientId, path: &Path, token: &[u8]) -> bool {
        let Some(here) = self.by_path.get_mut(path) else {
            return false;
        };
        let before = here.len();
        here.retain(|watch| watch.client != client || *watch.token != *token);
        let removed = here.len() < before;
        if here.is_empty() {
            self.by_path.remove(path);
            self.marks.remove(path.as_str());
        }
        removed
    }

    /// The watches that an event on `path` meets, in the order of their making.
    pub(super) fn met_by(&self, path: &Path, reach: Reach) -> Vec<Watch> {
        let mut met: Vec<Watch> = Vec::new();
        if self.by_path.is_empty() {
            return met;
        }
        for above in path.prefixes().filter(|above| self.marks.has(above)) {
            let Some(here) = self.by_path.get(above) else {
                continue;
            };
            let levels = path.levels_below(above).unwrap_or(0);
            let deep = |watch: &Watch| {
                watch
                    .depth
                    .is_none_or(|depth| levels <= usize::try_from(depth).unwrap_or(usize::MAX))
            };
            let wanted = |watch: &&Watch| match reach {
                Reach::Below => deep(watch),
                Reach::Plain => levels == 0 && watch.depth.is_none(),
                Reach::WithDomain => levels == 0 || watch.depth.is_some() && deep(watch),
            };
            met.extend(here.iter().filter(wanted).cloned());
        }
        met.sort_unstable_by_key(|watch| watch.number);
        met
    }

    /// The watches on nodes strictly below `path` that were part of what was removed there, with
    /// the node and its parent: children before parents, siblings as they were created.
    pub(super) fn inside<'a>(
        &'a self,
        path: &'a Path,
        gone: &'a Node,
    ) -> Vec<(&'a Path, &'a [Watch], &'a Node, &'a Node)> {
        let below = alloc::format!("{path}/");
        let mut met: Vec<_> = self
            .by_path
            .range::<str, _>((Bound::Included(&*below), Bound::Unbounded))
            .take_while(|(path, _)| path.as_str().starts_with(&below))
            .filter_map(|(path, watches)| {
                let rest = path.as_str().strip_prefix(&below)?;
                let mut births = Vec::new();
                let (mut parent, mut node) = (gone, gone);
                for name in rest.split('/') {
                    (parent, node) = (node, node.child(name)?);
                    births.push(node.born());
                }
                Some((births, (path, &**watches, node, parent)))
            })
            .collect();
        met.sort_by(|(a, _), (b, _)| children_first(a, b));
        met.into_iter().map(|(_, found)| found).collect()
    }
}

/// Orders nodes, each given by the births of the nodes that lead to it, as a walk that visits a
/// node after all its children.
fn children_first(a: &[u64], b: &[u64]) -> Ordering {
    let differing = a
        .iter()
        .zip(b)
        .map(|(a, b)| a.cmp(b))
        .find(|order| order.is_ne());
    differing.unwrap_or_else(|| b.len().cmp(&a.len()))
}
