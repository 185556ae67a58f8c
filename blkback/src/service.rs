//! All vbds of a backend's domain: finds them in the xenstore, and serves each on its own.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use futures_channel::mpsc;
use parapet_hypervisor::seam::Backend;
use parapet_xen_sys::DomId;
use parapet_xenstore::client::{self, Client};

use crate::device::{Device, Options};
use crate::stats::QueueStats;

/// A vbd: whose it is, and the number that the toolstack gave it (202 << 8 for `xvda`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vbd {
    /// The frontend's domain.
    pub frontend: DomId,
    /// Its number there.
    pub number: u32,
}

impl fmt::Display for Vbd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frontend, self.number)
    }
}

/// What is known of a vbd.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which one.
    pub vbd: Vbd,
    /// Whether it is being served.
    pub alive: bool,
    /// Why it could not be served, if that happened.
    pub error: Option<String>,
    /// What its queue did.
    pub stats: Arc<QueueStats>,
}

/// So many reports, those of vbds that are no more are forgotten.
const MOST_REPORTS: usize = 1024;

/// Every vbd that a [`Service`] has met, for others to look at. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Reports(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    reports: BTreeMap<Vbd, Report>,
    /// Who waits for the end of a vbd.
    waiting: Vec<Waker>,
}

impl Known {
    fn is_alive(&self, vbd: Vbd) -> bool {
        self.reports.get(&vbd).is_some_and(|report| report.alive)
    }
}

impl Reports {
    /// The reports as of now, in the order of domains.
    pub fn all(&self) -> Vec<Report> {
        self.with(|known| known.reports.values().cloned().collect())
    }

    /// Waits until `vbd` is served no more, and nothing of it is open or mapped. Its nodes say so
    /// a little earlier: a closed device may still wait for its frontend to come back.
    pub async fn ended(&self, vbd: Vbd) {
        poll_fn(|cx| {
            self.with(|known| {
                if !known.is_alive(vbd) {
                    return Poll::Ready(());
                }
                let waker = cx.waker();
                if !known.waiting.iter().any(|known| known.will_wake(waker)) {
                    known.waiting.push(waker.clone());
                }
                Poll::Pending
            })
        })
        .await;
    }

    /// Takes note that the devices that `which` names are served no more.
    fn end(&self, which: impl Fn(Vbd) -> bool, error: Option<&str>) {
        let waiting = self.with(|known| {
            let reports = known.reports.values_mut();
            for report in reports.filter(|report| report.alive && which(report.vbd)) {
                report.alive = false;
                report.error = error.map(str::to_owned);
            }
            std::mem::take(&mut known.waiting)
        });
        waiting.into_iter().for_each(Waker::wake);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the service acts on.
enum Event {
    /// Something under this path.
    Changed(String),
    /// A device, with the reason if there was a bad one.
    Ended(Vbd, Option<String>),
}

type Endings = mpsc::UnboundedSender<(Vbd, Option<String>)>;

/// The backends of a domain.
pub struct Service<P: Backend> {
    place: P,
    store: Client,
    options: Options,
    reports: Reports,
    /// `/local/domain/N/backend/vbd`.
    root: String,
}

impl<P: Backend> Service<P> {
    /// A service for the domain `place`, whose xenstore `store` leads to.
    pub fn new(place: P, store: Client, options: Options) -> Self {
        Service {
            root: format!("/local/domain/{}/backend/vbd", place.domid()),
            place,
            store,
            options,
            reports: Reports::default(),
        }
    }

    /// Where to look what the service does.
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// Serves every vbd that there is and that appears, each in a task of its own, so that none
    /// bothers another.
    ///
    /// # Errors
    /// The xenstore is gone.
    pub async fn run(self) -> Result<(), client::Error> {
        let mut watch = self.store.watch(&self.root).await?;
        let (ended, mut endings) = mpsc::unbounded();
        loop {
            let mut next_ending = endings.recv();
            let event = poll_fn(|cx| {
                if let Poll::Ready(event) = watch.poll_next(cx) {
                    return Poll::Ready(event.map(|event| Event::Changed(event.path)));
                }
                // We hold a sender, so there is no end.
                match Pin::new(&mut next_ending).poll(cx) {
                    Poll::Ready(Ok((vbd, error))) => Poll::Ready(Ok(Event::Ended(vbd, error))),
                    _ => Poll::Pending,
                }
            });
            let event = event.await?;
            match event {
                Event::Changed(path) => match self.vbd_of(&path) {
                    Some(vbd) => self.look_at(vbd, &ended).await?,
                    None => self.look_at_all(&ended).await?,
                },
                Event::Ended(vbd, error) => {
                    self.reports.end(|ended| ended == vbd, error.as_deref());
                    // Should the toolstack have made it anew meanwhile, nothing else would tell.
                    self.look_at(vbd, &ended).await?;
                }
            }
        }
    }

    /// The vbd that a path below our directory is about.
    fn vbd_of(&self, path: &str) -> Option<Vbd> {
        let mut parts = path.strip_prefix(&self.root)?.strip_prefix('/')?.split('/');
        let vbd = Vbd {
            frontend: DomId(parts.next()?.parse().ok()?),
            number: parts.next()?.parse().ok()?,
        };
        Some(vbd)
    }

    /// Looks at all there is: at first, and whenever an event names no vbd.
    async fn look_at_all(&self, ended: &Endings) -> Result<(), client::Error> {
        for domid in self.list(&self.root).await? {
            let folder = format!("{}/{domid}", self.root);
            for number in self.list(&folder).await? {
                if let Some(vbd) = self.vbd_of(&format!("{folder}/{number}")) {
                    self.look_at(vbd, ended).await?;
                }
            }
        }
        Ok(())
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, client::Error> {
        match self.store.list(path).await {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            names => names,
        }
    }

    /// Serves a vbd that is not served, if the toolstack has just made it.
    async fn look_at(&self, vbd: Vbd, ended: &Endings) -> Result<(), client::Error> {
        if self.reports.with(|known| known.is_alive(vbd)) {
            return Ok(());
        }
        let path = format!("{}/{vbd}", self.root);
        // Only this state is the toolstack's; any other is what a device of ours has left.
        match self.store.read(&format!("{path}/state")).await {
            Ok(state) if state == b"1" => {}
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
        let stats = Arc::new(QueueStats::default());
        let report = Report {
            vbd,
            alive: true,
            error: None,
            stats: Arc::clone(&stats),
        };
        self.reports.with(|known| {
            let reports = &mut known.reports;
            if reports.len() >= MOST_REPORTS {
                // Guests come and go for years.
                reports.retain(|_, report| report.alive);
            }
            reports.insert(vbd, report);
        });
        let device = Device::new(
            self.place.clone(),
            self.store.clone(),
            path,
            self.options,
            stats,
        );
        let ended = ended.clone();
        self.place.spawn(async move {
            let error = device.serve().await.err().map(|error| error.to_string());
            // The service may be gone.
            let _ = ended.unbounded_send((vbd, error));
        });
        Ok(())
    }
}

impl<P: Backend> Drop for Service<P> {
    fn drop(&mut self) {
        // Nobody would ever say so of those that are left.
        self.reports.end(|_| true, Some("the service has ended"));
    }
}

impl<P: Backend> fmt::Debug for Service<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.root).finish()
    }
}
