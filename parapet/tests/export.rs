//! `parapet blk export`, driven by programs that nobody here wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

const MEBIBYTE: usize = 1 << 20;

/// An export at work, in a folder of its own.
struct Export {
    process: Child,
    folder: TempDir,
    uri: String,
}

impl Export {
    fn start(image: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Export::start_in(folder, image, options)
    }

    fn start_in(folder: TempDir, image: &str, options: &[&str]) -> Self {
        let socket = folder.path().join("socket");
        let mut process = Command::new(env!("CARGO_BIN_EXE_parapet"))
            .args(["blk", "export", image, "--nbd"])
            .arg(&socket)
            .args(options)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut uri = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut uri).unwrap();
        let uri = uri.trim().to_owned();
        assert!(uri.starts_with("nbd+unix:///"), "it says {uri:?}");
        Export {
            process,
            folder,
            uri,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path("socket")).unwrap()
    }

    /// Ends it as an operator does, and gives its folder.
    fn end(mut self) -> TempDir {
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.process.wait().unwrap().success());
        assert!(!self.path("socket").exists(), "the socket is left");
        let nowhere = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.folder, nowhere)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program; none if the machine does not have it.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no {program} (Debian: qemu-utils, fio)");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

#[track_caller]
fn succeeds(program: &str, args: &[&str]) -> Option<String> {
    let output = run(program, args)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{complaint}"
    );
    Some(text)
}

/// A file of that many bytes that no compression and no shift leaves as it is.
fn noise(path: &Path, bytes: usize) {
    let mut word = 0x2545_f491_4f6c_dd1du64;
    let words = (0..bytes / 8).flat_map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    });
    fs::write(path, words.collect::<Vec<u8>>()).unwrap();
}

fn sparse(folder: &TempDir, name: &str, bytes: usize) {
    let file = File::create(folder.path().join(name)).unwrap();
    file.set_len(bytes as u64).unwrap();
}

#[test]
fn qemu_img_copies_an_image_in_and_finds_the_same_there() {
    let folder = tempfile::tempdir().unwrap();
    sparse(&folder, "disk.img", 24 * MEBIBYTE);
    let source = folder.path().join("source.img");
    noise(&source, 24 * MEBIBYTE);
    let export = Export::start_in(folder, "disk.img", &["--queues", "4", "--ring-order", "4"]);
    let source = export.path("source.img");
    let (source, uri) = (source.to_str().unwrap(), export.uri.clone());
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", source, &uri];
    if succeeds("qemu-img", &convert).is_none() {
        return;
    }
    let compare = ["compare", "-f", "raw", "-F", "raw", source, &uri];
    succeeds("qemu-img", &compare);
    let folder = export.end();
    let read = |name| fs::read(folder.path().join(name)).unwrap();
    assert!(read("source.img") == read("disk.img"));
}

