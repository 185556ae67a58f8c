//! CONTROL: quotas and figures are compared as numbers by name, since 4.17's texts are not master's.

use std::collections::{BTreeMap, BTreeSet};

use parapet_xen_sys::io::xs_wire::Operation::{self, *};

use crate::daemon::Who::{self, Guest, Local};
use crate::daemon::{Fate, Xenstored};
use crate::generated::introductions;
use crate::session::Transaction::Own;
use crate::session::{Session, Step};
use crate::written::same;
use crate::{GUESTS, LOCALS, Ours, Packaged, packaged};

fn ask(who: Who, operation: Operation, payload: &str) -> Step {
    Step::ask(who, operation, payload)
}

fn control(payload: &str) -> Step {
    ask(Local(0), Control, payload)
}

/// What is answered, as text.
fn told<D: Xenstored>(session: &mut Session<D>, payload: &str) -> String {
    let answer = session.step(&control(payload)).answer.unwrap();
    assert_eq!(answer.operation, u32::from(Control), "{answer:?}");
    String::from_utf8(answer.payload).unwrap()
}

/// The numbers of lines such as `nodes   :   12 ...`, by the names that 4.17 has for them.
fn figures(text: &str) -> BTreeMap<String, i64> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let name = match name.trim() {
            "node-permissions" => "permissions",
            name => name,
        };
        let number = rest.split_whitespace().next()?.parse().ok()?;
        Some((name.to_string(), number))
    };
    text.lines().filter_map(line).collect()
}

/// Both daemons, with three guests at home, after these steps.
fn both(steps: Vec<Step>) -> (Session<Packaged>, Session<Ours>) {
    let mut theirs = Session::new(Packaged::start(LOCALS, GUESTS));
    let mut ours = Session::new(Ours::start(LOCALS, GUESTS));
    for step in introductions().into_iter().chain(steps) {
        assert_eq!(theirs.step(&step), ours.step(&step), "{step:?}");
    }
    (theirs, ours)
}

#[test]
fn quotas_have_the_values_and_the_settings_of_c_xenstored() {
    if !packaged::is_there() {
        return;
    }
    let (mut theirs, mut ours) = both(vec![
        control("quota|set|nodes|50|"),
        control("quota|set|path-max|100|"),
        control("quota|set|permissions|3|"),
        control("quota-soft|set|memory|5000|"),
    ]);
    for quotas in ["quota|", "quota-soft|"] {
        let figures = [told(&mut theirs, quotas), told(&mut ours, quotas)].map(|it| figures(&it));
        assert_eq!(figures[0], figures[1]);
        assert!(!figures[0].is_empty());
    }
    let names = |help: String| -> BTreeSet<String> {
        let lines = help.lines().filter(|line| !line.starts_with(' '));
        let name = |line: &str| line.split_whitespace().next().unwrap_or("").to_string();
        lines
            .map(name)
            .filter(|name| name != "live-update")
            .collect()
    };
    let names = [told(&mut theirs, "help|"), told(&mut ours, "help|")].map(names);
    assert_eq!(names[0], names[1]);
}

#[test]
fn what_a_guest_uses_is_what_c_xenstored_counts() {
    if !packaged::is_there() {
        return;
    }
    let steps = [
        ask(Guest(1), Write, "a/b/c|some value"),
        ask(Guest(1), Write, "a/b/c|another"),
        ask(Guest(1), Write, "a/b/d|"),
        ask(Guest(1), SetPerms, "a/b/d|n1|r2|b3|"),
        ask(Guest(1), Mkdir, "e|"),
        ask(Guest(1), Rm, "e|"),
        ask(Guest(1), Watch, "a|token|"),
        ask(Guest(1), Watch, "@introduceDomain|t|"),
        ask(Guest(1), Watch, "x|u|"),
        ask(Guest(1), Unwatch, "x|u|"),
        ask(Local(0), Write, "/local/domain/1/from-0|x"),
        Step::ask_in(Guest(1), TransactionStart, Own(0), "|"),
        Step::ask_in(Guest(1), Write, Own(0), "committed/x|1"),
        Step::ask_in(Guest(1), Rm, Own(0), "a/b/d|"),
        Step::ask_in(Guest(1), TransactionEnd, Own(0), "T|"),
        Step::ask_in(Guest(1), TransactionStart, Own(1), "|"),
        ask(Guest(2), Write, "many/x|1"),
        ask(Guest(2), Rm, "many|"),
    ];
    let (mut theirs, mut ours) = both(steps.into());
    for domid in 1..=GUESTS {
        let line = format!("quota|{domid}|");
        let theirs = figures(&told(&mut theirs, &line));
        let mut ours = figures(&told(&mut ours, &line));
        // A node's own record costs 8 bytes less than with 4.17.
        *ours.get_mut("memory").unwrap() += 8 * ours["nodes"];
        assert!(theirs.len() >= 5, "{theirs:?}");
        for (name, figure) in theirs {
            assert_eq!(ours.get(&name), Some(&figure), "{name} of domain {domid}");
        }
    }
}

#[test]
fn what_control_does_not_take_is_refused_alike() {
    let refused = [
        "check|x|",
        "log|x|",
        "log|on|x|",
        "logfile|",
        "logfile|a|b|",
        "memreport|a|b|",
        "print|",
        "print|a|b|",
        "quota|set|",
        "quota|set|nodes|",
        "quota|set|nodes|0|",
        "quota|set|nodes|-1|",
        "quota|set|nodes|x|",
        "quota|set|what|5|",
        "quota|set|nodes|5|6|",
        "quota|1|x|",
        "quota|9|",
        "quota-soft|set|nodes|5|",
        "quota-soft|set|memory|0|",
        "quota-soft|1|",
        "help|x|",
        "what|",
    ];
    let guests = ["check|", "quota|", "help|", "what|"];
    let guests = guests.map(|line| ask(Guest(1), Control, line));
    let done = ["check|", "log|on|", "log|off|", "print|hello|"].map(control);
    same(refused.map(control).into_iter().chain(guests).chain(done));
}

#[test]
fn a_domain_that_comes_after_a_quota_was_set_has_it() {
    let mut steps = vec![
        control("quota|set|nodes|5|"),
        control("quota|set|permissions|2|"),
        control("quota|set|path-max|20|"),
        Step::Fate(1, Fate::Dead),
        Step::Fate(1, Fate::Born),
    ];
    steps.extend(introductions().into_iter().take(3));
    steps.extend((0..7).map(|n| ask(Guest(1), Write, &format!("{n}|x"))));
    steps.extend([
        ask(Guest(1), Write, "0|y"),
        ask(Guest(1), SetPerms, "0|n1|r2|"),
        ask(Guest(1), SetPerms, "0|n1|r2|r3|"),
        ask(Guest(1), Read, "a-path-of-20-letters|"),
        ask(Guest(1), Read, "a-path-of-21-letters-|"),
    ]);
    same(steps);
}
