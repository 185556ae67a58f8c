//! The verbs of `parapet blk` that make and change images, beside QEMU's tools.

#![allow(clippy::unwrap_used)] // clippy knows test functions, and not what they call

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn try_to(&self, args: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_parapet"))
            .args(args.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    /// What a command prints that succeeds.
    #[track_caller]
    fn parapet(&self, args: &str) -> String {
        let done = self.try_to(args);
        let errors = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success(), "{args}: {errors}");
        assert_eq!(errors, "", "{args}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// The line in which a command that fails says why.
    #[track_caller]
    fn refused(&self, args: &str) -> String {
        let done = self.try_to(args);
        assert_eq!(done.status.code(), Some(1), "{args}");
        let errors = String::from_utf8(done.stderr).unwrap();
        assert!(errors.starts_with("parapet: "), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        errors
    }

    #[track_caller]
    fn qemu(&self, program: &str, args: &str) -> String {
        let done = Command::new(program)
            .args(args.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{program} {args}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Through QEMU.
    #[track_caller]
    fn write(&self, image: &str, at: &str, len: &str, byte: u8) {
        let write = format!("write -P {byte} {at} {len}");
        let done = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &write, image])
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    fn info(&self, image: &str) -> Value {
        let text = self.parapet(&format!("blk info --json {image}"));
        serde_json::from_str(&text).unwrap()
    }
}

#[test]
fn what_we_make_is_what_qemu_understands() {
    let folder = Folder::new();
    assert_eq!(
        folder.parapet("blk create disk.img 3M"),
        "made disk.img of 3145728 bytes\n"
    );
    assert_eq!(folder.path("disk.img").metadata().unwrap().len(), 3 << 20);
    folder.parapet("blk create qcow2:disk.qcow2 1G");
    folder.qemu("qemu-img", "check disk.qcow2");
    let found = folder.info("qcow2:disk.qcow2");
    assert_eq!(found["bytes"], 1 << 30);
    assert_eq!(found["format"], "qcow2");
    assert_eq!(found["cluster_bytes"], 65536);
    assert!(found["used_bytes"].as_u64().unwrap() < 1 << 20);
    let theirs = folder.qemu("qemu-img", "info --output=json disk.qcow2");
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    assert_eq!(theirs["virtual-size"], 1 << 30);
    let text = folder.parapet("blk info disk.img qcow2:disk.qcow2");
    assert!(text.contains("1.00 GiB (1073741824 bytes)"), "{text}");
}

#[test]
fn an_overlay_names_its_base_so_that_qemu_and_guests_find_it() {
    let folder = Folder::new();
    fs::create_dir(folder.path("bases")).unwrap();
    fs::create_dir(folder.path("guests")).unwrap();
    fs::write(folder.path("bases/golden.img"), vec![7; 1 << 20]).unwrap();
    // Below its folder: both can be moved.
    folder.parapet("blk create --base bases/golden.img overlay:a.qcow2");
    assert_eq!(
        folder.info("overlay:a.qcow2")["backing"]["name"],
        "bases/golden.img"
    );
    assert_eq!(folder.info("overlay:a.qcow2")["bytes"], 1 << 20);
    folder.qemu(
        "qemu-img",
        "compare -f raw -F qcow2 bases/golden.img a.qcow2",
    );
    // Elsewhere: only if that is asked for.
    let refused = folder.refused("blk create --base bases/golden.img overlay:guests/b.qcow2");
    assert!(refused.contains("overlay=FOLDER:IMAGE"), "{refused}");
    assert!(
        !folder.path("guests/b.qcow2").exists(),
        "nothing is left of it"
    );
    folder.parapet("blk create --base bases/golden.img overlay=bases:guests/b.qcow2 2M");
    folder.qemu("qemu-img", "check guests/b.qcow2");
    assert_eq!(folder.info("qcow2:guests/b.qcow2")["bytes"], 2 << 20);
    // On each other.
    folder.parapet("blk create --base overlay:a.qcow2 overlay:c.qcow2");
    folder.qemu(
        "qemu-img",
        "compare -f raw -F qcow2 bases/golden.img c.qcow2",
    );
    // A guest.
    let host = r#"
        name = "g"
        kernel = "verify"
        disk = ["vdev=xvda, target=overlay:c.qcow2"]
    "#;
    fs::write(folder.path("host.toml"), host).unwrap();
    folder.parapet("run host.toml");
    folder.qemu("qemu-img", "check c.qcow2");
    assert!(fs::read(folder.path("bases/golden.img")).unwrap() == vec![7; 1 << 20]);
}

#[test]
fn nothing_is_overwritten_and_what_makes_no_sense_is_refused() {
    let folder = Folder::new();
    fs::write(folder.path("there"), "precious").unwrap();
    folder.refused("blk create there 1M");
    folder.refused("blk create qcow2:there 1M");
    assert_eq!(fs::read(folder.path("there")).unwrap(), b"precious");
    folder.refused("blk create --base there raw.img");
    folder.refused("blk create memory:1M 1M");
    folder.refused("blk create --base missing overlay:a 1M");
    folder.refused("blk info missing");
    folder.refused("blk info qcow2:there");
    folder.refused("blk snapshot list there");
    folder.refused("blk commit there");
    assert_eq!(folder.try_to("blk create a 1000").status.code(), Some(2));
    assert_eq!(folder.try_to("blk create a").status.code(), Some(2));
    assert_eq!(folder.try_to("blk resize a 1X").status.code(), Some(2));
}

#[test]
fn an_image_grows_and_shrinks_only_if_that_is_meant() {
    let folder = Folder::new();
    for image in ["disk.img", "qcow2:disk.qcow2"] {
        folder.parapet(&format!("blk create {image} 2M"));
        folder.parapet(&format!("blk resize {image} +1M"));
        assert_eq!(folder.info(image)["bytes"], 3 << 20);
        let refused = folder.refused(&format!("blk resize {image} 1M"));
        assert!(refused.contains("--shrink"), "{refused}");
        folder.parapet(&format!("blk resize --shrink {image} 1M"));
        assert_eq!(folder.info(image)["bytes"], 1 << 20);
    }
    folder.qemu("qemu-img", "check disk.qcow2");
}

#[test]
fn a_snapshot_brings_back_what_was() {
    let folder = Folder::new();
    folder.parapet("blk create qcow2:a.qcow2 4M");
    folder.write("a.qcow2", "0", "2M", 1);
    folder.parapet("blk snapshot create qcow2:a.qcow2 first");
    folder.write("a.qcow2", "1M", "2M", 2);
    folder.parapet("blk snapshot create qcow2:a.qcow2 second");
    folder.refused("blk snapshot create qcow2:a.qcow2 second");
    let list = folder.parapet("blk snapshot list --json qcow2:a.qcow2");
    let names: Vec<Value> = list
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(folder.info("qcow2:a.qcow2")["snapshots"][1]["id"], "2");
    folder.parapet("blk snapshot apply qcow2:a.qcow2 first");
    folder.qemu("qemu-img", "check a.qcow2");
    let mut expected = vec![1; 2 << 20];
    expected.resize(4 << 20, 0);
    fs::write(folder.path("expected"), expected).unwrap();
    folder.qemu("qemu-img", "compare -f raw -F qcow2 expected a.qcow2");
    for name in ["first", "2"] {
        folder.parapet(&format!("blk snapshot delete qcow2:a.qcow2 {name}"));
        folder.qemu("qemu-img", "check a.qcow2");
    }
    folder.refused("blk snapshot delete qcow2:a.qcow2 first");
    folder.qemu("qemu-img", "compare -f raw -F qcow2 expected a.qcow2");
}

#[test]
fn an_overlay_goes_into_its_base() {
    let folder = Folder::new();
    fs::write(folder.path("base"), vec![1; 1 << 20]).unwrap();
    folder.parapet("blk create --base base overlay:top 1M");
    folder.write("top", "256K", "64K", 9);
    folder.refused("blk commit qcow2:top");
    assert_eq!(
        folder.parapet("blk commit overlay:top"),
        "put overlay:top into base\n"
    );
    let mut expected = vec![1; 1 << 20];
    expected[256 << 10..320 << 10].fill(9);
    assert!(fs::read(folder.path("base")).unwrap() == expected);
    folder.qemu("qemu-img", "check top");
    folder.qemu("qemu-img", "compare -f raw -F qcow2 base top");
}

#[test]
fn every_verb_has_examples_in_its_help() {
    let folder = Folder::new();
    for verb in ["create", "info", "resize", "snapshot", "commit"] {
        let help = folder.parapet(&format!("blk {verb} --help"));
        assert!(help.contains("Examples:\n  parapet blk"), "{help}");
    }
}
