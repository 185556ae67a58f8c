//! The life of a vbd: a toolstack's nodes, a plain frontend, and the service between them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod plain;

use std::fs::File;
use std::path::Path;

use parapet_blkback::device::Options;
use parapet_blkback::request::X86_64;
use parapet_blkback::service::{Report, Reports, Service};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::{Channel, Grant, Identity, Pages};
use parapet_xen_sys::io::blkif::{Operation, Status};
use parapet_xenstore::client::{Client, Watch};
use parapet_xenstore::server::daemon::Daemon;
use parapet_xenstore::store::Store;
use plain::{PAGES, Plain};

/// A host with a xenstore, a block backend and a guest.
struct Host {
    store: Client,
    reports: Reports,
    dom0: Domain,
    guest: Domain,
    _hypervisor: Hypervisor,
}

fn boot() -> Host {
    let hypervisor = Hypervisor::new(loopback::Config::default()).unwrap();
    let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
    let guest = hypervisor.create(DomainConfig::default()).unwrap();
    let (daemon, xenstored) = Daemon::new(dom0.clone(), Store::default(), |_| true);
    dom0.run(|_| daemon.run());
    let connect = || Client::start(&dom0, xenstored.connect());
    let service = Service::new(dom0.clone(), connect(), Options::default());
    let reports = service.reports();
    dom0.run(|_| async move {
        // It ends with the xenstore, when the test does.
        let _ = service.run().await;
    });
    Host {
        store: connect(),
        reports,
        dom0,
        guest,
        _hypervisor: hypervisor,
    }
}

/// The two directories of a vbd.
struct Vbd {
    number: u32,
    back: String,
    front: String,
}

impl Host {
    /// What xl does for a line of `disk=`.
    fn attach(&self, number: u32, params: &str, mode: &str) -> Vbd {
        let guest = self.guest.domid();
        let vbd = Vbd {
            number,
            back: format!("/local/domain/0/backend/vbd/{guest}/{number}"),
            front: format!("/local/domain/{guest}/device/vbd/{number}"),
        };
        block_on(self.store.transaction(|tx| {
            let (back, front) = (vbd.back.clone(), vbd.front.clone());
            async move {
                for (key, value) in [
                    ("frontend", front.as_str()),
                    ("frontend-id", &guest.to_string()),
                    ("online", "1"),
                    ("removable", "0"),
                    ("device-type", "disk"),
                    ("mode", mode),
                    ("type", "phy"),
                    ("params", params),
                    ("state", "1"),
                ] {
                    tx.write(&format!("{back}/{key}"), value).await?;
                }
                tx.write(&format!("{front}/backend"), &back).await?;
                tx.write(&format!("{front}/backend-id"), "0").await?;
                tx.write(&format!("{front}/state"), "1").await
            }
        }))
        .unwrap();
        vbd
    }

    /// What xl does to take it away.
    fn detach(&self, vbd: &Vbd) {
        block_on(self.store.transaction(|tx| {
            let back = vbd.back.clone();
            async move {
                tx.write(&format!("{back}/online"), "0").await?;
                tx.write(&format!("{back}/state"), "5").await
            }
        }))
        .unwrap();
    }

    fn get(&self, folder: &str, key: &str) -> String {
        let value = block_on(self.store.read(&format!("{folder}/{key}"))).unwrap();
        String::from_utf8(value).unwrap()
    }

    fn set(&self, folder: &str, key: &str, value: &str) {
        block_on(self.store.write(&format!("{folder}/{key}"), value)).unwrap();
    }

    /// Waits until the backend is in `state`.
    fn wait(&self, vbd: &Vbd, state: &str) {
        let path = format!("{}/state", vbd.back);
        let mut watch: Watch = block_on(self.store.watch(&path)).unwrap();
        while self.get(&vbd.back, "state") != state {
            block_on(watch.next()).unwrap();
        }
    }

    fn report(&self, vbd: &Vbd) -> Report {
        let all = self.reports.all();
        let found = all
            .into_iter()
            .find(|report| report.vbd.number == vbd.number);
        found.unwrap()
    }

