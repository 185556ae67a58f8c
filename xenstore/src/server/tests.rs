//! The server, spoken to in bytes.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Context, Poll};

use parapet_hypervisor::seam::{Channel, Tasks};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::account::EVENTS_OWED;
use super::*;
use crate::Permission;
use crate::client::Client;
use crate::mailbox::Mailbox;
use crate::server::daemon::Daemon;
use crate::store::Quota;
use crate::testing::Place;
use crate::transport::{Broken, Pipe, Transport};
use crate::wire::{self, Message, Request};

mod held;
mod quotas;

use quotas::set_quota;

/// Domains 1 to 9 run, unless it says otherwise here; what is asked of it is noted.
#[derive(Default)]
struct Fake(Vec<String>, BTreeMap<DomId, Life>);

impl World for Fake {
    fn life(&self, domid: DomId) -> Life {
        match self.1.get(&domid) {
            Some(&life) => life,
            None if domid.0 < 10 => Life::Running,
            None => Life::Gone,
        }
    }

    fn connect(
        &mut self,
        client: ClientId,
        domid: DomId,
        port: Port,
        features: ServerFeatures,
    ) -> Result<(), Errno> {
        let features = features.bits();
        self.0.push(alloc::format!(
            "connect {} {domid} {port} {features}",
            client.0
        ));
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

    fn append(&mut self, file: &[u8], text: &[u8]) -> Result<(), Errno> {
        let [file, text] = [file, text].map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        self.0.push(alloc::format!("{file}: {text}"));
        Ok(())
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
        Request::GetFeature(Some(DOMAIN)),
        Request::SetFeature {
            domid: DOMAIN,
            features: FEATURES,
        },
        Request::ListQuotas,
        set_quota(Some(DOMAIN), b"nodes", 5000),
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
    assert_eq!(asked, ["connect 4 6 9 15", "restart 4", "disconnect 4"]);

    bench.server.shut_down(DOMAIN);
    bench.server.shut_down(DOMAIN);
    assert_eq!(bench.events(bench.local), ["@releaseDomain\0t\0"]);
    bench.ask(bench.local, 0, &Request::Resume(DOMAIN)).unwrap();
    bench.server.shut_down(DOMAIN);
    assert_eq!(bench.events(bench.local), ["@releaseDomain\0t\0"]);
}

#[test]
fn a_look_around_finds_who_shut_down_and_who_is_gone() {
    let mut bench = Bench::new();
    bench
        .ask(bench.local, 0, &watch(b"@releaseDomain"))
        .unwrap();
    bench.events(bench.local);
    // A domain that is not introduced, but owns a node.
    let node = b"/local/domain/6".as_slice();
    let permissions = vec![Permission::none(DomId(6))];
    let path = node;
    bench.ask(bench.local, 0, &Request::Mkdir(node)).unwrap();
    bench
        .ask(bench.local, 0, &Request::SetPerms { path, permissions })
        .unwrap();
    let look = |bench: &mut Bench, domid: DomId, life: Life| {
        bench.world.1.insert(domid, life);
        bench.server.look_around(&mut bench.world);
        bench.events(bench.local)
    };
    assert!(look(&mut bench, DOMAIN, Life::Running).is_empty());
    let release = ["@releaseDomain\0t\0"];
    assert_eq!(look(&mut bench, DOMAIN, Life::ShutDown), release);
    assert!(look(&mut bench, DOMAIN, Life::ShutDown).is_empty());
    assert!(bench.server.is_connected(bench.guest));
    assert_eq!(look(&mut bench, DOMAIN, Life::Gone), release);
    assert!(!bench.server.is_connected(bench.guest));
    assert!(look(&mut bench, DOMAIN, Life::Gone).is_empty());

    assert!(look(&mut bench, DomId(6), Life::ShutDown).is_empty());
    bench.ask(bench.local, 0, &Request::Read(node)).unwrap();
    assert!(look(&mut bench, DomId(6), Life::Gone).is_empty());
    let read = bench.ask(bench.local, 0, &Request::Read(node));
    assert_eq!(read, Err(Errno::ENOENT));
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
    for operation in [Operation::Read, Operation::Error, Operation::WatchEvent] {
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
fn events_for_a_guest_that_does_not_read_are_bounded_by_its_memory() {
    let mut bench = Bench::new();
    let quota = set_quota(Some(DOMAIN), b"memory", 512 << 10);
    bench.ask(bench.local, 0, &quota).unwrap();
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
    assert!(bench.server.output(bench.guest).len() <= 512 << 10);
    assert!(bench.server.statistics().events_lost > 0);
}

#[test]
fn what_was_asked_and_what_is_held_is_counted() {
    let mut bench = Bench::new();
    let (local, guest) = (bench.local, bench.guest);
    let mut transaction = |commit: Result<bool, Errno>| {
        let id = bench.ask(guest, 0, &Request::TransactionStart).unwrap();
        let id = str::from_utf8(&id).unwrap().trim_end_matches('\0');
        let tx = id.parse().unwrap();
        bench
            .ask(guest, tx, &Request::Read(b"/local/domain/5"))
            .unwrap();
        bench.ask(guest, tx, &write(b"x", b"1")).unwrap();
        if commit == Err(Errno::EAGAIN) {
            bench
                .ask(local, 0, &write(b"/local/domain/5/x", b"2"))
                .unwrap();
        }
        let end = Request::TransactionEnd {
            commit: commit != Ok(false),
        };
        let ended = bench.ask(guest, tx, &end).map(drop);
        assert_eq!(ended, commit.map(drop));
    };
    transaction(Ok(true));
    transaction(Ok(false));
    transaction(Ok(false));
    transaction(Err(Errno::EAGAIN));
    bench.ask(guest, 0, &Request::TransactionStart).unwrap();
    bench.ask(guest, 0, &watch(b"x")).unwrap();
    bench.received(guest);
    assert_eq!(
        bench.ask(guest, 0, &Request::Read(b"none")),
        Err(Errno::ENOENT)
    );
    bench
        .ask(local, 0, &write(b"/local/domain/5/x/y", b""))
        .unwrap();

    let statistics = bench.server.statistics();
    let transactions = Transactions {
        begun: 5,
        committed: 1,
        dropped: 2,
        conflicted: 1,
    };
    assert_eq!(statistics.transactions, transactions);
    let missing = Requests {
        operation: Some(Operation::Read),
        error: Some(Errno::ENOENT),
        count: 1,
    };
    assert!(statistics.requests.contains(&missing), "{statistics:?}");
    assert_eq!(
        (statistics.local.connections, statistics.local.events),
        (1, 0)
    );
    let domain = statistics
        .domains
        .iter()
        .find(|it| it.domid == DOMAIN)
        .unwrap();
    let counts = [Quota::Nodes, Quota::Watches, Quota::Transactions].map(|it| domain.used[it]);
    assert_eq!(counts, [3, 1, 1]);
    assert_eq!((domain.ring.connections, domain.ring.events), (1, 1));
    assert_eq!(domain.ring.bytes, bench.server.output(guest).len());

    bench.server.fail(guest, RingError::Comm);
    let domains = bench.server.statistics().domains;
    let domain = domains.iter().find(|it| it.domid == DOMAIN).unwrap();
    assert_eq!(
        (domain.ring.connections, domain.used[Quota::Watches]),
        (0, 0)
    );
}

impl Bench {
    /// Domain 0, by a ring, watching `/` with this token, and its first event read.
    fn domain_0(&mut self, token: &[u8]) -> ClientId {
        let world = &mut self.world;
        let domain_0 = self.server.introduce(DomId::ZERO, Port(1), world).unwrap();
        let depth = None;
        let path = b"/";
        self.ask(domain_0, 0, &Request::Watch { path, token, depth })
            .unwrap();
        self.received(domain_0);
        domain_0
    }

    /// A guest makes and removes nodes, each of another name, and reads its answers, until it is
    /// held. How many bytes wait for `watcher` then.
    fn flood(&mut self, guest: ClientId, watcher: ClientId) -> usize {
        for n in 0.. {
            if !self.server.wants_input(guest) {
                break;
            }
            assert!(n < 10_000, "nothing holds it");
            let path = alloc::format!("device/vbd/{n}");
            let mut bytes = vec![];
            write(path.as_bytes(), b"4")
                .encode(1, 0, &mut bytes)
                .unwrap();
            Request::Rm(path.as_bytes())
                .encode(1, 0, &mut bytes)
                .unwrap();
            self.send(guest, &bytes);
            self.received(guest);
        }
        self.server.take_stirred();
        self.server.output(watcher).len()
    }

    /// What a held guest asks has no answer.
    fn assert_held(&mut self, guest: ClientId) {
        let mut bytes = vec![];
        write(b"more", b"").encode(2, 0, &mut bytes).unwrap();
        self.send(guest, &bytes);
        assert!(self.server.output(guest).is_empty());
    }
}

#[test]
fn a_guest_whose_events_domain_0_does_not_read_is_held_and_the_others_are_not() {
    let mut bench = Bench::new();
    let domain_0 = bench.domain_0(b"t");
    let world = &mut bench.world;
    let other = bench.server.introduce(DomId(6), Port(1), world).unwrap();
    for request in [
        Request::Mkdir(b"/local/domain/6"),
        Request::SetPerms {
            path: b"/local/domain/6",
            permissions: vec![Permission::none(DomId(6))],
        },
    ] {
        bench.ask(bench.local, 0, &request).unwrap();
    }
    let guest = bench.guest;
    let waiting = bench.flood(guest, domain_0);
    assert!(waiting < 2 * EVENTS_OWED, "{waiting}");
    bench.assert_held(guest);
    assert_eq!(bench.server.fault(domain_0), None);
    for _ in 0..100 {
        bench.ask(other, 0, &write(b"x", b"1")).unwrap();
    }
    assert!(bench.server.wants_input(other));

    // It goes on once enough was sent, not before, and is woken for that once.
    let mut woken = 0;
    while !bench.server.output(domain_0).is_empty() {
        let held = !bench.server.wants_input(guest);
        bench.server.sent(domain_0, 100);
        if bench.server.take_stirred().contains(&guest) {
            assert!(held && bench.server.wants_input(guest));
            woken += 1;
        }
    }
    assert_eq!(woken, 1);
    while bench.server.serve(guest, &mut bench.world) {}
    let answers = bench.received(guest);
    assert!(
        answers.iter().any(|answer| answer.req_id == 2),
        "asked while held"
    );
    bench.flood(guest, domain_0);
    bench.assert_held(guest);
}

#[test]
fn a_held_guest_goes_on_when_who_did_not_read_is_gone() {
    type Leave = fn(&mut Bench, ClientId);
    let leave: [Leave; 3] = [
        |bench, domain_0| bench.server.fail(domain_0, RingError::RingIdx),
        |bench, _| bench.server.release(DomId::ZERO, &mut bench.world),
        |bench, _| {
            let request = Request::Introduce {
                domid: DomId::ZERO,
                gfn: 0,
                port: Port(1),
            };
            bench.ask(bench.local, 0, &request).unwrap();
        },
    ];
    for leave in leave {
        let mut bench = Bench::new();
        let domain_0 = bench.domain_0(b"t");
        bench.flood(bench.guest, domain_0);
        leave(&mut bench, domain_0);
        assert!(bench.server.take_stirred().contains(&bench.guest));
        bench.ask(bench.guest, 0, &write(b"x", b"1")).unwrap();
    }

    let mut bench = Bench::new();
    let idle = bench.server.connect_local();
    bench.ask(idle, 0, &watch(b"/")).unwrap();
    bench.received(idle);
    bench.flood(bench.guest, idle);
    bench.assert_held(bench.guest);
    bench.server.fail(idle, RingError::Comm);
    assert!(bench.server.take_stirred().contains(&bench.guest));
    assert!(bench.server.wants_input(bench.guest));
}

#[test]
fn whatever_waits_for_domain_0_it_stays_and_a_local_client_does_not() {
    let mut bench = Bench::new();
    let token = [b't'; 3000];
    let domain_0 = bench.domain_0(&token);
    let idle = bench.server.connect_local();
    let all = Request::Watch {
        path: b"/",
        token: &token,
        depth: None,
    };
    bench.ask(idle, 0, &all).unwrap();
    bench.received(idle);
    for n in 0..LOCAL_WAITING / token.len() + 2 {
        assert!(bench.server.is_connected(idle) || n * (token.len() + 30) > LOCAL_WAITING);
        let path = alloc::format!("/n{n}");
        bench
            .ask(bench.local, 0, &write(path.as_bytes(), b""))
            .unwrap();
        bench
            .ask(bench.local, 0, &Request::Rm(path.as_bytes()))
            .unwrap();
    }
    assert!(!bench.server.is_connected(idle));
    assert_eq!(bench.server.fault(domain_0), None);
    assert!(bench.server.output(domain_0).len() > LOCAL_WAITING);
}

/// A pipe with little room in it.
struct Narrow(Pipe);

impl Transport for Narrow {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        self.0.read(to)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        self.0.write(&bytes[..bytes.len().min(100)])
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_ready(cx)
    }
}

#[test]
fn a_guest_that_was_held_while_a_slow_client_read_finishes_what_it_asked() {
    let host = Place::host();
    let (daemon, xenstored) = Daemon::new(host.clone(), Store::default(), |domid| domid.0 < 10);
    host.spawn(daemon.run());
    host.run(async {
        let (place, page, channel) = host.domain(DOMAIN);
        let port = channel.port();
        let guest = Client::over_ring(&place, page, channel).unwrap();
        let local = Client::start(&host, xenstored.connect());
        local.mkdir("/local/domain/5").await.unwrap();
        let own = [Permission::none(DOMAIN)];
        local
            .set_permissions("/local/domain/5", &own)
            .await
            .unwrap();
        xenstored.introduce(DOMAIN, port).await.unwrap();

        let (mut slow, narrow) = Pipe::pair();
        xenstored.serve(Narrow(narrow));
        let mut request = vec![];
        let token = &[b't'; 1000];
        let (path, depth) = (b"/local/domain/5", None);
        let all = Request::Watch { path, token, depth };
        all.encode(1, 0, &mut request).unwrap();
        assert_eq!(slow.write(&request).unwrap(), request.len());

        let done = Mailbox::new();
        let finished = done.clone();
        host.spawn(async move {
            for n in 0..1000 {
                let path = alloc::format!("device/{n}");
                guest.write(&path, "").await.unwrap();
                guest.remove(&path).await.unwrap();
            }
            finished.put(());
        });
        let mut read = 0;
        poll_fn(|cx| {
            if done.poll_take(cx).is_ready() {
                return Poll::Ready(());
            }
            let got = slow.read(&mut [0; 100]).unwrap();
            read += got;
            if got > 0 || slow.poll_ready(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        // All was told that the guest may not owe when it asks for the last time.
        let total = 1000 * token.len();
        assert!(read > total - 2 * EVENTS_OWED, "{read}");
    });
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
        let mut answered = 0;
        for (operation, tx_id, payload) in &requests {
            let header = parapet_xen_sys::io::xs_wire::MessageHeader {
                operation: *operation,
                req_id: 9,
                tx_id: *tx_id,
                len: payload.len() as u32,
            };
            bench.send(bench.guest, &[header.as_bytes(), payload].concat());
            answered += bench.received(bench.guest).iter().filter(|m| m.req_id == 9).count();
        }
        prop_assert_eq!(answered, requests.len());
        bench.send(bench.guest, &garbage);
        bench.received(bench.guest);
        bench.ask(bench.local, 0, &write(b"/still", b"served")).unwrap();
        prop_assert_eq!(bench.ask(bench.local, 0, &Request::Read(b"/still")), Ok(b"served".to_vec()));
        prop_assert_eq!(bench.ask(bench.local, 0, &Request::Read(b"/tool/xenstored")), Ok(vec![]));
    }
}
