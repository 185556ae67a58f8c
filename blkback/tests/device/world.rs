//! A host with a xenstore, a block backend and a guest, and what a toolstack does there.

use std::os::unix::net::UnixStream;

use parapet_blkback::device::{Disks, Options};
use parapet_blkback::journal::Journals;
use parapet_blkback::report::{Report, Reports, Vbd as Key};
use parapet_blkback::request::X86_64;
use parapet_blkback::service::Service;
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor, Process};
use parapet_hypervisor::seam::{Backend, Channel, Grant, Identity};
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::{Operation, Status};
use parapet_xenstore::client::{Client, Watch};
use parapet_xenstore::host::SocketTransport;
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::store::Store;
use parapet_xenstore::transport::Transport;

use crate::plain::Plain;

pub(crate) struct Host {
    pub(crate) store: Client,
    pub(crate) reports: Reports,
    /// Where the backend runs.
    pub(crate) backend: Domain,
    pub(crate) guest: Domain,
    /// A domain that has nothing to do with it all.
    pub(crate) stranger: Domain,
    /// The backend's ports when it has no vbd.
    ports: usize,
    xenstored: Handle,
    _hypervisor: Hypervisor,
}

/// A host whose backend runs in domain 0.
pub(crate) fn boot() -> Host {
    boot_with(|dom0, _| dom0.clone(), |_| {})
}

/// A host whose backend runs in a domain of its own.
pub(crate) fn boot_driver_domain() -> Host {
    boot_with(
        |_, hypervisor| hypervisor.create(DomainConfig::default()).unwrap(),
        |_| {},
    )
}

/// A host whose backend starts after `before` has been at the xenstore.
pub(crate) fn boot_after(before: impl FnOnce(&Client)) -> Host {
    boot_with(|dom0, _| dom0.clone(), before)
}

/// A host without a backend: [`Host::begin`] starts one in domain 0.
pub(crate) fn boot_without() -> Host {
    boot_empty(|dom0, _| dom0.clone())
}

fn boot_with(
    backend: impl FnOnce(&Domain, &Hypervisor) -> Domain,
    before: impl FnOnce(&Client),
) -> Host {
    let mut host = boot_empty(backend);
    before(&host.store);
    host.serve(host.backend.clone(), None);
    host
}

fn boot_empty(backend: impl FnOnce(&Domain, &Hypervisor) -> Domain) -> Host {
    let hypervisor = Hypervisor::new(loopback::Config::default()).unwrap();
    let domain = || hypervisor.create(DomainConfig::default()).unwrap();
    let (dom0, guest, stranger) = (domain(), domain(), domain());
    let backend = backend(&dom0, &hypervisor);
    let (daemon, xenstored) = Daemon::new(dom0.clone(), Store::default(), |_| true);
    dom0.run(|_| daemon.run());
    Host {
        store: Client::start(&backend, xenstored.connect()),
        reports: Reports::default(),
        ports: backend.ports_in_use(),
        backend,
        guest,
        stranger,
        xenstored,
        _hypervisor: hypervisor,
    }
}

/// The two directories of a vbd.
pub(crate) struct Vbd {
    pub(crate) key: Key,
    pub(crate) back: String,
    pub(crate) front: String,
}

impl Vbd {
    pub(crate) fn new(backend: DomId, guest: DomId, number: u32) -> Self {
        Vbd {
            key: Key {
                frontend: guest,
                number,
            },
            back: format!("/local/domain/{backend}/backend/vbd/{guest}/{number}"),
            front: format!("/local/domain/{guest}/device/vbd/{number}"),
        }
    }

    /// Where the backend leaves its errors.
    pub(crate) fn error(&self) -> String {
        format!("/local/domain/0/error/backend/vbd/{}", self.key)
    }
}

pub(crate) const SCRIPT: (&str, &str) = ("script", "/etc/xen/scripts/block-parapet");

impl Host {
    /// Starts the backend at `place`, which is in its domain.
    fn serve<P: Backend>(&mut self, place: P, journals: Option<&Journals>) {
        let transport = self.xenstored.connect();
        self.serve_over(place, transport, journals);
    }

