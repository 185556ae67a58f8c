//! The queues of a device at work, each a task of its own.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;
use parapet_hypervisor::seam::Tasks;

use crate::Error;

/// The queues of a connected device. Dropping them asks all to stop.
#[derive(Debug)]
pub struct Queues(Vec<Queue>);

#[derive(Debug)]
struct Queue {
    /// Dropping it asks the queue to stop.
    stop: Option<oneshot::Sender<()>>,
    outcome: oneshot::Receiver<Result<(), Error>>,
    ended: Option<Result<(), Error>>,
}

/// Ready when a queue is to stop.
#[derive(Debug)]
pub struct Stopped(oneshot::Receiver<()>);

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // An error means that the device dropped its end, as it does to stop us.
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

impl Queues {
    /// Starts queues, each in a task of its own. Each is to end, and to have let go of everything,
    /// soon after it is asked to; it may end before by itself.
    pub fn start<P, W, F, E>(place: &P, works: impl IntoIterator<Item = W>) -> Self
    where
        P: Tasks,
        W: FnOnce(Stopped) -> F,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Error>,
    {
        let mut queues = Queues(Vec::new());
        queues.extend(place, works);
        queues
    }

    /// Starts more of them.
    pub fn extend<P, W, F, E>(&mut self, place: &P, works: impl IntoIterator<Item = W>)
    where
        P: Tasks,
        W: FnOnce(Stopped) -> F,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Error>,
    {
        let start = |work: W| {
            let (stop, stopped) = oneshot::channel();
            let (ended, outcome) = oneshot::channel();
            let work = work(Stopped(stopped));
            place.spawn(async move {
                let outcome = work.await.map_err(Into::into);
                // Nobody waits for the outcome if the device is gone.
                let _ = ended.send(outcome);
            });
            Queue {
                stop: Some(stop),
                outcome,
                ended: None,
            }
        };
        self.0.extend(works.into_iter().map(start));
    }

    /// Ready when a queue has ended: the device goes with the first of them.
    pub(crate) fn poll_any_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = |queue: &mut Queue| queue.poll_ended(cx).is_ready();
        match self.0.iter_mut().any(ended) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Makes sure that all queues have let go of everything.
    pub(crate) async fn stop(&mut self) {
        for queue in &mut self.0 {
            drop(queue.stop.take());
        }
        for queue in &mut self.0 {
            poll_fn(|cx| queue.poll_ended(cx)).await;
        }
    }

    /// Why a queue ended, if that was an error, and is told for the first time.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        let mut ended = self.0.iter_mut().filter_map(|queue| queue.ended.as_mut());
        ended.find_map(|ended| std::mem::replace(ended, Ok(())).err())
    }
}

impl Queue {
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
