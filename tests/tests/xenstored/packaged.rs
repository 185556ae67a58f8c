//! Debian's C xenstored, on a machine that `preload.c` makes up.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use parapet_xen_sys::io::xs_wire::{DomainInterface, RING_SIZE};
use tempfile::TempDir;

use crate::daemon::{Fate, Message, Who, Xenstored};

/// The port by which Xen says that something became of a domain, in `preload.c`.
const VIRQ_PORT: u32 = 0x10000;
/// Longer than anything takes: a daemon that is silent for so long counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the packages are: unpacked by `tests/system/run`, or installed.
static ROOT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let cache = caches.map(|caches| caches.join("parapet/xen"));
    let cache = variable("PARAPET_XEN_CACHE").or(cache);
    let entries = cache.and_then(|cache| fs::read_dir(cache).ok());
    let unpacked = entries.into_iter().flatten().flatten();
    unpacked
        .map(|entry| entry.path().join("root"))
        .chain([PathBuf::from("/")])
        .find(|root| binary(root).exists())
});

fn binary(root: &Path) -> PathBuf {
    root.join("usr/lib/xen-4.17/bin/xenstored")
}

/// The packaged daemon, if [`is_there`].
pub(crate) fn program() -> PathBuf {
    binary(ROOT.as_ref().unwrap())
}

/// The library that `preload.c` is made into, once for all tests.
static PRELOAD: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("preload.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xenstored/preload.c");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(made.success(), "cc cannot compile {}", source.display());
    (dir, library)
});

/// Whether the test can be run here; says so if not.
pub(crate) fn is_there() -> bool {
    let compiler = Command::new("cc").arg("--version").output().is_ok();
    let there = ROOT.is_some() && compiler;
    if !there {
        eprintln!("skipped: needs cc, and Debian's xen-utils-4.17 unpacked by tests/system/run");
    }
    there
}

/// A guest's end of its ring.
struct Guest {
    page: File,
    received: Vec<u8>,
}

impl Guest {
    /// A new domain with an empty page.
    fn born(machine: &Path, domid: u16) -> Self {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let page = options.open(machine.join(format!("page-{domid}"))).unwrap();
        page.set_len(4096).unwrap();
        fs::write(machine.join(format!("domain-{domid}")), "running").unwrap();
        Guest {
            page,
            received: vec![],
        }
    }

    fn word(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.page.read_exact_at(&mut word, offset as u64).unwrap();
        u32::from_ne_bytes(word)
    }

    fn set_word(&self, offset: usize, value: u32) {
        let bytes = value.to_ne_bytes();
        self.page.write_all_at(&bytes, offset as u64).unwrap();
    }

    /// Puts in what there is room for. How much.
    fn put(&self, bytes: &[u8]) -> usize {
        let produced = self.word(offset_of!(DomainInterface, req_prod));
        let consumed = self.word(offset_of!(DomainInterface, req_cons));
        let room = RING_SIZE - produced.wrapping_sub(consumed) as usize;
        let now = &bytes[..room.min(bytes.len())];
        for (byte, at) in now.iter().zip(produced as usize..) {
            let place = offset_of!(DomainInterface, req) + at % RING_SIZE;
            self.page.write_all_at(&[*byte], place as u64).unwrap();
        }
        let produced = produced.wrapping_add(now.len() as u32);
        self.set_word(offset_of!(DomainInterface, req_prod), produced);
        now.len()
    }

    /// Takes out what is there. Whether anything was.
    fn take(&mut self) -> bool {
        let produced = self.word(offset_of!(DomainInterface, rsp_prod));
        let consumed = self.word(offset_of!(DomainInterface, rsp_cons));
        let len = produced.wrapping_sub(consumed) as usize;
        let mut ring = [0; RING_SIZE];
        let start = offset_of!(DomainInterface, rsp) as u64;
        self.page.read_exact_at(&mut ring, start).unwrap();
        let places = (consumed as usize..).take(len).map(|at| at % RING_SIZE);
        self.received.extend(places.map(|at| ring[at]));
        self.set_word(offset_of!(DomainInterface, rsp_cons), produced);
        len > 0
    }

    fn error(&self) -> u32 {
        self.word(offset_of!(DomainInterface, error))
    }
}

/// A running C xenstored.
pub(crate) struct Packaged {
    child: Child,
    machine: TempDir,
    events: UnixStream,
    locals: Vec<(UnixStream, Vec<u8>)>,
    guests: Vec<Guest>,
}

impl Packaged {
    /// It does not always survive its own beginning.
    pub(crate) fn start(locals: usize, guests: u16) -> Self {
        let mut attempts = (0..3).filter_map(|_| Self::try_start(locals, guests));
        attempts.next().expect("it starts")
    }

