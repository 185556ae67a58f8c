//! The store's behaviour, and its agreement with a naive model.

use alloc::string::{String, ToString};
use alloc::vec;

use super::*;

const DOM0: ClientId = ClientId(0);
const GUEST: ClientId = ClientId(7);
const OTHER: ClientId = ClientId(8);
const LIVE: TransactionId = TransactionId::NONE;

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

/// Domain 0, and guests 7 and 8, whose homes they may write to.
fn store() -> Store {
    let mut store = Store::default();
    store.attach(DOM0, Caller::PRIVILEGED);
    for guest in [GUEST, OTHER] {
        let domid = DomId(guest.0 as u16);
        store.know(domid);
        store.attach(guest, Caller::domain(domid));
        let home = Path::of_domain(domid);
        store.mkdir(DOM0, LIVE, &home).unwrap();
        let entries = [Permission::none(domid)];
        store.set_permissions(DOM0, LIVE, &home, &entries).unwrap();
    }
    store.take_events();
    store
}

fn permissions(entries: &[&str]) -> Vec<Permission> {
    entries.iter().map(|entry| entry.parse().unwrap()).collect()
}

fn value(store: &mut Store, client: ClientId, at: &str) -> Result<Vec<u8>, Errno> {
    store
        .read(client, LIVE, &path(at))
        .map(|node| node.value().to_vec())
}

fn names(store: &mut Store, at: &str) -> Vec<String> {
    let node = store.list(DOM0, LIVE, &path(at)).unwrap();
    node.names().map(ToString::to_string).collect()
}

fn told(store: &mut Store) -> Vec<(u64, String, String)> {
    let events = store.take_events();
    let text = |event: Event| {
        let token = String::from_utf8(event.token.to_vec()).unwrap();
        (event.client.0, event.path().to_string(), token)
    };
    events.into_iter().map(text).collect()
}

fn event(client: ClientId, path: &str, token: &str) -> (u64, String, String) {
    (client.0, path.into(), token.into())
}

#[test]
fn writing_creates_the_missing_parents_with_inherited_permissions() {
    let mut store = store();
    let entries = permissions(&["n0", "b7", "r8"]);
    store.write(DOM0, LIVE, &path("/a"), b"").unwrap();
    store
        .set_permissions(DOM0, LIVE, &path("/a"), &entries)
        .unwrap();
    store.write(GUEST, LIVE, &path("/a/b/c"), b"v").unwrap();
    assert_eq!(value(&mut store, GUEST, "/a/b/c").unwrap(), b"v");
    assert_eq!(value(&mut store, OTHER, "/a/b").unwrap(), b"");
    let inherited = store.permissions(GUEST, LIVE, &path("/a/b")).unwrap();
    assert_eq!(
        inherited.entries().collect::<Vec<_>>(),
        permissions(&["n7", "b7", "r8"])
    );
    assert_eq!(store.used(DomId(7))[Quota::Nodes], 3);
}

#[test]
fn children_are_listed_as_they_were_created() {
    let mut store = store();
    for name in ["z", "m", "a"] {
        store
            .write(DOM0, LIVE, &path("/d").join(name).unwrap(), b"")
            .unwrap();
    }
    store.remove(DOM0, LIVE, &path("/d/m")).unwrap();
    store.mkdir(DOM0, LIVE, &path("/d/m")).unwrap();
    assert_eq!(names(&mut store, "/d"), ["z", "a", "m"]);
}

#[test]
fn a_guest_learns_nothing_of_nodes_that_it_may_not_read() {
    let mut store = store();
    store.write(DOM0, LIVE, &path("/secret/x"), b"1").unwrap();
    assert_eq!(value(&mut store, GUEST, "/secret/x"), Err(Errno::EACCES));
    assert_eq!(value(&mut store, GUEST, "/secret/none"), Err(Errno::EACCES));
    assert_eq!(
        value(&mut store, GUEST, "/local/domain/7/none"),
        Err(Errno::ENOENT)
    );
    let refused = store.write(GUEST, LIVE, &path("/local/domain/8/x"), b"");
    assert_eq!(refused, Err(Errno::EACCES));
    assert_eq!(
        store.remove(GUEST, LIVE, &path("/secret")),
        Err(Errno::EACCES)
    );
}

