//! What tells that something about a device may have changed.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Watch};
use parapet_xenstore::xenbus::{self, End};

use crate::Error;

/// What tells that a state may have changed: ours, which the toolstack writes too, or the
/// frontend's.
pub struct Changes {
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
    pub(super) fn of_our_own(&mut self) -> bool {
        std::mem::take(&mut self.own)
    }

    /// Waits for a change, or for `other`.
    ///
    /// # Errors
    /// The xenstore's.
    pub async fn or<F>(&mut self, other: &mut F) -> Result<Option<F::Output>, client::Error>
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

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("own", &self.own).finish()
    }
}

/// The frontend's state; `Unknown` if it makes no sense, and `Closed` if it is gone.
///
/// # Errors
/// The xenstore's.
pub async fn frontend_state(end: &End) -> Result<XenbusState, Error> {
    match end.other().state().await {
        Err(xenbus::Error::Peer { .. }) => Ok(XenbusState::Unknown),
        state => Ok(state?),
    }
}

/// Whether the toolstack has put a device that was past its beginning back there, as it does when
/// it makes another in its place.
pub(super) async fn is_back_at_the_beginning(end: &End) -> Result<bool, Error> {
    let state: Option<String> = end.own().find("state").await?;
    Ok(state.as_deref() == Some("1"))
}
