//! A server that another goes on from, and the way there.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

use parapet_xen_sys::{Errno, Port};

use super::*;
use crate::Permission;
use crate::server::{Due, Life, World};
use crate::store::Quota as Quotum;
use crate::wire::{Decoder, Message, Request};

const GUEST: DomId = DomId(5);
const FORM: Form = Form {
    version: Version::V2,
    alone: true,
};
const NOTHING: Global = Global {
    socket: None,
    event_channels: None,
};

/// All domains run, and there is a program called `/new`.
struct Fake {
    waits: Vec<(Duration, u64)>,
}

impl World for Fake {
    fn life(&self, _: DomId) -> Life {
        Life::Running
    }

    fn connect(&mut self, _: ClientId, _: DomId, _: Port, _: ServerFeatures) -> Result<(), Errno> {
        Ok(())
    }

    fn restart(&mut self, _: ClientId) {}

    fn disconnect(&mut self, _: ClientId) {}

    fn look_at(&mut self, program: &[u8]) -> Result<(), &'static str> {
        match program {
            b"/new" => Ok(()),
            _ => Err("File not accessible."),
        }
    }

    fn expire_update(&mut self, after: Duration, number: u64) {
        self.waits.push((after, number));
    }
}

/// A server with domains 0, 5 and 6 and two local clients.
struct Bench {
    server: Server,
    world: Fake,
    locals: [ClientId; 2],
    guest: ClientId,
}

impl Bench {
    fn new() -> Self {
        let mut server = Server::new(Store::default());
        let mut world = Fake { waits: vec![] };
        let mut introduce = |domid| {
            let port = Port(u32::from(domid) + 1);
            server.introduce(DomId(domid), port, &mut world).unwrap()
        };
        let [_, guest, _] = [0, 5, 6].map(&mut introduce);
        let locals = [0, 1].map(|_| server.connect_local());
        Bench {
            server,
            world,
            locals,
            guest,
        }
    }

    fn send(&mut self, client: ClientId, tx: u32, request: &Request<'_>) {
        let mut bytes = vec![];
        request.encode(7, tx, &mut bytes).unwrap();
        self.server.input(client, &bytes);
        while self.server.serve(client, &mut self.world) {}
    }

    /// What has been sent to a client since this was last asked.
    fn got(&mut self, client: ClientId) -> Vec<Message> {
        let bytes = self.server.output(client).to_vec();
        self.server.sent(client, bytes.len());
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        core::iter::from_fn(|| decoder.message().unwrap()).collect()
    }

    fn ask(&mut self, client: ClientId, tx: u32, request: &Request<'_>) -> String {
        self.send(client, tx, request);
        let all = self.got(client);
        let answer = all.iter().find(|it| it.req_id == 7);
        let answer = answer.map_or(&b"(none)"[..], |it| &it.payload);
        answer.escape_ascii().to_string()
    }

    fn control(&mut self, client: ClientId, arguments: &[&[u8]]) -> String {
        let request = Request::Control {
            command: b"live-update",
            arguments: arguments.to_vec(),
        };
        self.ask(client, 0, &request)
    }

    fn legacy(&self) -> impl Fn(ClientId) -> Option<Legacy> {
        let of = |(client, it): (&ClientId, &Connection)| {
            let number = i32::try_from(client.0).unwrap();
            let legacy = match it.peer {
                Peer::Local => Legacy::Socket(number),
                Peer::Domain(domid) => Legacy::Port(Port(u32::from(domid.0) + 1)),
            };
            (*client, legacy)
        };
        let all: BTreeMap<_, _> = self.server.connections.iter().map(of).collect();
        move |client| all.get(&client).copied()
    }

    fn dump(&self) -> Vec<u8> {
        self.server.dump(FORM, NOTHING, self.legacy()).unwrap()
    }

    /// What another makes of its stream.
    fn handed_over(self) -> Self {
        let restored = restore(&self.dump(), Quotas::default(), 1 << 32).unwrap();
        let of = |wanted: End| {
            let same = |end: &End| match (wanted, *end) {
                (End::Ring { domid: a, .. }, End::Ring { domid: b, .. }) => a == b,
                (a, b) => a == b,
            };
            let mut all = restored.connections.iter();
            all.find(|(_, end)| same(end)).unwrap().0
        };
        let socket = |client: ClientId| of(End::Socket(i32::try_from(client.0).unwrap()));
        Bench {
            world: self.world,
            locals: self.locals.map(socket),
            guest: of(End::Ring {
                domid: GUEST,
                target: None,
                port: Port(0),
            }),
            server: restored.server,
        }
    }
}

