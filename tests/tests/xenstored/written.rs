//! Sequences by hand: what chance seldom finds, or what is to be the same without any exception.

use parapet_xen_sys::io::xs_wire::Operation::{self, *};

use crate::daemon::Who::{self, Guest, Local};
use crate::daemon::{Fate, Message};
use crate::generated::introductions;
use crate::packaged;
use crate::session::Transaction::Own;
use crate::session::{Session, Step};
use crate::{GUESTS, LOCALS, Ours, Packaged};

/// Three guests at home, then these steps: every outcome the same, with no known difference.
#[track_caller]
pub(crate) fn same(steps: impl IntoIterator<Item = Step>) {
    if !packaged::is_there() {
        return;
    }
    let mut theirs = Session::new(Packaged::start(LOCALS, GUESTS));
    let mut ours = Session::new(Ours::start(LOCALS, GUESTS));
    for step in introductions().into_iter().chain(steps) {
        assert_eq!(theirs.step(&step), ours.step(&step), "{step:?}");
    }
}

fn ask(who: Who, operation: Operation, payload: &str) -> Step {
    Step::ask(who, operation, payload)
}

fn within(who: Who, place: usize, operation: Operation, payload: &str) -> Step {
    Step::ask_in(who, operation, Own(place), payload)
}

#[test]
fn a_watch_tells_of_each_node_of_a_subtree_that_goes() {
    same([
        ask(Local(0), Write, "/a/b/c|1"),
        ask(Local(0), Write, "/a/d|2"),
        ask(Local(1), Watch, "/a|t|"),
        ask(Local(1), Watch, "/a/b|u|"),
        ask(Local(1), Watch, "/a/b/c|v|"),
        ask(Local(1), Watch, "/a/d|w|"),
        ask(Local(1), Watch, "/|x|"),
        ask(Guest(1), Watch, "/a|y|"),
        ask(Local(0), Rm, "/a|"),
        ask(Local(0), Rm, "/a|"),
        ask(Local(0), Rm, "/a/b|"),
    ]);
}

#[test]
fn a_transaction_tells_of_its_changes_when_it_commits() {
    same([
        ask(Local(1), Watch, "/a|t|"),
        within(Local(0), 0, TransactionStart, "|"),
        within(Local(0), 0, Write, "/a/b|1"),
        within(Local(0), 0, Write, "/a/c|2"),
        within(Local(0), 0, Write, "/a/b|3"),
        within(Local(0), 0, Mkdir, "/a/d|"),
        within(Local(0), 0, Rm, "/a/c|"),
        within(Local(0), 0, SetPerms, "/a/b|n1|r2|"),
        ask(Local(1), Directory, "/|"),
        within(Local(0), 0, Directory, "/a|"),
        within(Local(0), 0, TransactionEnd, "T|"),
        ask(Local(1), Directory, "/a|"),
        within(Local(0), 0, Read, "/a/b|"),
    ]);
}

#[test]
fn a_write_to_what_a_transaction_read_makes_it_try_again() {
    same([
        ask(Local(0), Write, "/a|1"),
        within(Local(0), 0, TransactionStart, "|"),
        within(Local(0), 0, Read, "/a|"),
        within(Local(0), 0, Write, "/b|1"),
        ask(Local(1), Write, "/a|2"),
        within(Local(0), 0, TransactionEnd, "T|"),
        ask(Local(0), Directory, "/|"),
    ]);
}

#[test]
fn who_may_not_read_a_node_hears_nothing_of_it() {
    same([
        ask(Local(0), Write, "/secret|1"),
        ask(Guest(1), Watch, "/secret|t|"),
        ask(Guest(2), Watch, "/|t|"),
        ask(Local(0), Write, "/secret|2"),
        ask(Local(0), SetPerms, "/secret|n0|r1|"),
        ask(Local(0), Write, "/secret|3"),
        ask(Local(0), SetPerms, "/secret|n0|r2|"),
        ask(Local(0), SetPerms, "/secret|n0|"),
        ask(Local(0), Rm, "/secret|"),
    ]);
}

