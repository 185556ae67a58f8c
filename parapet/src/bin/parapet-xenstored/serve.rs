//! The daemon's life.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use parapet::daemon::xenstored::{NAME, Status};
use parapet::daemon::{
    End, Failure, ListenError, Listening, Lock, LockError, MetricsFile, StatusSocket, Unprivileged,
    UserError, ending, metrics, no_new_privileges, raise_open_files,
};
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::{Channel as _, Tasks};
use parapet_hypervisor::xen::{self, Channel, KernelXenstore, Threads, Xen};
use parapet_xen_sys::event_channel::Virq;
use parapet_xen_sys::{DomId, Port};
use parapet_xenstore::host;
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::server::files::Folder;
use parapet_xenstore::server::socket;
use parapet_xenstore::store::Store;

use crate::domains::{NoDomains, XenDomains};

/// What the command line chose.
pub(crate) struct Settings {
    pub(crate) run_dir: PathBuf,
    pub(crate) no_domains: bool,
    pub(crate) user: Option<String>,
    pub(crate) metrics_file: Option<PathBuf>,
    pub(crate) metrics_interval: Duration,
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
    fn open() -> Result<(Threads, Self), NotReady> {
        // One thread: there is one store.
        let xen = Xen::with_workers(DomId::ZERO, 1)?;
        let domains = xen::Domains::open()?;
        let threads = xen.threads().clone();
        let host = Host {
            kernel: KernelXenstore::open()?.port(),
            news: threads.bind_virq(Virq::DomExc)?,
            domains: XenDomains { xen, domains },
        };
        Ok((threads, host))
    }
}

/// What is opened for every domain that is introduced.
const EVENT_CHANNELS: &str = "/dev/xen/evtchn";

/// Serves until a signal comes.
pub(crate) fn serve(settings: &Settings) -> Result<(), Failure> {
    // Before there are threads.
    no_new_privileges();
    let user = settings.user.as_deref().map(Unprivileged::named);
    let user = user.transpose().map_err(NotReady::from)?;
    // Before the kernel takes us up, which it does with one xenstored only.
    if let Some(user) = &user {
        let devices = [EVENT_CHANNELS];
        let needed = if settings.no_domains {
            &[][..]
        } else {
            &devices
        };
        user.is_ready(needed).map_err(NotReady::from)?;
    }
    let (threads, host) = match settings.no_domains {
        true => (Threads::start(1).map_err(NotReady::from)?, None),
        false => {
            let (threads, host) = Host::open()?;
            (threads, Some(host))
        }
    };
    let _lock = Lock::take(&settings.run_dir, NAME).map_err(NotReady::from)?;
    raise_open_files();
    let path = host::default_path();
    let listening = Listening::open(&path).map_err(NotReady::from)?;

    let (ending, work) = ending()?;
    let clock = threads.clone();
    let run = |daemon: Daemon| {
        threads.spawn(async move {
            let daemon = daemon.with_clock(clock).with_files(Folder::default());
            daemon.run().await;
            work.done(());
        });
    };
    let on_xen = host.is_some();
    let xenstored = match host {
        None => {
            let (daemon, xenstored) = Daemon::of(Store::default(), NoDomains);
            run(daemon);
            xenstored
        }
        Some(Host {
            domains,
            kernel,
            news,
        }) => {
            let (daemon, xenstored) = Daemon::of(Store::default(), domains);
            run(daemon);
            threads.spawn(tell_news(news, xenstored.clone()));
            block_on(xenstored.introduce(DomId::ZERO, kernel))
                .map_err(|_| anyhow!("domain 0's kernel cannot be connected: see the log"))
                .map_err(Failure::Failed)?;
            xenstored
        }
    };
    let status = {
        let xenstored = xenstored.clone();
        // It is gone only when this process is about to be.
        move || Status::new(&block_on(xenstored.statistics()).unwrap_or_default())
    };
    let _socket =
        StatusSocket::open(&settings.run_dir, NAME, status.clone()).map_err(NotReady::Status)?;
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
    match on_xen {
        true => log::info!("serves the domains of this host, and {}", path.display()),
        false => log::info!("serves {}", path.display()),
    }
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
