//! Nodes, immutable once shared.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::children::Children;
use super::permissions::Permissions;

/// A node: a value, permissions and children.
///
/// A node that a snapshot shares is never changed: the live tree gets a copy of it, and of the
/// nodes above it. So two trees hold the *same* node exactly if nothing at or below it differs.
///
/// There may be a hundred thousand of them, most of them leaves, so a leaf is two small allocations:
/// this, and one for its name and value.
#[derive(Clone)]
pub struct Node {
    /// The name, then the value.
    text: Box<[u8]>,
    /// The bytes of the name.
    name: u16,
    permissions: Permissions,
    /// None if there never was one.
    family: Option<Box<Family>>,
    /// Orders siblings: they are listed as they were created.
    born: u64,
    /// When value or permissions last changed.
    generation: u64,
}

/// What a node with children has besides.
#[derive(Clone, Default)]
struct Family {
    children: Children,
    /// Bytes of their names, each with a final zero.
    bytes: usize,
    /// When one was last added or removed.
    generation: u64,
    /// There are no more levels of nodes below; there may be fewer.
    height: u16,
}

impl Node {
    /// A node without a name, which it gets from its parent.
    pub(super) fn new(value: &[u8], permissions: Permissions, now: u64) -> Self {
        Node {
            text: value.into(),
            name: 0,
            permissions,
            family: None,
            born: now,
            generation: now,
        }
    }

    /// The name by which its parent has it.
    pub(super) fn name(&self) -> &str {
        // Names are parts of paths, which are text.
        core::str::from_utf8(self.name_bytes()).unwrap_or("")
    }

    pub(super) fn name_bytes(&self) -> &[u8] {
        self.text.get(..self.name.into()).unwrap_or(&[])
    }

    pub(super) fn rename(&mut self, name: &str) {
        self.text = [name.as_bytes(), self.value()].concat().into();
        // A path, and so a name, has 3072 bytes at most.
        self.name = name.len() as u16;
    }

    /// Any bytes, usually text without a final zero.
    pub fn value(&self) -> &[u8] {
        self.text.get(self.name.into()..).unwrap_or(&[])
    }

    /// Who may do what.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// The names of the children, in the order of their creation.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut children: Vec<_> = self.children().collect();
        children.sort_by_key(|(_, node)| node.born);
        children.into_iter().map(|(name, _)| name)
    }

    /// A number that is another after every change to the node or to the list of its children.
    pub fn generation(&self) -> u64 {
        self.generation.max(self.list_generation())
    }

    /// The same for the value and the permissions alone.
    pub(super) fn content_generation(&self) -> u64 {
        self.generation
    }

    /// The same for the list of children alone.
    pub(super) fn list_generation(&self) -> u64 {
        self.family.as_ref().map_or(0, |family| family.generation)
    }

    pub(super) fn born(&self) -> u64 {
        self.born
    }

    /// By name.
    pub(super) fn children(&self) -> impl Iterator<Item = (&str, &Arc<Node>)> {
        let families = self.family.iter();
        let children = families.flat_map(|family| family.children.iter());
        children.map(|child| (child.name(), child))
    }

    pub(super) fn child(&self, name: &str) -> Option<&Arc<Node>> {
        self.family.as_ref()?.children.get(name.as_bytes())
    }

    pub(super) fn child_mut(&mut self, name: &str) -> Option<&mut Arc<Node>> {
        self.family.as_mut()?.children.get_mut(name.as_bytes())
    }

    /// Bytes of the list of children, each with a final zero.
    pub fn list_len(&self) -> usize {
        self.family.as_ref().map_or(0, |family| family.bytes)
    }

    /// Adds a child that is not there yet.
    pub(super) fn add(&mut self, name: &str, mut node: Arc<Node>, now: u64) {
        if node.name_bytes() != name.as_bytes() {
            Arc::make_mut(&mut node).rename(name);
        }
        let family = self.family.get_or_insert_default();
        family.bytes += name.len() + 1;
        family.generation = now;
        family.children.insert(node);
    }

    pub(super) fn remove(&mut self, name: &str, now: u64) -> Option<Arc<Node>> {
        let family = self.family.as_mut()?;
        let node = family.children.remove(name.as_bytes())?;
        family.bytes -= name.len() + 1;
        family.generation = now;
        Some(node)
    }

    /// Takes out some child, to take the node apart: the list of children stays as long as it was.
    pub(super) fn pop_child(&mut self) -> Option<Arc<Node>> {
        self.family.as_mut()?.children.pop()
    }

    /// There are no more levels of nodes below.
    pub(super) fn height(&self) -> usize {
        self.family.as_ref().map_or(0, |it| it.height.into())
    }

    /// Notes that there are to be that many levels of nodes below.
    pub(super) fn grow(&mut self, levels: usize) {
        if levels > 0 {
            let levels = u16::try_from(levels).unwrap_or(u16::MAX);
            let family = self.family.get_or_insert_default();
            family.height = family.height.max(levels);
        }
    }

    pub(super) fn set_value(&mut self, value: &[u8], now: u64) {
        match self.text.get_mut(self.name.into()..) {
            Some(old) if old.len() == value.len() => old.copy_from_slice(value),
            _ => self.text = [self.name_bytes(), value].concat().into(),
        }
        self.generation = now;
    }

    pub(super) fn set_permissions(&mut self, permissions: Permissions, now: u64) {
        self.permissions = permissions;
        self.generation = now;
    }

    /// The bytes that the quota on a node's size counts, as C xenstored lays a node out.
    pub(super) fn size(&self) -> usize {
        size(self.permissions.len(), self.value().len(), self.list_len())
    }

    /// [`Node::size`] if it had another value.
    pub(super) fn size_with_value(&self, value: usize) -> usize {
        size(self.permissions.len(), value, self.list_len())
    }

    /// [`Node::size`] if it had as many permission entries.
    pub(super) fn size_with_permissions(&self, permissions: usize) -> usize {
        size(permissions, self.value().len(), self.list_len())
    }
}

/// The bytes of a node: header, permission entries, value, list of children.
pub(super) fn size(permissions: usize, value: usize, list: usize) -> usize {
    16 + 8 * permissions + value + list
}

/// Trees of that many levels are dropped by recursion.
const SHALLOW: u16 = 16;

/// A guest chooses how deep a tree is: so a deep one is taken apart with a list, not by recursion.
/// The list costs time for every child, so the usual shallow ones do without.
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
    if let Some(family) = node.family.as_mut()
        && family.height > SHALLOW
    {
        to.extend(mem::take(&mut family.children).into_unshared());
    }
}
