//! The xenstore: its codec, its ring, its server, and the whole of it against a naive model.

use std::collections::BTreeSet;

use parapet_hypervisor::memory::{PAGE_SIZE, Scratch};
use parapet_ring::Own;
use parapet_ring::bytes::{End, XenstoreRing};
use parapet_xen_sys::io::xs_wire::{Operation, PAYLOAD_MAX, RING_SIZE, ServerFeatures};
use parapet_xen_sys::{DomId, Errno, Port};
use parapet_xenstore::server::{Life, Server, World};
use parapet_xenstore::store::{ClientId, Quota, Store, Usage};
use parapet_xenstore::wire::{self, Decoder, Message, Request};
use parapet_xenstore::{Permission, TransactionId};

use super::model::{Answer, Event, Model, Op};

/// A host with four domains, whose pages need no mapping.
struct FourDomains;

impl World for FourDomains {
    fn life(&self, domid: DomId) -> Life {
        match domid.0 {
            0..4 => Life::Running,
            _ => Life::Gone,
        }
    }

    fn connect(
        &mut self,
        _: ClientId,
        domid: DomId,
        _: Port,
        _: ServerFeatures,
    ) -> Result<(), Errno> {
        if domid.0 < 4 {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn restart(&mut self, _: ClientId) {}

    fn disconnect(&mut self, _: ClientId) {}
}

/// A stream of bytes: however it is cut, the same messages come out, none is longer than allowed,
/// and what was understood of one says the same when it is sent again.
pub fn xenstore_wire(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else {
        return;
    };
    let messages = |chunk: usize| {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for bytes in stream.chunks(chunk.max(1)) {
            decoder.push(bytes);
            loop {
                match decoder.message() {
                    Ok(Some(message)) => found.push(message),
                    Ok(None) => break,
                    Err(_) => return (found, true),
                }
            }
        }
        (found, false)
    };
    let (found, broken) = messages(stream.len());
    assert_eq!(
        (&found, broken),
        (&messages(usize::from(cut)).0, messages(usize::from(cut)).1)
    );
    for message in &found {
        assert!(message.payload.len() <= PAYLOAD_MAX);
        let Ok(operation) = Operation::try_from(message.operation) else {
            continue;
        };
        let Ok(request) = Request::parse(operation, &message.payload) else {
            continue;
        };
        let mut again = Vec::new();
        if request
            .encode(message.req_id, message.tx_id, &mut again)
            .is_err()
        {
            // Numbers may be longer when spelled out.
            continue;
        }
        let mut decoder = Decoder::default();
        decoder.push(&again);
        let again = decoder.message().expect("we wrote it").expect("whole");
        assert_eq!(Request::parse(operation, &again.payload), Ok(request));
        assert_eq!((again.req_id, again.tx_id), (message.req_id, message.tx_id));
    }
}

/// xenstored's end of a ring page into which somebody writes anywhere: it takes in no more than
/// there can be, and puts no byte outside of its own half.
pub fn xenstore_ring(data: &[u8]) {
    let page = Scratch::new(PAGE_SIZE);
    let Ok(mut host) = XenstoreRing::attach(Own(page.clone()), End::Host) else {
        panic!("a page is a ring");
    };
    let mut server = Server::new(Store::default());
    let introduced = server.introduce(DomId(1), Port(1), &mut FourDomains);
    let client = introduced.expect("a fresh domain is taken in");
    for step in data.chunks_exact(3) {
        let &[what, low, byte] = step else { continue };
        let at = usize::from(what & 15) << 8 | usize::from(low);
        page.view()
            .write(at, &byte)
            .expect("4096 places are a page");
        if what & 0x10 == 0 {
            continue;
        }
        let mut bytes = [0; 2 * RING_SIZE];
        let Ok(got) = host.read(&mut bytes) else {
            return;
        };
        assert!(got <= RING_SIZE, "more than a ring holds");
        server.input(client, &bytes[..got]);
        while server.serve(client, &mut FourDomains) {}
        let requests: [u8; RING_SIZE] = page.view().read(0).expect("the first half");
        let Ok(sent) = host.write(server.output(client)) else {
            return;
        };
        assert!(sent <= RING_SIZE, "more than a ring has room for");
        assert_eq!(page.view().read::<[u8; RING_SIZE]>(0), Ok(requests));
        server.sent(client, sent);
        if server.fault(client).is_some() {
            return;
        }
    }
}

/// xenstored, with a local client and two guests that send what they like. Whatever that is, what
/// each of them gets is well-formed messages.
pub fn xenstored(data: &[u8]) {
    let mut server = Server::new(Store::default());
    let mut clients = vec![server.connect_local()];
    for domid in [1, 2] {
        let introduced = server.introduce(DomId(domid), Port(domid.into()), &mut FourDomains);
        clients.push(introduced.expect("a fresh domain is taken in"));
    }
    let mut decoders: Vec<Decoder> = clients.iter().map(|_| Decoder::default()).collect();
    let mut rest = data;
    while let [who, len, tail @ ..] = rest {
        let client = clients[usize::from(*who) % clients.len()];
        let (bytes, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = tail;
        if !server.is_connected(client) || server.fault(client).is_some() {
            continue;
        }
        server.input(client, bytes);
        while server.serve(client, &mut FourDomains) {}
        for (client, decoder) in clients.iter().zip(&mut decoders) {
            let output = server.output(*client).to_vec();
            decoder.push(&output);
            server.sent(*client, output.len());
            while decoder
                .message()
                .expect("an answer fits a message")
                .is_some()
            {}
        }
        server.take_stirred();
    }
}

/// Where the nodes are that the sequences are about. Guests use the last ones relative to home.
const PATHS: [&str; 16] = [
    "/",
    "/tool",
    "/local/domain/1",
    "/local/domain/1/a",
    "/local/domain/1/a/b",
    "/local/domain/2",
    "/local/domain/2/a",
    "/local/domain/2/a/b",
    "/shared",
    "/shared/a",
    "/shared/a/b",
    "/shared/ab",
    "a",
    "a/b",
    "a/b/c",
    "c",
];

/// Permissions that are set.
const PERMISSIONS: [&[&str]; 8] = [
    &["n0"],
    &["b0"],
    &["r0", "b1"],
    &["n1"],
    &["n1", "r2"],
    &["w2", "n1"],
    &["n2", "b32757"],
    &["n0", "n1", "r32757"],
];

/// The store and its model, side by side.
struct Pair {
    server: Server,
    model: Model,
    /// Client `n` is domain `n`; the first is local.
    clients: [ClientId; 3],
    decoders: [Decoder; 3],
}

impl Pair {
    fn new() -> Self {
        let mut server = Server::new(Store::default());
        let local = server.connect_local();
        let mut pair = Pair {
            server,
            model: Model::new(),
            clients: [local; 3],
            decoders: Default::default(),
        };
        for domid in [1, 2] {
            pair.introduce(domid);
        }
        pair
    }

    /// A domain, with its home.
    fn introduce(&mut self, domid: u16) {
        let introduced = self
            .server
            .introduce(DomId(domid), Port(1), &mut FourDomains);
        self.clients[usize::from(domid)] = introduced.expect("it is taken in");
        self.decoders[usize::from(domid)] = Decoder::default();
        self.model.born(DomId(domid));
        let home = format!("/local/domain/{domid}");
        let entries = vec![self.model.entry(Permission::none(DomId(domid)))];
        for op in [Op::Mkdir(home.clone()), Op::SetPerms(home, entries)] {
            self.nodes(0, 0, &op);
        }
    }

    /// Has a client ask. Its answer, and what everybody was told.
    fn ask(&mut self, client: usize, tx: u32, request: &Request<'_>) -> (Answer, Vec<Event>) {
        let mut bytes = Vec::new();
        request.encode(7, tx, &mut bytes).expect("it is short");
        self.server.input(self.clients[client], &bytes);
        while self.server.serve(self.clients[client], &mut FourDomains) {}
        let mut answers = Vec::new();
        let mut events = Vec::new();
        for who in 0..self.clients.len() {
            for message in self.messages(who) {
                if message.operation == u32::from(Operation::WatchEvent) {
                    let mut strings = wire::strings(&message.payload);
                    let mut text =
                        || String::from_utf8_lossy(strings.next().unwrap_or(b"?")).into_owned();
                    events.push((who, text(), text()));
                } else {
                    assert_eq!(
                        (who, message.req_id),
                        (client, 7),
                        "an answer goes to who asked"
                    );
                    answers.push(message);
                }
            }
        }
        let [answer] = <[Message; 1]>::try_from(answers).expect("one answer for one request");
        let answer = match answer.operation == u32::from(Operation::Error) {
            true => Err(wire::error_of_name(&answer.payload)),
            false => Ok(answer.payload),
        };
        (answer, events)
    }

    fn messages(&mut self, who: usize) -> Vec<Message> {
        let output = self.server.output(self.clients[who]).to_vec();
        self.server.sent(self.clients[who], output.len());
        self.decoders[who].push(&output);
        let mut next = || self.decoders[who].message().expect("well-formed");
        std::iter::from_fn(&mut next).collect()
    }

    /// A request about nodes, in both.
    fn nodes(&mut self, client: usize, tx: u32, op: &Op) {
        let (mut answer, events) = match op {
            Op::Read(path) => self.ask(client, tx, &Request::Read(path.as_bytes())),
            Op::List(path) => self.ask(client, tx, &Request::Directory(path.as_bytes())),
            Op::GetPerms(path) => self.ask(client, tx, &Request::GetPerms(path.as_bytes())),
            Op::Mkdir(path) => self.ask(client, tx, &Request::Mkdir(path.as_bytes())),
            Op::Remove(path) => self.ask(client, tx, &Request::Rm(path.as_bytes())),
            Op::Write(path, value) => {
                let path = path.as_bytes();
                self.ask(client, tx, &Request::Write { path, value })
            }
            Op::SetPerms(path, permissions) => {
                let permissions = permissions.iter().map(|entry| entry.permission).collect();
                let path = path.as_bytes();
                self.ask(client, tx, &Request::SetPerms { path, permissions })
            }
        };
        if let (Op::List(_), Ok(list)) = (op, &mut answer) {
            *list = sorted(list);
        }
        if tx == 0 {
            let (expected, told) = self.model.apply(client, op);
            assert_eq!(answer, expected, "{client} {op:?}");
            let count = events.len();
            let events: BTreeSet<Event> = events.into_iter().collect();
            assert_eq!(count, events.len(), "told twice: {events:?}");
            assert_eq!(events, told, "{client} {op:?}");
            return;
        }
        assert_eq!(events, [], "a transaction tells nobody before its end");
        let expected = self.model.apply_in(client, tx, op);
        assert_eq!(
            answer,
            expected.unwrap_or(Err(Errno::ENOENT)),
            "{client} {op:?} in {tx}"
        );
    }

    fn begin(&mut self, client: usize) {
        let open = self.model.transactions.keys();
        let open = open.filter(|(owner, _)| *owner == client).count();
        let (answer, _) = self.ask(client, 0, &Request::TransactionStart);
        if client != 0 && open == 10 {
            assert_eq!(answer, Err(Errno::ENOSPC));
            return;
        }
        let text = String::from_utf8(answer.expect("within the quota")).expect("a number");
        let id = text.trim_end_matches('\0').parse().expect("a number");
        self.model.begin(client, id);
    }

    fn end(&mut self, client: usize, tx: u32, commit: bool) {
        let (answer, events) = self.ask(client, tx, &Request::TransactionEnd { commit });
        let Some(transaction) = self.model.transactions.remove(&(client, tx)) else {
            assert_eq!(answer, Err(Errno::ENOENT));
            return;
        };
        let count = events.len();
        let events: BTreeSet<Event> = events.into_iter().collect();
        assert_eq!(count, events.len(), "told twice: {events:?}");
        match answer {
            Ok(_) if commit => {
                let [may, must] = self.model.commit(client, &transaction);
                assert!(events.is_subset(&may), "{events:?} of {may:?}");
                assert!(events.is_superset(&must), "{events:?} without {must:?}");
            }
            Ok(_) => assert_eq!(events, BTreeSet::new()),
            Err(error) => {
                assert_eq!((error, events), (Errno::EAGAIN, BTreeSet::new()));
                assert!(commit && transaction.disturbed, "nothing was in its way");
            }
        }
    }

    fn watch(&mut self, client: usize, path: &str, token: &str, depth: Option<usize>) {
        let full = Self::full(client, path);
        let home = (full != path).then(|| format!("/local/domain/{client}/"));
        let many = client != 0 && self.model.watches(client) == 128;
        let request = Request::Watch {
            path: path.as_bytes(),
            token: token.as_bytes(),
            depth: depth.and_then(|depth| u32::try_from(depth).ok()),
        };
        let (answer, events) = self.ask(client, 0, &request);
        if many {
            assert!(answer.is_err() && events.is_empty());
            return;
        }
        match self.model.watch(client, &full, token, depth, home) {
            Some(first) => assert_eq!((answer, events), (Ok(wire::OK.to_vec()), vec![first])),
            None => assert_eq!((answer, events), (Err(Errno::EEXIST), vec![])),
        }
    }

    fn unwatch(&mut self, client: usize, path: &str, token: &str) {
        let request = Request::Unwatch {
            path: path.as_bytes(),
            token: token.as_bytes(),
        };
        let (answer, _) = self.ask(client, 0, &request);
        let there = self.model.unwatch(client, &Self::full(client, path), token);
        let expected = if there {
            Ok(wire::OK.to_vec())
        } else {
            Err(Errno::ENOENT)
        };
        assert_eq!(answer, expected);
    }

    /// A domain goes, and another comes that gets its id.
    fn replace(&mut self, domid: u16) {
        self.server.release(DomId(domid), &mut FourDomains);
        self.model.gone(DomId(domid));
        for who in (0..self.clients.len()).filter(|who| *who != usize::from(domid)) {
            drop(self.messages(who));
        }
        self.look();
        assert_eq!(self.server.store().used(DomId(domid)), Usage::default());
        self.introduce(domid);
    }

    fn full(client: usize, path: &str) -> String {
        match path.starts_with('/') {
            true => path.into(),
            false => format!("/local/domain/{client}/{path}"),
        }
    }

    /// Every node is in both, and the same.
    fn look(&mut self) {
        let nodes = self.model.nodes.clone();
        for path in nodes.keys() {
            for op in [
                Op::Read(path.clone()),
                Op::List(path.clone()),
                Op::GetPerms(path.clone()),
            ] {
                self.nodes(0, TransactionId::NONE.0, &op);
            }
        }
        for client in [1, 2] {
            let domid = DomId(client);
            let owned = |node: &&super::model::Node| node.owner() == domid;
            let owned = nodes.values().filter(owned).count();
            assert_eq!(
                self.server.store().used(domid)[Quota::Nodes],
                owned,
                "of {domid}"
            );
        }
    }
}

/// The names of a list, in their order.
fn sorted(list: &[u8]) -> Vec<u8> {
    let names: BTreeSet<&[u8]> = wire::strings(list).collect();
    names
        .into_iter()
        .flat_map(|name| [name, &b"\0"[..]].concat())
        .collect()
}

/// A sequence of requests by three clients, with domains that come and go: the server and the
/// model give the same answers and tell the same events, and keep the same nodes.
pub fn xenstore_model(data: &[u8]) {
    let mut pair = Pair::new();
    for step in data.chunks_exact(4) {
        let &[who, what, at, with] = step else {
            continue;
        };
        let client = usize::from(who % 3);
        let mut path = PATHS[usize::from(at % 16)];
        if client == 0 {
            // The local client's home is domain 0's, which is nothing that others see.
            path = PATHS[usize::from(at % 12)];
        }
        let full = Pair::full(client, path);
        // One of the client's transactions, or none, or one that it does not have.
        let open: Vec<u32> = {
            let keys = pair.model.transactions.keys();
            keys.filter(|(owner, _)| *owner == client)
                .map(|(_, id)| *id)
                .collect()
        };
        let tx = match usize::from(who >> 2) % (open.len() + 2) {
            0 => 0,
            1 if who & 0x80 != 0 => u32::MAX,
            1 => 0,
            place => open[place - 2],
        };
        let entries = PERMISSIONS[usize::from(with % 8)].iter();
        let entries = entries
            .map(|text| pair.model.entry(text.parse().expect("ours")))
            .collect();
        let token = ["t", "u"][usize::from(with & 1)];
        match what % 20 {
            0..3 => pair.nodes(client, tx, &Op::Write(full, vec![with])),
            3..5 => pair.nodes(client, tx, &Op::Read(full)),
            5 => pair.nodes(client, tx, &Op::List(full)),
            6 => pair.nodes(client, tx, &Op::GetPerms(full)),
            7 => pair.nodes(client, tx, &Op::Mkdir(full)),
            8 => pair.nodes(client, tx, &Op::Remove(full)),
            9 => pair.nodes(client, tx, &Op::SetPerms(full, entries)),
            10..12 => pair.watch(
                client,
                path,
                token,
                (with & 2 != 0).then_some(usize::from(with >> 6)),
            ),
            12 => pair.unwatch(client, path, token),
            13..15 => pair.begin(client),
            15..18 => pair.end(client, tx, with & 3 != 0),
            18 if with == 0 => {
                pair.ask(client, 0, &Request::ResetWatches)
                    .0
                    .expect("it has no errors");
                pair.model.reset(client);
            }
            19 if with < 32 => pair.replace(1 + u16::from(with & 1)),
            _ => pair.look(),
        }
    }
    pair.look();
}
