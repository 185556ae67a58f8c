//! `parapet-netback`, as far as it goes on a machine without Xen.

#![allow(clippy::unwrap_used)] // clippy knows test functions, and not what they call

use std::path::Path;
use std::process::{Command, Output};

use parapet::daemon::netback::{NAME, Status};
use parapet::daemon::{Lock, StatusSocket};
use parapet_xen_sys::DomId;

fn daemon(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parapet-netback"));
    for name in ["PARAPET_LOG", "RUST_LOG", "NOTIFY_SOCKET", "JOURNAL_STREAM"] {
        command.env_remove(name);
    }
    // Wherever the test runs, there is no xenstored.
    command.env("XENSTORED_PATH", "/nonexistent/socket");
    command.args(args).output().unwrap()
}

#[test]
fn help_has_examples_and_the_exit_status() {
    for (args, word) in [
        (&["--help"][..], "script=vif-parapet"),
        (&["--help"], "Exit status"),
        (&["status", "--help"], "jq"),
        (&["completions", "bash"], "parapet-netback"),
    ] {
        let output = daemon(args);
        assert!(output.status.success(), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(word), "{args:?}: {text}");
    }
}

#[test]
fn networks_that_make_no_sense_are_refused_by_the_command_line() {
    for network in [
        "lan",
        "=isolated",
        "lan=bridged",
        "out=nat:10.0.0.1/24",
        "out=nat:",
    ] {
        let output = daemon(&["--network", network]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("--network"), "{error}");
    }
}

#[test]
fn a_host_without_xen_is_told_so() {
    if Path::new("/dev/xen/gntdev").exists() {
        return; // on a Xen host, where tests/system has the rest
    }
    let run = tempfile::tempdir().unwrap();
    let output = daemon(&["--run-dir", run.path().to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("parapet-netback: "), "{error}");
}

#[test]
fn the_status_of_a_daemon_is_a_table_or_json() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().to_str().unwrap();
    let nobody = daemon(&["status", "--run-dir", folder]);
    assert_eq!(nobody.status.code(), Some(1));
    let _lock = Lock::take(run.path(), NAME).unwrap();
    let _socket = StatusSocket::open(run.path(), NAME, || Status::new(DomId(3), &[])).unwrap();
    let table = daemon(&["status", "--run-dir", folder]);
    assert_eq!(table.stdout, b"no vif was attached yet\n");
    let json = daemon(&["status", "--run-dir", folder, "--json"]);
    let status: Status = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((status.domid, status.vifs.len()), (3, 0));
}

#[test]
fn manual_pages_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert!(daemon(&["man", path]).status.success());
    assert!(folder.path().join("parapet-netback.1").exists());
    assert!(folder.path().join("parapet-netback-status.1").exists());
}
