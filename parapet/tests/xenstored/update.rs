//! Live updates of the daemon by itself, with clients that are not to notice.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use parapet_xen_sys::Errno;
use parapet_xenstore::client::Error;
use parapet_xenstore::client::blocking::Client;
use parapet_xenstore::wire::{Decoder, Request};

use super::{PROGRAM, Place};

/// What a busy client may take for an answer, an update in between.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(place: &Place) -> Client {
    let mut client = Client::connect(place.socket()).unwrap();
    client.set_patience(Some(PATIENCE));
    client
}

/// CONTROL live-update with these arguments: the answer.
fn control(client: &mut Client, arguments: &[&str]) -> String {
    let request = Request::Control {
        command: b"live-update",
        arguments: arguments.iter().map(|it| it.as_bytes()).collect(),
    };
    let answer = client.call(&request).unwrap();
    String::from_utf8(answer)
        .unwrap()
        .trim_end_matches('\0')
        .into()
}

fn update(client: &mut Client, program: &str) -> String {
    assert_eq!(control(client, &["-f", program]), "OK");
    control(client, &["-s", "-t", "60"])
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Adds one to its own counter and to the shared one, over and over; after each time the one event
/// of its watch is to come. How often it did.
fn count(place: &Place, n: usize, stop: &AtomicBool) -> u64 {
    let mut client = connect(place);
    let own = format!("/counters/{n}");
    client.write(&own, "0").unwrap();
    client.watch(&own, "own").unwrap();
    client.next_event_within(PATIENCE).unwrap();
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let added = client.transaction(|client| {
            for path in [&own[..], "/shared"] {
                let value = number(&client.read(path)?) + 1;
                client.write(path, value.to_string())?;
            }
            Ok(())
        });
        match added {
            Ok(()) => done += 1,
            // The others were quicker, every time.
            Err(error) if error.errno() == Some(Errno::EAGAIN) => continue,
            Err(error) => panic!("client {n}: {error}"),
        }
        let event = client.next_event_within(PATIENCE).unwrap();
        assert_eq!(event.path, own);
        assert_eq!(number(&client.read(&own).unwrap()), done);
    }
    let more = client.next_event_within(Duration::from_millis(1));
    assert_eq!(more, Err(Error::TimedOut), "an event too many");
    done
}

/// For so long as `PARAPET_LIVE_SECONDS` says, or a few updates.
#[test]
fn busy_clients_lose_no_request_event_or_watch_by_updates() {
    let place = Place::new();
    // Little goes to its log, which nobody reads before the end.
    let running = place.start(&mut place.daemon(&["--no-domains", "--log", "error"]));
    let mut admin = connect(&place);
    admin.write("/shared", "0").unwrap();
    admin.write("/counters", "").unwrap();
    admin.watch("/shared", "shared").unwrap();
    let seconds = std::env::var("PARAPET_LIVE_SECONDS");
    let seconds = seconds.map_or(0, |it| it.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let (stop, mut updates) = (AtomicBool::new(false), 0);
    let counts: Vec<u64> = thread::scope(|scope| {
        let counting = |n| {
            scope.spawn({
                let (place, stop) = (&place, &stop);
                move || count(place, n, stop)
            })
        };
        let clients: Vec<_> = (0..8).map(counting).collect();
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while updates < 5 || Instant::now() < end {
                // Between two updates something happens.
                admin.next_event_within(PATIENCE).unwrap();
                assert_eq!(update(&mut admin, PROGRAM), "OK");
                assert_eq!(place.told(), "READY=1");
                updates += 1;
            }
        }));
        stop.store(true, Ordering::Relaxed);
        worked.unwrap();
        clients.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let sum: u64 = counts.iter().sum();
    eprintln!("{updates} updates, {sum} transactions");
    assert_eq!(number(&admin.read("/shared").unwrap()), sum);
    for (n, count) in counts.iter().enumerate() {
        let path = format!("/counters/{n}");
        assert_eq!(number(&admin.read(&path).unwrap()), *count);
    }
    running.stop(Signal::SIGTERM);
}

/// A connection on which more can be asked before the answer has come.
struct Raw(UnixStream, Decoder);

impl Raw {
    fn send(&mut self, req_id: u32, request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(req_id, 0, &mut bytes).unwrap();
        self.0.write_all(&bytes).unwrap();
    }

