//! A host with a xenstore, a network backend and guests, and what a toolstack does there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor, Process};
use parapet_hypervisor::seam::{Backend, Channel, Grant, Grants, Identity};
use parapet_netback::device::{Options, Vifs};
use parapet_netback::endpoint::Endpoint;
use parapet_netback::port::switch::{Seam, Switch};
use parapet_netback::port::{Network, Port, Socket, Vif as Plugged};
use parapet_netback::report::{DeviceId, Report, Reports};
use parapet_netback::service::Service;
use parapet_packet::Mac;
use parapet_xen_sys::io::netif::Status;
use parapet_xenstore::client::{Client, Watch};
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::store::Store;

use crate::front::{Queue, frame};

/// How many queues vifs may have.
pub(crate) const QUEUES: u32 = 4;

/// A switch, of which it is known how many vifs are plugged in.
pub(crate) struct Counted<P: Seam> {
    switch: Switch<P>,
    plugged: Arc<AtomicUsize>,
}

struct CountedSocket<P: Grants> {
    socket: Box<dyn Socket<P>>,
    plugged: Arc<AtomicUsize>,
}

impl<P: Seam> Network<P> for Counted<P> {
    fn plug(&self, vif: &Plugged) -> io::Result<Box<dyn Socket<P>>> {
        if vif.bridge.as_deref() == Some("nowhere") {
            return Err(io::Error::other("there is no bridge nowhere"));
        }
        let socket = self.switch.plug(vif)?;
        self.plugged.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(CountedSocket {
            socket,
            plugged: Arc::clone(&self.plugged),
        }))
    }
}

impl<P: Grants + 'static> Socket<P> for CountedSocket<P> {
    fn connect(&mut self, endpoint: Arc<Endpoint<P>>) -> io::Result<Vec<Box<dyn Port<P>>>> {
        self.socket.connect(endpoint)
    }
}

impl<P: Grants> Drop for CountedSocket<P> {
    fn drop(&mut self) {
        self.plugged.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) struct Host {
    pub(crate) store: Client,
    pub(crate) reports: Reports,
    /// Where the backend runs.
    pub(crate) backend: Domain,
    pub(crate) guest: Domain,
    /// A domain that has nothing to do with it all.
    pub(crate) stranger: Domain,
    pub(crate) plugged: Arc<AtomicUsize>,
    /// The backend's ports when it has no vif.
    ports: usize,
    xenstored: Handle,
    _hypervisor: Hypervisor,
}

/// A host whose backend runs in domain 0.
pub(crate) fn boot() -> Host {
    let mut host = boot_without();
    host.serve(host.backend.clone());
    host
}

/// A host without a backend: [`Host::begin`] starts one.
pub(crate) fn boot_without() -> Host {
    let hypervisor = Hypervisor::new(loopback::Config::default()).unwrap();
    let domain = || hypervisor.create(DomainConfig::default()).unwrap();
    let (dom0, guest, stranger) = (domain(), domain(), domain());
    let (daemon, xenstored) = Daemon::new(dom0.clone(), Store::default(), |_| true);
    dom0.run(|_| daemon.run());
    Host {
        store: Client::start(&dom0, xenstored.connect()),
        reports: Reports::default(),
        ports: dom0.ports_in_use(),
        backend: dom0,
        guest,
        stranger,
        plugged: Arc::default(),
        xenstored,
        _hypervisor: hypervisor,
    }
}

/// The two directories of a vif.
pub(crate) struct Vif {
    pub(crate) key: DeviceId,
    pub(crate) mac: Mac,
    pub(crate) back: String,
    pub(crate) front: String,
}

impl Vif {
    /// Where the backend leaves its errors.
    pub(crate) fn error(&self) -> String {
        format!("/local/domain/0/error/backend/vif/{}", self.key)
    }
}

pub(crate) const SCRIPT: (&str, &str) = ("script", "/etc/xen/scripts/vif-bridge");

impl Host {
    fn serve<P: Backend>(&mut self, place: P) {
        let store = Client::start(&place, self.xenstored.connect());
        let options = Options {
            queues: QUEUES,
            ..Options::default()
        };
        self.plugged = Arc::default();
        let network = Counted {
            switch: Switch::new(place.clone()),
            plugged: Arc::clone(&self.plugged),
        };
        let vifs = Vifs::new(options, Arc::new(network));
        let service = Service::new(place.clone(), store, vifs);
        self.reports = service.reports();
        place.spawn(async move {
            // It ends with the xenstore, when the test does.
            let _ = service.run().await;
        });
    }

