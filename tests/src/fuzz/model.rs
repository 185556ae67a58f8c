//! A store so simple that it is right by reading: maps that are copied, lists that are searched.
//!
//! A transaction works on a copy of all nodes, and commits by doing its requests once more on the
//! live ones. A real store may instead say EAGAIN; it may only when somebody changed the live
//! nodes meanwhile ([`Transaction::disturbed`]).

use std::collections::{BTreeMap, BTreeSet};

use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::{Access, Permission};

/// An entry of a node's permissions, and which of the domains with that id is meant: the first,
/// the second, or (zero) none that there was. For another it counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) permission: Permission,
    life: u32,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) permissions: Vec<Entry>,
}

impl Node {
    pub(super) fn owner(&self) -> DomId {
        self.permissions[0].permission.domid
    }
}

/// Which of the domains with its id each one is that there is.
type Alive = BTreeMap<DomId, u32>;

/// By absolute path.
pub(super) type Nodes = BTreeMap<String, Node>;

/// What a client asks of nodes. Paths are absolute.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Read(String),
    List(String),
    GetPerms(String),
    Write(String, Vec<u8>),
    Mkdir(String),
    Remove(String),
    SetPerms(String, Vec<Entry>),
}

/// The payload that an [`Op`] is answered with.
pub(super) type Answer = Result<Vec<u8>, Errno>;

/// An event: to whom, of what path, by which token.
pub(super) type Event = (usize, String, String);

#[derive(Debug, Clone)]
struct Watch {
    client: usize,
    path: String,
    token: String,
    depth: Option<usize>,
    /// What the client sees of a path: its home is left out.
    home: Option<String>,
}

/// A transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) nodes: Nodes,
    pub(super) done: Vec<(Op, Answer)>,
    /// Whether the live nodes were changed since it began.
    pub(super) disturbed: bool,
}

/// The store, and what its clients have in it. The first client may do everything; client `n` is
/// domain `n`.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) nodes: Nodes,
    pub(super) transactions: BTreeMap<(usize, u32), Transaction>,
    watches: Vec<Watch>,
    alive: Alive,
    lives: u32,
}

fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path == "/" => None,
        0 => Some("/"),
        at => path.get(..at),
    }
}

/// How many levels `path` lies below `above`, if it does.
fn levels(path: &str, above: &str) -> Option<usize> {
    let rest = match above {
        "/" => path.strip_prefix('/')?,
        _ => path.strip_prefix(above)?,
    };
    match rest.is_empty() {
        true => Some(0),
        false if above == "/" || rest.starts_with('/') => {
            Some(rest.split('/').filter(|name| !name.is_empty()).count())
        }
        false => None,
    }
}

fn is_below(path: &str, above: &str) -> bool {
    levels(path, above).is_some_and(|levels| levels > 0)
}

fn counts(alive: &Alive, entry: &Entry) -> bool {
    let domid = entry.permission.domid;
    domid == DomId::ANY || alive.get(&domid) == Some(&entry.life)
}

/// Read, write, own.
fn rights(alive: &Alive, client: usize, permissions: &[Entry]) -> [bool; 3] {
    let [owner, others @ ..] = permissions else {
        return [false; 3];
    };
    let named = |entry: &&Entry| {
        let domid = entry.permission.domid;
        (usize::from(domid.0) == client || domid == DomId::ANY) && counts(alive, entry)
    };
    if client == 0 || named(&owner) {
        return [true; 3];
    }
    let entry = others.iter().find(named).unwrap_or(owner);
    let access = entry.permission.access;
    [
        matches!(access, Access::Read | Access::Both),
        matches!(access, Access::Write | Access::Both),
        false,
    ]
}

const READ: [bool; 3] = [true, false, false];
const WRITE: [bool; 3] = [false, true, false];
const OWN: [bool; 3] = [false, true, true];

/// The path itself, if there is such a node, or the nearest above it.
fn nearest<'a>(nodes: &Nodes, path: &'a str) -> &'a str {
    let mut at = path;
    while !nodes.contains_key(at) {
        at = parent(at).unwrap_or("/");
    }
    at
}