fn watch<'a>(path: &'a [u8], token: &'a [u8], depth: Option<u32>) -> Request<'a> {
    Request::Watch { path, token, depth }
}

fn write<'a>(path: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Write { path, value }
}

/// One in whose stream there is something of everything.
fn eventful() -> Bench {
    let mut bench = Bench::new();
    let [a, b] = bench.locals;
    let guest = bench.guest;
    for (client, request) in [
        (a, write(b"/local/domain/5", b"")),
        (
            a,
            Request::SetPerms {
                path: b"/local/domain/5",
                permissions: ["n5", "r6"]
                    .map(|it| it.parse::<Permission>().unwrap())
                    .into(),
            },
        ),
        (guest, write(b"data", b"\0\x01")),
        (guest, watch(b"data", b"relative", Some(3))),
        (guest, watch(b"/local", b"absolute", None)),
        (a, watch(b"/local/domain/5/data", b"one", None)),
        (b, watch(b"@releaseDomain", b"two", None)),
        (
            a,
            Request::SetTarget {
                domid: DomId(6),
                target: GUEST,
            },
        ),
        (
            a,
            Request::SetQuota {
                domid: Some(GUEST),
                name: b"nodes",
                value: 17,
            },
        ),
        (
            a,
            Request::SetQuota {
                domid: None,
                name: b"soft-memory",
                value: 99,
            },
        ),
    ] {
        let answer = bench.ask(client, 0, &request);
        assert_eq!(answer, "OK\\x00", "{request:?}");
    }
    bench.server.shut_down(DomId(6));
    for client in [a, b, guest] {
        bench.got(client);
    }
    bench
}

#[test]
fn what_a_server_knows_is_what_the_next_one_tells() {
    let mut bench = eventful();
    let [a, b] = bench.locals;
    // Events and an answer wait, one of them sent in part; a request has come in part.
    bench.send(bench.guest, 0, &write(b"data", b"new"));
    bench.send(a, 0, &Request::Read(b"/local/domain/5/data"));
    bench.server.sent(a, 21);
    let mut request = vec![];
    Request::Read(b"/local/domain/5/data")
        .encode(8, 0, &mut request)
        .unwrap();
    bench.server.input(b, &request[..19]);
    let stream = bench.dump();

    let mut next = bench.handed_over();
    assert_eq!(next.dump(), stream);
    let shut_down = |domid| next.server.domains[&DomId(domid)].shut_down;
    assert_eq!([0, 5, 6].map(shut_down), [false, false, true]);
    let quotas = next.server.store.quotas(Some(GUEST)).unwrap();
    assert_eq!(quotas[Limit::hard(Quotum::Nodes)], 17);

    let [a, b] = next.locals;
    next.server.input(b, &request[19..]);
    while next.server.serve(b, &mut next.world) {}
    assert_eq!(next.got(b)[0].payload, b"new");
    // The rest of the event is there, and then the answer.
    let rest = next.server.output(a).to_vec();
    let event = 16 + b"/local/domain/5/data\0one\0".len() - 21;
    let mut decoder = Decoder::default();
    decoder.push(&rest[event..]);
    assert_eq!(decoder.message().unwrap().unwrap().payload, b"new");
    assert!(rest[..event].ends_with(b"one\0"));
}

#[test]
fn watches_and_rights_go_on() {
    let mut next = eventful().handed_over();
    let [a, b] = next.locals;
    assert_eq!(next.ask(next.guest, 0, &write(b"data", b"x")), "OK\\x00");
    assert_eq!(next.got(a)[0].payload, b"/local/domain/5/data\0one\0");
    // Domain 6 acts for domain 5 still.
    let stub = next.server.domains[&DomId(6)].client;
    assert_eq!(
        next.ask(stub, 0, &write(b"/local/domain/5/data", b"y")),
        "OK\\x00"
    );
    let events = next.got(next.guest);
    let paths: Vec<_> = events.iter().map(|it| &it.payload[..]).collect();
    let [relative, absolute] = [
        &b"data\0relative\0"[..],
        b"/local/domain/5/data\0absolute\0",
    ];
    assert_eq!(paths, [relative, absolute]);
    next.server.shut_down(DomId(6));
    assert!(next.got(b).is_empty(), "that was told before");
    next.server.shut_down(GUEST);
    assert_eq!(next.got(b)[0].payload, b"@releaseDomain\0two\0");
}

