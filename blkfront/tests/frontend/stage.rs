//! A guest with a disk in front of backends written by hand, over our own xenstored.

use std::future::Future;

use parapet_blkfront::{Config, ConnectError, Disk};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, GrantRef, Port};
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::server::daemon::Daemon;
use parapet_xenstore::store::Store;
use parapet_xenstore::xenbus::{self, Backend, Connected, DeviceNodes, InitWait, Initialising};

use crate::world::TestBack;

/// A machine whose domain 0 has a xenstored, and a guest with the nodes of one disk.
pub(crate) struct Stage {
    pub(crate) toolstack: Client,
    /// The guest's.
    pub(crate) client: Client,
    pub(crate) dom0: Domain,
    pub(crate) guest: Domain,
    _hypervisor: Hypervisor,
}

pub(crate) const DISK: &str = "device/vbd/51712";

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
            nodes(&guest).create(&toolstack).await.unwrap();
        });
        Stage {
            toolstack,
            client,
            dom0,
            guest,
            _hypervisor: hypervisor,
        }
    }

    pub(crate) fn connect(&self) -> Result<Disk<Domain>, ConnectError> {
        block_on(Disk::connect(&self.guest, &self.client, DISK))
    }

    pub(crate) fn connect_as(&self, config: Config) -> Result<Disk<Domain>, ConnectError> {
        block_on(config.connect(&self.guest, &self.client, DISK))
    }

    /// Starts a backend that says `keys` of its disk and, once connected, does what `then` does.
    pub(crate) fn backend<F>(
        &self,
        keys: &'static [(&'static str, &'static str)],
        then: impl FnOnce(Backend<Connected>, TestBack) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        self.offering(&[], async move |stage: Served| {
            let (back, mut queues) = stage.accept(keys).await;
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

    pub(crate) fn reported(&self) -> String {
        let path = format!("/local/domain/{}/error/{DISK}/error", self.guest.domid());
        String::from_utf8(block_on(self.toolstack.read(&path)).unwrap()).unwrap()
    }
}

pub(crate) fn nodes(guest: &Domain) -> DeviceNodes<'static> {
    DeviceNodes {
        kind: "vbd",
        devid: 51712,
        frontend: guest.domid(),
        backend: DomId::ZERO,
        frontend_keys: &[],
        backend_keys: &[],
    }
}

pub(crate) type Keys = &'static [(&'static str, &'static str)];

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

    /// Connects to all queues of the frontend, and says `keys` of the disk.
    pub(crate) async fn accept(mut self, keys: Keys) -> (Backend<Connected>, Vec<TestBack>) {
        self.back.frontend_ready().await.unwrap();
        let front = self.back.other();
        let protocol: String = front.get("protocol").await.unwrap();
        assert_eq!(protocol, "x86_64-abi");
        assert!(front.get::<bool>("feature-persistent").await.unwrap());
        let count: Option<u32> = front.find("multi-queue-num-queues").await.unwrap();
        let folders: Vec<String> = match count {
            None => vec![String::new()],
            Some(count) => (0..count).map(|at| format!("queue-{at}/")).collect(),
        };
        let mut queues = Vec::new();
        for folder in folders {
            let one: Option<GrantRef> = front.find(&format!("{folder}ring-ref")).await.unwrap();
            let mut refs: Vec<GrantRef> = one.into_iter().collect();
            if refs.is_empty() {
                let order: Option<u32> = front.find("ring-page-order").await.unwrap();
                let pages: Option<u32> = front.find("num-ring-pages").await.unwrap();
                let of_order = order.map(|order| 1 << order);
                let pages = of_order.or(pages).unwrap();
                for page in 0..pages {
                    let key = format!("{folder}ring-ref{page}");
                    refs.push(front.get(&key).await.unwrap());
                }
            }
            let port: Port = front.get(&format!("{folder}event-channel")).await.unwrap();
            let other = self.back.other_domid();
            queues.push(TestBack::new(&self.domain, other, &refs, port));
        }
        let back = self.back.connect(|own| write(own, keys)).await.unwrap();
        (back, queues)
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
