//! xenstored as one task: it owns the [`Server`] and every connection, and sleeps until one of
//! them rings.
//!
//! ```text
//!   Handle ──── commands ───────────────┐
//!   transport 1 ── its waker ─┐         ▼
//!   transport 2 ── its waker ─┼─ ids ─▶ Daemon ── receive(id) ... then send_all()
//!   transport 3 ── its waker ─┘
//! ```
//!
//! Only the connections that rang are looked at, so ten thousand idle ones cost nothing; and
//! nothing is locked, since there is one owner.

mod succession;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::mem;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use parapet_hypervisor::seam::{Access, Clock, Events, Grants, Guest, Instant};
use parapet_ring::Peer;
use parapet_xen_sys::io::xs_wire::{RING_SIZE, RingError, ServerFeatures};
use parapet_xen_sys::{DomId, Errno, GrantRef, Port};

use super::{Life, Server, Statistics, World};
use crate::mailbox::Mailbox;
use crate::store::{ClientId, Store};
use crate::transport::{Broken, Pipe, RingTransport, Transport};

pub use succession::{Estate, Successor};

/// How many connections are looked at before other tasks get their turn.
const TURN: usize = 64;
/// How many bytes are read at once: some requests of a usual size.
const READ: usize = 2 * RING_SIZE;
/// How many connections are read from before what they get for it is sent. To send wakes a client,
/// which may take our CPU: first what others have asked for meanwhile is done, too.
const BATCH: usize = 16;

/// Who is at the door: the ids of connections that rang.
type Door = Arc<Mailbox<ClientId>>;

/// A connection's waker: puts its id to the door, once.
struct Doorbell {
    client: ClientId,
    rung: AtomicBool,
    door: Door,
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.door.put(self.client);
        }
    }
}

struct Connection {
    transport: Box<dyn Transport>,
    bell: Arc<Doorbell>,
    waker: Waker,
    /// There was nothing to read, and the transport will ring when there is.
    drained: bool,
    /// It is among [`Hub::due`].
    due: bool,
    /// It is among [`Daemon::unsent`].
    unsent: bool,
    /// What the other end was told that it did.
    blamed: Option<RingError>,
}

impl Connection {
    /// Waits for its transport: for something to read if that is `drained`, and for room. Whether
    /// it waits in vain, since there is some.
    fn wait(&mut self, drained: bool) -> bool {
        let mut cx = Context::from_waker(&self.waker);
        let ready = self.transport.poll_ready(&mut cx).is_ready();
        self.drained = !ready && (self.drained || drained);
        ready
    }
}

/// The domains of the host that a xenstored serves.
pub trait Domains: Send + Unpin + 'static {
    /// How a domain fares.
    fn life(&self, domid: DomId) -> Life;

    /// Connects to a domain's xenstore page, which it granted to us as grant 1, and to its `port`.
    ///
    /// # Errors
    /// What is answered to who asked for it: `EINVAL` as a rule.
    fn connect(&mut self, domid: DomId, port: Port) -> Result<Box<dyn Transport>, Errno>;

    /// Goes on with a domain that another xenstored was connected to, by `port` of our own, which
    /// is still bound.
    ///
    /// # Errors
    /// `EINVAL` as a rule: it is not to be had any more.
    fn take_over(&mut self, _domid: DomId, _port: Port) -> Result<Box<dyn Transport>, Errno> {
        Err(Errno::EINVAL)
    }
}

/// The files of the host to which a xenstored writes its trace and its reports.
pub trait Files: Send + Unpin + 'static {
    /// Adds to the end of a file, which is made if it is not there.
    ///
    /// # Errors
    /// `EINVAL`; the reason is in the log.
    fn append(&mut self, file: &[u8], text: &[u8]) -> Result<(), Errno>;
}

/// A clock, and what it will ring for.
struct Timer {
    now: Box<dyn Fn() -> Instant + Send>,
    sleep: Box<dyn Fn(Instant) -> Alarm + Send>,
    set: Option<(Instant, Alarm)>,
}

