//! The operations on nodes, with their checks: the same on the live tree and in a transaction.
//!
//! Each operation checks everything first and changes the tree last, so one that fails has
//! changed nothing. Errors and their precedence are C xenstored's (`tools/xenstored/core.c`).

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use parapet_xen_sys::{DomId, Errno};

use super::ground::{Books, Ground};
use super::node::{self, Node};
use super::path::Path;
use super::permissions::{Caller, Permissions, Rights};
use super::quota::Quota;
use super::transaction::{Change, Log};
use super::tree::Tree;
use crate::Permission;

/// One caller's hands on one tree, for one request.
pub(super) struct Workspace<'a, 'l> {
    pub(super) caller: Caller,
    pub(super) ground: Ground<'a>,
    pub(super) log: &'l mut Log,
}

impl<'a> Workspace<'a, '_> {
    /// The node, if the caller has all of `rights`.
    ///
    /// # Errors
    /// `EACCES`; `ENOENT`, but only to those who may know: who has any of `rights` on the nearest
    /// node above.
    fn find(&mut self, path: &Path, rights: Rights) -> Result<&Arc<Node>, Errno> {
        let domains = &*self.ground.domains;
        let permitted = |node: &Node| node.permissions().rights(&self.caller, domains);
        let node = self.ground.tree.get(path);
        let nearest = match node {
            Some(_) => None,
            None => Some(self.ground.tree.nearest(path)),
        };
        let allowed = match (node, &nearest) {
            (Some(node), _) => permitted(node).include(rights),
            (None, Some(nearest)) => permitted(nearest.node).meet(rights),
            (None, None) => false,
        };
        // What was refused is not depended on: else a commit would tell its guest of changes that
        // it may not see, and others would be blamed for having made them.
        if !allowed {
            return Err(Errno::EACCES);
        }
        self.log.saw(path);
        for depth in nearest.iter().flat_map(|it| [it.depth, it.depth + 1]) {
            if let Ok(seen) = Path::new(path.prefix(depth)) {
                self.log.saw(&seen);
            }
        }
        // How many nodes a transaction touches.
        let touched = self.log.len();
        let quota = Quota::TransactionNodes;
        let domid = self.caller.domid;
        let checked = self.ground.domains.check(domid, quota, touched);
        self.log.failed |= checked.is_err();
        checked?;
        node.ok_or(Errno::ENOENT)
    }

    /// The quota on the size of a node.
    fn check_size(&mut self, size: usize) -> Result<(), Errno> {
        self.check_or_fail(Quota::NodeSize, size)
    }

    fn check(&mut self, quota: Quota, value: usize) -> Result<(), Errno> {
        self.ground.domains.check(self.caller.domid, quota, value)
    }

    /// To exceed one of these spoils the transaction.
    fn check_or_fail(&mut self, quota: Quota, value: usize) -> Result<(), Errno> {
        let result = self.check(quota, value);
        self.log.failed |= result.is_err();
        result
    }

    /// A guest's quota on memory, when a node of `owner` is to grow: its owner's, or that of who
    /// has the transaction. What reaches it is refused; a guest that has reached it is not served.
    fn check_memory(&mut self, owner: DomId, growth: usize) -> Result<(), Errno> {
        let domid = match &self.ground.books {
            Books::Live { .. } => owner,
            Books::Draft(_) => self.caller.domid,
        };
        if self.caller.privileged || growth == 0 || self.ground.domains.has_memory(domid, growth) {
            return Ok(());
        }
        self.log.failed = true;
        Err(Errno::ENOMEM)
    }

    /// READ.
    pub(super) fn read(mut self, path: &Path) -> Result<&'a Node, Errno> {
        self.find(path, Rights::READ)?;
        self.there(path)
    }

    /// DIRECTORY.
    pub(super) fn list(mut self, path: &Path) -> Result<&'a Node, Errno> {
        self.find(path, Rights::READ)?;
        self.log.saw_list(path);
        self.there(path)
    }

    fn there(self, path: &Path) -> Result<&'a Node, Errno> {
        let tree: &'a Tree = self.ground.tree;
        tree.get(path).map(|node| &**node).ok_or(Errno::ENOENT)
    }

    /// WRITE.
    pub(super) fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), Errno> {
        let (before, old, size) = match self.find(path, Rights::WRITE) {
            Ok(node) => (
                node.permissions().clone(),
                node.size(),
                node.size_with_value(value.len()),
            ),
            Err(Errno::ENOENT) => return self.create(path, value),
            Err(error) => return Err(error),
        };
        self.check_size(size)?;
        self.check_memory(before.owner(), size.saturating_sub(old))?;
        self.ground.set_value(path, value);
        self.changed(path, Some(before));
        Ok(())
    }

    /// MKDIR.
    pub(super) fn mkdir(&mut self, path: &Path) -> Result<(), Errno> {
        match self.find(path, Rights::WRITE) {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => self.create(path, &[]),
            Err(error) => Err(error),
        }
    }

    /// A node and the missing ones above it. Each inherits the permissions of the node above;
    /// guests own what they create.
    fn create(&mut self, path: &Path, value: &[u8]) -> Result<(), Errno> {
        if path.is_special() {
            return Err(Errno::EINVAL);
        }
        let nearest = self.ground.tree.nearest(path);
        let above = nearest.node.permissions();
        let owner = if self.caller.privileged {
            above.owner()
        } else {
            self.caller.domid
        };
        let permissions = above.inherited_by(owner, self.ground.domains, self.ground.now);
        let names: Vec<&str> = path.names().skip(nearest.depth).collect();
        let depth = nearest.depth;
        let grown = |name: &str| name.len() + 1;
        let parent = nearest.node.size() + names.first().map_or(0, |name| grown(name));
        let least = |value, list| node::size(permissions.len(), value, list);
        let lists = names.iter().skip(1).map(|name| least(0, grown(name)));
        let largest = lists.fold(parent.max(least(value.len(), 0)), usize::max);
        self.check_size(largest)?;
        if !self.caller.privileged {
            let drafted = match &self.ground.books {
                Books::Live { .. } => 0,
                Books::Draft(growth) => growth.nodes(owner),
            };
            let owned = self.ground.domains.used(owner)[Quota::Nodes];
            let owned = owned.saturating_add_signed(drafted);
            self.check(Quota::Nodes, owned + names.len())?;
        }
        let paths = || path.prefixes().skip(depth + 1);
        let empty = node::size(permissions.len(), 0, 0);
        let bytes = paths().map(|path| path.len() + empty).sum::<usize>() + value.len();
        self.check_memory(owner, bytes)?;

        // Made from the lowest up and added at once: it takes as many steps as there are levels.
        let now = self.ground.now;
        let mut made = Node::new(value, permissions.clone(), now);
        for name in names.iter().skip(1).rev() {
            let below = mem::replace(&mut made, Node::new(&[], permissions.clone(), now));
            made.grow(below.height() + 1);
            made.add(name, Arc::new(below), now);
        }
        if self.log.is_kept() {
            for path in paths() {
                self.log.modified(&Path::new(path)?);
            }
        }
        if let Some(top) = paths().next() {
            self.ground.insert(&Path::new(top)?, Arc::new(made));
        }
        self.changed(path, None);
        Ok(())
    }

    /// RM. It is no error if the node is not there, as long as its parent is.
    pub(super) fn remove(&mut self, path: &Path) -> Result<(), Errno> {
        match self.find(path, Rights::WRITE) {
            Ok(_) => {}
            Err(Errno::ENOENT) => {
                let parent = path
                    .parent()
                    .and_then(|parent| self.ground.tree.get_str(parent));
                return parent.map(|_| ()).ok_or(Errno::ENOENT);
            }
            Err(error) => return Err(error),
        }
        if path.parent().is_none() {
            return Err(Errno::EINVAL);
        }
        self.uproot(path);
        Ok(())
    }

    /// Removes a node with all below it, whoever asks.
    pub(super) fn uproot(&mut self, path: &Path) {
        let Some(gone) = self.ground.remove(path) else {
            return;
        };
        self.log.removed(path);
        self.log.news(Change {
            path: path.clone(),
            before: Some(gone.permissions().clone()),
            gone: Some(gone),
        });
    }

    /// Takes a domain out of a node's permissions, whoever asks, and tells nobody.
    pub(super) fn erase(&mut self, path: &Path, domid: DomId) {
        let node = self.ground.tree.get(path);
        if let Some(fewer) = node.and_then(|node| node.permissions().without(domid)) {
            self.ground.set_permissions(path, fewer);
        }
    }

    /// GET_PERMS.
    pub(super) fn permissions(&mut self, path: &Path) -> Result<Permissions, Errno> {
        self.find(path, Rights::READ)
            .map(|node| node.permissions().clone())
    }

    /// SET_PERMS. Only who is privileged may give a node away.
    pub(super) fn set_permissions(
        &mut self,
        path: &Path,
        entries: &[Permission],
    ) -> Result<(), Errno> {
        let permissions = Permissions::new(entries, self.ground.now)?;
        self.check(Quota::NodePermissions, permissions.len())?;
        let owner = permissions.owner();
        if !self.ground.domains.is_known(owner) {
            return Err(Errno::ENOENT);
        }
        let node = self.find(path, Rights::OWN)?;
        let before = node.permissions().clone();
        let (old, size) = (node.size(), node.size_with_permissions(permissions.len()));
        if !self.caller.privileged && owner != before.owner() {
            return Err(Errno::EPERM);
        }
        self.check_size(size)?;
        self.check_memory(owner, size.saturating_sub(old))?;
        self.ground.set_permissions(path, permissions);
        self.changed(path, Some(before));
        Ok(())
    }

    fn changed(&mut self, path: &Path, before: Option<Permissions>) {
        self.log.modified(path);
        self.log.news(Change {
            path: path.clone(),
            before,
            gone: None,
        });
    }
}

/// The part of a list of children that begins `offset` bytes into it, for one message of at most
/// `room` bytes: DIRECTORY_PART. The last part ends with an empty name.
pub(super) fn list_part(node: &Node, offset: usize, room: usize) -> Vec<u8> {
    let mut part = format!("{}\0", node.generation()).into_bytes();
    let names = node.names().flat_map(|name| name.bytes().chain([0]));
    let list: Vec<u8> = names.skip(offset).collect();
    let space = room.saturating_sub(part.len() + 1);
    if list.len() <= space {
        part.extend(list);
        part.push(0);
    } else {
        let whole = list.get(..space).unwrap_or(&list);
        let end = whole
            .iter()
            .rposition(|&byte| byte == 0)
            .map_or(0, |at| at + 1);
        part.extend(list.get(..end).unwrap_or(&[]));
    }
    part
}