fn find(
    nodes: &Nodes,
    alive: &Alive,
    client: usize,
    path: &str,
    asked: [bool; 3],
) -> Result<(), Errno> {
    let nearest = nearest(nodes, path);
    let has = rights(alive, client, &nodes[nearest].permissions);
    let mut pairs = has.into_iter().zip(asked);
    if nearest == path {
        let all = pairs.all(|(has, asked)| has || !asked);
        return if all { Ok(()) } else { Err(Errno::EACCES) };
    }
    let some = pairs.any(|(has, asked)| has && asked);
    Err(if some { Errno::ENOENT } else { Errno::EACCES })
}

/// Whether there is such a node now; if not, it is made with those above it.
fn make(nodes: &mut Nodes, alive: &Alive, client: usize, path: &str) -> Result<bool, Errno> {
    match find(nodes, alive, client, path, WRITE) {
        Err(Errno::ENOENT) => {}
        found => return found.map(|()| true),
    }
    let above = nearest(nodes, path);
    let mut permissions = nodes[above].permissions.clone();
    let owner = match client {
        0 => permissions[0].permission.domid,
        _ => DomId(client as u16),
    };
    if permissions[0].permission.domid != owner || !counts(alive, &permissions[0]) {
        permissions[0].permission.domid = owner;
        permissions[0].life = alive.get(&owner).copied().unwrap_or(0);
        let mut first = true;
        permissions.retain(|entry| std::mem::take(&mut first) || counts(alive, entry));
    }
    let mut at = path;
    while at != above {
        let value = Vec::new();
        let permissions = permissions.clone();
        nodes.insert(at.to_owned(), Node { value, permissions });
        at = parent(at).unwrap_or("/");
    }
    Ok(false)
}

/// Does it. The second of the results is the path that changed, and whether all below it is gone.
fn apply(
    nodes: &mut Nodes,
    alive: &Alive,
    client: usize,
    op: &Op,
) -> (Answer, Option<(String, bool)>) {
    let nothing = |result: Result<(), Errno>| result.map(|()| b"OK\0".to_vec());
    match op {
        Op::Read(path) => {
            let found = find(nodes, alive, client, path, READ);
            (found.map(|()| nodes[path].value.clone()), None)
        }
        Op::List(path) => {
            let found = find(nodes, alive, client, path, READ);
            let children = nodes.keys().filter(|other| parent(other) == Some(path));
            let names = children.filter_map(|child| child.rsplit('/').next());
            let list = names.flat_map(|name| [name, "\0"]).collect::<String>();
            (found.map(|()| list.into_bytes()), None)
        }
        Op::GetPerms(path) => {
            let found = find(nodes, alive, client, path, READ);
            let text = |node: &Node| -> String {
                let entries = node.permissions.iter();
                entries
                    .map(|entry| format!("{}\0", entry.permission))
                    .collect()
            };
            (found.map(|()| text(&nodes[path]).into_bytes()), None)
        }
        Op::Write(path, value) => {
            let made = make(nodes, alive, client, path);
            if made.is_ok()
                && let Some(node) = nodes.get_mut(path)
            {
                node.value.clone_from(value);
            }
            let changed = made.is_ok().then(|| (path.clone(), false));
            (nothing(made.map(|_| ())), changed)
        }
        Op::Mkdir(path) => {
            let made = make(nodes, alive, client, path);
            let changed = (made == Ok(false)).then(|| (path.clone(), false));
            (nothing(made.map(|_| ())), changed)
        }
        Op::Remove(path) => {
            let result = match find(nodes, alive, client, path, WRITE) {
                Ok(()) if path == "/" => Err(Errno::EINVAL),
                Err(Errno::ENOENT) => {
                    let there = parent(path).is_some_and(|parent| nodes.contains_key(parent));
                    let result = if there { Ok(()) } else { Err(Errno::ENOENT) };
                    return (nothing(result), None);
                }
                found => found,
            };
            let changed = result.is_ok().then(|| (path.clone(), true));
            if changed.is_some() {
                nodes.retain(|other, _| other != path && !is_below(other, path));
            }
            (nothing(result), changed)
        }
        Op::SetPerms(path, entries) => {
            let result = match find(nodes, alive, client, path, OWN) {
                _ if !counts(alive, &entries[0]) => Err(Errno::ENOENT),
                Ok(()) if client != 0 && nodes[path].owner() != entries[0].permission.domid => {
                    Err(Errno::EPERM)
                }
                found => found,
            };
            let changed = result.is_ok().then(|| (path.clone(), false));
            if changed.is_some()
                && let Some(node) = nodes.get_mut(path)
            {
                node.permissions.clone_from(entries);
            }
            (nothing(result), changed)
        }
    }
}

