//! The handshake: finding the backend, telling it of the rings, and hearing that it has them.
//!
//! ```text
//!   device/vif/0                  us                          backend
//!     backend, backend-id ──────▶ open
//!     mac, mtu                    wait          ◀──────────── InitWait, what it can do, how many
//!                                                             queues it takes
//!     tx-ring-ref, rx-ring-ref ◀─ publish: Connected ───────▶ maps, binds
//!     event-channel-tx, -rx       wait          ◀──────────── Connected
//!     ctrl-ring-ref, feature-...  control: keep these pages mapped
//! ```
//!
//! A vif's frontend says Connected when it publishes, and not after its backend does as that of a
//! disk: Linux's backend waits for that.
//!
//! What comes after is in `life`.
//!
//! Source: the keys in `io/netif.h`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use parapet_hypervisor::seam::{Access, Guest};
use parapet_packet::Mac;
use parapet_xen_sys::Errno;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::{self, Connected, Frontend, Initialising, Keys};

use crate::config::{Config, Features};
use crate::control::{Control, Failed};
use crate::error::{QueueError, Violation};
use crate::receive::RxRing;
use crate::signal::Signal;
use crate::transmit::TxRing;

/// The longest packet without its Ethernet header where nobody says otherwise, in bytes.
const USUAL_MTU: u16 = 1500;

/// Why an interface could not be connected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The handshake failed: by the backend's fault, or by the store's.
    #[error(transparent)]
    Xenbus(#[from] xenbus::Error),
    /// Our own domain has not enough of something.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The backend would give us pages instead of filling ours, as none has done for ten years.
    #[error("the backend does not copy into pages of ours (feature-rx-copy)")]
    NoCopy,
    /// The toolstack has given the interface an Ethernet address that none can have.
    #[error("{0:?} is no Ethernet address of an interface")]
    Mac(String),
    /// The backend broke the protocol as soon as it had connected.
    #[error(transparent)]
    Violation(#[from] Violation),
}

impl ConnectError {
    /// What a frontend reports it as.
    fn errno(&self) -> Errno {
        match self {
            ConnectError::Queue(_) => Errno::ENOMEM,
            ConnectError::Violation(_) => Errno::EIO,
            _ => Errno::EINVAL,
        }
    }
}

/// Waits until whoever had the interface before has left it: it writes the same state as we do.
pub(crate) async fn wait_for_the_one_before(
    client: &Client,
    path: &str,
) -> Result<(), xenbus::Error> {
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

/// What the toolstack says of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) mac: Mac,
    pub(crate) mtu: u16,
}

impl Identity {
    async fn read(own: &Keys) -> Result<Self, ConnectError> {
        let mac: String = own.get("mac").await?;
        let mac = match mac.parse::<Mac>() {
            Ok(mac) if mac.is_station() => mac,
            _ => return Err(ConnectError::Mac(mac)),
        };
        Ok(Identity {
            mac,
            mtu: own.get_or("mtu", USUAL_MTU).await?,
        })
    }
}

/// What a backend offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    queues: u32,
    split_channels: bool,
    control_ring: bool,
    multicast_control: bool,
    features: Features,
}

impl Offer {
    async fn read(backend: &Keys) -> Result<Self, ConnectError> {
        if !backend.get_or("feature-rx-copy", false).await? {
            return Err(ConnectError::NoCopy);
        }
        Ok(Offer {
            queues: backend.get_or("multi-queue-max-queues", 1).await?,
            split_channels: backend
                .get_or("feature-split-event-channels", false)
                .await?,
            control_ring: backend.get_or("feature-ctrl-ring", false).await?,
            multicast_control: backend.get_or("feature-multicast-control", false).await?,
            features: Features::read(backend).await?,
        })
    }
}

/// The rings of a queue.
pub(crate) struct Rings<G: Guest> {
    pub(crate) transmit: TxRing<G>,
    pub(crate) receive: RxRing<G>,
}

impl<G: Guest> Rings<G> {
    fn new(
        guest: &G,
        front: &Frontend<Initialising>,
        offer: &Offer,
        config: &Config,
    ) -> Result<Self, QueueError> {
        let backend = front.other_domid();
        let channel = || guest.alloc_unbound(backend);
        let (transmit, receive) = match offer.split_channels && config.split_channels {
            true => (Signal::Own(channel()?), Signal::Own(channel()?)),
            false => Signal::joint(channel()?),
        };
        Ok(Rings {
            transmit: TxRing::new(guest, backend, transmit, offer.features)?,
            receive: RxRing::new(guest, backend, receive)?,
        })
    }
}

/// A connection that stands.
pub(crate) struct Session<G: Guest> {
    pub(crate) front: Frontend<Connected>,
    /// At least one.
    pub(crate) queues: Vec<Rings<G>>,
    pub(crate) control: Option<Control<G>>,
    pub(crate) identity: Identity,
}

impl<G: Guest> Session<G> {
    /// From the moment that the backend waits for us. The frontend is closed after an error.
    pub(crate) async fn establish(
        guest: &G,
        front: Frontend<Initialising>,
        config: &Config,
    ) -> Result<Self, ConnectError> {
        let prepared = prepare(guest, &front, config).await;
        let (identity, offer, queues, mut control) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err(give_up(front, error).await),
        };
        let mut front = front
            .connect_first(|keys| publish(keys, &queues, control.as_ref(), &offer, config))
            .await?;
        if let Err(error) = front.backend_connected().await {
            return Err(give_up(front, error.into()).await);
        }
        if let Some(control) = control.as_mut().filter(|_| config.static_grants) {
            let kept = unless_leaving(&mut front, keep_mapped(control, &queues)).await;
            let kept = match kept {
                Ok(Ok(kept)) => Ok(kept),
                Ok(Err(violation)) => Err(violation.into()),
                Err(error) => Err(error.into()),
            };
            match kept {
                Ok(pages) => log::debug!("{}: {pages} pages stay mapped", front.own().base()),
                Err(error) => return Err(give_up(front, error).await),
            }
        }
        for queue in &queues {
            // It has got the rings since they were filled.
            queue.transmit.notify();
            queue.receive.notify();
        }
        Ok(Session {
            front,
            queues,
            control,
            identity,
        })
    }
}

