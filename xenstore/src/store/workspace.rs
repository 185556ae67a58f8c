//! The operations on nodes, with their checks: the same on the live tree and in a transaction.
//!
//! Each operation checks everything first and changes the tree last, so one that fails has
//! changed nothing. Errors and their precedence are C xenstored's (`tools/xenstored/core.c`).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use parapet_xen_sys::Errno;

use super::domains::Domains;
use super::node::{self, Node};
use super::path::Path;
use super::permissions::{Caller, Permissions, Rights};
use super::quota::Quota;
use super::transaction::{Change, Log};
use super::tree::{Tree, walk};
use crate::Permission;

/// One caller's hands on one tree, for one request.
pub(super) struct Workspace<'a, 'l> {
    pub(super) caller: Caller,
    pub(super) tree: &'a mut Tree,
    pub(super) log: &'l mut Log,
    pub(super) domains: &'a mut Domains,
    /// The generation that this request makes.
    pub(super) now: u64,
}

impl<'a> Workspace<'a, '_> {
    /// The node, if the caller has all of `rights`.
    ///
    /// # Errors
    /// `EACCES`; `ENOENT`, but only to those who may know: who has any of `rights` on the nearest
    /// node above.
    fn find(&mut self, path: &Path, rights: Rights) -> Result<&Arc<Node>, Errno> {
        self.log.saw(path);
        self.check_touched()?;
        let permitted = |node: &Node| node.permissions().rights(&self.caller, self.domains);
        if let Some(node) = self.tree.get(path) {
            return if permitted(node).include(rights) {
                Ok(node)
            } else {
                Err(Errno::EACCES)
            };
        }
        let nearest = self.tree.nearest(path);
        let may_know = permitted(nearest.node).meet(rights);
        for depth in [nearest.depth, nearest.depth + 1] {
            if let Ok(seen) = Path::new(path.prefix(depth)) {
                self.log.saw(&seen);
            }
        }
        Err(if may_know {
            Errno::ENOENT
        } else {
            Errno::EACCES
        })
    }

    /// The quota on the nodes that a transaction touches.
    fn check_touched(&mut self) -> Result<(), Errno> {
        self.check_or_fail(Quota::TransactionNodes, self.log.len())
    }

    /// The quota on the size of a node.
    fn check_size(&mut self, size: usize) -> Result<(), Errno> {
        self.check_or_fail(Quota::NodeSize, size)
    }

    fn check(&mut self, quota: Quota, value: usize) -> Result<(), Errno> {
        self.domains.check(self.caller.domid, quota, value)
    }

    /// To exceed one of these spoils the transaction.
    fn check_or_fail(&mut self, quota: Quota, value: usize) -> Result<(), Errno> {
        let result = self.check(quota, value);
        self.log.failed |= result.is_err();
        result
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
        let tree: &'a Tree = self.tree;
        tree.get(path).map(|node| &**node).ok_or(Errno::ENOENT)
    }

    /// WRITE.
    pub(super) fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), Errno> {
        let (before, size) = match self.find(path, Rights::WRITE) {
            Ok(node) => (
                node.permissions().clone(),
                node.size_with_value(value.len()),
            ),
            Err(Errno::ENOENT) => return self.create(path, value),
            Err(error) => return Err(error),
        };
        self.check_size(size)?;
        let now = self.now;
        self.tree.change(path, |node| node.set_value(value, now));
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
        let nearest = self.tree.nearest(path);
        let above = nearest.node.permissions();
        let owner = if self.caller.privileged {
            above.owner()
        } else {
            self.caller.domid
        };
        let permissions = above.inherited_by(owner, self.domains, self.now);
        let names: Vec<&str> = path.names().skip(nearest.depth).collect();
        let depth = nearest.depth;
        let grown = |name: &str| name.len() + 1;
        let parent = nearest.node.size() + names.first().map_or(0, |name| grown(name));
        let least = |value, list| node::size(permissions.len(), value, list);
        let lists = names.iter().skip(1).map(|name| least(0, grown(name)));
        let largest = lists.fold(parent.max(least(value.len(), 0)), usize::max);
        self.check_size(largest)?;
        if !self.caller.privileged {
            let growth = self.log.growth(owner) + names.len().cast_signed();
            let owned = self.domains.used(owner)[Quota::Nodes];
            self.check(Quota::Nodes, owned.saturating_add_signed(growth))?;
        }

        for levels in 1..=names.len() {
            let whole = Path::new(path.prefix(depth + levels))?;
            let value = if levels == names.len() { value } else { &[] };
            let node = Node::new(value, permissions.clone(), self.now);
            self.tree.insert(&whole, node, self.now);
            self.log.modified(&whole);
            self.log.own(owner, 1);
        }
        self.changed(path, None);
        Ok(())
    }

    /// RM. It is no error if the node is not there, as long as its parent is.
    pub(super) fn remove(&mut self, path: &Path) -> Result<(), Errno> {
        match self.find(path, Rights::WRITE) {
            Ok(_) => {}
            Err(Errno::ENOENT) => {
                let parent = path.parent().and_then(|parent| self.tree.get_str(parent));
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
        let Some(gone) = self.tree.remove(path, self.now) else {
            return;
        };
        self.log.removed(path);
        let mut owners = BTreeMap::new();
        walk("", &gone, &mut |_, node| {
            *owners.entry(node.permissions().owner()).or_insert(0) -= 1;
            true
        });
        for (owner, nodes) in owners {
            self.log.own(owner, nodes);
        }
        self.log.news(Change {
            path: path.clone(),
            before: Some(gone.permissions().clone()),
            gone: Some(gone),
        });
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
        let permissions = Permissions::new(entries, self.now)?;
        self.check(Quota::NodePermissions, permissions.len())?;
        let owner = permissions.owner();
        if !self.domains.is_known(owner) {
            return Err(Errno::ENOENT);
        }
        let node = self.find(path, Rights::OWN)?;
        let before = node.permissions().clone();
        let size = node.size_with_permissions(permissions.len());
        if !self.caller.privileged && owner != before.owner() {
            return Err(Errno::EPERM);
        }
        self.check_size(size)?;
        self.replace_permissions(path, permissions);
        self.log.own(before.owner(), -1);
        self.log.own(owner, 1);
        self.changed(path, Some(before));
        Ok(())
    }

    /// Sets permissions, whoever asks, and tells nobody.
    pub(super) fn replace_permissions(&mut self, path: &Path, permissions: Permissions) {
        let now = self.now;
        self.tree
            .change(path, |node| node.set_permissions(permissions, now));
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
