//! A connected device: its queues at work, and what may end it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_channel::oneshot;
use parapet_hypervisor::seam::{self, Access, MapError};
use parapet_ring::Peer;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Watch};
use parapet_xenstore::xenbus::{self, Backend, Closing, Connected, End, InitWait, Keys};

use super::recovery::Kept;
use super::upkeep::{Done, Upkeep};
use super::{Device, DeviceError, Found, Opened, frontend_state};
use crate::budget::Share;
use crate::negotiation::{Answer, Protocol, QueueAnswer, Rates, resize_to};
use crate::queue::{Queue, QueueError, QueueSetup};
use crate::report::{Connection, Stage};
use crate::request::{Layout, X86_32, X86_64};

/// The queues of a device at work.
pub(super) struct Running {
    queues: Vec<RunningQueue>,
    /// The name of their journal, if they have one.
    pub(super) journal: Option<String>,
}

/// One of them.
struct RunningQueue {
    /// Dropping it asks the queue to stop.
    stop: Option<oneshot::Sender<()>>,
    outcome: oneshot::Receiver<Result<(), QueueError>>,
    ended: Option<Result<(), QueueError>>,
}

/// How a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The frontend uses it.
    Serving,
    /// The frontend will leave; it may still have something to finish.
    Leaving,
    /// The frontend has left, or a queue has ended by itself.
    Over,
}

/// What happened while a device was watched.
enum Event {
    /// A queue has ended by itself.
    QueueEnded,
    /// Something was done aside.
    Done(Done),
}

impl RunningQueue {
    /// Ready when the queue has let go of everything.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended.is_none() {
            let Poll::Ready(outcome) = Pin::new(&mut self.outcome).poll(cx) else {
                return Poll::Pending;
            };
            // A task that is gone has let go.
            self.ended = Some(outcome.unwrap_or(Ok(())));
        }
        Poll::Ready(())
    }
}

impl Running {
    /// Waits until something may have changed, and says what that comes to.
    async fn next<P: seam::Backend>(
        &mut self,
        end: &End,
        upkeep: &mut Upkeep<P>,
        changes: &mut Changes,
    ) -> Result<(Standing, Option<Done>), DeviceError> {
        let mut event = poll_fn(|cx| {
            if self.poll_any_ended(cx).is_ready() {
                return Poll::Ready(Event::QueueEnded);
            }
            upkeep.poll(cx).map(Event::Done)
        });
        let done = match changes.or(&mut event).await? {
            Some(Event::QueueEnded) => return Ok((Standing::Over, None)),
            Some(Event::Done(done)) => Some(done),
            None => None,
        };
        let standing = match frontend_state(end).await? {
            XenbusState::Closing => Standing::Leaving,
            // One that is back at the beginning has not said a word of closing: its guest crashed,
            // or began anew.
            XenbusState::Closed | XenbusState::Initialising => Standing::Over,
            _ => Standing::Serving,
        };
        Ok((standing, done))
    }

    /// Ready when a queue has ended: the device goes with the first of them.
    fn poll_any_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = |queue: &mut RunningQueue| queue.poll_ended(cx).is_ready();
        match self.queues.iter_mut().any(ended) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Makes sure that all queues have let go of everything.
    pub(super) async fn stop(&mut self) {
        for queue in &mut self.queues {
            drop(queue.stop.take());
        }
        for queue in &mut self.queues {
            poll_fn(|cx| queue.poll_ended(cx)).await;
        }
    }

    /// Why a queue ended, if that was an error, and is told for the first time.
    pub(super) fn take_error(&mut self) -> Option<DeviceError> {
        let mut ended = self
            .queues
            .iter_mut()
            .filter_map(|queue| queue.ended.as_mut());
        let error = ended.find_map(|ended| std::mem::replace(ended, Ok(())).err());
        error.map(Into::into)
    }
}

