//! A vif: its place on the network, and the connections to its frontend.
//!
//! The life of one is that of every device, see [`parapet_backend::device`]; here is what makes it a
//! vif. It is plugged into its network as soon as the toolstack has made it, before it is announced:
//! a toolstack's script then finds its interface on the host.
//!
//! # A backend that died
//! Linux's frontend does not connect again to a backend that closes: it waits for its device to go.
//! So a backend that comes after another takes up the rings where they are, and the frontend sees
//! nothing but some lost packets. That needs no journal. Packets are answered in the order in which
//! they came, so all that was not answered lies in the transmit ring, from where it says that answers
//! end; those are answered as dropped, and sent again by whoever cares. Buffers to receive into are
//! taken up as they are.
//!
//! A frontend with a control ring is another matter: what it has set over it died with us, as did
//! the pages that stayed mapped, whose packets may be answered in any order. It has to connect again,
//! which the frontends that have control rings can.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parapet_backend::Error;
use parapet_backend::device::{Changes, frontend_state};
use parapet_backend::kind::{Kind, Recovered};
use parapet_backend::queues::Queues;
use parapet_backend::rate::Bucket;
use parapet_backend::report::DeviceId;
use parapet_backend::values::Values;
use parapet_hypervisor::seam::{self, Access, MapError};
use parapet_ring::Peer;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Errno, GrantRef, Port};
use parapet_xenstore::client::{self, Watch};
use parapet_xenstore::xenbus::{self, Backend, Connected, End, InitWait, Keys};

use crate::bell::Bell;
use crate::control::{Control, ControlError, ControlSetup};
use crate::endpoint::Endpoint;
use crate::multicast::Multicast;
use crate::negotiation::{self, Agreed, Answer, Assignment, MULTICAST, Offer, Ports, RATE};
use crate::port::{Network, Socket};
use crate::queue::{Channels, Patience, Queue, QueueError, QueueSetup};
use crate::report::{About, VifStats};
use crate::statics::Orders;
use crate::steering::Steering;

/// How long a queue may look for frames where the frontend runs on another processor: longer than
/// two wake-ups across processors of a virtual machine, or it would never find any there.
pub const POLL: Duration = Duration::from_micros(100);

/// The script of a vif whose interface is to be named, switched on and joined to its bridge by us.
pub const OUR_SCRIPT: &str = "vif-parapet";

/// How all vifs are served.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a queue may look for frames before it sleeps; it does for less if that is of no use.
    /// Worth its price only where the frontend runs on another processor.
    pub poll: Duration,
    /// How many queues a vif may have: at least one.
    pub queues: u32,
    /// How long a queue waits for a guest that posts no buffers.
    pub patience: Patience,
}

/// One queue, which sleeps when there is nothing to do.
impl Default for Options {
    fn default() -> Self {
        Options {
            poll: Duration::ZERO,
            queues: 1,
            patience: Patience::default(),
        }
    }
}

/// How the vifs of a domain are served, and the network that they are on.
pub struct Vifs<P: seam::Backend> {
    options: Options,
    network: Arc<dyn Network<P>>,
}

type Device<P> = parapet_backend::device::Device<Vifs<P>>;

/// A vif that has its place on the network.
pub struct Opened<P: seam::Backend> {
    socket: Box<dyn Socket<P>>,
    rate: Arc<Bucket>,
}

/// What a connection has beside its queues.
pub struct Connection {
    multicast: Arc<Multicast>,
    /// On whether the frontend hears only the groups that it asks for.
    watch: Watch,
    /// What the watch has ended with, if it has.
    outcome: Result<(), client::Error>,
}

/// What a backend before us has left beside what is in the rings and in the frontend's directory.
pub struct Left {
    /// How many queues the frontend was offered, which may be more than we do.
    queues: u32,
}