    /// Starts the backend in a process of its own.
    pub(crate) fn begin(&mut self) -> Process {
        let process = self.backend.process();
        self.serve(process.clone());
        process
    }

    /// What xl does for a line of `vif=`.
    pub(crate) fn attach(&self, number: u32) -> Vif {
        self.attach_with(number, &[])
    }

    /// The same, with more keys for the backend.
    pub(crate) fn attach_with(&self, number: u32, more: &[(&str, &str)]) -> Vif {
        let vif = self.vif(number);
        self.make(&vif, more, false);
        vif
    }

    pub(crate) fn vif(&self, number: u32) -> Vif {
        let (backend, guest) = (self.backend.domid(), self.guest.domid());
        Vif {
            key: DeviceId {
                frontend: guest,
                number,
            },
            mac: Mac([0, 0x16, 0x3e, 0, 0, number as u8]),
            back: format!("/local/domain/{backend}/backend/vif/{guest}/{number}"),
            front: format!("/local/domain/{guest}/device/vif/{number}"),
        }
    }

    /// Makes a vif's nodes in one transaction, as libxl does; `anew` if there may be some.
    pub(crate) fn make(&self, vif: &Vif, more: &[(&str, &str)], anew: bool) {
        block_on(self.store.transaction(|tx| async move {
            let Vif { back, front, .. } = vif;
            if anew {
                tx.remove(back).await?;
                tx.remove(front).await?;
            }
            let (guest, mac) = (vif.key.frontend.to_string(), vif.mac.to_string());
            let number = vif.key.number.to_string();
            let usual = [
                ("frontend", front.as_str()),
                ("frontend-id", &guest),
                ("online", "1"),
                ("mac", &mac),
                ("bridge", "xenbr0"),
                ("handle", &number),
                ("type", "vif"),
                ("hotplug-status", ""),
                ("state", "1"),
            ];
            for (key, value) in usual.iter().chain(more) {
                tx.write(&format!("{back}/{key}"), value).await?;
            }
            tx.write(&format!("{front}/backend"), back).await?;
            tx.write(&format!("{front}/backend-id"), "0").await?;
            tx.write(&format!("{front}/state"), "1").await
        }))
        .unwrap();
    }

    /// What xl does to take it away.
    pub(crate) fn detach(&self, vif: &Vif) {
        block_on(self.store.transaction(|tx| {
            let back = vif.back.clone();
            async move {
                tx.write(&format!("{back}/online"), "0").await?;
                if tx.read(&format!("{back}/state")).await? == b"6" {
                    return Ok(());
                }
                tx.write(&format!("{back}/state"), "5").await
            }
        }))
        .unwrap();
    }

    /// What xl does to the vif of a guest that is no more.
    pub(crate) fn destroy(&self, vif: &Vif) {
        block_on(self.store.remove(&vif.front)).unwrap();
        self.detach(vif);
        self.wait(vif, "6");
        block_on(self.store.remove(&vif.back)).unwrap();
    }

    /// There is no sign of the vif, which was the only one.
    pub(crate) fn nothing_is_left(&self, vif: &Vif) {
        block_on(self.reports.ended(vif.key));
        assert_eq!(self.backend.mappings(), 0);
        assert_eq!(self.guest.grants_in_use(), 0);
        assert_eq!(self.backend.ports_in_use(), self.ports);
        assert_eq!(self.plugged.load(Ordering::SeqCst), 0);
        assert!(!self.exists(&vif.back), "{} came back", vif.back);
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        match block_on(self.store.list(path)) {
            Err(error) if error.is_not_found() => false,
            children => children.map(|_| true).unwrap(),
        }
    }

