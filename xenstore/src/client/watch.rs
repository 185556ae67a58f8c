//! A watch as a stream of events.

use alloc::string::String;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, ready};

use futures_core::Stream;

use super::pump::Order;
use super::{Client, Error};
use crate::mailbox::Mailbox;
use crate::transport::Broken;
use crate::wire::Request;

/// Something changed at or below a watched node. There may be events without a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed; relative if the watch's path was.
    pub path: String,
    /// The watch that saw it.
    pub token: String,
}

/// Events on their way from the pump to their watch: so many at the most, and beyond that only
/// that there were more.
pub(super) struct Queue {
    paths: Arc<Mailbox<String>>,
    more: AtomicBool,
}

impl Queue {
    const MOST: usize = 1024;

    pub(super) fn put(&self, path: String) {
        if self.paths.len() < Queue::MOST {
            self.paths.put(path);
        } else {
            self.more.store(true, Ordering::Release);
            self.paths.wake();
        }
    }

    pub(super) fn close(&self) {
        self.paths.close();
    }
}

/// A watch: a stream of events, which ends after the error that says that the connection is gone.
/// Dropping it ends it.
pub struct Watch {
    client: Client,
    path: String,
    token: String,
    queue: Arc<Queue>,
    /// The error was told.
    ended: bool,
}

impl Watch {
    pub(super) fn new(client: Client, path: &str, token: String) -> Self {
        let queue = Arc::new(Queue {
            paths: Mailbox::new(),
            more: AtomicBool::new(false),
        });
        let path = path.into();
        Watch {
            client,
            path,
            token,
            queue,
            ended: false,
        }
    }

    pub(super) async fn begin(&self, depth: Option<u32>) -> Result<(), Error> {
        self.client.order(Order::Listen {
            token: self.token.clone(),
            queue: self.queue.clone(),
        });
        let request = Request::Watch {
            path: self.path.as_bytes(),
            token: self.token.as_bytes(),
            depth,
        };
        self.client.call(&request).await.map(drop)
    }

    /// What is watched, as it was given.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The next event.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn next(&mut self) -> Result<WatchEvent, Error> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// [`Watch::next`], polled.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<WatchEvent, Error>> {
        let path = match self.queue.paths.poll_take(cx) {
            Poll::Ready(Some(path)) => path,
            Poll::Ready(None) => return Poll::Ready(Err(Broken::Closed.into())),
            // Some were left out: who watches is to look at all that it watches.
            Poll::Pending if self.queue.more.swap(false, Ordering::AcqRel) => self.path.clone(),
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready(Ok(WatchEvent {
            path,
            token: self.token.clone(),
        }))
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.poll_event(cx));
        self.ended = event.is_err();
        Poll::Ready(Some(event))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let request = Request::Unwatch {
            path: self.path.as_bytes(),
            token: self.token.as_bytes(),
        };
        // What was short enough for a watch is so for its end; and if not there is none to end.
        if self.client.send(&request, None).is_err() {
            log::debug!("a watch that never was on {}", self.path);
        }
        self.client.order(Order::Ignore {
            token: core::mem::take(&mut self.token),
        });
    }
}
