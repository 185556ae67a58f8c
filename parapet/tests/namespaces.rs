//! Unmodified Linux stacks in two network namespaces, which have nothing in common but our two
//! halves and the switch: `parapet net tap`. It takes root and `ip`, and each test some program that
//! people use; without them it says so and does nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parapet_hypervisor::host::in_network_namespace;

/// A network namespace, for as long as this is there.
struct Namespace {
    file: PathBuf,
    _alive: mpsc::Sender<()>,
}

impl Namespace {
    fn new() -> Option<Self> {
        let (alive, end) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).is_ok();
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            let file = Path::new("/proc").join(thread).join("ns/net");
            tell.send(made.then_some(file)).unwrap();
            let _ = end.recv();
        });
        Some(Namespace {
            file: told.recv().unwrap()?,
            _alive: alive,
        })
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network_namespace(File::open(&self.file).unwrap(), work).unwrap()
    }

    /// What a command prints there, if it succeeds.
    fn run(&self, command: &str) -> Result<String, String> {
        let output = self.within(|| {
            let mut words = command.split(' ');
            let mut command = Command::new(words.next().unwrap());
            command.args(words).output().unwrap()
        });
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        match output.status.success() {
            true => Ok(out.into_owned()),
            false => Err(format!("{command}: {out}{err}")),
        }
    }

    /// The same, and it has to succeed.
    fn said(&self, command: &str) -> String {
        self.run(command).unwrap_or_else(|error| panic!("{error}"))
    }

    fn spawn(&self, command: &str) -> Process {
        Process(self.within(|| {
            let mut words = command.split(' ');
            let mut command = Command::new(words.next().unwrap());
            command
                .args(words)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        }))
    }
}

/// A program that runs until this is dropped.
struct Process(Child);

impl Process {
    /// Waits for a line that has `text` in it.
    fn says(stream: impl Read, text: &str) {
        let lines = BufReader::new(stream).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains(text)));
    }

    /// Ends it in order.
    fn end(mut self) {
        self.signal();
        assert!(self.0.wait().unwrap().success());
    }

    fn signal(&self) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two namespaces, each with an `eth0` that is a vif on one switch.
struct Lab {
    red: Namespace,
    blue: Namespace,
    parapet: Process,
}

const V4: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const V6: [&str; 2] = ["fd77::1", "fd77::2"];

impl Lab {
    /// None: the machine has not what it takes, and the reason was printed.
    fn new(commands: &[&str], options: &[&str]) -> Option<Self> {
        let there = |command: &&str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(command).exists())
        };
        if let Some(missing) = ["ip"]
            .iter()
            .chain(commands)
            .find(|command| !there(command))
        {
            eprintln!("skipped: there is no {missing}");
            return None;
        }
        let (Some(red), Some(blue)) = (Namespace::new(), Namespace::new()) else {
            eprintln!("skipped: network namespaces take root");
            return None;
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
        command.args(["net", "tap"]).args(options);
        for namespace in [&red, &blue] {
            let tap = format!("eth0@{}", namespace.file.display());
            command.args(["--tap", &tap]);
        }
        let mut parapet = Process(command.stdout(Stdio::piped()).spawn().unwrap());
        Process::says(parapet.0.stdout.as_mut().unwrap(), "eth0");
        let lab = Lab { red, blue, parapet };
        for (namespace, [v4, v6]) in [(&lab.red, [V4[0], V6[0]]), (&lab.blue, [V4[1], V6[1]])] {
            namespace.said("ip link set lo up");
            namespace.said(&format!("ip addr add {v4}/24 dev eth0"));
            namespace.said(&format!("ip addr add {v6}/64 dev eth0 nodad"));
        }
        // Until both are connected.
        let ping = format!("ping -c 1 -W 1 {}", V4[1]);
        let mut answers = (0..60).map(|_| lab.red.run(&ping));
        assert!(answers.any(|answer| answer.is_ok()), "blue is not there");
        Some(lab)
    }

    /// `iperf3` from red to blue, with more arguments; what it says as JSON.
    fn iperf(&self, to: &str, more: &str) -> serde_json::Value {
        let mut server = self.blue.spawn("iperf3 --server --one-off --forceflush");
        Process::says(server.0.stdout.as_mut().unwrap(), "Server listening");
        let said = self
            .red
            .said(&format!("iperf3 --json --client {to} {more}"));
        serde_json::from_str(&said).unwrap()
    }
}

/// Ways to run it that have nothing in common on the inside.
const WAYS: [&[&str]; 4] = [
    &[],
    &["--no-offload"],
    &["--no-static-grants"],
    &["--queues", "2", "--mtu", "9000"],
];