#[test]
fn qemu_io_writes_reads_zeroes_trims_and_flushes() {
    let export = Export::start("memory:16M", &[]);
    let commands = [
        "write -P 7 512 1536",
        "read -P 7 512 1536",
        "read -P 0 0 512",
        "write -f -P 9 1M 5M",
        "write -z 2M 1M",
        "read -P 0 2M 1M",
        "read -P 9 3M 3M",
        "discard 4M 1M",
        "flush",
    ];
    let mut args = vec!["-f", "raw"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(&export.uri);
    let Some(text) = succeeds("qemu-io", &args) else {
        return;
    };
    assert!(!text.contains("failed"), "{text}");
    export.end();
}

#[test]
fn a_read_only_export_refuses_writers_and_serves_readers() {
    let folder = tempfile::tempdir().unwrap();
    noise(&folder.path().join("disk.img"), MEBIBYTE);
    let export = Export::start_in(folder, "disk.img", &["--read-only", "--name", "spare"]);
    assert!(
        export.uri.starts_with("nbd+unix:///spare?"),
        "{}",
        export.uri
    );
    let write = ["-f", "raw", "-c", "write 0 512", &export.uri];
    let Some(refused) = run("qemu-io", &write) else {
        return;
    };
    assert!(!refused.status.success());
    let image = export.path("disk.img");
    let image = image.to_str().unwrap();
    let compare = ["compare", "-f", "raw", "-F", "raw", image, &export.uri];
    succeeds("qemu-img", &compare);
}

#[test]
fn clients_that_talk_nonsense_or_fall_silent_do_not_bother_others() {
    let export = Export::start("memory:8M", &[]);
    let silent: Vec<_> = (0..8).map(|_| export.connect()).collect();
    for nonsense in [
        &[0u8; 64][..],
        &[0xff; 64],
        b"IHAVEOPT",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
    ] {
        let mut client = export.connect();
        client.write_all(nonsense).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut greeting = Vec::new();
        // Cut off, in order or not.
        let _ = client.read_to_end(&mut greeting);
        assert_eq!(greeting[..16], *b"NBDMAGICIHAVEOPT");
    }
    // One that asks for much and takes nothing.
    let mut greedy = export.connect();
    greedy.write_all(&[0, 0, 0, 3]).unwrap();
    greedy.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    greedy.set_nonblocking(true).unwrap();
    let mut request = [0u8; 28];
    request[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
    request[24..].copy_from_slice(&(8u32 << 20).to_be_bytes());
    for _ in 0..100_000 {
        if greedy.write(&request).is_err() {
            break;
        }
    }
    let read = [
        "-f",
        "raw",
        "-c",
        "write -P 3 0 4k",
        "-c",
        "read -P 3 0 4k",
        &export.uri,
    ];
    if let Some(text) = succeeds("qemu-io", &read) {
        assert!(!text.contains("failed"), "{text}");
    }
    drop((silent, greedy));
    export.end();
}

#[test]
fn a_client_that_asks_for_everything_at_once_is_served_with_little_memory() {
    let export = Export::start("memory:32M", &[]);
    let mut client = export.connect();
    client.write_all(&[0, 0, 0, 3]).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    client.read_exact(&mut [0; 18 + 10]).unwrap();
    let mut request = [0u8; 28];
    request[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
    request[24..].copy_from_slice(&(32u32 << 20).to_be_bytes());
    client.write_all(&request.repeat(64)).unwrap();
    let mut reply = vec![0; 16 + (32 << 20)];
    for _ in 0..64 {
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", export.process.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most = most.and_then(|text| text.trim().strip_suffix(" kB"));
    let most: usize = most.unwrap().parse().unwrap();
    assert!(most < 1 << 20, "{most} KiB, of which 2 GiB are for replies");
    export.end();
}

/// Whether fio can talk NBD here.
fn fio_talks_nbd() -> bool {
    let engines = run("fio", &["--enghelp"]).map(|output| output.stdout);
    engines.is_some_and(|engines| String::from_utf8_lossy(&engines).contains("nbd"))
}

/// Random writes of mixed sizes with trims between, all read back and verified.
fn verified_by_fio(uri: &str, loops: u32) {
    let uri = format!("--uri={uri}");
    let loops = format!("--loops={loops}");
    let args = [
        "--name=verified",
        "--ioengine=nbd",
        &uri,
        &loops,
        // Each block is trimmed, then written; not both at once, which has no defined outcome.
        "--rw=randtrimwrite",
        "--serialize_overlap=1",
        "--bsrange=4k-1M",
        "--iodepth=32",
        "--size=32M",
        "--verify=crc32c",
        "--verify_fatal=1",
    ];
    let text = succeeds("fio", &args).unwrap();
    assert!(text.contains("err= 0"), "{text}");
}

#[test]
fn fio_finds_what_it_wrote() {
    if fio_talks_nbd() {
        let export = Export::start("memory:32M", &["--queues", "2"]);
        verified_by_fio(&export.uri, 2);
        export.end();
    }
}

#[test]
fn fio_finds_what_it_wrote_though_the_backend_is_killed_again_and_again() {
    if fio_talks_nbd() {
        for image in ["disk.img", "qcow2:disk.qcow2", "overlay:overlay.qcow2"] {
            let folder = tempfile::tempdir().unwrap();
            sparse(&folder, "disk.img", 32 * MEBIBYTE);
            noise(&folder.path().join("base.img"), 32 * MEBIBYTE);
            create(&folder, &["qcow2:disk.qcow2", "32M"]);
            create(&folder, &["--base", "base.img", "overlay:overlay.qcow2"]);
            let options = ["--restart-every", "0.1", "--queues", "2"];
            let export = Export::start_in(folder, image, &options);
            verified_by_fio(&export.uri, 5);
            export.end();
        }
    }
}

fn create(folder: &TempDir, args: &[&str]) {
    let made = Command::new(env!("CARGO_BIN_EXE_parapet"))
        .args(["blk", "create"])
        .args(args)
        .current_dir(folder.path())
        .status();
    assert!(made.unwrap().success(), "{args:?}");
}

#[test]
fn a_trim_by_a_client_leaves_a_hole_in_the_image() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    noise(&folder.path().join("disk.img"), 8 * MEBIBYTE);
    let image = folder.path().join("disk.img");
    File::open(&image).unwrap().sync_all().unwrap();
    let before = fs::metadata(&image).unwrap().blocks();
    let export = Export::start_in(folder, "disk.img", &[]);
    let trim = [
        "-f",
        "raw",
        "-d",
        "unmap",
        "-c",
        "discard 1M 4M",
        "-c",
        "flush",
        &export.uri,
    ];
    if succeeds("qemu-io", &trim).is_none() {
        return;
    }
    let folder = export.end();
    let image = folder.path().join("disk.img");
    let after = fs::metadata(&image).unwrap().blocks();
    let mut middle = vec![1; 4 * MEBIBYTE];
    let file = File::open(&image).unwrap();
    file.read_exact_at(&mut middle, MEBIBYTE as u64).unwrap();
    assert!(after + 4096 < before, "{before} blocks, and then {after}");
    assert!(middle.iter().all(|byte| *byte == 0));
}