    fn try_start(locals: usize, guests: u16) -> Option<Self> {
        let root = ROOT.as_ref().unwrap();
        let machine = tempfile::tempdir().unwrap();
        let at = |name: &str| machine.path().join(name);
        fs::write(at("port"), "1").unwrap();
        let guests = (0..=guests)
            .map(|domid| Guest::born(machine.path(), domid))
            .collect();
        let (events, theirs) = UnixStream::pair().unwrap();
        events.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(binary(root))
            .args(["--no-fork", "--timeout", "watch-event=0"])
            .env("XENSTORED_RUNDIR", at("run"))
            .env("XENSTORED_ROOTDIR", at("lib"))
            .env("XENSTORED_PATH", at("socket"))
            .env("FAKE_XEN", machine.path())
            .env("LD_PRELOAD", &PRELOAD.1)
            .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut packaged = Packaged {
            child,
            machine,
            events,
            locals: vec![],
            guests,
        };
        // It knocks at domain 0's port once it listens.
        if !packaged.wait_for_event() {
            return None;
        }
        for _ in 0..locals {
            packaged.join();
        }
        Some(packaged)
    }

    /// Lets one more in by the socket.
    pub(crate) fn join(&mut self) -> Who {
        let stream = UnixStream::connect(self.path("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.locals.push((stream, vec![]));
        Who::Local(self.locals.len() - 1)
    }

    /// A file of the machine's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.machine.path().join(name)
    }

    fn notify(&mut self, port: u32) {
        // Whether it lives, `wait_for_event` tells.
        let _ = self.events.write_all(&port.to_ne_bytes());
    }

    /// Waits for events: their ports. None come once the daemon is gone, or is silent for too long.
    fn events(&mut self) -> Vec<u32> {
        let mut ports = [0; 4096];
        let got = self.events.read(&mut ports).unwrap_or(0);
        let ports = ports[..got].chunks_exact(4);
        ports
            .map(|port| u32::from_ne_bytes(port.try_into().unwrap()))
            .collect()
    }

    fn wait_for_event(&mut self) -> bool {
        !self.events().is_empty()
    }
}

impl Xenstored for Packaged {
    fn send(&mut self, who: Who, bytes: &[u8]) {
        match who {
            // What it does not take any more, it does not answer either.
            Who::Local(index) => drop(self.locals[index].0.write_all(bytes)),
            Who::Guest(domid) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let guest = &mut self.guests[usize::from(domid)];
                    let put = guest.put(rest);
                    rest = &rest[put..];
                    guest.take();
                    if guest.error() != 0 {
                        return;
                    }
                    self.notify(u32::from(domid) + 1);
                    if put == 0 && !self.wait_for_event() {
                        return;
                    }
                }
            }
        }
    }

    fn receive(&mut self, who: Who) -> Option<Message> {
        match who {
            Who::Local(index) => {
                let (stream, received) = &mut self.locals[index];
                loop {
                    if let Some(message) = Message::take(received) {
                        return Some(message);
                    }
                    let mut bytes = [0; 8192];
                    match stream.read(&mut bytes) {
                        Ok(0) | Err(_) => return None,
                        Ok(got) => received.extend(&bytes[..got]),
                    }
                }
            }
            Who::Guest(domid) => loop {
                let guest = &mut self.guests[usize::from(domid)];
                if let Some(message) = Message::take(&mut guest.received) {
                    return Some(message);
                }
                if guest.take() {
                    self.notify(u32::from(domid) + 1);
                } else if guest.error() != 0 || !self.wait_for_event() {
                    return None;
                }
            },
        }
    }

    fn befall(&mut self, domid: u16, fate: Fate) {
        let state = self.machine.path().join(format!("domain-{domid}"));
        match fate {
            Fate::ShutDown if !state.exists() => return,
            Fate::ShutDown => fs::write(state, "shutdown").unwrap(),
            Fate::Dead => {
                let page = self.machine.path().join(format!("page-{domid}"));
                let _ = (fs::remove_file(state), fs::remove_file(page));
            }
            // One that lives is not born again.
            Fate::Born if state.exists() => return,
            Fate::Born => {
                self.guests[usize::from(domid)] = Guest::born(self.machine.path(), domid);
                return;
            }
        }
        self.notify(VIRQ_PORT);
        // The daemon sends it back when it has looked.
        loop {
            let events = self.events();
            if events.is_empty() || events.contains(&VIRQ_PORT) {
                return;
            }
        }
    }

    fn forget(&mut self, who: Who) {
        if let Who::Guest(domid) = who {
            self.guests[usize::from(domid)].received.clear();
        }
    }
}

impl Drop for Packaged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
