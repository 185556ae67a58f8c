//! One vbd: from the moment the toolstack has written its nodes until it is taken away.
//!
//! ```text
//!   toolstack    backend (we)              frontend
//!   ─────────    ────────────              ────────
//!   1 ─────────► opens the image
//!                writes its offer
//!                2 InitWait ──────────────► writes its answer
//!                maps, binds, serves ◄───── 3 Initialised
//!                4 Connected ─────────────► 4 Connected
//!   (or 5) ────► goes on ─────────────────► 5 Closing
//!                lets go of everything ◄───
//!                5 Closing ───────────────► 6 Closed, or its directory is gone
//!                6 Closed                   (1 again: from the start)
//! ```
//!
//! The order of states is that of Linux's blkback, on which toolstacks and frontends rely; see
//! `xen/include/public/io/xenbus.h` and `io/blkif.h`.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_channel::oneshot;
use parapet_hypervisor::seam::{Access, Backend, EventError, MapError};
use parapet_ring::Peer;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client, Watch};

use crate::image::{OpenError, Spec, SpecError};
use crate::negotiation::{Answer, Assignment, BadKey, Offer, Protocol};
use crate::queue::{ImageOf, Queue, QueueError, QueueSetup};
use crate::request::{Layout, X86_32, X86_64};
use crate::stats::QueueStats;

/// How all disks are served.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How long a queue looks for requests before it sleeps. Worth its price only where the
    /// frontend runs on another processor.
    pub poll: Duration,
}

/// A vbd's nodes and what is behind them.
pub struct Device<P: Backend> {
    place: P,
    store: Client,
    /// The backend's directory.
    path: String,
    options: Options,
    stats: Arc<QueueStats>,
}

