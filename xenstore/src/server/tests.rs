//! The server, spoken to in bytes.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::Permission;
use crate::wire::{self, Message, Request};

/// Domains 1 to 9 exist; what is asked of it is noted.
#[derive(Default)]
struct Fake(Vec<String>);

impl World for Fake {
    fn exists(&self, domid: DomId) -> bool {
        domid.0 < 10
    }

    fn connect(&mut self, client: ClientId, domid: DomId, port: Port) -> Result<(), Errno> {
        self.0
            .push(alloc::format!("connect {} {domid} {port}", client.0));
        if domid.0 < 10 {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn restart(&mut self, client: ClientId) {
        self.0.push(alloc::format!("restart {}", client.0));
    }

    fn disconnect(&mut self, client: ClientId) {
        self.0.push(alloc::format!("disconnect {}", client.0));
    }
}

struct Bench {
    server: Server,
    world: Fake,
    local: ClientId,
    guest: ClientId,
}

const DOMAIN: DomId = DomId(5);

impl Bench {
    fn new() -> Self {
        let mut server = Server::new(Store::default());
        let mut world = Fake::default();
        let local = server.connect_local();
        let guest = server.introduce(DOMAIN, Port(3), &mut world).unwrap();
        let mut bench = Bench {
            server,
            world,
            local,
            guest,
        };
        for request in [
            Request::Mkdir(b"/local/domain/5"),
            Request::SetPerms {
                path: b"/local/domain/5",
                permissions: vec![Permission::none(DOMAIN)],
            },
        ] {
            bench.ask(local, 0, &request).unwrap();
        }
        bench
    }

    fn send(&mut self, client: ClientId, bytes: &[u8]) {
        self.server.input(client, bytes);
        while self.server.serve(client, &mut self.world) {}
    }

    fn received(&mut self, client: ClientId) -> Vec<Message> {
        let mut decoder = Decoder::default();
        decoder.push(self.server.output(client));
        self.server.sent(client, decoder.len());
        core::iter::from_fn(|| decoder.message().unwrap()).collect()
    }

    /// The answer's payload, whatever events came before or after it.
    fn ask(&mut self, client: ClientId, tx: u32, request: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![];
        request.encode(77, tx, &mut bytes).unwrap();
        self.send(client, &bytes);
        let answers: Vec<_> = self
            .received(client)
            .into_iter()
            .filter(|m| m.req_id == 77)
            .collect();
        let [answer] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!(answer.tx_id, tx);
        if answer.operation == u32::from(Operation::Error) {
            return Err(wire::error_of_name(&answer.payload));
        }
        assert_eq!(answer.operation, u32::from(request.operation()));
        Ok(answer.payload.clone())
    }

    fn events(&mut self, client: ClientId) -> Vec<String> {
        let event = |message: Message| {
            assert_eq!(message.operation, u32::from(Operation::WatchEvent));
            String::from_utf8(message.payload).unwrap()
        };
        self.received(client).into_iter().map(event).collect()
    }
}

fn write<'a>(path: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Write { path, value }
}

fn watch(path: &[u8]) -> Request<'_> {
    let token = b"t";
    Request::Watch {
        path,
        token,
        depth: None,
    }
}

#[test]
fn a_guest_reads_what_it_wrote_relative_to_its_home() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.ask(bench.guest, 0, &write(b"data/x", b"a\0b")),
        Ok(b"OK\0".to_vec())
    );
    assert_eq!(
        bench.ask(bench.guest, 0, &Request::Read(b"data/x")),
        Ok(b"a\0b".to_vec())
    );
    let whole = Request::Read(b"/local/domain/5/data/x");
    assert_eq!(bench.ask(bench.local, 0, &whole), Ok(b"a\0b".to_vec()));
    assert_eq!(
        bench.ask(bench.guest, 0, &Request::Directory(b"/local/domain/5")),
        Ok(b"data\0".to_vec())
    );
    assert_eq!(
        bench.ask(bench.guest, 0, &Request::GetPerms(b"data")),
        Ok(b"n5\0".to_vec())
    );
    let part = Request::DirectoryPart {
        path: b"data",
        offset: 0,
    };
    let part = bench.ask(bench.guest, 0, &part).unwrap();
    assert!(part.ends_with(b"\0x\0\0"), "{part:?}");
    let path = Request::GetDomainPath(DOMAIN);
    assert_eq!(
        bench.ask(bench.guest, 0, &path),
        Ok(b"/local/domain/5\0".to_vec())
    );
}

#[test]
fn a_guest_may_not_do_what_is_domain_0s() {
    let mut bench = Bench::new();
    for request in [
        Request::Control {
            command: b"check",
            arguments: vec![],
        },
        Request::Introduce {
            domid: DomId(6),
            gfn: 0,
            port: Port(1),
        },
        Request::Release(DOMAIN),
        Request::Resume(DOMAIN),
        Request::IsDomainIntroduced(DOMAIN),
        Request::SetTarget {
            domid: DOMAIN,
            target: DomId(1),
        },
    ] {
        assert_eq!(
            bench.ask(bench.guest, 0, &request),
            Err(Errno::EACCES),
            "{request:?}"
        );
    }
}

