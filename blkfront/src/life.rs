//! A connected disk: until its user or its toolstack ends it, through all that its backend does.
//!
//! ```text
//!           ┌─────────────────────────────────────────────┐
//!           v                                             │ reconnected: the queues begin with
//!        serving ── backend leaves, `online` = 1 ──▶ away ┘ what was not answered
//!           │                                         │
//!           │ violation, last handle dropped,         │ removed, another disk
//!           │ removed by the toolstack                │
//!           v                                         v
//!        Closing, Closed; everything fails <──────────┘
//! ```
//!
//! One task sees to that. Whoever ends the disk, what is outstanding fails at once, but the rings
//! and the buffers under way stay granted until the backend has closed too, so that in an orderly
//! farewell no page goes to quarantine.
//!
//! A backend is away when it says that it closes, or when its directory is gone, while the toolstack
//! has not asked for that: that would be `online` = 0, or our own directory gone. Before we ask
//! another one for what was not answered, the one before has said that it has let go, or somebody
//! has removed its directory, or begun it anew in InitWait.
//!
//! Source: the state diagram in `io/blkif.h`; the order of closing is what Linux's blkback waits
//! for, which unmaps when the frontend *is* closed.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};
use core::time::Duration;

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::Errno;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::Client;
use parapet_xenstore::xenbus::{self, Connected, Frontend, Keys};

use crate::config::{Away, Config};
use crate::connect::{ConnectError, Session};
use crate::disk::{Core, Disk};
use crate::error::{Change, Gone};
use crate::info::Info;
use crate::server::{Desk, Retired, Server};

/// How long we wait before another attempt at a backend that lets us down, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// How often a backend may leave and keep memory that we have granted it: a domain that was
/// destroyed may, once, and what is kept is lost to us.
const KEPT: u32 = 16;

/// What we have put up with from backends.
#[derive(Clone, Copy)]
struct Patience {
    /// How long we wait before the next attempt.
    pause: Duration,
    /// How often one has kept memory.
    kept: u32,
}

/// A disk's life; the disk may end before.
pub(crate) struct Life<G: Guest> {
    guest: G,
    client: Client,
    path: String,
    config: Config,
    core: Arc<Core<G>>,
}

/// How serving ended.
enum Left {
    /// The backend is away.
    Away,
    /// The disk is no more.
    Over(Gone),
}

impl<G: Guest> Life<G> {
    pub(crate) fn new(
        guest: &G,
        client: &Client,
        path: &str,
        config: Config,
        disk: &Disk<G>,
    ) -> Self {
        Life {
            guest: guest.clone(),
            client: client.clone(),
            path: path.into(),
            config,
            core: Arc::clone(disk.core()),
        }
    }

    /// Starts the tasks of a disk that is connected.
    pub(crate) fn begin(self, front: Frontend<Connected>, servers: Vec<Server<G>>) {
        let serving = self.serve(servers);
        let guest = self.guest.clone();
        guest.spawn(self.live(front, serving));
    }

    fn serve(&self, servers: Vec<Server<G>>) -> Arc<Ended<G>> {
        let ended = Arc::new(Ended::new(servers.len()));
        for server in servers {
            let ended = Arc::clone(&ended);
            self.guest
                .spawn(async move { ended.put(server.run().await) });
        }
        ended
    }

    async fn live(self, mut front: Frontend<Connected>, mut serving: Arc<Ended<G>>) {
        let mut patience = Patience {
            pause: PAUSE.0,
            kept: 0,
        };
        loop {
            let left = self.until_left(&mut front, &serving).await;
            match left {
                Left::Away => self.halt(true),
                Left::Over(gone) => self.core.close(gone),
            }
            poll_fn(|cx| serving.poll(cx)).await;
            let servers = serving.take();
            if let Some(gone) = self.core.gone() {
                self.core.close(gone);
                self.say_farewell(front, gone).await;
                // Now the rings go.
                drop(servers);
                return;
            }
            log::info!("{}: the backend is away", self.path);
            let back = match self.leave(front).await {
                Ok(()) => self.come_back(servers, &mut patience).await,
                Err(gone) => {
                    // Before the desks fail what they have.
                    self.core.close(gone);
                    Err(gone)
                }
            };
            match back {
                Ok(back) => (front, serving) = back,
                Err(gone) => {
                    log::warn!("{}: {gone}", self.path);
                    self.withdraw().await;
                    return;
                }
            }
        }
    }

    fn halt(&self, halted: bool) {
        for mailbox in self.core.mailboxes() {
            mailbox.halt(halted);
        }
    }

    /// Waits until the backend does not serve us any more, or we do not want it to, or all queues
    /// have ended by themselves. What it changes meanwhile is taken note of.
    async fn until_left(&self, front: &mut Frontend<Connected>, serving: &Ended<G>) -> Left {
        let mut leaves = pin!(self.backend_leaves(front));
        poll_fn(|cx| {
            if let Poll::Ready(gone) = self.core.poll_closed(cx) {
                return Poll::Ready(Left::Over(gone));
            }
            // One that ended by itself has closed its mailbox.
            if serving.poll(cx).is_ready() || serving.any() {
                let gone = self.core.mailboxes().iter().find_map(|queue| queue.gone());
                return Poll::Ready(Left::Over(gone.unwrap_or(Gone::Stopped)));
            }
            leaves.as_mut().poll(cx)
        })
        .await
    }

