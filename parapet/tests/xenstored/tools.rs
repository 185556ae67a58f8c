//! Xen's own tools against the daemon, and beside them `parapet xenstore`, which is to do, print
//! and answer the same. Needs Debian's packages xenstore-utils and, for CONTROL, xen-utils-4.17,
//! which `tests/system/run` unpacks; what is missing is said, and not checked.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;
use parapet_xenstore::client::blocking::Client;

use super::{Place, Running};

/// Whether Debian's package xenstore-utils is installed.
fn are_installed() -> bool {
    let there = Command::new("xenstore-exists").arg("-h").output().is_ok();
    if !there {
        eprintln!("NOT checked: there is no xenstore-exists (apt-get install xenstore-utils)");
    }
    there
}

/// A daemon, and the tools that are used on it.
struct Host {
    place: Place,
    running: Running,
    tool: fn(&str) -> Command,
}

fn theirs(name: &str) -> Command {
    Command::new(format!("xenstore-{name}"))
}

fn ours(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
    command.args(["xenstore", name]);
    command
}

impl Host {
    fn new(tool: fn(&str) -> Command) -> Self {
        let place = Place::new();
        let running = place.start(&mut place.daemon(&["--no-domains"]));
        Host {
            place,
            running,
            tool,
        }
    }

    fn command(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .env("XENSTORED_RUNDIR", self.place.path("xenstored"))
            .env_remove("XENSTORED_PATH")
            .env_remove("RUST_LOG")
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = self.command((self.tool)(name), arguments);
        command.output().unwrap()
    }

    /// The standard output of a tool that is to succeed.
    fn said(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.tool(name, arguments);
        assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What a tool says on standard error after its own name.
fn words<'a>(text: &'a [u8], name: &str) -> &'a str {
    let text = str::from_utf8(text).unwrap();
    let names = [format!("xenstore-{name}: "), "parapet: ".into()];
    let rest = names.iter().find_map(|name| text.strip_prefix(name));
    rest.unwrap_or(text).trim_end()
}

/// Runs the tool on one host, and ours on the other; what they print, and how they exit, is to be
/// the same.
fn compare(one: &Host, other: &Host, name: &str, arguments: &[&str]) {
    let (theirs, ours) = (one.tool(name, arguments), other.tool(name, arguments));
    let what = format!("{name} {arguments:?}:\n{theirs:?}\n{ours:?}");
    assert_eq!(
        String::from_utf8_lossy(&theirs.stdout),
        String::from_utf8_lossy(&ours.stdout),
        "{what}"
    );
    assert_eq!(theirs.status.code(), ours.status.code(), "{what}");
    let (theirs, ours) = (words(&theirs.stderr, name), words(&ours.stderr, name));
    if !theirs.starts_with("Usage: ") {
        assert!(ours.starts_with(theirs), "{what}");
    }
    assert_eq!(theirs.is_empty(), ours.is_empty(), "{what}");
}

