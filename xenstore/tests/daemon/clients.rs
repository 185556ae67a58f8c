//! Clients that mean well.

use std::os::unix::net::UnixStream;
use std::thread;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::DomainConfig;
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::Permission;
use parapet_xenstore::client;
use parapet_xenstore::client::blocking::Client;
use parapet_xenstore::host::SocketTransport;
use parapet_xenstore::wire::Request;

use crate::world::Host;

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
