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
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_channel::oneshot;
use parapet_hypervisor::seam::{self, Access, EventError, MapError};
use parapet_ring::Peer;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::client::{self, Client, Watch};
use parapet_xenstore::xenbus::{self, Backend, Closing, End, InitWait, Initialising, Keys};

use crate::image::{OpenError, Spec, SpecError};
use crate::limit::Limit;
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
pub struct Device<P: seam::Backend> {
    place: P,
    store: Client,
    /// The backend's directory.
    path: String,
    options: Options,
    stats: Arc<QueueStats>,
    complaints: Mutex<Limit>,
}

/// Why a device was closed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The handshake failed.
    #[error(transparent)]
    Xenbus(#[from] xenbus::Error),
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
}

impl From<client::Error> for DeviceError {
    fn from(error: client::Error) -> Self {
        xenbus::Error::from(error).into()
    }
}

impl DeviceError {
    /// The number that goes with the reason in the xenstore.
    fn errno(&self) -> Errno {
        match self {
            DeviceError::Xenbus(_) | DeviceError::Key(_) | DeviceError::Spec(_) => Errno::EINVAL,
            DeviceError::Ring(_) | DeviceError::Events(_) => Errno::EACCES,
            DeviceError::Image(_) | DeviceError::Queue(_) => Errno::EIO,
        }
    }
}

/// A queue at work.
struct Running {
    /// Dropping it asks the queue to stop.
    stop: oneshot::Sender<()>,
    outcome: oneshot::Receiver<Result<(), QueueError>>,
}

/// Why a connection is over.
enum Over {
    /// The frontend has left.
    Left,
    /// The queue has ended by itself.
    Ended(Result<(), DeviceError>),
}

impl Running {
    /// Waits until something has changed. Whether the connection is over by that.
    async fn is_over(
        &mut self,
        end: &End,
        changes: &mut Changes,
    ) -> Result<Option<Over>, DeviceError> {
        let ended = changes.or(&mut self.outcome).await?;
        if let Some(outcome) = ended {
            let outcome = outcome.unwrap_or(Ok(())).map_err(DeviceError::from);
            return Ok(Some(Over::Ended(outcome)));
        }
        Ok(match frontend_state(end).await? {
            // One that is back at the beginning has not said a word of closing: its guest crashed,
            // or began anew.
            XenbusState::Closing | XenbusState::Closed | XenbusState::Initialising => {
                Some(Over::Left)
            }
            _ => None,
        })
    }

    /// Makes sure that the queue has let go of everything, and says how it fared.
    async fn stop(self, over: Over) -> Result<(), DeviceError> {
        match over {
            Over::Ended(outcome) => outcome,
            Over::Left => {
                drop(self.stop);
                // A task that is gone has let go.
                Ok(self.outcome.await.unwrap_or(Ok(()))?)
            }
        }
    }
}

/// What tells that a state may have changed: ours, which the toolstack writes too, or the
/// frontend's.
struct Changes([Watch; 2]);

impl Changes {
    async fn of(end: &End) -> Result<Self, client::Error> {
        let (own, other) = (end.own().base(), end.other().path("state"));
        Ok(Changes([
            end.client().watch(own).await?,
            end.client().watch(&other).await?,
        ]))
    }

