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

use super::node::Node;

/// Children in a chunk at most.
const FULL: usize = 32;

/// The list: no chunk is empty.
#[derive(Clone, Default)]
pub(super) struct Children(Vec<Arc<Vec<Arc<Node>>>>);

impl Children {
    /// The chunk where a child of that name is, if it is anywhere.
    fn chunk(&self, name: &[u8]) -> usize {
        let before = |chunk: &Arc<Vec<Arc<Node>>>| {
            let first = chunk.first();
            first.is_some_and(|first| first.name_bytes() <= name)
        };
        self.0.partition_point(before).saturating_sub(1)
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&Arc<Node>> {
        let chunk = self.0.get(self.chunk(name))?;
        chunk.get(find(chunk, name).ok()?)
    }

    /// For a change: what clones share is copied first.
    pub(super) fn get_mut(&mut self, name: &[u8]) -> Option<&mut Arc<Node>> {
        let at = self.chunk(name);
        let chunk = Arc::make_mut(self.0.get_mut(at)?);
        let place = find(chunk, name).ok()?;
        chunk.get_mut(place)
    }

    /// Adds a child, or puts it in the place of the one with its name.
    pub(super) fn insert(&mut self, child: Arc<Node>) {
        let at = self.chunk(child.name_bytes());
        let Some(chunk) = self.0.get_mut(at) else {
            self.0.push(Arc::new(Vec::from([child])));
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match find(chunk, child.name_bytes()) {
            Ok(place) => {
                if let Some(there) = chunk.get_mut(place) {
                    *there = child;
                }
            }
            Err(place) => chunk.insert(place, child),
        }
        if chunk.len() > FULL {
            let rest = chunk.split_off(FULL / 2);
            chunk.shrink_to_fit();
            self.0.insert(at + 1, Arc::new(rest));
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Arc<Node>> {
        let at = self.chunk(name);
        let shared = self.0.get_mut(at)?;
        let place = find(shared, name).ok()?;
        let chunk = Arc::make_mut(shared);
        let removed = chunk.remove(place);
        if chunk.is_empty() {
            self.0.remove(at);
        } else if chunk.len() < FULL / 4 {
            self.merge(at);
            self.merge(at.saturating_sub(1));
        }
        Some(removed)
    }

    /// Makes one chunk of this and the next, if both are small.
    fn merge(&mut self, at: usize) {
        let pair = self.0.get(at).zip(self.0.get(at + 1));
        if pair.is_none_or(|(this, next)| this.len() + next.len() > FULL / 2) {
            return;
        }
        let next = self.0.remove(at + 1);
        if let Some(chunk) = self.0.get_mut(at) {
            Arc::make_mut(chunk).extend(Arc::unwrap_or_clone(next));
        }
    }

    /// Takes out the last one.
    pub(super) fn pop(&mut self) -> Option<Arc<Node>> {
        let chunk = Arc::make_mut(self.0.last_mut()?);
        let child = chunk.pop();
        if chunk.is_empty() {
            self.0.pop();
        }
        child
    }

    /// By name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.0.iter().flat_map(|chunk| chunk.iter())
    }

    /// Those that no clone has, by way of their chunk.
    pub(super) fn into_unshared(self) -> impl Iterator<Item = Arc<Node>> {
        self.0.into_iter().filter_map(Arc::into_inner).flatten()
    }
}

fn find(chunk: &[Arc<Node>], name: &[u8]) -> Result<usize, usize> {
    chunk.binary_search_by(|child| child.name_bytes().cmp(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
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
        Insert(u16),
        Remove(u16),
        Touch(u16),
        Snapshot,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            6 => (0u16..300).prop_map(Op::Insert),
            5 => (0u16..300).prop_map(Op::Remove),
            1 => (0u16..300).prop_map(Op::Touch),
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
                        children.insert(child(&name.to_string(), born));
                        model.insert(name.to_string(), born);
                    }
                    Op::Remove(name) => {
                        let removed = children.remove(name.to_string().as_bytes());
                        let removed = removed.map(|node| node.born());
                        prop_assert_eq!(removed, model.remove(&name.to_string()));
                    }
                    Op::Touch(name) => {
                        let there = children.get_mut(name.to_string().as_bytes());
                        let there = there.map(|there| *there = child(&name.to_string(), born));
                        let known = model.get_mut(&name.to_string());
                        prop_assert_eq!(there, known.map(|known| *known = born));
                    }
                    Op::Snapshot => (snapshot, then) = (children.clone(), model.clone()),
                }
            }
            for (name, born) in &model {
                prop_assert_eq!(children.get(name.as_bytes()).map(|node| node.born()), Some(*born));
            }
            prop_assert!(children.0.iter().all(|chunk| (1..=FULL).contains(&chunk.len())));
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
