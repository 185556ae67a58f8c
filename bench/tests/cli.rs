//! The command as a user meets it: what it prints, what it refuses, and that it goes on without
//! the peers.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parapet-bench"));
    command.arg("blk").args(arguments);
    command
}

fn run(command: &mut Command) -> (Output, String, String) {
    let output = command.output().expect("the command starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output, stdout, stderr)
}

#[test]
fn a_missing_peer_is_named_with_its_package_and_the_run_goes_on() {
    let arguments = ["--quick", "--rounds", "1", "--only", "null/*/qd1/same-core"];
    let (output, stdout, stderr) = run(bench(&arguments).env("PATH", "/nonexistent"));
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("qemu-storage-daemon, fio"), "{stdout}");
    assert!(
        stdout.contains("apt-get install qemu-system-common fio"),
        "{stdout}"
    );
    assert!(stdout.contains("eventfd round trip"), "{stdout}");
    assert_eq!(stderr, "", "progress is only for a terminal");
}

#[test]
fn json_on_standard_output_is_nothing_but_json() {
    let arguments = [
        "--quick",
        "--rounds",
        "3",
        "--only",
        "null/*/qd1/same-core",
        "--json",
        "-",
    ];
    let (output, stdout, stderr) = run(&mut bench(&arguments));
    assert!(output.status.success(), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["machine"]["kernel"].is_string());
    let row = &report["rows"][0];
    assert_eq!(row["name"], "null/randread-4k/qd1/same-core");
    assert_eq!(row["placement"], "same-core");
    let results = row["results"].as_array().unwrap();
    let bare = results
        .iter()
        .find(|r| r["contender"] == "eventfd round trip")
        .unwrap();
    assert_eq!(bare["samples"].as_array().unwrap().len(), 3);
    let iops = &bare["summary"]["iops"];
    let (min, median, max) = (
        iops["min"].as_f64(),
        iops["median"].as_f64(),
        iops["max"].as_f64(),
    );
    assert!(Some(0.0) < min && min <= median && median <= max, "{iops}");
    // A message there and one back.
    assert_eq!(bare["summary"]["notifications_per_io"]["median"], 2.0);
}

#[test]
fn a_pattern_that_matches_no_row_is_refused_with_the_names_there_are() {
    let (output, _, stderr) = run(&mut bench(&["--only", "nul/*"]));
    assert!(!output.status.success());
    assert!(stderr.contains("nul/*"), "{stderr}");
    assert!(stderr.contains("file/read-128k/qd8/same-core"), "{stderr}");
}

#[test]
fn a_folder_that_is_not_there_is_refused_before_anything_is_measured() {
    let (output, stdout, stderr) = run(&mut bench(&["--dir", "/nonexistent"]));
    assert!(!output.status.success());
    assert!(stdout.is_empty());
    assert!(stderr.contains("/nonexistent: not a folder"), "{stderr}");
}

#[test]
fn a_time_of_zero_is_refused() {
    let (output, _, stderr) = run(&mut bench(&["--seconds", "0"]));
    assert!(!output.status.success());
    assert!(stderr.contains("between 0.01 and 3600"), "{stderr}");
}
