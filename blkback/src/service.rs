//! All vbds of a backend's domain: finds them in the xenstore, and serves each on its own.

use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_channel::mpsc;
use parapet_hypervisor::seam::Backend;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client};

use crate::budget::Budget;
use crate::device::{Device, Entry, JOURNAL_KEY, Options};
use crate::journal::{Journal, Journals, NotThere};
use crate::report::{Reports, Vbd};
use parapet_backend::turns::Turns;

/// What the service acts on.
enum Event {
    /// Something under this path.
    Changed(String),
    /// A device is served no more.
    Ended(Vbd),
}

type Endings = mpsc::UnboundedSender<Vbd>;

/// How long the nodes of a closed device outlive it in a driver domain, where nobody else removes
/// them. A toolstack takes a node that vanishes before it was seen to be closed for a failure, and
/// says nothing when it has seen it.
const AFTERLIFE: Duration = Duration::from_secs(1);

/// Transactions at once. xenstored lets a domain without privileges have ten, of which others in
/// our domain may want some.
const TRANSACTIONS: usize = 4;

/// How long a vbd is left alone after the xenstore refused us so that it could not even be closed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the nodes of a vbd that is not served say.
enum Found {
    /// The toolstack has just made it.
    New,
    /// The toolstack wants it to go.
    Unwanted,
    /// A backend before us died with it, and left its journal.
    Crashed(Journal),
    /// A backend before us has left it like this, and nothing else.
    Left(String),
    /// It is in a state in which we do not leave one.
    Odd,
    /// It is closed, until the toolstack removes it or uses it again.
    Closed,
    /// It is not there.
    Nothing,
}

