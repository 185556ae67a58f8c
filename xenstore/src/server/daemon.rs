//! xenstored as one task: it owns the [`Server`] and every connection, and sleeps until one of
//! them rings.
//!
//! ```text
//!   Handle ──── commands ───────────────┐
//!   transport 1 ── its waker ─┐         ▼
//!   transport 2 ── its waker ─┼─ ids ─▶ Daemon ── pump(id): input, serve, output
//!   transport 3 ── its waker ─┘
//! ```
//!
//! Only the connections that rang are looked at, so ten thousand idle ones cost nothing; and
//! nothing is locked, since there is one owner.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::task::Wake;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use parapet_hypervisor::seam::{Access, Guest};
use parapet_ring::Peer;
use parapet_xen_sys::io::xs_wire::{RING_SIZE, RingError};
use parapet_xen_sys::{DomId, Errno, GrantRef, Port};

use super::{Server, World};
use crate::mailbox::Mailbox;
use crate::store::{ClientId, Store};
use crate::transport::{Broken, Pipe, RingTransport, Transport};

/// How many connections are pumped before other tasks get their turn.
const TURN: usize = 64;

/// Who is at the door: the ids of connections that rang.
type Door = Arc<Mailbox<ClientId>>;

/// A connection's waker: puts its id to the door, once.
struct Doorbell {
    client: ClientId,
    rung: AtomicBool,
    door: Door,
}

impl Doorbell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.door.put(self.client);
        }
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

struct Connection {
    transport: Box<dyn Transport>,
    bell: Arc<Doorbell>,
    waker: Waker,
}

/// The connections, and the way to new ones.
struct Hub<G> {
    guest: G,
    exists: Box<dyn Fn(DomId) -> bool + Send>,
    connections: BTreeMap<ClientId, Connection>,
    door: Door,
}

impl<G: Guest> Hub<G> {
    fn add(&mut self, client: ClientId, transport: Box<dyn Transport>) {
        let bell = Arc::new(Doorbell {
            client,
            rung: AtomicBool::new(false),
            door: self.door.clone(),
        });
        bell.ring();
        let connection = Connection {
            transport,
            waker: bell.clone().into(),
            bell,
        };
        self.connections.insert(client, connection);
    }
}

impl<G: Guest> World for Hub<G> {
    fn exists(&self, domid: DomId) -> bool {
        (self.exists)(domid)
    }

    fn connect(&mut self, client: ClientId, domid: DomId, port: Port) -> Result<(), Errno> {
        let refused = |error: &dyn core::fmt::Display| {
            log::warn!("domain {domid} cannot be connected: {error}");
            Errno::EINVAL
        };
        let grants = [GrantRef::RESERVED_XENSTORE];
        let page = self.guest.map(domid, &grants, Access::ReadWrite);
        let page = page.map_err(|error| refused(&error))?;
        let page = Peer::new(page).map_err(|_| refused(&"its page is read-only"))?;
        let channel = self.guest.bind(domid, port);
        let channel = channel.map_err(|error| refused(&error))?;
        let transport = RingTransport::host(page, channel).map_err(|error| refused(&error))?;
        self.add(client, Box::new(transport));
        Ok(())
    }

    fn restart(&mut self, client: ClientId) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.transport.restart();
            connection.bell.ring();
        }
    }

    fn disconnect(&mut self, client: ClientId) {
        self.connections.remove(&client);
    }
}

enum Command {
    Introduce(DomId, Port, Arc<Mailbox<Result<(), Errno>>>),
    ShutDown(DomId),
    Release(DomId),
    Connect(Box<dyn Transport>),
}

/// How the host talks to its xenstored. Clones talk to the same one.
#[derive(Clone)]
pub struct Handle(Arc<Mailbox<Command>>);

impl Handle {
    /// Connects xenstored to a domain: to the page that it granted to us as grant 1, and to its
    /// `port`. What the domain has put into its ring already is served.
    ///
    /// # Errors
    /// `EINVAL` if the page cannot be mapped or the port not bound; `EIO` if xenstored is gone.
    pub async fn introduce(&self, domid: DomId, port: Port) -> Result<(), Errno> {
        let reply = Mailbox::new();
        self.order(Command::Introduce(domid, port, reply.clone()));
        let introduced = poll_fn(|cx| reply.poll_take(cx)).await;
        introduced.unwrap_or(Err(Errno::EIO))
    }

    fn order(&self, command: Command) {
        self.0.put(command);
        if self.0.is_closed() {
            refuse(&self.0);
        }
    }

    /// A domain has shut down or crashed: `@releaseDomain` is fired, once.
    pub fn shut_down(&self, domid: DomId) {
        self.order(Command::ShutDown(domid));
    }

    /// A domain is gone, introduced or not: so are its nodes.
    pub fn release(&self, domid: DomId) {
        self.order(Command::Release(domid));
    }