impl Model {
    /// With what a fresh store has, and domain 0 alone.
    pub(super) fn new() -> Self {
        let entry = Entry {
            permission: Permission::none(DomId::ZERO),
            life: 1,
        };
        let empty = Node {
            value: Vec::new(),
            permissions: vec![entry],
        };
        let paths = ["/", "/tool", "/tool/xenstored"];
        Model {
            nodes: paths.map(|path| (path.into(), empty.clone())).into(),
            transactions: BTreeMap::new(),
            watches: Vec::new(),
            alive: [(DomId::ZERO, 1)].into(),
            lives: 1,
        }
    }

    /// A domain is there.
    pub(super) fn born(&mut self, domid: DomId) {
        self.lives += 1;
        self.alive.insert(domid, self.lives);
    }

    /// The entry that is meant by this now.
    pub(super) fn entry(&self, permission: Permission) -> Entry {
        let life = self.alive.get(&permission.domid).copied().unwrap_or(0);
        Entry { permission, life }
    }

    /// Does it outside of any transaction. The events are a set: their order, and that none comes
    /// twice, is for others to check.
    pub(super) fn apply(&mut self, client: usize, op: &Op) -> (Answer, BTreeSet<Event>) {
        let before = self.nodes.clone();
        let (answer, changed) = apply(&mut self.nodes, &self.alive, client, op);
        let mut events = BTreeSet::new();
        if let Some((path, removed)) = changed {
            self.disturb();
            events = self.events_of(&before, &path, removed);
        }
        (answer, events)
    }

    fn disturb(&mut self) {
        for transaction in self.transactions.values_mut() {
            transaction.disturbed = true;
        }
    }

    /// Whom a change of `path` is told.
    fn events_of(&self, before: &Nodes, path: &str, removed: bool) -> BTreeSet<Event> {
        let mut events = BTreeSet::new();
        for watch in &self.watches {
            let reached = levels(path, &watch.path)
                .is_some_and(|levels| watch.depth.is_none_or(|depth| levels <= depth));
            let inside = removed && is_below(&watch.path, path);
            let at = match (reached, inside) {
                (true, _) => path,
                (_, true) if before.contains_key(&watch.path) => &watch.path,
                _ => continue,
            };
            let may_read = |nodes: &Nodes, path: Option<&str>| {
                let node = path.and_then(|path| nodes.get(path));
                node.is_some_and(|node| rights(&self.alive, watch.client, &node.permissions)[0])
            };
            let parents = if inside { before } else { &self.nodes };
            if may_read(before, Some(at))
                || may_read(&self.nodes, Some(at))
                || may_read(parents, parent(at))
            {
                events.insert(watch.event(at));
            }
        }
        events
    }

    /// Does it in a transaction.
    pub(super) fn apply_in(&mut self, client: usize, id: u32, op: &Op) -> Option<Answer> {
        let transaction = self.transactions.get_mut(&(client, id))?;
        let (answer, _) = apply(&mut transaction.nodes, &self.alive, client, op);
        transaction.done.push((op.clone(), answer.clone()));
        Some(answer)
    }

    /// Begins one.
    pub(super) fn begin(&mut self, client: usize, id: u32) {
        let transaction = Transaction {
            nodes: self.nodes.clone(),
            done: Vec::new(),
            disturbed: false,
        };
        let another = self.transactions.insert((client, id), transaction);
        assert!(another.is_none(), "transaction {id} was given out twice");
    }

