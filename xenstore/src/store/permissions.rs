//! Who may do what with a node.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use parapet_xen_sys::{DomId, Errno};

use super::domains::Domains;
use crate::{Access, Permission};

/// What a caller asks of a node, or may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) own: bool,
}

impl Rights {
    pub(super) const READ: Self = Rights {
        read: true,
        write: false,
        own: false,
    };
    pub(super) const WRITE: Self = Rights {
        read: false,
        write: true,
        own: false,
    };
    pub(super) const OWN: Self = Rights {
        read: false,
        write: true,
        own: true,
    };
    const ALL: Self = Rights {
        read: true,
        write: true,
        own: true,
    };

    /// Whether all of `asked` is here.
    pub(super) fn include(self, asked: Self) -> bool {
        self.read >= asked.read && self.write >= asked.write && self.own >= asked.own
    }

    /// Whether any of `asked` is here.
    pub(super) fn meet(self, asked: Self) -> bool {
        self.read && asked.read || self.write && asked.write || self.own && asked.own
    }
}

impl From<Access> for Rights {
    fn from(access: Access) -> Self {
        Rights {
            read: matches!(access, Access::Read | Access::Both),
            write: matches!(access, Access::Write | Access::Both),
            own: false,
        }
    }
}

/// On whose behalf a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The domain; for a local socket the one that xenstored runs in.
    pub domid: DomId,
    /// Whether it may do everything: domain 0, and whoever has the socket.
    pub privileged: bool,
    /// The domain whose rights it has besides its own (`SET_TARGET`).
    pub target: Option<DomId>,
}

impl Caller {
    /// A local client or domain 0 itself.
    pub const PRIVILEGED: Self = Caller {
        domid: DomId::ZERO,
        privileged: true,
        target: None,
    };

    /// An ordinary guest, unless it is domain 0.
    pub fn domain(domid: DomId) -> Self {
        Caller {
            domid,
            privileged: domid == DomId::ZERO,
            target: None,
        }
    }

    fn is(&self, domid: DomId) -> bool {
        domid == self.domid || self.target == Some(domid) || domid == DomId::ANY
    }
}

/// A node's permissions. The first entry names the owner, who may do everything, and says what
/// those may do whom no other entry names.
///
/// Clones share the entries. They also remember *since* when they hold, in generations: an entry
/// for a domain that was born later was meant for another, dead one that had the same id, and
/// counts for nothing.
#[derive(Clone)]
pub struct Permissions(Arc<Entries>);

struct Entries {
    since: u64,
    owner: Permission,
    others: Vec<Permission>,
}

impl Permissions {
    /// Permissions as of now, the generation `since`. The first entry is the owner's.
    ///
    /// # Errors
    /// `EINVAL` if there is no entry.
    pub(super) fn new(entries: &[Permission], since: u64) -> Result<Self, Errno> {
        let (&owner, others) = entries.split_first().ok_or(Errno::EINVAL)?;
        Ok(Permissions(Arc::new(Entries {
            since,
            owner,
            others: others.to_vec(),
        })))
    }

    /// `nDOMID` alone.
    pub(super) fn private(owner: DomId, since: u64) -> Self {
        Permissions(Arc::new(Entries {
            since,
            owner: Permission::none(owner),
            others: Vec::new(),
        }))
    }

    /// Whose node it is.
    pub fn owner(&self) -> DomId {
        self.0.owner.domid
    }

    /// All entries, the owner's first.
    pub fn entries(&self) -> impl Iterator<Item = Permission> + Clone {
        core::iter::once(self.0.owner).chain(self.0.others.iter().copied())
    }

    /// Whether they are the very same, for nodes that inherited them.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The guests that have an entry.
    pub(super) fn names(&self) -> impl Iterator<Item = DomId> {
        let domids = self.entries().map(|entry| entry.domid);
        domids.filter(|domid| domid.is_domain() && *domid != DomId::ZERO)
    }

    /// Whether the domain has an entry.
    pub(super) fn name(&self, domid: DomId) -> bool {
        self.entries().any(|entry| entry.domid == domid)
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        1 + self.0.others.len()
    }

