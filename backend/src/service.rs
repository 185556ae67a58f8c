//! All devices of a kind in a backend's domain: finds them in the xenstore, and serves each on its
//! own.

use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_channel::mpsc;
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::Keys;

use crate::device::{Device, Entry};
use crate::kind::Kind;
use crate::report::{DeviceId, Reports};
use crate::turns::Turns;

/// What the service acts on.
enum Event {
    /// Something under this path.
    Changed(String),
    /// A device is served no more.
    Ended(DeviceId),
}

type Endings = mpsc::UnboundedSender<DeviceId>;

/// How long the nodes of a closed device outlive it in a driver domain, where nobody else removes
/// them. A toolstack takes a node that vanishes before it was seen to be closed for a failure, and
/// says nothing when it has seen it.
const AFTERLIFE: Duration = Duration::from_secs(1);

/// Transactions at once. xenstored lets a domain without privileges have ten, of which others in
/// our domain may want some.
const TRANSACTIONS: usize = 4;

/// How long a device is left alone after the xenstore refused us so that it could not even be closed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the nodes of a device that is not served say.
enum Found<L> {
    /// The toolstack has just made it.
    New,
    /// The toolstack wants it to go.
    Unwanted,
    /// A backend before us has left it in this state, and perhaps something to go on with.
    Left(String, Option<L>),
    /// It is in a state in which we do not leave one.
    Odd,
    /// It is closed, until the toolstack removes it or uses it again.
    Closed,
    /// It is not there.
    Nothing,
}

/// The backends of a kind in a domain.
pub struct Service<K: Kind> {
    place: K::Place,
    store: Client,
    kind: Arc<K>,
    turns: Turns,
    reports: Reports<K::About>,
    /// `/local/domain/N/backend/KIND`.
    root: String,
}

impl<K: Kind> Service<K> {
    /// A service for the domain `place`, whose xenstore `store` leads to.
    pub fn new(place: K::Place, store: Client, kind: K) -> Self {
        Service {
            root: format!("/local/domain/{}/backend/{}", place.domid(), K::NAME),
            place,
            store,
            kind: Arc::new(kind),
            turns: Turns::new(TRANSACTIONS),
            reports: Reports::default(),
        }
    }

    /// Where to look what the service does.
    pub fn reports(&self) -> Reports<K::About> {
        self.reports.clone()
    }