#[test]
fn ping_and_iperf3_go_through_with_and_without_offloads() {
    for way in WAYS {
        let Some(lab) = Lab::new(&["ping", "iperf3"], way) else {
            return;
        };
        for to in [V4[1], V6[1]] {
            for size in [56, 1400] {
                let command = format!("ping -c 3 -i 0.2 -s {size} {to}");
                let said = lab.red.said(&command);
                assert!(said.contains(" 0% packet loss"), "{way:?}: {said}");
            }
            const BYTES: u64 = 32 << 20;
            for back in ["", " --reverse"] {
                let tcp = lab.iperf(to, &format!("--bytes {BYTES}{back}"));
                let received = tcp["end"]["sum_received"]["bytes"].as_u64().unwrap();
                assert!(
                    received >= BYTES / 2,
                    "{way:?} {to}{back}: {received} bytes"
                );
            }
            let udp = lab.iperf(to, "--udp --bitrate 100M --bytes 2M");
            let sum = &udp["end"]["sum"];
            let (sent, lost) = (sum["packets"].as_u64(), sum["lost_packets"].as_u64());
            assert!(sent.unwrap() > 0 && lost < sent, "{way:?} {to}: {sum}");
        }
        lab.parapet.end();
    }
}

#[test]
fn a_file_comes_by_curl_as_it_was() {
    const BYTES: usize = 64 << 20;
    let Some(lab) = Lab::new(&["ping", "curl"], &["--queues", "2"]) else {
        return;
    };
    // It repeats nowhere.
    let mut state = 1u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(BYTES)
    .collect();
    for (address, url) in [(V4[1], V4[1].to_string()), (V6[1], format!("[{}]", V6[1]))] {
        let listener = lab
            .blue
            .within(|| TcpListener::bind((address, 80)).unwrap());
        let got = thread::scope(|scope| {
            let content = &content;
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").unwrap();
                stream.write_all(content).unwrap();
            });
            let url = format!("http://{url}/");
            lab.red.within(|| {
                let mut curl = Command::new("curl");
                curl.args(["--silent", "--show-error", "--globoff", &url]);
                curl.output().unwrap()
            })
        });
        assert!(got.status.success());
        assert!(got.stdout == content, "over {address}");
    }
    lab.parapet.end();
}

#[test]
fn checksums_are_right_at_both_ends_as_tcpdump_sees_them() {
    const TOOLS: [&str; 4] = ["ping", "iperf3", "tcpdump", "tshark"];
    let Some(lab) = Lab::new(&TOOLS, &["--no-offload"]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let files = [file("red.pcap"), file("blue.pcap")];
    let namespaces = [&lab.red, &lab.blue];
    let mut dumps: Vec<Process> = Vec::new();
    for (namespace, file) in namespaces.iter().zip(&files) {
        let command = format!("tcpdump --immediate-mode -i eth0 -B 65536 -U -Z root -w {file}");
        let mut dump = namespace.spawn(&command);
        Process::says(dump.0.stderr.as_mut().unwrap(), "listening on eth0");
        dumps.push(dump);
    }
    for to in [V4[1], V6[1]] {
        lab.iperf(to, "--bytes 4M");
        lab.iperf(to, "--udp --bitrate 50M --bytes 500K");
    }
    for dump in dumps {
        dump.end();
    }
    let count = |file: &str, filter: &str| {
        let command = Command::new("tshark")
            .args([
                "-r",
                file,
                "-Y",
                filter,
                "-T",
                "fields",
                "-e",
                "frame.number",
            ])
            .args(["-o", "tcp.check_checksum:TRUE"])
            .args(["-o", "udp.check_checksum:TRUE"])
            .args(["-o", "ip.check_checksum:TRUE"])
            .output()
            .unwrap();
        assert!(command.status.success());
        command.stdout.lines().count()
    };
    for file in &files {
        for wrong in ["tcp", "udp", "ip"] {
            let bad = count(file, &format!("{wrong}.checksum.status == \"Bad\""));
            assert_eq!(bad, 0, "{file}: {wrong}");
        }
        for right in ["tcp", "udp"] {
            let good = count(file, &format!("{right}.checksum.status == \"Good\""));
            assert!(good > 100, "{file}: {right}: {good}");
        }
    }
    lab.parapet.end();
}

#[test]
fn tcp_recovers_when_the_backend_is_killed_and_started_again_under_it() {
    let options = ["--restart-every", "2"];
    let Some(lab) = Lab::new(&["ping", "iperf3"], &options) else {
        return;
    };
    let to = V4[1];
    // Two or three restarts come into that time; whatever is lost is sent again.
    let tcp = lab.iperf(to, "--time 7");
    let received = tcp["end"]["sum_received"]["bytes"].as_u64();
    assert!(received > Some(0), "{tcp}");
    // Also after all of it.
    let ping = format!("ping -c 1 -W 1 {to}");
    let mut answers = (0..60).map(|_| lab.red.run(&ping));
    assert!(answers.any(|answer| answer.is_ok()));
    lab.parapet.end();
}