#[test]
fn a_watch_is_answered_before_its_first_event_and_a_write_after_its_events() {
    let mut bench = Bench::new();
    let mut bytes = vec![];
    watch(b"x").encode(1, 0, &mut bytes).unwrap();
    write(b"x", b"1").encode(2, 0, &mut bytes).unwrap();
    bench.send(bench.guest, &bytes);
    let kinds: Vec<_> = bench
        .received(bench.guest)
        .into_iter()
        .map(|m| m.operation)
        .collect();
    let expected = [Operation::Watch, Operation::WatchEvent, Operation::Write];
    assert_eq!(
        kinds,
        expected.map(u32::from),
        "the second event waited already"
    );
    bench
        .ask(bench.local, 0, &write(b"/local/domain/5/x", b"2"))
        .unwrap();
    assert!(bench.server.take_stirred().contains(&bench.guest));
    assert_eq!(bench.events(bench.guest), ["x\0t\0"]);
}

#[test]
fn a_transaction_is_named_in_the_header() {
    let mut bench = Bench::new();
    let id = bench
        .ask(bench.local, 0, &Request::TransactionStart)
        .unwrap();
    let id: u32 = str::from_utf8(&id)
        .unwrap()
        .trim_end_matches('\0')
        .parse()
        .unwrap();
    bench.ask(bench.local, id, &write(b"/t", b"1")).unwrap();
    assert_eq!(
        bench.ask(bench.local, 0, &Request::Read(b"/t")),
        Err(Errno::ENOENT)
    );
    assert_eq!(
        bench.ask(bench.local, id, &Request::TransactionStart),
        Err(Errno::EBUSY)
    );
    assert_eq!(
        bench.ask(bench.guest, id, &Request::Read(b"/t")),
        Err(Errno::ENOENT)
    );
    let end = Request::TransactionEnd { commit: true };
    assert_eq!(bench.ask(bench.local, 0, &end), Err(Errno::ENOENT));
    bench.ask(bench.local, id, &end).unwrap();
    assert_eq!(
        bench.ask(bench.local, 0, &Request::Read(b"/t")),
        Ok(b"1".to_vec())
    );
    assert_eq!(
        bench.ask(bench.local, id, &Request::Read(b"/t")),
        Err(Errno::ENOENT)
    );
}

#[test]
fn domains_come_and_go_and_who_watches_is_told() {
    let mut bench = Bench::new();
    bench
        .ask(bench.local, 0, &watch(b"@introduceDomain"))
        .unwrap();
    bench
        .ask(bench.local, 0, &watch(b"@releaseDomain"))
        .unwrap();
    let introduced = |domid| Request::IsDomainIntroduced(DomId(domid));
    assert_eq!(
        bench.ask(bench.local, 0, &introduced(6)),
        Ok(b"F\0".to_vec())
    );
    let introduce = |domid| Request::Introduce {
        domid: DomId(domid),
        gfn: 1,
        port: Port(9),
    };
    assert_eq!(
        bench.ask(bench.local, 0, &introduce(99)),
        Err(Errno::EINVAL)
    );
    assert!(!bench.server.store().knows(DomId(99)));

    let mut bytes = vec![];
    introduce(6).encode(1, 0, &mut bytes).unwrap();
    Request::Release(DomId(6)).encode(2, 0, &mut bytes).unwrap();
    Request::Release(DomId(6)).encode(3, 0, &mut bytes).unwrap();
    Request::Release(DomId::ZERO)
        .encode(4, 0, &mut bytes)
        .unwrap();
    bench.send(bench.local, &bytes);
    let payloads: Vec<_> = bench
        .received(bench.local)
        .into_iter()
        .map(|m| String::from_utf8(m.payload).unwrap())
        .collect();
    let expected = [
        "@introduceDomain\0t\0",
        "OK\0",
        "@releaseDomain\0t\0",
        "OK\0",
        "ENOENT\0",
        "EINVAL\0",
    ];
    assert_eq!(payloads, expected);
    let asked = &bench.world.0[bench.world.0.len() - 3..];
    assert_eq!(asked, ["connect 4 6 9", "restart 4", "disconnect 4"]);

    bench.server.shut_down(DOMAIN);
    bench.server.shut_down(DOMAIN);
    assert_eq!(bench.events(bench.local), ["@releaseDomain\0t\0"]);
    bench.ask(bench.local, 0, &Request::Resume(DOMAIN)).unwrap();
    bench.server.shut_down(DOMAIN);
    assert_eq!(bench.events(bench.local), ["@releaseDomain\0t\0"]);
}

