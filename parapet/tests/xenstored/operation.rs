//! How the daemon is operated: what it tells of itself, where it logs, what it gives up.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use parapet::daemon::xenstored::Status;
use parapet_xenstore::client::blocking::Client;

use super::{Place, complaint};

fn status(place: &Place, args: &[&str]) -> Output {
    place
        .daemon(&[&["status"], args].concat())
        .output()
        .unwrap()
}

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Nodes that are there from the beginning: /, /tool and what is in it, and two special ones.
const FRESH: usize = 5;

#[test]
fn it_tells_what_it_was_asked_and_what_it_holds() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let mut client = Client::connect(place.socket()).unwrap();
    let mut idle = Client::connect(place.socket()).unwrap();
    idle.watch("/a", "t").unwrap();
    client.transaction(|tx| tx.write("/a/b/c", "")).unwrap();
    client.read("/none").unwrap_err();

    let told: Status = serde_json::from_str(&printed(status(&place, &["--json"]))).unwrap();
    let count = |request: &str, outcome: &str| {
        let same = told
            .requests
            .iter()
            .find(|it| it.request == request && it.outcome == outcome);
        same.map_or(0, |it| it.count)
    };
    assert_eq!((count("read", "ok"), count("read", "ENOENT")), (0, 1));
    assert_eq!(
        (count("transaction_end", "ok"), count("watch", "ok")),
        (1, 1)
    );
    assert_eq!(
        (told.transactions.begun, told.transactions.committed),
        (1, 1)
    );
    assert_eq!(told.local.connections, 2);
    let domain_0 = told.domains.iter().find(|it| it.domid == 0).unwrap();
    assert_eq!((domain_0.nodes, domain_0.watches), (FRESH + 3, 1));

    let table = printed(status(&place, &[]));
    assert!(
        table.contains("1 committed") && table.contains("dom  ring"),
        "{table}"
    );
    let metrics = printed(status(&place, &["--metrics"]));
    let line = "parapet_xenstored_requests_total{request=\"read\",outcome=\"ENOENT\"} 1";
    assert!(metrics.lines().any(|it| it == line), "{metrics}");
    running.stop(Signal::SIGTERM);

    let error = complaint(&status(&place, &[]), 1);
    assert!(error.contains("no parapet-xenstored runs here"), "{error}");
}

#[test]
fn metrics_are_in_a_file_for_as_long_as_it_serves() {
    let place = Place::new();
    let file = place.path("xenstored.prom");
    let path = file.to_str().unwrap();
    let running = place.start(&mut place.daemon(&["--no-domains", "--metrics-file", path]));
    let metrics = fs::read_to_string(&file).unwrap();
    let line = format!("parapet_xenstored_nodes{{domain=\"0\"}} {FRESH}");
    assert!(metrics.lines().any(|it| it == line), "{metrics}");
    running.stop(Signal::SIGTERM);
    assert!(!file.exists());
    assert_eq!(place.told(), "STOPPING=1");

    // That they cannot be written is no reason not to serve.
    let nowhere = place.path("none/xenstored.prom");
    let nowhere = ["--no-domains", "--metrics-file", nowhere.to_str().unwrap()];
    let running = place.start(&mut place.daemon(&nowhere));
    Client::connect(place.socket())
        .unwrap()
        .write("/a", "")
        .unwrap();
    let log = running.stop(Signal::SIGTERM);
    assert!(log.contains("metrics are not written to"), "{log}");
}

#[test]
fn requests_are_logged_to_a_file_from_when_that_is_wanted_until_it_is_not() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let mut client = Client::connect(place.socket()).unwrap();
    let file = place.path("access.log");
    client.write("/before", "").unwrap();
    client
        .control("logfile", &[file.to_str().unwrap()])
        .unwrap();
    client.write("/meanwhile", "").unwrap();
    client.control("log", &["off"]).unwrap();
    client.write("/after", "").unwrap();
    let log = fs::read_to_string(&file).unwrap();
    assert!(log.contains("/meanwhile: OK"), "{log}");
    assert!(!log.contains("/before") && !log.contains("/after"), "{log}");
    running.stop(Signal::SIGTERM);
}

#[test]
fn as_another_user_it_has_no_privileges_left_and_serves() {
    let place = Place::new();
    let error = place.refused(&["--no-domains", "--user", "no-such-user-here"]);
    assert!(
        error.contains("there is no user no-such-user-here"),
        "{error}"
    );
    let error = place.refused(&["--no-domains", "--user", "root"]);
    assert!(error.contains("root is root"), "{error}");
    if !Uid::effective().is_root() {
        let error = place.refused(&["--no-domains", "--user", "nobody"]);
        assert!(error.contains("only root can become nobody"), "{error}");
        eprintln!("NOT checked: becoming another user (run as root)");
        return;
    }
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid.to_string(), nobody.gid.to_string());
    // As systemd's own socket is: for everybody.
    for (name, mode) in [("", 0o755), ("notify", 0o777)] {
        fs::set_permissions(place.path(name), Permissions::from_mode(mode)).unwrap();
    }
    let running = place.start(&mut place.daemon(&["--no-domains", "--user", "nobody"]));
    let process = running.0.as_ref().unwrap().id();
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut count = 0;
    for thread in threads {
        let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(line("Uid:"), [&*uid; 4]);
        assert_eq!(line("Gid:"), [&*gid; 4]);
        assert_eq!(line("Groups:"), [&*gid]);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(line(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(line("NoNewPrivs:"), ["1"]);
        count += 1;
    }
    assert!(count > 1);
    let mut client = Client::connect(place.socket()).unwrap();
    client.write("/a", "by nobody").unwrap();
    assert_eq!(client.read("/a").unwrap(), b"by nobody");
    assert!(printed(status(&place, &[])).contains("local clients  1"));
    running.stop(Signal::SIGTERM);
}