#[test]
fn a_transaction_does_not_tell_its_guest_of_changes_that_it_may_not_see() {
    let mut store = store();
    for seen in ["/local/domain/8/x", "/local/domain/8/none"] {
        store
            .write(OTHER, LIVE, &path("/local/domain/8/x"), b"1")
            .unwrap();
        let tx = store.begin(GUEST).unwrap();
        let refused = store.read(GUEST, tx, &path(seen)).map(drop);
        assert_eq!(refused, Err(Errno::EACCES));
        store
            .write(GUEST, tx, &path("/local/domain/7/x"), b"1")
            .unwrap();
        store.write(OTHER, LIVE, &path(seen), b"2").unwrap();
        assert_eq!(store.end(GUEST, tx, true), Ok(()), "{seen}");
        assert_eq!(store.take_blamed(), None);
    }
}

#[test]
fn only_the_privileged_give_nodes_away() {
    let mut store = store();
    let home = path("/local/domain/7");
    let give = permissions(&["n8"]);
    let refused = store.set_permissions(GUEST, LIVE, &home, &give);
    assert_eq!(refused, Err(Errno::EPERM));
    let unknown = store.set_permissions(DOM0, LIVE, &home, &permissions(&["n99"]));
    assert_eq!(unknown, Err(Errno::ENOENT));
    store.set_permissions(DOM0, LIVE, &home, &give).unwrap();
    assert_eq!(
        (
            store.used(DomId(7))[Quota::Nodes],
            store.used(DomId(8))[Quota::Nodes]
        ),
        (0, 2)
    );
}

#[test]
fn removal_wants_a_parent_and_spares_the_root() {
    let mut store = store();
    assert_eq!(store.remove(DOM0, LIVE, &path("/")), Err(Errno::EINVAL));
    assert_eq!(store.remove(DOM0, LIVE, &path("/tool/none")), Ok(()));
    assert_eq!(
        store.remove(DOM0, LIVE, &path("/none/none")),
        Err(Errno::ENOENT)
    );
    store
        .write(DOM0, LIVE, &path("/local/domain/7/a/b/c"), b"")
        .unwrap();
    assert_eq!(store.used(DomId(7))[Quota::Nodes], 4);
    store
        .remove(GUEST, LIVE, &path("/local/domain/7/a"))
        .unwrap();
    assert_eq!(store.used(DomId(7))[Quota::Nodes], 1);
}

#[test]
fn a_watch_hears_of_its_node_and_those_below() {
    let mut store = store();
    let first = store.watch(DOM0, b"/a", b"t", None).unwrap();
    assert_eq!((first.path(), &*first.token), ("/a", &b"t"[..]));
    store.watch(DOM0, b"/a", b"shallow", Some(1)).unwrap();
    store.watch(DOM0, b"/ab", b"no", None).unwrap();
    store.write(DOM0, LIVE, &path("/a/b/c"), b"").unwrap();
    assert_eq!(told(&mut store), [event(DOM0, "/a/b/c", "t")]);
    store.write(DOM0, LIVE, &path("/a/b"), b"").unwrap();
    assert_eq!(
        told(&mut store),
        [event(DOM0, "/a/b", "t"), event(DOM0, "/a/b", "shallow")]
    );
    store.write(DOM0, LIVE, &path("/"), b"").unwrap();
    assert_eq!(told(&mut store), []);
    assert_eq!(
        store.watch(DOM0, b"/a", b"t", None).err(),
        Some(Errno::EEXIST)
    );
    store.unwatch(DOM0, b"/a", b"t").unwrap();
    assert_eq!(store.unwatch(DOM0, b"/a", b"t"), Err(Errno::ENOENT));
    store.write(DOM0, LIVE, &path("/a/b/c"), b"").unwrap();
    assert_eq!(told(&mut store), []);
}

