//! xenstored on the loopback hypervisor, by its unix socket, with our own clients. Xen's own tools
//! and library meet it as a daemon, in `parapet/tests/xenstored`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::Permission;
use parapet_xenstore::client::blocking::Client;
use parapet_xenstore::client::{self, Error};
use parapet_xenstore::host::SocketTransport;
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::server::socket;
use parapet_xenstore::store::Store;
use parapet_xenstore::wire::Request;
use tempfile::TempDir;

/// A machine whose domain 0 runs xenstored.
struct Host {
    hypervisor: Hypervisor,
    domain_0: Domain,
    xenstored: Handle,
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let hypervisor = Hypervisor::new(Default::default()).unwrap();
        let domain_0 = hypervisor.create(DomainConfig::default()).unwrap();
        let (daemon, xenstored) =
            Daemon::new(domain_0.clone(), Store::default(), |domid| domid.0 < 999);
        domain_0.spawn(daemon.run());
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let accept = socket::accept(domain_0.clone(), listener, xenstored.clone()).unwrap();
        domain_0.spawn(accept);
        Host {
            hypervisor,
            domain_0,
            xenstored,
            dir,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn connect(&self) -> Client {
        Client::connect(self.socket()).unwrap()
    }

    /// A guest with its own home, and its connection.
    fn guest(&self) -> (Domain, client::Client) {
        let guest = self.hypervisor.create(DomainConfig::default()).unwrap();
        let interface = guest.xenstore().unwrap();
        let port = interface.channel.port();
        let client = client::Client::over_ring(&guest, interface.page, interface.channel).unwrap();
        let home = format!("/local/domain/{}", guest.domid());
        let mut local = self.connect();
        local.mkdir(&home).unwrap();
        local
            .set_permissions(&home, &[Permission::none(guest.domid())])
            .unwrap();
        block_on(self.xenstored.introduce(guest.domid(), port)).unwrap();
        (guest, client)
    }
}

#[test]
fn a_blocking_client_uses_the_store() {
    let host = Host::new();
    let mut client = host.connect();
    client.write("/a/b", "1").unwrap();
    assert_eq!(client.read("/a/b").unwrap(), b"1");
    assert_eq!(client.list("/a").unwrap(), ["b"]);
    client.watch("/a", "t").unwrap();
    assert_eq!(client.next_event().unwrap().path, "/a");
    let mut other = host.connect();
    let counted = other.transaction(|tx| {
        let text = String::from_utf8(tx.read("/a/b")?).unwrap();
        let count: u32 = text.parse().unwrap();
        tx.write("/a/b", (count + 1).to_string())?;
        Ok(count + 1)
    });
    assert_eq!(counted.unwrap(), 2);
    let event = client.next_event().unwrap();
    assert_eq!((&*event.path, &*event.token), ("/a/b", "t"));
    client.unwatch("/a", "t").unwrap();
    assert_eq!(
        client.permissions("/a").unwrap(),
        [Permission::none(DomId::ZERO)]
    );
    client.remove("/a").unwrap();
    assert!(client.read("/a").unwrap_err().is_not_found());
    for n in 0..1000 {
        client.mkdir(&format!("/many/child-{n}")).unwrap();
    }
    assert_eq!(client.list("/many").unwrap().len(), 1000);
    let help = Request::Control {
        command: b"help",
        arguments: vec![],
    };
    assert!(client.call(&help).unwrap().starts_with(b"check"));
}

#[test]
fn guests_over_rings_and_clients_by_sockets_see_one_store() {
    let host = Host::new();
    let (guest, client) = host.guest();
    let path = format!("/local/domain/{}/data/x", guest.domid());
    let mut local = host.connect();
    local.watch(&path, "t").unwrap();
    local.next_event().unwrap();
    block_on(client.write("data/x", "hello")).unwrap();
    assert_eq!(local.next_event().unwrap().path, path);
    assert_eq!(local.read(&path).unwrap(), b"hello");
    let refused = block_on(client.write("/tool/x", "")).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::EACCES));
    block_on(host.xenstored.release(guest.domid()));
    assert_eq!(local.next_event().unwrap().path, path);
    assert!(local.read(&path).unwrap_err().is_not_found());
}

