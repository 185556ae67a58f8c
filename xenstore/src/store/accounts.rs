//! The accounts against a count of everything, and the ends of domains and of large trees.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;

use proptest::prelude::*;

use super::remains::SLICE;
use super::*;

const DOM0: ClientId = ClientId(0);
const LIVE: TransactionId = TransactionId::NONE;

/// Domain 0 and guests 1 to 3, by the same numbers, who may all write everywhere.
fn open_store() -> Store {
    let mut store = Store::default();
    for number in 0..=3 {
        store.know(DomId(number));
        store.attach(ClientId(number.into()), Caller::domain(DomId(number)));
    }
    let all = permissions("n0 b1 b2 b3");
    store
        .set_permissions(DOM0, LIVE, &Path::root(), &all)
        .unwrap();
    store
}

fn permissions(text: &str) -> Vec<Permission> {
    text.split(' ')
        .map(|entry| entry.parse().unwrap())
        .collect()
}

/// Who asks, in a transaction of its own or not, for what, where, and with what.
type Step = (u64, bool, u8, String, String);

fn step() -> impl Strategy<Value = Step> {
    let path = "(/[ab]){1,3}";
    let entries = "n[0-3]( [rb][0-3]){0,2}";
    (0u64..4, any::<bool>(), 0u8..11, path, entries)
}