#[test]
fn a_relative_watch_hears_relative_paths() {
    let mut store = store();
    let first = store.watch(GUEST, b"device", b"t", None).unwrap();
    assert_eq!(first.path(), "device");
    store
        .write(GUEST, LIVE, &path("/local/domain/7/device/vbd"), b"")
        .unwrap();
    assert_eq!(told(&mut store), [event(GUEST, "device/vbd", "t")]);
}

#[test]
fn a_removal_tells_watchers_inside_and_once_those_above() {
    let mut store = store();
    store.write(DOM0, LIVE, &path("/a/b/c"), b"").unwrap();
    store.write(DOM0, LIVE, &path("/a/b/d"), b"").unwrap();
    for (at, token) in [
        ("/", "root"),
        ("/a/b", "b"),
        ("/a/b/d", "d"),
        ("/a/b/c", "c"),
        ("/a/x", "x"),
    ] {
        store
            .watch(DOM0, at.as_bytes(), token.as_bytes(), None)
            .unwrap();
    }
    told(&mut store);
    store.remove(DOM0, LIVE, &path("/a")).unwrap();
    let expected = [
        event(DOM0, "/a/b/c", "c"),
        event(DOM0, "/a/b/d", "d"),
        event(DOM0, "/a/b", "b"),
        event(DOM0, "/a", "root"),
    ];
    assert_eq!(told(&mut store), expected);
}

#[test]
fn only_who_may_read_is_told_deletions_included() {
    let mut store = store();
    store.watch(GUEST, b"/secret", b"s", None).unwrap();
    store.watch(GUEST, b"/", b"all", None).unwrap();
    store.write(DOM0, LIVE, &path("/secret"), b"").unwrap();
    store.remove(DOM0, LIVE, &path("/secret")).unwrap();
    assert_eq!(told(&mut store), []);
    store.write(DOM0, LIVE, &path("/secret"), b"").unwrap();
    let open = permissions(&["n0", "r7"]);
    store
        .set_permissions(DOM0, LIVE, &path("/secret"), &open)
        .unwrap();
    assert_eq!(told(&mut store).len(), 2);
    let closed = permissions(&["n0"]);
    store
        .set_permissions(DOM0, LIVE, &path("/secret"), &closed)
        .unwrap();
    assert_eq!(
        told(&mut store).len(),
        2,
        "who loses the permission is told of that"
    );
    store.write(DOM0, LIVE, &path("/secret"), b"").unwrap();
    assert_eq!(told(&mut store), []);
}

#[test]
fn special_events_reach_those_whom_their_permissions_name() {
    let mut store = store();
    store.watch(GUEST, b"@introduceDomain", b"i", None).unwrap();
    store.watch(GUEST, b"@releaseDomain", b"r", None).unwrap();
    store.watch(DOM0, b"@introduceDomain", b"i", None).unwrap();
    store
        .watch(DOM0, b"@releaseDomain", b"deep", Some(1))
        .unwrap();
    store
        .watch(DOM0, b"@releaseDomain/8", b"eight", None)
        .unwrap();
    store.announce(SpecialEvent::Introduce, DomId(8));
    assert_eq!(told(&mut store), [event(DOM0, "@introduceDomain", "i")]);
    store.announce(SpecialEvent::Release, DomId(8));
    let expected = [
        event(GUEST, "@releaseDomain", "r"),
        event(DOM0, "@releaseDomain/8", "deep"),
        event(DOM0, "@releaseDomain/8", "eight"),
    ];
    assert_eq!(told(&mut store), expected);
}