/// The records of a small stream, before a change.
fn small(change: impl FnOnce(&mut Vec<Record<'_>>)) -> Result<Restored, Refused> {
    let node = |path: &'static [u8]| {
        Record::Node(migration::Node {
            pending: None,
            path,
            value: b"",
            permissions: vec![crate::Entry {
                permission: Permission::none(DomId::ZERO),
                stale: false,
            }],
        })
    };
    let connection = |id, end| {
        Record::Connection(migration::Connection {
            id,
            end,
            input: b"",
            output: b"",
            partial: 0,
            unique_id: Some(9),
        })
    };
    let mut records = vec![
        Record::Global(NOTHING),
        connection(4, End::Socket(7)),
        connection(2, End::Socket(8)),
        Record::Watch(migration::Watch {
            connection: 4,
            path: b"/a",
            token: b"t",
            depth: None,
        }),
        node(b"/"),
        node(b"/a"),
        Record::Domain(migration::Domain {
            domid: DomId(3),
            features: 0,
            quotas: vec![Quota {
                name: "of-somebody-else",
                value: 3,
            }],
        }),
    ];
    change(&mut records);
    let mut writer = Writer::new(Header {
        version: Version::V2,
        order: ByteOrder::Big,
    });
    for record in &records {
        writer.push(record).unwrap();
    }
    restore(&writer.finish(), Quotas::default(), 0)
}

#[test]
fn a_stream_that_contradicts_itself_is_refused_at_its_record() {
    let restored = small(|_| {}).unwrap();
    assert_eq!(restored.connections.len(), 2);
    let refused = |change: fn(&mut Vec<Record<'_>>)| match small(change) {
        Err(Refused::Inconsistent { place, reason }) => (place.record, reason),
        other => panic!("{:?}", other.map(|_| ())),
    };
    for again in [0, 3, 6] {
        let twice = match again {
            0 => refused(|all| all.insert(1, all[0].clone())),
            3 => refused(|all| all.insert(4, all[3].clone())),
            _ => refused(|all| all.push(all[6].clone())),
        };
        let reason = match again {
            3 => Reason::Misfit(Misfit::Twice),
            _ => Reason::Twice,
        };
        assert_eq!(twice, (again + 2, reason));
    }
    let same_id = refused(|all| all.insert(3, all[1].clone()));
    assert_eq!(same_id, (4, Reason::SameConnection));
    let same_socket = refused(|all| {
        let Record::Connection(mut other) = all[1] else {
            panic!("it is a connection");
        };
        other.id = 5;
        all.insert(3, Record::Connection(other));
    });
    assert_eq!(same_socket, (4, Reason::SameConnection));
    let unknown = refused(|all| {
        all.insert(
            1,
            Record::Transaction(migration::Transaction {
                connection: 1,
                transaction: 1,
            }),
        );
    });
    assert_eq!(unknown, (2, Reason::UnknownConnection(1)));
    assert_eq!(
        refused(|all| drop(all.remove(1))),
        (3, Reason::UnknownConnection(4))
    );
    let orphan = refused(|all| all.swap(4, 5));
    assert_eq!(orphan, (5, Reason::Misfit(Misfit::NoParent)));
    let node_twice = refused(|all| all.push(all[5].clone()));
    assert_eq!(node_twice, (8, Reason::Misfit(Misfit::Twice)));
    assert_eq!(small(|all| all.truncate(4)).err(), Some(Refused::NoRoot));
}

#[test]
fn a_transaction_that_a_stream_has_is_given_up_with_its_nodes() {
    let transaction = migration::Transaction {
        connection: 4,
        transaction: 3,
    };
    let pending = |known: bool| {
        small(move |all| {
            let Record::Node(mut node) = all[5].clone() else {
                panic!("it is a node");
            };
            node.path = b"/pending";
            node.pending = Some(migration::Pending {
                of: transaction,
                read: false,
                written: true,
            });
            if known {
                all.insert(3, Record::Transaction(transaction));
            }
            all.push(Record::Node(node));
        })
    };
    let restored = pending(true).unwrap();
    let (client, _) = restored.connections[0];
    assert_eq!(restored.server.store.transactions(client), 0);
    assert!(matches!(
        pending(false),
        Err(Refused::Inconsistent {
            reason: Reason::UnknownTransaction(3),
            ..
        })
    ));
}

// ---- CONTROL live-update

