//! All that a [`Server`] knows, as a migration stream, and a server made anew of that.
//!
//! ```text
//!   Server ── dump() ──▶ stream ── restore() ──▶ Restored { server, connections, global }
//!                                                   │         who is at the other end of each
//!                                                   └── a value: nothing is done before it is whole
//! ```
//!
//! What a stream has no place for: open transactions (their clients are told ENOENT), the depth of
//! watches in version 1, what has been charged to whom for events that wait, and the settings of the
//! log. Whether a domain has shut down goes as a quota that other xenstoreds do not know and leave
//! alone, as the document allows.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xs_wire::{Operation, ServerFeatures};

use super::{Connection, Domain, Peer, Server};
use crate::migration::{
    self, ByteOrder, End, Global, GlobalQuotas, Header, Malformed, Place, Quota, Reader, Record,
    Unwritable, Version, Writer,
};
use crate::store::{Caller, ClientId, FEATURES, Limit, Misfit, Quotas, Rebuilt, Store, Watching};
use crate::transport::Legacy;
use crate::wire::{self, encode};

/// Says by its value 1 that a domain has shut down. No quota: it is written among them.
const SHUT_DOWN: &str = "parapet-shut-down";

/// A request that is not answered yet.
pub(super) struct Answered {
    pub(super) client: ClientId,
    pub(super) req_id: u32,
    pub(super) tx_id: u32,
}

/// What the reader of a stream can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The version that it knows.
    pub version: Version,
    /// Records of domains that have no connection. C xenstored ends at one of a domain that nothing
    /// else in the stream names.
    pub alone: bool,
}

/// A server that goes on where another stopped.
pub struct Restored {
    /// It knows every connection, and none of them has a transport yet.
    pub server: Server,
    /// Who is at the other end of each.
    pub connections: Vec<(ClientId, End)>,
    /// What the process has inherited besides.
    pub global: Global,
}

/// A stream that no server can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no stream.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A record that contradicts those before it.
    #[error("{place}: {reason}")]
    Inconsistent {
        /// The record.
        place: Place,
        /// Why.
        reason: Reason,
    },
    /// There is no root.
    #[error("there is no node / in it")]
    NoRoot,
}

/// What can be wrong with a record beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is to be one.
    #[error("there is one already")]
    Twice,
    /// Two connections of one number, domain or socket.
    #[error("there is such a connection already")]
    SameConnection,
    /// No connection of this number came before.
    #[error("there is no connection {0}")]
    UnknownConnection(u32),
    /// No transaction of this number came before.
    #[error("there is no transaction {0}")]
    UnknownTransaction(u32),
    /// The store does not take it.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

impl Server {
    /// Everything, as a stream, in which whoever asked for a live update is told OK. `legacy` says
    /// what is left of each connection's transport; a connection of which nothing is, is left out.
    ///
    /// # Errors
    /// Something does not fit. Nothing that a server takes in is as large, but for very long lists
    /// of permissions.
    pub(super) fn dump(
        &self,
        form: Form,
        global: Global,
        legacy: impl Fn(ClientId) -> Option<Legacy>,
    ) -> Result<Vec<u8>, Unwritable> {
        let Form { version, .. } = form;
        let order = ByteOrder::NATIVE;
        let mut writer = Writer::new(Header { version, order });
        writer.push(&Record::Global(global))?;
        writer.push(&Record::GlobalQuotas(GlobalQuotas {
            domains: borrowed(&self.quotas(None)),
            global: Vec::new(),
        }))?;
        let ends = self.connections.iter().filter_map(|(client, connection)| {
            let end = self.end(*client, connection.peer, legacy(*client)?)?;
            Some((client, connection, end))
        });
        for ((client, connection, end), id) in ends.zip(1..) {
            let asked = self.update_request().filter(|it| it.client == *client);
            dump_connection(&mut writer, id, end, connection, asked)?;
            for watch in self.store.watches(*client) {
                let depth = watch.depth.and_then(|depth| u16::try_from(depth).ok());
                let depth = depth.filter(|depth| *depth < u16::MAX);
                writer.push(&Record::Watch(migration::Watch {
                    connection: id,
                    path: watch.path.as_bytes(),
                    token: watch.token,
                    depth: depth.filter(|_| version >= Version::V2),
                }))?;
            }
        }
        self.store.each_node(|path, node, entries| {
            writer.push(&Record::Node(migration::Node {
                pending: None,
                path: path.as_bytes(),
                value: node.value(),
                permissions: entries.to_vec(),
            }))
        })?;
        self.dump_domains(&mut writer, form)?;
        Ok(writer.finish())
    }

