//! Disks behind NBD servers: QEMU's, one that forgets what it was not told to flush, and some that
//! lie.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use parapet_blkback::image::{
    Access, Image, Job, NbdImage, OpenError, Operation, SECTOR_SIZE, Sectors, Spec, Submitted,
};
use parapet_hypervisor::memory::Scratch;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::disk::*;

/// QEMU's server, or another's.
struct Server(Child);

impl Server {
    fn start(program: &str, args: &[&str], socket: &Path) -> Self {
        let _ = fs::remove_file(socket);
        let child = Command::new(program)
            .args(args)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server(child);
        while UnixStream::connect(socket).is_err() {
            thread::yield_now();
        }
        server
    }

    fn qemu(socket: &Path, file: &Path) -> Self {
        let args = [
            "--format=raw",
            "--persistent",
            "--shared=0",
            "--export-name=disk",
            "--socket",
            socket.to_str().unwrap(),
            file.to_str().unwrap(),
        ];
        Self::start("qemu-nbd", &args, socket)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Place {
    folder: TempDir,
    socket: PathBuf,
    file: PathBuf,
}

impl Place {
    fn new(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (socket, file) = (folder.path().join("socket"), folder.path().join("file"));
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        Place {
            folder,
            socket,
            file,
        }
    }

    fn open(&self, patience: Duration) -> NbdImage {
        let address = format!("nbd:unix:{}:disk", self.socket.display());
        let address = address.parse().unwrap();
        NbdImage::open_patiently(&address, Access::ReadWrite, patience).unwrap()
    }
}

const LONG: Duration = Duration::from_secs(60);

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_behind_qemus_server_is_a_disk(steps in steps()) {
        let place = Place::new(SECTORS * SECTOR_SIZE as u64);
        let _server = Server::qemu(&place.socket, &place.file);
        follows_the_model(&place.open(LONG), &steps);
    }
}

#[test]
fn what_a_server_does_not_have_is_refused_in_one_line() {
    let place = Place::new(1 << 16);
    let refused = |text: &str, access| {
        let spec: Spec = text.parse().unwrap();
        let error = spec.open::<Memory>(access).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::Nbd { .. }));
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let socket = place.socket.display();
    refused(&format!("nbd:unix:{socket}:disk"), Access::ReadOnly);
    let server = Server::qemu(&place.socket, &place.file);
    let text = refused(&format!("nbd:unix:{socket}:another"), Access::ReadOnly);
    assert!(text.contains("refuses"), "{text}");
    let uri = format!("nbd+unix:///disk?socket={socket}");
    let spec: Spec = uri.parse().unwrap();
    assert_eq!(
        spec.open::<Memory>(Access::ReadOnly).unwrap().sectors(),
        128
    );
    drop(server);
    let args = [
        "--read-only",
        "--format=raw",
        "--persistent",
        "--export-name=disk",
        "--socket",
        place.socket.to_str().unwrap(),
        place.file.to_str().unwrap(),
    ];
    let _server = Server::start("qemu-nbd", &args, &place.socket);
    let text = refused(&uri, Access::ReadWrite);
    assert!(text.contains("access=ro"), "{text}");
    spec.open::<Memory>(Access::ReadOnly).unwrap();
}

/// Writes that are verified, by several queues, while `trouble` does what it likes.
fn verified(image: &NbdImage, rounds: u64, trouble: impl FnOnce()) {
    let sectors = Image::<Memory>::sectors(image);
    let share = sectors / 3;
    thread::scope(|scope| {
        for writer in 0..3u64 {
            scope.spawn(move || {
                let mut queue = open_queue(image);
                let depth = u32::from(LIMITS.depth);
                let part = share / u64::from(depth);
                for round in 1..=rounds {
                    // All tags at once, each with a part of its own; then the same to read it.
                    for writes in [true, false] {
                        for tag in 0..depth {
                            let first = writer * share + u64::from(tag) * part;
                            let sectors = Sectors { first, count: 16 };
                            let (operation, lease) = if writes {
                                let bytes = content(first, round);
                                (Operation::Write(sectors), Memory::of(&bytes))
                            } else {
                                (Operation::Read(sectors), Memory(Scratch::new(16 * 512)))
                            };
                            let job = Job {
                                tag,
                                operation,
                                lease,
                            };
                            assert!(matches!(queue.submit(job), Submitted::Started));
                        }
                        queue.kick().unwrap();
                        let mut left = depth;
                        while left > 0 {
                            let Some(done) = queue.complete() else {
                                thread::yield_now();
                                continue;
                            };
                            done.result.unwrap();
                            let first = writer * share + u64::from(done.tag) * part;
                            if !writes {
                                assert!(done.lease.bytes() == content(first, round));
                            }
                            left -= 1;
                        }
                    }
                    if round % 16 == 0 {
                        let flush = Memory(Scratch::new(SECTOR_SIZE));
                        run(&mut queue, Operation::Flush, flush).result.unwrap();
                    }
                }
            });
        }
        trouble();
    });
}