    /// What a frontend does until it is connected.
    fn connect(&self, vbd: &Vbd) -> Plain<X86_64> {
        self.wait(vbd, "2");
        let front = Plain::new(&self.guest, self.dom0.domid());
        self.publish(vbd, &front);
        self.wait(vbd, "4");
        self.set(&vbd.front, "state", "4");
        front
    }

    fn publish(&self, vbd: &Vbd, front: &Plain<X86_64>) {
        let ring = front.ring_grant.refs()[0].0.to_string();
        self.set(&vbd.front, "ring-ref", &ring);
        self.set(
            &vbd.front,
            "event-channel",
            &front.channel.port().0.to_string(),
        );
        self.set(&vbd.front, "protocol", "x86_64-abi");
        self.set(&vbd.front, "feature-persistent", "1");
        self.set(&vbd.front, "state", "3");
    }
}

fn works(front: &mut Plain<X86_64>) {
    let first = front.segments(0..1, 0, 7);
    let second = front.segments(1..2, 0, 7);
    front.fill(0, 0x5a);
    assert_eq!(front.run(Operation::Write, 8, &first), Status::OKAY);
    assert_eq!(front.run(Operation::FlushDiskcache, 0, &[]), Status::OKAY);
    assert_eq!(front.run(Operation::Read, 8, &second), Status::OKAY);
    assert!(front.page(1).iter().all(|&byte| byte == 0x5a));
}

#[test]
fn a_vbd_is_offered_connected_closed_and_removed() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    for (key, value) in [
        ("sectors", "2048"),
        ("sector-size", "512"),
        ("info", "0"),
        ("feature-flush-cache", "1"),
        ("feature-persistent", "1"),
    ] {
        assert_eq!(host.get(&vbd.back, key), value, "{key}");
    }
    works(&mut front);
    assert_eq!(host.report(&vbd).stats.writes.operations.get(), 1);
    assert!(host.report(&vbd).alive);

    host.detach(&vbd);
    works(&mut front);
    host.set(&vbd.front, "state", "5");
    // Not before the ring is let go of.
    host.wait(&vbd, "5");
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    assert_eq!(host.guest.grants_in_use(), 0);
    front.grant.end().unwrap();
    front.ring_grant.end().unwrap();
}

#[test]
fn a_frontend_may_close_and_come_back_to_the_same_bytes() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    works(&mut front);
    host.set(&vbd.front, "state", "5");
    host.wait(&vbd, "5");
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    drop(front);

    host.set(&vbd.front, "state", "1");
    let mut front = host.connect(&vbd);
    let segments = front.segments(3..4, 0, 7);
    assert_eq!(front.run(Operation::Read, 8, &segments), Status::OKAY);
    assert!(front.page(3).iter().all(|&byte| byte == 0x5a));
    assert_eq!(
        host.report(&vbd).stats.reads.operations.get(),
        2,
        "since the device was made"
    );
}

#[test]
fn a_device_that_was_never_connected_is_removed_at_once() {
    let host = boot();
    let vbd = host.attach(51712, "null:1G", "w");
    host.wait(&vbd, "2");
    host.detach(&vbd);
    host.wait(&vbd, "6");
}

#[test]
fn a_frontend_whose_directory_vanishes_is_closed() {
    let host = boot();
    let vbd = host.attach(51712, "null:1G", "w");
    let mut front = host.connect(&vbd);
    let segments = front.segments(0..1, 0, 7);
    assert_eq!(front.run(Operation::Read, 0, &segments), Status::OKAY);
    block_on(host.store.remove(&vbd.front)).unwrap();
    host.wait(&vbd, "6");
    assert_eq!(host.guest.grants_in_use(), 0);
}

#[test]
fn a_disk_made_again_under_the_same_number_is_served_again() {
    let host = boot();
    for round in 1..=3u64 {
        let vbd = host.attach(51712, &format!("memory:{round}M"), "w");
        let mut front = host.connect(&vbd);
        assert_eq!(host.get(&vbd.back, "sectors"), (round * 2048).to_string());
        works(&mut front);
        block_on(host.store.remove(&vbd.front)).unwrap();
        host.wait(&vbd, "6");
        block_on(host.store.remove(&vbd.back)).unwrap();
    }
}