#[test]
fn a_transaction_is_invisible_until_it_commits_and_then_tells_once_a_node() {
    let mut store = store();
    store.watch(OTHER, b"/local/domain/8", b"w", None).unwrap();
    let at = path("/local/domain/8/x");
    let tx = store.begin(OTHER).unwrap();
    store.write(OTHER, tx, &at, b"1").unwrap();
    store.write(OTHER, tx, &at, b"2").unwrap();
    assert_eq!(value(&mut store, OTHER, at.as_str()), Err(Errno::ENOENT));
    assert_eq!(store.read(OTHER, tx, &at).unwrap().value(), b"2");
    assert_eq!(
        (told(&mut store).len(), store.used(DomId(8))[Quota::Nodes]),
        (0, 1)
    );
    store.end(OTHER, tx, true).unwrap();
    assert_eq!(told(&mut store), [event(OTHER, at.as_str(), "w")]);
    assert_eq!(value(&mut store, OTHER, at.as_str()).unwrap(), b"2");
    assert_eq!(store.used(DomId(8))[Quota::Nodes], 2);
    assert_eq!(store.end(OTHER, tx, true), Err(Errno::ENOENT));
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    let mut store = store();
    let tx = store.begin(DOM0).unwrap();
    store.remove(DOM0, tx, &path("/tool")).unwrap();
    store.end(DOM0, tx, false).unwrap();
    assert_eq!(names(&mut store, "/tool"), ["xenstored"]);
    assert_eq!(told(&mut store), []);
}

#[test]
fn transactions_that_add_siblings_to_one_directory_both_commit() {
    let mut store = store();
    store.mkdir(DOM0, LIVE, &path("/d")).unwrap();
    let (one, two) = (store.begin(DOM0).unwrap(), store.begin(DOM0).unwrap());
    store.write(DOM0, one, &path("/d/one/x"), b"").unwrap();
    store.write(DOM0, two, &path("/d/two/x"), b"").unwrap();
    store.end(DOM0, one, true).unwrap();
    store.end(DOM0, two, true).unwrap();
    assert_eq!(names(&mut store, "/d"), ["one", "two"]);
}

#[test]
fn a_transaction_fails_when_what_it_saw_has_changed() {
    type Look = fn(&mut Store, TransactionId);
    let seen: [(&str, Look); 6] = [
        ("/d/x", |s, tx| {
            assert!(s.read(DOM0, tx, &path("/d/x")).is_ok())
        }),
        ("/d/new", |s, tx| {
            assert!(s.list(DOM0, tx, &path("/d")).is_ok())
        }),
        ("/d/none", |s, tx| {
            assert!(s.read(DOM0, tx, &path("/d/none")).is_err())
        }),
        ("/d/x/deep/er", |s, tx| {
            s.remove(DOM0, tx, &path("/d/x")).unwrap()
        }),
        ("/d/x", |s, tx| {
            s.write(DOM0, tx, &path("/d/x"), b"mine").unwrap()
        }),
        ("/e", |s, tx| {
            s.write(DOM0, tx, &path("/e/f/g"), b"mine").unwrap()
        }),
    ];
    for (at, see) in seen {
        let mut store = store();
        store.write(DOM0, LIVE, &path("/d/x/deep"), b"").unwrap();
        let tx = store.begin(DOM0).unwrap();
        see(&mut store, tx);
        store.write(DOM0, tx, &path("/result"), b"").unwrap();
        store.write(DOM0, LIVE, &path(at), b"theirs").unwrap();
        assert_eq!(store.end(DOM0, tx, true), Err(Errno::EAGAIN), "{at}");
        assert_eq!(value(&mut store, DOM0, "/result"), Err(Errno::ENOENT));
        assert_eq!(value(&mut store, DOM0, at).unwrap(), b"theirs");
    }
}