/// Why there is no vif to serve.
#[derive(Debug, thiserror::Error)]
enum NoVif {
    /// The network does not take it.
    #[error("the network does not take it: {0}")]
    Plug(std::io::Error),
    /// Its queues cannot be joined to the network.
    #[error("it cannot be joined to its network: {0}")]
    Join(std::io::Error),
    /// What was set over the control ring is lost.
    #[error("what the frontend had set over its control ring is lost")]
    Control,
}

impl From<NoVif> for Error {
    fn from(error: NoVif) -> Self {
        Error::of_kind(Errno::EIO, error)
    }
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        Error::of_kind(Errno::EIO, error)
    }
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        Error::of_kind(Errno::EIO, error)
    }
}

/// Whether the rings of a connection are at their beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rings {
    /// They are.
    New,
    /// Another backend has left them.
    Left,
}

impl<P: seam::Backend> Vifs<P> {
    /// Vifs that are served like this, on that network.
    pub fn new(options: Options, network: Arc<dyn Network<P>>) -> Self {
        Vifs { options, network }
    }

    /// Gives a vif its place on the network. `scripted` says whether a script does the rest.
    fn plug(
        &self,
        device: &Device<P>,
        orders: &Values,
        scripted: bool,
    ) -> Result<Opened<P>, Error> {
        let DeviceId { frontend, number } = device.id();
        let assignment = Assignment::parse(|key| orders.get(key))?;
        let vif = assignment.vif(frontend, number, !scripted);
        let socket = match scripted {
            true => self.network.plug_for_script(&vif),
            false => self.network.plug(&vif),
        };
        let socket = socket.map_err(NoVif::Plug)?;
        log::info!(
            "vif {}: {} has the address {}{}",
            device.id(),
            vif.name,
            vif.mac,
            match &vif.bridge {
                Some(bridge) => format!(", for {bridge}"),
                None => String::new(),
            },
        );
        device.record().note(|report| report.about.vif = Some(vif));
        Ok(Opened {
            socket,
            rate: Arc::default(),
        })
    }

    /// Reads the frontend's answer.
    async fn answer(&self, other: &Keys, most: u32) -> Result<Answer, Error> {
        // First how many queues there are, so that not every key of every queue is asked for.
        let chosen: Option<String> = other.find("multi-queue-num-queues").await?;
        let queues = Answer::queues(most, |_| chosen.clone())?;
        let keys: Vec<String> = Answer::keys(queues).collect();
        let keys = Values::read(other, keys.iter().map(String::as_str)).await?;
        Ok(Answer::parse(most, |key| keys.get(key))?)
    }

