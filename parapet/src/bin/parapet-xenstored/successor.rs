//! Live update: becoming another program, in the same process.
//!
//! ```text
//!   due ─▶ PROGRAM --help ─▶ one of ours? ──yes──▶ state file ─▶ PROGRAM --check-state ─▶ exec
//!                                         └─no───▶ state files ────────────────────────▶ exec
//! ```
//!
//! Sockets, the lock and the event channels stay open over the exec. What the new program can make
//! of the state is found out in a child first, if it can be asked: until the exec, which comes
//! last, nothing has changed, and whatever fails leads back to serving.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::unistd::execv;
use parapet::daemon::{Listening, Lock};
use parapet_hypervisor::seam::{Clock, Tasks};
use parapet_hypervisor::xen::{Ports, Threads, inherit};
use parapet_xenstore::migration::{Global, Version};
use parapet_xenstore::server::daemon::{Estate, Successor};
use parapet_xenstore::server::{Due, Form};
use parapet_xenstore::transport::Legacy;

use crate::cli;
use crate::state::StateFiles;

/// How long the new program may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// C xenstored's words for an exec that failed.
const NOT_ACTIVATED: &str = "Error activating new binary.";

/// The event channels.
pub(crate) enum EventChannels {
    /// Those of a Xen host.
    Of(Ports),
    /// A descriptor that is handed on as it was inherited, or none: there are no domains here.
    Unused(Option<RawFd>),
}

impl EventChannels {
    fn descriptor(&self) -> Option<RawFd> {
        match self {
            EventChannels::Of(ports) => Some(ports.descriptor()),
            EventChannels::Unused(number) => *number,
        }
    }

    /// For a program that expects a read to wait, or for us.
    fn block(&self, block: bool) -> io::Result<()> {
        match self {
            EventChannels::Of(ports) => ports.block(block),
            EventChannels::Unused(_) => Ok(()),
        }
    }
}

/// What is left to the next program besides connections.
pub(crate) struct Exec {
    threads: Threads,
    socket: RawFd,
    lock: RawFd,
    event_channels: EventChannels,
    /// Whether the next program would have the privileges that it needs to begin.
    privileged: bool,
}

impl Exec {
    pub(crate) fn new(
        threads: &Threads,
        listening: &Listening,
        lock: &Lock,
        event_channels: EventChannels,
        privileged: bool,
    ) -> Self {
        Exec {
            threads: threads.clone(),
            socket: listening.as_raw_fd(),
            lock: lock.as_raw_fd(),
            event_channels,
            privileged,
        }
    }

    /// Comes back only with why it is not the new program by now.
    fn exec(&self, due: &Due, estate: &Estate<'_>) -> Result<Infallible, String> {
        let program = Path::new(OsStr::from_bytes(&due.program));
        let ours = can_check(program);
        let usual = if ours { Version::V2 } else { Version::V1 };
        let form = Form {
            version: due.version.unwrap_or(usual),
            alone: ours,
        };
        let global = Global {
            socket: Some(self.socket),
            event_channels: self.event_channels.descriptor(),
        };
        let stream = estate.stream(form, global);
        let stream = stream.map_err(|error| format!("Dump state error: {error}"))?;
        let files = StateFiles::write(&stream, ours);
        let files = files.map_err(|error| format!("Dump state open error: {error}"))?;
        if let Some(file) = files.path().filter(|_| ours) {
            check(program, file)?;
        }
        let sockets = estate.legacies().filter_map(|legacy| match legacy {
            Legacy::Socket(number) => Some(number),
            Legacy::Port(_) => None,
        });
        let lock = Some(self.lock).filter(|_| ours);
        let mut left: Vec<RawFd> = sockets.chain([self.socket]).chain(lock).collect();
        left.extend(self.event_channels.descriptor());
        let own = std::env::args_os().skip(1);
        let arguments = cli::arguments_after(own, due.arguments.as_deref(), lock);
        log::info!("a live update: {} {arguments:?}", program.display());
        let words = [program.as_os_str().to_owned()]
            .into_iter()
            .chain(arguments);
        // No argument that came by a command line or a request has a zero in it.
        let words = words.map(|word| CString::new(word.into_vec()));
        let words: Vec<_> = words.collect::<Result<_, _>>().map_err(|_| NOT_ACTIVATED)?;
        let failure = self
            .event_channels
            .block(!ours)
            .and_then(|()| leave(&left, true));
        let failure = match failure {
            // Not as a shell would: what is no program is not to become a script.
            Ok(()) => {
                let Err(error) = execv(&words[0], &words);
                error.into()
            }
            Err(error) => error,
        };
        let undone = self.event_channels.block(false);
        if let Err(error) = undone.and(leave(&left, false)) {
            log::error!("what was left open is not taken back: {error}");
        }
        log::error!("{} cannot be run: {failure}", program.display());
        Err(NOT_ACTIVATED.into())
    }
}

impl Successor for Exec {
    fn look_at(&mut self, program: &[u8]) -> Result<(), &'static str> {
        if !self.privileged {
            return Err("It gave up its privileges (--user): a new one could not begin.");
        }
        let file = fs::metadata(OsStr::from_bytes(program));
        let mode = file.map_err(|_| "File not accessible.")?.permissions();
        match mode.mode() & 0o111 {
            0 => Err("File not executable."),
            _ => Ok(()),
        }
    }

    fn call_after(&mut self, delay: Duration, call: Box<dyn FnOnce() + Send>) {
        let sleep = self.threads.sleep(delay);
        self.threads.spawn(async move {
            sleep.await;
            call();
        });
    }

    fn succeed(&mut self, due: &Due, estate: &Estate<'_>) -> String {
        let Err(reason) = self.exec(due, estate);
        reason
    }
}

fn leave(descriptors: &[RawFd], open: bool) -> io::Result<()> {
    let mut left = descriptors.iter().map(|it| inherit::leave(*it, open));
    left.try_for_each(|left| left)
}

/// Whether a program is one of our kind, which can be asked about a state. C xenstored could not
/// be: what it does not know does not keep it from starting.
fn can_check(program: &Path) -> bool {
    let help = run(Command::new(program).arg("--help"));
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--check-state"))
}

/// Asks the new program what it makes of the state.
///
/// # Errors
/// What it says against it.
fn check(program: &Path, file: &Path) -> Result<(), String> {
    let checked = run(Command::new(program).arg("--check-state").arg(file));
    let checked = checked.map_err(|error| error.to_string())?;
    if checked.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&checked.stderr);
    Err(said.lines().last().unwrap_or(NOT_ACTIVATED).into())
}

/// Runs a command, for a limited time: one that takes longer is left to itself.
fn run(command: &mut Command) -> io::Result<Output> {
    command.stdin(Stdio::null());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (tell, told) = mpsc::channel();
    // Who has lost patience does not listen any more.
    thread::spawn(move || drop(tell.send(child.wait_with_output())));
    let output = told.recv_timeout(PATIENCE);
    output.unwrap_or_else(|_| Err(io::Error::new(ErrorKind::TimedOut, "it does not answer")))
}