fn content(first: u64, round: u64) -> Vec<u8> {
    (0..16 * 512 / 8)
        .flat_map(|i: u64| (first << 32 ^ round << 16 ^ i).to_be_bytes())
        .collect()
}

#[test]
fn a_server_that_is_killed_and_started_again_is_a_pause() {
    let place = Place::new(4 << 20);
    let mut server = Server::qemu(&place.socket, &place.file);
    let image = place.open(LONG);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (place, over) = (&place, &over);
        let killer = scope.spawn(move || {
            let mut times = 0;
            while !over.load(Ordering::Relaxed) || times < 3 {
                server.kill();
                times += 1;
                thread::sleep(Duration::from_millis(50));
                server = Server::qemu(&place.socket, &place.file);
                thread::sleep(Duration::from_millis(100));
            }
            server
        });
        verified(&image, 200, || {});
        over.store(true, Ordering::Relaxed);
        drop(killer.join().unwrap());
    });
}

#[test]
fn a_server_that_does_not_come_back_is_an_error_and_then_one_that_does_is_used_again() {
    let place = Place::new(1 << 16);
    let server = Server::qemu(&place.socket, &place.file);
    let image = place.open(Duration::from_millis(300));
    let mut queue = open_queue(&image);
    write(&mut queue, 7, &[7; SECTOR_SIZE]).unwrap();
    server.kill();
    let seven = Sectors { first: 7, count: 1 };
    let error = read(&mut queue, seven).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(write(&mut queue, 8, &[8; SECTOR_SIZE]).is_err());
    let flush = Memory(Scratch::new(SECTOR_SIZE));
    assert!(run(&mut queue, Operation::Flush, flush).result.is_err());
    let _server = Server::qemu(&place.socket, &place.file);
    assert_eq!(read(&mut queue, seven).unwrap(), [7; SECTOR_SIZE]);
    drop(_server);
    // A smaller disk is another one, and never asked for what it does not have.
    fs::File::options()
        .write(true)
        .open(&place.file)
        .unwrap()
        .set_len(1 << 12)
        .unwrap();
    let _server = Server::qemu(&place.socket, &place.file);
    read(&mut queue, seven).unwrap_err();
}

#[test]
fn nbdkits_server_is_one_too() {
    if Command::new("nbdkit").arg("--version").output().is_err() {
        return;
    }
    let place = Place::new(1 << 20);
    let socket = place.socket.to_str().unwrap();
    let args = [
        "--foreground",
        "--exit-with-parent",
        "--unix",
        socket,
        "memory",
        "1M",
    ];
    let _server = Server::start("nbdkit", &args, &place.socket);
    let image = place.open(LONG);
    verified(&image, 20, || {});
    let mut queue = open_queue(&image);
    discard(
        &mut queue,
        Sectors {
            first: 0,
            count: 2048,
        },
    );
    let all = Sectors {
        first: 0,
        count: 2048,
    };
    assert!(read(&mut queue, all).unwrap() == vec![0; 1 << 20]);
}