    /// Does all requests of a transaction that has committed, and asserts that each has the same
    /// answer now as then. The events that may be told of it, and those that must.
    pub(super) fn commit(
        &mut self,
        client: usize,
        transaction: &Transaction,
    ) -> [BTreeSet<Event>; 2] {
        let before = self.nodes.clone();
        let mut may = BTreeSet::new();
        let mut told = BTreeSet::new();
        // What was refused does not count: by it a guest could learn of what it may not see.
        let refused = |answer: &Answer| matches!(answer, Err(Errno::EACCES | Errno::EPERM));
        for (op, answer) in &transaction.done {
            if refused(answer) {
                continue;
            }
            let (again, changed) = apply(&mut self.nodes, &self.alive, client, op);
            assert_eq!(
                &again, answer,
                "committed, but {op:?} would now have another answer"
            );
            told.extend(changed);
        }
        self.disturb();
        let mut must = BTreeSet::new();
        for (path, removed) in told {
            let events = self.events_of(&before, &path, removed);
            if before.get(&path) != self.nodes.get(&path) {
                must.extend(
                    events
                        .iter()
                        .filter(|(_, at, _)| at.ends_with(&path))
                        .cloned(),
                );
            }
            may.extend(events);
        }
        [may, must]
    }

    /// Adds a watch; it is told of at once. None if the client has it already.
    pub(super) fn watch(
        &mut self,
        client: usize,
        path: &str,
        token: &str,
        depth: Option<usize>,
        home: Option<String>,
    ) -> Option<Event> {
        let same = |watch: &Watch| watch.is(client, path, token);
        if self.watches.iter().any(same) {
            return None;
        }
        let watch = Watch {
            client,
            path: path.into(),
            token: token.into(),
            depth,
            home,
        };
        let first = watch.event(path);
        self.watches.push(watch);
        Some(first)
    }

    /// Whether there was such a watch.
    pub(super) fn unwatch(&mut self, client: usize, path: &str, token: &str) -> bool {
        let before = self.watches.len();
        self.watches.retain(|watch| !watch.is(client, path, token));
        self.watches.len() < before
    }

    /// How many watches a client has.
    pub(super) fn watches(&self, client: usize) -> usize {
        self.watches
            .iter()
            .filter(|watch| watch.client == client)
            .count()
    }

    /// A client asks to be forgotten.
    pub(super) fn reset(&mut self, client: usize) {
        self.watches.retain(|watch| watch.client != client);
        self.transactions.retain(|(owner, _), _| *owner != client);
    }

    /// A domain is gone, with its nodes and all that names it.
    pub(super) fn gone(&mut self, domid: DomId) {
        self.reset(domid.0.into());
        self.alive.remove(&domid);
        let owned = |(path, node): &(&String, &Node)| *path != "/" && node.owner() == domid;
        let owned = self.nodes.iter().filter(owned);
        let owned: Vec<String> = owned.map(|(path, _)| path.clone()).collect();
        let below = |path: &str| {
            let mut owned = owned.iter();
            owned.any(|owned| path == owned || is_below(path, owned))
        };
        self.nodes.retain(|path, _| !below(path));
        let domain_0 = self.entry(Permission::none(DomId::ZERO));
        for node in self.nodes.values_mut() {
            if node.owner() == domid {
                node.permissions[0].permission.domid = DomId::ZERO;
                node.permissions[0].life = domain_0.life;
            }
            node.permissions
                .retain(|entry| entry.permission.domid != domid);
        }
        self.disturb();
    }
}

impl Watch {
    fn is(&self, client: usize, path: &str, token: &str) -> bool {
        (self.client, &*self.path, &*self.token) == (client, path, token)
    }

    fn event(&self, path: &str) -> Event {
        let home = self.home.as_deref().unwrap_or("");
        let path = path.strip_prefix(home).unwrap_or(path);
        (self.client, path.into(), self.token.clone())
    }
}