#[test]
fn what_was_mapped_of_a_guest_is_gone_once_its_release_is_done() {
    let host = Host::new();
    for _ in 0..200 {
        let (guest, client) = host.guest();
        block_on(client.write("data", "")).unwrap();
        assert_eq!(host.domain_0.mappings(), 1);
        block_on(host.xenstored.release(guest.domid()));
        assert_eq!(host.domain_0.mappings(), 0);
        guest.destroy_blocking();
    }
}

#[test]
fn clients_that_count_in_transactions_at_once_lose_none() {
    let host = Host::new();
    host.connect().write("/count", "0").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = host.connect();
                for _ in 0..50 {
                    let add = |tx: &mut Client| {
                        let text = String::from_utf8(tx.read("/count")?).unwrap();
                        let next = text.parse::<u32>().unwrap() + 1;
                        tx.write("/count", next.to_string())
                    };
                    client.transaction(add).unwrap();
                }
            });
        }
    });
    assert_eq!(host.connect().read("/count").unwrap(), b"200");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_and_gets_everything() {
    let host = Host::new();
    let mut client = host.connect();
    client.write("/big", [b'x'; 4000]).unwrap();
    let mut lazy = UnixStream::connect(host.socket()).unwrap();
    let mut writer = lazy.try_clone().unwrap();
    const REQUESTS: u32 = 2000;
    // More than all buffers on the way hold, so it blocks until somebody reads.
    let flood = thread::spawn(move || {
        for id in 0..REQUESTS {
            let mut bytes = vec![];
            let request = Request::Read(b"/big");
            request.encode(id, 0, &mut bytes).unwrap();
            writer.write_all(&bytes).unwrap();
        }
    });
    for n in 0..100 {
        client.write("/other", n.to_string()).unwrap();
    }
    let mut answer = [0; 4016];
    for id in 0..REQUESTS {
        lazy.read_exact(&mut answer).unwrap();
        assert_eq!(answer[4..8], id.to_ne_bytes());
    }
    flood.join().unwrap();
}

#[test]
fn a_daemons_tasks_share_one_connection_by_the_socket() {
    let host = Host::new();
    host.connect().write("/local/domain/0/domid", "0").unwrap();
    assert_eq!(host.connect().domid().unwrap(), DomId(0));
    let daemon = host.hypervisor.create(DomainConfig::default()).unwrap();
    let stream = UnixStream::connect(host.socket()).unwrap();
    let transport = SocketTransport::new(&daemon, stream).unwrap();
    let client = client::Client::start(&daemon, transport);
    let mut watch = block_on(client.watch("/w")).unwrap();
    assert_eq!(block_on(watch.next()).unwrap().path, "/w");
    // More than a socket's buffer holds.
    let value = "x".repeat(4000);
    let writers: Vec<_> = (0..4)
        .map(|task| {
            let (client, value) = (client.clone(), value.clone());
            thread::spawn(move || {
                for n in 0..100 {
                    let path = format!("/many/{task}/{n}");
                    block_on(client.write(&path, &value)).unwrap();
                }
            })
        })
        .collect();
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    assert_eq!(host.connect().list("/many/3").unwrap().len(), 100);
    host.connect().write("/w/x", "").unwrap();
    assert_eq!(block_on(watch.next()).unwrap().path, "/w/x");
}

#[test]
fn a_message_too_long_ends_that_connection_alone() {
    let host = Host::new();
    let mut bad = UnixStream::connect(host.socket()).unwrap();
    let header: Vec<u8> = [2u32, 0, 0, 4097]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    bad.write_all(&header).unwrap();
    let mut rest = vec![];
    bad.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    let missing = host.connect().read("/none").unwrap_err();
    assert!(matches!(missing, Error::Refused { .. }));
}