#[test]
fn a_list_of_children_too_long_for_a_message_comes_in_parts() {
    let child = |n| {
        ask(
            Local(0),
            Mkdir,
            &format!("/many/a-rather-long-name-of-a-child-{n}|"),
        )
    };
    let part = |offset| ask(Local(1), DirectoryPart, &format!("/many|{offset}|"));
    same((0..120).map(child).chain([
        ask(Local(1), Directory, "/many|"),
        part(0),
        part(4000),
        part(37),
        part(100_000),
        ask(Local(0), Rm, "/many/a-rather-long-name-of-a-child-7|"),
        part(0),
    ]));
}

#[test]
fn quotas_bind_a_guest_where_they_do_with_c_xenstored() {
    let watches = (0..127).map(|n| ask(Guest(1), Watch, &format!("x|{n}|")));
    let starts = (0..10).map(|_| ask(Guest(1), TransactionStart, "|"));
    let nodes = (0..1003).map(|n| ask(Guest(2), Write, &format!("data/{}/{n}|", n % 10)));
    let permissions = (1..8).map(|n| {
        let entries = "n3|r1|r1|r1|r1|r1|r1|r1|".get(..3 * n).unwrap();
        ask(Guest(3), SetPerms, &format!("/local/domain/3|{entries}"))
    });
    same(watches.chain(starts).chain(nodes).chain(permissions));
}

#[test]
fn a_message_too_long_ends_its_connection_alone() {
    let mut header = Message::new(Write, 0, &[]).bytes();
    header[12..].copy_from_slice(&4097u32.to_ne_bytes());
    same([
        ask(Local(1), Watch, "/a|t|"),
        ask(Guest(1), Watch, "/a|t|"),
        Step::Raw(Guest(1), header.clone()),
        Step::Raw(Local(1), header),
        ask(Local(0), Write, "/a|1"),
        ask(Guest(2), Write, "x|1"),
    ]);
}

#[test]
fn the_next_domain_of_an_id_inherits_nothing() {
    same([
        ask(Local(0), Watch, "/local/domain/1|t|"),
        ask(Local(0), Watch, "@releaseDomain|r|"),
        ask(Local(0), Watch, "@introduceDomain|i|"),
        ask(Guest(1), Write, "data/x|1"),
        ask(Guest(1), SetPerms, "data/x|n1|r2|"),
        ask(Guest(2), Write, "for-1|1"),
        ask(Guest(2), SetPerms, "for-1|n2|r1|"),
        ask(Guest(1), Read, "/local/domain/2/for-1|"),
        ask(Guest(1), Watch, "data|t|"),
        Step::Fate(1, Fate::ShutDown),
        Step::Fate(1, Fate::Dead),
        ask(Local(0), IsDomainIntroduced, "1|"),
        ask(Local(0), Directory, "/local/domain|"),
        Step::Fate(1, Fate::Born),
        ask(Local(0), Mkdir, "/local/domain/1|"),
        ask(Local(0), SetPerms, "/local/domain/1|n1|"),
        ask(Local(0), Introduce, "1|5|7|"),
        ask(Guest(1), Read, "/local/domain/2/for-1|"),
        ask(Guest(1), Directory, "/local/domain/1|"),
        ask(Guest(1), Write, "data/x|2"),
    ]);
}

#[test]
fn a_domain_with_anothers_rights_uses_them() {
    same([
        ask(Guest(1), Write, "x|1"),
        ask(Guest(2), Read, "/local/domain/1/x|"),
        ask(Guest(2), Watch, "/local/domain/1/x|t|"),
        ask(Local(0), SetTarget, "2|1|"),
        ask(Guest(2), Read, "/local/domain/1/x|"),
        ask(Guest(2), Write, "/local/domain/1/y|2"),
        ask(Local(0), GetPerms, "/local/domain/1/y|"),
        ask(Guest(1), Write, "x|2"),
        ask(Guest(1), Read, "/local/domain/2|"),
    ]);
}

#[test]
fn a_domain_introduced_again_begins_anew() {
    same([
        ask(Guest(1), Watch, "x|t|"),
        within(Guest(1), 0, TransactionStart, "|"),
        ask(Local(0), Introduce, "1|5|8|"),
        ask(Local(0), Write, "/local/domain/1/x|1"),
        within(Guest(1), 0, TransactionEnd, "T|"),
        ask(Guest(1), Unwatch, "x|t|"),
        ask(Local(0), Introduce, "9|5|8|"),
        ask(Local(0), Introduce, "1|5|0|"),
    ]);
}