    /// Since which generation they hold.
    pub(super) fn since(&self) -> u64 {
        self.0.since
    }

    /// What a node gets that `owner` creates below, at generation `now`: the same, owned by
    /// `owner`, without the entries that no longer count.
    pub(super) fn inherited_by(&self, owner: DomId, domains: &Domains, now: u64) -> Self {
        if self.owner() == owner && domains.is_since(owner, self.0.since) {
            return self.clone();
        }
        let others = self
            .0
            .others
            .iter()
            .filter(|entry| self.counts(entry, domains));
        Permissions(Arc::new(Entries {
            since: now,
            owner: Permission {
                domid: owner,
                ..self.0.owner
            },
            others: others.copied().collect(),
        }))
    }

    /// Whether an entry is for a domain that lives, and did when it was made.
    pub(super) fn counts(&self, entry: &Permission, domains: &Domains) -> bool {
        entry.domid == DomId::ANY || domains.is_since(entry.domid, self.0.since)
    }

    /// The same without the entries for `domid`, if it had any. What it owned is domain 0's.
    pub(super) fn without(&self, domid: DomId) -> Option<Self> {
        if !self.name(domid) {
            return None;
        }
        let owner = self.0.owner;
        let others = self.0.others.iter().filter(|entry| entry.domid != domid);
        Some(Permissions(Arc::new(Entries {
            since: self.0.since,
            owner: Permission {
                domid: if owner.domid == domid {
                    DomId::ZERO
                } else {
                    owner.domid
                },
                ..owner
            },
            others: others.copied().collect(),
        })))
    }

    /// What `caller` may do.
    pub(super) fn rights(&self, caller: &Caller, domains: &Domains) -> Rights {
        let named = |entry: &Permission| caller.is(entry.domid) && self.counts(entry, domains);
        if caller.privileged || named(&self.0.owner) {
            return Rights::ALL;
        }
        self.0
            .others
            .iter()
            .find(|entry| named(entry))
            .unwrap_or(&self.0.owner)
            .access
            .into()
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in self.entries() {
            write!(f, "{entry} ")?;
        }
        write!(f, "since {}", self.0.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_entry_is_everybody_elses_default() {
        let mut domains = Domains::default();
        for domid in [3, 4, 5] {
            domains.know(DomId(domid), 1);
        }
        let entries = ["r3", "b4"].map(|text| text.parse().unwrap());
        let permissions = Permissions::new(&entries, 2).unwrap();
        let rights = |domid| permissions.rights(&Caller::domain(DomId(domid)), &domains);
        assert_eq!(rights(0), Rights::ALL);
        assert_eq!(rights(3), Rights::ALL);
        assert!(rights(4).include(Rights::WRITE) && !rights(4).own);
        assert_eq!(rights(5), Rights::READ);
    }

    #[test]
    fn an_entry_for_a_dead_domain_does_not_serve_the_next_one_of_that_id() {
        let mut domains = Domains::default();
        domains.know(DomId(3), 1);
        domains.know(DomId(4), 1);
        let entries = ["n3", "r4"].map(|text| text.parse().unwrap());
        let permissions = Permissions::new(&entries, 2).unwrap();
        let may_read = |domains: &Domains| {
            let caller = Caller::domain(DomId(4));
            permissions.rights(&caller, domains).include(Rights::READ)
        };
        assert!(may_read(&domains));
        domains.forget(DomId(4));
        assert!(!may_read(&domains));
        domains.know(DomId(4), 3);
        assert!(!may_read(&domains));
    }

    #[test]
    fn a_target_lends_its_rights() {
        let mut domains = Domains::default();
        domains.know(DomId(3), 1);
        let permissions = Permissions::private(DomId(3), 2);
        let mut stub = Caller::domain(DomId(9));
        assert!(!permissions.rights(&stub, &domains).read);
        stub.target = Some(DomId(3));
        assert_eq!(permissions.rights(&stub, &domains), Rights::ALL);
    }
}