    /// Starts the queues of a connection, new or taken over.
    async fn join(
        &self,
        device: &Device<P>,
        end: &End,
        answer: &Answer,
        opened: &mut Opened<P>,
        rings: Rings,
    ) -> Result<(Queues, Connection), Error> {
        let (place, peer) = (device.place(), end.other_domid());
        let multicast = Arc::new(Multicast::default());
        let watch = end.client().watch(&end.other().path(MULTICAST)).await?;
        multicast.apply(hears_groups_only(end).await);
        set_rate(device, end, &opened.rate).await?;

        let bells: Vec<Arc<Bell>> = answer.queues.iter().map(|_| Arc::default()).collect();
        let steering = Arc::new(Steering::default());
        let endpoint = Endpoint::new(bells.iter().cloned(), Arc::clone(&steering));
        let endpoint = Arc::new(endpoint);
        let ports = opened.socket.connect(Arc::clone(&endpoint));
        let ports = ports.map_err(NoVif::Join)?;
        let orders = bells
            .iter()
            .cloned()
            .map(|bell| Arc::new(Orders::new(bell)));
        let orders: Vec<Arc<Orders<P>>> = orders.collect();

        let stats = &device.record().begun().stats;
        let mut queues = Vec::new();
        let of_each = answer.queues.iter().zip(ports).zip(stats.queues());
        let of_each = of_each.zip(bells.iter().zip(&orders));
        for (index, (((queue, port), stats), (bell, orders))) in of_each.enumerate() {
            let channels = match queue.ports {
                Ports::Joint(port) => Channels::Joint(bind(device, peer, port, rings).await?),
                Ports::Split { tx, rx } => Channels::Split {
                    tx: bind(device, peer, tx, rings).await?,
                    rx: bind(device, peer, rx, rings).await?,
                },
            };
            let setup = QueueSetup {
                place: place.clone(),
                peer,
                index,
                tx: map(place, peer, queue.tx)?,
                rx: map(place, peer, queue.rx)?,
                channels,
                receives: answer.receives,
                port,
                endpoint: Arc::clone(&endpoint),
                bell: Arc::clone(bell),
                orders: Arc::clone(orders),
                multicast: Arc::clone(&multicast),
                rate: Arc::clone(&opened.rate),
                poll: self.options.poll,
                patience: self.options.patience,
                stats: Arc::clone(stats),
                complaints: device.complaints().clone(),
            };
            let mut queue = Queue::new(setup)?;
            if rings == Rings::Left {
                queue.forgo()?;
            }
            queues.push(queue);
        }
        let mut control = None;
        if let Some(answer) = answer.control {
            control = Some(Control::new(ControlSetup {
                place: place.clone(),
                peer,
                ring: map(place, peer, answer.ring)?,
                channel: bind(device, peer, answer.port, rings).await?,
                orders,
                steering,
                complaints: device.complaints().clone(),
            })?);
        }
        // All is there: nothing fails from here on.
        let agreed = Agreed::from(answer);
        let note = |report: &mut crate::report::Report| report.about.connection = Some(agreed);
        device.record().note(note);
        device.note_connection(agreed);
        let mut running = Queues::start(
            place,
            queues
                .into_iter()
                .map(|queue| move |stopped| queue.run(stopped)),
        );
        running.extend(
            place,
            control.map(|control| move |stopped| control.run(stopped)),
        );
        let connection = Connection {
            multicast,
            watch,
            outcome: Ok(()),
        };
        Ok((running, connection))
    }
}

/// Whether the script is Parapet's own, which leaves everything to us.
fn is_our_script(orders: &Values) -> bool {
    let script = orders.get("script").unwrap_or_default();
    script == OUR_SCRIPT || script.ends_with(&format!("/{OUR_SCRIPT}"))
}

/// Maps the page of a ring.
fn map<P: seam::Backend>(
    place: &P,
    peer: DomId,
    page: GrantRef,
) -> Result<Peer<P::Mapping>, MapError> {
    let page = place.map(peer, &[page], Access::ReadWrite)?;
    // Asked for to be writable, and the place says that it is.
    Peer::new(page).map_err(|_| MapError::Host(0))
}

/// Binds a port of the frontend's.
async fn bind<P: seam::Backend>(
    device: &Device<P>,
    peer: DomId,
    port: Port,
    rings: Rings,
) -> Result<P::Channel, Error> {
    Ok(match rings {
        Rings::New => device.place().bind(peer, port)?,
        Rings::Left => device.bind_again(peer, port).await?,
    })
}

/// Whether the frontend hears only the multicast groups that it asks for; not if it makes no sense.
async fn hears_groups_only(end: &End) -> bool {
    let asked = end.other().find(MULTICAST).await;
    asked.ok().flatten().unwrap_or(false)
}

/// Sees how fast the operator lets the guest transmit. What makes no sense changes nothing.
async fn set_rate<P: seam::Backend>(
    device: &Device<P>,
    end: &End,
    bucket: &Bucket,
) -> Result<(), Error> {
    let value: Option<String> = end.own().find(RATE).await?;
    match negotiation::rate(value.as_deref()) {
        Ok(rate) => {
            bucket.set(rate);
            device.record().note(|report| report.about.rate = rate);
        }
        Err(error) => device.complain(&error.into()),
    }
    Ok(())
}

impl<P: seam::Backend> Kind for Vifs<P> {
    type Place = P;
    type About = About;
    type Left = Left;
    type Opened = Opened<P>;
    type Connection = Connection;