type Alarm = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Timer {
    fn new(clock: impl Clock + Clone + Send + 'static) -> Self {
        let sleeper = clock.clone();
        Timer {
            now: Box::new(move || clock.now()),
            sleep: Box::new(move |when| Box::pin(sleeper.sleep_until(when))),
            set: None,
        }
    }

    /// Waits until it is `when`, and not for what was waited for before.
    fn poll_until(&mut self, when: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(when) = when else {
            self.set = None;
            return Poll::Pending;
        };
        let set = self.set.take().filter(|(set, _)| *set == when);
        let (_, alarm) = self
            .set
            .insert(set.unwrap_or_else(|| (when, (self.sleep)(when))));
        let rung = alarm.as_mut().poll(cx);
        if rung.is_ready() {
            self.set = None;
        }
        rung
    }
}

/// A domain's connection, by its grant 1 and its `port`, for a xenstored in the domain that `grants`
/// and `events` are of.
///
/// # Errors
/// `EINVAL`; the reason is in the log.
pub fn connect_by_grant<G, E>(
    grants: &G,
    events: &E,
    domid: DomId,
    port: Port,
) -> Result<Box<dyn Transport>, Errno>
where
    G: Grants<Mapping: Unpin + 'static>,
    E: Events<Channel: 'static>,
{
    let page = page_by_grant(grants, domid)?;
    let channel = events.bind(domid, port);
    let channel = channel.map_err(|error| refused(domid, &error))?;
    let transport = RingTransport::host(page, channel).map_err(|error| refused(domid, &error))?;
    Ok(Box::new(transport))
}

/// A domain's xenstore page, by its grant 1.
///
/// # Errors
/// `EINVAL`; the reason is in the log.
pub fn page_by_grant<G: Grants>(grants: &G, domid: DomId) -> Result<Peer<G::Mapping>, Errno> {
    let page = grants.map(domid, &[GrantRef::RESERVED_XENSTORE], Access::ReadWrite);
    let page = page.map_err(|error| refused(domid, &error))?;
    Peer::new(page).map_err(|_| refused(domid, &"its page is read-only"))
}

fn refused(domid: DomId, error: &dyn core::fmt::Display) -> Errno {
    log::warn!("domain {domid} cannot be connected: {error}");
    Errno::EINVAL
}

/// Domains whose end the host tells by [`Handle::shut_down`] and [`Handle::release`].
struct Told<G> {
    guest: G,
    exists: Box<dyn Fn(DomId) -> bool + Send>,
}

impl<G: Guest> Domains for Told<G> {
    fn life(&self, domid: DomId) -> Life {
        match (self.exists)(domid) {
            true => Life::Running,
            false => Life::Gone,
        }
    }

    fn connect(&mut self, domid: DomId, port: Port) -> Result<Box<dyn Transport>, Errno> {
        connect_by_grant(&self.guest, &self.guest, domid, port)
    }
}

/// The connections, and the way to new ones.
struct Hub {
    domains: Box<dyn Domains>,
    files: Option<Box<dyn Files>>,
    successor: Option<Box<dyn Successor>>,
    commands: Arc<Mailbox<Command>>,
    connections: BTreeMap<ClientId, Connection>,
    door: Door,
    /// Those to look at next.
    due: VecDeque<ClientId>,
}

impl Hub {
    fn add(&mut self, client: ClientId, transport: Box<dyn Transport>) {
        let bell = Arc::new(Doorbell {
            client,
            rung: AtomicBool::new(false),
            door: self.door.clone(),
        });
        let connection = Connection {
            transport,
            waker: bell.clone().into(),
            bell,
            drained: false,
            due: false,
            unsent: false,
            blamed: None,
        };
        self.connections.insert(client, connection);
        self.rouse(client);
    }

    /// Has a connection looked at.
    fn rouse(&mut self, client: ClientId) {
        if let Some(connection) = self.connections.get_mut(&client)
            && !mem::replace(&mut connection.due, true)
        {
            self.due.push_back(client);
        }
    }