#[test]
fn an_image_that_cannot_be_used_closes_the_device_with_the_reason() {
    let host = boot();
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("odd.img");
    File::create(&odd).unwrap().set_len(1000).unwrap();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    for (number, params, mode) in [
        (1, name(&odd), "w"),
        (2, name(&folder.path().join("none.img")), "r"),
        (3, name(folder.path()), "w"),
        (4, "null:1000".into(), "w"),
        (5, "memory:1M".into(), "x"),
    ] {
        let vbd = host.attach(number, &params, mode);
        host.wait(&vbd, "5");
        let guest = host.guest.domid();
        let folder = format!("/local/domain/0/error/backend/vbd/{guest}/{number}");
        let reason = host.get(&folder, "error");
        let names = if number == 5 { "mode" } else { params.as_str() };
        assert!(reason.contains(names), "{reason}");
        assert!(!reason.contains('\n'), "{reason}");
        host.set(&vbd.front, "state", "6");
        host.wait(&vbd, "6");
    }
}

#[test]
fn nodes_that_a_toolstack_left_unfinished_close_the_device() {
    let host = boot();
    let back = "/local/domain/0/backend/vbd/1/51712";
    host.set(back, "state", "1");
    let vbd = Vbd {
        number: 51712,
        back: back.into(),
        front: String::new(),
    };
    host.wait(&vbd, "6");
    let mut reported = host.report(&vbd).error;
    while reported.is_none() {
        std::thread::yield_now();
        reported = host.report(&vbd).error;
    }
    assert!(reported.unwrap().contains("frontend"));
}

#[test]
fn what_a_frontend_breaks_is_its_own_device_and_it_may_try_again() {
    let host = boot();
    let good = host.attach(51712, "memory:1M", "w");
    let mut neighbour = host.connect(&good);
    let bad = host.attach(51728, "memory:1M", "w");

    // Keys that make no sense, a ring that is not granted, a port that is not there.
    for (key, value) in [
        ("ring-ref", "-1"),
        ("ring-ref", "99999"),
        ("event-channel", "4000"),
        ("event-channel", ""),
        ("protocol", "vax-abi"),
        ("ring-page-order", "31"),
    ] {
        host.wait(&bad, "2");
        let front = Plain::<X86_64>::new(&host.guest, host.dom0.domid());
        host.set(&bad.front, key, value);
        for (own, right) in [
            ("ring-ref", front.ring_grant.refs()[0].0.to_string()),
            ("event-channel", front.channel.port().0.to_string()),
        ] {
            if own != key {
                host.set(&bad.front, own, &right);
            }
        }
        host.set(&bad.front, "state", "3");
        host.wait(&bad, "5");
        works(&mut neighbour);
        for key in ["protocol", "ring-page-order"] {
            let _ = block_on(host.store.remove(&format!("{}/{key}", bad.front)));
        }
        host.set(&bad.front, "state", "6");
        host.wait(&bad, "6");
        host.set(&bad.front, "state", "1");
    }
    // A ring index that jumps.
    let front = host.connect(&bad);
    front.ring_memory.view().write(0, &0x8000_0000u32).unwrap();
    front.channel.notify();
    host.wait(&bad, "5");
    let guest = host.guest.domid();
    let reason = host.get(
        &format!("/local/domain/0/error/backend/vbd/{guest}/51728"),
        "error",
    );
    assert!(reason.contains("req_prod"), "{reason}");
    host.set(&bad.front, "state", "6");
    host.wait(&bad, "6");
    host.set(&bad.front, "state", "1");
    drop(front);
    // And now as it should be.
    let mut front = host.connect(&bad);
    works(&mut front);
    works(&mut neighbour);
}

#[test]
fn keys_that_change_after_the_connection_change_nothing() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    for key in [
        "ring-ref",
        "event-channel",
        "protocol",
        "feature-persistent",
    ] {
        host.set(&vbd.front, key, "garbage");
    }
    host.set(&vbd.front, "state", "4");
    works(&mut front);
    assert!(front.pages.view().len() == PAGES * 4096);
}

#[test]
fn two_disks_on_one_image_cannot_both_write_it() {
    let host = boot();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let path = image.path().to_str().unwrap();
    let first = host.attach(51712, path, "w");
    host.wait(&first, "2");
    let second = host.attach(51728, path, "w");
    host.wait(&second, "5");
    let mut front = host.connect(&first);
    works(&mut front);
}