    fn end(&self, client: ClientId, peer: Peer, legacy: Legacy) -> Option<End> {
        match (peer, legacy) {
            (Peer::Local, Legacy::Socket(descriptor)) => Some(End::Socket(descriptor)),
            (Peer::Domain(domid), Legacy::Port(port)) => Some(End::Ring {
                domid,
                target: self.store.caller(client).ok()?.target,
                port,
            }),
            _ => None,
        }
    }

    /// What a domain may use, or what the next one may.
    fn quotas(&self, domid: Option<DomId>) -> Vec<(String, u32)> {
        let Some(quotas) = self.store.quotas(domid) else {
            return Vec::new();
        };
        Limit::all()
            .map(|limit| (limit.to_string(), quotas[limit]))
            .collect()
    }

    fn dump_domains(&self, writer: &mut Writer, form: Form) -> Result<(), Unwritable> {
        for domid in self.store.known() {
            let introduced = self.domains.get(&domid);
            if introduced.is_none() && !form.alone {
                continue;
            }
            let mut quotas = self.quotas(Some(domid));
            if introduced.is_some_and(|domain| domain.shut_down) {
                quotas.push((SHUT_DOWN.into(), 1));
            }
            let features = self.store.features(domid).unwrap_or(FEATURES);
            writer.push(&Record::Domain(migration::Domain {
                domid,
                features: features.bits(),
                quotas: borrowed(&quotas),
            }))?;
        }
        Ok(())
    }
}

fn borrowed(quotas: &[(String, u32)]) -> Vec<Quota<'_>> {
    let quotas = quotas.iter();
    quotas
        .map(|(name, value)| Quota {
            name,
            value: *value,
        })
        .collect()
}

fn dump_connection(
    writer: &mut Writer,
    id: u32,
    end: End,
    connection: &Connection,
    asked: Option<&Answered>,
) -> Result<(), Unwritable> {
    let mut output = Vec::from(connection.output.bytes());
    if let Some(Answered { req_id, tx_id, .. }) = asked {
        let ok = encode(
            &mut output,
            Operation::Control,
            *req_id,
            *tx_id,
            &[wire::OK],
        );
        debug_assert!(ok.is_ok(), "a short payload fits");
    }
    writer.push(&Record::Connection(migration::Connection {
        id,
        end,
        input: connection.input.rest(),
        output: &output,
        partial: connection.output.partial(),
        unique_id: None,
    }))
}

/// A server of what a stream says. What that leaves open about quotas is as in `quotas`. Its store
/// counts generations from `generation` on: more than the old one can have reached.
///
/// # Errors
/// There is something wrong with the stream, and no server.
pub fn restore(stream: &[u8], quotas: Quotas, generation: u64) -> Result<Restored, Refused> {
    let reader = Reader::new(stream)?;
    let mut restoring = Restoring {
        version: reader.header().version,
        server: Server::new(Store::default()),
        store: Rebuilt::new(quotas, generation),
        global: None,
        quotas: false,
        connections: Vec::new(),
        ends: BTreeSet::new(),
        transactions: BTreeSet::new(),
        domains: BTreeSet::new(),
    };
    for next in reader {
        let (place, record) = next?;
        let taken = restoring.take(record);
        taken.map_err(|reason| Refused::Inconsistent { place, reason })?;
    }
    let mut server = restoring.server;
    server.store = restoring.store.finish().map_err(|_| Refused::NoRoot)?;
    let connections = restoring.connections.into_iter();
    Ok(Restored {
        server,
        connections: connections.map(|known| (known.client, known.end)).collect(),
        global: restoring.global.unwrap_or(Global {
            socket: None,
            event_channels: None,
        }),
    })
}

/// A server as far as it is there.
struct Restoring {
    version: Version,
    server: Server,
    /// Becomes the server's in the end.
    store: Rebuilt,
    global: Option<Global>,
    quotas: bool,
    /// By number, in ascending order.
    connections: Vec<Known>,
    /// The domains and sockets of `connections`.
    ends: BTreeSet<(bool, i64)>,
    transactions: BTreeSet<(u32, u32)>,
    /// Those of which there was a record.
    domains: BTreeSet<DomId>,
}

struct Known {
    id: u32,
    client: ClientId,
    end: End,
}