    fn receive(&mut self) -> (u32, Vec<u8>) {
        loop {
            if let Some(message) = self.1.message().unwrap() {
                return (message.req_id, message.payload);
            }
            let mut bytes = [0; 4096];
            let len = self.0.read(&mut bytes).unwrap();
            assert!(len > 0, "the connection is gone");
            self.1.push(&bytes[..len]);
        }
    }
}

#[test]
fn requests_that_came_in_part_or_wait_for_a_transaction_are_answered_after_it() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let [mut holder, mut other] = [0; 2].map(|_| connect(&place));
    let [mut admin, mut partial, mut waiter] = [0; 3].map(|_| {
        Raw(
            UnixStream::connect(place.socket()).unwrap(),
            Decoder::default(),
        )
    });
    other.write("/a", "before").unwrap();
    let read = Request::Read(b"/a");
    let mut bytes = Vec::new();
    read.encode(9, 0, &mut bytes).unwrap();
    partial.0.write_all(&bytes[..17]).unwrap();
    let done = holder.transaction(|holder| {
        holder.write("/a", "after")?;
        let control = |arguments: &[&'static [u8]]| Request::Control {
            command: b"live-update",
            arguments: arguments.to_vec(),
        };
        admin.send(1, &control(&[b"-f", PROGRAM.as_bytes()]));
        assert_eq!(admin.receive(), (1, b"OK\0".into()));
        admin.send(2, &control(&[b"-s", b"-t", b"60"]));
        admin.send(3, &read);
        assert_eq!(
            admin.receive(),
            (3, b"before".into()),
            "it is not kept from asking"
        );
        // This waits, with what comes after it; others do not.
        waiter.send(4, &Request::TransactionStart);
        waiter.send(5, &read);
        assert_eq!(other.read("/a").unwrap(), b"before");
        // The transaction that all wait for goes on until it is committed.
        holder.write("/b", "too")
    });
    done.unwrap();
    assert_eq!(admin.receive(), (2, b"OK\0".into()));
    assert_eq!(place.told(), "READY=1");
    assert_eq!(waiter.receive(), (4, b"1\0".into()));
    assert_eq!(waiter.receive(), (5, b"after".into()));
    partial.0.write_all(&bytes[17..]).unwrap();
    assert_eq!(partial.receive(), (9, b"after".into()));
    assert_eq!(other.read("/b").unwrap(), b"too");
    running.stop(Signal::SIGTERM);
}

impl Place {
    /// A program that is none of ours, but says that it is.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn state_is_left(&self) -> bool {
        self.path("xenstored/state_dump").exists() || self.path("root/state_dump").exists()
    }
}

#[test]
fn a_program_that_cannot_follow_changes_nothing() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let mut client = connect(&place);
    client.write("/a", "1").unwrap();
    client.watch("/a", "t").unwrap();
    client.next_event_within(PATIENCE).unwrap();

    let refuses =
        "#!/bin/sh\ncase $1 in --help) echo --check-state;; *) echo it is bad >&2; exit 1;; esac\n";
    let refuses = place.script("refuses", refuses);
    let broken = place.script("broken", "\x7fELF nothing");
    let plain = place.script("plain", "");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    // It would not go on from a state, but end well.
    let other = Path::new("/bin/true");
    let mut said = |program: &Path| {
        let program = program.to_str().unwrap();
        match &*control(&mut client, &["-f", program]) {
            "OK" => control(&mut client, &["-s", "-t", "60"]),
            refused => refused.into(),
        }
    };
    assert_eq!(said(&refuses), "it is bad");
    assert_eq!(said(&broken), "Error activating new binary.");
    assert_eq!(said(other), "Error activating new binary.");
    assert_eq!(said(&plain), "File not executable.");
    assert_eq!(said(&place.path("nowhere")), "File not accessible.");
    assert!(!place.state_is_left());
    // Neither its connection nor its watch is another, and nothing is held.
    let written = client.transaction(|client| client.write("/a", "2"));
    written.unwrap();
    assert_eq!(client.next_event_within(PATIENCE).unwrap().token, "t");
    assert_eq!(update(&mut client, PROGRAM), "OK");
    assert_eq!(place.told(), "READY=1");
    assert!(!place.state_is_left());
    running.stop(Signal::SIGTERM);
}

