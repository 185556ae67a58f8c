//! What was removed, and is still to be taken apart and freed.
//!
//! Removing a node takes one step, but counting what each domain owned below it, and giving the
//! memory back, takes one for every node. So that a hundred thousand of them keep nobody waiting,
//! this is done in slices: some at once, which is all there is of what a guest can remove, and the
//! others between the requests that follow.
//!
//! The same goes for the trees of a transaction that is over, if they may hold much that nobody
//! else does.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::domains::Domains;
use super::ground::{Growth, Owned};
use super::node::Node;
use super::tree::Tree;

/// Nodes that are taken apart in one step.
pub(super) const SLICE: usize = 2048;

/// A node to take apart, with all below it.
struct Part {
    node: Arc<Node>,
    /// If what was its owner's is to be corrected.
    counted: Option<Counted>,
}

#[derive(Clone, Copy)]
struct Counted {
    /// The bytes of its path.
    path: usize,
    /// The generation in which it was removed.
    when: u64,
    /// Its owner knows that it is gone; who owns what is below it does not.
    done: bool,
}

impl Counted {
    fn below(self, name: &str) -> Self {
        let path = self.path + 1 + name.len();
        let done = false;
        Counted { path, done, ..self }
    }
}

#[derive(Default)]
pub(super) struct Remains {
    /// The last one is next.
    parts: Vec<Part>,
    /// Until when snapshots may hold what was too much for one step.
    much: u64,
}

impl Remains {
    /// Takes in what was removed from the live tree in generation `when`.
    pub(super) fn bury(&mut self, node: Arc<Node>, path: usize, when: u64) {
        let done = false;
        let counted = Some(Counted { path, when, done });
        self.parts.push(Part { node, counted });
    }

    /// Takes in the trees of a transaction that began in generation `began`, or lets them go at
    /// once if they can hold little of their own.
    pub(super) fn retire(&mut self, trees: [Tree; 2], began: u64, now: u64) {
        if began > self.much && now.saturating_sub(began) <= SLICE as u64 {
            return;
        }
        let tops = trees.into_iter().flat_map(Tree::into_tops);
        let counted = None;
        self.parts.extend(tops.map(|node| Part { node, counted }));
    }

    /// Takes apart some of it in generation `now`, and corrects what its owners use. Whether there
    /// is more.
    pub(super) fn step(&mut self, domains: &mut Domains, now: u64) -> bool {
        let mut left = SLICE;
        while left > 0 {
            let Some(mut part) = self.parts.pop() else {
                return false;
            };
            left -= 1;
            if let Some(counted) = part.counted.as_mut().filter(|it| !it.done) {
                let owned = Owned::node(counted.path, &part.node);
                let owner = part.node.permissions().owner();
                domains.own_since(owner, counted.when, owned.less());
                counted.done = true;
            }
            let counted = part.counted;
            if let Some(node) = Arc::get_mut(&mut part.node) {
                if let Some(node) = node.pop_child() {
                    self.parts.push(part);
                    let counted = counted.map(|it| it.below(node.name()));
                    self.parts.push(Part { node, counted });
                }
            } else if let Some(counted) = counted {
                // Another tree has it, and all below: there is nothing to free.
                let before = self.parts.len();
                self.parts
                    .extend(part.node.children().map(|(name, node)| Part {
                        node: node.clone(),
                        counted: Some(counted.below(name)),
                    }));
                left = left.saturating_sub(self.parts.len() - before);
            }
        }
        if !self.parts.is_empty() {
            self.much = now;
        }
        !self.parts.is_empty()
    }
}

/// Counts as gone what was removed in a transaction, as far as a guest can have removed it.
pub(super) fn count(gone: &Arc<Node>, path: usize, growth: &mut Growth) {
    let mut todo = Vec::from([(gone, path)]);
    for _ in 0..SLICE {
        let Some((node, path)) = todo.pop() else {
            return;
        };
        let owned = Owned::node(path, node);
        growth.add(node.permissions().owner(), owned.less());
        let children = node.children();
        todo.extend(children.map(|(name, child)| (child, path + 1 + name.len())));
    }
}
