//! Live updates from C xenstored to ours, and back again, by the state that each writes: with
//! clients that stay connected all the while.
//!
//! Ours runs without domains here, as `preload.c` makes up Xen's libraries and not its devices: so
//! guests are handed on as they are, and are served again once C xenstored is back. On real Xen
//! `tests/system` has them served by each.

use std::path::PathBuf;

use parapet_xen_sys::io::xs_wire::Operation;

use crate::daemon::{Message, Who, Xenstored};
use crate::packaged::{self, Packaged};

/// `parapet-xenstored` as built beside this test.
fn ours() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("parapet-xenstored");
    if !built.exists() {
        eprintln!(
            "skipped: needs {} (cargo build -p parapet)",
            built.display()
        );
        return None;
    }
    Some(built)
}

struct Exchange {
    daemon: Packaged,
    /// Events that came before an answer.
    events: Vec<(Who, String)>,
}

impl Exchange {
    fn send(&mut self, who: Who, operation: Operation, tx: u32, payload: &str) {
        let message = Message::new(operation, tx, payload.as_bytes());
        self.daemon.send(who, &message.bytes());
    }

    fn answer(&mut self, who: Who) -> String {
        loop {
            let message = self.daemon.receive(who);
            let message = message.unwrap_or_else(|| panic!("{who:?} is not answered"));
            let text = message.payload.escape_ascii().to_string();
            if !message.is_event() {
                return text;
            }
            self.events.push((who, text));
        }
    }

    fn ask(&mut self, who: Who, operation: Operation, payload: &str) -> String {
        self.send(who, operation, 0, payload);
        self.answer(who)
    }

    fn done(&mut self, who: Who, operation: Operation, payload: &str) {
        let answer = self.ask(who, operation, payload);
        assert_eq!(answer, "OK\\x00", "{operation:?} {payload:?}");
    }

    /// Becomes another program. The answer is the new one's.
    fn update(&mut self, program: &str, arguments: &str) {
        let admin = Who::Local(0);
        for step in [
            format!("-f\0{program}\0"),
            format!("-c\0{arguments}\0"),
            "-s\0-t\x0010\0".into(),
        ] {
            self.done(admin, Operation::Control, &format!("live-update\0{step}"));
        }
    }

    /// What everybody can see, and what happens on a change.
    fn check(&mut self, round: &str) {
        let [a, b] = [Who::Local(0), Who::Local(1)];
        for (operation, path, expected) in [
            (Operation::Directory, "/dir", "z\\x00m\\x00a\\x00"),
            (Operation::Read, "/dir/z", "zero\\x00inside"),
            (Operation::Read, "/dir/m", ""),
            (Operation::Read, "/dir/a/deep/est", "value"),
            (Operation::GetPerms, "/dir/z", "n0\\x00r1\\x00b2\\x00"),
            (Operation::GetPerms, "/dir/a", "w1\\x00"),
            (Operation::GetPerms, "/local/domain/1", "n1\\x00"),
        ] {
            let answer = self.ask(b, operation, &format!("{path}\0"));
            assert_eq!(answer, expected, "{round}: {operation:?} {path}");
        }
        assert_eq!(self.ask(b, Operation::IsDomainIntroduced, "1\0"), "T\\x00");
        assert_eq!(self.ask(b, Operation::IsDomainIntroduced, "3\0"), "F\\x00");

        self.events.clear();
        self.send(b, Operation::TransactionStart, 0, "\0");
        let tx = self.answer(b).trim_end_matches("\\x00").parse().unwrap();
        self.send(b, Operation::Write, tx, &format!("/dir/a/new\0{round}"));
        assert_eq!(self.answer(b), "OK\\x00");
        self.send(b, Operation::TransactionEnd, tx, "T\0");
        assert_eq!(self.answer(b), "OK\\x00");
        self.done(b, Operation::Rm, "/dir/a/new\0");
        assert_eq!(self.ask(a, Operation::Read, "/dir/z\0"), "zero\\x00inside");
        let event = |who, text: &str| (who, String::from(text));
        let expected = [
            event(a, "/dir/a/new\\x00first\\x00"),
            event(a, "/dir/a/new\\x00second\\x00"),
        ];
        // The first event of a watch that was just made may be among them.
        let of_change = |(_, text): &(Who, String)| text.starts_with("/dir/a/new");
        let events: Vec<_> = self.events.drain(..).filter(of_change).collect();
        assert!(events.starts_with(&expected), "{round}: {events:?}");
        // Header and payload apart, as Xen's library sends them.
        let read = Message::new(Operation::Read, 0, b"/dir/a/deep/est\0").bytes();
        for _ in 0..100 {
            for part in [&read[..16], &read[16..]] {
                self.daemon.send(b, part);
            }
            assert_eq!(self.answer(b), "value", "{round}");
        }
        // One who comes now, by the same socket.
        let fresh = self.daemon.join();
        assert_eq!(
            self.ask(fresh, Operation::Read, "/dir/a/deep/est\0"),
            "value"
        );
    }
}

#[test]
fn c_xenstored_hands_over_to_ours_and_takes_over_again() {
    let Some(ours) = ours().filter(|_| packaged::is_there()) else {
        return;
    };
    let mut it = Exchange {
        daemon: Packaged::start(2, 2),
        events: vec![],
    };
    let (a, guest) = (Who::Local(0), Who::Guest(1));
    for (operation, payload) in [
        (Operation::Write, "/dir/z\0zero\0inside"),
        (Operation::Write, "/dir/m\0"),
        (Operation::Write, "/dir/a/deep/est\0value"),
        (Operation::Mkdir, "/local/domain/1\0"),
        (Operation::SetPerms, "/local/domain/1\0n1\0"),
        (Operation::SetPerms, "/dir/z\0n0\0r1\0b2\0"),
        (Operation::SetPerms, "/dir/a\0w1\0"),
        (Operation::Introduce, "1\x000\x001\0"),
        (Operation::Introduce, "2\x000\x001\0"),
        (Operation::Watch, "/dir/a\0first\0"),
        (Operation::Watch, "/dir\0second\0"),
    ] {
        it.done(a, operation, payload);
    }
    it.done(guest, Operation::Write, "data\0mine");
    it.check("C");

    let lock = it.daemon.path("lock");
    let alone = format!("--no-domains --log error --run-dir {}", lock.display());
    let packaged = packaged::program();
    for round in ["once", "twice"] {
        it.update(ours.to_str().unwrap(), &alone);
        it.check(&format!("ours {round}"));
        // By itself in between.
        it.update(ours.to_str().unwrap(), &alone);
        it.check(&format!("ours {round} and again"));
        // What a guest asks meanwhile it is told when it is served again.
        it.send(guest, Operation::Read, 0, "data\0");
        it.update(
            packaged.to_str().unwrap(),
            "--no-fork --timeout watch-event=0",
        );
        assert_eq!(it.answer(guest), "mine");
        it.check(&format!("C {round}"));
    }
    it.done(guest, Operation::Write, "data\0still mine");
    assert_eq!(
        it.ask(a, Operation::Read, "/local/domain/1/data\0"),
        "still mine"
    );
}
