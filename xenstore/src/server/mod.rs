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
//! where they are. So do those of a guest that has used up what it may have of others: see
//! `account`. Only a local client that lets far too much pile up loses its connection.
//!
//! Time is told to the server ([`Server::tick`]), and it says when it wants to be told again
//! ([`Server::due`]).

mod account;
mod control;
pub mod daemon;
#[cfg(feature = "std")]
pub mod files;
mod output;
mod requests;
#[cfg(feature = "std")]
pub mod socket;
mod state;
mod statistics;
#[cfg(test)]
mod tests;
mod trace;
mod update;

use alloc::collections::{BTreeMap, BTreeSet};
use core::mem;
use core::time::Duration;

use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation, RingError, ServerFeatures};
use parapet_xen_sys::{DomId, Errno, Port};

use crate::store::{Caller, ClientId, Event, FEATURES, SpecialEvent, Store};
use crate::wire::Decoder;
use account::{Account, Agenda};
use output::{Debt, Output};
use statistics::Counters;
pub use statistics::{Clients, DomainStatistics, Requests, Statistics, Transactions};
use trace::{Switch, Trace};
use update::Update;

pub use state::{Form, Reason, Refused, Restored, restore};
pub use update::Due;

/// How a domain fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is there.
    Running,
    /// It is there, and has shut down or crashed.
    ShutDown,
    /// It is being destroyed, or there is none.
    Gone,
}

/// What a server asks of the place it runs in.
pub trait World {
    /// How a domain fares, introduced or not.
    fn life(&self, domid: DomId) -> Life;

    /// Connects to a domain's xenstore page (grant 1) and to its `port`; from then on that is
    /// the connection `client`, and its page says that it has `features`. If it is connected
    /// already, it only gets another port.
    ///
    /// # Errors
    /// `EINVAL`, or whatever went wrong.
    fn connect(
        &mut self,
        client: ClientId,
        domid: DomId,
        port: Port,
        features: ServerFeatures,
    ) -> Result<(), Errno>;

    /// Empties a domain's ring.
    fn restart(&mut self, client: ClientId);

    /// Lets a connection go.
    fn disconnect(&mut self, client: ClientId);

