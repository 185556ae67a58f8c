//! A node's children, found by name.
//!
//! ```text
//!   directory ─▶ [ chunk, chunk, chunk ]      sorted by name
//!                    │      └──▶ [ node, node, ... ]
//!                    └──▶ [ node, node, ... ]             at most FULL
//! ```
//!
//! Clones share the chunks: to change one child of a shared list costs a copy of its chunk and of
//! the list of chunks, not of all children. Most directories have one chunk. A child knows its
//! name, so a list is pointers alone: this is most of what makes a node small.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::node::Node;

/// Children in a chunk at most.
const FULL: usize = 32;

/// The list: no chunk is empty.
#[derive(Clone, Default)]
pub(super) struct Children(Vec<Chunk>);

#[derive(Clone)]
struct Chunk {
    /// Of its first child.
    start: Start,
    children: Arc<Vec<Child>>,
}

#[derive(Clone)]
struct Child {
    start: Start,
    node: Arc<Node>,
}

/// How a name begins: most differ here, and need not be fetched from their nodes to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Start(u64);

impl Start {
    const LEN: usize = 8;

    /// The first bytes, and zeros if there are fewer: no name has one.
    fn of(name: &[u8]) -> Self {
        let mut start = [0; Start::LEN];
        for (to, from) in start.iter_mut().zip(name) {
            *to = *from;
        }
        Start(u64::from_be_bytes(start))
    }
}

impl Child {
    fn new(node: Arc<Node>) -> Self {
        let start = Start::of(node.name_bytes());
        Child { start, node }
    }

    /// Where it is beside that `name`, which begins by `start`.
    fn cmp(&self, start: Start, name: &[u8]) -> Ordering {
        match self.start.cmp(&start) {
            Ordering::Equal if name.len() >= Start::LEN => self.node.name_bytes().cmp(name),
            order => order,
        }
    }
}

impl Chunk {
    fn new(children: Vec<Child>) -> Option<Self> {
        let start = children.first()?.start;
        let children = Arc::new(children);
        Some(Chunk { start, children })
    }

    /// Lets `change` change it; what clones share is copied first.
    fn change<R>(&mut self, change: impl FnOnce(&mut Vec<Child>) -> R) -> R {
        let children = Arc::make_mut(&mut self.children);
        let result = change(children);
        self.start = children.first().map_or(self.start, |first| first.start);
        result
    }
}

