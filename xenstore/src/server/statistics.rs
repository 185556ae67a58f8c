//! How a server fares: what was asked of it and what came of that, and what it holds for whom.
//!
//! Counting is adding to plain integers: there is one owner. All else is found out when somebody
//! asks.

use alloc::vec::Vec;

use parapet_xen_sys::io::xs_wire::{ERRORS, Operation};
use parapet_xen_sys::{DomId, Errno};

use super::{Connection, Peer, Server};
use crate::store::Usage;

/// What a server did since it began, and what it holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How often each request had each outcome, as far as that happened.
    pub requests: Vec<Requests>,
    /// What became of transactions.
    pub transactions: Transactions,
    /// Events that guests lost because they did not read those before.
    pub events_lost: u64,
    /// All local clients together.
    pub local: Clients,
    /// The domains that the store has heard of.
    pub domains: Vec<DomainStatistics>,
}

/// Requests of one kind with one outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests {
    /// What was asked; none for what is no operation.
    pub operation: Option<Operation>,
    /// The error that was answered, if one was.
    pub error: Option<Errno>,
    /// How often.
    pub count: u64,
}

/// What became of transactions. Those of clients that left are in none but `begun`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clients {
    /// How many.
    pub connections: usize,
    /// How many have requests that wait, until they read or others read what they caused.
    pub held: usize,
    /// Events that they have not read.
    pub events: usize,
    /// Bytes that they have not read: those of events and of answers.
    pub bytes: usize,
    /// The most bytes that one of them has not read.
    pub most_bytes: usize,
}

/// One domain, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DomainStatistics {
    /// Which.
    pub domid: DomId,
    /// How much it uses, by quota. Domain 0's has what its local clients use.
    pub used: Usage,
    /// Its connection by its ring, if it is introduced and served.
    pub ring: Clients,
}

/// Where requests are counted that there are not: after all that there are.
const UNKNOWN: usize = Operation::SetQuota as usize + 1;
/// None, and each error.
const OUTCOMES: usize = 1 + ERRORS.len();

/// What is counted as it happens.
pub(super) struct Counters {
    requests: [[u64; OUTCOMES]; UNKNOWN + 1],
    pub(super) committed: u64,
    pub(super) events_lost: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            requests: [[0; OUTCOMES]; UNKNOWN + 1],
            committed: 0,
            events_lost: 0,
        }
    }
}

/// The column of an outcome. An error without a name in the protocol is told as the first.
fn outcome(error: Option<Errno>) -> usize {
    let place = |error| ERRORS.iter().position(|(known, _)| *known == error);
    error.map_or(0, |error| 1 + place(error).unwrap_or(0))
}

impl Counters {
    /// A request was answered.
    pub(super) fn request(&mut self, operation: u32, error: Option<Errno>) {
        let row = Operation::try_from(operation).map_or(UNKNOWN, |known| known as usize);
        self.requests[row][outcome(error)] += 1;
    }

    fn count(&self, operation: Operation, error: Option<Errno>) -> u64 {
        self.requests[operation as usize][outcome(error)]
    }

    /// All that are not zero.
    fn all(&self) -> Vec<Requests> {
        let errors = ERRORS.iter().map(|(error, _)| Some(*error));
        let outcomes = [None].into_iter().chain(errors);
        let rows = (0u32..).zip(&self.requests);
        rows.flat_map(|(operation, row)| {
            let operation = Operation::try_from(operation).ok();
            let counts = outcomes.clone().zip(row);
            counts.map(move |(error, &count)| Requests {
                operation,
                error,
                count,
            })
        })
        .filter(|requests| requests.count > 0)
        .collect()
    }

    fn transactions(&self) -> Transactions {
        let ended = self.count(Operation::TransactionEnd, None);
        Transactions {
            begun: self.count(Operation::TransactionStart, None),
            committed: self.committed,
            dropped: ended.saturating_sub(self.committed),
            conflicted: self.count(Operation::TransactionEnd, Some(Errno::EAGAIN)),
        }
    }
}

impl Clients {
    fn add(&mut self, connection: &Connection) {
        let bytes = connection.output.len();
        self.connections += 1;
        self.held += usize::from(connection.is_held());
        self.events += connection.output.events();
        self.bytes += bytes;
        self.most_bytes = self.most_bytes.max(bytes);
    }
}

impl Server {
    /// How it fares.
    pub fn statistics(&self) -> Statistics {
        let mut local = Clients::default();
        for connection in self.connections.values() {
            if connection.peer == Peer::Local {
                local.add(connection);
            }
        }
        let domain = |domid| {
            let mut ring = Clients::default();
            let introduced = self.domains.get(&domid);
            let connection = introduced.and_then(|it| self.connections.get(&it.client));
            if let Some(connection) = connection.filter(|it| it.fault.is_none()) {
                ring.add(connection);
            }
            DomainStatistics {
                domid,
                used: self.store.used(domid),
                ring,
            }
        };
        Statistics {
            requests: self.counters.all(),
            transactions: self.counters.transactions(),
            events_lost: self.counters.events_lost,
            local,
            domains: self.store.known().into_iter().map(domain).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_and_outcome_has_a_count_of_its_own() {
        let mut counters = Counters::default();
        let read = u32::from(Operation::Read);
        for (operation, error) in [
            (read, None),
            (read, None),
            (read, Some(Errno::ENOENT)),
            (u32::from(Operation::SetQuota), Some(Errno::E2BIG)),
            (20, Some(Errno::ENOSYS)),
            (u32::MAX, Some(Errno::ENOSYS)),
            (read, Some(Errno(9999))),
        ] {
            counters.request(operation, error);
        }
        let all = counters.all();
        let count = |operation, error| {
            let found = all
                .iter()
                .filter(|it| (it.operation, it.error) == (operation, error));
            found.map(|it| it.count).collect::<Vec<_>>()
        };
        assert_eq!(count(Some(Operation::Read), None), [2]);
        assert_eq!(count(Some(Operation::Read), Some(Errno::ENOENT)), [1]);
        // What goes over the wire for it.
        assert_eq!(count(Some(Operation::Read), Some(Errno::EINVAL)), [1]);
        assert_eq!(count(Some(Operation::SetQuota), Some(Errno::E2BIG)), [1]);
        assert_eq!(count(None, Some(Errno::ENOSYS)), [2]);
        assert_eq!(all.len(), 5);
    }
}
