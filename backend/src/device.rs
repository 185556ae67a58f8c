//! One device: from the moment the toolstack has written its nodes until it is taken away.
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
//! The order of states is that of Linux's backends, on which toolstacks and frontends rely; see
//! `xen/include/public/io/xenbus.h`. A frontend that is Closing may still finish
//! what it has begun: some Linux guests go on using a disk for as long as it is mounted.
//!
//! The toolstack takes a device away by `online` = 0, at any moment. One that is not connected is
//! Closed at once then, whatever its frontend does, since a toolstack waits for that.
//!
//! In domain 0 libxl runs the script that the key `script` names as soon as it sees InitWait, and
//! the script says in `hotplug-status` whether the device may be connected. What
//! cannot be opened is an `error` there too, for whoever attached the device.

mod changes;
mod connection;
mod left;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use parapet_hypervisor::seam::Events;
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::{self, Backend, Closed, Closing, End, Initialising, Keys};

use crate::Error;
use crate::kind::Kind;
use crate::limit::{Limit, Pace};
use crate::report::{DeviceId, Record, Stage};
use crate::turns::Turns;
use crate::values::Values;
use changes::is_back_at_the_beginning;
pub use changes::{Changes, frontend_state};

/// An event channel where a kind's backends run.
pub type ChannelOf<K> = <<K as Kind>::Place as Events>::Channel;

/// How a device is found.
pub(crate) enum Entry<L> {
    /// At its beginning, or to be put there.
    Beginning,
    /// As a backend before us has left it that had connected: with something to go on with, or
    /// without.
    Left(Option<L>),
}

/// A device's nodes and what is behind them.
pub struct Device<K: Kind> {
    place: K::Place,
    store: Client,
    /// The backend's directory.
    path: String,
    kind: Arc<K>,
    /// For transactions: a domain may have only so many at once.
    turns: Turns,
    record: Record<K::About>,
    complaints: Limit,
    connections: Limit,
}

/// What has come to its end.
enum Ended {
    /// A connection: there may be another.
    Connection(Backend<Closing>),
    /// The device.
    Device(Backend<Closing>),
}

impl<K: Kind> Device<K> {
    /// The device whose backend's directory is `path`, an absolute path in the xenstore that
    /// `store` leads to.
    pub(crate) fn new(
        place: K::Place,
        store: Client,
        path: String,
        kind: Arc<K>,
        turns: Turns,
        record: Record<K::About>,
    ) -> Self {
        let limit = || Limit::new(format!("{} {}", K::NAME, record.device()));
        Device {
            complaints: limit(),
            connections: limit(),
            place,
            store,
            path,
            kind,
            turns,
            record,
        }
    }

    /// Whether the toolstack runs a script for it as soon as it is announced: nobody does in another
    /// domain than 0.
    pub fn is_scripted(&self, orders: &Values) -> bool {
        orders.get("script").is_some() && self.place.domid() == DomId::ZERO
    }

    /// Where it is served.
    pub fn place(&self) -> &K::Place {
        &self.place
    }

    /// Which one it is.
    pub fn id(&self) -> DeviceId {
        self.record.device()
    }

    /// The xenstore.
    pub fn store(&self) -> &Client {
        &self.store
    }

    /// The backend's own directory.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// For transactions, which are not to be too many at once.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Where to note how it fares.
    pub fn record(&self) -> &Record<K::About> {
        &self.record
    }

    /// For complaints about its frontend.
    pub fn complaints(&self) -> &Limit {
        &self.complaints
    }

    /// Serves the device until it is removed. Whatever goes wrong closes it, with the reason in
    /// the xenstore's `error` directory; a frontend to blame may connect again, as it may after
    /// any other closing.
    ///
    /// # Errors
    /// The xenstore's.
    pub(crate) async fn serve(self, entry: Entry<K::Left>) -> Result<(), client::Error> {
        let outcome = match entry {
            Entry::Beginning => {
                let opened = Backend::open(&self.store, &self.path);
                match self.turns.take(opened).await {
                    Ok(backend) => self.live(backend).await,
                    Err(error) => Err(error.into()),
                }
            }
            Entry::Left(left) => self.take_over(left).await,
        };
        match outcome {
            // The toolstack did not wait for us: there is nothing left to close.
            Err(Error::Xenbus(xenbus::Error::Store(error))) if error.is_not_found() => {}
            Err(error) => {
                self.complain(&error);
                self.close().await?;
            }
            Ok(()) => {}
        }
        log::info!("{} {}: ended: {}", K::NAME, self.id(), self.kind.sum(&self));
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
        self.turns().take(written).await
    }

    /// Takes note of an error, and logs it at a limited rate: a frontend may cause one at each
    /// connection.
    pub fn complain(&self, error: &Error) {
        let words = error.words();
        self.record.note(|report| report.error = Some(words));
        self.complaints.warn(self.place.now(), || error.words());
    }