impl Children {
    /// The chunk where a child of that name is, if it is anywhere.
    fn chunk(&self, start: Start, name: &[u8]) -> usize {
        let after = self
            .0
            .partition_point(|chunk| match chunk.start.cmp(&start) {
                Ordering::Equal => {
                    let first = chunk.children.first();
                    first.is_some_and(|first| first.cmp(start, name).is_le())
                }
                order => order.is_lt(),
            });
        after.saturating_sub(1)
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&Arc<Node>> {
        let start = Start::of(name);
        let children = &self.0.get(self.chunk(start, name))?.children;
        let child = children.get(find(children, start, name).ok()?)?;
        Some(&child.node)
    }

    /// For a change: what clones share is copied first.
    pub(super) fn get_mut(&mut self, name: &[u8]) -> Option<&mut Arc<Node>> {
        let start = Start::of(name);
        let at = self.chunk(start, name);
        let children = &mut self.0.get_mut(at)?.children;
        let place = find(children, start, name).ok()?;
        let child = Arc::make_mut(children).get_mut(place)?;
        Some(&mut child.node)
    }

    /// Adds a child, or puts it in the place of the one with its name.
    pub(super) fn insert(&mut self, node: Arc<Node>) {
        let child = Child::new(node);
        let at = self.chunk(child.start, child.node.name_bytes());
        let Some(chunk) = self.0.get_mut(at) else {
            self.0.extend(Chunk::new(Vec::from([child])));
            return;
        };
        let rest = chunk.change(|children| {
            match find(children, child.start, child.node.name_bytes()) {
                Ok(place) => {
                    if let Some(there) = children.get_mut(place) {
                        *there = child;
                    }
                }
                Err(place) => children.insert(place, child),
            }
            (children.len() > FULL).then(|| {
                let rest = children.split_off(FULL / 2);
                children.shrink_to_fit();
                rest
            })
        });
        if let Some(rest) = rest.and_then(Chunk::new) {
            self.0.insert(at + 1, rest);
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Arc<Node>> {
        let start = Start::of(name);
        let at = self.chunk(start, name);
        let chunk = self.0.get_mut(at)?;
        let place = find(&chunk.children, start, name).ok()?;
        let removed = chunk.change(|children| children.remove(place));
        match chunk.children.len() {
            0 => {
                self.0.remove(at);
            }
            len if len < FULL / 4 => {
                self.merge(at);
                self.merge(at.saturating_sub(1));
            }
            _ => {}
        }
        Some(removed.node)
    }

    /// Makes one chunk of this and the next, if both are small.
    fn merge(&mut self, at: usize) {
        let pair = self.0.get(at).zip(self.0.get(at + 1));
        let len = |(this, next): (&Chunk, &Chunk)| this.children.len() + next.children.len();
        if pair.is_none_or(|pair| len(pair) > FULL / 2) {
            return;
        }
        let next = Arc::unwrap_or_clone(self.0.remove(at + 1).children);
        if let Some(chunk) = self.0.get_mut(at) {
            chunk.change(|children| children.extend(next));
        }
    }

    /// Takes out the last one.
    pub(super) fn pop(&mut self) -> Option<Arc<Node>> {
        let chunk = self.0.last_mut()?;
        let child = chunk.change(Vec::pop);
        if chunk.children.is_empty() {
            self.0.pop();
        }
        child.map(|child| child.node)
    }

    /// By name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        let chunks = self.0.iter().flat_map(|chunk| chunk.children.iter());
        chunks.map(|child| &child.node)
    }

    /// Those that no clone has, by way of their chunk.
    pub(super) fn into_unshared(self) -> impl Iterator<Item = Arc<Node>> {
        let chunks = self.0.into_iter();
        let children = chunks.filter_map(|chunk| Arc::into_inner(chunk.children));
        children.flatten().map(|child| child.node)
    }
}

fn find(children: &[Child], start: Start, name: &[u8]) -> Result<usize, usize> {
    children.binary_search_by(|child| child.cmp(start, name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::format;
    use std::string::{String, ToString};

    use parapet_xen_sys::DomId;
    use proptest::prelude::*;

    use super::super::permissions::Permissions;
    use super::*;

    fn child(name: &str, born: u64) -> Arc<Node> {
        let mut node = Node::new(&[], Permissions::private(DomId::ZERO, 0), born);
        node.rename(name);
        Arc::new(node)
    }

    fn content(children: &Children) -> BTreeMap<String, u64> {
        assert!(children.iter().is_sorted_by_key(|node| node.name()));
        let named = children
            .iter()
            .map(|node| (node.name().to_string(), node.born()));
        named.collect()
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(String),
        Remove(String),
        Touch(String),
        Snapshot,
    }

    /// Short ones, and long ones that begin alike.
    fn name(number: u16) -> String {
        match number % 3 {
            0 => format!("{number}"),
            1 => format!("device-model-{number}"),
            _ => format!("device-{number}"),
        }
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            6 => (0u16..300).prop_map(name).prop_map(Op::Insert),
            5 => (0u16..300).prop_map(name).prop_map(Op::Remove),
            1 => (0u16..300).prop_map(name).prop_map(Op::Touch),
            1 => Just(Op::Snapshot),
        ];
        proptest::collection::vec(op, 0..1500)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_list_is_a_map_and_its_clones_stay_as_they_were(ops in ops()) {
            let (mut children, mut model) = (Children::default(), BTreeMap::new());
            let (mut snapshot, mut then) = (children.clone(), model.clone());
            for (op, born) in ops.into_iter().zip(1..) {
                match op {
                    Op::Insert(name) => {
                        children.insert(child(&name, born));
                        model.insert(name, born);
                    }
                    Op::Remove(name) => {
                        let removed = children.remove(name.as_bytes());
                        let removed = removed.map(|node| node.born());
                        prop_assert_eq!(removed, model.remove(&name));
                    }
                    Op::Touch(name) => {
                        let there = children.get_mut(name.as_bytes());
                        let there = there.map(|there| *there = child(&name, born));
                        let known = model.get_mut(&name);
                        prop_assert_eq!(there, known.map(|known| *known = born));
                    }
                    Op::Snapshot => (snapshot, then) = (children.clone(), model.clone()),
                }
            }
            for (name, born) in &model {
                prop_assert_eq!(children.get(name.as_bytes()).map(|node| node.born()), Some(*born));
            }
            prop_assert!(children.0.iter().all(|chunk| (1..=FULL).contains(&chunk.children.len())));
            prop_assert_eq!(content(&children), model);
            prop_assert_eq!(content(&snapshot), then);
        }
    }

    #[test]
    fn a_list_that_was_long_is_not_many_chunks_of_few() {
        let mut children = Children::default();
        for name in 0..10_000 {
            children.insert(child(&name.to_string(), name));
        }
        assert!(children.0.len() < 10_000 / (FULL / 2));
        for name in (0..10_000).filter(|name| name % 100 != 0) {
            children.remove(name.to_string().as_bytes());
        }
        assert_eq!(children.iter().count(), 100);
        assert!(children.0.len() <= 100 / (FULL / 8));
    }
}
