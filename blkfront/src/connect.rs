//! The handshake: finding the backend, telling it of the ring, and leaving it in order.
//!
//! ```text
//!   device/vbd/51712              us                          backend
//!     backend, backend-id ──────▶ open
//!                                 wait          ◀──────────── InitWait, its features
//!     ring-ref, event-channel ◀── publish: Initialised ─────▶ maps, binds
//!     protocol, feature-...       wait          ◀──────────── Connected, sectors, info, ...
//!                                 Connected
//!                                 ...
//!                                 Closing, Closed ──────────▶ unmaps, closes
//!                                 ends the grants ◀────────── Closed
//! ```
//!
//! A task watches the backend from then on. Whoever ends the disk (the backend by leaving or by a
//! violation, its user by dropping the last handle), that task brings it to its end: what is
//! outstanding fails at once, but the ring and the buffers under way stay granted until the
//! backend has closed too, so that in an orderly farewell no page goes to quarantine.
//!
//! Source: the state diagram and the keys in `io/blkif.h`; the order of closing is what Linux's
//! blkback waits for, which unmaps when the frontend *is* closed.

use alloc::string::ToString;
use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::Errno;
use parapet_xen_sys::io::protocols;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::{self, Connected, Frontend, Initialised, Keys};

use crate::disk::Disk;
use crate::error::Gone;
use crate::info::Info;
use crate::queue::{Queue, QueueError};

/// Why a disk could not be connected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The handshake failed: by the backend's fault, or by the store's.
    #[error(transparent)]
    Xenbus(#[from] xenbus::Error),
    /// Our own domain has not enough of something.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl ConnectError {
    /// What a frontend reports it as.
    fn errno(&self) -> Errno {
        match self {
            ConnectError::Xenbus(_) => Errno::EINVAL,
            ConnectError::Queue(_) => Errno::ENOMEM,
        }
    }
}

impl<G: Guest> Disk<G> {
    /// Connects the disk whose frontend directory is `path`, as `device/vbd/51712`. It waits as
    /// long as the backend takes to come, and before that for an earlier connection to end.
    ///
    /// # Errors
    /// [`ConnectError`]. The frontend is closed then, with the reason under `error` in the
    /// domain's directory.
    pub async fn connect(guest: &G, client: &Client, path: &str) -> Result<Self, ConnectError> {
        wait_for_the_one_before(client, path).await?;
        let mut front = Frontend::open(client, path).await?;
        if let Err(error) = front.backend_waits().await {
            return Err(give_up(front, error.into()).await);
        }
        let queue = match Queue::new(guest, front.other_domid(), 1) {
            Ok(queue) => queue,
            Err(error) => return Err(give_up(front, error.into()).await),
        };
        let mut front = front.publish(|keys| publish(keys, &queue)).await?;
        let info = match describe(&mut front).await {
            Ok(info) => info,
            Err(error) => return Err(give_up(front, error.into()).await),
        };
        let front = front.connect().await?;

        let (disk, server) = Disk::assemble(guest, queue, info);
        let retired = Arc::new(Retired::new(1));
        let retire = Arc::clone(&retired);
        guest.spawn(async move { retire.put(server.run().await) });
        guest.spawn(supervise(front, disk.mailboxes(), retired));
        Ok(disk)
    }
}

/// Waits until whoever had the disk before has left it: it writes the same state as we do.
async fn wait_for_the_one_before(client: &Client, path: &str) -> Result<(), xenbus::Error> {
    let own = Keys::new(client.clone(), path);
    let mut watch = client.watch(&own.path("state")).await?;
    while !matches!(
        own.state().await?,
        XenbusState::Initialising | XenbusState::Closed
    ) {
        watch.next().await?;
    }
    Ok(())
}

/// What the backend has to know of a queue.
async fn publish<G: Guest>(keys: Keys, queue: &Queue<G>) -> Result<(), client::Error> {
    if let [only] = queue.ring_refs() {
        keys.set("ring-ref", only).await?;
    }
    keys.set("event-channel", queue.port()).await?;
    keys.set("protocol", protocols::X86_64).await?;
    keys.set("feature-persistent", 1).await
}

async fn describe(front: &mut Frontend<Initialised>) -> Result<Info, xenbus::Error> {
    front.backend_connected().await?;
    Info::read(front.other()).await
}

/// Leaves a device that could not be connected.
async fn give_up<State>(front: Frontend<State>, error: ConnectError) -> ConnectError {
    // The store may be what failed; the caller learns the first error in any case.
    log::warn!("{}: {error}", front.own().base());
    let _ = front.report(error.errno(), &error.to_string()).await;
    if let Ok(front) = front.close().await {
        let _ = front.closed_first().await;
    }
    error
}

/// Queues whose task has ended, kept until the backend has let go of their memory.
struct Retired<G: Guest> {
    queues: ArrayQueue<Queue<G>>,
    waker: AtomicWaker,
}

impl<G: Guest> Retired<G> {
    fn new(count: usize) -> Self {
        Retired {
            queues: ArrayQueue::new(count),
            waker: AtomicWaker::new(),
        }
    }

    fn put(&self, queue: Option<Queue<G>>) {
        // As many fit as there are.
        if let Some(queue) = queue {
            let _ = self.queues.push(queue);
        }
        self.waker.wake();
    }

    /// Ready when all queues have ended.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.queues.is_full() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Sees a connected disk to its end.
async fn supervise<G: Guest>(
    mut front: Frontend<Connected>,
    mailboxes: alloc::boxed::Box<[Arc<crate::mailbox::Mailbox<G>>]>,
    retired: Arc<Retired<G>>,
) {
    let left = {
        let mut leaves = pin!(backend_leaves(&mut front));
        poll_fn(|cx| match retired.poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => leaves.as_mut().poll(cx).map(Some),
        })
        .await
    };
    for mailbox in &mailboxes {
        // One queue that ended by itself takes the others with it.
        mailbox.close(left.unwrap_or(Gone::Closed));
    }
    poll_fn(|cx| retired.poll(cx)).await;

    let reason = mailboxes.first().and_then(|mailbox| mailbox.gone());
    if let Some(gone @ Gone::Violation(_)) = reason {
        log::warn!("{}: {gone}", front.own().base());
        let _ = front.report(Errno::EIO, &gone.to_string()).await;
    }
    // An error here means that the device or the store is gone: then nobody is left to wait for.
    if let Ok(front) = front.close().await
        && let Ok(mut front) = front.closed_first().await
    {
        while is_attached(front.other().state().await) && front.changed().await.is_ok() {}
    }
    // Now, with `retired`, the rings go.
}

/// Ready when the backend does not serve us any more.
async fn backend_leaves(front: &mut Frontend<Connected>) -> Gone {
    loop {
        match front.changed().await {
            Ok(XenbusState::Connected | XenbusState::Reconfiguring | XenbusState::Reconfigured) => {
            }
            Ok(_) | Err(xenbus::Error::Peer { .. } | xenbus::Error::Leaving(_)) => {
                return Gone::BackendClosed;
            }
            Err(xenbus::Error::Store(_)) => return Gone::Unwatched,
        }
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
