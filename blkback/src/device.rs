//! One vbd: from the moment the toolstack has written its nodes until it is taken away.
//!
//! ```text
//!   toolstack    backend (we)              frontend
//!   ─────────    ────────────              ────────
//!   1 ─────────► opens the image
//!                writes its offer
//!                2 InitWait ──────────────► writes its answer
//!   script ────► maps, binds, serves ◄───── 3 Initialised
//!                4 Connected ─────────────► 4 Connected
//!   (or 5) ────► 5 Closing, and serves on ◄ 5 Closing
//!                lets go of everything ◄─── 6 Closed, or its directory is gone
//!                6 Closed                   (1 again: from the start)
//! ```
//!
//! The order of states is that of Linux's blkback, on which toolstacks and frontends rely; see
//! `xen/include/public/io/xenbus.h` and `io/blkif.h`. A frontend that is Closing may still finish
//! what it has begun: some Linux guests go on using a disk for as long as it is mounted.
//!
//! The toolstack takes a device away by `online` = 0, at any moment. One that is not connected is
//! Closed at once then, whatever its frontend does, since a toolstack waits for that.
//!
//! In domain 0 libxl runs the script that the key `script` names as soon as it sees InitWait, and
//! the script says in `hotplug-status` whether the device may be connected. An image that cannot
//! be opened is an `error` there too, which `block-parapet` hands on to whoever attached the disk.

mod connection;
mod recovery;
mod upkeep;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parapet_hypervisor::seam::{self, EventError, MapError};
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::{self, Backend, Closed, Closing, End, InitWait, Initialising, Keys};

use crate::budget::Budget;
use crate::image::{Access, OpenError, Spec, SpecError};
use crate::journal::{Journal, Journals};
use crate::negotiation::{Assignment, BadKey, Offer};
use crate::queue::{ImageOf, QueueError};
use crate::report::{Disk, Record, Stage};
use crate::terms::Terms;
use connection::Changes;
use parapet_backend::limit::{Limit, Pace};
use parapet_backend::turns::Turns;

/// How long a queue may look for requests where the frontend runs on another processor: longer than
/// two wake-ups across processors of a virtual machine, or it would never find any there.
pub const POLL: Duration = Duration::from_micros(100);

/// How all disks are served.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a queue may look for requests before it sleeps; it does for less if that is of no
    /// use. Worth its price only where the frontend runs on another processor.
    pub poll: Duration,
    /// How many queues a disk may have: at least one.
    pub queues: u32,
    /// How many pages of guests' may stay mapped, over all disks: a part of the mappings that the
    /// host lets a process have, since each such page is one. Without a number there is no bound.
    pub persistent_pages: Option<usize>,
}

/// One queue, which sleeps when there is nothing to do, and as many pages as it likes.
impl Default for Options {
    fn default() -> Self {
        Options {
            poll: Duration::ZERO,
            queues: 1,
            persistent_pages: None,
        }
    }
}

/// The key in the backend's directory that has the name of the connection's journal: there the
/// frontend cannot write.
pub(crate) const JOURNAL_KEY: &str = "parapet-journal";

/// How a device is found.
pub(crate) enum Entry {
    /// At its beginning, or to be put there.
    Beginning,
    /// As a backend before us has left it that had connected: with its journal, or without.
    Left(Option<Journal>),
}

/// A vbd's nodes and what is behind them.
pub(crate) struct Device<P: seam::Backend> {
    place: P,
    store: Client,
    /// The backend's directory.
    path: String,
    options: Options,
    budget: Budget,
    /// For transactions: a domain may have only so many at once.
    turns: Turns,
    /// Where to write down what is in flight.
    journals: Option<Journals>,
    record: Record,
    complaints: Limit,
    connections: Limit,
}

/// Why a device was closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// The handshake failed.
    #[error(transparent)]
    Xenbus(#[from] xenbus::Error),
    /// A key makes no sense: the toolstack's or the frontend's.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The toolstack named no image.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A drive without a medium.
    #[error(
        "the CD drive is empty, which is not supported: give it an image, or leave it out of the \
         guest's disks"
    )]
    EmptyDrive,
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// The toolstack's script failed.
    #[error("the hotplug script failed: {0}")]
    Script(String),
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
            DeviceError::EmptyDrive
            | DeviceError::Script(_)
            | DeviceError::Image(_)
            | DeviceError::Queue(_) => Errno::EIO,
        }
    }
}