#[test]
fn arguments_that_the_next_program_would_end_by_change_nothing() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let mut client = connect(&place);
    for (arguments, why) in [
        ("--no-domains --nonsense", "unexpected argument"),
        (
            "--no-domains --live-update",
            "cannot be used multiple times",
        ),
        (
            "--no-domains --user nobody-of-this-name",
            "nobody-of-this-name",
        ),
        ("--no-domains -S much", "is no quota"),
        ("--no-domains status", "unexpected argument"),
        ("--help", "Error activating new binary."),
        ("--version", "Error activating new binary."),
    ] {
        assert_eq!(control(&mut client, &["-f", PROGRAM]), "OK");
        assert_eq!(control(&mut client, &["-c", arguments]), "OK");
        let said = control(&mut client, &["-s", "-t", "60"]);
        assert!(said.contains(why), "{arguments}: {said}");
        assert!(!place.state_is_left());
    }
    client.write("/a", "1").unwrap();
    running.stop(Signal::SIGTERM);
}

#[test]
fn an_update_goes_on_where_the_folder_of_the_status_socket_is_gone() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    fs::remove_dir_all(place.path("run")).unwrap();
    let mut client = connect(&place);
    client.write("/a", "1").unwrap();
    assert_eq!(update(&mut client, PROGRAM), "OK");
    assert_eq!(client.read("/a").unwrap(), b"1");
    let log = running.stop(Signal::SIGTERM);
    assert!(log.contains("goes on without: the status socket"), "{log}");
}

#[test]
fn a_socket_of_systemds_is_its_own_after_updates_too() {
    let place = Place::new();
    fs::create_dir(place.path("xenstored")).unwrap();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let script = "exec 3<&0; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = place.command("sh");
    command.args(["-c", script, PROGRAM, "--no-domains", "--run-dir"]);
    command.arg(place.path("run"));
    command.stdin(OwnedFd::from(listener));
    let running = place.start(&mut command);
    let mut client = connect(&place);
    for _ in 0..2 {
        assert_eq!(update(&mut client, PROGRAM), "OK");
        assert_eq!(place.told(), "READY=1");
    }
    running.stop(Signal::SIGTERM);
    assert!(place.socket().exists());
}

#[test]
fn who_waits_too_long_is_told_whom_for_and_can_do_without() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let [mut admin, mut holder] = [0; 2].map(|_| connect(&place));
    holder.call(&Request::TransactionStart).unwrap();
    control(&mut admin, &["-f", PROGRAM]);
    let refused = control(&mut admin, &["-s", "-t", "1"]);
    assert_eq!(
        refused,
        "Domains with long running transactions:\nDomain 0: 1 s"
    );
    control(&mut admin, &["-f", PROGRAM]);
    assert_eq!(control(&mut admin, &["-s", "-t", "1", "-F"]), "OK");
    assert_eq!(place.told(), "READY=1");
    // It is given up, and its connection goes on.
    holder.write("/a", "1").unwrap();
    running.stop(Signal::SIGTERM);
}

#[test]
fn after_an_update_it_is_still_the_only_one_and_leaves_nothing() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let mut client = connect(&place);
    for _ in 0..2 {
        assert_eq!(update(&mut client, PROGRAM), "OK");
        assert_eq!(place.told(), "READY=1");
    }
    let error = place.refused(&["--no-domains"]);
    assert!(error.contains("runs already (process "), "{error}");
    assert!(Client::connect(place.socket()).is_ok());
    let log = running.stop(Signal::SIGTERM);
    assert!(log.contains("goes on and serves"), "{log}");
    assert!(!place.socket().exists());
}

#[test]
fn a_state_can_be_checked_before_it_is_needed() {
    let place = Place::new();
    let file = place.path("state");
    let check = || {
        let mut command = Command::new(PROGRAM);
        let command = command.args(["--no-domains", "--check-state"]);
        command.arg(&file).output().unwrap()
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/migration");
    fs::copy(corpus.join("version_1"), &file).unwrap();
    assert!(check().status.success());
    fs::copy(corpus.join("node_without_parent"), &file).unwrap();
    let error = super::complaint(&check(), 1);
    let why = "record 2 (NODE_DATA) at byte 48: the node above it is not there";
    assert!(error.ends_with(why), "{error}");
    // Nothing to go on from.
    let none = place.refused_with(&["--no-domains", "--live-update"], 1);
    assert!(none.contains("there is no state to go on from"), "{none}");
}
