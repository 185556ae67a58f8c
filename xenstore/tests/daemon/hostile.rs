//! Clients that flood, hoard, stall and lie: each hurts itself, and the others are served.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::client::Error;
use parapet_xenstore::client::blocking::Client;
use parapet_xenstore::wire::Request;

use crate::world::Host;

/// Does what a client would do whom the others must not disturb.
fn is_served(client: &mut Client) {
    client.write("/neighbour", "here").unwrap();
    assert_eq!(client.read("/neighbour").unwrap(), b"here");
    client
        .transaction(|tx| {
            tx.write("/neighbour", "still")?;
            tx.remove("/neighbour")
        })
        .unwrap();
}

/// What CONTROL says that a domain uses of a quota.
fn used(client: &mut Client, domid: DomId, quota: &str) -> usize {
    let domid = domid.to_string();
    let request = Request::Control {
        command: b"quota",
        arguments: vec![domid.as_bytes()],
    };
    let text = String::from_utf8(client.call(&request).unwrap()).unwrap();
    let line = text.lines().find(|line| line.starts_with(quota)).unwrap();
    let (_, rest) = line.split_once(':').unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
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
fn a_client_that_floods_and_never_reads_is_held_and_the_others_are_served() {
    let host = Host::new();
    let mut neighbour = host.connect();
    let mut flood = UnixStream::connect(host.socket()).unwrap();
    let end = flood.try_clone().unwrap();
    let mut requests = vec![];
    while requests.len() < 64 << 10 {
        Request::Read(b"/").encode(1, 0, &mut requests).unwrap();
    }
    let over = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0;
            while !over.load(Ordering::Acquire) {
                match flood.write(&requests) {
                    Ok(some) => sent += some,
                    // Shut down; by then the daemon may have let go of what it had not read.
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                        ) =>
                    {
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            sent
        });
        for _ in 0..1000 {
            is_served(&mut neighbour);
        }
        over.store(true, Ordering::Release);
        end.shutdown(std::net::Shutdown::Both).unwrap();
        flood.join().unwrap()
    });
    // What sockets hold, and what the daemon does: a bounded part of what could have been sent.
    assert!(sent < 8 << 20, "{sent} bytes were taken in");
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

#[test]
fn ten_thousand_transactions_of_a_local_client_are_its_own_business() {
    let host = Host::new();
    let mut neighbour = host.connect();
    let mut hoarder = host.connect();
    for _ in 0..10_000 {
        hoarder.call(&Request::TransactionStart).unwrap();
    }
    is_served(&mut neighbour);
    assert_eq!(used(&mut neighbour, DomId::ZERO, "transactions"), 10_000);
    drop(hoarder);
    // The daemon hears of the end when it next looks at that socket.
    while used(&mut neighbour, DomId::ZERO, "transactions") > 0 {}
    is_served(&mut neighbour);
}

#[test]
fn a_guest_has_as_many_transactions_and_watches_as_its_quota_says() {
    let host = Host::new();
    let (guest, client) = host.guest();
    let call = |request: &Request<'_>| block_on(client.call(request));
    let mut opened = 0;
    let refused = loop {
        match call(&Request::TransactionStart) {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((opened, refused.errno()), (10, Some(Errno::ENOSPC)));
    let mut watches = 0;
    let refused = loop {
        let token = watches.to_string();
        let watch = Request::Watch {
            path: b"data",
            token: token.as_bytes(),
            depth: None,
        };
        match call(&watch) {
            Ok(_) => watches += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((watches, refused.errno()), (128, Some(Errno::ENOSPC)));
    let mut neighbour = host.connect();
    assert_eq!(used(&mut neighbour, guest.domid(), "watches"), 128);
    is_served(&mut neighbour);
    call(&Request::ResetWatches).unwrap();
    assert_eq!(used(&mut neighbour, guest.domid(), "watches"), 0);
    assert_eq!(used(&mut neighbour, guest.domid(), "transactions"), 0);
}

#[test]
fn ten_thousand_watches_of_a_local_client_delay_no_event_of_another() {
    let host = Host::new();
    let mut neighbour = host.connect();
    let mut hoarder = host.connect();
    for n in 0..10_000 {
        hoarder.watch(&format!("/elsewhere/{n}"), "t").unwrap();
        hoarder.next_event().unwrap();
    }
    neighbour.watch("/here", "mine").unwrap();
    neighbour.next_event().unwrap();
    host.connect().write("/here/x", "").unwrap();
    assert_eq!(neighbour.next_event().unwrap().path, "/here/x");
    host.connect().write("/elsewhere/9999", "").unwrap();
    assert_eq!(hoarder.next_event().unwrap().path, "/elsewhere/9999");
    is_served(&mut neighbour);
}

#[test]
fn a_path_as_deep_as_paths_get_is_made_shared_and_removed() {
    let host = Host::new();
    let mut client = host.connect();
    let deepest = "/a".repeat(1536);
    client.write(&deepest, "here").unwrap();
    assert_eq!(client.read(&deepest).unwrap(), b"here");
    client.watch("/a", "top").unwrap();
    client.next_event().unwrap();
    client.watch(&deepest, "deep").unwrap();
    client.next_event().unwrap();
    client
        .transaction(|tx| tx.write(&deepest, "there"))
        .unwrap();
    let mut told = [client.next_event().unwrap(), client.next_event().unwrap()];
    told.sort_by(|a, b| a.token.cmp(&b.token));
    assert_eq!(told.each_ref().map(|event| &*event.token), ["deep", "top"]);
    client
        .transaction(|tx| {
            tx.remove("/a")?;
            tx.write(&deepest, "again")
        })
        .unwrap();
    assert_eq!(client.read(&deepest).unwrap(), b"again");
    client.remove("/a").unwrap();
    assert!(client.read("/a").unwrap_err().is_not_found());
    let deeper = client.write(&"/a".repeat(1537), "").unwrap_err();
    assert_eq!(deeper.errno(), Some(Errno::EINVAL));
    is_served(&mut client);
}

#[test]
fn a_guest_that_nests_as_deep_as_it_may_hurts_only_itself() {
    let host = Host::new();
    let (guest, client) = host.guest();
    let write = |path: &str| block_on(client.write(path, ""));
    // With its home that is a node more than its quota of 1000.
    let refused = write(&format!("a{}", "/a".repeat(999))).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ENOSPC));
    write(&format!("a{}", "/a".repeat(998))).unwrap();
    let mut neighbour = host.connect();
    assert_eq!(used(&mut neighbour, guest.domid(), "nodes"), 1000);
    is_served(&mut neighbour);
    block_on(host.xenstored.release(guest.domid()));
    assert!(
        neighbour
            .read(&format!("/local/domain/{}", guest.domid()))
            .unwrap_err()
            .is_not_found()
    );
    is_served(&mut neighbour);
}