/// The frontend's state; `Unknown` if it makes no sense, and `Closed` if it is gone.
async fn frontend_state(end: &End) -> Result<XenbusState, DeviceError> {
    match end.other().state().await {
        Err(xenbus::Error::Peer { .. }) => Ok(XenbusState::Unknown),
        state => Ok(state?),
    }
}

/// Whether the toolstack has put a device that was past its beginning back there, as it does when
/// it makes another in its place.
async fn is_back_at_the_beginning(end: &End) -> Result<bool, DeviceError> {
    let state: Option<String> = end.own().find("state").await?;
    Ok(state.as_deref() == Some("1"))
}

/// As much of an error as fits a node: a peer's words, or a long path, may be part of it.
fn words(error: &DeviceError) -> String {
    error.to_string().chars().take(512).collect()
}

impl<P: seam::Backend> Device<P> {
    /// The device whose backend's directory is `path`, an absolute path in the xenstore that
    /// `store` leads to.
    pub(crate) fn new(
        place: P,
        store: Client,
        path: String,
        options: Options,
        budget: Budget,
        turns: Turns,
        record: Record,
    ) -> Self {
        let limit = || Limit::new(format!("vbd {}", record.vbd()));
        Device {
            complaints: limit(),
            connections: limit(),
            place,
            store,
            path,
            options,
            budget,
            turns,
            journals: None,
            record,
        }
    }

    /// Writes down what is in flight.
    pub(crate) fn keeping(mut self, journals: Option<Journals>) -> Self {
        self.journals = journals;
        self
    }

    /// Serves the device until it is removed. Whatever goes wrong closes it, with the reason in
    /// the xenstore's `error` directory; a frontend to blame may connect again, as it may after
    /// any other closing.
    ///
    /// # Errors
    /// The xenstore's.
    pub(crate) async fn serve(self, entry: Entry) -> Result<(), client::Error> {
        let outcome = match entry {
            Entry::Beginning => {
                let opened = Backend::open(&self.store, &self.path);
                match self.turns.take(opened).await {
                    Ok(backend) => self.live(backend).await,
                    Err(error) => Err(error.into()),
                }
            }
            Entry::Left(journal) => self.take_over(journal).await,
        };
        match outcome {
            // The toolstack did not wait for us: there is nothing left to close.
            Err(DeviceError::Xenbus(xenbus::Error::Store(error))) if error.is_not_found() => {}
            Err(error) => {
                self.complain(&error);
                self.close().await?;
            }
            Ok(()) => {}
        }
        let vbd = self.record.vbd();
        log::info!("vbd {vbd}: ended: {}", self.record.stats().sum());
        Ok(())
    }

    /// Sees to it that nobody waits for a device that is served no more, whatever state it was in.
    async fn close(&self) -> Result<(), client::Error> {
        self.put(XenbusState::Closed).await
    }