/// A server whose disk loses all that it was not told to flush whenever a connection ends, as one
/// does that crashes, and whose connections end after some requests.
struct Forgetful {
    durable: Mutex<Vec<u8>>,
    /// How many requests the next connection answers.
    lives: AtomicU64,
    crashes: AtomicU64,
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Forgetful {
    fn start(socket: &Path, bytes: usize, lives: u64) -> Arc<Self> {
        let server = Arc::new(Forgetful {
            durable: Mutex::new(vec![0; bytes]),
            lives: AtomicU64::new(lives),
            crashes: AtomicU64::new(0),
        });
        let listener = UnixListener::bind(socket).unwrap();
        let serving = Arc::clone(&server);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = serving.serve(stream.unwrap());
                serving.crashes.fetch_add(1, Ordering::SeqCst);
            }
        });
        server
    }

    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        take::<4>(&mut stream)?;
        take::<12>(&mut stream)?;
        let len = u32::from_be_bytes(take(&mut stream)?);
        let mut option = vec![0; len as usize];
        stream.read_exact(&mut option)?;
        let mut volatile = self.durable.lock().unwrap().clone();
        let mut info = vec![0, 0];
        info.extend((volatile.len() as u64).to_be_bytes());
        // Has flags, flushes, writes zeroes.
        info.extend((1u16 | 1 << 2 | 1 << 6).to_be_bytes());
        for (kind, data) in [(3u32, &info[..]), (1, &[])] {
            stream.write_all(&0x0003_e889_0455_65a9u64.to_be_bytes())?;
            stream.write_all(&7u32.to_be_bytes())?;
            stream.write_all(&kind.to_be_bytes())?;
            stream.write_all(&(data.len() as u32).to_be_bytes())?;
            stream.write_all(data)?;
        }
        // Each connection a little longer than the last, so that it comes to an end.
        let lives = self.lives.fetch_add(3, Ordering::SeqCst);
        for _ in 0..lives {
            let header: [u8; 28] = take(&mut stream)?;
            let command = header[7];
            let handle: [u8; 8] = header[8..16].try_into().unwrap();
            let offset = u64::from_be_bytes(header[16..24].try_into().unwrap()) as usize;
            let len = u32::from_be_bytes(header[24..].try_into().unwrap()) as usize;
            let mut data = Vec::new();
            match command {
                0 => data.extend(&volatile[offset..offset + len]),
                1 => stream.read_exact(&mut volatile[offset..offset + len])?,
                2 => return Ok(()),
                3 => self.durable.lock().unwrap().clone_from(&volatile),
                6 => volatile[offset..offset + len].fill(0),
                other => panic!("command {other}"),
            }
            stream.write_all(&0x6744_6698u32.to_be_bytes())?;
            stream.write_all(&0u32.to_be_bytes())?;
            stream.write_all(&handle)?;
            stream.write_all(&data)?;
        }
        Ok(())
    }
}

#[test]
fn what_a_crashed_server_lost_is_written_again_before_a_flush_is_answered() {
    let place = Place::new(0);
    let server = Forgetful::start(&place.socket, 1 << 20, 40);
    let image = place.open(LONG);
    verified(&image, 12, || {});
    let mut queue = open_queue(&image);
    discard(
        &mut queue,
        Sectors {
            first: 16,
            count: 8,
        },
    );
    let flush = Memory(Scratch::new(SECTOR_SIZE));
    run(&mut queue, Operation::Flush, flush).result.unwrap();
    assert!(server.crashes.load(Ordering::SeqCst) > 3);
    // What is durable is all that was ever answered.
    let durable = server.durable.lock().unwrap().clone();
    let all = Sectors {
        first: 0,
        count: 2048,
    };
    assert!(read(&mut queue, all).unwrap() == durable);
    assert_eq!(durable[..16 * 512], content(0, 12));
    assert_eq!(durable[16 * 512..24 * 512], [0; 8 * 512]);
}

#[test]
fn a_server_is_told_to_flush_before_too_much_is_kept() {
    let place = Place::new(0);
    let server = Forgetful::start(&place.socket, 1 << 20, u64::MAX / 2);
    let image = place.open(LONG);
    let mut queue = open_queue(&image);
    let chunk = vec![5; 1 << 20];
    // Twice what is kept.
    for _ in 0..66 {
        write(&mut queue, 0, &chunk).unwrap();
    }
    assert_eq!(server.durable.lock().unwrap()[..512], [5; 512]);
}

#[test]
fn a_server_that_talks_nonsense_is_an_error_and_no_panic() {
    let place = Place::new(0);
    let listener = UnixListener::bind(&place.socket).unwrap();
    let answers: Vec<Vec<u8>> = vec![
        vec![],
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".to_vec(),
        b"NBDMAGICIHAVEOPT\0\0".to_vec(),
        [b"NBDMAGICIHAVEOPT\0\x03", &[0xff; 60][..]].concat(),
        [
            b"NBDMAGICIHAVEOPT\0\x03",
            &0x0003_e889_0455_65a9u64.to_be_bytes()[..],
            &[0, 0, 0, 7, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff],
        ]
        .concat(),
    ];
    let count = answers.len();
    let liar = thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(&answer);
        }
    });
    for _ in 0..count {
        let address = format!("nbd:unix:{}", place.socket.display());
        let error = NbdImage::open(&address.parse().unwrap(), Access::ReadOnly).unwrap_err();
        assert!(matches!(error, OpenError::Nbd { .. }), "{error}");
    }
    liar.join().unwrap();
    drop(place.folder);
}
