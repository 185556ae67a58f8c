//! `parapet-xenstored`, as far as it goes on a machine without Xen: its life here, then who uses it.

#![allow(clippy::unwrap_used)] // clippy knows test functions, and not what they call

mod library;
mod operation;
mod tools;
mod update;

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parapet_xenstore::client::blocking::Client;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_parapet-xenstored");

/// A folder with all that a daemon makes.
struct Place {
    folder: TempDir,
    systemd: UnixDatagram,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let systemd = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        systemd
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Place { folder, systemd }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("xenstored/socket")
    }

    /// The daemon, or another `program` that becomes it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for name in [
            "PARAPET_LOG",
            "RUST_LOG",
            "JOURNAL_STREAM",
            "XENSTORED_PATH",
        ] {
            command.env_remove(name);
        }
        command
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("XENSTORED_RUNDIR", self.path("xenstored"))
            .env("XENSTORED_ROOTDIR", self.path("root"))
            .stderr(Stdio::piped());
        command
    }

    fn daemon(&self, args: &[&str]) -> Command {
        let mut command = self.command(PROGRAM);
        command.arg("--run-dir").arg(self.path("run")).args(args);
        command
    }

    fn refused(&self, args: &[&str]) -> String {
        self.refused_with(args, 2)
    }

    fn refused_with(&self, args: &[&str], status: i32) -> String {
        complaint(&self.daemon(args).output().unwrap(), status)
    }

    /// Starts it, and waits until it says that it serves.
    fn start(&self, command: &mut Command) -> Running {
        let running = Running(Some(command.spawn().unwrap()));
        assert_eq!(self.told(), "READY=1");
        running
    }

    fn told(&self) -> String {
        let mut told = [0; 64];
        let len = self.systemd.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..len]).into()
    }
}

struct Running(Option<Child>);

impl Running {
    /// Ends it by a signal: what it had logged.
    fn stop(mut self, signal: Signal) -> String {
        let child = self.0.take().unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The last line on standard error of a command that failed with this status.
fn complaint(output: &Output, status: i32) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{error}");
    let line = error.lines().last().unwrap().to_owned();
    assert!(line.starts_with("parapet-xenstored: "), "{error}");
    line
}

#[test]
fn help_has_examples_and_the_exit_status() {
    let place = Place::new();
    for (args, word) in [
        (&["--help"][..], "--no-domains --run-dir"),
        (&["--help"], "Exit status"),
        (&["completions", "bash"], "parapet-xenstored"),
    ] {
        let output = place.daemon(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(word), "{args:?}: {text}");
    }
}

#[test]
fn a_host_without_xen_is_told_of_the_way_without_domains() {
    if Path::new("/dev/xen/gntdev").exists() {
        return; // on a Xen host, where tests/system has the rest
    }
    let place = Place::new();
    let error = place.refused(&[]);
    assert!(error.contains("/dev/xen/gntdev is not there"), "{error}");
    assert!(error.contains("--no-domains"), "{error}");
    assert!(!place.path("run").exists() && !place.socket().exists());
}

#[test]
fn the_socket_is_served_until_a_signal_comes() {
    let place = Place::new();
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let mode = place.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::connect(place.socket()).unwrap();
    client.write("/a/b", "hello").unwrap();
    let mut other = Client::connect(place.socket()).unwrap();
    assert_eq!(other.read("/a/b").unwrap(), b"hello");
    let log = running.stop(Signal::SIGTERM);
    assert!(log.contains("stopped by SIGTERM"), "{log}");
    assert_eq!(place.told(), "STOPPING=1");
    assert!(!place.socket().exists());
}

#[test]
fn a_second_one_is_refused_and_a_killed_one_replaced() {
    let place = Place::new();
    let mut first = place.start(&mut place.daemon(&["--no-domains"]));
    let error = place.refused(&["--no-domains"]);
    assert!(error.contains("runs already (process "), "{error}");
    // One that keeps its lock elsewhere.
    let run = place.path("another");
    let run = ["--no-domains", "--run-dir", run.to_str().unwrap()];
    let another = place.command(PROGRAM).args(run).output().unwrap();
    let error = complaint(&another, 2);
    assert!(error.contains("somebody listens at"), "{error}");
    Client::connect(place.socket()).unwrap();

    let child = first.0.as_mut().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(place.socket().exists());
    let second = place.start(&mut place.daemon(&["--no-domains"]));
    Client::connect(place.socket()).unwrap();
    second.stop(Signal::SIGINT);
}

#[test]
fn a_socket_that_systemd_hands_over_is_served_and_left() {
    let place = Place::new();
    let path = place.path("handed-over");
    let listener = UnixListener::bind(&path).unwrap();
    // As systemd does it: the third descriptor, and the process that it is for.
    let script = "exec 3<&0; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = place.command("sh");
    command.args(["-c", script, PROGRAM, "--no-domains", "--run-dir"]);
    command.arg(place.path("run"));
    command.stdin(OwnedFd::from(listener));
    let running = place.start(&mut command);
    let mut client = Client::connect(&path).unwrap();
    client.write("/a", "by systemd").unwrap();
    assert_eq!(client.read("/a").unwrap(), b"by systemd");
    assert!(!place.socket().exists());
    running.stop(Signal::SIGTERM);
    assert!(path.exists(), "it is systemd's to take away");

    let mut nothing = place.command("sh");
    nothing.args(["-c", script, PROGRAM, "--no-domains", "--run-dir"]);
    nothing.arg(place.path("run")).stdin(Stdio::null());
    let error = complaint(&nothing.output().unwrap(), 2);
    assert!(error.contains("systemd handed over"), "{error}");
}

#[test]
fn more_clients_are_served_than_a_shell_lets_files_be_open() {
    let place = Place::new();
    let mut command = place.command("sh");
    let script = "ulimit -Sn 64; exec \"$0\" \"$@\"";
    command.args(["-c", script, PROGRAM, "--no-domains", "--run-dir"]);
    let running = place.start(command.arg(place.path("run")));
    let mut clients: Vec<Client> = (0..100)
        .map(|_| Client::connect(place.socket()).unwrap())
        .collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.write(&format!("/clients/{n}"), "").unwrap();
    }
    assert_eq!(clients[0].list("/clients").unwrap().len(), 100);
    running.stop(Signal::SIGTERM);
}
