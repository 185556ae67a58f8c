//! A connected interface: until its user or its toolstack ends it, through all that its backend
//! does.
//!
//! ```text
//!           ┌──────────────────────────────────────────────┐
//!           v                                              │ reconnected: fresh rings
//!        serving ── backend leaves, `online` = 1 ──▶ away ─┘
//!           │                                          │
//!           │ violation, last user gone,               │ removed, another backend
//!           │ removed by the toolstack                 │
//!           v                                          v
//!        Closing, Closed <─────────────────────────────┘
//! ```
//!
//! One task sees to that. Frames under way when the backend leaves are lost, as frames may be. The
//! rings and pages stay granted until the backend has let go of them, so that in an orderly
//! farewell none goes to quarantine.
//!
//! A backend is away when it says that it closes, or when its directory is gone, while the toolstack
//! has not asked for that: that would be `online` = 0, or our own directory gone.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use parapet_hypervisor::seam::Guest;
use parapet_packet::Mac;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Errno};
use parapet_xenstore::client::{Client, Watch};
use parapet_xenstore::xenbus::{self, Connected, Frontend, Keys};

use crate::config::{Away, Config};
use crate::connect::{ConnectError, Rings, Session, unless_leaving};
use crate::control::{Control, Failed, Hashing};
use crate::error::{Change, Gone};
use crate::shared::{Shared, Wish};

/// How long we wait before another attempt at a backend that lets us down, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// How often a backend may leave and keep memory that we have granted it: a domain that was
/// destroyed may, once, and what is kept is lost to us.
const KEPT: u32 = 16;

/// An interface's life; the interface may end before.
pub(crate) struct Life<G: Guest> {
    guest: G,
    client: Client,
    path: String,
    config: Config,
    shared: Arc<Shared<G>>,
    /// What its user has told the backend.
    hashing: Option<Hashing>,
    groups: BTreeSet<Mac>,
    /// How long to wait before the next attempt.
    pause: Duration,
    /// How often a backend has kept memory.
    kept: u32,
}

/// How serving ended.
enum Left {
    /// The backend is away.
    Away,
    /// The interface is no more.
    Over(Gone),
}

impl<G: Guest> Life<G> {
    pub(crate) fn new(
        guest: &G,
        client: &Client,
        path: &str,
        config: Config,
        shared: Arc<Shared<G>>,
    ) -> Self {
        Life {
            guest: guest.clone(),
            client: client.clone(),
            path: path.into(),
            config,
            shared,
            hashing: None,
            groups: BTreeSet::new(),
            pause: PAUSE.0,
            kept: 0,
        }
    }

    /// Starts the task of an interface that is connected.
    pub(crate) fn begin(self, session: Session<G>) {
        let Session {
            front,
            queues,
            control,
            ..
        } = session;
        self.hand_out(queues, control);
        let guest = self.guest.clone();
        guest.spawn(self.live(front));
    }

    /// Gives the users what was made for them.
    fn hand_out(&self, queues: Vec<Rings<G>>, control: Option<Control<G>>) {
        let shared = &self.shared;
        let generation = shared.generation().wrapping_add(1);
        for (berths, rings) in shared.queues.iter().zip(queues) {
            // What was there before was taken back when the backend left.
            berths.transmit.put(generation, Box::new(rings.transmit));
            berths.receive.put(generation, Box::new(rings.receive));
        }
        if let Some(control) = control {
            shared.control.put(generation, Box::new(control));
        }
        shared.connect(true);
    }

    async fn live(mut self, mut front: Frontend<Connected>) {
        loop {
            match self.until_left(&mut front).await {
                Left::Away => {
                    self.shared.connect(false);
                    self.shared.set_carrier(false);
                }
                Left::Over(gone) => self.shared.close(gone),
            }
            if let Some(gone) = self.shared.gone() {
                self.say_farewell(front, gone).await;
                self.shared.finish();
                return;
            }
            log::info!("{}: the backend is away", self.path);
            let back = match self.leave(front).await {
                Ok(()) => self.come_back().await,
                Err(gone) => Err(gone),
            };
            match back {
                Ok(back) => front = back,
                Err(gone) => {
                    self.shared.close(gone);
                    log::warn!("{}: {gone}", self.path);
                    self.withdraw().await;
                    self.shared.finish();
                    return;
                }
            }
        }
    }

    /// Waits until the backend does not serve us any more, or nobody wants it to.
    async fn until_left(&self, front: &mut Frontend<Connected>) -> Left {
        let carrier = front.other().clone();
        let watch = self.client.watch(&carrier.path("carrier")).await;
        let mut carrier = pin!(self.follow_carrier(carrier, watch.ok()));
        let mut leaves = pin!(self.backend_leaves(front));
        poll_fn(|cx| {
            if let Poll::Ready(gone) = self.shared.poll_closed(cx) {
                return Poll::Ready(Left::Over(gone));
            }
            // It has no end but the store's, of which the other learns as well.
            let _ = carrier.as_mut().poll(cx);
            leaves.as_mut().poll(cx)
        })
        .await
    }

