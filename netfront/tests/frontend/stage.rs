//! A machine with a guest that has a vif, and a backend that does what a test says.

use std::future::Future;
use std::time::Duration;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Channel, Domain, DomainConfig, Hypervisor, Mapping};
use parapet_hypervisor::memory::{PAGE_SIZE, View};
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{Config, ConnectError, Interface, Queue};
use parapet_ring::{Back, BackLink, Peer};
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlResponse, RxFlags, RxRequest, RxResponse, RxSlot, Status, TxExtra,
    TxFlags, TxRequest, TxResponse, TxSlot,
};
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, GrantRef, Port};
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::server::daemon::Daemon;
use parapet_xenstore::store::Store;
use parapet_xenstore::xenbus::{self, Backend, Connected, DeviceNodes, InitWait, Initialising};

/// A machine whose domain 0 has a xenstored, and a guest with the nodes of one vif.
pub(crate) struct Stage {
    pub(crate) toolstack: Client,
    /// The guest's.
    pub(crate) client: Client,
    pub(crate) dom0: Domain,
    pub(crate) guest: Domain,
    /// What it has granted without a vif: to its xenstored.
    granted: usize,
    _hypervisor: Hypervisor,
}

pub(crate) const VIF: &str = "device/vif/0";

pub(crate) type Keys = &'static [(&'static str, &'static str)];