    /// Serves one more local client, which may do everything.
    pub fn serve(&self, transport: impl Transport + 'static) {
        self.order(Command::Connect(Box::new(transport)));
    }

    /// A connection within this process, which may do everything.
    pub fn connect(&self) -> Pipe {
        let (ours, theirs) = Pipe::pair();
        self.serve(theirs);
        ours
    }
}

/// xenstored, serving the domains and local clients that its [`Handle`] tells it of.
pub struct Daemon<G> {
    server: Server,
    hub: Hub<G>,
    commands: Arc<Mailbox<Command>>,
}

impl<G: Guest> Daemon<G> {
    /// A xenstored that runs in `guest`, and asks `exists` whether there is a domain.
    pub fn new(
        guest: G,
        store: Store,
        exists: impl Fn(DomId) -> bool + Send + 'static,
    ) -> (Self, Handle) {
        let commands = Mailbox::new();
        let daemon = Daemon {
            server: Server::new(store),
            hub: Hub {
                guest,
                exists: Box::new(exists),
                connections: BTreeMap::new(),
                door: Mailbox::new(),
            },
            commands: commands.clone(),
        };
        (daemon, Handle(commands))
    }

    /// Serves for ever: the task to spawn.
    pub async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.commands.register(cx.waker());
        self.hub.door.register(cx.waker());
        while let Some(command) = self.commands.take() {
            self.obey(command);
            self.ring_stirred();
        }
        for _ in 0..TURN {
            let Some(client) = self.hub.door.take() else {
                return Poll::Pending;
            };
            self.pump(client);
            self.ring_stirred();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Introduce(domid, port, reply) => {
                let introduced = self.server.introduce(domid, port, &mut self.hub);
                reply.put(introduced.map(|_| ()));
            }
            Command::ShutDown(domid) => self.server.shut_down(domid),
            Command::Release(domid) => self.server.release(domid, &mut self.hub),
            Command::Connect(transport) => {
                let client = self.server.connect_local();
                self.hub.add(client, transport);
            }
        }
    }

    /// Rings for the connections that have got something to send by what was just done.
    fn ring_stirred(&mut self) {
        for client in self.server.take_stirred() {
            if let Some(connection) = self.hub.connections.get(&client) {
                connection.bell.ring();
            }
        }
    }

    /// Moves on one connection what can be moved, and waits for more once nothing can.
    fn pump(&mut self, client: ClientId) {
        let Some(connection) = self.hub.connections.get_mut(&client) else {
            return;
        };
        connection.bell.rung.store(false, Ordering::Release);
        let moved = exchange(&mut self.server, client, &mut self.hub);
        if let Err(broken) = moved {
            log::warn!("{client:?}: {broken}");
            let why = match broken {
                Broken::Ring(_) => RingError::RingIdx,
                Broken::Closed | Broken::GivenUp(_) | Broken::Host(_) => RingError::Comm,
            };
            self.server.fail(client, why);
        }
        let Some(connection) = self.hub.connections.get_mut(&client) else {
            return;
        };
        if !self.server.is_connected(client) {
            self.hub.connections.remove(&client);
        } else if let Some(why) = self.server.fault(client) {
            // It stays mapped, as it may be introduced anew, but nothing that it does wakes us.
            connection.transport.blame(why);
        } else {
            let mut cx = Context::from_waker(&connection.waker);
            if moved == Ok(true) || connection.transport.poll_ready(&mut cx).is_ready() {
                connection.bell.ring();
            }
        }
    }
}

/// Sends, serves and receives once each. Whether anything moved.
fn exchange<G: Guest>(
    server: &mut Server,
    client: ClientId,
    hub: &mut Hub<G>,
) -> Result<bool, Broken> {
    let mut moved = false;
    if let Some(connection) = hub.connections.get_mut(&client) {
        while !server.output(client).is_empty() {
            let sent = connection.transport.write(server.output(client))?;
            if sent == 0 {
                break;
            }
            server.sent(client, sent);
            moved = true;
        }
    }
    moved |= server.serve(client, hub);
    if let Some(connection) = hub.connections.get_mut(&client)
        && server.wants_input(client)
    {
        let mut bytes = [0; 2 * RING_SIZE];
        let got = connection.transport.read(&mut bytes)?;
        server.input(client, bytes.get(..got).unwrap_or(&[]));
        moved |= got > 0;
    }
    Ok(moved)
}

impl<G> Drop for Daemon<G> {
    fn drop(&mut self) {
        self.commands.close();
        refuse(&self.commands);
    }
}

/// Nobody obeys these commands any more.
fn refuse(commands: &Mailbox<Command>) {
    while let Some(command) = commands.take() {
        if let Command::Introduce(_, _, reply) = command {
            reply.close();
        }
    }
}