    /// Serves every device that there is and that appears, each in a task of its own, so that none
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
                    Poll::Ready(Ok(device)) => Poll::Ready(Ok(Event::Ended(device))),
                    _ => Poll::Pending,
                }
            });
            match event.await? {
                Event::Changed(path) => match self.device_of(&path) {
                    Some(device) => self.see_to(device, &ended, false).await?,
                    None => {
                        self.look_at_all(&ended, first).await?;
                        first = false;
                    }
                },
                Event::Ended(device) => {
                    self.reports.end(|ended| ended == device);
                    // Should the toolstack have made it anew meanwhile, nothing else would tell.
                    self.see_to(device, &ended, false).await?;
                }
            }
        }
    }

    /// The device that a path below our directory is about.
    fn device_of(&self, path: &str) -> Option<DeviceId> {
        let mut parts = path.strip_prefix(&self.root)?.strip_prefix('/')?.split('/');
        let (frontend, number) = (parts.next()?, parts.next()?);
        let device = DeviceId {
            frontend: DomId(frontend.parse().ok()?),
            number: number.parse().ok()?,
        };
        // Spelled otherwise it is another node, and nobody's device.
        (device.to_string() == format!("{frontend}/{number}")).then_some(device)
    }

    /// Looks at all there is: at first, and whenever an event names no device.
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
                if let Some(device) = self.device_of(&format!("{folder}/{number}")) {
                    seen.insert(device);
                    self.see_to(device, ended, first).await?;
                }
            }
        }
        if first && whole {
            // What is left of guests that are no more, which went while nobody was there.
            self.kind.forget_others(&seen);
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

    fn path(&self, device: DeviceId) -> String {
        format!("{}/{device}", self.root)
    }

    /// A node's value as text, if it is there.
    async fn read(&self, path: &str) -> Result<Option<String>, client::Error> {
        match self.store.read(path).await {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, device: DeviceId, first: bool) -> Result<Found<K::Left>, client::Error> {
        let path = self.path(device);
        let Some(state) = self.read(&format!("{path}/state")).await? else {
            return Ok(Found::Nothing);
        };
        let online = self.read(&format!("{path}/online")).await?;
        let own = Keys::new(self.store.clone(), path);
        if first
            && matches!(state.as_str(), "4" | "5")
            && let Some(left) = self.kind.find_left(device, &own).await?
        {
            return Ok(Found::Left(state, Some(left)));
        }
        Ok(match state.as_str() {
            _ if online.as_deref() == Some("0") => Found::Unwanted,
            "1" => Found::New,
            // A backend before us had nothing of the frontend's, and would have gone on like this.
            "2" | "3" | "6" if first && online.as_deref() == Some("1") => Found::New,
            "6" => Found::Closed,
            _ if first => Found::Left(state, None),
            _ => Found::Odd,
        })
    }

    /// Does what is due for a device that is not served. What the xenstore refuses for one device
    /// is no reason not to serve the others.
    async fn see_to(
        &self,
        device: DeviceId,
        ended: &Endings,
        first: bool,
    ) -> Result<(), client::Error> {
        match self.look_at(device, ended, first).await {
            Ok(()) => Ok(()),
            Err(error @ client::Error::Broken(_)) => Err(error),
            Err(error) => {
                log::warn!("{} {device}: {error}", K::NAME);
                Ok(())
            }
        }
    }

    async fn look_at(
        &self,
        device: DeviceId,
        ended: &Endings,
        first: bool,
    ) -> Result<(), client::Error> {
        if self.reports.is_alive(device) {
            return Ok(());
        }
        match self.find(device, first).await? {
            Found::New => self.serve(device, Entry::Beginning, ended),
            Found::Unwanted => self.let_go(device).await?,
            Found::Left(state, left) => {
                if left.is_none() {
                    log::warn!(
                        "{} {device}: a backend before this one has left it in state {state}, and \
                         nothing to go on with: its frontend has to connect again",
                        K::NAME
                    );
                }
                self.serve(device, Entry::Left(left), ended);
            }
            Found::Closed | Found::Odd => {}
            Found::Nothing => self.forget_error(device).await?,
        }
        Ok(())
    }

    /// Serves a device in a task of its own.
    fn serve(&self, id: DeviceId, entry: Entry<K::Left>, ended: &Endings) {
        let left = match &entry {
            Entry::Left(left) => left.as_ref(),
            Entry::Beginning => None,
        };
        let device = Device::new(
            self.place.clone(),
            self.store.clone(),
            self.path(id),
            Arc::clone(&self.kind),
            self.turns.clone(),
            self.reports.begin(id, self.kind.begin(id, left)),
        );
        let ended = ended.clone();
        let place = self.place.clone();
        self.place.spawn(async move {
            match device.serve(entry).await {
                Ok(()) => {}
                Err(error @ client::Error::Broken(_)) => log::debug!("{} {id}: {error}", K::NAME),
                Err(error) => {
                    log::warn!("{} {id}: it cannot be closed: {error}", K::NAME);
                    place.sleep(PAUSE).await;
                }
            }
            // The service may be gone.
            let _ = ended.unbounded_send(id);
        });
    }

    /// Closes a device of which we have nothing, so that the toolstack need not wait: it may have been
    /// taken away before we saw it, or have been another backend's.
    async fn let_go(&self, device: DeviceId) -> Result<(), client::Error> {
        let path = self.path(device);
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
        self.forget_error(device).await?;
        if self.place.domid() != DomId::ZERO {
            let (place, store) = (self.place.clone(), self.store.clone());
            let (turns, folder) = (
                self.turns.clone(),
                format!("{}/{}", self.root, device.frontend),
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
    async fn forget_error(&self, device: DeviceId) -> Result<(), client::Error> {
        let folder = format!("error/backend/{}/{}", K::NAME, device.frontend);
        let error = format!("{folder}/{}", device.number);
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

impl<K: Kind> Drop for Service<K> {
    fn drop(&mut self) {
        // Nobody would ever say so of those that are left.
        self.reports.end(|_| true);
    }
}

impl<K: Kind> fmt::Debug for Service<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.root).finish()
    }
}
