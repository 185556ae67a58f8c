//! The store against a naive model: a map from path to value, in which a transaction is the list
//! of its operations, done all at once when it commits.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CLIENT: ClientId = ClientId(1);

#[derive(Debug, Clone)]
enum Op {
    Read(String),
    List(String),
    Write(String, u8),
    Mkdir(String),
    Remove(String),
}

/// What an operation makes known: a value, names (sorted: the order is of no concern here), or
/// nothing.
type Answer = Result<Vec<Vec<u8>>, Errno>;

struct Model(BTreeMap<String, Vec<u8>>);

impl Model {
    fn new() -> Self {
        let nodes = ["/", "/tool", "/tool/xenstored"];
        Model(nodes.map(|path| (path.to_string(), Vec::new())).into())
    }

    fn is_below(path: &str, above: &str) -> bool {
        path != above && (above == "/" || path.starts_with(&format!("{above}/")))
    }

    fn parent(path: &str) -> &str {
        match path.rfind('/') {
            Some(0) | None => "/",
            Some(at) => &path[..at],
        }
    }

    fn make(&mut self, path: &str) {
        let mut path = path;
        while !self.0.contains_key(path) {
            self.0.insert(path.to_string(), Vec::new());
            path = Model::parent(path);
        }
    }

    fn apply(&mut self, op: &Op) -> Answer {
        match op {
            Op::Read(path) => self
                .0
                .get(path)
                .map(|value| vec![value.clone()])
                .ok_or(Errno::ENOENT),
            Op::List(path) if !self.0.contains_key(path) => Err(Errno::ENOENT),
            Op::List(path) => {
                let child =
                    |other: &&String| Model::is_below(other, path) && Model::parent(other) == path;
                let name = |other: &String| other.rsplit('/').next().unwrap().as_bytes().to_vec();
                Ok(self.0.keys().filter(child).map(name).collect())
            }
            Op::Write(path, value) => {
                self.make(path);
                self.0.insert(path.clone(), vec![*value]);
                Ok(vec![])
            }
            Op::Mkdir(path) => {
                self.make(path);
                Ok(vec![])
            }
            Op::Remove(path) if path == "/" => Err(Errno::EINVAL),
            Op::Remove(path) if !self.0.contains_key(Model::parent(path)) => Err(Errno::ENOENT),
            Op::Remove(path) => {
                self.0
                    .retain(|other, _| other != path && !Model::is_below(other, path));
                Ok(vec![])
            }
        }
    }
}

fn apply(store: &mut Store, tx: TransactionId, op: &Op) -> Answer {
    let path = |text: &String| Path::new(text).unwrap();
    let none = |()| vec![];
    match op {
        Op::Read(at) => {
            let node = store.read(CLIENT, tx, &path(at))?;
            Ok(vec![node.value().to_vec()])
        }
        Op::List(at) => {
            let node = store.list(CLIENT, tx, &path(at))?;
            let mut names: Vec<_> = node.names().map(|name| name.as_bytes().to_vec()).collect();
            assert_eq!(
                names.iter().map(|name| name.len() + 1).sum::<usize>(),
                node.list_len()
            );
            names.sort();
            Ok(names)
        }
        Op::Write(at, value) => store.write(CLIENT, tx, &path(at), &[*value]).map(none),
        Op::Mkdir(at) => store.mkdir(CLIENT, tx, &path(at)).map(none),
        Op::Remove(at) => store.remove(CLIENT, tx, &path(at)).map(none),
    }
}

fn paths() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/".to_string()),
        "(/[ab]){1,3}",
        Just("/tool".to_string())
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        paths().prop_map(Op::Read),
        paths().prop_map(Op::List),
        (paths(), any::<u8>()).prop_map(|(path, value)| Op::Write(path, value)),
        paths().prop_map(Op::Mkdir),
        paths().prop_map(Op::Remove),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Begin(usize),
    Do(usize, Op),
    End(usize, bool),
}

/// The first of the places for transactions is for none.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (1usize..4).prop_map(Step::Begin),
        6 => (0usize..4, ops()).prop_map(|(place, op)| Step::Do(place, op)),
        1 => (1usize..4, any::<bool>()).prop_map(|(place, commit)| Step::End(place, commit)),
    ];
    proptest::collection::vec(step, 0..60)
}

struct Running {
    id: TransactionId,
    done: Vec<(Op, Answer)>,
    /// Whether anybody changed the live tree since it began.
    disturbed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// A transaction that commits saw exactly what it would have seen had it run alone at the
    /// moment of its commit; and one that nothing interfered with commits.
    #[test]
    fn committed_transactions_are_as_if_done_at_once(steps in steps()) {
        let mut store = Store::default();
        store.attach(CLIENT, Caller::PRIVILEGED);
        store.watch(CLIENT, b"/", b"", None).unwrap();
        let mut model = Model::new();
        let mut running: [Option<Running>; 4] = [const { None }; 4];
        for step in steps {
            match step {
                Step::Begin(place) => running[place] = Some(Running {
                    id: store.begin(CLIENT).unwrap(),
                    done: vec![],
                    disturbed: false,
                }),
                Step::Do(place, op) => match &mut running[place] {
                    None => {
                        let answer = apply(&mut store, TransactionId::NONE, &op);
                        prop_assert_eq!(answer, model.apply(&op), "{:?}", op);
                        running.iter_mut().flatten().for_each(|other| other.disturbed = true);
                    }
                    Some(transaction) => {
                        let answer = apply(&mut store, transaction.id, &op);
                        transaction.done.push((op, answer));
                    }
                },
                Step::End(place, commit) => {
                    let Some(transaction) = running[place].take() else { continue };
                    store.take_events();
                    match store.end(CLIENT, transaction.id, commit) {
                        Ok(()) if commit => {
                            for (op, answer) in &transaction.done {
                                prop_assert_eq!(answer, &model.apply(op), "{:?}", op);
                            }
                            running.iter_mut().flatten().for_each(|other| other.disturbed = true);
                        }
                        Ok(()) => {}
                        Err(error) => {
                            prop_assert_eq!(error, Errno::EAGAIN);
                            prop_assert!(commit && transaction.disturbed);
                        }
                    }
                    let told = store.take_events();
                    let once: BTreeSet<_> = told.iter().map(|event| event.path().to_string()).collect();
                    prop_assert_eq!(once.len(), told.len());
                }
            }
            let mut seen = BTreeMap::new();
            store.tree.walk(|path, node| {
                if path.starts_with('/') {
                    seen.insert(path.to_string(), node.value().to_vec());
                }
                true
            });
            prop_assert!(seen == model.0);
            // What domain 0 owns of a fresh store.
            prop_assert_eq!(store.used(DomId::ZERO)[Quota::Nodes], seen.len() + 2);
        }
    }
}