    pub(crate) fn get(&self, folder: &str, key: &str) -> String {
        let value = block_on(self.store.read(&format!("{folder}/{key}"))).unwrap();
        String::from_utf8(value).unwrap()
    }

    pub(crate) fn set(&self, folder: &str, key: &str, value: &str) {
        block_on(self.store.write(&format!("{folder}/{key}"), value)).unwrap();
    }

    /// Waits until the backend is in `state`.
    pub(crate) fn wait(&self, vif: &Vif, state: &str) {
        let path = format!("{}/state", vif.back);
        let mut watch: Watch = block_on(self.store.watch(&path)).unwrap();
        while block_on(self.store.read(&path)).ok().as_deref() != Some(state.as_bytes()) {
            block_on(watch.next()).unwrap();
        }
    }

    pub(crate) fn report(&self, vif: &Vif) -> Report {
        self.reports.of(vif.key).unwrap()
    }

    /// A queue of the guest's.
    pub(crate) fn queue(&self, split: bool) -> Queue {
        Queue::new(&self.guest, self.backend.domid(), split)
    }

    /// What Linux's frontend does until it is connected.
    pub(crate) fn connect(&self, vif: &Vif) -> Queue {
        self.connect_queues(vif, 1, true).pop().unwrap()
    }

    /// The same with several queues.
    pub(crate) fn connect_queues(&self, vif: &Vif, count: usize, split: bool) -> Vec<Queue> {
        self.wait(vif, "2");
        let queues: Vec<_> = (0..count).map(|_| self.queue(split)).collect();
        self.publish(vif, &queues);
        self.set(&vif.front, "state", "4");
        self.wait(vif, "4");
        queues
    }

    /// Writes what a frontend has to say of its queues.
    pub(crate) fn publish(&self, vif: &Vif, queues: &[Queue]) {
        for (key, value) in [
            ("request-rx-copy", "1"),
            ("feature-rx-notify", "1"),
            ("feature-sg", "1"),
            ("feature-gso-tcpv4", "1"),
            ("feature-gso-tcpv6", "1"),
            ("feature-ipv6-csum-offload", "1"),
        ] {
            self.set(&vif.front, key, value);
        }
        let count = queues.len();
        self.set(&vif.front, "multi-queue-num-queues", &count.to_string());
        for (number, queue) in queues.iter().enumerate() {
            let folder = match count {
                1 => vif.front.clone(),
                _ => format!("{}/queue-{number}", vif.front),
            };
            for (key, grant) in [("tx", &queue.tx_grant), ("rx", &queue.rx_grant)] {
                let page = grant.refs()[0].0.to_string();
                self.set(&folder, &format!("{key}-ring-ref"), &page);
            }
            let ports: Vec<String> = queue
                .channels
                .iter()
                .map(|it| it.port().0.to_string())
                .collect();
            match ports.as_slice() {
                [joint] => self.set(&folder, "event-channel", joint),
                [tx, rx] => {
                    self.set(&folder, "event-channel-tx", tx);
                    self.set(&folder, "event-channel-rx", rx);
                }
                _ => unreachable!("one channel or two"),
            }
        }
    }
}

/// Frames go from one vif to another and back.
pub(crate) fn works(one: (&Vif, &mut Queue), other: (&Vif, &mut Queue)) {
    let there = frame(one.0.mac, other.0.mac, 1);
    assert_eq!(one.1.send(&there), Status::OKAY);
    assert_eq!(other.1.receive(), there);
    let back = frame(other.0.mac, one.0.mac, 2);
    assert_eq!(other.1.send(&back), Status::OKAY);
    assert_eq!(one.1.receive(), back);
}