    async fn follow_carrier(&self, backend: Keys, mut watch: Option<Watch>) {
        loop {
            // Backends that do not say it have one.
            let carrier = backend.get_or("carrier", true).await.unwrap_or(true);
            self.shared.set_carrier(carrier);
            let next = match &mut watch {
                Some(watch) => watch.next().await.is_ok(),
                None => false,
            };
            if !next {
                return core::future::pending().await;
            }
        }
    }

    async fn backend_leaves(&self, front: &mut Frontend<Connected>) -> Left {
        loop {
            match front.changed().await {
                Ok(XenbusState::Connected) => {}
                Ok(XenbusState::Reconfiguring | XenbusState::Reconfigured) => {}
                Err(xenbus::Error::Store(_)) => return Left::Over(Gone::Unwatched),
                Ok(_) | Err(_) => {
                    return match is_removed(front.own(), front.other()).await {
                        Err(gone) => Left::Over(gone),
                        Ok(()) if self.config.away == Away::Fail => Left::Over(Gone::BackendClosed),
                        Ok(()) => Left::Away,
                    };
                }
            }
        }
    }

    /// Ends an interface in order, and waits until the backend has let go.
    async fn say_farewell(&self, front: Frontend<Connected>, gone: Gone) {
        if let Gone::Violation(_) = gone {
            log::warn!("{}: {gone}", self.path);
            let _ = front.report(Errno::EIO, &gone.to_string()).await;
        }
        // An error here means that the device or the store is gone: then nobody is left to wait
        // for.
        if let Ok(front) = front.close().await
            && let Ok(mut front) = front.closed_first().await
        {
            while is_attached(front.other().state().await) && front.changed().await.is_ok() {}
        }
    }

    /// Closes our end for one that is away, and waits until it has let go of what it had.
    async fn leave<State>(&mut self, front: Frontend<State>) -> Result<(), Gone> {
        let closed = async {
            front.close().await?.closed_first().await?;
            Ok(())
        };
        let closed: Result<_, xenbus::Error> = self.unless_closed(closed).await?;
        closed.map_err(gone)?;
        self.unless_closed(self.until_detached()).await??;
        let kept = self.shared.detach();
        self.kept += u32::from(kept > 0);
        match self.kept > KEPT {
            true => Err(Gone::Changed(Change::Grasping)),
            false => Ok(()),
        }
    }

    /// Waits until no backend uses our memory. By then the device may be where it is for us to
    /// begin anew, and not before: a backend that closes waits to see us closed.
    async fn until_detached(&self) -> Result<(), Gone> {
        let own = Keys::new(self.client.clone(), self.path.clone());
        let other: String = own.get("backend").await.map_err(gone)?;
        let other = Keys::new(self.client.clone(), other);
        let watch = self.client.watch(&other.path("state")).await;
        let mut watch = watch.map_err(|error| gone(error.into()))?;
        loop {
            is_removed(&own, &other).await?;
            if !is_attached(other.state().await) {
                return Ok(());
            }
            watch.next().await.map_err(|error| gone(error.into()))?;
        }
    }

    /// Waits for the backend, tells it what the one before was told, and hands out fresh rings.
    async fn come_back(&mut self) -> Result<Frontend<Connected>, Gone> {
        while let Some(wish) = self.shared.wishes.pop() {
            match wish {
                Wish::Hash(hashing) => self.hashing = hashing,
                Wish::Join(group) => drop(self.groups.insert(group)),
                Wish::Leave(group) => drop(self.groups.remove(&group)),
            }
        }
        let own = Keys::new(self.client.clone(), self.path.clone());
        let was: DomId = own.get("backend-id").await.map_err(gone)?;
        loop {
            let Session {
                mut front,
                mut queues,
                mut control,
                ..
            } = self.reconnect(was).await?;
            if let Some(first) = queues.first_mut() {
                for &group in &self.groups {
                    first.transmit.multicast(group, true)?;
                }
                first.transmit.publish();
            }
            if let (Some(control), Some(hashing)) = (&mut control, &self.hashing) {
                let told = unless_leaving(&mut front, control.hash(hashing));
                match self.unless_closed(told).await? {
                    Ok(Ok(())) => {}
                    Ok(Err(Failed::Violation(violation))) => return Err(violation.into()),
                    Ok(Err(failed)) => {
                        log::warn!("{}: frames are not hashed any more: {failed:?}", self.path);
                    }
                    // It is away again, and what it was told with it.
                    Err(_) => {
                        is_removed(front.own(), front.other()).await?;
                        self.leave(front).await?;
                        continue;
                    }
                }
            }
            log::info!("{}: the backend is back", self.path);
            self.hand_out(queues, control);
            return Ok(front);
        }
    }

