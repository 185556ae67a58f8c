//! A host with a xenstore, a network backend with a switch, and guests that have a vif each.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor, Process};
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::device::{Options, Vifs};
use parapet_netback::port::switch::Switch;
use parapet_netback::report::{DeviceId, Report, Reports};
use parapet_netback::service::Service;
use parapet_netfront::{Config, Interface, Mac, Queue};
use parapet_xenstore::Permission;
use parapet_xenstore::client::Client;
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::store::Store;
use parapet_xenstore::xenbus::DeviceNodes;

pub(crate) struct Host {
    dom0: Domain,
    store: Client,
    xenstored: Handle,
    backend: Mutex<(Process, Reports)>,
    hypervisor: Hypervisor,
}

/// A guest with a vif, whose address ends with its domain's number.
pub(crate) struct Guest {
    pub(crate) domain: Domain,
    pub(crate) store: Client,
    pub(crate) mac: Mac,
}

const QUEUES: u32 = 4;

impl Host {
    pub(crate) fn new(pcpus: usize) -> Self {
        let config = loopback::Config {
            pcpus,
            ..loopback::Config::default()
        };
        let hypervisor = Hypervisor::new(config).unwrap();
        let dom0 = DomainConfig {
            memory: 256 << 20,
            ..DomainConfig::default()
        };
        let dom0 = hypervisor.create(dom0).unwrap();
        let (daemon, xenstored) = Daemon::new(dom0.clone(), Store::default(), |_| true);
        dom0.run(|_| daemon.run());
        let store = Client::start(&dom0, xenstored.connect());
        let backend = Mutex::new(serve(&dom0, &xenstored));
        Host {
            dom0,
            store,
            xenstored,
            backend,
            hypervisor,
        }
    }

    /// A domain with the nodes of a vif.
    pub(crate) fn guest(&self, vcpus: usize) -> Guest {
        let config = DomainConfig {
            vcpus,
            ..DomainConfig::default()
        };
        let domain = self.hypervisor.create(config).unwrap();
        let interface = domain.xenstore().unwrap();
        let port = interface.channel.port();
        let store = Client::over_ring(&domain, interface.page, interface.channel).unwrap();
        let mac = Mac([0, 0x16, 0x3e, 0, 0, domain.domid().0 as u8]);
        let home = format!("/local/domain/{}", domain.domid());
        block_on(async {
            self.xenstored
                .introduce(domain.domid(), port)
                .await
                .unwrap();
            self.store.mkdir(&home).await.unwrap();
            let own = [Permission::none(domain.domid())];
            self.store.set_permissions(&home, &own).await.unwrap();
            self.nodes(&domain, mac).await;
        });
        Guest { domain, store, mac }
    }

    async fn nodes(&self, domain: &Domain, mac: Mac) {
        let mac = mac.to_string();
        let front = [("mac", mac.clone()), ("mtu", "9000".into())];
        let back = [
            ("mac", mac),
            ("handle", "0".into()),
            ("bridge", "xenbr0".into()),
        ];
        let nodes = DeviceNodes {
            kind: "vif",
            devid: 0,
            frontend: domain.domid(),
            backend: self.dom0.domid(),
            frontend_keys: &front,
            backend_keys: &back,
        };
        nodes.create(&self.store).await.unwrap();
    }

    /// Kills the backend in the middle of whatever it is about, and starts another.
    pub(crate) fn restart_backend(&self) {
        let mut backend = self.backend.lock().unwrap();
        block_on(backend.0.kill());
        *backend = serve(&self.dom0, &self.xenstored);
    }

    /// What the backend says of a guest's vif.
    pub(crate) fn report(&self, guest: &Guest) -> Option<Report> {
        let frontend = guest.domain.domid();
        let key = DeviceId {
            frontend,
            number: 0,
        };
        self.backend.lock().unwrap().1.of(key)
    }
}

fn serve(dom0: &Domain, xenstored: &Handle) -> (Process, Reports) {
    let process = dom0.process();
    let store = Client::start(&process, xenstored.connect());
    let options = Options {
        queues: QUEUES,
        ..Options::default()
    };
    let switch = Arc::new(Switch::new(process.clone()));
    let service = Service::new(process.clone(), store, Vifs::new(options, switch));
    let reports = service.reports();
    process.spawn(async move {
        // It ends with the xenstore, when the test does.
        let _ = service.run().await;
    });
    (process, reports)
}

impl Guest {
    pub(crate) fn connect(&self, config: Config) -> (Interface<Domain>, Vec<Queue<Domain>>) {
        let connected = config.connect(&self.domain, &self.store, "device/vif/0");
        block_on(connected).unwrap()
    }

    pub(crate) fn connect_one(&self, config: Config) -> (Interface<Domain>, Queue<Domain>) {
        let (interface, mut queues) = self.connect(config);
        (interface, queues.remove(0))
    }
}

/// An Ethernet frame of that length, of a protocol that nobody knows; its bytes say what it is.
pub(crate) fn frame(from: Mac, to: Mac, seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = [to.0, from.0].concat();
    bytes.extend(0x88B5u16.to_be_bytes());
    bytes.extend(seed.to_be_bytes());
    let header = bytes.len();
    bytes.resize(len.max(header), 0);
    for (at, byte) in bytes.iter_mut().enumerate().skip(header) {
        let at = at as u32;
        *byte = (at * 31 + at / 256).wrapping_add(seed.wrapping_mul(7)) as u8;
    }
    bytes.truncate(len);
    bytes
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