    /// Writes our state, whatever it was, if the device is still there.
    async fn put(&self, state: XenbusState) -> Result<(), client::Error> {
        let path = &self.path;
        let written = self.store.transaction(|tx| async move {
            let own = Keys::new(tx.clone(), path.clone());
            match tx.read(&own.path("state")).await {
                Ok(_) => own.set("state", u32::from(state)).await,
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) => Err(error),
            }
        });
        self.turns.take(written).await
    }

    /// Takes note of an error, and logs it at a limited rate: a frontend may cause one at each
    /// connection.
    fn complain(&self, error: &DeviceError) {
        self.record.note(|report| report.error = Some(words(error)));
        self.complaints.warn(self.place.now(), || words(error));
    }

    /// Complains of an error, and leaves it where toolstacks look for it.
    async fn report(&self, end: &End, error: &DeviceError) -> Result<(), client::Error> {
        self.complain(error);
        end.report(error.errno(), &words(error)).await
    }

    async fn live(&self, mut backend: Backend<Initialising>) -> Result<(), DeviceError> {
        let mut changes = Changes::of(&backend).await?;
        let orders = Found::orders(backend.own()).await?;
        // Nobody runs it in another domain.
        let scripted = orders.get("script").is_some() && self.place.domid() == DomId::ZERO;
        let opened = match self.open_image(&backend, &orders, &mut changes).await {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let closing = self.turns.take(backend.close()).await?;
                return self.give_up(closing, &orders, &mut changes).await;
            }
            Err(error) => {
                self.report(&backend, &error).await?;
                let outcome = self.refuse(backend, scripted, &error, &mut changes).await?;
                return match outcome {
                    Some(closing) => self.give_up(closing, &orders, &mut changes).await,
                    None => Ok(()),
                };
            }
        };
        let mut pace = Pace::default();
        loop {
            let keys = opened.offer().keys();
            let announced = backend.announce(|own| {
                let keys = keys.clone();
                async move {
                    for (key, value) in keys {
                        own.set(key, value).await?;
                    }
                    Ok(())
                }
            });
            let waiting = self.turns.take(announced).await?;
            self.record.stage(Stage::Waiting);
            let outcome = self
                .one_connection(waiting, &opened, scripted, &mut changes)
                .await?;
            self.record.stage(Stage::Closed);
            let closing = match outcome {
                Ended::Connection(closing) => closing,
                Ended::Device(closing) => {
                    drop(opened);
                    return self.give_up(closing, &orders, &mut changes).await;
                }
            };
            if !self.frontend_leaves(&closing, &mut changes).await? {
                // A toolstack that sees us closed may hand the image to somebody else.
                drop(opened);
                self.closed(closing, &orders).await?;
                return Ok(());
            }
            let reopened = self.reopen(closing, &orders, &mut pace, &mut changes);
            backend = match reopened.await? {
                Some(backend) => backend,
                None => return Ok(()),
            };
        }
    }

    /// Waits until the frontend has left. Whether the device is to go on then.
    async fn frontend_leaves(
        &self,
        closing: &Backend<Closing>,
        changes: &mut Changes,
    ) -> Result<bool, DeviceError> {
        // One back at the beginning waits for us to be so too.
        while closing.is_online().await?
            && !matches!(
                frontend_state(closing).await?,
                XenbusState::Closed | XenbusState::Initialising
            )
        {
            changes.next().await?;
        }
        Ok(closing.is_online().await?)
    }

    /// Closes a connection, and waits for the frontend to begin another; none if the device is not
    /// wanted any more, or is another by then.
    async fn reopen(
        &self,
        closing: Backend<Closing>,
        orders: &Found,
        pace: &mut Pace,
        changes: &mut Changes,
    ) -> Result<Option<Backend<Initialising>>, DeviceError> {
        let Some(closed) = self.closed(closing, orders).await? else {
            return Ok(None);
        };
        loop {
            if !closed.is_online().await? {
                return Ok(None);
            }
            if frontend_state(&closed).await? == XenbusState::Initialising {
                break;
            }
            changes.next().await?;
        }
        if let Some(when) = pace.begin(self.place.now()) {
            let mut pause = pin!(self.place.sleep_until(when));
            while changes.or(&mut pause).await?.is_none() {
                if !closed.is_online().await? {
                    return Ok(None);
                }
            }
        }
        if self.made_anew(&closed, orders).await? {
            return Ok(None);
        }
        Ok(Some(self.turns.take(closed.reopen()).await?))
    }

    /// Says that we have closed; nothing if the toolstack has made another device here meanwhile,
    /// which is then for somebody else to serve.
    async fn closed(
        &self,
        closing: Backend<Closing>,
        orders: &Found,
    ) -> Result<Option<Backend<Closed>>, DeviceError> {
        if self.made_anew(&closing, orders).await? {
            return Ok(None);
        }
        let closed = self.turns.take(closing.closed_first()).await?;
        // Once more, for one that came in between, and that we called closed by mistake.
        Ok(match self.made_anew(&closed, orders).await? {
            true => None,
            false => Some(closed),
        })
    }

    /// Whether this is another device than the one that `orders` were for: it is put back to its
    /// beginning then.
    async fn made_anew(&self, end: &End, orders: &Found) -> Result<bool, DeviceError> {
        if Found::orders(end.own()).await? == *orders {
            return Ok(false);
        }
        self.put(XenbusState::Initialising).await?;
        Ok(true)
    }

    /// Finds out which disk it is; none if the toolstack does not want it any more by then.
    async fn open_image(
        &self,
        backend: &Backend<Initialising>,
        orders: &Found,
        changes: &mut Changes,
    ) -> Result<Option<Opened<P>>, DeviceError> {
        let assignment = Assignment::parse(|key| orders.get(key))?;
        if assignment.cdrom && assignment.params.is_empty() {
            return Err(DeviceError::EmptyDrive);
        }
        let spec: Spec = assignment.params.parse()?;
        let mut opening = pin!(spec.open_aside(assignment.access));
        let image: Arc<ImageOf<P>> = loop {
            if let Some(opened) = changes.or(&mut opening).await? {
                break opened?;
            }
            if !backend.is_online().await? {
                return Ok(None);
            }
        };
        Ok(Some(self.opened(assignment, image)))
    }

    /// What to make of an image that is open.
    fn opened(&self, assignment: Assignment, image: Arc<ImageOf<P>>) -> Opened<P> {
        let offer = Offer {
            sectors: image.sectors(),
            physical_sector_size: image.physical_sector_size(),
            read_only: image.read_only(),
            cdrom: assignment.cdrom,
            removable: assignment.removable,
            discard: image
                .discard()
                .filter(|_| assignment.discard && !image.read_only()),
            queues: self.options.queues.max(1),
        };
        log::info!(
            "vbd {}: {} is {}, {} sectors, {}",
            self.record.vbd(),
            assignment.name.as_deref().unwrap_or("the disk"),
            assignment.params,
            offer.sectors,
            match assignment.access {
                Access::ReadOnly => "read-only",
                Access::ReadWrite => "read-write",
            },
        );
        // A RAM disk goes with us.
        let lasting = !matches!(assignment.params.parse(), Ok(Spec::Memory { .. }));
        let disk = Disk {
            image: assignment.params,
            access: assignment.access,
            sectors: offer.sectors,
        };
        self.record.note(|report| report.disk = Some(disk));
        let terms = Arc::new(Terms::new(offer.sectors));
        Opened {
            image,
            offer,
            terms,
            lasting,
        }
    }

    /// Closes a device before its frontend was let in, and tells the toolstack why. Nothing is left
    /// to do if the toolstack has made another meanwhile.
    async fn refuse(
        &self,
        backend: Backend<Initialising>,
        scripted: bool,
        error: &DeviceError,
        changes: &mut Changes,
    ) -> Result<Option<Backend<Closing>>, DeviceError> {
        self.record.stage(Stage::Closed);
        self.turns
            .take(backend.hotplug_failed(&words(error)))
            .await?;
        Ok(Some(if scripted {
            // libxl looks for nothing but InitWait for ten seconds, then runs the script, which
            // finds the reason. No frontend gets further than its half of the handshake.
            let waiting = self.turns.take(backend.announce(async |_| Ok(()))).await?;
            while waiting.is_online().await?
                && matches!(
                    frontend_state(&waiting).await?,
                    XenbusState::Initialising | XenbusState::Unknown
                )
            {
                if is_back_at_the_beginning(&waiting).await? {
                    return Ok(None);
                }
                changes.next().await?;
            }
            self.turns.take(waiting.close()).await?
        } else {
            self.turns.take(backend.close()).await?
        }))
    }

    /// Closes a device for good: until the toolstack makes another of it.
    async fn give_up(
        &self,
        closing: Backend<Closing>,
        orders: &Found,
        changes: &mut Changes,
    ) -> Result<(), DeviceError> {
        while closing.is_online().await? && frontend_state(&closing).await? != XenbusState::Closed {
            if is_back_at_the_beginning(&closing).await? {
                return Ok(());
            }
            changes.next().await?;
        }
        self.closed(closing, orders).await?;
        Ok(())
    }

    /// One connection: from the frontend's answer until it leaves, or until it is clear that there
    /// will be none. By the end nothing of the frontend's is mapped.
    async fn one_connection(
        &self,
        waiting: Backend<InitWait>,
        opened: &Opened<P>,
        scripted: bool,
        changes: &mut Changes,
    ) -> Result<Ended, DeviceError> {
        let ended = Ended::Connection;
        loop {
            if !waiting.is_online().await? || is_back_at_the_beginning(&waiting).await? {
                return Ok(ended(self.turns.take(waiting.close()).await?));
            }
            let script = match scripted {
                true => script_outcome(waiting.own()).await?,
                false => Some(Ok(())),
            };
            if let Some(Err(error)) = script {
                // It will not be run again, whatever the frontend does.
                self.report(&waiting, &error).await?;
                return Ok(Ended::Device(self.turns.take(waiting.close()).await?));
            }
            match frontend_state(&waiting).await? {
                XenbusState::Initialised | XenbusState::Connected if script.is_some() => break,
                XenbusState::Closing | XenbusState::Closed => {
                    return Ok(ended(self.turns.take(waiting.close()).await?));
                }
                _ => changes.next().await?,
            }
        }
        let mut running = match self.connect(&waiting, opened).await {
            Ok(running) => running,
            Err(error) => {
                self.report(&waiting, &error).await?;
                return Ok(ended(self.turns.take(waiting.close()).await?));
            }
        };
        let name = running.journal.clone();
        let mut told = opened.terms.sectors();
        // The image may have another size by now than when it was offered.
        let connected = waiting.connect(async |own: Keys| {
            own.set("sectors", told).await?;
            match &name {
                Some(name) => own.set(JOURNAL_KEY, name).await,
                // That of an earlier connection, whose journal may still be somewhere.
                None => own.remove(JOURNAL_KEY).await,
            }
        });
        let closing = match self.turns.take(connected).await {
            Ok(connected) => {
                self.see_to_its_end(connected, opened, &mut running, &mut told, changes)
                    .await
            }
            Err(error) => Err(error.into()),
        };
        self.end(running, &closing).await;
        Ok(ended(closing?))
    }
}