/// All that a backend of today has, but for control and multicast.
pub(crate) const FULL: Keys = &[
    ("feature-rx-copy", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-ipv6-csum-offload", "1"),
    ("feature-split-event-channels", "1"),
    ("multi-queue-max-queues", "4"),
];

pub(crate) type Connection = (Interface<Domain>, Vec<Queue<Domain>>);

impl Stage {
    pub(crate) fn new() -> Self {
        let hypervisor = Hypervisor::new(loopback::Config {
            pcpus: 1,
            ..loopback::Config::default()
        })
        .unwrap();
        let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
        let guest = hypervisor.create(DomainConfig::default()).unwrap();
        let (daemon, xenstored) =
            Daemon::new(dom0.clone(), Store::default(), |domid: DomId| domid.0 < 10);
        dom0.spawn(daemon.run());
        let toolstack = Client::start(&dom0, xenstored.connect());
        let interface = guest.xenstore().unwrap();
        let port = interface.channel.port();
        let client = Client::over_ring(&guest, interface.page, interface.channel).unwrap();
        let home = format!("/local/domain/{}", guest.domid());
        block_on(async {
            xenstored.introduce(guest.domid(), port).await.unwrap();
            toolstack.mkdir(&home).await.unwrap();
            let own = [parapet_xenstore::Permission::none(guest.domid())];
            toolstack.set_permissions(&home, &own).await.unwrap();
            let keys = [
                ("mac", "00:16:3e:00:00:01".to_string()),
                ("mtu", "9000".to_string()),
            ];
            let nodes = DeviceNodes {
                frontend_keys: &keys,
                ..nodes(&guest)
            };
            nodes.create(&toolstack).await.unwrap();
        });
        Stage {
            toolstack,
            client,
            dom0,
            granted: guest.grants_in_use(),
            guest,
            _hypervisor: hypervisor,
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        self.connect_as(Config::new()).unwrap()
    }

    pub(crate) fn connect_as(&self, config: Config) -> Result<Connection, ConnectError> {
        block_on(config.connect(&self.guest, &self.client, VIF))
    }

    /// Starts a backend that offers all but a control ring and, once connected, does what `then`
    /// does with its first queue.
    pub(crate) fn backend<F>(
        &self,
        then: impl FnOnce(Backend<Connected>, TestBack) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        self.offering(FULL, async move |served: Served| {
            let (back, mut queues, _) = served.accept().await;
            then(back, queues.remove(0)).await;
        });
    }

    /// Starts a backend that offers `keys` to begin with, and then does what `then` does.
    pub(crate) fn offering<F>(&self, keys: Keys, then: impl FnOnce(Served) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let path = nodes(&self.guest).backend_path();
        let (client, domain) = (self.toolstack.clone(), self.dom0.clone());
        self.dom0.spawn(async move {
            let back = Backend::open(&client, &path).await.unwrap();
            then(Served::announce(domain, back, keys).await).await;
        });
    }

    /// Waits until the frontend is in `state`.
    pub(crate) fn frontend_gets_to(&self, state: XenbusState) {
        let path = format!("{}/state", nodes(&self.guest).frontend_path());
        block_on(async {
            let mut watch = self.toolstack.watch(&path).await.unwrap();
            let wanted = u32::from(state).to_string();
            while self.toolstack.read(&path).await.unwrap() != wanted.as_bytes() {
                watch.next().await.unwrap();
            }
        });
    }

    pub(crate) fn frontend_key(&self, key: &str) -> Option<String> {
        let path = format!("{}/{key}", nodes(&self.guest).frontend_path());
        let value = block_on(self.toolstack.read(&path)).ok()?;
        Some(String::from_utf8(value).unwrap())
    }

    pub(crate) fn set_backend_key(&self, key: &str, value: &str) {
        let path = format!("{}/{key}", nodes(&self.guest).backend_path());
        block_on(self.toolstack.write(&path, value)).unwrap();
    }

    /// Waits until nothing of a vif is granted, nor in quarantine.
    pub(crate) fn nothing_is_left(&self) {
        eventually("nothing is granted", || {
            self.guest.grants_in_use() == self.granted
        });
        assert_eq!(self.guest.quarantined(), 0);
    }

    pub(crate) fn reported(&self) -> String {
        let path = format!("/local/domain/{}/error/{VIF}/error", self.guest.domid());
        String::from_utf8(block_on(self.toolstack.read(&path)).unwrap()).unwrap()
    }
}

pub(crate) fn nodes(guest: &Domain) -> DeviceNodes<'static> {
    DeviceNodes {
        kind: "vif",
        devid: 0,
        frontend: guest.domid(),
        backend: DomId::ZERO,
        frontend_keys: &[],
        backend_keys: &[],
    }
}

/// A backend that waits for its frontend.
pub(crate) struct Served {
    pub(crate) domain: Domain,
    pub(crate) back: Backend<InitWait>,
}

async fn write(own: xenbus::Keys, keys: Keys) -> Result<(), client::Error> {
    for (key, value) in keys {
        own.set(key, value).await?;
    }
    Ok(())
}

impl Served {
    pub(crate) async fn announce(domain: Domain, back: Backend<Initialising>, keys: Keys) -> Self {
        let back = back.announce(|own| write(own, keys)).await.unwrap();
        Served { domain, back }
    }

    /// Connects to all queues of the frontend, and its control ring.
    pub(crate) async fn accept(
        mut self,
    ) -> (Backend<Connected>, Vec<TestBack>, Option<ControlBack>) {
        self.back.frontend_ready().await.unwrap();
        let front = self.back.other();
        let count: Option<u32> = front.find("multi-queue-num-queues").await.unwrap();
        let folders: Vec<String> = match count {
            None => vec![String::new()],
            Some(count) => (0..count).map(|at| format!("queue-{at}/")).collect(),
        };
        let other = self.back.other_domid();
        let mut queues = Vec::new();
        for folder in folders {
            let key = async |name: &str| -> Option<u32> {
                front.find(&format!("{folder}{name}")).await.unwrap()
            };
            let rings = [
                GrantRef(key("tx-ring-ref").await.unwrap()),
                GrantRef(key("rx-ring-ref").await.unwrap()),
            ];
            let ports = match key("event-channel").await {
                Some(joint) => [Port(joint), Port(joint)],
                None => [
                    Port(key("event-channel-tx").await.unwrap()),
                    Port(key("event-channel-rx").await.unwrap()),
                ],
            };
            queues.push(TestBack::new(&self.domain, other, rings, ports));
        }
        let control = match front.find("ctrl-ring-ref").await.unwrap() {
            None => None,
            Some(gref) => {
                let port: Port = front.get("event-channel-ctrl").await.unwrap();
                let link = link(&self.domain, other, gref, port);
                let (domain, frontend) = (self.domain.clone(), other);
                Some(ControlBack {
                    link,
                    domain,
                    frontend,
                })
            }
        };
        let back = self.back.connect(|own| write(own, &[])).await.unwrap();
        (back, queues, control)
    }
}

/// A backend closes for reasons of its own, and begins anew when its frontend has closed too.
pub(crate) async fn begin_anew<State>(
    back: Backend<State>,
    queues: Vec<TestBack>,
    domain: &Domain,
    keys: Keys,
) -> Served {
    let mut closing = back.close().await.unwrap();
    while closing.changed().await.unwrap() != XenbusState::Closed {}
    drop(queues);
    let mut closed = closing.closed().await.unwrap();
    while closed.changed().await.unwrap() != XenbusState::Initialising {}
    Served::announce(domain.clone(), closed.reopen().await.unwrap(), keys).await
}

type Link<Out, In> = BackLink<Peer<Mapping>, In, Out, Channel>;

fn link<Out, In>(domain: &Domain, frontend: DomId, gref: GrantRef, port: Port) -> Link<Out, In>
where
    Out: zerocopy::IntoBytes + zerocopy::Immutable,
    In: zerocopy::FromBytes,
{
    let channel = domain.bind(frontend, port).unwrap();
    BackLink::new(attach(domain, frontend, gref), channel)
}

fn attach<Out, In>(domain: &Domain, frontend: DomId, gref: GrantRef) -> Back<Peer<Mapping>, In, Out>
where
    Out: zerocopy::IntoBytes + zerocopy::Immutable,
    In: zerocopy::FromBytes,
{
    let mapping = domain.map(frontend, &[gref], Access::ReadWrite).unwrap();
    let Ok(ring) = Peer::new(mapping) else {
        panic!("it was mapped to be written");
    };
    Back::attach(ring).unwrap()
}

/// The back end of the control ring.
pub(crate) struct ControlBack {
    pub(crate) link: Link<ControlResponse, ControlRequest>,
    domain: Domain,
    frontend: DomId,
}

impl ControlBack {
    pub(crate) fn respond(&mut self, response: ControlResponse) {
        self.link.ring.push(&response).unwrap();
        self.link.publish();
    }

    /// The first bytes of a page that a request names.
    pub(crate) fn named(&self, gref: u32, len: usize) -> Vec<u8> {
        let refs = [GrantRef(gref)];
        let page = self.domain.map(self.frontend, &refs, Access::ReadOnly);
        let mut bytes = vec![0; len];
        page.unwrap().view().read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn map(&self, gref: u32, access: Access) -> Mapping {
        let refs = [GrantRef(gref)];
        self.domain.map(self.frontend, &refs, access).unwrap()
    }
}

/// A frame as the backend has got it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) bytes: Vec<u8>,
    pub(crate) flags: TxFlags,
    pub(crate) extras: Vec<[u8; 8]>,
    pub(crate) ids: Vec<u16>,
    pub(crate) slots: usize,
}

/// The back end of a queue: maps and unmaps what it touches.
pub(crate) struct TestBack {
    pub(crate) tx: Link<TxResponse, TxSlot>,
    pub(crate) rx: Back<Peer<Mapping>, RxRequest, RxSlot>,
    /// None: the other channel is for both.
    pub(crate) rx_channel: Option<Channel>,
    domain: Domain,
    frontend: DomId,
    /// The rings once more, to be scribbled on.
    rings: [Mapping; 2],
}

impl TestBack {
    fn new(domain: &Domain, frontend: DomId, [tx, rx]: [GrantRef; 2], ports: [Port; 2]) -> Self {
        let map = |gref| {
            let refs = [gref];
            domain.map(frontend, &refs, Access::ReadWrite).unwrap()
        };
        let [tx_port, rx_port] = ports;
        TestBack {
            tx: link(domain, frontend, tx, tx_port),
            rx: attach(domain, frontend, rx),
            rx_channel: (tx_port != rx_port).then(|| domain.bind(frontend, rx_port).unwrap()),
            domain: domain.clone(),
            frontend,
            rings: [map(tx), map(rx)],
        }
    }

    pub(crate) fn tx_ring(&self) -> View<'_> {
        self.rings[0].view_mut().unwrap()
    }

    pub(crate) fn rx_ring(&self) -> View<'_> {
        self.rings[1].view_mut().unwrap()
    }

    pub(crate) fn notify_rx(&self) {
        self.rx_channel
            .as_ref()
            .unwrap_or(&self.tx.channel)
            .notify();
    }

    /// The next frame that is sent, with none of its slots answered.
    pub(crate) async fn next(&mut self) -> Got {
        let first: TxRequest = zerocopy::transmute!(self.tx.next().await.unwrap());
        let mut got = Got {
            bytes: Vec::new(),
            flags: first.flags,
            extras: Vec::new(),
            ids: vec![first.id],
            slots: 1,
        };
        let mut more = first.flags.contains(TxFlags::EXTRA_INFO);
        while more {
            let extra: TxExtra = zerocopy::transmute!(self.tx.ring.take().unwrap().unwrap());
            let bytes: [u8; 8] = zerocopy::transmute!(extra.info);
            more = bytes[1] & 1 != 0;
            got.extras.push(bytes);
            got.slots += 1;
        }
        let mut parts = vec![first];
        let mut more = first.flags.contains(TxFlags::MORE_DATA);
        while more {
            let part: TxRequest = zerocopy::transmute!(self.tx.ring.take().unwrap().unwrap());
            more = part.flags.contains(TxFlags::MORE_DATA);
            got.ids.push(part.id);
            got.slots += 1;
            parts.push(part);
        }
        let rest: u16 = parts[1..].iter().map(|part| part.size).sum();
        parts[0].size -= rest;
        for part in parts {
            if part.size > 0 {
                let mapped = self
                    .domain
                    .map(self.frontend, &[part.gref], Access::ReadOnly);
                let mut bytes = vec![0; part.size.into()];
                let view = mapped.unwrap();
                view.view()
                    .read_bytes(part.offset.into(), &mut bytes)
                    .unwrap();
                got.bytes.extend(bytes);
            }
        }
        got
    }

    pub(crate) fn answer(&mut self, id: u16, status: Status) {
        self.tx.ring.push(&TxResponse { id, status }).unwrap();
    }

    /// Answers all slots of a frame.
    pub(crate) fn done(&mut self, got: &Got) {
        for &id in &got.ids {
            self.answer(id, Status::OKAY);
        }
        for _ in &got.extras {
            // What Linux leaves there is of some request before.
            self.answer(0xBAD, Status::NULL);
        }
        self.tx.publish();
    }

    /// The next page that is posted.
    pub(crate) async fn posted(&mut self) -> RxRequest {
        loop {
            if let Some(request) = self.rx.take().unwrap() {
                return request;
            }
            if !self.rx.arm().unwrap() {
                let channel = self.rx_channel.as_ref().unwrap_or(&self.tx.channel);
                channel.wait().await;
            }
        }
    }

    pub(crate) fn write(&self, request: &RxRequest, offset: usize, bytes: &[u8]) {
        let refs = [request.gref];
        let page = self.domain.map(self.frontend, &refs, Access::ReadWrite);
        let page = page.unwrap();
        page.view_mut().unwrap().write_bytes(offset, bytes).unwrap();
    }

    pub(crate) fn push_rx(&mut self, slot: RxSlot) {
        self.rx.push(&slot).unwrap();
    }

    pub(crate) fn publish_rx(&mut self) {
        if self.rx.publish() {
            self.notify_rx();
        }
    }

    /// Answers a page with a slot of data.
    pub(crate) fn fill(&mut self, request: &RxRequest, offset: u16, flags: RxFlags, status: i16) {
        let id = request.id;
        let response = RxResponse {
            id,
            offset,
            flags,
            status,
        };
        self.push_rx(zerocopy::transmute!(response));
    }

    /// Delivers a frame, its extra information after the first slot.
    pub(crate) async fn deliver(&mut self, bytes: &[u8], flags: RxFlags, extras: &[RxSlot]) {
        let parts: Vec<&[u8]> = bytes.chunks(PAGE_SIZE).collect();
        for (at, part) in parts.iter().enumerate() {
            let request = self.posted().await;
            self.write(&request, 0, part);
            let mut own = RxFlags::empty();
            if at == 0 {
                own |= flags;
                if !extras.is_empty() {
                    own |= RxFlags::EXTRA_INFO;
                }
            }
            if at + 1 < parts.len() {
                own |= RxFlags::MORE_DATA;
            }
            self.fill(&request, 0, own, part.len() as i16);
            if at == 0 {
                for &extra in extras {
                    self.posted().await;
                    self.push_rx(extra);
                }
            }
        }
        self.publish_rx();
    }
}

/// Waits until something holds that other threads bring about. It fails the test only by hanging
/// for a minute.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}

/// A frame of that length whose bytes say where they are.
pub(crate) fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}
