//! Xen's own client library, libxenstore, against the daemon: by a small program in C, as a
//! toolstack is one. Needs `cc` and Debian's package libxenstore4; what is missing is said, and
//! nothing checked.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::Place;

/// The library, as a program that was linked with it finds it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libxenstore.so.4";

fn program(place: &Place) -> Option<PathBuf> {
    if !Path::new(LIBRARY).exists() || Command::new("cc").arg("--version").output().is_err() {
        eprintln!("NOT checked: needs cc and libxenstore4 (apt-get install gcc xenstore-utils)");
        return None;
    }
    let program = place.path("library");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xenstored/library.c");
    let made = Command::new("cc")
        .args(["-Wall", "-Werror", "-O1", "-o"])
        .args([&program, &source, Path::new(LIBRARY)])
        .status()
        .unwrap();
    assert!(made.success(), "cc cannot compile {}", source.display());
    Some(program)
}

#[test]
fn xens_library_is_served() {
    let place = Place::new();
    let Some(program) = program(&place) else {
        return;
    };
    let running = place.start(&mut place.daemon(&["--no-domains"]));
    let output = place.command(program.to_str().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Not one check was passed over.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all checked\n");
    running.stop(Signal::SIGTERM);
}
