//! Steps by chance: mostly requests that make sense, some that are malformed in one place, and some
//! bytes that make none.

use parapet_xen_sys::io::xs_wire::Operation;
use proptest::prelude::*;
use proptest::sample::select;

use crate::daemon::{Fate, Who};
use crate::session::{Step, Transaction};
use crate::{GUESTS, LOCALS};

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        3 => (0..LOCALS).prop_map(Who::Local),
        1 => Just(Who::Guest(0)),
        4 => (1..=GUESTS).prop_map(Who::Guest),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "(/[ab]){1,3}",
        8 => "/local/domain/[123](/[ab]){0,3}",
        6 => "[ab](/[ab]){0,2}",
        1 => select(vec![
            "/", "/tool", "/tool/xenstored", "/local", "/local/domain", "", "//", "/a/", "a/", "/a//b",
            "/a b", "/a.b", "/\u{e9}", "@releaseDomain", "@introduceDomain", "@releaseDomain/1",
            "@a", "@", "/@a", "a@", "/A-z_0@9", "/local/domain/1/",
        ]).prop_map(String::from),
        1 => select(vec![100, 1990, 2047, 2048, 2049, 3071, 3072, 3073, 4000])
            .prop_flat_map(|len| select(vec!["/", "", "/local/domain/1/"])
            .prop_map(move |start| format!("{start}{}", "x".repeat(len - start.len())))),
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]{0,3}",
        1 => Just("a|b|".to_string()),
        1 => select(vec![1900, 2000, 2024, 2025, 2040, 2048, 4000]).prop_map(|len| "v".repeat(len)),
    ]
}

fn permissions() -> impl Strategy<Value = String> {
    let entry = prop_oneof![
        20 => "[nrwb][0123]",
        1 => select(vec!["n4", "r7", "", "x1", "n", "r65535", "n-1", "r1x", "b70000", "w32756", "n 1"])
            .prop_map(String::from),
    ];
    let count = prop_oneof![9 => 1usize..4, 1 => 0usize..8];
    count.prop_flat_map(move |count| {
        proptest::collection::vec(entry.clone(), count)
            .prop_map(|entries| entries.iter().map(|entry| format!("{entry}|")).collect())
    })
}

fn domid() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => (1..=GUESTS).prop_map(|domid| domid.to_string()),
        1 => select(vec!["0", "9", "65535", "65536", "", "x", "1x", "-1", " 1", "+1", "32752"])
            .prop_map(String::from),
    ]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("0".to_string()),
        2 => (0u32..40).prop_map(|n| n.to_string()),
        1 => select(vec!["-1", "x", "", "99999", "4294967296"]).prop_map(String::from),
    ]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    prop_oneof![
        10 => Just(Transaction::None),
        10 => (0usize..2).prop_map(Transaction::Own),
        1 => Just(Transaction::Unknown),
    ]
}

fn request() -> impl Strategy<Value = (Operation, String)> {
    let of_path = select(vec![
        Operation::Directory,
        Operation::Read,
        Operation::GetPerms,
    ]);
    let made = select(vec![Operation::Mkdir, Operation::Rm]);
    let of_domain = select(vec![
        Operation::Release,
        Operation::GetDomainPath,
        Operation::IsDomainIntroduced,
        Operation::Resume,
    ]);
    prop_oneof![
        6 => (of_path, path()).prop_map(|(op, path)| (op, format!("{path}|"))),
        4 => (made, path()).prop_map(|(op, path)| (op, format!("{path}|"))),
        6 => (path(), value()).prop_map(|(path, value)| (Operation::Write, format!("{path}|{value}"))),
        4 => (path(), permissions()).prop_map(|(path, p)| (Operation::SetPerms, format!("{path}|{p}"))),
        4 => (path(), "[tu]").prop_map(|(path, token)| (Operation::Watch, format!("{path}|{token}|"))),
        2 => (path(), "[tu]").prop_map(|(path, token)| (Operation::Unwatch, format!("{path}|{token}|"))),
        4 => Just((Operation::TransactionStart, "|".to_string())),
        4 => select(vec!["T|", "T|", "T|", "F|", "F|", "X|", "T", ""])
            .prop_map(|end| (Operation::TransactionEnd, end.to_string())),
        3 => (domid(), select(vec!["7", "7", "7", "7", "0", "-1", "x"]))
            .prop_map(|(domid, port)| (Operation::Introduce, format!("{domid}|5|{port}|"))),
        2 => (of_domain, domid()).prop_map(|(op, domid)| (op, format!("{domid}|"))),
        1 => (domid(), domid()).prop_map(|(a, b)| (Operation::SetTarget, format!("{a}|{b}|"))),
        1 => select(vec!["|", "", "x|"]).prop_map(|it| (Operation::ResetWatches, it.to_string())),
        2 => (path(), number()).prop_map(|(path, at)| (Operation::DirectoryPart, format!("{path}|{at}|"))),
        1 => select(vec!["check|", "print|x|", "print|", "check|x|", "what|", ""])
            .prop_map(|it| (Operation::Control, it.to_string())),
    ]
}

/// A request with something wrong about its form.
fn malformed() -> impl Strategy<Value = (u32, String)> {
    let operation =
        prop_oneof![6 => 0u32..23, 1 => select(vec![15, 16, 20, 27, 30, 0xffff, u32::MAX])];
    (operation, request(), 0usize..6, any::<u8>()).prop_map(
        |(operation, (asked, text), how, at)| {
            let cut = usize::from(at) % (text.len() + 1);
            let (start, end) = text.split_at(text.floor_char_boundary(cut));
            let asked = u32::from(asked);
            match how {
                0 => (operation, text),
                1 => (asked, start.to_string()),
                2 => (asked, format!("{start}|{end}")),
                3 => (asked, format!("{text}x")),
                4 => (asked, format!("{text}x|")),
                _ => (asked, text.replace('|', "")),
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![1 => Just(Fate::ShutDown), 2 => Just(Fate::Dead), 3 => Just(Fate::Born)];
    let ask = |who, operation, tx, text: String| {
        Step::Ask(who, operation, tx, text.replace('|', "\0").into_bytes())
    };
    prop_oneof![
        30 => (who(), transaction(), request())
            .prop_map(move |(who, tx, (operation, text))| ask(who, operation.into(), tx, text)),
        4 => (who(), transaction(), malformed())
            .prop_map(move |(who, tx, (operation, text))| ask(who, operation, tx, text)),
        1 => (1..=GUESTS, fate).prop_map(|(domid, fate)| Step::Fate(domid, fate)),
    ]
}

/// A sequence, after what makes three guests at home.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..80)
        .prop_map(|steps| introductions().into_iter().chain(steps).collect())
}

/// What a toolstack does for each guest.
pub(crate) fn introductions() -> Vec<Step> {
    let toolstack = Who::Local(0);
    let steps = |domid| {
        let home = format!("/local/domain/{domid}");
        [
            Step::ask(toolstack, Operation::Mkdir, &format!("{home}|")),
            Step::ask(toolstack, Operation::SetPerms, &format!("{home}|n{domid}|")),
            Step::ask(toolstack, Operation::Introduce, &format!("{domid}|5|7|")),
        ]
    };
    (1..=GUESTS).flat_map(steps).collect()
}
