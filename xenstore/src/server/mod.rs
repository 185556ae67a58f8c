//! xenstored without its input and output: connections and domains around a [`Store`].
//!
//! ```text
//!            bytes in                                   bytes out
//!   edge ──▶ input() ─▶ serve(): one request after another ─▶ output(), sent() ──▶ edge
//!                          │   answers, and events to every connection that watches
//!                          ▼
//!                       Store            World: does that domain exist? connect it, let it go
//! ```
//!
//! The [`Server`] is a plain value: whoever owns it feeds it the bytes of each connection and
//! carries its output away. [`daemon::Daemon`] does that in one task for any number of
//! [`Transport`](crate::transport::Transport)s; [`socket`] adds those that come by a unix socket.
//!
//! A client that sends faster than it reads is not served until it has read: its requests wait
//! where they are. Events do not wait, so there is a bound on them, beyond which a guest loses
//! some, as with C xenstored, and a local client loses its connection.

mod control;
pub mod daemon;
mod output;
mod requests;
#[cfg(feature = "std")]
pub mod socket;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use core::mem;

use parapet_xen_sys::io::xs_wire::{Operation, RingError};
use parapet_xen_sys::{DomId, Errno, Port};

use crate::store::{Caller, ClientId, Event, SpecialEvent, Store};
use crate::wire::Decoder;
use output::Output;

/// What a server asks of the place it runs in.
pub trait World {
    /// Whether there is such a domain, introduced or not.
    fn exists(&self, domid: DomId) -> bool;

    /// Connects to a domain's xenstore page (grant 1) and to its `port`; from then on that is
    /// the connection `client`. If it is connected already, it only gets another port.
    ///
    /// # Errors
    /// `EINVAL`, or whatever went wrong.
    fn connect(&mut self, client: ClientId, domid: DomId, port: Port) -> Result<(), Errno>;

    /// Empties a domain's ring.
    fn restart(&mut self, client: ClientId);

    /// Lets a connection go.
    fn disconnect(&mut self, client: ClientId);
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A domain, over its ring.
    Domain(DomId),
    /// A process of our own domain, which may do everything.
    Local,
}

struct Connection {
    peer: Peer,
    input: Decoder,
    output: Output,
    /// Why it is served no more, if it is not.
    fault: Option<RingError>,
}

struct Domain {
    client: ClientId,
    /// It shut down, and `@releaseDomain` was fired for that.
    shut_down: bool,
}

/// A xenstored, as a value.
pub struct Server {
    store: Store,
    connections: BTreeMap<ClientId, Connection>,
    /// The introduced ones.
    domains: BTreeMap<DomId, Domain>,
    next_client: u64,
    /// Connections that got something to send, or a fault, by another's request.
    stirred: BTreeSet<ClientId>,
    /// Whether every request is logged.
    access_log: bool,
}

/// Requests are not served while this many bytes wait to be read by their client.
const ANSWERS_WAITING: usize = 64 << 10;
/// Bytes waiting for a domain beyond which it loses events.
const DOMAIN_WAITING: usize = 512 << 10;
/// Bytes waiting for a local client beyond which it is let go.
const LOCAL_WAITING: usize = 16 << 20;
/// Requests of one client that are served before others get their turn.
const TURN: usize = 32;

impl Server {
    /// A server with nobody connected.
    pub fn new(store: Store) -> Self {
        Server {
            store,
            connections: BTreeMap::new(),
            domains: BTreeMap::new(),
            next_client: 1,
            stirred: BTreeSet::new(),
            access_log: false,
        }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes in a local client.
    pub fn connect_local(&mut self) -> ClientId {
        self.connect(Peer::Local, Caller::PRIVILEGED)
    }

    fn connect(&mut self, peer: Peer, caller: Caller) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        let connection = Connection {
            peer,
            input: Decoder::default(),
            output: Output::default(),
            fault: None,
        };
        self.connections.insert(client, connection);
        self.store.attach(client, caller);
        client
    }

    /// Serves this connection no more. A local client is forgotten; a domain stays, without
    /// watches, transactions and waiting bytes, until it is released or introduced anew.
    pub fn fail(&mut self, client: ClientId, why: RingError) {
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        match connection.peer {
            Peer::Local => {
                self.connections.remove(&client);
                self.store.detach(client);
            }
            Peer::Domain(_) => {
                connection.input = Decoder::default();
                connection.output.clear();
                connection.fault = Some(why);
                self.store.reset(client);
            }
        }
        self.stirred.insert(client);
    }

    /// Whether there is such a connection.
    pub fn is_connected(&self, client: ClientId) -> bool {
        self.connections.contains_key(&client)
    }

    /// Why a connection is served no more, if it is not.
    pub fn fault(&self, client: ClientId) -> Option<RingError> {
        self.connections.get(&client)?.fault
    }

    // ---- bytes

