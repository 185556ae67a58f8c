//! `parapet-blkback`, as far as it goes on a machine without Xen.

#![allow(clippy::unwrap_used)] // clippy knows test functions, and not what they call

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use parapet::config::GuestConfig;
use parapet::daemon::State;
use parapet::daemon::blkback::{NAME, Status};
use parapet::daemon::{Lock, StatusSocket};
use parapet::host::Host;
use parapet_hypervisor::seam::Identity;
use serde_json::Value;

fn daemon(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parapet-blkback"));
    for name in ["PARAPET_LOG", "RUST_LOG", "NOTIFY_SOCKET", "JOURNAL_STREAM"] {
        command.env_remove(name);
    }
    // Wherever the test runs, there is no xenstored.
    command.env("XENSTORED_PATH", "/nonexistent/socket");
    command.args(args).output().unwrap()
}

fn status(run: &Path, more: &[&str]) -> Output {
    daemon(&[&["status", "--run-dir", run.to_str().unwrap()], more].concat())
}

/// The one line on standard error of a command that printed nothing else, and its exit status.
fn complaint(output: &Output) -> (String, Option<i32>) {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.stdout, b"", "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("parapet-blkback: "), "{error}");
    (error, output.status.code())
}

#[test]
fn help_has_examples_and_the_exit_status() {
    for (args, word) in [
        (&["--help"][..], "script=block-parapet"),
        (&["--help"], "Exit status"),
        (&["status", "--help"], "jq"),
        (&["completions", "bash"], "parapet-blkback"),
    ] {
        let output = daemon(args);
        assert!(output.status.success(), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(word), "{args:?}: {text}");
    }
}

#[test]
fn a_host_without_xen_is_told_so() {
    if Path::new("/dev/xen/gntdev").exists() {
        return; // on a Xen host, where tests/system has the rest
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (error, status) = complaint(&daemon(&["--run-dir", run.to_str().unwrap()]));
    assert_eq!(status, Some(2));
    assert!(error.contains("/dev/xen/gntdev is not there"), "{error}");
    assert!(!run.exists(), "nothing is made before the host is ready");
}

#[test]
fn a_level_that_is_none_is_refused_with_those_there_are() {
    let output = daemon(&["--log", "loud"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("warn"), "{error}");
}

#[test]
fn the_status_of_no_daemon_says_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let (error, code) = complaint(&status(folder.path(), &[]));
    assert_eq!(code, Some(1));
    assert!(error.contains("systemctl start parapet-blkback"), "{error}");
    // Its socket is left over from one that was killed.
    let lock = Lock::take(folder.path(), NAME).unwrap();
    let socket = folder.path().join("parapet-blkback.socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (error, code) = complaint(&status(folder.path(), &[]));
    assert_eq!(code, Some(1));
    assert!(error.contains("nobody listens"), "{error}");
    // The next one takes its place.
    let domid = parapet_xen_sys::DomId::ZERO;
    let opened = StatusSocket::open(folder.path(), NAME, move || Status::new(domid, &[])).unwrap();
    let mode = socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let output = status(folder.path(), &[]);
    assert_eq!(output.stdout, b"no disk was attached yet\n");
    drop((opened, lock));
    assert!(!socket.exists());
}

#[test]
fn the_status_of_a_daemon_has_every_disk_and_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::builder().pcpus(1).build().unwrap();
    let (reports, domid) = (host.reports(), host.dom0().domid());
    let _socket = StatusSocket::open(folder.path(), NAME, move || {
        Status::new(domid, &reports.all())
    })
    .unwrap();

    let mut config = GuestConfig::new("guest");
    config
        .disks
        .push("vdev=xvda, target=memory:1M".parse().unwrap());
    config
        .disks
        .push("vdev=xvdb, access=ro, target=memory:2M".parse().unwrap());
    let run = folder.path().to_owned();
    let running = host.start(&config, async move |guest| {
        let disk = guest.disk("xvda").await?;
        disk.write_at(4096, &[7; 1024]).await?;
        disk.flush().await?;
        let mut back = [0; 512];
        for _ in 0..3 {
            disk.read_at(4096, &mut back).await?;
        }
        guest.disk("xvdb").await?;
        // In the middle of its life.
        Ok((status(&run, &["--json"]), status(&run, &[])))
    });
    let guest = running.as_ref().unwrap().domain().domid().0;
    let (json, table) = running.unwrap().wait().unwrap();

    let live: Status = serde_json::from_slice(&json.stdout).unwrap();
    let [xvda, xvdb] = live.vbds.as_slice() else {
        panic!("{live:?}");
    };
    assert_eq!(
        (xvda.frontend, xvda.number, &*xvda.name),
        (guest, 51712, "xvda")
    );
    assert_eq!(xvda.state, State::Connected);
    assert_eq!(
        (xvda.image.as_deref(), xvda.mode.as_deref()),
        (Some("memory:1M"), Some("w"))
    );
    assert_eq!((xvda.writes.requests, xvda.writes.sectors), (1, 2));
    assert_eq!((xvda.reads.requests, xvda.reads.sectors), (3, 3));
    assert_eq!((xvda.flushes.requests, xvda.refused), (1, 0));
    assert_eq!(
        (xvdb.sectors, xvdb.mode.as_deref()),
        (Some(4096), Some("r"))
    );
    assert_eq!(xvdb.connection.as_ref().unwrap().protocol, "x86_64-abi");

    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("xvda  connected  memory:1M  w"), "{table}");

    let ended = status(folder.path(), &["--json"]);
    let ended: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended["vbds"][0]["state"], "ended");
    assert_eq!(ended["vbds"][0]["reads"]["requests"], 3);
    assert_eq!(ended["vbds"][0]["persistent_pages"], 0);
}

/// Runs `block-parapet` with tools that keep the one node in a file.
fn script(folder: &Path, action: &str) -> Output {
    let node = folder.join("hotplug-status");
    for (tool, what) in [
        ("xenstore-read", "exec cat \"$NODE\""),
        ("xenstore-write", "printf %s \"$2\" > \"$NODE\""),
    ] {
        let tool = folder.join(tool);
        let check = "[ \"$1\" = backend/vbd/5/51712/hotplug-status ] || exit 9";
        fs::write(&tool, format!("#!/bin/sh\n{check}\n{what}\n")).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/xl/block-parapet");
    let mut command = Command::new(script);
    command.env("XENBUS_PATH", "backend/vbd/5/51712");
    command.env("PATH", path).env("NODE", node);
    command.arg(action).output().unwrap()
}

#[test]
fn the_script_hands_on_what_the_backend_says() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("hotplug-status");
    assert!(script(folder.path(), "add").status.success());
    assert_eq!(fs::read_to_string(&node).unwrap(), "connected");

    fs::write(&node, "error").unwrap();
    assert_eq!(script(folder.path(), "add").status.code(), Some(1));
    assert_eq!(fs::read_to_string(&node).unwrap(), "error");

    fs::remove_file(&node).unwrap();
    assert!(script(folder.path(), "remove").status.success());
    assert!(!node.exists(), "the toolstack removes the nodes meanwhile");
    assert_eq!(script(folder.path(), "play").status.code(), Some(2));
}