/// A disk that can be served.
struct Opened<P: seam::Backend> {
    image: Arc<ImageOf<P>>,
    /// What was offered at first.
    offer: Offer,
    /// What is true for as long as the device lives, over all connections.
    terms: Arc<Terms>,
    /// Whether what is in it outlives us.
    lasting: bool,
}

impl<P: seam::Backend> Opened<P> {
    /// What to offer now.
    fn offer(&self) -> Offer {
        Offer {
            sectors: self.image.sectors(),
            ..self.offer
        }
    }
}

/// What has come to its end.
enum Ended {
    /// A connection: there may be another.
    Connection(Backend<Closing>),
    /// The device.
    Device(Backend<Closing>),
}

/// What the toolstack's script has come to, if it has ended.
async fn script_outcome(own: &Keys) -> Result<Option<Result<(), DeviceError>>, DeviceError> {
    let status: Option<String> = own.find("hotplug-status").await?;
    Ok(match status.as_deref() {
        Some("connected") => Some(Ok(())),
        Some("error") => {
            let reason: Option<String> = own.find("hotplug-error").await?;
            let reason = reason.unwrap_or_else(|| "it does not say why".into());
            Some(Err(DeviceError::Script(reason)))
        }
        _ => None,
    })
}

impl<P: seam::Backend> fmt::Debug for Device<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.path).finish()
    }
}

/// Some keys of a directory, as they were when read.
#[derive(PartialEq)]
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

    /// All that the toolstack says of a device when it makes it.
    async fn orders(own: &Keys) -> Result<Self, DeviceError> {
        let more = ["script", "frontend", "frontend-id"];
        Found::read(own, Assignment::KEYS.iter().copied().chain(more)).await
    }

    fn get(&self, wanted: &str) -> Option<String> {
        let found = self.0.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| value.clone())
    }
}