/// What tells that a state may have changed: ours, which the toolstack writes too, or the
/// frontend's.
pub(super) struct Changes {
    /// Of our own directory, and of the frontend's state.
    watches: [Watch; 2],
    /// Whether something in our own directory may have changed.
    own: bool,
}

impl Changes {
    pub(super) async fn of(end: &End) -> Result<Self, client::Error> {
        let (own, other) = (end.own().base(), end.other().path("state"));
        Ok(Changes {
            watches: [
                end.client().watch(own).await?,
                end.client().watch(&other).await?,
            ],
            own: true,
        })
    }

    /// Whether something in our own directory may have changed since this was asked last.
    fn of_our_own(&mut self) -> bool {
        std::mem::take(&mut self.own)
    }

    /// Waits for a change, or for `other`.
    pub(super) async fn or<F>(&mut self, other: &mut F) -> Result<Option<F::Output>, client::Error>
    where
        F: Future + Unpin,
    {
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut *other).poll(cx) {
                return Poll::Ready(Ok(Some(output)));
            }
            for (at, watch) in self.watches.iter_mut().enumerate() {
                if let Poll::Ready(event) = watch.poll_event(cx) {
                    self.own |= at == 0;
                    return Poll::Ready(event.map(|_| None));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for a change.
    pub(super) async fn next(&mut self) -> Result<(), client::Error> {
        self.or(&mut std::future::pending::<()>()).await.map(drop)
    }
}

impl<P: seam::Backend> Device<P> {
    /// Reads the frontend's answer, takes what it names, and starts the queues on it.
    pub(super) async fn connect(
        &self,
        waiting: &Backend<InitWait>,
        opened: &Opened<P>,
    ) -> Result<Running, DeviceError> {
        let offered = opened.offer.queues;
        let other = waiting.other();
        // First how many queues there are, so that not every key of every queue is asked for.
        let chosen: Option<String> = other.find("multi-queue-num-queues").await?;
        let queues = Answer::queues(offered, |_| chosen.clone())?;
        let keys: Vec<String> = Answer::keys(queues).collect();
        let keys = Found::read(other, keys.iter().map(String::as_str)).await?;
        let answer = Answer::parse(offered, |key| keys.get(key))?;
        self.set_rates(waiting, opened).await?;
        opened.terms.set_sectors(opened.image.sectors());
        let journal = self.begin_journal(keys, &answer, opened);
        let keep = match &journal {
            Some(journal) => Kept::Anew(journal),
            None => Kept::No,
        };
        self.run_queues(waiting.other_domid(), &answer, opened, keep)
            .await
    }

    /// Starts the queues of a connection, new or taken over.
    pub(super) async fn run_queues(
        &self,
        peer: DomId,
        answer: &Answer,
        opened: &Opened<P>,
        kept: Kept<'_>,
    ) -> Result<Running, DeviceError> {
        let queues = match answer.protocol {
            Protocol::X86_64 => self.start::<X86_64>(peer, answer, opened, kept).await?,
            Protocol::X86_32 => self.start::<X86_32>(peer, answer, opened, kept).await?,
        };
        let running = Running {
            queues,
            journal: kept.journal().map(|journal| journal.header().name.clone()),
        };
        let ring_pages = answer.queues.first().map_or(0, |queue| queue.ring.len());
        let connection = Connection {
            protocol: answer.protocol,
            queues: answer.queues.len(),
            ring_pages,
            persistent: answer.persistent,
        };
        self.record.note(|report| {
            report.stage = Stage::Connected;
            report.connection = Some(connection);
            report.connections += 1;
        });
        let now = self.place.now();
        self.connections
            .info(now, || format!("connected: {connection}"));
        Ok(running)
    }

    /// Makes all queues, and if that goes well starts them, each in a task of its own.
    async fn start<L: Layout>(
        &self,
        peer: DomId,
        answer: &Answer,
        opened: &Opened<P>,
        kept: Kept<'_>,
    ) -> Result<Vec<RunningQueue>, DeviceError> {
        let mut queues = Vec::new();
        let of_each = answer.queues.iter().zip(self.record.stats().queues());
        for (at, (queue, stats)) in of_each.enumerate() {
            let QueueAnswer { ring, port } = queue;
            let ring = self.place.map(peer, ring, Access::ReadWrite)?;
            let Ok(ring) = Peer::new(ring) else {
                // Asked for to be writable, and the place says that it is.
                return Err(MapError::Host(0).into());
            };
            let channel = match kept {
                Kept::On(_) => self.bind_again(peer, *port).await?,
                Kept::No | Kept::Anew(_) => self.place.bind(peer, *port)?,
            };
            let share = answer.persistent.then(|| self.budget.share());
            let setup = QueueSetup {
                place: self.place.clone(),
                peer,
                ring,
                channel,
                image: Arc::clone(&opened.image),
                terms: Arc::clone(&opened.terms),
                discard: opened.offer.discard,
                persistent: share.as_ref().map_or(0, Share::pages),
                poll: self.options.poll,
                stats: Arc::clone(stats),
                complaints: self.complaints.clone(),
            };
            queues.push((Queue::<P, L>::keeping(setup, kept.of(at))?, share));
        }
        let running = queues.into_iter().map(|(queue, share)| {
            let (stop, stopped) = oneshot::channel();
            let (ended, outcome) = oneshot::channel();
            self.place.spawn(async move {
                let stopped = async {
                    // An error means that the device dropped its end, as it does to stop us.
                    let _: Result<(), _> = stopped.await;
                };
                let outcome = queue.run(stopped).await;
                // Its share of mapped pages is another's from now on.
                drop(share);
                // Nobody waits for the outcome if the device is gone.
                let _ = ended.send(outcome);
            });
            RunningQueue {
                stop: Some(stop),
                outcome,
                ended: None,
            }
        });
        Ok(running.collect())
    }

    /// Waits until the frontend of a connected device, which was `told` a size, has left.
    pub(super) async fn see_to_its_end(
        &self,
        connected: Backend<Connected>,
        opened: &Opened<P>,
        running: &mut Running,
        told: &mut u64,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, DeviceError> {
        let mut upkeep = Upkeep::new(self.place.clone(), Arc::clone(&opened.image));
        let closing = self
            .keep_up(connected, opened, running, &mut upkeep, told, changes)
            .await;
        upkeep.stop().await;
        closing
    }

    /// Lets go of all that a connection had, also when the nodes are gone, or the xenstore is: then
    /// nobody knows that the connection is over, and who comes after us goes on with it.
    pub(super) async fn end(
        &self,
        mut running: Running,
        closing: &Result<Backend<Closing>, DeviceError>,
    ) {
        running.stop().await;
        if let Some(error) = running.take_error() {
            self.complain(&error);
        }
        if !matches!(
            closing,
            Err(DeviceError::Xenbus(xenbus::Error::Store(
                client::Error::Broken(_)
            )))
        ) {
            self.forget_journal();
        }
    }

    async fn keep_up(
        &self,
        connected: Backend<Connected>,
        opened: &Opened<P>,
        running: &mut Running,
        upkeep: &mut Upkeep<P>,
        told: &mut u64,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, DeviceError> {
        let own: Option<String> = connected.own().find("state").await?;
        // One that is closing already was so when we took it over.
        let mut standing = match own.as_deref() {
            Some("5") => Standing::Leaving,
            _ => Standing::Serving,
        };
        // While nobody was there it may have changed.
        let mut looked = true;
        while standing == Standing::Serving && connected.is_online().await? {
            let sectors = opened.image.sectors();
            if looked && sectors != *told {
                opened.terms.set_sectors(upkeep.at_most(sectors));
                self.tell_size(sectors).await?;
                *told = sectors;
            }
            if changes.of_our_own() {
                self.set_rates(&connected, opened).await?;
                if let Some(sectors) = self.wanted_size(&connected).await? {
                    // Before it is smaller: what is written behind its end makes a file larger.
                    let terms = &opened.terms;
                    terms.set_sectors(sectors.min(terms.sectors()));
                    upkeep.resize(sectors);
                }
            }
            let done;
            (standing, done) = running.next(&connected, upkeep, changes).await?;
            if let Some(Done::Resized(wish, outcome)) = &done {
                let sectors = opened.image.sectors();
                opened.terms.set_sectors(upkeep.at_most(sectors));
                let outcome = outcome.as_ref().map_err(|e| e.to_string());
                self.answer_resize(&connected, Some(*wish), outcome).await?;
            }
            looked = done.is_some();
        }
        if let Some(error) = running.take_error() {
            self.report(&connected, &error).await?;
        }
        // The toolstack asks the frontend to go by this very state, which we may have overwritten.
        let closing = self.turns.take(connected.close()).await?;
        while standing != Standing::Over {
            (standing, _) = running.next(&closing, upkeep, changes).await?;
        }
        Ok(closing)
    }

    /// Sees how fast the operator lets the disk be used. What makes no sense changes nothing.
    pub(super) async fn set_rates(&self, end: &End, opened: &Opened<P>) -> Result<(), DeviceError> {
        let keys = Found::read(end.own(), Rates::KEYS.iter().copied()).await?;
        match Rates::parse(|key| keys.get(key)) {
            Ok(rates) => {
                opened.terms.set_rates(&rates);
                self.record.note(|report| report.rates = rates);
            }
            Err(error) => self.complain(&error.into()),
        }
        Ok(())
    }

    /// How many sectors the operator wants the disk to have, if it is to have others.
    async fn wanted_size(&self, end: &End) -> Result<Option<u64>, DeviceError> {
        let Some(value) = end.own().find::<String>("resize-to").await? else {
            return Ok(None);
        };
        match resize_to(value) {
            Ok(sectors) => Ok(Some(sectors)),
            Err(error) => {
                self.answer_resize(end, None, Err(error.to_string()))
                    .await?;
                Ok(None)
            }
        }
    }

    /// Takes the operator's wish for another size away, if it is still that of so many sectors (or
    /// one that makes no sense), and leaves what was wrong with it, if something was.
    async fn answer_resize(
        &self,
        end: &End,
        wish: Option<u64>,
        outcome: Result<&(), String>,
    ) -> Result<(), DeviceError> {
        let (own, outcome) = (end.own(), &outcome);
        let answered = self.store.transaction(|tx| async move {
            let own = own.within(&tx);
            // Another may have come meanwhile, and will be seen to.
            let now = tx.read(&own.path("resize-to")).await;
            let now = String::from_utf8_lossy(now.as_deref().unwrap_or_default()).into_owned();
            if resize_to(now).ok() == wish {
                own.remove("resize-to").await?;
            }
            match outcome {
                Ok(()) => own.remove("resize-error").await,
                Err(error) => own.set("resize-error", error).await,
            }
        });
        self.turns.take(answered).await?;
        if let Err(error) = outcome {
            let vbd = self.record.vbd();
            log::warn!("vbd {vbd}: it cannot be resized: {error}");
        }
        Ok(())
    }

    /// Tells a connected frontend of the disk's size, as Linux does: the key, and our state once
    /// more, for which frontends have a watch.
    async fn tell_size(&self, sectors: u64) -> Result<(), DeviceError> {
        let path = &self.path;
        let told = self.store.transaction(|tx| async move {
            let own = Keys::new(tx.clone(), path.clone());
            own.set("sectors", sectors).await?;
            // Not if the toolstack has written another meanwhile.
            match tx.read(&own.path("state")).await?.as_slice() {
                b"4" => own.set("state", u32::from(XenbusState::Connected)).await,
                _ => Ok(()),
            }
        });
        self.turns.take(told).await?;
        self.record.note(|report| {
            if let Some(disk) = &mut report.disk {
                disk.sectors = sectors;
            }
        });
        let vbd = self.record.vbd();
        log::info!("vbd {vbd}: it has {sectors} sectors from now on");
        Ok(())
    }
}