#[test]
fn the_commands_of_a_live_update_answer_as_c_xenstoreds_do() {
    let mut bench = Bench::new();
    let [a, b] = bench.locals;
    let none = "Not in live-update session.\\x00";
    let ok = "OK\\x00";
    for (client, arguments, answer) in [
        (a, &[&b"-a"[..]][..], "No live-update session active.\\x00"),
        (a, &[b"-c", b"--x"], none),
        (a, &[b"-s"], none),
        (a, &[b"-f", b"/nowhere"], "File not accessible.\\x00"),
        (a, &[b"-f"], "EINVAL\\x00"),
        (a, &[], "EINVAL\\x00"),
        (a, &[b"-f", b"/new"], ok),
        (
            b,
            &[b"-f", b"/new"],
            "live-update session already active.\\x00",
        ),
        (b, &[b"-c", b"--x"], none),
        (a, &[b"-c", b"--one --two"], ok),
        (a, &[b"-s", b"-t"], "EINVAL\\x00"),
        (
            a,
            &[b"-s", b"-v", b"3"],
            "Migration stream version not supported.\\x00",
        ),
        (b, &[b"-a"], ok),
        (a, &[b"-s"], none),
    ] {
        assert_eq!(bench.control(client, arguments), answer, "{arguments:?}");
    }
    bench.control(a, &[b"-f", b"/new"]);
    bench.control(a, &[b"-c", b"--one --two"]);
    assert_eq!(
        bench.control(a, &[b"-s", b"-v", b"1", b"-t", b"60"]),
        "(none)"
    );
    let due = Due {
        program: b"/new".into(),
        arguments: Some(b"--one --two".into()),
        version: Some(Version::V1),
    };
    assert_eq!(bench.server.due_update(), Some(due));
    assert_eq!(bench.world.waits, [(Duration::from_secs(60), 2)]);
    // In the stream it is answered already.
    let mut next = bench.handed_over();
    let answer = &next.got(next.locals[0])[0];
    assert_eq!((answer.req_id, &answer.payload[..]), (7, crate::wire::OK));
}

#[test]
fn nobody_begins_a_transaction_while_an_update_waits_for_others() {
    let mut bench = Bench::new();
    let [a, b] = bench.locals;
    let guest = bench.guest;
    assert_eq!(bench.ask(guest, 0, &Request::TransactionStart), "1\\x00");
    bench.control(a, &[b"-f", b"/new"]);
    bench.control(a, &[b"-s", b"-t", b"60"]);
    assert_eq!(bench.server.due_update(), None);
    // One more waits, with all that comes after it; who has one may have another.
    assert_eq!(bench.ask(b, 0, &Request::TransactionStart), "(none)");
    assert_eq!(bench.ask(b, 0, &Request::Read(b"/tool")), "(none)");
    assert_eq!(bench.ask(guest, 0, &Request::TransactionStart), "2\\x00");
    let end = Request::TransactionEnd { commit: true };
    for tx in [1, 2] {
        assert_eq!(bench.server.due_update(), None);
        assert_eq!(bench.ask(guest, tx, &end), "OK\\x00");
    }
    assert!(bench.server.due_update().is_some());
    // Neither the request nor the one behind it is lost by the update, ...
    let mut next = Bench {
        locals: bench.locals,
        guest,
        world: Fake { waits: vec![] },
        server: restore(&bench.dump(), Quotas::default(), 0).unwrap().server,
    };
    let other = *next.server.connections.keys().last().unwrap();
    while next.server.serve(other, &mut next.world) {}
    let answers: Vec<_> = next.got(other).into_iter().map(|it| it.payload).collect();
    assert_eq!(answers, [&b"1\0"[..], b""]);
    // ... nor by its failure.
    bench.server.end_update("Error activating new binary.");
    assert_eq!(bench.got(a)[0].payload, b"Error activating new binary.\0");
    assert!(bench.server.take_stirred().contains(&b));
    while bench.server.serve(b, &mut bench.world) {}
    assert_eq!(bench.got(b).len(), 2);
}

#[test]
fn an_update_that_waits_too_long_is_refused_or_forced() {
    let mut bench = Bench::new();
    let [a, b] = bench.locals;
    bench.ask(bench.guest, 0, &Request::TransactionStart);
    bench.ask(b, 0, &Request::TransactionStart);
    bench.control(a, &[b"-f", b"/new"]);
    bench.control(a, &[b"-s", b"-t", b"3"]);
    bench.server.expire_update(77);
    assert_eq!(bench.server.due_update(), None);
    assert!(bench.got(a).is_empty(), "that was another session");
    bench.server.expire_update(1);
    assert_eq!(bench.server.due_update(), None);
    let refused = "Domains with long running transactions:\nDomain 5: 3 s\nDomain 0: 3 s\0";
    assert_eq!(bench.got(a)[0].payload, refused.as_bytes());

    bench.control(a, &[b"-f", b"/new"]);
    bench.control(a, &[b"-s", b"-t", b"3", b"-F"]);
    assert_eq!(bench.server.due_update(), None);
    bench.server.expire_update(2);
    assert!(bench.server.due_update().is_some());
    // Who asked for it goes.
    bench
        .server
        .fail(a, parapet_xen_sys::io::xs_wire::RingError::Comm);
    assert!(bench.server.due_update().is_none());
}