    async fn backend_leaves(&self, front: &mut Frontend<Connected>) -> Left {
        loop {
            match front.written().await {
                Ok(XenbusState::Connected) => self.measure(front).await,
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

    /// Looks whether the disk has changed its size.
    async fn measure(&self, front: &Frontend<Connected>) {
        let info = self.core.info();
        match info.resized(front.other()).await {
            Ok(resized) => {
                if resized.sectors != info.sectors {
                    log::info!("{}: it has {} sectors now", self.path, resized.sectors);
                }
                self.core.describe(resized);
            }
            // What it was serves as well as anything.
            Err(error) => log::warn!("{}: {error}", self.path),
        }
    }

    /// Ends a disk in order, and waits until the backend has let go.
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
    async fn leave<State>(&self, front: Frontend<State>) -> Result<(), Gone> {
        let closed = async {
            front.close().await?.closed_first().await?;
            Ok(())
        };
        let closed: Result<_, xenbus::Error> = self.unless_closed(closed).await?;
        closed.map_err(gone)?;
        self.unless_closed(self.until_detached()).await?
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

    /// Waits for the backend, and goes on where the one before left off. After an error the disk is
    /// closed.
    async fn come_back(
        &self,
        servers: Vec<Server<G>>,
        patience: &mut Patience,
    ) -> Result<(Frontend<Connected>, Arc<Ended<G>>), Gone> {
        let close = |gone| {
            self.core.close(gone);
            gone
        };
        let mut desks = Vec::new();
        let (mut served, mut kept) = (false, false);
        for server in servers {
            let Retired {
                desks: of_it,
                answered,
                held,
            } = server
                .retire()
                .map_err(|violation| close(violation.into()))?;
            desks.extend(of_it);
            served |= answered;
            kept |= held > 0;
        }
        patience.kept += u32::from(kept);
        if patience.kept > KEPT {
            return Err(close(Gone::Changed(Change::Grasping)));
        }
        if served {
            patience.pause = PAUSE.0;
        }
        let session = self.unless_closed(self.reconnect(patience)).await;
        let Session {
            front,
            queues,
            info,
        } = session.and_then(|session| session).map_err(close)?;
        if let Err(gone) = self.check(&info) {
            close(gone);
            drop(desks);
            self.say_farewell(front, gone).await;
            drop(queues);
            return Err(gone);
        }
        let mut groups: Vec<Vec<Desk<G>>> = queues.iter().map(|_| Vec::new()).collect();
        let count = groups.len().max(1);
        let mut waiting = 0;
        for (at, mut desk) in desks.into_iter().enumerate() {
            desk.readmit(&info);
            waiting += desk.waiting();
            if let Some(group) = groups.get_mut(at % count) {
                group.push(desk);
            }
        }
        log::info!("{}: the backend is back, for {waiting} requests", self.path);
        self.core.describe(info);
        self.halt(false);
        let servers = queues.into_iter().zip(groups);
        let servers = servers.map(|(queue, desks)| Server::new(queue, desks));
        Ok((front, self.serve(servers.collect())))
    }

    /// Waits until a backend is connected again.
    async fn reconnect(&self, patience: &mut Patience) -> Result<Session<G>, Gone> {
        // As many as there are who have something to ask.
        let queues = u32::try_from(self.core.mailboxes().len()).unwrap_or(u32::MAX);
        let config = self.config.queues(queues.min(self.config.queues));
        loop {
            // One that leaves us all the time, having done nothing, is not to keep us busy.
            self.guest.sleep(patience.pause).await;
            patience.pause = patience.pause.saturating_mul(2).min(PAUSE.1);
            let mut front = Frontend::open(&self.client, &self.path)
                .await
                .map_err(gone)?;
            let (was, now) = (self.core.route().backend, front.other_domid());
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
                true => Session::establish(&self.guest, front, &config).await,
                false => {
                    let closed = async { front.close().await?.closed_first().await };
                    closed.await.map_err(gone)?;
                    Err(xenbus::Error::Leaving(XenbusState::Closing).into())
                }
            };
            match session {
                Ok(session) => return Ok(session),
                Err(ConnectError::Xenbus(xenbus::Error::Leaving(_))) => {}
                Err(error) => {
                    log::warn!("{}: {error}", self.path);
                    return Err(match error {
                        ConnectError::Xenbus(error) => gone(error),
                        ConnectError::Queue(_) => Gone::Changed(Change::Unusable),
                    });
                }
            }
            self.until_detached().await?;
        }
    }

    /// Whether requests that were made for the disk that there was make sense for this one, but
    /// for those that [`Desk::readmit`] sorts out.
    fn check(&self, info: &Info) -> Result<(), Gone> {
        let (was, now) = (self.core.info().sector_size, info.sector_size);
        match was == now {
            true => Ok(()),
            false => Err(Gone::Changed(Change::SectorSize { was, now })),
        }
    }

    /// Waits for `work`, or until the disk is closed.
    async fn unless_closed<F: Future>(&self, work: F) -> Result<F::Output, Gone> {
        let mut work = pin!(work);
        poll_fn(|cx| match self.core.poll_closed(cx) {
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

/// What an error of the handshake means for a disk that was connected.
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

/// The servers that have ended, kept until the backend has let go of their memory.
struct Ended<G: Guest> {
    servers: ArrayQueue<Box<Server<G>>>,
    waker: AtomicWaker,
}

impl<G: Guest> Ended<G> {
    fn new(count: usize) -> Self {
        Ended {
            servers: ArrayQueue::new(count.max(1)),
            waker: AtomicWaker::new(),
        }
    }

    fn put(&self, server: Server<G>) {
        // As many fit as there are.
        let _ = self.servers.push(Box::new(server));
        self.waker.wake();
    }

    /// Whether at least one has ended.
    fn any(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Ready when all have ended.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.servers.is_full() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn take(&self) -> Vec<Server<G>> {
        core::iter::from_fn(|| self.servers.pop().map(|server| *server)).collect()
    }
}