type Prepared<G> = (Identity, Offer, Vec<Rings<G>>, Option<Control<G>>);

async fn prepare<G: Guest>(
    guest: &G,
    front: &Frontend<Initialising>,
    config: &Config,
) -> Result<Prepared<G>, ConnectError> {
    let identity = Identity::read(front.own()).await?;
    let offer = Offer::read(front.other()).await?;
    let count = offer.queues.clamp(1, config.queues.max(1));
    let queues: Result<Vec<_>, _> = (0..count)
        .map(|_| Rings::new(guest, front, &offer, config))
        .collect();
    let control = match offer.control_ring {
        true => Some(Control::new(guest, front.other_domid())?),
        false => None,
    };
    Ok((identity, offer, queues?, control))
}

/// Has the backend keep as many pages mapped as it likes. How many these are.
async fn keep_mapped<G: Guest>(
    control: &mut Control<G>,
    queues: &[Rings<G>],
) -> Result<usize, Violation> {
    let mut kept = 0;
    for (number, queue) in (0..).zip(queues) {
        let most = control.statics(number).await;
        let mut room = match most {
            Ok(most) => most as usize,
            Err(Failed::Violation(violation)) => return Err(violation),
            Err(_) => 0,
        };
        let lists = [
            (queue.transmit.page_refs(), Access::ReadOnly),
            (queue.receive.page_refs(), Access::ReadWrite),
        ];
        for (refs, access) in lists {
            if refs.len() > room {
                continue;
            }
            match control.keep_mapped(number, refs, access).await {
                Ok(()) => {
                    room -= refs.len();
                    kept += refs.len();
                }
                Err(Failed::Violation(violation)) => return Err(violation),
                // They are mapped or copied as they come.
                Err(failed) => log::info!("the backend keeps no pages mapped: {failed:?}"),
            }
        }
    }
    Ok(kept)
}

/// What the backend has to know, and nothing that a driver before us has told it.
async fn publish<G: Guest>(
    keys: Keys,
    queues: &[Rings<G>],
    control: Option<&Control<G>>,
    offer: &Offer,
    config: &Config,
) -> Result<(), client::Error> {
    for name in keys.names().await? {
        if describes_rings(&name) {
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
    if let Some(control) = control
        && let Some(gref) = control.ring_ref()
    {
        keys.set("ctrl-ring-ref", gref).await?;
        keys.set("event-channel-ctrl", control.port()).await?;
    }
    keys.set("request-rx-copy", 1).await?;
    keys.set("feature-rx-notify", 1).await?;
    if config.multicast_control && offer.multicast_control {
        keys.set("request-multicast-control", 1).await?;
    }
    config.takes.write(&keys).await
}

/// Whether a key of a frontend says something of its rings.
fn describes_rings(name: &str) -> bool {
    let names = [
        "tx-ring-ref",
        "rx-ring-ref",
        "event-channel",
        "event-channel-tx",
        "event-channel-rx",
        "ctrl-ring-ref",
        "event-channel-ctrl",
        "multi-queue-num-queues",
        "request-multicast-control",
    ];
    names.contains(&name) || name.starts_with("queue-")
}

/// Writes a queue's own keys, in the folder `at` if there are several.
async fn describe_queue<G: Guest>(
    keys: &Keys,
    at: &str,
    queue: &Rings<G>,
) -> Result<(), client::Error> {
    let Rings { transmit, receive } = queue;
    let rings = [("tx", transmit.ring_ref()), ("rx", receive.ring_ref())];
    for (which, gref) in rings {
        if let Some(gref) = gref {
            keys.set(&format!("{at}{which}-ring-ref"), gref).await?;
        }
    }
    if transmit.port() == receive.port() {
        return keys
            .set(&format!("{at}event-channel"), transmit.port())
            .await;
    }
    let (tx, rx) = (transmit.port(), receive.port());
    keys.set(&format!("{at}event-channel-tx"), tx).await?;
    keys.set(&format!("{at}event-channel-rx"), rx).await
}

/// Does `work`, unless the backend leaves meanwhile.
pub(crate) async fn unless_leaving<F: Future>(
    front: &mut Frontend<Connected>,
    work: F,
) -> Result<F::Output, xenbus::Error> {
    let mut work = pin!(work);
    let mut leaves = pin!(async {
        loop {
            match front.changed().await {
                Ok(XenbusState::Closing | XenbusState::Closed) => {
                    break xenbus::Error::Leaving(XenbusState::Closing);
                }
                Ok(_) => {}
                Err(error) => break error,
            }
        }
    });
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => leaves.as_mut().poll(cx).map(Err),
    })
    .await
}

/// Leaves a device that could not be connected.
pub(crate) async fn give_up<State>(front: Frontend<State>, error: ConnectError) -> ConnectError {
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

    #[test]
    fn what_a_driver_before_us_said_of_its_rings_is_known_by_its_name() {
        for name in ["tx-ring-ref", "event-channel", "queue-3", "ctrl-ring-ref"] {
            assert!(describes_rings(name), "{name}");
        }
        for name in ["state", "backend", "mac", "mtu", "handle"] {
            assert!(!describes_rings(name), "{name}");
        }
    }
}
