//! The xenstored daemons, ours and Debian's two, each serving a socket of its own and no domain.
//!
//! Debian's are taken from an installed `xen-utils-4.17`, or from where `tests/system/run` unpacks
//! it. They insist on Xen: `xenstored/no_xen.c` is what they get instead.

use super::{Program, Reaped};
use crate::contender::Standing;
use crate::placement::pin;
use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use std::env;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a daemon may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    C,
    OCaml,
}

/// A xenstored that can be started.
#[derive(Debug)]
pub(crate) struct Xenstored {
    kind: Kind,
    binary: PathBuf,
}

/// Debian's packages, and what their daemons get for Xen.
#[derive(Debug)]
pub(crate) struct Packages {
    /// The folder that they were unpacked to; `/` if they are installed.
    root: PathBuf,
    preload: PathBuf,
    _room: TempDir,
}

impl Packages {
    /// Finds them.
    ///
    /// # Errors
    /// They are there, and the library that stands for Xen cannot be made.
    pub(crate) fn find() -> Result<Option<Self>> {
        let variable = |name| env::var_os(name).map(PathBuf::from);
        let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        let cache = caches.map(|caches| caches.join("parapet/xen"));
        let cache = variable("PARAPET_XEN_CACHE").or(cache);
        let unpacked = cache.and_then(|cache| fs::read_dir(cache).ok());
        let root = unpacked
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("root"))
            .chain([PathBuf::from("/")])
            .find(|root| root.join(Kind::C.path()).exists());
        let Some(root) = root else {
            return Ok(None);
        };
        let room = tempfile::tempdir()?;
        let (source, preload) = (room.path().join("no_xen.c"), room.path().join("no_xen.so"));
        fs::write(&source, include_str!("xenstored/no_xen.c"))?;
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wno-unused-result", "-o"])
            .args([&preload, &source])
            .status()
            .context("cc, which makes what stands for Xen")?;
        if !made.success() {
            bail!("cc cannot compile what stands for Xen");
        }
        Ok(Some(Self {
            root,
            preload,
            _room: room,
        }))
    }
}

impl Kind {
    /// Where it is in its packages.
    fn path(self) -> &'static str {
        match self {
            Kind::Ours => "parapet-xenstored",
            Kind::C => "usr/lib/xen-4.17/bin/xenstored",
            Kind::OCaml => "usr/lib/xen-4.17/bin/oxenstored",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Ours => "parapet",
            Kind::C => "C xenstored",
            Kind::OCaml => "oxenstored",
        }
    }
}

/// Everybody who is there, and the programs that were looked for.
///
/// # Errors
/// Ours is not built.
pub(crate) fn all(packages: Option<&Packages>) -> Result<(Vec<Xenstored>, Vec<Program>)> {
    let beside = env::current_exe()?.with_file_name(Kind::Ours.path());
    if !beside.exists() {
        bail!(
            "{}: not there; build it by\n  cargo build --release -p parapet --bin parapet-xenstored",
            beside.display()
        );
    }
    let mut all = vec![Xenstored {
        kind: Kind::Ours,
        binary: beside,
    }];
    let mut programs = Vec::new();
    for kind in [Kind::C, Kind::OCaml] {
        let binary = packages.map(|packages| packages.root.join(kind.path()));
        let binary = binary.filter(|binary| binary.exists());
        programs.push(Program {
            name: kind.name(),
            package: "xen-utils-4.17",
            version: binary
                .as_ref()
                .map(|path| format!("{} 4.17, {}", kind.name(), path.display())),
        });
        all.extend(binary.map(|binary| Xenstored { kind, binary }));
    }
    Ok((all, programs))
}

impl Xenstored {
    /// The name in tables and JSON.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// What it is to us.
    pub(crate) fn standing(&self) -> Standing {
        match self.kind {
            Kind::Ours => Standing::Ours,
            Kind::C | Kind::OCaml => Standing::Peer,
        }
    }

    /// Starts it on CPU `cpu`, with an empty store. The calling thread is left pinned there.
    ///
    /// # Errors
    /// It does not start, with what it says.
    pub(crate) fn start(&self, packages: Option<&Packages>, cpu: usize) -> Result<Running> {
        let room = tempfile::tempdir().context("making a folder for the daemon's socket")?;
        let socket = room.path().join("socket");
        let said = room.path().join("stderr");
        let mut command = Command::new(&self.binary);
        command
            .env("XENSTORED_PATH", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said)?);
        match self.kind {
            Kind::Ours => {
                command
                    .arg("--no-domains")
                    .arg("--run-dir")
                    .arg(room.path());
            }
            Kind::C => {
                let (run, root) = (room.path().join("run"), room.path().join("lib"));
                command
                    .env("XENSTORED_RUNDIR", run)
                    .env("XENSTORED_ROOTDIR", root);
                command.arg("--no-fork");
            }
            Kind::OCaml => {
                let config = room.path().join("oxenstored.conf");
                let pid = room.path().join("pid");
                fs::write(
                    &config,
                    format!(
                        "pid-file = {}\nxenstored-log-file = /dev/null\n",
                        pid.display()
                    ),
                )?;
                command.args(["--no-fork", "--no-domain-init", "--no-access-log"]);
                command.arg("--config-file").arg(config);
            }
        }
        if let (Some(packages), Kind::C | Kind::OCaml) = (packages, self.kind) {
            let libraries = packages.root.join("usr/lib/x86_64-linux-gnu");
            command
                .env("LD_PRELOAD", &packages.preload)
                .env("LD_LIBRARY_PATH", libraries);
        }
        pin(cpu)?; // inherited by the daemon
        let mut daemon = Reaped::spawn(&mut command)?;
        let begin = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            if begin.elapsed() > PATIENCE || daemon.0.try_wait()?.is_some() {
                let said = fs::read_to_string(&said).unwrap_or_default();
                bail!(
                    "{} does not start: {}",
                    self.name(),
                    said.lines().next().unwrap_or("(it said nothing)")
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Running {
            daemon,
            socket,
            _room: room,
        })
    }
}

/// A daemon that serves, until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    daemon: Reaped,
    socket: PathBuf,
    _room: TempDir,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.daemon.0.id().cast_signed())
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has in memory, in MiB.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(kib.context("the daemon has ended")? / 1024.0)
    }
}
