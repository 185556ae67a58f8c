//! The domains that the store has heard of: when, what they use, and what they may.

use alloc::collections::BTreeMap;

use parapet_xen_sys::io::xs_wire::REL_PATH_MAX;
use parapet_xen_sys::{DomId, Errno};

/// What an unprivileged domain may use; zero is no limit. The defaults are C xenstored's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Nodes that it owns.
    pub nodes: usize,
    /// Watches.
    pub watches: usize,
    /// Transactions at a time.
    pub transactions: usize,
    /// Bytes of a node: its header, permissions, value and the names of its children.
    pub node_size: usize,
    /// Permission entries of a node.
    pub permissions: usize,
    /// Bytes of a path, its home not counted.
    pub path: usize,
    /// Nodes that a transaction may touch.
    pub transaction_nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            node_size: 2048,
            permissions: 5,
            path: REL_PATH_MAX,
            transaction_nodes: 1024,
        }
    }
}

/// Whether `value` is more than `limit` allows.
///
/// # Errors
/// `ENOSPC`, the protocol's word for a quota.
pub(super) fn within(limit: usize, value: usize) -> Result<(), Errno> {
    if limit == 0 || value <= limit {
        Ok(())
    } else {
        Err(Errno::ENOSPC)
    }
}

/// What a domain uses of its quotas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nodes that it owns.
    pub nodes: usize,
    /// Watches.
    pub watches: usize,
    /// Open transactions.
    pub transactions: usize,
}

#[derive(Debug)]
struct Domain {
    born: u64,
    usage: Usage,
}

/// By id. A record begins when a domain is first named, and ends with the domain: nothing in it
/// reaches the next one that gets the id.
#[derive(Debug, Default)]
pub(super) struct Domains(BTreeMap<DomId, Domain>);

impl Domains {
    /// Notes a domain, unless it is known, as born in generation `born`.
    pub(super) fn know(&mut self, domid: DomId, born: u64) {
        self.0.entry(domid).or_insert(Domain {
            born,
            usage: Usage::default(),
        });
    }

    pub(super) fn forget(&mut self, domid: DomId) {
        self.0.remove(&domid);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = DomId> {
        self.0.keys().copied()
    }

    pub(super) fn is_known(&self, domid: DomId) -> bool {
        self.0.contains_key(&domid)
    }

    /// Whether the domain lives, and did in generation `when` already.
    pub(super) fn is_since(&self, domid: DomId, when: u64) -> bool {
        self.0.get(&domid).is_some_and(|domain| domain.born <= when)
    }

    pub(super) fn usage(&self, domid: DomId) -> Usage {
        self.0
            .get(&domid)
            .map_or(Usage::default(), |domain| domain.usage)
    }

    /// Lets `change` correct what a domain uses. What an unknown domain uses is nobody's.
    pub(super) fn account(&mut self, domid: DomId, change: impl FnOnce(&mut Usage)) {
        if let Some(domain) = self.0.get_mut(&domid) {
            change(&mut domain.usage);
        }
    }

    /// Adds to (or takes from) the nodes that a domain owns.
    pub(super) fn own(&mut self, domid: DomId, nodes: isize) {
        self.account(domid, |usage| {
            usage.nodes = usage.nodes.saturating_add_signed(nodes);
        });
    }
}