    /// Complains of an error, and leaves it where toolstacks look for it.
    async fn report(&self, end: &End, error: &Error) -> Result<(), client::Error> {
        self.complain(error);
        end.report(error.errno(), &error.words()).await
    }

    /// Tells of a connection, at a limited rate.
    fn log_connection(&self, what: impl fmt::Display) {
        self.connections.info(self.place.now(), || what);
    }

    /// All that the toolstack says of a device when it makes it.
    async fn orders(end: &End) -> Result<Values, Error> {
        let more = ["script", "frontend", "frontend-id"];
        Ok(Values::read(end.own(), K::ORDERS.iter().copied().chain(more)).await?)
    }

    /// Serves a device from its beginning.
    pub(super) async fn live(&self, mut backend: Backend<Initialising>) -> Result<(), Error> {
        let mut changes = Changes::of(&backend).await?;
        let orders = Self::orders(&backend).await?;
        let scripted = self.is_scripted(&orders);
        let mut opened = match self.open(&backend, &orders, &mut changes).await {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let closing = self.turns().take(backend.close()).await?;
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
            let keys = self.kind.offer(&opened);
            let announced = backend.announce(|own| {
                let keys = keys.clone();
                async move {
                    for (key, value) in keys {
                        own.set(key, value).await?;
                    }
                    Ok(())
                }
            });
            let waiting = self.turns().take(announced).await?;
            self.record.stage(Stage::Waiting);
            let outcome = self
                .one_connection(waiting, &mut opened, scripted, &mut changes)
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
                // A toolstack that sees us closed may hand what is behind us to somebody else.
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
    pub(super) async fn frontend_leaves(
        &self,
        closing: &Backend<Closing>,
        changes: &mut Changes,
    ) -> Result<bool, Error> {
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
    pub(super) async fn reopen(
        &self,
        closing: Backend<Closing>,
        orders: &Values,
        pace: &mut Pace,
        changes: &mut Changes,
    ) -> Result<Option<Backend<Initialising>>, Error> {
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
        Ok(Some(self.turns().take(closed.reopen()).await?))
    }

    /// Says that we have closed; nothing if the toolstack has made another device here meanwhile,
    /// which is then for somebody else to serve.
    pub(super) async fn closed(
        &self,
        closing: Backend<Closing>,
        orders: &Values,
    ) -> Result<Option<Backend<Closed>>, Error> {
        if self.made_anew(&closing, orders).await? {
            return Ok(None);
        }
        let closed = self.turns().take(closing.closed_first()).await?;
        // Once more, for one that came in between, and that we called closed by mistake.
        Ok(match self.made_anew(&closed, orders).await? {
            true => None,
            false => Some(closed),
        })
    }

    /// Whether this is another device than the one that `orders` were for: it is put back to its
    /// beginning then.
    async fn made_anew(&self, end: &End, orders: &Values) -> Result<bool, Error> {
        if Self::orders(end).await? == *orders {
            return Ok(false);
        }
        self.put(XenbusState::Initialising).await?;
        Ok(true)
    }

    /// Opens what is behind the device; none if the toolstack does not want it any more by then.
    async fn open(
        &self,
        backend: &Backend<Initialising>,
        orders: &Values,
        changes: &mut Changes,
    ) -> Result<Option<K::Opened>, Error> {
        let mut opening = pin!(self.kind.open(self, orders));
        loop {
            if let Some(opened) = changes.or(&mut opening).await? {
                return opened.map(Some);
            }
            if !backend.is_online().await? {
                return Ok(None);
            }
        }
    }

    /// Closes a device before its frontend was let in, and tells the toolstack why. Nothing is left
    /// to do if the toolstack has made another meanwhile.
    async fn refuse(
        &self,
        backend: Backend<Initialising>,
        scripted: bool,
        error: &Error,
        changes: &mut Changes,
    ) -> Result<Option<Backend<Closing>>, Error> {
        self.record.stage(Stage::Closed);
        self.turns()
            .take(backend.hotplug_failed(&error.words()))
            .await?;
        Ok(Some(if scripted {
            // libxl looks for nothing but InitWait for ten seconds, then runs the script, which
            // finds the reason. No frontend gets further than its half of the handshake.
            let waiting = self
                .turns()
                .take(backend.announce(async |_| Ok(())))
                .await?;
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
            self.turns().take(waiting.close()).await?
        } else {
            self.turns().take(backend.close()).await?
        }))
    }

    /// Closes a device for good: until the toolstack makes another of it.
    async fn give_up(
        &self,
        closing: Backend<Closing>,
        orders: &Values,
        changes: &mut Changes,
    ) -> Result<(), Error> {
        while closing.is_online().await? && frontend_state(&closing).await? != XenbusState::Closed {
            if is_back_at_the_beginning(&closing).await? {
                return Ok(());
            }
            changes.next().await?;
        }
        self.closed(closing, orders).await?;
        Ok(())
    }
}

impl<K: Kind> fmt::Debug for Device<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.path).finish()
    }
}