#[test]
fn a_node_removed_and_made_again_in_a_transaction_has_no_old_children() {
    let mut store = store();
    store.write(DOM0, LIVE, &path("/d/old/x"), b"").unwrap();
    let tx = store.begin(DOM0).unwrap();
    store.write(DOM0, tx, &path("/d/old"), b"touched").unwrap();
    store.remove(DOM0, tx, &path("/d")).unwrap();
    store.write(DOM0, tx, &path("/d/new"), b"1").unwrap();
    store.end(DOM0, tx, true).unwrap();
    assert_eq!(names(&mut store, "/d"), ["new"]);
    assert_eq!(value(&mut store, DOM0, "/d/new").unwrap(), b"1");
}

#[test]
fn the_root_outlives_a_guest_that_owned_it() {
    let mut store = store();
    store.write(DOM0, LIVE, &path("/a/b"), b"").unwrap();
    let guests = permissions(&["r7", "w8"]);
    for at in ["/", "/a/b", "@releaseDomain"] {
        store
            .set_permissions(DOM0, LIVE, &path(at), &guests)
            .unwrap();
    }
    store.forget(DomId(7));
    for at in ["/", "@releaseDomain"] {
        let left = store.permissions(DOM0, LIVE, &path(at)).unwrap();
        assert_eq!(
            left.entries().collect::<Vec<_>>(),
            permissions(&["r0", "w8"])
        );
    }
    assert_eq!(value(&mut store, DOM0, "/a/b"), Err(Errno::ENOENT));
    assert_eq!(value(&mut store, DOM0, "/a"), Ok(vec![]));
}

#[test]
fn the_next_domain_of_an_id_inherits_nothing() {
    let mut store = store();
    store
        .write(GUEST, LIVE, &path("/local/domain/7/x"), b"")
        .unwrap();
    store.write(DOM0, LIVE, &path("/shared"), b"").unwrap();
    let open = permissions(&["n0", "r7", "r8"]);
    store
        .set_permissions(DOM0, LIVE, &path("/shared"), &open)
        .unwrap();
    let tx = store.begin(DOM0).unwrap();
    store.write(DOM0, tx, &path("/gift"), b"").unwrap();
    store
        .set_permissions(DOM0, tx, &path("/gift"), &permissions(&["n7"]))
        .unwrap();
    store
        .watch(DOM0, b"/local/domain/7/x", b"gone", None)
        .unwrap();
    store.watch(GUEST, b"/shared", b"mine", None).unwrap();
    told(&mut store);

    store.detach(GUEST);
    store.forget(DomId(7));
    assert_eq!(told(&mut store), [event(DOM0, "/local/domain/7/x", "gone")]);
    assert_eq!(
        value(&mut store, DOM0, "/local/domain/7"),
        Err(Errno::ENOENT)
    );
    store.know(DomId(7));
    store.attach(GUEST, Caller::domain(DomId(7)));
    assert_eq!(store.used(DomId(7)), Usage::default());
    assert_eq!(value(&mut store, GUEST, "/shared"), Err(Errno::EACCES));
    let left = store.permissions(DOM0, LIVE, &path("/shared")).unwrap();
    assert_eq!(
        left.entries().collect::<Vec<_>>(),
        permissions(&["n0", "r8"])
    );
    assert_eq!(
        store.end(DOM0, tx, true),
        Err(Errno::EAGAIN),
        "the gift was for another"
    );
    store.write(DOM0, LIVE, &path("/shared"), b"").unwrap();
    assert_eq!(told(&mut store), []);
}

