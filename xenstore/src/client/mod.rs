//! A client of xenstored.
//!
//! ```text
//!   task A ─ Client ─┐ orders                    ┌─ answers, by req_id ─▶ whoever asked
//!   task B ─ Client ─┼────────▶ pump ◀─ bytes ─▶ ┤
//!   task C ─ Client ─┘     (owns the transport)  └─ events, by token ───▶ its Watch
//! ```
//!
//! A [`Client`] is a handle that any number of tasks may have a clone of; the connection itself
//! belongs to one task, the pump. [`Client::over_ring`] makes both of a guest's xenstore page;
//! [`blocking`] has a client for tools, over the unix socket. Both have the same verbs, and of the
//! same names.
//!
//! ```
//! use futures_util::StreamExt;
//! use parapet_hypervisor::block_on;
//! use parapet_hypervisor::loopback::{DomainConfig, Hypervisor};
//! use parapet_hypervisor::seam::Tasks;
//! use parapet_xenstore::client::{Client, Error};
//! use parapet_xenstore::server::daemon::Daemon;
//! use parapet_xenstore::store::Store;
//!
//! let hypervisor = Hypervisor::new(Default::default()).unwrap();
//! let domain_0 = hypervisor.create(DomainConfig::default()).unwrap();
//! let (daemon, xenstored) = Daemon::new(domain_0.clone(), Store::default(), |_| true);
//! domain_0.spawn(daemon.run());
//!
//! let client = Client::start(&domain_0, xenstored.connect());
//! block_on(async {
//!     let watch = client.watch("/jobs").await?;
//!     let count = client
//!         .transaction(|tx| async move {
//!             tx.write("/jobs/first", "waiting").await?;
//!             tx.write("/jobs/second", "waiting").await?;
//!             Ok(tx.list("/jobs").await?.len())
//!         })
//!         .await?;
//!     assert_eq!(count, 2);
//!
//!     // A watch is a stream, which begins with its own path.
//!     let events: Vec<_> = watch.take(3).collect().await;
//!     let paths = events.into_iter().map(|event| event.map(|event| event.path));
//!     let paths: Result<Vec<_>, Error> = paths.collect();
//!     assert_eq!(paths?, ["/jobs", "/jobs/first", "/jobs/second"]);
//!
//!     assert!(client.read("/none").await.unwrap_err().is_not_found());
//!     Ok::<_, Error>(())
//! })?;
//! # Ok::<_, Error>(())
//! ```

#[cfg(feature = "std")]
pub mod blocking;
mod pump;
mod reply;
#[cfg(test)]
mod tests;
mod verbs;
mod watch;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parapet_hypervisor::seam::{Events, Guest, Memory, Tasks};
use parapet_ring::{Own, TooSmall};
use parapet_xen_sys::io::xs_wire::{Operation, ServerFeatures};
use parapet_xen_sys::{DomId, Errno, Port};

use crate::mailbox::Mailbox;
use crate::transport::{Broken, RingTransport, Transport};
use crate::wire::{Message, Request, TooLong, error_name};
use crate::{Permission, TransactionId};
use pump::{Order, Pump};
use verbs::verbs;

pub use watch::{Watch, WatchEvent};

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// xenstored refused it.
    #[error("xenstore: {operation:?} {path}: {}", error_name(*.error))]
    Refused {
        /// What was asked.
        operation: Operation,
        /// Of which node, where it was about one.
        path: String,
        /// The answer.
        error: Errno,
    },
    /// The connection is gone.
    #[error("xenstore: {0}")]
    Broken(#[from] Broken),
    /// It does not fit into a message.
    #[error("xenstore: {0}")]
    TooLong(#[from] TooLong),
    /// xenstored answered what makes no sense as an answer to this.
    #[error("xenstore: the answer to {0:?} makes no sense")]
    Garbled(Operation),
    /// The answer did not come in the time that was set. What was asked may still be done.
    #[error("xenstore: no answer in time")]
    TimedOut,
}

/// How often a transaction is tried. Each time that it fails somebody else's was committed, so
/// there is nothing to wait for in between, and it is the others' turn no more often than ours:
/// this many failures in a row mean a store that never comes to rest.
pub const TRANSACTION_TRIES: u32 = 1000;

impl Error {
    /// The error that xenstored answered, if it did.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { error, .. } => Some(*error),
            _ => None,
        }
    }

    /// Whether the node is not there.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::ENOENT)
    }
}

struct Shared {
    orders: Arc<Mailbox<Order>>,
    handles: AtomicUsize,
    next: AtomicU32,
}

/// A handle to a connection. Clones share it; when the last is dropped the connection ends.
pub struct Client {
    shared: Arc<Shared>,
    tx: TransactionId,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        self.within(self.tx)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.shared.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.orders.close();
        }
    }
}