    /// Lets in those who rang.
    fn open(&mut self) {
        while let Some(client) = self.door.take() {
            if let Some(connection) = self.connections.get_mut(&client) {
                connection.bell.rung.store(false, Ordering::Release);
                connection.drained = false;
                self.rouse(client);
            }
        }
    }
}

impl World for Hub {
    fn life(&self, domid: DomId) -> Life {
        self.domains.life(domid)
    }

    fn connect(
        &mut self,
        client: ClientId,
        domid: DomId,
        port: Port,
        features: ServerFeatures,
    ) -> Result<(), Errno> {
        // A port that is bound cannot be bound again: what was there goes first.
        self.connections.remove(&client);
        let mut transport = self.domains.connect(domid, port)?;
        transport.advertise(features);
        self.add(client, transport);
        Ok(())
    }

    fn restart(&mut self, client: ClientId) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.transport.restart();
            connection.drained = false;
            self.rouse(client);
        }
    }

    fn disconnect(&mut self, client: ClientId) {
        self.connections.remove(&client);
    }

    fn append(&mut self, file: &[u8], text: &[u8]) -> Result<(), Errno> {
        let files = self.files.as_mut().ok_or(Errno::EINVAL)?;
        files.append(file, text)
    }

    fn look_at(&mut self, program: &[u8]) -> Result<(), &'static str> {
        match &mut self.successor {
            Some(successor) => successor.look_at(program),
            None => Err("There is no way to be followed."),
        }
    }

    fn expire_update(&mut self, after: Duration, number: u64) {
        let commands = self.commands.clone();
        if let Some(successor) = &mut self.successor {
            let expire = move || commands.put(Command::ExpireUpdate(number));
            successor.call_after(after, Box::new(expire));
        }
    }
}

enum Command {
    Introduce(DomId, Port, Arc<Mailbox<Result<(), Errno>>>),
    ShutDown(DomId),
    Release(DomId, Arc<Mailbox<()>>),
    LookAround,
    Connect(Box<dyn Transport>),
    Tell(Arc<Mailbox<Statistics>>),
    ExpireUpdate(u64),
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

    /// A domain is gone, introduced or not: so are its nodes. Once this is done its page is mapped
    /// no more, and its port not bound.
    pub async fn release(&self, domid: DomId) {
        let reply = Mailbox::new();
        self.order(Command::Release(domid, reply.clone()));
        // Without a xenstored nothing of it is left, either.
        poll_fn(|cx| reply.poll_take(cx)).await;
    }

    /// Something has happened to some domain: looks at how each fares, and does for those that
    /// have shut down or are gone what [`Handle::shut_down`] and [`Handle::release`] do.
    pub fn look_around(&self) {
        self.order(Command::LookAround);
    }