    /// Waits until a backend is connected again.
    async fn reconnect(&mut self, was: DomId) -> Result<Session<G>, Gone> {
        let wanted = self.shared.queues.len();
        let config = self
            .config
            .queues(u32::try_from(wanted).unwrap_or(u32::MAX));
        loop {
            // One that leaves us all the time is not to keep us busy.
            let pause = self.guest.sleep(self.pause);
            self.unless_closed(pause).await?;
            self.pause = self.pause.saturating_mul(2).min(PAUSE.1);
            let attempt = self.unless_closed(self.attempt(&config, was)).await??;
            if let Some(session) = attempt {
                let now = session.queues.len();
                if now < wanted {
                    let was = wanted;
                    return Err(Gone::Changed(Change::Queues { was, now }));
                }
                self.pause = PAUSE.0;
                return Ok(session);
            }
            self.unless_closed(self.until_detached()).await??;
        }
    }

    /// One attempt: nothing if the backend left again.
    async fn attempt(&self, config: &Config, was: DomId) -> Result<Option<Session<G>>, Gone> {
        let mut front = Frontend::open(&self.client, &self.path)
            .await
            .map_err(gone)?;
        let now = front.other_domid();
        if was != now {
            return Err(Gone::Changed(Change::Backend { was, now }));
        }
        let waits = loop {
            match front.written().await {
                Ok(XenbusState::InitWait) => break true,
                // It is on its way out, and waits for us to be so too.
                Ok(XenbusState::Closing) => break false,
                _ => is_removed(front.own(), front.other()).await?,
            }
        };
        let session = match waits {
            true => Session::establish(&self.guest, front, config).await,
            false => {
                let closed = async { front.close().await?.closed_first().await };
                closed.await.map_err(gone)?;
                Err(xenbus::Error::Leaving(XenbusState::Closing).into())
            }
        };
        match session {
            Ok(session) => Ok(Some(session)),
            Err(ConnectError::Xenbus(xenbus::Error::Leaving(_))) => Ok(None),
            Err(error) => {
                log::warn!("{}: {error}", self.path);
                Err(match error {
                    ConnectError::Xenbus(error) => gone(error),
                    ConnectError::Violation(violation) => violation.into(),
                    _ => Gone::Changed(Change::Unusable),
                })
            }
        }
    }

    /// Waits for `work`, or until the interface is closed.
    async fn unless_closed<F: Future>(&self, work: F) -> Result<F::Output, Gone> {
        let mut work = pin!(work);
        poll_fn(|cx| match self.shared.poll_closed(cx) {
            Poll::Ready(gone) => Poll::Ready(Err(gone)),
            Poll::Pending => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// Closes our end, wherever it is in the handshake.
    async fn withdraw(&self) {
        let closed = u32::from(XenbusState::Closed);
        let own = Keys::new(self.client.clone(), self.path.clone());
        let withdrawn = self.client.transaction(|tx| {
            let own = own.within(&tx);
            async move {
                tx.read(&own.path("state")).await?;
                own.set("state", closed).await
            }
        });
        if let Err(error) = withdrawn.await {
            log::debug!("{}: it cannot be closed: {error}", self.path);
        }
    }
}

impl<G: Guest> Drop for Life<G> {
    fn drop(&mut self) {
        // When it did not get to the end, as when its domain is destroyed.
        self.shared.close(Gone::Closed);
        self.shared.finish();
    }
}

/// What an error of the handshake means for an interface that was connected.
fn gone(error: xenbus::Error) -> Gone {
    match error {
        // Our own directory is not there any more.
        xenbus::Error::Store(error) if error.is_not_found() => Gone::Removed,
        xenbus::Error::Store(_) => Gone::Unwatched,
        xenbus::Error::Peer { .. } => Gone::Changed(Change::Unusable),
        xenbus::Error::Leaving(_) => Gone::BackendClosed,
    }
}

/// Whether the toolstack has taken the device away: then an error that says so.
async fn is_removed(own: &Keys, other: &Keys) -> Result<(), Gone> {
    let ours: Option<String> = own.find("state").await.map_err(gone)?;
    if ours.is_none() {
        return Err(Gone::Removed);
    }
    // One that is not there at all may come back.
    let state = other.find::<String>("state").await;
    match (state, other.find::<String>("online").await) {
        (Err(xenbus::Error::Store(error)), _) | (_, Err(xenbus::Error::Store(error)))
            if error.errno() != Some(Errno::EACCES) =>
        {
            Err(Gone::Unwatched)
        }
        (Ok(Some(_)), Ok(online)) if online.as_deref() != Some("1") => Err(Gone::Removed),
        _ => Ok(()),
    }
}

/// Whether a backend in this state may still use our memory.
fn is_attached(backend: Result<XenbusState, xenbus::Error>) -> bool {
    !matches!(
        backend,
        Err(xenbus::Error::Store(_))
            | Ok(XenbusState::Unknown
                | XenbusState::Initialising
                | XenbusState::InitWait
                | XenbusState::Closed)
    )
}