    /// Whether [`Server::input`] should be given more bytes now.
    pub fn wants_input(&self, client: ClientId) -> bool {
        self.connections.get(&client).is_some_and(|connection| {
            connection.fault.is_none()
                && connection.output.len() < ANSWERS_WAITING
                && connection.input.len() < ANSWERS_WAITING
        })
    }

    /// Takes in bytes that a client sent.
    pub fn input(&mut self, client: ClientId, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.input.push(bytes);
        }
    }

    /// Serves some of the requests that have come in whole. Whether there were any: then there may
    /// be more.
    pub fn serve(&mut self, client: ClientId, world: &mut impl World) -> bool {
        for turn in 0..TURN {
            let Some(connection) = self.connections.get_mut(&client) else {
                return false;
            };
            if connection.fault.is_some() || connection.output.len() >= ANSWERS_WAITING {
                return turn > 0;
            }
            match connection.input.message() {
                Ok(Some(message)) => self.handle(client, &message, world),
                Ok(None) => return turn > 0,
                Err(error) => {
                    log::warn!("{:?}: {error}", connection.peer);
                    self.fail(client, RingError::Proto);
                    return false;
                }
            }
        }
        true
    }

    /// What to send to a client next.
    pub fn output(&self, client: ClientId) -> &[u8] {
        let connection = self.connections.get(&client);
        connection.map_or(&[], |connection| connection.output.bytes())
    }

    /// The first `len` bytes of [`Server::output`] are sent.
    pub fn sent(&mut self, client: ClientId, len: usize) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.output.sent(len);
        }
    }

    /// The connections that, since this was last asked, got something to send or a fault.
    pub fn take_stirred(&mut self) -> BTreeSet<ClientId> {
        mem::take(&mut self.stirred)
    }

    // ---- domains

    /// Connects to a domain, as INTRODUCE does, but leaves alone what is in its ring already.
    ///
    /// # Errors
    /// What [`World::connect`] says.
    pub fn introduce(
        &mut self,
        domid: DomId,
        port: Port,
        world: &mut impl World,
    ) -> Result<ClientId, Errno> {
        if let Some(domain) = self.domains.get(&domid) {
            world.connect(domain.client, domid, port)?;
            return Ok(domain.client);
        }
        let news = !self.store.knows(domid);
        self.store.know(domid);
        let client = self.connect(Peer::Domain(domid), Caller::domain(domid));
        if let Err(error) = world.connect(client, domid, port) {
            self.connections.remove(&client);
            self.store.detach(client);
            if news {
                self.store.forget(domid);
            }
            return Err(error);
        }
        let shut_down = false;
        self.domains.insert(domid, Domain { client, shut_down });
        if domid != DomId::ZERO {
            self.store.announce(SpecialEvent::Introduce, domid);
        }
        self.deliver();
        Ok(client)
    }

    /// A domain has shut down or crashed, and is still there.
    pub fn shut_down(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid)
            && !mem::replace(&mut domain.shut_down, true)
        {
            self.store.announce(SpecialEvent::Release, domid);
            self.deliver();
        }
    }

    /// A domain is gone. Its nodes go with it, and whatever else was its own.
    pub fn release(&mut self, domid: DomId, world: &mut impl World) {
        let domain = self.domains.remove(&domid);
        if let Some(domain) = &domain {
            self.connections.remove(&domain.client);
            self.store.detach(domain.client);
            world.disconnect(domain.client);
        }
        if domid != DomId::ZERO {
            self.store.forget(domid);
        }
        if domain.is_some() {
            self.store.announce(SpecialEvent::Release, domid);
        }
        self.deliver();
    }

    // ---- events

    /// Queues the events that are due.
    fn deliver(&mut self) {
        for event in self.store.take_events() {
            self.tell(&event);
        }
    }

    fn tell(&mut self, event: &Event) {
        let Some(connection) = self.connections.get_mut(&event.client) else {
            return;
        };
        let waiting = connection.output.len();
        match connection.peer {
            Peer::Domain(domid) if domid != DomId::ZERO && waiting > DOMAIN_WAITING => {}
            _ if waiting > LOCAL_WAITING => {
                log::warn!("{:?} does not read its events", connection.peer);
                self.fail(event.client, RingError::Comm);
            }
            _ => {
                connection.output.event(event.path(), &event.token);
                self.stirred.insert(event.client);
            }
        }
    }

    fn answer(
        &mut self,
        client: ClientId,
        operation: Operation,
        req_id: u32,
        tx_id: u32,
        payload: &[u8],
    ) {
        if let Some(connection) = self.connections.get_mut(&client) {
            let output = &mut connection.output;
            if output.answer(operation, req_id, tx_id, payload).is_err() {
                let too_big = output.answer(Operation::Error, req_id, tx_id, b"E2BIG\0");
                debug_assert!(too_big.is_ok(), "a short payload fits");
            }
        }
    }
}
