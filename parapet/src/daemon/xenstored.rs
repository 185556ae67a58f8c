//! What `parapet-xenstored` tells of itself.

use std::fmt;

use parapet_xen_sys::Errno;
use parapet_xenstore::server::{self, DomainStatistics, Statistics};
use parapet_xenstore::store::Quota;
use parapet_xenstore::wire::error_name;
use serde::{Deserialize, Serialize};

use crate::report::lines;

/// The daemon's name: of its program, its lock and its socket.
pub const NAME: &str = "parapet-xenstored";

/// How the daemon fares: what it did since it began or was last updated, and what it holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How often each request had each outcome, as far as that happened.
    pub requests: Vec<Requests>,
    /// What became of transactions.
    pub transactions: Transactions,
    /// Events that guests lost because they did not read those before.
    pub events_lost: u64,
    /// All local clients together.
    pub local: Clients,
    /// The domains that it has heard of.
    pub domains: Vec<DomainStatus>,
}

/// Requests of one kind with one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// What was asked, as `get_perms`; `unknown` for what is no operation.
    pub request: String,
    /// `ok`, or the error that was answered, as `ENOENT`.
    pub outcome: String,
    /// How often.
    pub count: u64,
}

/// What became of transactions. Those of clients that left are in none but `begun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transactions {
    /// All of them.
    pub begun: u64,
    /// Those that took effect.
    pub committed: u64,
    /// Those that their clients gave up.
    pub dropped: u64,
    /// Those that were to take effect, and had to be tried again.
    pub conflicted: u64,
}

/// Some clients, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// How many.
    pub connections: usize,
    /// How many have requests that wait, until they read or others read what they caused.
    pub held: usize,
    /// Events that they have not read.
    pub unread_events: usize,
    /// Bytes that they have not read: those of events and of answers.
    pub unread_bytes: usize,
    /// The most bytes that one of them has not read.
    pub most_unread_bytes: usize,
}

/// One domain, now. Domain 0's numbers have what local clients use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Which.
    pub domid: u16,
    /// Nodes that it owns.
    pub nodes: usize,
    /// Its watches.
    pub watches: usize,
    /// Its open transactions.
    pub transactions: usize,
    /// Requests of its that are not done with.
    pub outstanding: usize,
    /// Bytes that are held for it.
    pub memory: usize,
    /// Its connection by its ring, if it is introduced and served.
    pub ring: Clients,
}

impl Status {
    /// The status of this process, whose server has these statistics.
    pub fn new(statistics: &Statistics) -> Self {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            requests: statistics.requests.iter().map(Requests::new).collect(),
            transactions: statistics.transactions.into(),
            events_lost: statistics.events_lost,
            local: statistics.local.into(),
            domains: statistics.domains.iter().map(DomainStatus::new).collect(),
        }
    }

    fn requests(&self) -> u64 {
        self.requests.iter().map(|it| it.count).sum()
    }

    fn refused(&self) -> u64 {
        let refused = self.requests.iter().filter(|it| it.outcome != OK);
        refused.map(|it| it.count).sum()
    }
}

const OK: &str = "ok";

impl Requests {
    fn new(requests: &server::Requests) -> Self {
        let server::Requests {
            operation,
            error,
            count,
        } = *requests;
        Requests {
            request: operation.map_or("unknown".into(), |it| words(&format!("{it:?}"))),
            outcome: error.map_or(OK, |error: Errno| error_name(error)).into(),
            count,
        }
    }
}

/// `GetPerms` as `get_perms`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push('_');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

impl From<server::Transactions> for Transactions {
    fn from(all: server::Transactions) -> Self {
        Transactions {
            begun: all.begun,
            committed: all.committed,
            dropped: all.dropped,
            conflicted: all.conflicted,
        }
    }
}

impl From<server::Clients> for Clients {
    fn from(clients: server::Clients) -> Self {
        Clients {
            connections: clients.connections,
            held: clients.held,
            unread_events: clients.events,
            unread_bytes: clients.bytes,
            most_unread_bytes: clients.most_bytes,
        }
    }
}