#[test]
fn quotas_bind_guests_and_not_domain_0() {
    let mut quotas = Quotas::default();
    for (quota, value) in [
        (Quota::Nodes, 3),
        (Quota::Watches, 1),
        (Quota::Transactions, 1),
        (Quota::NodeSize, 100),
        (Quota::NodePermissions, 2),
        (Quota::PathMax, 20),
        (Quota::TransactionNodes, 3),
    ] {
        quotas[Limit::hard(quota)] = value;
    }
    let mut store = Store::new(quotas);
    store.know(DomId(7));
    store.attach(GUEST, Caller::domain(DomId(7)));
    store.attach(DOM0, Caller::PRIVILEGED);
    let home = Path::of_domain(DomId(7));
    store.mkdir(DOM0, LIVE, &home).unwrap();
    store
        .set_permissions(DOM0, LIVE, &home, &permissions(&["n7"]))
        .unwrap();
    let at = |name: &str| home.join(name).unwrap();
    let full = Err(Errno::ENOSPC);

    assert_eq!(store.write(GUEST, LIVE, &at("a/b/c"), b""), full);
    assert_eq!(
        names(&mut store, home.as_str()),
        [""; 0],
        "nothing half-made is left"
    );
    store.write(GUEST, LIVE, &at("a/b"), b"").unwrap();
    assert_eq!(store.mkdir(GUEST, LIVE, &at("c")), full);
    assert_eq!(store.write(GUEST, LIVE, &at("a"), &[0; 100]), full);
    let many = permissions(&["n7", "r1", "r2"]);
    assert_eq!(store.set_permissions(GUEST, LIVE, &home, &many), full);
    let long = store.path(GUEST, b"abcdefghijklmnopqrstu", Special::Refused);
    assert_eq!(long, Err(Errno::EINVAL));
    store.watch(GUEST, b"a", b"", None).unwrap();
    assert_eq!(
        store.watch(GUEST, b"b", b"", None).err(),
        Some(Errno::ENOSPC)
    );
    let tx = store.begin(GUEST).unwrap();
    assert_eq!(store.begin(GUEST), Err(Errno::ENOSPC));
    for seen in [&home, &at("a"), &at("a/b"), &at("a")] {
        store.read(GUEST, tx, seen).unwrap();
    }
    assert_eq!(store.read(GUEST, tx, &at("x")).err(), Some(Errno::ENOSPC));
    assert_eq!(store.end(GUEST, tx, true), Err(Errno::ENOMEM));
    store.write(DOM0, LIVE, &at("a/b/c/d"), &[0; 200]).unwrap();
}

#[test]
fn a_long_list_is_told_in_parts_of_whole_names() {
    let mut store = store();
    let all: Vec<String> = (0..700)
        .map(|n| alloc::format!("child-number-{n}"))
        .collect();
    for name in &all {
        store
            .write(DOM0, LIVE, &path("/d").join(name).unwrap(), b"")
            .unwrap();
    }
    let mut list = vec![];
    loop {
        let part = store
            .list_part(DOM0, LIVE, &path("/d"), list.len(), 4096)
            .unwrap();
        assert!(part.len() <= 4096);
        let generation = part.iter().position(|&byte| byte == 0).unwrap();
        list.extend_from_slice(&part[generation + 1..]);
        if list.ends_with(b"\0\0") || list == [0] {
            break;
        }
    }
    list.pop();
    let names = list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    assert!(names.eq(all.iter().map(|name| name.as_bytes())));
    let past = store
        .list_part(DOM0, LIVE, &path("/d"), 1 << 20, 4096)
        .unwrap();
    assert!(past.ends_with(b"\0\0"));
}

#[test]
fn a_tree_as_deep_as_a_path_allows_is_made_and_unmade_on_a_small_stack() {
    let deep = "/a".repeat(1536);
    let thread = std::thread::Builder::new().stack_size(64 << 10);
    let work = move || {
        let mut store = store();
        store.write(DOM0, LIVE, &path(&deep), b"").unwrap();
        let tx = store.begin(DOM0).unwrap();
        store.remove(DOM0, tx, &path("/a/a")).unwrap();
        store.end(DOM0, tx, true).unwrap();
        store.write(DOM0, LIVE, &path(&deep), b"").unwrap();
    };
    thread.spawn(work).unwrap().join().unwrap();
}