    fn serve_over<P: Backend>(
        &mut self,
        place: P,
        transport: impl Transport + 'static,
        journals: Option<&Journals>,
    ) {
        let store = Client::start(&place, transport);
        let options = Options {
            queues: 4,
            ..Options::default()
        };
        let mut disks = Disks::new(options);
        if let Some(journals) = journals {
            disks = disks.keeping(journals.clone());
        }
        let service = Service::new(place.clone(), store, disks);
        self.reports = service.reports();
        place.spawn(async move {
            // It ends with the xenstore, when the test does.
            let _ = service.run().await;
        });
    }

    /// Starts the backend in a process of its own.
    pub(crate) fn begin(&mut self, journals: Option<&Journals>) -> Process {
        let process = self.backend.process();
        self.serve(process.clone(), journals);
        process
    }

    /// The same, with a connection to xenstored that ends when the stream is shut down.
    pub(crate) fn begin_over_a_stream(&mut self, journals: &Journals) -> (Process, UnixStream) {
        let process = self.backend.process();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = ours.try_clone().unwrap();
        let theirs = SocketTransport::new(&self.backend, theirs).unwrap();
        self.xenstored.serve(theirs);
        let ours = SocketTransport::new(&process, ours).unwrap();
        self.serve_over(process.clone(), ours, Some(journals));
        (process, stream)
    }

    /// What xl does for a line of `disk=`.
    pub(crate) fn attach(&self, number: u32, params: &str, mode: &str) -> Vbd {
        self.attach_with(number, params, mode, &[])
    }

    /// The same, with more keys for the backend.
    pub(crate) fn attach_with(
        &self,
        number: u32,
        params: &str,
        mode: &str,
        more: &[(&str, &str)],
    ) -> Vbd {
        let vbd = Vbd::new(self.backend.domid(), self.guest.domid(), number);
        make(
            &self.store,
            &vbd,
            &[&[("params", params), ("mode", mode)], more].concat(),
        );
        vbd
    }

    /// What a toolstack does that takes a disk away and attaches another in its place, at once.
    pub(crate) fn attach_instead(&self, vbd: &Vbd, params: &str, mode: &str) {
        make_after(
            &self.store,
            vbd,
            &[("params", params), ("mode", mode)],
            &[&vbd.back, &vbd.front],
        );
    }