#[test]
fn permissions_may_name_a_domain_that_is_yet_to_be_introduced() {
    let mut bench = Bench::new();
    bench.ask(bench.local, 0, &write(b"/n", b"")).unwrap();
    let give = |domid| Request::SetPerms {
        path: b"/n",
        permissions: vec![Permission::none(DomId(domid))],
    };
    assert_eq!(bench.ask(bench.local, 0, &give(99)), Err(Errno::ENOENT));
    bench.ask(bench.local, 0, &give(8)).unwrap();
    let eight = bench
        .server
        .introduce(DomId(8), Port(1), &mut bench.world)
        .unwrap();
    bench.ask(eight, 0, &write(b"/n", b"mine")).unwrap();
}

#[test]
fn malformed_requests_are_answered_and_too_long_ones_end_the_connection() {
    let mut bench = Bench::new();
    let mut bytes = vec![];
    for operation in [Operation::Read, Operation::Error, Operation::GetQuota] {
        wire::encode(&mut bytes, operation, 1, 0, &[]).unwrap();
    }
    let unknown = parapet_xen_sys::io::xs_wire::MessageHeader {
        operation: 20,
        req_id: 2,
        tx_id: 0,
        len: 0,
    };
    bytes.extend_from_slice(unknown.as_bytes());
    bench.send(bench.guest, &bytes);
    let answers: Vec<_> = bench
        .received(bench.guest)
        .into_iter()
        .map(|m| m.payload)
        .collect();
    assert_eq!(
        answers,
        [&b"EINVAL\0"[..], b"ENOSYS\0", b"ENOSYS\0", b"ENOSYS\0"]
    );

    let long = parapet_xen_sys::io::xs_wire::MessageHeader {
        len: 4097,
        ..unknown
    };
    for client in [bench.guest, bench.local] {
        bench.send(client, long.as_bytes());
        assert!(!bench.server.wants_input(client));
    }
    assert_eq!(bench.server.fault(bench.guest), Some(RingError::Proto));
    assert!(!bench.server.is_connected(bench.local));
}

#[test]
fn a_client_that_does_not_read_is_not_served_and_stays_bounded() {
    let mut bench = Bench::new();
    bench
        .ask(bench.guest, 0, &write(b"x", &[b'v'; 2000]))
        .unwrap();
    bench.ask(bench.local, 0, &watch(b"/")).unwrap();
    bench.received(bench.local);
    let mut read = vec![];
    Request::Read(b"x").encode(1, 0, &mut read).unwrap();
    let mut sent = 0;
    while bench.server.wants_input(bench.guest) {
        bench.send(bench.guest, &read);
        sent += 1;
    }
    assert!(bench.server.output(bench.guest).len() < ANSWERS_WAITING + 4200);
    bench.ask(bench.local, 0, &write(b"/other", b"")).unwrap();
    let mut got = 0;
    while !bench.server.output(bench.guest).is_empty() {
        got += bench.received(bench.guest).len();
        while bench.server.serve(bench.guest, &mut bench.world) {}
    }
    assert_eq!(got, sent);
    assert!(bench.server.wants_input(bench.guest));
}

#[test]
fn events_for_a_guest_that_does_not_read_are_bounded() {
    let mut bench = Bench::new();
    bench
        .ask(bench.guest, 0, &watch(b"/local/domain/5"))
        .unwrap();
    bench.received(bench.guest);
    for n in 0..30_000 {
        let path = alloc::format!("/local/domain/5/a-name-of-some-length-{n}");
        bench
            .ask(bench.local, 0, &write(path.as_bytes(), b""))
            .unwrap();
        bench
            .ask(bench.local, 0, &Request::Rm(path.as_bytes()))
            .unwrap();
    }
    assert!(bench.server.output(bench.guest).len() <= DOMAIN_WAITING + 4112);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever bytes a guest sends, the others are served, and it gets whole messages.
    #[test]
    fn hostile_bytes_hurt_only_who_sent_them(
        requests in proptest::collection::vec(
            (0u32..28, 0u32..3, proptest::collection::vec(
                prop_oneof![Just(0u8), Just(b'/'), Just(b'a'), Just(b'T'), Just(b'1'), Just(b'@'), any::<u8>()], 0..30)),
            1..30,
        ),
        garbage in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut bench = Bench::new();
        for (operation, tx_id, payload) in &requests {
            let header = parapet_xen_sys::io::xs_wire::MessageHeader {
                operation: *operation,
                req_id: 9,
                tx_id: *tx_id,
                len: payload.len() as u32,
            };
            bench.send(bench.guest, &[header.as_bytes(), payload].concat());
        }
        let answered = bench.received(bench.guest).iter().filter(|m| m.req_id == 9).count();
        prop_assert_eq!(answered, requests.len());
        bench.send(bench.guest, &garbage);
        bench.received(bench.guest);
        bench.ask(bench.local, 0, &write(b"/still", b"served")).unwrap();
        prop_assert_eq!(bench.ask(bench.local, 0, &Request::Read(b"/still")), Ok(b"served".to_vec()));
        prop_assert_eq!(bench.ask(bench.local, 0, &Request::Read(b"/tool/xenstored")), Ok(vec![]));
    }
}