    /// Adds to the end of a file, which is made if it is not there: the log, or a report.
    ///
    /// # Errors
    /// `EINVAL`: it cannot be written, or there are no files here.
    fn append(&mut self, _file: &[u8], _text: &[u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// Whether a program could take our place.
    ///
    /// # Errors
    /// Why not, as it is told to who asks for a live update.
    fn look_at(&mut self, _program: &[u8]) -> Result<(), &'static str> {
        Err("there is nothing that could be updated")
    }

    /// Asks that [`Server::expire_update`] be called with `number`, after so long.
    fn expire_update(&mut self, _after: Duration, _number: u64) {}
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A domain, over its ring.
    Domain(DomId),
    /// A process of our own domain, which may do everything.
    Local,
}

impl Peer {
    /// Whether it may do everything, and is trusted to.
    fn is_privileged(self) -> bool {
        matches!(self, Peer::Local | Peer::Domain(DomId::ZERO))
    }
}

struct Connection {
    peer: Peer,
    input: Decoder,
    output: Output,
    /// Why it is served no more, if it is not.
    fault: Option<RingError>,
    /// What only a guest has.
    account: Account,
}

impl Connection {
    /// Whether its requests wait.
    fn is_held(&self) -> bool {
        self.output.len() >= ANSWERS_WAITING || self.account.held
    }
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
    agenda: Agenda,
    /// Connections that got something to send, a fault, or leave to go on, by others' doing.
    stirred: BTreeSet<ClientId>,
    trace: Trace,
    counters: Counters,
    /// The session of a live update.
    update: Option<Update>,
    /// Sessions so far.
    updates: u64,
}

/// Requests are not served while this many bytes wait to be read by their client.
const ANSWERS_WAITING: usize = 64 << 10;
/// No more is read from a client while this many bytes of its requests wait: with what is read at
/// once, no more than a migration stream has room for.
const REQUESTS_WAITING: usize = 32 << 10;
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
            agenda: Agenda::default(),
            stirred: BTreeSet::new(),
            trace: Trace::default(),
            counters: Counters::default(),
            update: None,
            updates: 0,
        }
    }

    /// Goes on with what was put off so that nobody waits for it: to be called between others'
    /// requests, as long as it says that there is more.
    pub fn tidy(&mut self) -> bool {
        let more = self.store.tidy();
        self.look_after_held();
        more
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
        let client = self.add(peer);
        self.store.attach(client, caller);
        let line = format_args!("{client:?} begins: {peer:?}");
        self.trace.line(Switch::Objects, line);
        client
    }

    /// Adds a connection, which the store does not know of yet.
    fn add(&mut self, peer: Peer) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        let connection = Connection {
            peer,
            input: Decoder::default(),
            output: Output::default(),
            fault: None,
            account: Account::default(),
        };
        self.connections.insert(client, connection);
        client
    }

    /// Serves this connection no more. A local client is forgotten; a domain stays, without
    /// watches, transactions and waiting bytes, until it is released or introduced anew.
    pub fn fail(&mut self, client: ClientId, why: RingError) {
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        let debts = connection.output.clear();
        match connection.peer {
            Peer::Local => {
                self.connections.remove(&client);
                self.store.detach(client);
            }
            Peer::Domain(_) => {
                connection.input = Decoder::default();
                connection.fault = Some(why);
                self.store.reset(client);
            }
        }
        self.forgive(debts);
        self.settle(client);
        self.leave_update(client);
        self.stirred.insert(client);
        let line = format_args!("{client:?} is served no more: {why:?}");
        self.trace.line(Switch::Objects, line);
    }

    /// Forgets all that a connection had in flight, with its watches, transactions and fault: its
    /// ring is begun anew.
    pub fn start_over(&mut self, client: ClientId) {
        self.store.reset(client);
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.input = Decoder::default();
            connection.fault = None;
            let debts = connection.output.clear();
            self.forgive(debts);
            self.settle(client);
        }
    }

    /// Whether there is such a connection.
    pub fn is_connected(&self, client: ClientId) -> bool {
        self.connections.contains_key(&client)
    }

    /// Why a connection is served no more, if it is not.
    pub fn fault(&self, client: ClientId) -> Option<RingError> {
        self.connections.get(&client)?.fault
    }

    /// What we do for a client.
    fn features(&self, client: ClientId) -> ServerFeatures {
        match self.connections.get(&client).map(|it| it.peer) {
            Some(Peer::Domain(domid)) => self.store.features(domid).unwrap_or(FEATURES),
            _ => FEATURES,
        }
    }

    // ---- bytes

    /// Whether [`Server::input`] should be given more bytes now.
    pub fn wants_input(&self, client: ClientId) -> bool {
        self.connections.get(&client).is_some_and(|connection| {
            connection.fault.is_none()
                && !connection.is_held()
                && connection.input.len() < REQUESTS_WAITING
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
        let served = self.serve_some(client, world);
        self.trace.write(world);
        served
    }

    fn serve_some(&mut self, client: ClientId, world: &mut impl World) -> bool {
        for turn in 0..TURN {
            if self.waits_for_update(client) {
                return turn > 0;
            }
            let Some(connection) = self.connections.get_mut(&client) else {
                return false;
            };
            if connection.fault.is_some() || connection.is_held() {
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
            let debts = connection.output.sent(len);
            self.forgive(debts);
            self.settle(client);
        }
    }

    /// The connections that, since this was last asked, got something to send or a fault, or owe
    /// so little again that their requests are served.
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
            world.connect(domain.client, domid, port, self.features(domain.client))?;
            return Ok(domain.client);
        }
        let news = !self.store.knows(domid);
        self.store.know(domid);
        let client = self.connect(Peer::Domain(domid), Caller::domain(domid));
        if let Err(error) = world.connect(client, domid, port, self.features(client)) {
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
        self.deliver(None);
        Ok(client)
    }

    /// A domain has shut down or crashed, and is still there.
    pub fn shut_down(&mut self, domid: DomId) {
        if let Some(domain) = self.domains.get_mut(&domid)
            && !mem::replace(&mut domain.shut_down, true)
        {
            self.store.announce(SpecialEvent::Release, domid);
            self.deliver(None);
        }
    }

    /// A domain is gone. Its nodes go with it, and whatever else was its own.
    pub fn release(&mut self, domid: DomId, world: &mut impl World) {
        let domain = self.domains.remove(&domid);
        if let Some(domain) = &domain {
            if let Some(mut connection) = self.connections.remove(&domain.client) {
                self.forgive(connection.output.clear());
            }
            self.store.detach(domain.client);
            world.disconnect(domain.client);
        }
        if domid != DomId::ZERO {
            self.store.forget(domid);
        }
        self.look_after_held();
        if domain.is_some() {
            self.store.announce(SpecialEvent::Release, domid);
        }
        self.deliver(None);
    }

    /// Something has happened to some domain: does for each what [`Server::shut_down`] or
    /// [`Server::release`] does, if it is so.
    pub fn look_around(&mut self, world: &mut impl World) {
        for domid in self.store.known() {
            match world.life(domid) {
                _ if domid == DomId::ZERO => {}
                Life::Running => {}
                Life::ShutDown => self.shut_down(domid),
                Life::Gone => self.release(domid, world),
            }
        }
    }

    // ---- events

    /// Queues the events that are due, by a request of `causer` or by nobody's.
    fn deliver(&mut self, causer: Option<ClientId>) {
        let guest = causer.and_then(|causer| self.request_of_guest(causer));
        for event in self.store.take_events() {
            self.tell(&event, guest);
        }
    }

    /// Queues an event. If its client is privileged, the guest's request that caused it is
    /// outstanding until it is sent.
    fn tell(&mut self, event: &Event, guest: Option<(ClientId, u64)>) {
        let now = self.store.now();
        let Some(connection) = self.connections.get_mut(&event.client) else {
            return;
        };
        let causer = match connection.peer {
            Peer::Domain(domid) if domid != DomId::ZERO => {
                let bytes = event.path().len() + event.token.len() + EVENT;
                if !self.store.has_memory(domid, bytes) {
                    self.counters.events_lost += 1;
                    return;
                }
                None
            }
            Peer::Local if connection.output.len() > LOCAL_WAITING => {
                log::warn!("a local client does not read its events");
                return self.fail(event.client, RingError::Comm);
            }
            _ => guest,
        };
        let output = &mut connection.output;
        let debt = output.event(event.path(), &event.token, now, causer);
        self.stirred.insert(event.client);
        self.settle(event.client);
        self.remind(event.client);
        if let Some(debt) = debt {
            self.owe(debt);
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
        let debt = self.request_of_guest(client).map(|(causer, request)| Debt {
            causer,
            request,
            bytes: 0,
        });
        if let Some(connection) = self.connections.get_mut(&client) {
            let output = &mut connection.output;
            if output
                .answer(operation, req_id, tx_id, payload, debt)
                .is_err()
            {
                let too_big = output.answer(Operation::Error, req_id, tx_id, b"E2BIG\0", debt);
                debug_assert!(too_big.is_ok(), "a short payload fits");
            }
        }
        if let Some(debt) = debt {
            self.owe(debt);
        }
    }
}

/// The bytes of an event besides its path and token.
const EVENT: usize = size_of::<MessageHeader>() + 2;
