//! What a guest may use: the table of quotas, and a set of their values.
//!
//! Names, order, descriptions and defaults are C xenstored's (`quota_adm` and `quotas` in
//! `tools/xenstored/domain.c` of Xen's master). A quota of `n` allows `n`; zero is no limit. Domain
//! 0 and local clients have none.

use core::fmt;
use core::ops::{Index, IndexMut};

use parapet_xen_sys::io::xs_wire::REL_PATH_MAX;

/// Something that a guest may use so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quota {
    /// Nodes that it owns.
    Nodes,
    /// Watches.
    Watches,
    /// Requests that were taken in, and whose answer or events were not sent yet.
    Outstanding,
    /// Bytes that are held for it: nodes, watches, transactions, and what waits to be sent.
    Memory,
    /// Transactions at a time.
    Transactions,
    /// Nodes that a transaction may touch.
    TransactionNodes,
    /// Permission entries of a node.
    NodePermissions,
    /// Bytes of a path, its home not counted.
    PathMax,
    /// Bytes of a node: its header, permissions, value and the names of its children.
    NodeSize,
}

/// A quota in the table.
struct Row {
    quota: Quota,
    name: &'static str,
    description: &'static str,
    /// What is refused.
    hard: u32,
    /// What is warned of.
    soft: Option<u32>,
}

const fn row(quota: Quota, name: &'static str, description: &'static str, hard: u32) -> Row {
    let soft = None;
    Row {
        quota,
        name,
        description,
        hard,
        soft,
    }
}

/// All quotas, each at its own number.
const TABLE: [Row; 9] = {
    use Quota::*;
    let path_max = REL_PATH_MAX as u32;
    [
        row(Nodes, "nodes", "Nodes per domain", 1000),
        row(Watches, "watches", "Watches per domain", 128),
        row(
            Outstanding,
            "outstanding",
            "Outstanding requests per domain",
            20,
        ),
        Row {
            soft: Some(2 << 20),
            ..row(
                Memory,
                "memory",
                "Total Xenstore memory per domain",
                (2 << 20) + (512 << 10),
            )
        },
        row(
            Transactions,
            "transactions",
            "Active transactions per domain",
            10,
        ),
        row(
            TransactionNodes,
            "transaction-nodes",
            "Max. number of accessed nodes per transaction",
            1024,
        ),
        row(
            NodePermissions,
            "node-permissions",
            "Max. number of permissions per node",
            5,
        ),
        row(PathMax, "path-max", "Max. length of a node path", path_max),
        row(NodeSize, "node-size", "Max. size of a node", 2048),
    ]
};

impl Quota {
    /// All of them, in C xenstored's order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.quota)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Its name, as `nodes`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What it is, in a few words.
    pub fn description(self) -> &'static str {
        self.row().description
    }
}

/// How grave it is to exceed a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is refused.
    Hard,
    /// It is told in the log.
    Soft,
}

/// A quota and its level: what has a value. Not every quota has a soft one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    quota: Quota,
    level: Level,
}

impl Limit {
    /// The hard limit of a quota.
    pub const fn hard(quota: Quota) -> Self {
        let level = Level::Hard;
        Limit { quota, level }
    }

    /// The limit that a quota has at this level, if any.
    pub fn of(quota: Quota, level: Level) -> Option<Self> {
        let there = level == Level::Hard || quota.row().soft.is_some();
        there.then_some(Limit { quota, level })
    }

    /// All of them, in C xenstored's order.
    pub fn all() -> impl Iterator<Item = Self> {
        let levels = |quota| [Level::Hard, Level::Soft].map(|level| Limit::of(quota, level));
        Quota::all().flat_map(levels).flatten()
    }

    /// The limit of this name among those of one level, as in CONTROL.
    pub fn named_at(level: Level, name: &[u8]) -> Option<Self> {
        // As xenstore.txt has it, and C xenstored up to 4.20.
        let name = match name {
            b"permissions" => b"node-permissions",
            _ => name,
        };
        let quota = Quota::all().find(|quota| quota.name().as_bytes() == name)?;
        Limit::of(quota, level)
    }

    /// The limit of this name, as GET_QUOTA has it: `soft-` before a soft one.
    pub fn named(name: &[u8]) -> Option<Self> {
        match name.strip_prefix(b"soft-") {
            Some(name) => Limit::named_at(Level::Soft, name),
            None => Limit::named_at(Level::Hard, name),
        }
    }

    /// Of what.
    pub fn quota(self) -> Quota {
        self.quota
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.level {
            Level::Hard => "",
            Level::Soft => "soft-",
        };
        write!(f, "{prefix}{}", self.quota.name())
    }
}

/// A value for each limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas([[u32; 2]; TABLE.len()]);

impl Default for Quotas {
    fn default() -> Self {
        Quotas(
            TABLE
                .each_ref()
                .map(|row| [row.hard, row.soft.unwrap_or(0)]),
        )
    }
}

impl Index<Limit> for Quotas {
    type Output = u32;

    fn index(&self, limit: Limit) -> &u32 {
        &self.0[limit.quota as usize][limit.level as usize]
    }
}

impl IndexMut<Limit> for Quotas {
    fn index_mut(&mut self, limit: Limit) -> &mut u32 {
        &mut self.0[limit.quota as usize][limit.level as usize]
    }
}

impl Quotas {
    /// Whether the hard limit of `quota` allows `value`.
    pub(super) fn allow(&self, quota: Quota, value: usize) -> bool {
        match self[Limit::hard(quota)] {
            0 => true,
            limit => value <= usize::try_from(limit).unwrap_or(usize::MAX),
        }
    }
}

/// How much of each quota is, or was, used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage([usize; TABLE.len()]);

impl Index<Quota> for Usage {
    type Output = usize;

    fn index(&self, quota: Quota) -> &usize {
        &self.0[quota as usize]
    }
}

impl IndexMut<Quota> for Usage {
    fn index_mut(&mut self, quota: Quota) -> &mut usize {
        &mut self.0[quota as usize]
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn each_quota_has_its_own_place_in_the_table() {
        for quota in Quota::all() {
            assert_eq!(quota.row().quota, quota);
        }
    }

    #[test]
    fn a_limit_has_the_name_by_which_it_is_found() {
        let names: Vec<_> = Limit::all().map(|limit| limit.to_string()).collect();
        let all = "nodes watches outstanding memory soft-memory transactions transaction-nodes \
                   node-permissions path-max node-size";
        assert_eq!(names.join(" "), all);
        for limit in Limit::all() {
            assert_eq!(Limit::named(limit.to_string().as_bytes()), Some(limit));
        }
        let old = Limit::named(b"permissions");
        assert_eq!(old, Some(Limit::hard(Quota::NodePermissions)));
        for unknown in [&b"soft-nodes"[..], b"soft-", b"", b"Nodes"] {
            assert_eq!(Limit::named(unknown), None);
        }
    }
}