/// Why a device was closed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The xenstore does not do its part.
    #[error(transparent)]
    Store(#[from] client::Error),
    /// A key makes no sense: the toolstack's or the frontend's.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The toolstack named no image.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// The frontend's ring cannot be mapped.
    #[error("the ring: {0}")]
    Ring(#[from] MapError),
    /// The frontend's event channel cannot be bound.
    #[error(transparent)]
    Events(#[from] EventError),
    /// The queue ended.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The queue's task ended without a word: its domain is being destroyed.
    #[error("the queue's task is gone")]
    QueueGone,
}

/// How a stage of a device's life ended.
enum End {
    /// The frontend closes, or is gone; it may come back.
    Frontend,
    /// The device is to go.
    Removed,
}

/// The frontend's end.
struct Frontend {
    path: String,
    domid: DomId,
}

/// A queue at work.
struct Running {
    /// Dropping it asks the queue to stop.
    stop: oneshot::Sender<()>,
    outcome: oneshot::Receiver<Result<(), QueueError>>,
}

/// What tells that a state may have changed.
struct Changes {
    own: Watch,
    frontend: Watch,
}

impl Changes {
    /// Waits for a change, or for `other`.
    async fn or<F: Future + Unpin>(
        &mut self,
        other: &mut F,
    ) -> Result<Option<F::Output>, client::Error> {
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut *other).poll(cx) {
                return Poll::Ready(Ok(Some(output)));
            }
            for watch in [&mut self.own, &mut self.frontend] {
                if let Poll::Ready(event) = watch.poll_next(cx) {
                    return Poll::Ready(event.map(|_| None));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for a change.
    async fn next(&mut self) -> Result<(), client::Error> {
        self.or(&mut std::future::pending::<()>()).await.map(drop)
    }
}

impl<P: Backend> Device<P> {
    /// The device whose backend's directory is `path`, an absolute path in the xenstore that
    /// `store` leads to.
    pub fn new(
        place: P,
        store: Client,
        path: String,
        options: Options,
        stats: Arc<QueueStats>,
    ) -> Self {
        Device {
            place,
            store,
            path,
            options,
            stats,
        }
    }

    /// Serves the device until it is removed. Whatever goes wrong closes it, with the reason in
    /// the xenstore's `error` directory; a frontend to blame may connect again, as it may after
    /// any other closing.
    ///
    /// # Errors
    /// What made it impossible to serve the device at all.
    pub async fn serve(self) -> Result<(), DeviceError> {
        let outcome = self.live().await;
        if let Err(error) = &outcome {
            self.complain(error).await;
            self.close(XenbusState::Closing).await?;
            self.wait_closed().await?;
        }
        self.close(XenbusState::Closed).await?;
        if self.place.domid() != DomId::ZERO {
            // In domain 0 the toolstack does that.
            ignore_missing(self.store.remove(&self.path).await)?;
        }
        outcome
    }

    async fn live(&self) -> Result<(), DeviceError> {
        let assignment = Keys::read(&self.store, &self.path, Assignment::KEYS).await?;
        let assignment = Assignment::parse(|key| assignment.get(key))?;
        let frontend = self.frontend().await?;
        let image: Arc<ImageOf<P>> = assignment.params.parse::<Spec>()?.open(assignment.access)?;
        let offer = Offer {
            sectors: image.sectors(),
            physical_sector_size: image.physical_sector_size(),
            read_only: image.read_only(),
            cdrom: assignment.cdrom,
            removable: assignment.removable,
        };
        let mut changes = Changes {
            own: self.store.watch(&self.path).await?,
            frontend: self
                .store
                .watch(&format!("{}/state", frontend.path))
                .await?,
        };
        loop {
            if self.removal_asked().await? {
                return Ok(());
            }
            self.make_offer(&offer).await?;
            if let End::Removed = self.wait_for_answer(&frontend, &mut changes).await? {
                return Ok(());
            }
            if let Err(error) = self.connection(&frontend, &image, &mut changes).await {
                self.complain(&error).await;
            }
            self.set_state(XenbusState::Closing).await?;
            if let End::Removed = self.wait_for_return(&frontend, &mut changes).await? {
                return Ok(());
            }
        }
    }

    /// One connection, from the frontend's answer until it closes.
    async fn connection(
        &self,
        frontend: &Frontend,
        image: &Arc<ImageOf<P>>,
        changes: &mut Changes,
    ) -> Result<(), DeviceError> {
        let mut running = self.connect(frontend, image).await?;
        self.set_state(XenbusState::Connected).await?;
        self.while_connected(frontend, changes, &mut running)
            .await?;
        drop(running.stop);
        running
            .outcome
            .await
            .map_err(|_| DeviceError::QueueGone)??;
        Ok(())
    }

    async fn frontend(&self) -> Result<Frontend, DeviceError> {
        let keys = Keys::read(&self.store, &self.path, &["frontend", "frontend-id"]).await?;
        let number = |value: String| u16::from_str(&value).ok().map(DomId);
        Ok(Frontend {
            path: keys.get("frontend").ok_or(BadKey::Missing("frontend"))?,
            domid: keys
                .get("frontend-id")
                .and_then(number)
                .filter(|domid| domid.is_domain())
                .ok_or(BadKey::Missing("frontend-id"))?,
        })
    }

    /// Writes what the frontend is to know, and lets it in, all at once.
    async fn make_offer(&self, offer: &Offer) -> Result<(), DeviceError> {
        let mut keys = offer.keys();
        keys.push(("state", state_text(XenbusState::InitWait)));
        self.write_keys(keys).await
    }

    /// Waits until the frontend has published its ring.
    async fn wait_for_answer(
        &self,
        frontend: &Frontend,
        changes: &mut Changes,
    ) -> Result<End, DeviceError> {
        loop {
            match self.state_of(&frontend.path).await? {
                XenbusState::Initialised | XenbusState::Connected => return Ok(End::Frontend),
                XenbusState::Unknown => return Ok(End::Removed),
                _ if self.removal_asked().await? => return Ok(End::Removed),
                _ => changes.next().await?,
            }
        }
    }

    /// Reads the frontend's answer, takes what it names, and starts a queue on it.
    async fn connect(
        &self,
        frontend: &Frontend,
        image: &Arc<ImageOf<P>>,
    ) -> Result<Running, DeviceError> {
        let keys: Vec<String> = Answer::keys().collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let keys = Keys::read(&self.store, &frontend.path, &keys).await?;
        let answer = Answer::parse(|key| keys.get(key))?;
        let ring = self
            .place
            .map(frontend.domid, &answer.ring, Access::ReadWrite)?;
        let Ok(ring) = Peer::new(ring) else {
            // Asked for to be writable, and the place says that it is.
            return Err(MapError::Host(0).into());
        };
        let setup = QueueSetup {
            place: self.place.clone(),
            peer: frontend.domid,
            ring,
            channel: self.place.bind(frontend.domid, answer.port)?,
            image: Arc::clone(image),
            persistent: answer.persistent,
            poll: self.options.poll,
            stats: Arc::clone(&self.stats),
        };
        match answer.protocol {
            Protocol::X86_64 => self.start::<X86_64>(setup),
            Protocol::X86_32 => self.start::<X86_32>(setup),
        }
    }

    fn start<L: Layout>(&self, setup: QueueSetup<P>) -> Result<Running, DeviceError> {
        let queue = Queue::<P, L>::new(setup)?;
        let (stop, stopped) = oneshot::channel();
        let (ended, outcome) = oneshot::channel();
        self.place.spawn(async move {
            let stopped = async {
                // An error means that the device dropped its end, as it does to stop us.
                let _: Result<(), _> = stopped.await;
            };
            // Nobody waits for the outcome if the device is gone.
            let _ = ended.send(queue.run(stopped).await);
        });
        Ok(Running { stop, outcome })
    }

    /// Waits until the frontend wants to close, or is gone.
    async fn while_connected(
        &self,
        frontend: &Frontend,
        changes: &mut Changes,
        running: &mut Running,
    ) -> Result<(), DeviceError> {
        loop {
            match changes.or(&mut running.outcome).await? {
                Some(Ok(outcome)) => outcome?,
                Some(Err(_)) => return Err(DeviceError::QueueGone),
                None => {}
            }
            match self.state_of(&frontend.path).await? {
                XenbusState::Closing | XenbusState::Closed | XenbusState::Unknown => return Ok(()),
                // It starts anew without a word of closing: a guest that crashed or kexec'd.
                XenbusState::Initialising => return Ok(()),
                _ => {}
            }
        }
    }

    /// Waits until the frontend has closed, and then until it comes again.
    async fn wait_for_return(
        &self,
        frontend: &Frontend,
        changes: &mut Changes,
    ) -> Result<End, DeviceError> {
        let mut closed = false;
        loop {
            match self.state_of(&frontend.path).await? {
                XenbusState::Unknown => return Ok(End::Removed),
                XenbusState::Initialising => return Ok(End::Frontend),
                XenbusState::Closed => {
                    if !self.is_online().await? {
                        return Ok(End::Removed);
                    }
                    if !std::mem::replace(&mut closed, true) {
                        self.set_state(XenbusState::Closed).await?;
                    }
                }
                _ => {}
            }
            changes.next().await?;
        }
    }

    /// After an error: waits until the frontend has closed, or the device is removed.
    async fn wait_closed(&self) -> Result<(), DeviceError> {
        let Ok(frontend) = self.frontend().await else {
            return Ok(());
        };
        let mut changes = Changes {
            own: self.store.watch(&self.path).await?,
            frontend: self
                .store
                .watch(&format!("{}/state", frontend.path))
                .await?,
        };
        loop {
            let state = self.state_of(&frontend.path).await?;
            let closed = matches!(state, XenbusState::Closed | XenbusState::Unknown);
            if closed || !self.is_online().await? {
                return Ok(());
            }
            changes.next().await?;
        }
    }

    /// Whether the toolstack wants the device closed: it has written a state of ours.
    async fn removal_asked(&self) -> Result<bool, DeviceError> {
        Ok(match self.state_of(&self.path).await? {
            XenbusState::Closing | XenbusState::Unknown => !self.is_online().await?,
            _ => false,
        })
    }

    async fn is_online(&self) -> Result<bool, DeviceError> {
        let online = read(&self.store, &format!("{}/online", self.path)).await?;
        Ok(online.is_some_and(|online| online == "1"))
    }

    /// The state under a directory; a missing or senseless one is `Unknown`.
    async fn state_of(&self, path: &str) -> Result<XenbusState, DeviceError> {
        let state = read(&self.store, &format!("{path}/state")).await?;
        let number = state.and_then(|state| state.parse::<u32>().ok());
        Ok(number
            .and_then(|number| XenbusState::try_from(number).ok())
            .unwrap_or(XenbusState::Unknown))
    }

    /// Sets our state.
    async fn set_state(&self, state: XenbusState) -> Result<(), DeviceError> {
        self.write_keys(vec![("state", state_text(state))]).await
    }

    /// Writes keys of ours at once; nothing if the toolstack wants the device closed, whose
    /// `Closing` must not be lost.
    async fn write_keys(&self, keys: Vec<(&'static str, String)>) -> Result<(), DeviceError> {
        let closing = state_text(XenbusState::Closing);
        let (keys, closing) = (&keys, &closing);
        let written = self.store.transaction(|tx| async move {
            let path = &self.path;
            let state = read(&tx, &format!("{path}/state")).await?;
            let online = read(&tx, &format!("{path}/online")).await?;
            if state.as_ref() == Some(closing) && online.as_deref() != Some("1") {
                return Ok(());
            }
            for (key, value) in keys {
                tx.write(&format!("{path}/{key}"), value).await?;
            }
            Ok(())
        });
        Ok(written.await?)
    }

    /// Sets a last state, unless the toolstack has removed the directory: that must not come back.
    async fn close(&self, state: XenbusState) -> Result<(), DeviceError> {
        let path = format!("{}/state", self.path);
        let written = self.store.transaction(|tx| {
            let path = path.clone();
            async move {
                tx.read(&path).await?;
                tx.write(&path, state_text(state)).await
            }
        });
        Ok(ignore_missing(written.await)?)
    }

    /// Logs the reason, and leaves it where toolstacks look for it.
    async fn complain(&self, error: &DeviceError) {
        log::warn!("{}: {error}", self.path);
        let home = format!("/local/domain/{}", self.place.domid());
        let node = self.path.strip_prefix(&home).unwrap_or(&self.path);
        let path = format!("{home}/error{node}/error");
        let text: String = error.to_string().chars().take(512).collect();
        if let Err(error) = self.store.write(&path, text).await {
            log::debug!("{path}: {error}");
        }
    }
}

impl<P: Backend> fmt::Debug for Device<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.path).finish()
    }
}

/// Some keys of a directory, as they were when read.
struct Keys(Vec<(String, String)>);

impl Keys {
    async fn read(store: &Client, path: &str, keys: &[&str]) -> Result<Self, client::Error> {
        let mut found = Vec::new();
        for key in keys {
            if let Some(value) = read(store, &format!("{path}/{key}")).await? {
                found.push(((*key).into(), value));
            }
        }
        Ok(Keys(found))
    }

    fn get(&self, wanted: &str) -> Option<String> {
        let found = self.0.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| value.clone())
    }
}

/// A node's value, if there is such a node.
async fn read(store: &Client, path: &str) -> Result<Option<String>, client::Error> {
    match store.read(path).await {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn ignore_missing(result: Result<(), client::Error>) -> Result<(), client::Error> {
    result.or_else(|error| match error.is_not_found() {
        true => Ok(()),
        false => Err(error),
    })
}

fn state_text(state: XenbusState) -> String {
    u32::from(state).to_string()
}