/// The backends of a domain.
pub struct Service<P: Backend> {
    place: P,
    store: Client,
    options: Options,
    budget: Budget,
    turns: Turns,
    reports: Reports,
    journals: Option<Journals>,
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
            budget: Budget::new(options.persistent_pages),
            turns: Turns::new(TRANSACTIONS),
            options,
            reports: Reports::default(),
            journals: None,
        }
    }

    /// Keeps journals of what is in flight, so that a service that comes after this one crashed
    /// goes on where it was.
    pub fn keeping(mut self, journals: Journals) -> Self {
        self.journals = Some(journals);
        self
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
        let mut first = true;
        let (ended, mut endings) = mpsc::unbounded();
        loop {
            let mut next_ending = endings.recv();
            let event = poll_fn(|cx| {
                if let Poll::Ready(event) = watch.poll_event(cx) {
                    return Poll::Ready(event.map(|event| Event::Changed(event.path)));
                }
                // We hold a sender, so there is no end.
                match Pin::new(&mut next_ending).poll(cx) {
                    Poll::Ready(Ok(vbd)) => Poll::Ready(Ok(Event::Ended(vbd))),
                    _ => Poll::Pending,
                }
            });
            match event.await? {
                Event::Changed(path) => match self.vbd_of(&path) {
                    Some(vbd) => self.see_to(vbd, &ended, false).await?,
                    None => {
                        self.look_at_all(&ended, first).await?;
                        first = false;
                    }
                },
                Event::Ended(vbd) => {
                    self.reports.end(|ended| ended == vbd);
                    // Should the toolstack have made it anew meanwhile, nothing else would tell.
                    self.see_to(vbd, &ended, false).await?;
                }
            }
        }
    }

    /// The vbd that a path below our directory is about.
    fn vbd_of(&self, path: &str) -> Option<Vbd> {
        let mut parts = path.strip_prefix(&self.root)?.strip_prefix('/')?.split('/');
        let (frontend, number) = (parts.next()?, parts.next()?);
        let vbd = Vbd {
            frontend: DomId(frontend.parse().ok()?),
            number: number.parse().ok()?,
        };
        // Spelled otherwise it is another node, and nobody's disk.
        (vbd.to_string() == format!("{frontend}/{number}")).then_some(vbd)
    }

    /// Looks at all there is: at first, and whenever an event names no vbd.
    async fn look_at_all(&self, ended: &Endings, first: bool) -> Result<(), client::Error> {
        let mut seen = BTreeSet::new();
        let mut whole = true;
        let mut names = |found: Option<Vec<String>>| {
            whole &= found.is_some();
            found.unwrap_or_default()
        };
        for domid in names(self.list(&self.root).await?) {
            let folder = format!("{}/{domid}", self.root);
            for number in names(self.list(&folder).await?) {
                if let Some(vbd) = self.vbd_of(&format!("{folder}/{number}")) {
                    seen.insert(vbd);
                    self.see_to(vbd, ended, first).await?;
                }
            }
        }
        if first
            && whole
            && let Some(journals) = &self.journals
        {
            // Those of guests that are no more, which went while nobody was there.
            if let Err(error) = journals.retain(|vbd| seen.contains(&vbd)) {
                log::warn!("old journals are not removed: {error}");
            }
        }
        Ok(())
    }

    /// The names in a folder, of which there are none if it is not there; nothing if we may not
    /// know.
    async fn list(&self, path: &str) -> Result<Option<Vec<String>>, client::Error> {
        match self.store.list(path).await {
            Ok(names) => Ok(Some(names)),
            Err(error @ client::Error::Broken(_)) => Err(error),
            Err(error) if error.is_not_found() => Ok(Some(Vec::new())),
            Err(error) => {
                log::warn!("{path} is not looked at: {error}");
                Ok(None)
            }
        }
    }

    fn path(&self, vbd: Vbd) -> String {
        format!("{}/{vbd}", self.root)
    }

    /// A node's value as text, if it is there.
    async fn read(&self, path: &str) -> Result<Option<String>, client::Error> {
        match self.store.read(path).await {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, vbd: Vbd, first: bool) -> Result<Found, client::Error> {
        let path = self.path(vbd);
        let Some(state) = self.read(&format!("{path}/state")).await? else {
            return Ok(Found::Nothing);
        };
        let online = self.read(&format!("{path}/online")).await?;
        if first
            && matches!(state.as_str(), "4" | "5")
            && let Some(journal) = self.journal_of(vbd).await?
        {
            return Ok(Found::Crashed(journal));
        }
        Ok(match state.as_str() {
            _ if online.as_deref() == Some("0") => Found::Unwanted,
            "1" => Found::New,
            // A backend before us had nothing of the frontend's, and would have gone on like this.
            "2" | "3" | "6" if first && online.as_deref() == Some("1") => Found::New,
            "6" => Found::Closed,
            _ if first => Found::Left(state),
            _ => Found::Odd,
        })
    }

    /// The journal of a vbd's connection, if there is one.
    async fn journal_of(&self, vbd: Vbd) -> Result<Option<Journal>, client::Error> {
        let Some(journals) = &self.journals else {
            return Ok(None);
        };
        let name = format!("{}/{JOURNAL_KEY}", self.path(vbd));
        let Some(name) = self.read(&name).await? else {
            return Ok(None);
        };
        match journals.open(vbd, &name) {
            Ok(journal) => Ok(Some(journal)),
            Err(NotThere::None) => Ok(None),
            Err(error) => {
                log::warn!("vbd {vbd}: {error}");
                Ok(None)
            }
        }
    }

    /// Does what is due for a vbd that is not served. What the xenstore refuses for one vbd is no
    /// reason not to serve the others.
    async fn see_to(&self, vbd: Vbd, ended: &Endings, first: bool) -> Result<(), client::Error> {
        match self.look_at(vbd, ended, first).await {
            Ok(()) => Ok(()),
            Err(error @ client::Error::Broken(_)) => Err(error),
            Err(error) => {
                log::warn!("vbd {vbd}: {error}");
                Ok(())
            }
        }
    }

    async fn look_at(&self, vbd: Vbd, ended: &Endings, first: bool) -> Result<(), client::Error> {
        if self.reports.is_alive(vbd) {
            return Ok(());
        }
        match self.find(vbd, first).await? {
            Found::New => self.serve(vbd, Entry::Beginning, ended),
            Found::Unwanted => self.let_go(vbd).await?,
            Found::Crashed(journal) => self.serve(vbd, Entry::Left(Some(journal)), ended),
            Found::Left(state) => {
                log::warn!(
                    "vbd {vbd}: a backend before this one has left it in state {state}, and no \
                     journal: its frontend has to connect again"
                );
                self.serve(vbd, Entry::Left(None), ended);
            }
            Found::Closed | Found::Odd => {}
            Found::Nothing => self.forget_error(vbd).await?,
        }
        Ok(())
    }

    /// Serves a vbd in a task of its own.
    fn serve(&self, vbd: Vbd, entry: Entry, ended: &Endings) {
        let left = match &entry {
            Entry::Left(Some(journal)) => journal.header().slots.len(),
            _ => 0,
        };
        // Which one before us may have offered more of.
        let queues = self
            .options
            .queues
            .max(u32::try_from(left).unwrap_or(u32::MAX));
        let device = Device::new(
            self.place.clone(),
            self.store.clone(),
            self.path(vbd),
            self.options,
            self.budget.clone(),
            self.turns.clone(),
            self.reports.begin(vbd, queues),
        )
        .keeping(self.journals.clone());
        let ended = ended.clone();
        let place = self.place.clone();
        self.place.spawn(async move {
            match device.serve(entry).await {
                Ok(()) => {}
                Err(error @ client::Error::Broken(_)) => log::debug!("vbd {vbd}: {error}"),
                Err(error) => {
                    log::warn!("vbd {vbd}: it cannot be closed: {error}");
                    place.sleep(PAUSE).await;
                }
            }
            // The service may be gone.
            let _ = ended.unbounded_send(vbd);
        });
    }

    /// Closes a vbd of which we have nothing, so that the toolstack need not wait: it may have been
    /// taken away before we saw it, or have been another backend's.
    async fn let_go(&self, vbd: Vbd) -> Result<(), client::Error> {
        let path = self.path(vbd);
        let state = format!("{path}/state");
        let closed = u32::from(XenbusState::Closed).to_string();
        let (state, closed) = (&state, &closed);
        let written = self.store.transaction(|tx| async move {
            match tx.read(state).await {
                Ok(now) if now == closed.as_bytes() => Ok(()),
                Ok(_) => tx.write(state, closed).await,
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) => Err(error),
            }
        });
        self.turns.take(written).await?;
        self.forget_error(vbd).await?;
        if self.place.domid() != DomId::ZERO {
            let (place, store) = (self.place.clone(), self.store.clone());
            let (turns, folder) = (
                self.turns.clone(),
                format!("{}/{}", self.root, vbd.frontend),
            );
            self.place.spawn(async move {
                place.sleep(AFTERLIFE).await;
                if let Err(error) = turns.take(remove_if_unwanted(&store, &path)).await {
                    log::warn!("{path} cannot be removed: {error}");
                }
                // Which a toolstack may want to keep for itself.
                if let Err(error) = turns.take(remove_if_empty(&store, &folder)).await {
                    log::debug!("{folder} cannot be removed: {error}");
                }
            });
        }
        Ok(())
    }

    /// Removes the error that was left for people, now that the device is gone.
    async fn forget_error(&self, vbd: Vbd) -> Result<(), client::Error> {
        let folder = format!("error/backend/vbd/{}", vbd.frontend);
        let error = format!("{folder}/{}", vbd.number);
        let (folder, error) = (&folder, &error);
        let forgotten = self.store.transaction(|tx| async move {
            tx.remove(error).await?;
            match tx.list(folder).await?.is_empty() {
                true => tx.remove(folder).await,
                false => Ok(()),
            }
        });
        match self.turns.take(forgotten).await {
            Err(error) if error.is_not_found() => Ok(()),
            forgotten => forgotten,
        }
    }
}

/// Removes a device's directory, if it is still that of a device that is closed and not wanted.
async fn remove_if_unwanted(store: &Client, path: &str) -> Result<(), client::Error> {
    let removed = store.transaction(|tx| async move {
        let state = tx.read(&format!("{path}/state")).await?;
        let online = tx.read(&format!("{path}/online")).await?;
        match (state.as_slice(), online.as_slice()) {
            (b"6", b"0") => tx.remove(path).await,
            _ => Ok(()),
        }
    });
    match removed.await {
        Err(error) if error.is_not_found() => Ok(()),
        removed => removed,
    }
}

/// Removes a directory that has nothing in it.
async fn remove_if_empty(store: &Client, path: &str) -> Result<(), client::Error> {
    let removed = store.transaction(|tx| async move {
        match tx.list(path).await?.is_empty() {
            true => tx.remove(path).await,
            false => Ok(()),
        }
    });
    match removed.await {
        Err(error) if error.is_not_found() => Ok(()),
        removed => removed,
    }
}

impl<P: Backend> Drop for Service<P> {
    fn drop(&mut self) {
        // Nobody would ever say so of those that are left.
        self.reports.end(|_| true);
    }
}

impl<P: Backend> fmt::Debug for Service<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.root).finish()
    }
}