impl Restoring {
    fn take(&mut self, record: Record<'_>) -> Result<(), Reason> {
        match record {
            Record::Global(global) if self.global.is_none() => self.global = Some(global),
            Record::Global(_) => return Err(Reason::Twice),
            Record::GlobalQuotas(_) if self.quotas => return Err(Reason::Twice),
            Record::GlobalQuotas(quotas) => {
                self.quotas = true;
                self.set_quotas(None, &quotas.domains);
            }
            Record::Connection(connection) => self.take_connection(&connection)?,
            Record::Watch(watch) => {
                let client = self.client(watch.connection)?;
                let path = core::str::from_utf8(watch.path).map_err(|_| Misfit::Path)?;
                let watch = Watching {
                    path,
                    token: watch.token,
                    depth: watch.depth.map(u32::from),
                };
                self.store.watch(client, &watch)?;
            }
            // As with C xenstored it is given up: whatever its client asks of it is ENOENT.
            Record::Transaction(transaction) => {
                self.client(transaction.connection)?;
                let of = (transaction.connection, transaction.transaction);
                if !self.transactions.insert(of) {
                    return Err(Reason::Twice);
                }
            }
            Record::Node(node) => match node.pending {
                Some(pending) => {
                    let migration::Transaction {
                        connection,
                        transaction,
                    } = pending.of;
                    self.client(connection)?;
                    if !self.transactions.contains(&(connection, transaction)) {
                        return Err(Reason::UnknownTransaction(transaction));
                    }
                }
                None => {
                    self.store.node(node.path, node.value, &node.permissions)?;
                }
            },
            Record::Domain(domain) => self.take_domain(&domain)?,
        }
        Ok(())
    }

    fn client(&self, id: u32) -> Result<ClientId, Reason> {
        let place = self.connections.binary_search_by_key(&id, |known| known.id);
        let known = place.ok().and_then(|at| self.connections.get(at));
        let known = known.ok_or(Reason::UnknownConnection(id))?;
        Ok(known.client)
    }

    fn take_connection(&mut self, connection: &migration::Connection<'_>) -> Result<(), Reason> {
        let &migration::Connection { id, end, .. } = connection;
        let (peer, key) = match end {
            End::Ring { domid, .. } => (Peer::Domain(domid), (true, i64::from(domid.0))),
            End::Socket(descriptor) => (Peer::Local, (false, i64::from(descriptor))),
        };
        let Err(place) = self.connections.binary_search_by_key(&id, |known| known.id) else {
            return Err(Reason::SameConnection);
        };
        if !self.ends.insert(key) {
            return Err(Reason::SameConnection);
        }
        let caller = match end {
            End::Socket(_) => Caller::PRIVILEGED,
            End::Ring { domid, target, .. } => {
                let store = self.store.store();
                for named in [Some(domid), target].into_iter().flatten() {
                    store.know(named);
                }
                Caller {
                    target,
                    ..Caller::domain(domid)
                }
            }
        };
        let client = self.server.add(peer);
        self.store.store().attach(client, caller);
        if let End::Ring { domid, .. } = end {
            let shut_down = false;
            let domain = Domain { client, shut_down };
            self.server.domains.insert(domid, domain);
        }
        if let Some(restored) = self.server.connections.get_mut(&client) {
            restored.input.push(connection.input);
            restored
                .output
                .restore(connection.output, connection.partial);
        }
        let known = Known { id, client, end };
        self.connections.insert(place, known);
        Ok(())
    }

    fn take_domain(&mut self, domain: &migration::Domain<'_>) -> Result<(), Reason> {
        let domid = domain.domid;
        if !self.domains.insert(domid) {
            return Err(Reason::Twice);
        }
        let store = self.store.store();
        store.know(domid);
        if self.version >= Version::V2 {
            let features = ServerFeatures::from_bits_truncate(domain.features);
            store.set_features(domid, features);
        }
        self.set_quotas(Some(domid), &domain.quotas);
        if let Some(introduced) = self.server.domains.get_mut(&domid) {
            let says_so = |quota: &Quota<'_>| quota.name == SHUT_DOWN && quota.value == 1;
            introduced.shut_down = domain.quotas.iter().any(says_so);
        }
        Ok(())
    }

    /// Quotas that are not known here bind nobody.
    fn set_quotas(&mut self, domid: Option<DomId>, list: &[Quota<'_>]) {
        let known = list.iter().filter_map(|quota| {
            let limit = Limit::named(quota.name.as_bytes())?;
            Some((limit, quota.value))
        });
        if let Some(quotas) = self.store.store().quotas_mut(domid) {
            for (limit, value) in known {
                quotas[limit] = value;
            }
        }
    }
}
