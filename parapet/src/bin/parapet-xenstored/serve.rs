//! The daemon's life.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use parapet::daemon::xenstored::{NAME, Status};
use parapet::daemon::{
    End, Failure, ListenError, Listening, Lock, LockError, MetricsFile, StatusSocket, Unprivileged,
    UserError, ending, metrics, no_new_privileges, raise_open_files,
};
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::{Channel as _, Tasks};
use parapet_hypervisor::xen::{self, Channel, KernelXenstore, Ports, Threads, Xen, inherit};
use parapet_xen_sys::event_channel::Virq;
use parapet_xen_sys::{DomId, Port};
use parapet_xenstore::host::{self, SocketTransport};
use parapet_xenstore::server::Restored;
use parapet_xenstore::server::daemon::{Daemon, Domains, Handle};
use parapet_xenstore::server::files::Folder;
use parapet_xenstore::server::socket;
use parapet_xenstore::store::{Quotas, Store};
use parapet_xenstore::transport::Transport;

use crate::domains::{NoDomains, XenDomains};
use crate::state::{self, StateFiles};
use crate::successor::{EventChannels, Exec};

/// What the command line chose.
pub(crate) struct Settings {
    pub(crate) run_dir: PathBuf,
    pub(crate) no_domains: bool,
    pub(crate) user: Option<String>,
    /// How long an event waits for a guest that does not read it; none for ever.
    pub(crate) event_timeout: Option<Duration>,
    pub(crate) metrics_file: Option<PathBuf>,
    pub(crate) metrics_interval: Duration,
    /// What each guest may use.
    pub(crate) quotas: Quotas,
    /// It goes on where the program before it stopped.
    pub(crate) follows: Option<Follows>,
}

/// What the program before this one said to it.
pub(crate) struct Follows {
    /// The number under which it left the lock.
    pub(crate) lock: Option<RawFd>,
}

/// What the program before this one has left.
struct Inherited {
    restored: Restored,
    files: StateFiles,
    lock: Option<OwnedFd>,
    socket: Option<OwnedFd>,
}

impl Inherited {
    fn take(follows: &Follows, quotas: Quotas) -> anyhow::Result<Self> {
        let (files, stream) = StateFiles::found()?;
        let restored = state::restored(&stream, quotas)?;
        let take = |number: Option<RawFd>, what| {
            let taken = number.map(inherit::take).transpose();
            taken.with_context(|| format!("{what} was not left open"))
        };
        Ok(Inherited {
            lock: take(follows.lock, "the lock")?,
            socket: take(restored.global.socket, "the socket")?,
            restored,
            files,
        })
    }
}

/// Why the host is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    /// No Xen, no module, no permission.
    #[error("{0}, or serve the socket alone by --no-domains")]
    NoXen(xen::NotReady),
    /// There is Xen, and something else is amiss.
    #[error(transparent)]
    Xen(xen::NotReady),
    /// Another daemon, or no place for a lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No place for the status socket.
    #[error("the status socket cannot be made: {0}")]
    Status(io::Error),
    /// No such user, or one that cannot serve.
    #[error(transparent)]
    User(#[from] UserError),
}

impl From<xen::NotReady> for NotReady {
    fn from(reason: xen::NotReady) -> Self {
        match reason {
            xen::NotReady::NoXen { .. } => NotReady::NoXen(reason),
            _ => NotReady::Xen(reason),
        }
    }
}

impl From<NotReady> for Failure {
    fn from(reason: NotReady) -> Self {
        Failure::NotReady(reason.into())
    }
}

/// What is there of a Xen host.
struct Host {
    domains: XenDomains,
    /// Domain 0's kernel waits at this port.
    kernel: Port,
    /// Something has happened to some domain.
    news: Channel,
}

impl Host {
    /// With the `ports` that were left open, if any were.
    fn open(ports: Option<OwnedFd>) -> Result<(Threads, Self), NotReady> {
        // One thread: there is one store.
        let xen = Xen::with_workers(DomId::ZERO, 1)?;
        let domains = xen::Domains::open()?;
        let threads = xen.threads().clone();
        let host = Host {
            kernel: KernelXenstore::open()?.port(),
            news: threads.bind_virq(Virq::DomExc)?,
            domains: XenDomains {
                ports: match ports {
                    Some(ports) => Ports::inherit(&threads, ports)?,
                    None => Ports::open(&threads)?,
                },
                xen,
                domains,
            },
        };
        Ok((threads, host))
    }
}

/// A daemon of these domains: a new one, or one that goes on.
fn begin(
    threads: &Threads,
    restored: Option<Restored>,
    settings: &Settings,
    domains: impl Domains,
) -> (Daemon, Handle) {
    let socket = |number| {
        let stream = inherit::take(number).map(UnixStream::from);
        match stream.and_then(|stream| SocketTransport::new(threads, stream)) {
            Ok(transport) => Some(Box::new(transport) as Box<dyn Transport>),
            Err(error) => {
                log::warn!("a local client is lost: {error}");
                None
            }
        }
    };
    let (daemon, handle) = match restored {
        Some(restored) => Daemon::resume(restored, domains, socket),
        None => Daemon::of(Store::new(settings.quotas.clone()), domains),
    };
    (daemon.with_event_timeout(settings.event_timeout), handle)
}

/// The user to become, who can.
fn user(settings: &Settings) -> Result<Option<Unprivileged>, NotReady> {
    let user = settings.user.as_deref().map(Unprivileged::named);
    let user = user.transpose()?;
    if let Some(user) = &user {
        user.is_ready()?;
    }
    Ok(user)
}

