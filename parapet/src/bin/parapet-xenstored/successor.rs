//! Live update: becoming another program, in the same process.
//!
//! ```text
//!   due ─▶ PROGRAM --help ─▶ one of ours ───▶ state file ─▶ PROGRAM ... --check-state ─▶ exec
//!                         ├▶ C xenstored ──▶ state files ─────────────────────────────▶ exec
//!                         └▶ anything else is refused
//! ```
//!
//! Sockets, the lock and the event channels stay open over the exec. What the new program can make
//! of the state, and of its arguments, is found out in a child first, if it can be asked: until the
//! exec, which comes last, nothing has changed, and whatever fails leads back to serving. After it
//! there is no way back: a program that is no xenstored would be the end of the store.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
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

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, execve};
use parapet::daemon::{Listening, Lock};
use parapet_hypervisor::seam::{Clock, Tasks};
use parapet_hypervisor::xen::{Ports, Threads, inherit};
use parapet_xenstore::migration::{Global, Version};
use parapet_xenstore::server::daemon::{Estate, Successor};
use parapet_xenstore::server::{Due, Form};
use parapet_xenstore::transport::Legacy;

use crate::cli;
use crate::state::{CHECKED, StateFiles};

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
}

/// What is left to the next program besides connections.
pub(crate) struct Exec {
    threads: Threads,
    socket: RawFd,
    /// The socket is systemd's.
    socket_is_lent: bool,
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
            socket_is_lent: listening.is_lent(),
            lock: lock.as_raw_fd(),
            event_channels,
            privileged,
        }
    }

    /// Comes back only with why it is not the new program by now.
    fn exec(&self, due: &Due, estate: &Estate<'_>) -> Result<Infallible, String> {
        let program = Path::new(OsStr::from_bytes(&due.program));
        let ours = is_ours(program)?;
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
        let sockets = estate.legacies().filter_map(|legacy| match legacy {
            Legacy::Socket(number) => Some(number),
            Legacy::Port(_) => None,
        });
        let mut left = Left {
            lock: Some(self.lock).filter(|_| ours),
            ours: sockets.chain([self.socket]).collect(),
            others: None,
        };
        match &self.event_channels {
            EventChannels::Of(ports) => left.ours.push(ports.descriptor()),
            EventChannels::Unused(number) => left.others = *number,
        }
        let own = std::env::args_os().skip(1);
        let arguments = cli::arguments_after(own, due.arguments.as_deref(), left.lock);
        if let Some(file) = files.path().filter(|_| ours) {
            check(program, &arguments, file)?;
        }
        log::info!("a live update: {} {arguments:?}", program.display());
        let words = [program.as_os_str().to_owned()]
            .into_iter()
            .chain(arguments);
        // No argument that came by a command line or a request has a zero in it.
        let words = words.map(|word| CString::new(word.into_vec()));
        let words: Vec<_> = words.collect::<Result<_, _>>().map_err(|_| NOT_ACTIVATED)?;
        let environment = self.environment();
        let environment = environment.map(|it| CString::new(it.into_vec()));
        let environment: Vec<_> = environment
            .collect::<Result<_, _>>()
            .map_err(|_| NOT_ACTIVATED)?;
        let failure = match left.leave(!ours) {
            // Not as a shell would: what is no program is not to become a script.
            Ok(()) => {
                let Err(error) = execve(&words[0], &words, &environment);
                error.into()
            }
            Err(error) => error,
        };
        if let Err(error) = left.take_back() {
            log::error!("what was left open is not taken back: {error}");
        }
        log::error!("{} cannot be run: {failure}", program.display());
        Err(NOT_ACTIVATED.into())
    }

    /// Ours, and what systemd says of a socket that it has lent: whoever reads it forgets it.
    fn environment(&self) -> impl Iterator<Item = OsString> {
        let own = std::env::vars_os().map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            entry
        });
        let process = format!("LISTEN_PID={}", std::process::id());
        let lent = [process, "LISTEN_FDS=1".into()].map(OsString::from);
        own.chain(lent.into_iter().filter(|_| self.socket_is_lent))
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

/// The descriptors that stay open.
struct Left {
    lock: Option<RawFd>,
    /// The sockets and ours of event channels, which never wait with us.
    ours: Vec<RawFd>,
    /// What was inherited, and is handed on as it is.
    others: Option<RawFd>,
}

impl Left {
    /// Leaves them open; and has them wait if the next program reads only what it waits for. C
    /// xenstored takes a read that does not for the end of its client.
    fn leave(&self, block: bool) -> io::Result<()> {
        for number in &self.ours {
            inherit::block(*number, block)?;
        }
        let mut left = self.ours.iter().chain(&self.lock).chain(&self.others);
        left.try_for_each(|number| inherit::leave(*number, true))
    }

    fn take_back(&self) -> io::Result<()> {
        for number in &self.ours {
            inherit::block(*number, false)?;
        }
        let mut taken = self.ours.iter().chain(&self.lock);
        taken.try_for_each(|number| inherit::leave(*number, false))
    }
}

/// Whether a program is one of our kind, which can be asked about a state. C xenstored could not
/// be: what it does not know does not keep it from starting.
///
/// # Errors
/// It is neither: it could not go on from the state.
fn is_ours(program: &Path) -> Result<bool, &'static str> {
    let help = run(Command::new(program).arg("--help"));
    let help = help.map_err(|_| NOT_ACTIVATED)?;
    // C xenstored's goes to standard error.
    let text = [help.stdout, help.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    match (
        text.contains("--check-state"),
        text.contains("--keep-orphans"),
    ) {
        (true, _) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => Err(NOT_ACTIVATED),
    }
}

/// Asks the new program, with the arguments that it is to have, what it makes of the state.
///
/// # Errors
/// What it says against it.
fn check(program: &Path, arguments: &[OsString], file: &Path) -> Result<(), String> {
    let mut command = Command::new(program);
    let checked = run(command.args(arguments).arg("--check-state").arg(file));
    let checked = checked.map_err(|error| error.to_string())?;
    // One that does something else by these arguments does not say so.
    if checked.status.success() && checked.stdout == CHECKED.as_bytes() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&checked.stderr);
    Err(said.lines().next().unwrap_or(NOT_ACTIVATED).into())
}

/// Runs a command, for a limited time: one that takes longer is killed.
fn run(command: &mut Command) -> io::Result<Output> {
    command.stdin(Stdio::null());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let process = Pid::from_raw(child.id().cast_signed());
    let (tell, told) = mpsc::channel();
    // Who has lost patience does not listen any more.
    let wait = move || drop(tell.send(child.wait_with_output()));
    thread::Builder::new().spawn(wait)?;
    let output = told.recv_timeout(PATIENCE);
    output.unwrap_or_else(|_| {
        // If it has just ended, all the better.
        let _ = kill(process, Signal::SIGKILL);
        Err(io::Error::new(ErrorKind::TimedOut, "it does not answer"))
    })
}
