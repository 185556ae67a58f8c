//! Nodes, immutable once shared.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use rpds::RedBlackTreeMapSync;

use super::permissions::Permissions;

/// A node: a value, permissions and children.
///
/// A node that a snapshot shares is never changed: the live tree gets a copy of it, and of the
/// nodes above it. So two trees hold the *same* node exactly if nothing at or below it differs.
#[derive(Clone)]
pub struct Node {
    value: Box<[u8]>,
    permissions: Permissions,
    children: Children,
    /// Orders siblings: they are listed as they were created.
    born: u64,
    /// When value or permissions last changed.
    generation: u64,
    /// There are no more levels of nodes below; there may be fewer.
    height: u16,
}

impl Node {
    pub(super) fn new(value: &[u8], permissions: Permissions, now: u64) -> Self {
        Node {
            value: value.into(),
            permissions,
            children: Children::default(),
            born: now,
            generation: now,
            height: 0,
        }
    }

    /// Any bytes, usually text without a final zero.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Who may do what.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// The names of the children, in the order of their creation.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut children: Vec<_> = self.children.map.iter().collect();
        children.sort_by_key(|(_, node)| node.born);
        children.into_iter().map(|(name, _)| &**name)
    }

    /// A number that is another after every change to the node or to the list of its children.
    pub fn generation(&self) -> u64 {
        self.generation.max(self.children.generation)
    }

    /// The same for the value and the permissions alone.
    pub(super) fn content_generation(&self) -> u64 {
        self.generation
    }

    /// The same for the list of children alone.
    pub(super) fn list_generation(&self) -> u64 {
        self.children.generation
    }

    pub(super) fn born(&self) -> u64 {
        self.born
    }

    pub(super) fn children(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Node>)> {
        self.children.map.iter()
    }

    pub(super) fn child(&self, name: &str) -> Option<&Arc<Node>> {
        self.children.map.get(name)
    }

    pub(super) fn child_mut(&mut self, name: &str) -> Option<&mut Arc<Node>> {
        self.children.map.get_mut(name)
    }

    /// Bytes of the list of children, each with a final zero.
    pub fn list_len(&self) -> usize {
        self.children.bytes
    }

    pub(super) fn add(&mut self, name: &str, node: Arc<Node>, now: u64) {
        self.children.bytes += name.len() + 1;
        self.children.generation = now;
        self.children.map.insert_mut(Arc::from(name), node);
    }

    pub(super) fn remove(&mut self, name: &str, now: u64) -> Option<Arc<Node>> {
        let node = self.children.map.get(name).cloned()?;
        self.children.map.remove_mut(name);
        self.children.bytes -= name.len() + 1;
        self.children.generation = now;
        Some(node)
    }

    /// Takes out some child, to take the node apart: the list of children stays as it was.
    pub(super) fn pop_child(&mut self) -> Option<(Arc<str>, Arc<Node>)> {
        let (name, node) = self.children.map.first()?;
        let child = (name.clone(), node.clone());
        self.children.map.remove_mut(&child.0);
        Some(child)
    }

    /// Notes that there are to be that many levels of nodes below.
    pub(super) fn grow(&mut self, levels: usize) {
        let levels = u16::try_from(levels).unwrap_or(u16::MAX);
        self.height = self.height.max(levels);
    }

    pub(super) fn set_value(&mut self, value: &[u8], now: u64) {
        self.value = value.into();
        self.generation = now;
    }

    pub(super) fn set_permissions(&mut self, permissions: Permissions, now: u64) {
        self.permissions = permissions;
        self.generation = now;
    }

    /// The same node without its children.
    pub(super) fn childless(&self) -> Node {
        Node {
            value: self.value.clone(),
            permissions: self.permissions.clone(),
            children: Children {
                generation: self.children.generation,
                ..Children::default()
            },
            born: self.born,
            generation: self.generation,
            height: 0,
        }
    }

    /// The bytes that the quota on a node's size counts, as C xenstored lays a node out.
    pub(super) fn size(&self) -> usize {
        size(
            self.permissions.len(),
            self.value.len(),
            self.children.bytes,
        )
    }

    /// [`Node::size`] if it had another value.
    pub(super) fn size_with_value(&self, value: usize) -> usize {
        size(self.permissions.len(), value, self.children.bytes)
    }

    /// [`Node::size`] if it had as many permission entries.
    pub(super) fn size_with_permissions(&self, permissions: usize) -> usize {
        size(permissions, self.value.len(), self.children.bytes)
    }
}

/// The bytes of a node: header, permission entries, value, list of children.
pub(super) fn size(permissions: usize, value: usize, list: usize) -> usize {
    16 + 8 * permissions + value + list
}

/// A node's children by name.
#[derive(Clone, Default)]
struct Children {
    map: RedBlackTreeMapSync<Arc<str>, Arc<Node>>,
    bytes: usize,
    generation: u64,
}

/// Trees of that many levels are dropped by recursion.
const SHALLOW: u16 = 16;

/// A guest chooses how deep a tree is: so a deep one is taken apart with a list, not by recursion.
/// The list costs time for every child, shared or not, so the usual shallow ones do without.
impl Drop for Node {
    fn drop(&mut self) {
        let mut orphans = Vec::new();
        take_children(self, &mut orphans);
        while let Some(orphan) = orphans.pop() {
            if let Some(mut node) = Arc::into_inner(orphan) {
                take_children(&mut node, &mut orphans);
            }
        }
    }
}

fn take_children(node: &mut Node, to: &mut Vec<Arc<Node>>) {
    if node.height > SHALLOW {
        let map = core::mem::replace(&mut node.children.map, RedBlackTreeMapSync::new_sync());
        to.extend(map.values().cloned());
    }
}