/// Whether a daemon with these settings could go on from the state in `file`, as far as can be told
/// while another one serves.
pub(crate) fn check(settings: &Settings, file: &Path) -> Result<(), Failure> {
    user(settings)?;
    if !settings.no_domains {
        Xen::with_workers(DomId::ZERO, 1).map_err(NotReady::from)?;
        xen::Domains::open().map_err(NotReady::from)?;
    }
    state::check(file, settings.quotas.clone()).map_err(Failure::Failed)
}

/// What a daemon does not begin without, and one that goes on can do without: it has a store to
/// lose.
fn spare<T, E: std::fmt::Display>(outcome: Result<T, E>, follows: bool) -> Result<Option<T>, E> {
    match outcome {
        Err(error) if follows => {
            log::error!("goes on without: {error}");
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

/// Serves until a signal comes.
pub(crate) fn serve(settings: &Settings) -> Result<(), Failure> {
    // Before there are threads.
    no_new_privileges();
    // Before the kernel takes us up, which it does with one xenstored only.
    let user = user(settings)?;
    let inherited = settings
        .follows
        .as_ref()
        .map(|follows| Inherited::take(follows, settings.quotas.clone()))
        .transpose()
        .map_err(Failure::Failed)?;
    let (restored, files, lock, socket) = match inherited {
        Some(it) => (Some(it.restored), Some(it.files), it.lock, it.socket),
        None => (None, None, None, None),
    };
    let ports = restored.as_ref().and_then(|it| it.global.event_channels);
    let (threads, host) = match settings.no_domains {
        true => (Threads::start(1).map_err(NotReady::from)?, None),
        false => {
            let ports = ports.map(inherit::take).transpose();
            let ports = ports.context("the event channels were not left open");
            let (threads, host) = Host::open(ports.map_err(Failure::Failed)?)?;
            (threads, Some(host))
        }
    };
    let lock = match lock {
        Some(lock) => Lock::inherit(lock),
        None => Lock::take(&settings.run_dir, NAME).map_err(NotReady::from)?,
    };
    raise_open_files();
    let path = host::default_path();
    let listening = match socket {
        Some(socket) => Listening::inherit(socket, &path),
        None => Listening::open(&path).map_err(NotReady::from)?,
    };

    let (ending, work) = ending()?;
    let run = |daemon: Daemon, event_channels| {
        let exec = Exec::new(&threads, &listening, &lock, event_channels, user.is_none());
        let daemon = daemon
            .with_clock(threads.clone())
            .with_files(Folder::default())
            .with_successor(exec);
        threads.spawn(async move {
            daemon.run().await;
            work.done(());
        });
    };
    let on_xen = host.is_some();
    let follows = restored.is_some();
    let xenstored = match host {
        None => {
            let (daemon, xenstored) = begin(&threads, restored, settings, NoDomains);
            run(daemon, EventChannels::Unused(ports));
            xenstored
        }
        Some(Host {
            domains,
            kernel,
            news,
        }) => {
            let ports = EventChannels::Of(domains.ports.clone());
            let mut known = restored.iter().flat_map(|it| &it.connections);
            let kernel_is_known = known.any(|(_, end)| end.domid() == Some(DomId::ZERO));
            let (daemon, xenstored) = begin(&threads, restored, settings, domains);
            if follows {
                // First of all: what happened while nobody looked.
                xenstored.look_around();
            }
            run(daemon, ports);
            threads.spawn(tell_news(news, xenstored.clone()));
            if !kernel_is_known {
                block_on(xenstored.introduce(DomId::ZERO, kernel))
                    .map_err(|_| anyhow!("domain 0's kernel cannot be connected: see the log"))
                    .map_err(Failure::Failed)?;
            }
            xenstored
        }
    };
    let status = {
        let xenstored = xenstored.clone();
        // It is gone only when this process is about to be.
        move || Status::new(&block_on(xenstored.statistics()).unwrap_or_default())
    };
    let socket = StatusSocket::open(&settings.run_dir, NAME, status.clone());
    let _socket = spare(socket.map_err(NotReady::Status), follows)?;
    let accept = listening
        .listener()
        .and_then(|listener| socket::accept(threads.clone(), listener, xenstored))
        .context("the socket cannot be used")
        .map_err(Failure::Failed)?;
    threads.spawn(accept);
    if let Some(user) = &user {
        user.become_it().map_err(NotReady::from)?;
    }
    // As the user, who is to write it later on, too.
    let keep = |path: &PathBuf| {
        MetricsFile::keep(path, settings.metrics_interval, move || metrics(&status()))
    };
    let _metrics = settings.metrics_file.as_ref().map(keep).transpose();
    let _metrics = _metrics
        .context("metrics cannot be kept")
        .map_err(Failure::Failed)?;
    if let Some(files) = files {
        files.done();
    }
    let goes_on = if follows { "goes on and " } else { "" };
    let domains = if on_xen {
        "the domains of this host, and "
    } else {
        ""
    };
    log::info!("{goes_on}serves {domains}{}", path.display());
    match ending.wait() {
        End::Signal(signal) if on_xen => {
            log::warn!("stopped by {signal}: this host has no xenstore until it is booted again");
            Ok(())
        }
        End::Signal(signal) => {
            log::info!("stopped by {signal}");
            Ok(())
        }
        End::Done(()) | End::Lost => Err(Failure::Failed(anyhow!(
            "the store is gone by a fault of its own: see the log"
        ))),
    }
}

/// Has xenstored look around whenever something happened to some domain.
async fn tell_news(news: Channel, xenstored: Handle) {
    loop {
        news.wait().await;
        xenstored.look_around();
    }
}