impl Client {
    /// A connection over `transport`: the handle, and the pump, which must run for anything to
    /// happen. The pump ends with the connection.
    pub fn new<T: Transport + 'static>(
        transport: T,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let orders = Mailbox::new();
        let pump = Pump::new(transport, orders.clone());
        let client = Client {
            shared: Arc::new(Shared {
                orders,
                handles: AtomicUsize::new(1),
                next: AtomicU32::new(1),
            }),
            tx: TransactionId::NONE,
        };
        (client, pump.run())
    }

    /// A connection over `transport`, whose pump is spawned.
    pub fn start(tasks: &impl Tasks, transport: impl Transport + 'static) -> Self {
        let (client, pump) = Client::new(transport);
        tasks.spawn(pump);
        client
    }

    /// A guest's connection: over its xenstore page and the event channel that goes with it.
    ///
    /// # Errors
    /// The memory is shorter than a page.
    pub fn over_ring<G: Guest>(
        guest: &G,
        page: <G as Memory>::Pages,
        channel: <G as Events>::Channel,
    ) -> Result<Self, TooSmall> {
        let transport = RingTransport::guest(Own(page), channel)?;
        Ok(Client::start(guest, transport))
    }

    /// [`Client::over_ring`] for a ring that somebody may have used before, and left in any state,
    /// as the kernel did that started another by kexec: asks xenstored for a fresh start, if it
    /// grants any.
    ///
    /// # Errors
    /// The page is shorter than it must be.
    pub fn over_used_ring<G: Guest>(
        guest: &G,
        page: <G as Memory>::Pages,
        channel: <G as Events>::Channel,
    ) -> Result<Self, TooSmall> {
        let transport = RingTransport::guest_anew(Own(page), channel)?;
        Ok(Client::start(guest, transport))
    }

    fn within(&self, tx: TransactionId) -> Self {
        self.shared.handles.fetch_add(1, Ordering::Relaxed);
        Client {
            shared: self.shared.clone(),
            tx,
        }
    }

    fn order(&self, order: Order) {
        self.shared.orders.put(order);
        // A pump that has ended takes nothing any more, and whoever waits is to know.
        if self.shared.orders.is_closed() {
            pump::refuse(&self.shared.orders);
        }
    }

    /// Sends a request without waiting for its answer, which goes to `reply`.
    fn send(
        &self,
        request: &Request<'_>,
        reply: Option<Arc<Mailbox<Message>>>,
    ) -> Result<(), Error> {
        let req_id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut bytes = Vec::new();
        request.encode(req_id, self.tx.0, &mut bytes)?;
        self.order(Order::Send {
            req_id,
            bytes,
            reply,
        });
        Ok(())
    }

    /// Asks, and gives the payload of the answer.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn call(&self, request: &Request<'_>) -> Result<Vec<u8>, Error> {
        let reply = Mailbox::new();
        self.send(request, Some(reply.clone()))?;
        let answer = poll_fn(|cx| reply.poll_take(cx)).await;
        reply::payload(request, answer.ok_or(Broken::Closed)?)
    }

    /// Watches a node and all below it. The stream begins with an event on `path` itself.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn watch(&self, path: &str) -> Result<Watch, Error> {
        self.begin_watch(path, None).await
    }

    /// Watches a node and all that is at most `depth` levels below it: with zero the node alone.
    ///
    /// # Errors
    /// Any [`Error`]; `EINVAL` from a xenstored that knows of no depth, as Xen's own before 4.22.
    pub async fn watch_depth(&self, path: &str, depth: u32) -> Result<Watch, Error> {
        self.begin_watch(path, Some(depth)).await
    }

    async fn begin_watch(&self, path: &str, depth: Option<u32>) -> Result<Watch, Error> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let watch = Watch::new(self.within(TransactionId::NONE), path, number.to_string());
        watch.begin(depth).await?;
        Ok(watch)
    }

    /// Runs `body` in a transaction, and again from its beginning when somebody else interfered,
    /// up to [`TRANSACTION_TRIES`] times. The client that it is given acts within the transaction.
    /// If it fails, so does the transaction, and nothing is changed.
    ///
    /// # Errors
    /// Those of `body`, and any other [`Error`] of beginning and ending; `EAGAIN` when the tries
    /// are used up.
    pub async fn transaction<R, F>(&self, mut body: impl FnMut(Client) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<R, Error>>,
    {
        let mut left = TRANSACTION_TRIES;
        loop {
            left -= 1;
            let id = self.call(&Request::TransactionStart).await?;
            let mut open = Open {
                tx: self.within(TransactionId(reply::number(&id)?)),
                ended: false,
            };
            let result = body(open.tx.clone()).await;
            let commit = result.is_ok();
            open.ended = true;
            let ended = open.tx.call(&Request::TransactionEnd { commit }).await;
            match (result, ended) {
                (Ok(_), Err(error)) if error.errno() == Some(Errno::EAGAIN) && left > 0 => {}
                (Ok(result), Ok(_)) => return Ok(result),
                (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            }
        }
    }
}

verbs! { Client: async (&) self (.await) }

/// A transaction, which is dropped at xenstored too should nobody wait for its end.
struct Open {
    tx: Client,
    ended: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            let drop = Request::TransactionEnd { commit: false };
            let sent = self.tx.send(&drop, None);
            debug_assert!(sent.is_ok(), "a short request fits");
        }
    }
}