    const NAME: &'static str = "vif";
    const ORDERS: &'static [&'static str] = Assignment::KEYS;

    fn begin(&self, _: DeviceId, left: Option<&Left>) -> About {
        let most = left.map_or(0, |left| left.queues);
        About {
            vif: None,
            connection: None,
            rate: None,
            stats: VifStats::new(self.options.queues.max(most)),
        }
    }

    fn sum(&self, device: &Device<P>) -> impl fmt::Display + Send {
        device.record().begun().stats.clone()
    }

    async fn find_left(&self, _: DeviceId, own: &Keys) -> Result<Option<Left>, client::Error> {
        match own.find(negotiation::MOST_QUEUES).await {
            Ok(queues) => Ok(Some(Left {
                queues: queues.unwrap_or(1).clamp(1, MOST_LEFT),
            })),
            Err(xenbus::Error::Store(error)) => Err(error),
            // No backend of ours has left it.
            Err(_) => Ok(None),
        }
    }

    async fn open(&self, device: &Device<P>, orders: &Values) -> Result<Opened<P>, Error> {
        let scripted = device.is_scripted(orders) && !is_our_script(orders);
        self.plug(device, orders, scripted)
    }

    fn offer(&self, _: &Opened<P>) -> Vec<(&'static str, String)> {
        let queues = self.options.queues.max(1);
        Offer { queues }.keys()
    }

    async fn connect(
        &self,
        device: &Device<P>,
        waiting: &Backend<InitWait>,
        opened: &mut Opened<P>,
    ) -> Result<(Queues, Connection), Error> {
        let most = self.options.queues.max(1);
        let answer = self.answer(waiting.other(), most).await?;
        self.join(device, waiting, &answer, opened, Rings::New)
            .await
    }

    fn greeting(&self, _: &Connection) -> Vec<(&'static str, Option<String>)> {
        Vec::new()
    }

    async fn tend(
        &self,
        device: &Device<P>,
        end: &Backend<Connected>,
        opened: &mut Opened<P>,
        _: &mut Connection,
        own: bool,
    ) -> Result<(), Error> {
        match own {
            true => set_rate(device, end, &opened.rate).await,
            false => Ok(()),
        }
    }

    fn poll_aside(connection: &mut Connection, cx: &mut Context<'_>) -> Poll<()> {
        connection.watch.poll_event(cx).map(|event| {
            connection.outcome = event.map(drop);
        })
    }

    async fn aside(
        &self,
        _: &Device<P>,
        end: &Backend<Connected>,
        _: &mut Opened<P>,
        connection: &mut Connection,
    ) -> Result<(), Error> {
        std::mem::replace(&mut connection.outcome, Ok(()))?;
        // What makes no sense is none.
        let applies = end.other().find::<u32>(MULTICAST).await.ok().flatten();
        connection
            .multicast
            .apply(applies.is_some_and(|it| it != 0));
        Ok(())
    }

    async fn recover(
        &self,
        device: &Device<P>,
        end: &Backend<Connected>,
        left: Left,
        orders: &Values,
        _: &mut Changes,
    ) -> Result<Option<Recovered<Self>>, Error> {
        if !matches!(
            frontend_state(end).await?,
            XenbusState::Initialised | XenbusState::Connected | XenbusState::Closing
        ) {
            return Ok(None);
        }
        let answer = self.answer(end.other(), left.queues).await?;
        if answer.control.is_some() {
            return Err(NoVif::Control.into());
        }
        // It ran before us.
        let mut opened = self.plug(device, orders, false)?;
        let joined = self.join(device, end, &answer, &mut opened, Rings::Left);
        let (queues, connection) = joined.await?;
        Ok(Some(Recovered {
            opened,
            queues,
            connection,
        }))
    }
}

/// Queues that a backend before us may have let a frontend have, whatever it says.
const MOST_LEFT: u32 = 64;

impl<P: seam::Backend> fmt::Debug for Vifs<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vifs").field(&self.options).finish()
    }
}