    /// What xl does to take it away.
    pub(crate) fn detach(&self, vbd: &Vbd) {
        block_on(self.store.transaction(|tx| {
            let back = vbd.back.clone();
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

    /// What xl does to the disk of a guest that is no more.
    pub(crate) fn destroy(&self, vbd: &Vbd) {
        block_on(self.store.remove(&vbd.front)).unwrap();
        self.detach(vbd);
        self.wait(vbd, "6");
        block_on(self.store.remove(&vbd.back)).unwrap();
    }

    /// There is no sign of the vbd.
    pub(crate) fn nothing_is_left(&self, vbd: &Vbd) {
        block_on(self.reports.ended(vbd.key));
        assert_eq!(self.backend.mappings(), 0);
        assert_eq!(self.guest.grants_in_use(), 0);
        assert_eq!(self.backend.ports_in_use(), self.ports);
        assert!(!self.exists(&vbd.back), "{} came back", vbd.back);
        // Removed after the report has ended.
        let error = vbd.error();
        let mut watch: Watch = block_on(self.store.watch(&error)).unwrap();
        while self.exists(&error) {
            block_on(watch.next()).unwrap();
        }
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
    pub(crate) fn wait(&self, vbd: &Vbd, state: &str) {
        self.wait_for(vbd, "state", state);
    }

    /// Waits until the backend's `key` is `value`.
    pub(crate) fn wait_for(&self, vbd: &Vbd, key: &str, value: &str) {
        let path = format!("{}/{key}", vbd.back);
        let mut watch: Watch = block_on(self.store.watch(&path)).unwrap();
        while block_on(self.store.read(&path)).ok().as_deref() != Some(value.as_bytes()) {
            block_on(watch.next()).unwrap();
        }
    }

    /// Waits until the backend's `key` is not there.
    pub(crate) fn wait_until_gone(&self, vbd: &Vbd, key: &str) {
        let path = format!("{}/{key}", vbd.back);
        let mut watch: Watch = block_on(self.store.watch(&path)).unwrap();
        while self.exists(&path) {
            block_on(watch.next()).unwrap();
        }
    }

    pub(crate) fn report(&self, vbd: &Vbd) -> Report {
        self.reports.of(vbd.key).unwrap()
    }

    /// What a frontend does until it is connected.
    pub(crate) fn connect(&self, vbd: &Vbd) -> Plain<X86_64> {
        self.wait(vbd, "2");
        let front = self.front();
        self.publish(vbd, &front);
        self.wait(vbd, "4");
        self.set(&vbd.front, "state", "4");
        front
    }

    /// The same with several queues.
    pub(crate) fn connect_queues(&self, vbd: &Vbd, count: usize) -> Vec<Plain<X86_64>> {
        self.wait(vbd, "2");
        let fronts: Vec<_> = (0..count).map(|_| self.front()).collect();
        self.publish_queues(vbd, &fronts);
        self.wait(vbd, "4");
        self.set(&vbd.front, "state", "4");
        fronts
    }

    pub(crate) fn publish_queues(&self, vbd: &Vbd, fronts: &[Plain<X86_64>]) {
        self.name_queues(vbd, fronts);
        self.set(&vbd.front, "state", "3");
    }

    pub(crate) fn name_queues(&self, vbd: &Vbd, fronts: &[Plain<X86_64>]) {
        let count = fronts.len().to_string();
        self.set(&vbd.front, "multi-queue-num-queues", &count);
        for (queue, front) in fronts.iter().enumerate() {
            let folder = format!("{}/queue-{queue}", vbd.front);
            let ring = front.ring_grant.refs()[0].0.to_string();
            self.set(&folder, "ring-ref", &ring);
            let port = front.channel.port().0.to_string();
            self.set(&folder, "event-channel", &port);
        }
        self.set(&vbd.front, "protocol", "x86_64-abi");
        self.set(&vbd.front, "feature-persistent", "1");
    }

    pub(crate) fn front(&self) -> Plain<X86_64> {
        Plain::new(&self.guest, self.backend.domid())
    }

    pub(crate) fn publish(&self, vbd: &Vbd, front: &Plain<X86_64>) {
        let ring = front.ring_grant.refs()[0].0.to_string();
        self.set(&vbd.front, "ring-ref", &ring);
        let port = front.channel.port().0.to_string();
        self.set(&vbd.front, "event-channel", &port);
        self.set(&vbd.front, "protocol", "x86_64-abi");
        self.set(&vbd.front, "feature-persistent", "1");
        self.set(&vbd.front, "state", "3");
    }
}

/// Makes a vbd's nodes in one transaction, as libxl does.
pub(crate) fn make(store: &Client, vbd: &Vbd, keys: &[(&str, &str)]) {
    make_after(store, vbd, keys, &[]);
}

/// The same, after some nodes were removed.
fn make_after(store: &Client, vbd: &Vbd, keys: &[(&str, &str)], removed: &[&String]) {
    block_on(store.transaction(|tx| async move {
        for path in removed {
            tx.remove(path).await?;
        }
        let Vbd { key, back, front } = vbd;
        let guest = key.frontend.to_string();
        let usual = [
            ("frontend", front.as_str()),
            ("frontend-id", &guest),
            ("online", "1"),
            ("removable", "0"),
            ("bootable", "1"),
            ("device-type", "disk"),
            ("type", "phy"),
            ("dev", "xvda"),
            ("discard-enable", "1"),
            ("state", "1"),
        ];
        for (key, value) in usual.iter().chain(keys) {
            tx.write(&format!("{back}/{key}"), value).await?;
        }
        tx.write(&format!("{front}/backend"), back).await?;
        tx.write(&format!("{front}/backend-id"), "0").await?;
        tx.write(&format!("{front}/state"), "1").await
    }))
    .unwrap();
}

/// A write, a flush and a read on a disk that is connected.
pub(crate) fn works(front: &mut Plain<X86_64>) {
    let first = front.segments(0..1, 0, 7);
    let second = front.segments(1..2, 0, 7);
    front.fill(0, 0x5a);
    assert_eq!(front.run(Operation::Write, 8, &first), Status::OKAY);
    assert_eq!(front.run(Operation::FlushDiskcache, 0, &[]), Status::OKAY);
    assert_eq!(front.run(Operation::Read, 8, &second), Status::OKAY);
    assert!(front.page(1).iter().all(|&byte| byte == 0x5a));
}