impl DomainStatus {
    fn new(domain: &DomainStatistics) -> Self {
        let DomainStatistics { domid, used, ring } = domain;
        DomainStatus {
            domid: domid.0,
            nodes: used[Quota::Nodes],
            watches: used[Quota::Watches],
            transactions: used[Quota::Transactions],
            outstanding: used[Quota::Outstanding],
            memory: used[Quota::Memory],
            ring: (*ring).into(),
        }
    }
}

const HEAD: [&str; 8] = [
    "dom",
    "ring",
    "nodes",
    "watches",
    "transactions",
    "requests",
    "kB",
    "unread",
];
/// The columns that are text, and so flush left.
const TEXT: usize = 2;

/// For people: what was done in a few lines, and a row for each domain.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transactions {
            begun,
            committed,
            dropped,
            conflicted,
        } = self.transactions;
        let local = self.local;
        writeln!(
            f,
            "requests       {}, {} refused",
            self.requests(),
            self.refused()
        )?;
        writeln!(
            f,
            "transactions   {begun}: {committed} committed, {dropped} dropped, {conflicted} in conflict"
        )?;
        writeln!(
            f,
            "local clients  {}, {} held, {} events unread",
            local.connections, local.held, local.unread_events
        )?;
        if self.events_lost > 0 {
            writeln!(
                f,
                "events lost    {}, by guests that do not read",
                self.events_lost
            )?;
        }
        writeln!(f)?;
        let mut rows = vec![HEAD.map(str::to_owned)];
        for domain in &self.domains {
            let ring = match (domain.ring.connections, domain.ring.held) {
                (0, _) => "-",
                (_, 0) => "served",
                _ => "held",
            };
            rows.push([
                domain.domid.to_string(),
                ring.into(),
                domain.nodes.to_string(),
                domain.watches.to_string(),
                domain.transactions.to_string(),
                domain.outstanding.to_string(),
                format!("{:.1}", domain.memory as f64 / 1e3),
                domain.ring.unread_events.to_string(),
            ]);
        }
        f.write_str(&lines(&rows, TEXT))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use parapet_xen_sys::DomId;
    use parapet_xen_sys::io::xs_wire::Operation;

    use super::*;

    /// One of each thing.
    pub(crate) fn status() -> Status {
        let mut statistics = Statistics {
            events_lost: 3,
            ..Statistics::default()
        };
        for (operation, error, count) in [
            (Some(Operation::Read), None, 40),
            (Some(Operation::GetPerms), Some(Errno::ENOENT), 2),
            (None, Some(Errno::ENOSYS), 1),
        ] {
            statistics.requests.push(server::Requests {
                operation,
                error,
                count,
            });
        }
        statistics.transactions = server::Transactions {
            begun: 9,
            committed: 5,
            dropped: 2,
            conflicted: 1,
        };
        statistics.local.connections = 4;
        for (domid, nodes, held) in [(0, 100, None), (7, 12, Some(1))] {
            let mut domain = DomainStatistics {
                domid: DomId(domid),
                used: Default::default(),
                ring: Default::default(),
            };
            domain.used[Quota::Nodes] = nodes;
            domain.used[Quota::Memory] = 2345;
            domain.ring.connections = usize::from(held.is_some());
            domain.ring.held = held.unwrap_or(0);
            domain.ring.events = 6;
            statistics.domains.push(domain);
        }
        let status = Status::new(&statistics);
        Status {
            version: "1.2.3".into(),
            pid: 77,
            ..status
        }
    }

    #[test]
    fn a_table_tells_people_what_was_done_and_what_each_domain_uses() {
        let expected = "\
requests       43, 3 refused
transactions   9: 5 committed, 2 dropped, 1 in conflict
local clients  4, 0 held, 0 events unread
events lost    3, by guests that do not read

dom  ring  nodes  watches  transactions  requests   kB  unread
0    -       100        0             0         0  2.3       6
7    held     12        0             0         0  2.3       6
";
        assert_eq!(status().to_string(), expected);
    }
}
