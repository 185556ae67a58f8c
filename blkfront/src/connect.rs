//! The handshake: finding the backend, telling it of the rings, and hearing of the disk.
//!
//! ```text
//!   device/vbd/51712              us                          backend
//!     backend, backend-id ──────▶ open
//!                                 wait          ◀──────────── InitWait, how many queues and
//!                                                             pages it takes
//!     ring-ref, event-channel ◀── publish: Initialised ─────▶ maps, binds
//!     protocol, feature-...       wait          ◀──────────── Connected, sectors, info, ...
//!                                 Connected
//! ```
//!
//! What comes after is in `life`.
//!
//! Source: the state diagram and the keys in `io/blkif.h`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::Errno;
use parapet_xen_sys::io::protocols;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::{self, Connected, Frontend, Initialised, Initialising, Keys};

use crate::config::Config;
use crate::disk::Disk;
use crate::info::Info;
use crate::life::Life;
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
    /// How it is to be connected says a [`Config`]; this is its default.
    ///
    /// # Errors
    /// [`ConnectError`]. The frontend is closed then, with the reason under `error` in the
    /// domain's directory.
    pub async fn connect(guest: &G, client: &Client, path: &str) -> Result<Self, ConnectError> {
        Disk::connect_with(guest, client, path, Config::default()).await
    }

    pub(crate) async fn connect_with(
        guest: &G,
        client: &Client,
        path: &str,
        config: Config,
    ) -> Result<Self, ConnectError> {
        wait_for_the_one_before(client, path).await?;
        let mut front = Frontend::open(client, path).await?;
        if let Err(error) = front.backend_waits().await {
            return Err(give_up(front, error.into()).await);
        }
        let Session {
            front,
            queues,
            info,
        } = Session::establish(guest, front, &config).await?;
        let (disk, servers) = Disk::assemble(guest, queues, info);
        Life::new(guest, client, path, config, &disk).begin(front, servers);
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

/// How many queues and pages a backend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    queues: Option<u32>,
    /// `max-ring-page-order`.
    ring_order: Option<u32>,
    /// `max-ring-pages`, which says the same and is spelt by other systems.
    ring_pages: Option<u32>,
}

/// The layout of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    queues: u32,
    order: u32,
}

impl Offer {
    async fn read(backend: &Keys) -> Result<Self, xenbus::Error> {
        Ok(Offer {
            queues: backend.find("multi-queue-max-queues").await?,
            ring_order: backend.find("max-ring-page-order").await?,
            ring_pages: backend.find("max-ring-pages").await?,
        })
    }

    /// As much of what we want as there is of it. One queue and one page there always are.
    fn shape(&self, config: &Config) -> Shape {
        let pages = self.ring_pages.and_then(u32::checked_ilog2);
        Shape {
            queues: self.queues.unwrap_or(1).clamp(1, config.queues.max(1)),
            order: self
                .ring_order
                .or(pages)
                .unwrap_or(0)
                .min(config.ring_order),
        }
    }
}

/// A connection that stands.
pub(crate) struct Session<G: Guest> {
    pub(crate) front: Frontend<Connected>,
    /// At least one.
    pub(crate) queues: Vec<Queue<G>>,
    pub(crate) info: Info,
}

impl<G: Guest> Session<G> {
    /// From the moment that the backend waits for us. The frontend is closed after an error.
    pub(crate) async fn establish(
        guest: &G,
        front: Frontend<Initialising>,
        config: &Config,
    ) -> Result<Self, ConnectError> {
        let offer = match Offer::read(front.other()).await {
            Ok(offer) => offer,
            Err(error) => return Err(give_up(front, error.into()).await),
        };
        let Shape { queues, order } = offer.shape(config);
        let queue = |_| Queue::new(guest, front.other_domid(), 1 << order);
        let mut queues: Vec<_> = match (0..queues).map(queue).collect() {
            Ok(queues) => queues,
            Err(error) => return Err(give_up(front, QueueError::into(error)).await),
        };
        let mut front = front
            .publish(|keys| publish(keys, &queues, offer, order))
            .await?;
        let info = match describe(&mut front).await {
            Ok(info) => info,
            Err(error) => return Err(give_up(front, error.into()).await),
        };
        let segments = (info.indirect_segments as usize).min(config.indirect_segments);
        for queue in &mut queues {
            if let Err(error) = queue.allow_segments(guest, segments) {
                log::warn!("{}: requests stay short: {error}", front.own().base());
            }
        }
        let front = front.connect().await?;
        Ok(Session {
            front,
            queues,
            info,
        })
    }
}