/// Does it, whatever comes of it.
fn perform(store: &mut Store, (client, inside, what, path, with): &Step) {
    let client = ClientId(*client);
    let open = store.clients[&client].transactions.keys().next().copied();
    let tx = open.filter(|_| *inside).unwrap_or(LIVE);
    let path = Path::new(path).unwrap();
    let _ = match what {
        0 | 1 => store.write(client, tx, &path, with.as_bytes()),
        2 => store.mkdir(client, tx, &path),
        3 => store.remove(client, tx, &path),
        4 | 5 => store.set_permissions(client, tx, &path, &permissions(with)),
        6 => store.begin(client).map(drop),
        7 => store.end(client, tx, with.len() > 2),
        8 => store
            .watch(client, path.as_str().as_bytes(), with.as_bytes(), None)
            .map(drop),
        9 => store.unwatch(client, path.as_str().as_bytes(), with.as_bytes()),
        _ => store.read(client, tx, &path).map(drop),
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_a_domain_uses_is_what_a_count_of_everything_finds(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut store = open_store();
        for step in &steps {
            perform(&mut store, step);
        }
        for domid in (0..=3).map(DomId) {
            prop_assert_eq!(store.used(domid), store.recount(domid), "{}", domid);
        }
        for number in 1..=3 {
            store.detach(ClientId(number));
            store.forget(DomId(number as u16));
            let mut named = vec![];
            store.tree.walk(|path, node| {
                if node.permissions().name(DomId(number as u16)) {
                    named.push(path.to_string());
                }
                true
            });
            prop_assert!(named.is_empty(), "{} is still named at {:?}", number, named);
        }
        store.detach(DOM0);
        prop_assert_eq!(store.used(DomId::ZERO), store.recount(DomId::ZERO));
    }
}

/// 100 directories of 1000 nodes, which domain 1 owns; and one more with all of 1000.
fn make_many(store: &mut Store) -> usize {
    let at = |path: &str| Path::new(path).unwrap();
    store.mkdir(DOM0, LIVE, &at("/big")).unwrap();
    store
        .set_permissions(DOM0, LIVE, &at("/big"), &permissions("n1"))
        .unwrap();
    for n in 0..100_000 {
        let path = if n < 50_000 {
            format!("/big/{}/{n}", n % 50)
        } else {
            format!("/big/flat/{n}")
        };
        store.mkdir(DOM0, LIVE, &at(&path)).unwrap();
    }
    store.used(DomId(1))[Quota::Nodes]
}

/// Goes on with what is left to do, and lets a guest be served between. How many steps that took;
/// none did more than one step may.
fn tidy_while_others_are_served(store: &mut Store) -> usize {
    let (guest, path) = (ClientId(2), Path::new("/other").unwrap());
    for steps in 1.. {
        let before = store.used(DomId(1))[Quota::Nodes];
        let more = store.tidy();
        assert!(before - store.used(DomId(1))[Quota::Nodes] <= SLICE);
        store.write(guest, LIVE, &path, b"served").unwrap();
        if !more {
            return steps;
        }
    }
    unreachable!("it ends")
}

#[test]
fn a_subtree_of_100_000_nodes_is_taken_apart_in_slices_while_others_are_served() {
    let mut store = open_store();
    let nodes = make_many(&mut store);
    assert_eq!(nodes, 100_052);
    let big = Path::new("/big").unwrap();
    store.remove(DOM0, LIVE, &big).unwrap();
    let left = store.used(DomId(1))[Quota::Nodes];
    assert!(nodes - left <= SLICE && left > 0, "{left}");
    assert!(store.read(DOM0, LIVE, &big).is_err(), "it is gone at once");
    let steps = tidy_while_others_are_served(&mut store);
    assert!(steps > nodes / SLICE / 2, "{steps}");
    assert_eq!(store.used(DomId(1)), Usage::default());
}

#[test]
fn what_a_transaction_held_of_a_large_subtree_is_let_go_in_slices_too() {
    let mut store = open_store();
    make_many(&mut store);
    let big = Path::new("/big").unwrap();
    let held = store.begin(DOM0).unwrap();
    let removing = store.begin(DOM0).unwrap();
    store.remove(DOM0, removing, &big).unwrap();
    store.end(DOM0, removing, true).unwrap();
    tidy_while_others_are_served(&mut store);
    assert_eq!(store.used(DomId(1)), Usage::default());
    store.read(DOM0, held, &big).unwrap();
    store.end(DOM0, held, false).unwrap();
    let steps = tidy_while_others_are_served(&mut store);
    assert!(steps > 100_000 / SLICE / 2, "{steps}");
}

#[test]
fn what_dies_with_a_large_subtree_is_not_charged_to_the_next_domain_of_the_id() {
    let mut store = open_store();
    make_many(&mut store);
    store.forget(DomId(1));
    store.know(DomId(1));
    store.attach(ClientId(1), Caller::domain(DomId(1)));
    store.watch(ClientId(1), b"/x", b"t", None).unwrap();
    tidy_while_others_are_served(&mut store);
    assert_eq!(store.used(DomId(1)), store.recount(DomId(1)));
}

#[test]
fn names_that_come_and_go_are_not_noted_for_ever() {
    let mut store = open_store();
    let open = Path::new("/open").unwrap();
    store.mkdir(DOM0, LIVE, &open).unwrap();
    let (domid, access) = (DomId::ANY, crate::Access::Both);
    let anybody = [Permission::none(DomId::ZERO), Permission { domid, access }];
    store.set_permissions(DOM0, LIVE, &open, &anybody).unwrap();
    for n in 0..5000 {
        let path = open.join(&n.to_string()).unwrap();
        store.write(ClientId(1), LIVE, &path, b"").unwrap();
        store.remove(ClientId(1), LIVE, &path).unwrap();
    }
    assert!(store.named.len() < 300, "{}", store.named.len());
}

#[test]
fn no_node_outlives_its_owner_however_many_there_are() {
    let mut store = open_store();
    for n in 0..400 {
        let path = Path::new(&format!("/{n}")).unwrap();
        store.write(ClientId(1), LIVE, &path, b"").unwrap();
    }
    store.detach(ClientId(1));
    store.forget(DomId(1));
    let names = store.list(DOM0, LIVE, &Path::root()).unwrap();
    assert_eq!(names.names().collect::<Vec<_>>(), ["tool"]);
}

#[test]
fn to_name_many_domains_costs_no_more_than_what_is_there() {
    let mut store = open_store();
    let guest = ClientId(1);
    for n in 0..5000 {
        let path = Path::new(&format!("/{n}")).unwrap();
        let others = (0..4).map(|k| Permission::read(DomId(100 + 4 * n + k)));
        let entries: Vec<_> = [Permission::none(DomId(1))]
            .into_iter()
            .chain(others)
            .collect();
        store.write(guest, LIVE, &path, b"").unwrap();
        store.set_permissions(guest, LIVE, &path, &entries).unwrap();
        store.remove(guest, LIVE, &path).unwrap();
    }
    assert!(store.named.len() < 600, "{}", store.named.len());
}

#[test]
fn a_guest_that_would_reach_its_quota_on_memory_is_refused() {
    let mut store = open_store();
    let guest = ClientId(1);
    let quotas = store.quotas_mut(Some(DomId(1))).unwrap();
    quotas[Limit::hard(Quota::Memory)] = 200;
    let at = |name: &str| Path::new(name).unwrap();
    let full = Err(Errno::ENOMEM);
    // 2 bytes of path, 16 of header, 8 for each of four entries.
    store.write(guest, LIVE, &at("/a"), &[b'x'; 100]).unwrap();
    assert_eq!(store.used(DomId(1))[Quota::Memory], 150);
    assert_eq!(store.write(guest, LIVE, &at("/a"), &[b'x'; 150]), full);
    assert_eq!(store.write(guest, LIVE, &at("/b"), b""), full);
    assert_eq!(store.watch(guest, b"/a", &[b't'; 48], None).map(drop), full);
    store.watch(guest, b"/a", &[b't'; 47], None).unwrap();
    store.write(DOM0, LIVE, &at("/a"), &[b'x'; 150]).unwrap();
    store.write(guest, LIVE, &at("/a"), b"").unwrap();
    store.unwatch(guest, b"/a", &[b't'; 47]).unwrap();

    let tx = store.begin(guest).unwrap();
    assert_eq!(store.write(guest, tx, &at("/c"), &[b'x'; 150]), full);
    assert_eq!(store.end(guest, tx, true), full);
    assert_eq!(store.used(DomId(1)), store.recount(DomId(1)));
}