    /// How it fares.
    ///
    /// # Errors
    /// `EIO` if xenstored is gone.
    pub async fn statistics(&self) -> Result<Statistics, Errno> {
        let reply = Mailbox::new();
        self.order(Command::Tell(reply.clone()));
        let told = poll_fn(|cx| reply.poll_take(cx)).await;
        told.ok_or(Errno::EIO)
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
pub struct Daemon {
    server: Server,
    hub: Hub,
    commands: Arc<Mailbox<Command>>,
    timer: Option<Timer>,
    /// Connections with something to send.
    unsent: Vec<ClientId>,
    /// Where bytes are read to.
    bytes: Box<[u8]>,
}

impl Daemon {
    /// A xenstored that runs in `guest`, and asks `exists` whether there is a domain. The host tells
    /// of a domain's end.
    pub fn new(
        guest: impl Guest,
        store: Store,
        exists: impl Fn(DomId) -> bool + Send + 'static,
    ) -> (Self, Handle) {
        let (exists, clock) = (Box::new(exists), guest.clone());
        let (daemon, handle) = Daemon::of(store, Told { guest, exists });
        (daemon.with_clock(clock), handle)
    }

    /// A xenstored for these domains.
    pub fn of(store: Store, domains: impl Domains) -> (Self, Handle) {
        Daemon::of_server(Server::new(store), domains)
    }

    fn of_server(server: Server, domains: impl Domains) -> (Self, Handle) {
        let commands = Mailbox::new();
        let daemon = Daemon {
            server,
            hub: Hub {
                domains: Box::new(domains),
                files: None,
                successor: None,
                commands: commands.clone(),
                connections: BTreeMap::new(),
                door: Mailbox::new(),
                due: VecDeque::new(),
            },
            commands: commands.clone(),
            timer: None,
            unsent: Vec::new(),
            bytes: [0; READ].into(),
        };
        (daemon, Handle(commands))
    }

    /// With a clock. Without one no time passes: no event is ever too old, and no guest waits for
    /// the time that it made others lose.
    pub fn with_clock(mut self, clock: impl Clock + Clone + Send + 'static) -> Self {
        self.timer = Some(Timer::new(clock));
        self
    }

    /// With another time that an event waits for a guest which does not read it: none for ever.
    pub fn with_event_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.server.set_event_timeout(timeout);
        self
    }

    /// With files to write traces and reports to.
    pub fn with_files(mut self, files: impl Files) -> Self {
        self.hub.files = Some(Box::new(files));
        self
    }

    /// Serves for ever: the task to spawn.
    pub async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = &self.timer {
            self.server.tick((timer.now)());
            self.rouse_stirred();
        }
        self.serve_all(cx);
        let untidy = self.server.tidy();
        self.rouse_stirred();
        if untidy || !self.hub.due.is_empty() {
            cx.waker().wake_by_ref();
        }
        let due = self.server.due();
        if let Some(timer) = &mut self.timer
            && timer.poll_until(due, cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Obeys, and serves those who rang, as many as may keep other tasks waiting.
    fn serve_all(&mut self, cx: &mut Context<'_>) {
        self.commands.register(cx.waker());
        self.hub.door.register(cx.waker());
        while let Some(command) = self.commands.take() {
            self.obey(command);
            self.rouse_stirred();
        }
        self.update();
        for _ in 0..TURN / BATCH {
            self.hub.open();
            for _ in 0..BATCH {
                let Some(client) = self.hub.due.pop_front() else {
                    break;
                };
                self.receive(client);
                self.rouse_stirred();
            }
            self.send_all();
            self.update();
            if self.hub.due.is_empty() {
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Introduce(domid, port, reply) => {
                let introduced = self.server.introduce(domid, port, &mut self.hub);
                reply.put(introduced.map(|_| ()));
            }
            Command::ShutDown(domid) => self.server.shut_down(domid),
            Command::Release(domid, reply) => {
                self.server.release(domid, &mut self.hub);
                reply.put(());
            }
            Command::LookAround => self.server.look_around(&mut self.hub),
            Command::Tell(reply) => reply.put(self.server.statistics()),
            Command::ExpireUpdate(number) => self.server.expire_update(number),
            Command::Connect(transport) => {
                let client = self.server.connect_local();
                self.hub.add(client, transport);
            }
        }
    }

    /// Has the connections looked at that have got something to send by what was just done.
    fn rouse_stirred(&mut self) {
        for client in self.server.take_stirred() {
            self.hub.rouse(client);
        }
    }

    /// Reads from one connection what is there, and serves it.
    fn receive(&mut self, client: ClientId) {
        let Some(connection) = self.hub.connections.get_mut(&client) else {
            return;
        };
        connection.due = false;
        if connection.transport.wants_restart() {
            log::info!("{client:?} asks for a fresh start");
            self.server.start_over(client);
            connection.transport.restart();
            connection.drained = false;
        }
        let more = read(&mut self.server, client, &mut self.hub, &mut self.bytes);
        if let Err(broken) = more {
            self.fail(client, broken);
        }
        let Some(connection) = self.hub.connections.get_mut(&client) else {
            return;
        };
        if !self.server.is_connected(client) {
            self.hub.connections.remove(&client);
            return;
        }
        let fault = self.server.fault(client);
        let told = mem::replace(&mut connection.blamed, fault);
        if let Some(why) = fault {
            if told != fault {
                connection.transport.blame(why);
            }
            // It is served no more until it asks for a fresh start, or is introduced anew.
            if connection.wait(false) {
                self.hub.rouse(client);
            }
            return;
        }
        let answered = !self.server.output(client).is_empty();
        if answered && !mem::replace(&mut connection.unsent, true) {
            self.unsent.push(client);
        }
        let again = match more {
            Ok(More::Served) => true,
            // The next request comes after the answer.
            Ok(More::Read) => !answered,
            Ok(More::Drained) => connection.wait(true),
            Ok(More::Nothing) | Err(_) => false,
        };
        if again {
            self.hub.rouse(client);
        }
    }

    /// Sends what waits to be sent, to each as far as there is room.
    fn send_all(&mut self) {
        let mut unsent = mem::take(&mut self.unsent);
        for client in unsent.drain(..) {
            if let Err(broken) = self.send(client) {
                self.fail(client, broken);
            }
            self.rouse_stirred();
        }
        self.unsent = unsent;
    }

    fn send(&mut self, client: ClientId) -> Result<(), Broken> {
        let Some(connection) = self.hub.connections.get_mut(&client) else {
            return Ok(());
        };
        connection.unsent = false;
        let held = !self.server.wants_input(client);
        loop {
            let waiting = self.server.output(client);
            let len = waiting.len();
            if len == 0 {
                break;
            }
            let sent = connection.transport.write(waiting)?;
            self.server.sent(client, sent);
            if sent < len {
                if connection.wait(false) {
                    self.hub.rouse(client);
                }
                return Ok(());
            }
        }
        if held || !connection.drained {
            self.hub.rouse(client);
        }
        Ok(())
    }

    fn fail(&mut self, client: ClientId, broken: Broken) {
        match broken {
            Broken::Closed => log::debug!("{client:?}: {broken}"),
            _ => log::warn!("{client:?}: {broken}"),
        }
        let why = match broken {
            Broken::Ring(_) => RingError::RingIdx,
            Broken::Closed | Broken::GivenUp(_) | Broken::Host(_) => RingError::Comm,
        };
        self.server.fail(client, why);
    }
}

/// What [`read`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    /// Served what was there already; there may be more of that.
    Served,
    /// Read and served; there may be more to read.
    Read,
    /// Found nothing to read.
    Drained,
    /// Nothing: its requests wait, or the transport is waited for.
    Nothing,
}

/// Serves, and reads once if there is nothing to serve.
fn read(
    server: &mut Server,
    client: ClientId,
    hub: &mut Hub,
    bytes: &mut [u8],
) -> Result<More, Broken> {
    if server.serve(client, hub) {
        return Ok(More::Served);
    }
    let Some(connection) = hub.connections.get_mut(&client) else {
        return Ok(More::Nothing);
    };
    if connection.drained || !server.wants_input(client) {
        return Ok(More::Nothing);
    }
    let got = connection.transport.read(bytes)?;
    if got == 0 {
        return Ok(More::Drained);
    }
    server.input(client, bytes.get(..got).unwrap_or(&[]));
    server.serve(client, hub);
    Ok(More::Read)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.commands.close();
        refuse(&self.commands);
    }
}

/// Nobody obeys these commands any more.
fn refuse(commands: &Mailbox<Command>) {
    while let Some(command) = commands.take() {
        match command {
            Command::Introduce(_, _, reply) => reply.close(),
            Command::Release(_, reply) => reply.close(),
            Command::Tell(reply) => reply.close(),
            Command::ShutDown(_)
            | Command::LookAround
            | Command::Connect(_)
            | Command::ExpireUpdate(_) => {}
        }
    }
}