#[test]
fn xens_tools_are_served() {
    if !are_installed() {
        return;
    }
    let host = Host::new(theirs);
    let mut watching = host.command(theirs("watch"), &["-n", "2", "/tools"]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
    let mut events = lines(&mut watching);
    assert_eq!(events(), "/tools");

    host.said("write", &["/tools/a", "1", "/tools/b", "two"]);
    assert_eq!(events(), "/tools/a");
    assert!(watching.wait().unwrap().success());
    assert_eq!(host.said("read", &["/tools/a", "/tools/b"]), "1\ntwo\n");
    assert_eq!(host.said("list", &["/tools"]), "a\nb\n");
    host.said("chmod", &["/tools/a", "n3", "r4"]);
    assert_eq!(
        host.said("ls", &["-fp", "/tools"]),
        "/tools/a = \"1\"   (n3,r4)\n/tools/b = \"two\"   (n0)\n"
    );
    host.said("exists", &["/tools/a"]);
    host.said("rm", &["/tools"]);
    assert_eq!(host.tool("exists", &["/tools"]).status.code(), Some(1));
    // More names than fit into a message.
    let pairs = (0..800).flat_map(|n| [format!("/many/child-{n}"), "".into()]);
    let pairs: Vec<String> = pairs.collect();
    host.said(
        "write",
        &pairs.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert_eq!(host.said("ls", &["/many"]).lines().count(), 800);
    host.running.stop(Signal::SIGTERM);
}

/// The lines that a child prints, one at a time.
fn lines(child: &mut Child) -> impl FnMut() -> String + use<> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    move || lines.next().unwrap().unwrap()
}

#[test]
fn our_tools_do_and_print_what_xens_do() {
    if !are_installed() {
        return;
    }
    let (one, other) = (Host::new(theirs), Host::new(ours));
    let long = "x".repeat(100);
    let deep: String = (0..90).map(|n| format!("/{}", n % 10)).collect();
    let wide = "w".repeat(75);
    let odd = r"tab\tnew\nret\rback\\nul\000bell\007del\x7fhigh\xff\x8";
    let cases: &[(&str, &[&str])] = &[
        // Values, as they are and escaped; several in a transaction; none.
        ("write", &["/a/b", "one", "/a/c", "two"]),
        ("write", &["/a/odd", odd]),
        ("write", &["-R", "/a/raw", odd]),
        ("write", &["--raw", "/a/raw2", r"\q\"]),
        ("write", &["/a/strange", r"\q\777\xg\18\"]),
        ("write", &["/a/empty", ""]),
        ("write", &["-s", "/a/long", &long]),
        ("write", &["/a/b/c", "below"]),
        ("write", &[&deep, "deep"]),
        ("write", &[&format!("/wide/{wide}/{wide}"), &long]),
        ("write", &["/a/x"]),
        ("write", &["/a/x", "1", "/a/y"]),
        ("write", &[]),
        ("write", &["/a//x", "1"]),
        ("write", &["/ok", "1", "/not ok", "2"]),
        ("exists", &["/ok"]),
        ("read", &["/a/b"]),
        ("read", &["/a/b", "/a/c"]),
        ("read", &["-p", "/a/b", "/a/odd", "/a/raw"]),
        ("read", &["--prefix", "/a/strange", "/a/raw2"]),
        ("read", &["-R", "/a/b", "/a/c"]),
        ("read", &["-Rp", "/a/b"]),
        ("read", &["/a/empty"]),
        ("read", &["-s", "/a/long"]),
        ("read", &["/none"]),
        ("read", &["/a/b", "/none", "/a/c"]),
        ("read", &["no//path"]),
        ("read", &[]),
        ("read", &["-t", "/a/b"]),
        ("list", &["/a"]),
        ("list", &["-p", "/a", "/a/b"]),
        ("list", &["--prefix", "/"]),
        ("list", &["/a/empty"]),
        ("list", &["/a", "/none"]),
        ("list", &[]),
        ("exists", &["/a/b"]),
        ("exists", &["/a/b", "/none"]),
        ("exists", &["/a/b", "/a/c"]),
        ("exists", &["no//path"]),
        ("exists", &[]),
        ("ls", &[]),
        ("ls", &["/a"]),
        ("ls", &["-f", "/a"]),
        ("ls", &["--flat"]),
        ("ls", &["-p", "/"]),
        ("ls", &["-fp"]),
        ("ls", &["/a", "/wide"]),
        ("ls", &["/a", "/none", "/wide"]),
        ("ls", &["-p", "/none"]),
        ("ls", &["-t"]),
        ("chmod", &["/a/b", "n3", "r4", "w5", "b6"]),
        ("ls", &["-p", "/a"]),
        ("chmod", &["-r", "/a", "r0", "b7"]),
        ("ls", &["-fp", "/a"]),
        ("chmod", &["-u", "/a/b/c", "b0"]),
        ("ls", &["-fp", "/"]),
        ("chmod", &["--recurse", "--upto", "/a/b", "n9x", "r"]),
        ("ls", &["-fp", "/a"]),
        ("chmod", &["/a/b", "x1"]),
        ("chmod", &["/a/b", "n70000"]),
        ("chmod", &["/a/b"]),
        ("chmod", &["/none", "n0"]),
        ("write", &["relative/path", ""]),
        ("chmod", &["-u", "relative/path", "n0"]),
        ("chmod", &["relative/path", "n8"]),
        ("chmod", &[]),
        ("rm", &["/a/b", "/a/c"]),
        ("rm", &["/none"]),
        ("rm", &["/a/raw", "/none"]),
        ("exists", &["/a/raw"]),
        ("write", &["/t/u/v/w", "1", "/t/x", "1"]),
        ("rm", &["-t", "/t/u/v/w"]),
        ("ls", &["-fp", "/t"]),
        ("rm", &["--tidy", "/t/x"]),
        ("exists", &["/t"]),
        ("rm", &[]),
        ("watch", &["-n", "0", "/a"]),
        ("watch", &["-n", "1", "/a"]),
        ("watch", &["--number", "2", "/none", "@releaseDomain"]),
        ("watch", &["-n", "1", "no//path"]),
        ("watch", &[]),
        ("ls", &["-fp"]),
    ];
    for (name, arguments) in cases {
        compare(&one, &other, name, arguments);
    }
    // Somebody else's view of what was done.
    let look = |host: &Host| {
        let output = host.command(theirs("ls"), &["-fp"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(look(&one), look(&other));
    for host in [one, other] {
        host.running.stop(Signal::SIGTERM);
    }
    without_a_xenstored();
}

fn without_a_xenstored() {
    let nowhere = Place::new();
    for (name, arguments) in [
        ("read", &["/a"][..]),
        ("ls", &[]),
        ("exists", &["/a"]),
        ("watch", &["/a"]),
    ] {
        for mut command in [theirs(name), ours(name)] {
            command.args(arguments).env_remove("XENSTORED_PATH");
            command.env("XENSTORED_RUNDIR", nowhere.path("xenstored"));
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{command:?}");
            assert!(output.stdout.is_empty() && !output.stderr.is_empty());
        }
    }
}

#[test]
fn on_a_terminal_our_lines_end_where_xens_do() {
    if !are_installed() || Command::new("script").arg("-V").output().is_err() {
        eprintln!("NOT checked: there is no script (apt-get install bsdutils)");
        return;
    }
    let host = Host::new(ours);
    let long = "x".repeat(150);
    host.said("write", &["/a/b", &long, "/a/c/d", "short", "/a/c/e", ""]);
    let shown = |columns: u16, program: &str, arguments: &str| {
        let mut command = Command::new("script");
        let line = format!("stty cols {columns}; {program} {arguments}");
        command.args(["-qc", &line, "/dev/null"]);
        host.command(command, &[]).output().unwrap().stdout
    };
    let ours = concat!(env!("CARGO_BIN_EXE_parapet"), " xenstore ls");
    for columns in [0, 2, 9, 40, 100] {
        for arguments in ["", "-f", "-p", "-fp"] {
            let theirs = shown(columns, "xenstore-ls", arguments);
            let ours = shown(columns, ours, arguments);
            let [theirs, ours] = [theirs, ours].map(|text| String::from_utf8(text).unwrap());
            assert!(theirs.contains("= \""), "{theirs}");
            assert_eq!(theirs, ours, "{columns} columns, {arguments}");
        }
    }
    host.running.stop(Signal::SIGTERM);
}

#[test]
fn our_watch_hears_what_xens_does() {
    if !are_installed() {
        return;
    }
    let host = Host::new(ours);
    let watching = [theirs("watch"), ours("watch")].map(|command| {
        let mut command = host.command(command, &["-n", "5", "/w", "/w/deep"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = lines(&mut child);
        assert_eq!([lines(), lines()], ["/w", "/w/deep"]);
        (child, lines)
    });
    host.said("write", &["/w/x", "1"]);
    host.said("write", &["/w/deep/er", "1"]);
    for (mut child, mut lines) in watching {
        let heard = [lines(), lines(), lines()];
        assert_eq!(heard, ["/w/x", "/w/deep/er", "/w/deep/er"]);
        assert!(child.wait().unwrap().success());
    }
    host.running.stop(Signal::SIGTERM);
}

/// Where Debian's xen-utils-4.17 is: unpacked by `tests/system/run`, or installed.
fn xen_utils() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let cache = variable("PARAPET_XEN_CACHE").or(caches.map(|caches| caches.join("parapet/xen")));
    let unpacked = cache.and_then(|cache| fs::read_dir(cache).ok());
    unpacked
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("root"))
        .chain([PathBuf::from("/")])
        .find(|root| root.join(CONTROL).exists())
}

const CONTROL: &str = "usr/lib/xen-4.17/bin/xenstore-control";

#[test]
fn our_control_does_what_xens_does() {
    let Some(root) = xen_utils() else {
        eprintln!("NOT checked: there is no xen-utils-4.17 (unpacked by tests/system/run)");
        return;
    };
    let host = Host::new(ours);
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let control = |arguments: &[&str]| {
        let mut command = Command::new(root.join(CONTROL));
        command.env("LD_LIBRARY_PATH", &libraries);
        let mut theirs = host.command(command, arguments);
        let mut ours = host.command(ours("control"), arguments);
        [theirs.output().unwrap(), ours.output().unwrap()]
    };
    for arguments in [
        &["check"][..],
        &["help"],
        &["print", "hello"],
        &["log", "on"],
        &["log", "off"],
        &["log", "sideways"],
        &["nonsense", "-x", "y"],
        &["live-update"],
        &["live-update", "-F", "-c"],
        &["live-update", "-t"],
        &["live-update", "-t", "1", "/nonexistent"],
        &[],
    ] {
        let [theirs, ours] = control(arguments);
        let what = format!("{arguments:?}:\n{theirs:?}\n{ours:?}");
        assert_eq!(theirs.status.code(), ours.status.code(), "{what}");
        assert_eq!(theirs.stdout, ours.stdout, "{what}");
        if arguments.is_empty() {
            continue; // how either is used
        }
        assert_eq!(theirs.stderr, ours.stderr, "{what}");
    }
    host.running.stop(Signal::SIGTERM);
}

#[test]
fn a_link_called_like_a_tool_of_xens_is_that_tool() {
    let host = Host::new(ours);
    host.said("write", &["/a", "by another name"]);
    let link = host.place.path("xenstore-read");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_parapet"), &link).unwrap();
    let output = host.command(Command::new(&link), &["-p", "/a"]).output();
    assert_eq!(output.unwrap().stdout, b"/a: by another name\n");
    host.running.stop(Signal::SIGTERM);
}

/// The lines of a command that prints JSON.
fn json(host: &Host, name: &str, arguments: &[&str]) -> Vec<serde_json::Value> {
    let text = host.said(name, &[&["--json"], arguments].concat());
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn scripts_get_json() {
    let host = Host::new(ours);
    host.said("write", &["/a/text", "grüße\n", "/a/bytes", r"\xff\000"]);
    host.said("chmod", &["/a/text", "n3", "r4"]);
    use serde_json::json;
    assert_eq!(
        json(&host, "read", &["/a/text", "/a/bytes"]),
        [
            json!({"path": "/a/text", "value": "grüße\n"}),
            json!({"path": "/a/bytes", "hex": "ff00"}),
        ]
    );
    assert_eq!(
        json(&host, "list", &["/a"]),
        [json!({"path": "/a", "children": ["text", "bytes"]})]
    );
    assert_eq!(
        json(&host, "ls", &["/a"])[0],
        json!({"path": "/a/text", "value": "grüße\n", "permissions": ["n3", "r4"]})
    );
    let absent = host.tool("exists", &["--json", "/a", "/b"]);
    assert_eq!(absent.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(absent.stdout).unwrap(),
        "{\"path\":\"/a\",\"exists\":true}\n{\"path\":\"/b\",\"exists\":false}\n"
    );
    assert_eq!(
        json(&host, "watch", &["-n", "1", "/a"]),
        [json!({"path": "/a", "watch": "/a"})]
    );
    let tree = json(&host, "tree", &["/a"]);
    assert_eq!(
        (&tree[0]["nodes"], &tree[0]["depth"]),
        (&json!(3), &json!(0))
    );
    assert_eq!(tree[1]["permissions"], json!(["n3", "r4"]));
    assert_eq!(tree[2]["hex"], "ff00");
    host.running.stop(Signal::SIGTERM);
}

#[test]
fn a_tree_is_drawn_with_values_owners_and_sizes() {
    let host = Host::new(ours);
    host.said("write", &["/a/b/c", "1", "/a/b/d", "", "/a/e", "two"]);
    host.said("chmod", &["-r", "/a/b", "n5", "r0"]);
    assert_eq!(
        host.said("tree", &["/a"]),
        "/a  (n0)\n\
         ├── b  (n5,r0)\n\
         │   ├── c = \"1\"\n\
         │   └── d\n\
         └── e = \"two\"\n\
         \n\
         5 nodes, 10 bytes\n"
    );
    assert_eq!(
        host.said("tree", &["--depth", "1", "--permissions", "/a"]),
        "/a  (n0)\n\
         ├── b  (n5,r0)  3 nodes, 4 bytes\n\
         └── e = \"two\"  (n0)\n\
         \n\
         5 nodes, 10 bytes\n"
    );
    // Colours are for terminals, and for who insists.
    let mut coloured = host.command(ours("tree"), &["/a"]);
    let text = coloured.env("CLICOLOR_FORCE", "1").output().unwrap().stdout;
    assert!(text.contains(&0x1b));
    let text = coloured.env("NO_COLOR", "1").output().unwrap().stdout;
    assert!(!text.contains(&0x1b));
    assert_eq!(host.tool("tree", &["/none"]).status.code(), Some(1));
    host.running.stop(Signal::SIGTERM);
}

#[test]
fn a_tree_deeper_than_any_stack_is_shown() {
    let host = Host::new(ours);
    let deep = "/1".repeat(1500);
    host.said("write", &[&deep, "bottom"]);
    assert_eq!(host.said("ls", &["/1"]).lines().count(), 1499);
    assert!(host.said("tree", &["/1"]).contains("= \"bottom\""));
    host.said("chmod", &["-r", "/1", "n5"]);
    assert!(host.said("ls", &["-fp", "/1"]).ends_with("(n5)\n"));
    host.running.stop(Signal::SIGTERM);
}

#[test]
fn every_command_has_help_with_examples() {
    for name in [
        "read", "write", "list", "ls", "tree", "exists", "rm", "chmod", "watch", "control",
    ] {
        let output = ours(name).arg("--help").output().unwrap();
        assert!(output.status.success(), "{name}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains(&format!("  parapet xenstore {name} ")),
            "{text}"
        );
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    for program in [
        env!("CARGO_BIN_EXE_parapet"),
        env!("CARGO_BIN_EXE_parapet-xenstored"),
        env!("CARGO_BIN_EXE_parapet-blkback"),
    ] {
        let mut command = Command::new(program);
        let status = command.arg("man").arg(folder.path()).status().unwrap();
        assert!(status.success(), "{program}");
    }
    for page in [
        "parapet",
        "parapet-run",
        "parapet-xenstore-ls",
        "parapet-xenstored",
        "parapet-xenstored-status",
        "parapet-blkback",
    ] {
        let page = folder.path().join(page).with_extension("1");
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.contains("Examples:"), "{}", page.display());
    }
}

#[test]
fn who_has_seen_enough_is_not_told_of_a_broken_pipe() {
    let host = Host::new(ours);
    // More than a pipe holds.
    let mut client = Client::connect(host.place.socket()).unwrap();
    for n in 0..2000 {
        client.write(&format!("/many/{n}"), [b'x'; 60]).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_parapet"));
    let mut command = Command::new("sh");
    command
        .args(["-c", "\"$0\" xenstore ls -f | head -n 1"])
        .arg(program);
    let output = host.command(command, &[]).output().unwrap();
    assert_eq!(output.stderr, b"");
    assert_eq!(
        output.stdout.iter().filter(|byte| **byte == b'\n').count(),
        1
    );
    host.running.stop(Signal::SIGTERM);
}