/// What the backend has to know of the queues, and nothing that a driver before us has told it.
async fn publish<G: Guest>(
    keys: Keys,
    queues: &[Queue<G>],
    offer: Offer,
    order: u32,
) -> Result<(), client::Error> {
    for name in keys.names().await? {
        if describes_queues(&name) {
            keys.remove(&name).await?;
        }
    }
    match queues {
        [only] => describe_queue(&keys, "", only).await?,
        queues => {
            keys.set("multi-queue-num-queues", queues.len()).await?;
            for (at, queue) in queues.iter().enumerate() {
                describe_queue(&keys, &format!("queue-{at}/"), queue).await?;
            }
        }
    }
    if offer.ring_order.is_some() {
        keys.set("ring-page-order", order).await?;
    }
    if offer.ring_pages.is_some() {
        keys.set("num-ring-pages", 1u32 << order).await?;
    }
    keys.set("protocol", protocols::X86_64).await?;
    keys.set("feature-persistent", 1).await
}

/// Whether a key of a frontend says something of its queues.
fn describes_queues(name: &str) -> bool {
    let prefixes = ["ring-ref", "queue-"];
    let names = [
        "event-channel",
        "ring-page-order",
        "num-ring-pages",
        "multi-queue-num-queues",
    ];
    names.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Writes a queue's own keys, in the folder `at` if there are several.
async fn describe_queue<G: Guest>(
    keys: &Keys,
    at: &str,
    queue: &Queue<G>,
) -> Result<(), client::Error> {
    match queue.ring_refs() {
        [only] => keys.set(&format!("{at}ring-ref"), only).await?,
        pages => {
            for (page, gref) in pages.iter().enumerate() {
                let key: String = format!("{at}ring-ref{page}");
                keys.set(&key, gref).await?;
            }
        }
    }
    keys.set(&format!("{at}event-channel"), queue.port()).await
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

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(queues: u32, ring_order: Option<u32>, ring_pages: Option<u32>) -> Offer {
        Offer {
            queues: Some(queues),
            ring_order,
            ring_pages,
        }
    }

    #[test]
    fn there_is_never_more_than_offered_nor_than_wanted_and_at_least_one() {
        let config = Config::new().queues(4).ring_order(3);
        let table = [
            (offer(0, None, None), (1, 0)),
            (offer(2, Some(1), None), (2, 1)),
            (offer(u32::MAX, Some(u32::MAX), None), (4, 3)),
            (offer(4, None, Some(0)), (4, 0)),
            (offer(4, None, Some(1)), (4, 0)),
            (offer(4, None, Some(7)), (4, 2)),
            (offer(4, None, Some(u32::MAX)), (4, 3)),
            (offer(4, Some(0), Some(8)), (4, 0)),
        ];
        for (offer, (queues, order)) in table {
            assert_eq!(offer.shape(&config), Shape { queues, order }, "{offer:?}");
        }
        let least = Config::new().queues(0).ring_order(0);
        let shape = offer(4, Some(4), None).shape(&least);
        assert_eq!(
            shape,
            Shape {
                queues: 1,
                order: 0
            }
        );
    }

    #[test]
    fn what_a_driver_before_us_said_of_its_queues_is_known_by_its_name() {
        for name in ["ring-ref", "ring-ref7", "queue-3", "num-ring-pages"] {
            assert!(describes_queues(name), "{name}");
        }
        for name in ["state", "backend", "protocol", "virtual-device"] {
            assert!(!describes_queues(name), "{name}");
        }
    }
}
