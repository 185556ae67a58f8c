//! A connected device: its queue at work, and what may end it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_channel::oneshot;
use parapet_hypervisor::seam::{self, Access, MapError};
use parapet_ring::Peer;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Watch};
use parapet_xenstore::xenbus::{Backend, Closing, End, InitWait};

use super::{Device, DeviceError, Found, frontend_state};
use crate::budget::Share;
use crate::negotiation::{Answer, Offer, Protocol};
use crate::queue::{ImageOf, Queue, QueueError, QueueSetup};
use crate::report::{Connection, Stage};
use crate::request::{Layout, X86_32, X86_64};

/// A queue at work.
pub(super) struct Running {
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
    /// The frontend has left, or the queue has ended by itself.
    Over,
}

impl Running {
    /// Waits until something may have changed, and says what that comes to.
    async fn next(&mut self, end: &End, changes: &mut Changes) -> Result<Standing, DeviceError> {
        if let Some(outcome) = changes.or(&mut self.outcome).await? {
            // A task that is gone has let go.
            self.ended = Some(outcome.unwrap_or(Ok(())));
            return Ok(Standing::Over);
        }
        Ok(match frontend_state(end).await? {
            XenbusState::Closing => Standing::Leaving,
            // One that is back at the beginning has not said a word of closing: its guest crashed,
            // or began anew.
            XenbusState::Closed | XenbusState::Initialising => Standing::Over,
            _ => Standing::Serving,
        })
    }

    /// Makes sure that the queue has let go of everything.
    pub(super) async fn stop(&mut self) {
        drop(self.stop.take());
        if self.ended.is_none() {
            self.ended = Some((&mut self.outcome).await.unwrap_or(Ok(())));
        }
    }

    /// Why the queue ended, if that was an error, and is told for the first time.
    pub(super) fn take_error(&mut self) -> Option<DeviceError> {
        match &mut self.ended {
            Some(ended) => std::mem::replace(ended, Ok(())).err().map(Into::into),
            None => None,
        }
    }
}

/// What tells that a state may have changed: ours, which the toolstack writes too, or the
/// frontend's.
pub(super) struct Changes([Watch; 2]);

impl Changes {
    pub(super) async fn of(end: &End) -> Result<Self, client::Error> {
        let (own, other) = (end.own().base(), end.other().path("state"));
        Ok(Changes([
            end.client().watch(own).await?,
            end.client().watch(&other).await?,
        ]))
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
            for watch in &mut self.0 {
                if let Poll::Ready(event) = watch.poll_event(cx) {
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
    /// Reads the frontend's answer, takes what it names, and starts a queue on it.
    pub(super) async fn connect(
        &self,
        waiting: &Backend<InitWait>,
        image: &Arc<ImageOf<P>>,
        offer: &Offer,
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
        let share = answer.persistent.then(|| self.budget.share());
        let setup = QueueSetup {
            place: self.place.clone(),
            peer,
            ring,
            channel: self.place.bind(peer, answer.port)?,
            image: Arc::clone(image),
            discard: offer.discard,
            persistent: share.as_ref().map_or(0, Share::pages),
            poll: self.options.poll,
            stats: Arc::clone(self.record.stats()),
            complaints: self.complaints.clone(),
        };
        let running = match answer.protocol {
            Protocol::X86_64 => self.start::<X86_64>(setup, share)?,
            Protocol::X86_32 => self.start::<X86_32>(setup, share)?,
        };
        let connection = Connection {
            protocol: answer.protocol,
            ring_pages: answer.ring.len(),
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

    /// Starts a queue, which keeps its share of mapped pages as long as it lives.
    fn start<L: Layout>(
        &self,
        setup: QueueSetup<P>,
        share: Option<Share>,
    ) -> Result<Running, DeviceError> {
        let queue = Queue::<P, L>::new(setup)?;
        let (stop, stopped) = oneshot::channel();
        let (ended, outcome) = oneshot::channel();
        self.place.spawn(async move {
            let stopped = async {
                // An error means that the device dropped its end, as it does to stop us.
                let _: Result<(), _> = stopped.await;
            };
            let outcome = queue.run(stopped).await;
            drop(share);
            // Nobody waits for the outcome if the device is gone.
            let _ = ended.send(outcome);
        });
        Ok(Running {
            stop: Some(stop),
            outcome,
            ended: None,
        })
    }

    /// Says that the device is connected, and waits until its frontend has left.
    pub(super) async fn see_to_its_end(
        &self,
        waiting: Backend<InitWait>,
        running: &mut Running,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, DeviceError> {
        let connected = self.turns.take(waiting.connect(async |_| Ok(()))).await?;
        let mut standing = Standing::Serving;
        while standing == Standing::Serving && connected.is_online().await? {
            standing = running.next(&connected, changes).await?;
        }
        if let Some(error) = running.take_error() {
            self.report(&connected, &error).await?;
        }
        // The toolstack asks the frontend to go by this very state, which we may have overwritten.
        let closing = self.turns.take(connected.close()).await?;
        while standing != Standing::Over {
            standing = running.next(&closing, changes).await?;
        }
        Ok(closing)
    }
}
