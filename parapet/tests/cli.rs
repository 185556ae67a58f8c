//! The `parapet` command, as it is used.

#![allow(clippy::unwrap_used)] // clippy knows test functions, and not what they call

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with images in it, in which commands are run.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image of random content.
    fn random(&self, name: &str, bytes: u64) -> Vec<u8> {
        let mut content = Vec::new();
        let random = File::open("/dev/urandom").unwrap();
        random.take(bytes).read_to_end(&mut content).unwrap();
        fs::write(self.path(name), &content).unwrap();
        content
    }

    /// An image of zeros that takes no room.
    fn sparse(&self, name: &str, bytes: u64) {
        File::create(self.path(name))
            .unwrap()
            .set_len(bytes)
            .unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_remove("RUST_LOG");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must succeed, and gives its standard output.
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with nothing but one line on standard error, and gives that line.
    fn fail(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert_eq!(output.stdout, b"", "{args:?}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
        assert!(error.starts_with("parapet: "), "{error}");
        error
    }
}

fn sha256sum(folder: &Folder, names: &[&str]) -> String {
    let output = Command::new("sha256sum")
        .args(names)
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_sum_is_printed_exactly_as_sha256sum_does() {
    let folder = Folder::new();
    folder.random("a.img", 24 << 20);
    folder.random("odd size.img", (5 << 20) + 3 * 512);
    folder.random("one\\sector", 512);
    folder.random("null:1G", 4096);
    let names = ["a.img", "odd size.img", "one\\sector", "./a.img", "null:1G"];
    let sum = folder.succeed(&[&["blk", "sum"], &names[..]].concat());
    assert_eq!(sum, sha256sum(&folder, &names));

    let json = folder.succeed(&["blk", "sum", "--json", "a.img"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["bytes"], 24 << 20);
    assert!(sum.starts_with(json["sha256"].as_str().unwrap()));
}

#[test]
fn an_image_that_cannot_be_summed_is_named_and_the_others_are_summed() {
    let folder = Folder::new();
    folder.random("good.img", 4096);
    let output = folder.run(&["blk", "sum", "missing.img", "good.img"]);
    assert_eq!(output.status.code(), Some(1));
    let sums = String::from_utf8(output.stdout).unwrap();
    assert_eq!(sums, sha256sum(&folder, &["good.img"]));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("missing.img does not exist"), "{error}");
}

#[test]
fn an_image_that_is_no_disk_is_refused_with_the_reason() {
    let folder = Folder::new();
    folder.sparse("odd.img", 1000);
    folder.sparse("empty.img", 0);
    fs::create_dir(folder.path("folder.img")).unwrap();
    for (name, reason) in [
        ("missing.img", "does not exist"),
        ("odd.img", "not a multiple of 512"),
        ("empty.img", "is empty"),
        ("folder.img", "directory"),
        ("/dev/tty", "/dev/tty"),
    ] {
        for args in [
            &["blk", "sum", name][..],
            &["blk", "copy", name, "copy.img"],
        ] {
            let error = folder.fail(args);
            assert!(error.contains(name) && error.contains(reason), "{error}");
        }
        folder.write(
            "host.toml",
            &format!("name = 'a'\nkernel = 'sum'\ndisk = ['vdev=xvda, access=ro, target={name}']"),
        );
        let error = folder.fail(&["run", "host.toml"]);
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
    assert!(!folder.path("copy.img").exists());
}

#[test]
fn an_image_that_may_not_be_read_is_refused() {
    let folder = Folder::new();
    folder.sparse("secret.img", 4096);
    fs::set_permissions(folder.path("secret.img"), fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(folder.path("secret.img")).is_ok() {
        eprintln!("skipped: nothing is forbidden to root");
        return;
    }
    let error = folder.fail(&["blk", "sum", "secret.img"]);
    assert!(error.contains("secret.img may not be read"), "{error}");
}

#[test]
fn a_copy_is_identical() {
    let folder = Folder::new();
    let content = folder.random("a.img", (20 << 20) + 512);
    let report = folder.succeed(&["blk", "copy", "a.img", "b.img"]);
    assert!(
        report.starts_with("copied 21.0 MB from a.img to b.img"),
        "{report}"
    );
    assert!(fs::read(folder.path("b.img")).unwrap() == content);
    assert_eq!(folder.names(), ["a.img", "b.img"], "nothing else is left");

    let json = folder.succeed(&["blk", "copy", "--json", "a.img", "c.img"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["bytes"], content.len());
}

#[test]
fn a_target_that_exists_is_replaced_only_by_force() {
    let folder = Folder::new();
    let content = folder.random("a.img", 1 << 20);
    let old = folder.random("b.img", 2 << 20);
    fs::set_permissions(folder.path("b.img"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("b.img", folder.path("link.img")).unwrap();

    let error = folder.fail(&["blk", "copy", "a.img", "b.img"]);
    assert!(error.contains("b.img exists: give --force"), "{error}");
    assert!(fs::read(folder.path("b.img")).unwrap() == old);

    folder.succeed(&["blk", "copy", "--force", "a.img", "link.img"]);
    assert!(fs::read(folder.path("b.img")).unwrap() == content);
    let mode = fs::metadata(folder.path("b.img"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(
        fs::symlink_metadata(folder.path("link.img"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn a_target_that_cannot_be_is_refused() {
    let folder = Folder::new();
    let content = folder.random("a.img", 4096);
    fs::hard_link(folder.path("a.img"), folder.path("same.img")).unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path("dangling.img")).unwrap();
    for (target, reason) in [
        ("a.img", "the same file"),
        ("same.img", "the same file"),
        ("folder", "is a directory"),
        ("dangling.img", "a link to nothing"),
        ("missing/b.img", "missing/b.img"),
        ("/dev/null", "neither a file nor a block device"),
    ] {
        let error = folder.fail(&["blk", "copy", "--force", "a.img", target]);
        assert!(error.contains(reason), "{error}");
    }
    assert!(fs::read(folder.path("a.img")).unwrap() == content);
}

/// Starts a copy that takes a while, and comes back when it is in the middle.
fn start_copy(folder: &Folder, args: &[&str]) -> Child {
    let child = folder
        .command(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !folder.names().iter().any(|name| name.ends_with(".partial")) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never began");
        std::thread::yield_now();
    }
    child
}

#[test]
fn a_copy_that_is_killed_leaves_nothing_that_looks_complete() {
    let folder = Folder::new();
    folder.sparse("a.img", 1 << 30);
    let old = folder.random("old.img", 4096);
    for target in ["new.img", "old.img"] {
        let mut child = start_copy(&folder, &["blk", "copy", "-f", "a.img", target]);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "it was over before");
        assert_eq!(output.stdout, b"");
        for name in folder.names() {
            if name.ends_with(".partial") {
                fs::remove_file(folder.path(&name)).unwrap();
            }
        }
    }
    assert_eq!(folder.names(), ["a.img", "old.img"]);
    assert!(fs::read(folder.path("old.img")).unwrap() == old);
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let folder = Folder::new();
    folder.sparse("a.img", 1 << 30);
    let child = start_copy(&folder, &["blk", "copy", "a.img", "b.img"]);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(2));
    assert_eq!(output.stdout, b"");
    assert_eq!(folder.names(), ["a.img"]);
}

#[test]
fn a_guest_fills_and_verifies_the_disk_in_its_file() {
    let folder = Folder::new();
    folder.sparse("x.img", 8 << 20);
    folder.write(
        "host.toml",
        "name = 'verifier'\nkernel = 'verify'\ncmdline = 'seed=7'\ndisk = ['x.img,raw,xvda,rw']",
    );
    let text = folder.succeed(&["run", "host.toml"]);
    assert!(
        text.starts_with("verifier: verified 8.4 MB on 1 disk"),
        "{text}"
    );
    for row in [
        "verifier  xvda  read ",
        "verifier  xvda  write ",
        "verifier  xvda  flush ",
    ] {
        assert!(text.contains(row), "{text}");
    }
    let first = fs::read(folder.path("x.img")).unwrap();
    assert!(first.chunks(512).all(|sector| sector != [0; 512]));

    let json = folder.succeed(&["run", "--json", "host.toml"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["guests"][0]["outcome"]["bytes"], 8 << 20);
    assert_eq!(json["disks"][0]["read"]["bytes"], 8 << 20);
    assert_eq!(json["disks"][0]["write"]["bytes"], 8 << 20);
    assert_eq!(json["disks"][0]["flush"]["operations"], 1);
    assert!(
        json["disks"][0]["read"]["latency_ns"]["p50"]
            .as_u64()
            .unwrap()
            > 0
    );
    let again = fs::read(folder.path("x.img")).unwrap();
    assert!(first == again, "the same seed makes the same content");
}

#[test]
fn without_a_file_it_demonstrates_itself_and_cleans_up() {
    let folder = Folder::new();
    let output = folder
        .command(&["run"])
        .env("TMPDIR", folder.0.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        output.stderr, b"",
        "no progress bar where there is no terminal"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("demonstration: verified 268.4 MB"), "{text}");
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_hundred_guests_run_at_once() {
    let folder = Folder::new();
    let mut config = String::new();
    for guest in 0..100 {
        folder.sparse(&format!("{guest}.img"), 1 << 20);
        config.push_str(&format!(
            "[[guest]]\nname = 'g{guest}'\nkernel = 'verify'\ncmdline = 'seed={guest}'\n\
             disk = ['{guest}.img,raw,xvda,rw']\n"
        ));
    }
    folder.write("host.toml", &config);
    let json = folder.succeed(&["run", "--json", "host.toml"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let guests = json["guests"].as_array().unwrap();
    assert_eq!(guests.len(), 100);
    assert_eq!(json["disks"].as_array().unwrap().len(), 100);
    let mut contents = std::collections::HashSet::new();
    for (guest, report) in guests.iter().enumerate() {
        assert_eq!(report["outcome"]["bytes"], 1 << 20, "{report}");
        contents.insert(fs::read(folder.path(&format!("{guest}.img"))).unwrap());
    }
    assert_eq!(contents.len(), 100, "each has its own disk");
}

#[test]
fn a_bad_configuration_is_refused_with_the_line() {
    let folder = Folder::new();
    folder.sparse("x.img", 4096);
    for (text, reason) in [
        (
            "name = 'a'\nmemroy = 1",
            "host.toml:2: unknown key `memroy`, did you mean `memory`?",
        ),
        (
            "name = 'a'\ndisk = ['x.img,,vda']",
            "host.toml:2: guest a: disk \"x.img,,vda\"",
        ),
        (
            "name = 'a'\ndisk = ['x.img,,xvda', 'x.img,,xvda']",
            "two disks with the vdev xvda",
        ),
        (
            "name = 'a'\ndisk = ['x.img,,xvda', 'x.img,,xvdb']",
            "at least one of them writes",
        ),
        ("name = 'a'\ndisk = ['vdev=xvda']", "it has no target"),
        ("name = 'a'\n", "guest a: it has no kernel"),
        ("name = 'a'\nkernel = 'verfy'", "did you mean `verify`?"),
        (
            "name = 'a'\nkernel = 'verify'\ncmdline = 'sed=1'",
            "did you mean `seed`?",
        ),
        ("name = 'a'\nkernel = 'verify'", "it has no disk"),
        (
            "name = 'a'\nkernel = 'idle'\nvcpus = 99",
            "vcpus must be 1 to 32",
        ),
        (
            "pcpus = 0\n[[guest]]\nname = 'a'\nkernel = 'idle'",
            "1 to 64 physical CPUs",
        ),
    ] {
        folder.write("host.toml", text);
        let error = folder.fail(&["run", "host.toml"]);
        assert!(error.contains(reason), "{text}\n{error}");
    }
    let error = folder.fail(&["run", "missing.toml"]);
    assert!(error.contains("missing.toml: cannot read"), "{error}");
}

#[test]
fn no_guest_runs_before_every_image_is_open() {
    let folder = Folder::new();
    let content = folder.random("x.img", 1 << 20);
    folder.write(
        "host.toml",
        "[[guest]]\nname = 'a'\nkernel = 'verify'\ndisk = ['x.img,,xvda']\n\
         [[guest]]\nname = 'b'\nkernel = 'verify'\ndisk = ['missing.img,,xvda']\n",
    );
    let error = folder.fail(&["run", "host.toml"]);
    assert!(error.contains("guest b: disk xvda: "), "{error}");
    assert!(fs::read(folder.path("x.img")).unwrap() == content);
}

#[test]
fn what_a_guest_cannot_do_to_its_disk_is_an_error_of_that_guest() {
    let folder = Folder::new();
    folder.sparse("x.img", 1 << 20);
    folder.sparse("small.img", 4096);
    for (guest, reason) in [
        (
            "kernel = 'verify'\ndisk = ['x.img,,xvda,ro']",
            "guest a: disk xvda is read-only",
        ),
        (
            "kernel = 'copy'\ndisk = ['x.img,,xvda,ro', 'small.img,,xvdb,ro']",
            "guest a: disk xvdb is read-only",
        ),
        (
            "kernel = 'copy'\ndisk = ['x.img,,xvda,ro', 'small.img,,xvdb']",
            "disk xvda has 1048576 bytes, and disk xvdb only 4096",
        ),
        (
            "kernel = 'sum'\ncmdline = 'disk=xvdb'\ndisk = ['x.img,,xvda,ro']",
            "no disk xvdb",
        ),
    ] {
        folder.write("host.toml", &format!("name = 'a'\n{guest}"));
        let output = folder.run(&["run", "host.toml"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(reason) && error.lines().count() == 1,
            "{error}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            !text.contains("verified") && !text.contains("copied"),
            "{text}"
        );
    }
}

#[test]
fn a_full_file_system_is_an_error_and_not_a_success() {
    let folder = Folder::new();
    folder.write(
        "host.toml",
        "name = 'a'\nkernel = 'verify'\ndisk = ['small/x.img,,xvda']",
    );
    folder.random("a.img", 4 << 20);
    fs::create_dir(folder.path("small")).unwrap();
    // A file system of 2 MiB of our own, in a namespace of our own.
    let script = format!(
        "mount -t tmpfs -o size=2m tmpfs small || exit 99; truncate -s 8M small/x.img; \
         {parapet} run host.toml; echo status $?; {parapet} blk copy a.img small/b.img; \
         echo status $?; ls small",
        parapet = env!("CARGO_BIN_EXE_parapet")
    );
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .current_dir(folder.0.path())
        .output();
    let output = match output {
        Ok(output) if !matches!(output.status.code(), Some(1 | 99)) => output,
        other => return eprintln!("skipped: no file system can be mounted here: {other:?}"),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.ends_with("status 1\nstatus 1\nx.img\n"),
        "{text}{error}"
    );
    assert!(
        !text.contains("verified") && !text.contains("copied"),
        "{text}"
    );
    assert_eq!(error.lines().count(), 2, "one of each command: {error}");
    assert!(error.contains("x.img (No space left on device"), "{error}");
    assert!(
        error.contains("parapet: guest a: disk xvda: writing sectors"),
        "{error}"
    );
    assert!(error.contains("small/x.img"), "{error}");
    assert!(
        error.contains("small/b.img: cannot have 4194304 bytes"),
        "{error}"
    );
}

#[test]
fn every_command_has_help_with_examples() {
    let folder = Folder::new();
    for command in [
        &["--help"][..],
        &["run", "--help"],
        &["blk", "sum", "--help"],
        &["blk", "copy", "--help"],
        &["completions", "--help"],
    ] {
        let help = folder.succeed(command);
        assert!(help.contains("Examples:\n"), "{command:?}: {help}");
    }
    assert_eq!(folder.run(&["blk", "sum"]).status.code(), Some(2));
    assert!(folder.succeed(&["completions", "bash"]).contains("parapet"));
}

#[test]
fn the_example_file_runs_as_it_says() {
    let folder = Folder::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/host.toml");
    fs::copy(example, folder.path("host.toml")).unwrap();
    folder.sparse("disk.img", 64 << 20);
    let text = folder.succeed(&["run", "host.toml"]);
    assert!(
        text.contains("verifier: verified 67.1 MB on 1 disk"),
        "{text}"
    );
    assert!(
        text.contains("copier: copied and flushed 33.6 MB"),
        "{text}"
    );
}