    /// Waits for a change, or for `other`.
    async fn or<F>(&mut self, other: &mut F) -> Result<Option<F::Output>, client::Error>
    where
        F: Future + Unpin,
    {
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut *other).poll(cx) {
                return Poll::Ready(Ok(Some(output)));
            }
            for watch in &mut self.0 {
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

/// The frontend's state; `Unknown` if it makes no sense, and `Closed` if it is gone.
async fn frontend_state(end: &End) -> Result<XenbusState, DeviceError> {
    match end.other().state().await {
        Err(xenbus::Error::Peer { .. }) => Ok(XenbusState::Unknown),
        state => Ok(state?),
    }
}

/// As much of an error as fits a node: a peer's words, or a long path, may be part of it.
fn words(error: &DeviceError) -> String {
    error.to_string().chars().take(512).collect()
}

impl<P: seam::Backend> Device<P> {
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
            complaints: Mutex::new(Limit::new(path.clone())),
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
        let outcome = match Backend::open(&self.store, &self.path).await {
            Ok(backend) => self.live(backend).await,
            Err(error) => Err(error.into()),
        };
        match outcome {
            // The toolstack did not wait for us: there is nothing left to close.
            Err(DeviceError::Xenbus(xenbus::Error::Store(error))) if error.is_not_found() => {}
            Err(error) => {
                self.end(&error).await?;
                return Err(error);
            }
            Ok(()) => {}
        }
        if self.place.domid() != DomId::ZERO {
            // In domain 0 the toolstack does that.
            match self.store.remove(&self.path).await {
                Err(error) if error.is_not_found() => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Sees to it that nobody waits for a device that is served no more, whatever state it was in.
    async fn end(&self, error: &DeviceError) -> Result<(), client::Error> {
        self.complain(error);
        let path = &self.path;
        self.store
            .transaction(|tx| async move {
                let own = Keys::new(tx.clone(), path.clone());
                match tx.read(&own.path("state")).await {
                    Ok(_) => own.set("state", u32::from(XenbusState::Closed)).await,
                    Err(error) if error.is_not_found() => Ok(()),
                    Err(error) => Err(error),
                }
            })
            .await
    }

    /// Logs an error, at a limited rate: a frontend may cause one at each connection.
    fn complain(&self, error: &DeviceError) {
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        complaints.warn(self.place.now(), || words(error));
    }

    /// Logs an error, and leaves it where toolstacks look for it.
    async fn report(&self, end: &End, error: &DeviceError) -> Result<(), client::Error> {
        self.complain(error);
        end.report(error.errno(), &words(error)).await
    }

    async fn live(&self, mut backend: Backend<Initialising>) -> Result<(), DeviceError> {
        let mut changes = Changes::of(&backend).await?;
        let (image, offer) = match self.open_image(backend.own()).await {
            Ok(opened) => opened,
            Err(error) => {
                self.report(&backend, &error).await?;
                backend.hotplug_failed(&words(&error)).await?;
                let closing = backend.close().await?;
                while closing.is_online().await?
                    && frontend_state(&closing).await? != XenbusState::Closed
                {
                    changes.next().await?;
                }
                closing.closed_first().await?;
                return Err(error);
            }
        };
        loop {
            let keys = offer.keys();
            let waiting = backend
                .announce(|own| {
                    let keys = keys.clone();
                    async move {
                        for (key, value) in keys {
                            own.set(key, value).await?;
                        }
                        Ok(())
                    }
                })
                .await?;
            let closing = self.one_connection(waiting, &image, &mut changes).await?;
            loop {
                let frontend = frontend_state(&closing).await?;
                // One back at the beginning waits for us to be so too.
                if matches!(frontend, XenbusState::Closed | XenbusState::Initialising) {
                    break;
                }
                changes.next().await?;
            }
            let closed = closing.closed_first().await?;
            loop {
                if !closed.is_online().await? {
                    return Ok(());
                }
                if frontend_state(&closed).await? == XenbusState::Initialising {
                    break;
                }
                changes.next().await?;
            }
            backend = closed.reopen().await?;
        }
    }

    /// Finds out which disk it is.
    async fn open_image(&self, own: &Keys) -> Result<(Arc<ImageOf<P>>, Offer), DeviceError> {
        let keys = Found::read(own, Assignment::KEYS.iter().copied()).await?;
        let assignment = Assignment::parse(|key| keys.get(key))?;
        let image: Arc<ImageOf<P>> = assignment.params.parse::<Spec>()?.open(assignment.access)?;
        let offer = Offer {
            sectors: image.sectors(),
            physical_sector_size: image.physical_sector_size(),
            read_only: image.read_only(),
            cdrom: assignment.cdrom,
            removable: assignment.removable,
        };
        Ok((image, offer))
    }

    /// One connection: from the frontend's answer until it leaves, or until it is clear that there
    /// will be none. By the end nothing of the frontend's is mapped.
    async fn one_connection(
        &self,
        waiting: Backend<InitWait>,
        image: &Arc<ImageOf<P>>,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, DeviceError> {
        loop {
            if !waiting.is_online().await? {
                return Ok(waiting.close().await?);
            }
            match frontend_state(&waiting).await? {
                XenbusState::Initialised | XenbusState::Connected => break,
                _ => changes.next().await?,
            }
        }
        let mut running = match self.connect(&waiting, image).await {
            Ok(running) => running,
            Err(error) => {
                self.report(&waiting, &error).await?;
                return Ok(waiting.close().await?);
            }
        };
        let connected = waiting.connect(async |_| Ok(())).await?;
        loop {
            if let Some(over) = running.is_over(&connected, changes).await? {
                if let Err(error) = running.stop(over).await {
                    self.report(&connected, &error).await?;
                }
                return Ok(connected.close().await?);
            }
            if !connected.is_online().await? {
                break;
            }
        }
        // The toolstack has asked the frontend to go, by way of our state, which may have been
        // overwritten at that moment. It is served until it does go.
        let closing = connected.close().await?;
        let over = loop {
            if let Some(over) = running.is_over(&closing, changes).await? {
                break over;
            }
        };
        if let Err(error) = running.stop(over).await {
            self.report(&closing, &error).await?;
        }
        Ok(closing)
    }

    /// Reads the frontend's answer, takes what it names, and starts a queue on it.
    async fn connect(
        &self,
        waiting: &Backend<InitWait>,
        image: &Arc<ImageOf<P>>,
    ) -> Result<Running, DeviceError> {
        let keys: Vec<String> = Answer::keys().collect();
        let keys = Found::read(waiting.other(), keys.iter().map(String::as_str)).await?;
        let answer = Answer::parse(|key| keys.get(key))?;
        let peer = waiting.other_domid();
        let ring = self.place.map(peer, &answer.ring, Access::ReadWrite)?;
        let Ok(ring) = Peer::new(ring) else {
            // Asked for to be writable, and the place says that it is.
            return Err(MapError::Host(0).into());
        };
        let setup = QueueSetup {
            place: self.place.clone(),
            peer,
            ring,
            channel: self.place.bind(peer, answer.port)?,
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
}

impl<P: seam::Backend> fmt::Debug for Device<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.path).finish()
    }
}

/// Some keys of a directory, as they were when read.
struct Found(Vec<(String, String)>);

impl Found {
    async fn read(folder: &Keys, keys: impl Iterator<Item = &str>) -> Result<Self, DeviceError> {
        let mut found = Vec::new();
        for key in keys {
            if let Some(value) = folder.find(key).await? {
                found.push((key.into(), value));
            }
        }
        Ok(Found(found))
    }

    fn get(&self, wanted: &str) -> Option<String> {
        let found = self.0.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| value.clone())
    }
}
