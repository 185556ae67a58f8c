//! A vbd: the image behind it, and the connections to its frontend.
//!
//! The life of one is that of every device, see [`parapet_backend::device`]; here is what makes it a
//! disk. The keys are those of `xen/include/public/io/blkif.h`.

mod connection;
mod recovery;
mod upkeep;

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parapet_backend::Error;
use parapet_backend::kind::{Kind, Recovered};
use parapet_backend::queues::Queues;
use parapet_backend::report::DeviceId;
use parapet_backend::values::Values;
use parapet_hypervisor::seam;
use parapet_xen_sys::Errno;
use parapet_xenstore::client;
use parapet_xenstore::xenbus::{self, Backend, Connected, InitWait, Keys};

use crate::budget::Budget;
use crate::image::{Access, OpenError, Spec, SpecError};
use crate::journal::{Journal, Journals, NotThere};
use crate::negotiation::{Assignment, Offer};
use crate::queue::{ImageOf, QueueError};
use crate::report::{About, Disk};
use crate::terms::Terms;
use connection::Connection;

/// How long a queue may look for requests where the frontend runs on another processor: longer than
/// two wake-ups across processors of a virtual machine, or it would never find any there.
pub const POLL: Duration = Duration::from_micros(100);

/// How all disks are served.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a queue may look for requests before it sleeps; it does for less if that is of no
    /// use. Worth its price only where the frontend runs on another processor.
    pub poll: Duration,
    /// How many queues a disk may have: at least one.
    pub queues: u32,
    /// How many pages of guests' may stay mapped, over all disks: a part of the mappings that the
    /// host lets a process have, since each such page is one. Without a number there is no bound.
    pub persistent_pages: Option<usize>,
}

/// One queue, which sleeps when there is nothing to do, and as many pages as it likes.
impl Default for Options {
    fn default() -> Self {
        Options {
            poll: Duration::ZERO,
            queues: 1,
            persistent_pages: None,
        }
    }
}

/// The key in the backend's directory that has the name of the connection's journal: there the
/// frontend cannot write.
const JOURNAL_KEY: &str = "parapet-journal";

/// How the vbds of a domain are served.
pub struct Disks<P> {
    options: Options,
    budget: Budget,
    /// Where to write down what is in flight.
    journals: Option<Journals>,
    place: PhantomData<fn() -> P>,
}

type Device<P> = parapet_backend::device::Device<Disks<P>>;

/// Why there is no disk to serve.
#[derive(Debug, thiserror::Error)]
enum NoDisk {
    /// The toolstack named no image.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A drive without a medium.
    #[error(
        "the CD drive is empty, which is not supported: give it an image, or leave it out of the \
         guest's disks"
    )]
    EmptyDrive,
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] OpenError),
}

impl From<NoDisk> for Error {
    fn from(error: NoDisk) -> Self {
        let errno = match error {
            NoDisk::Spec(_) => Errno::EINVAL,
            NoDisk::EmptyDrive | NoDisk::Image(_) => Errno::EIO,
        };
        Error::of_kind(errno, error)
    }
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        Error::of_kind(Errno::EIO, error)
    }
}

/// A disk that can be served.
pub struct Opened<P: seam::Backend> {
    image: Arc<ImageOf<P>>,
    /// What was offered at first.
    offer: Offer,
    /// What is true for as long as the device lives, over all connections.
    terms: Arc<Terms>,
    /// Whether what is in it outlives us.
    lasting: bool,
}

impl<P: seam::Backend> Disks<P> {
    /// Disks that are served like this.
    pub fn new(options: Options) -> Self {
        Disks {
            budget: Budget::new(options.persistent_pages),
            options,
            journals: None,
            place: PhantomData,
        }
    }

    /// Keeps journals of what is in flight, so that a service that comes after this one crashed
    /// goes on where it was.
    pub fn keeping(mut self, journals: Journals) -> Self {
        self.journals = Some(journals);
        self
    }

    /// What to make of an image that is open.
    fn opened(
        &self,
        device: &Device<P>,
        assignment: Assignment,
        image: Arc<ImageOf<P>>,
    ) -> Opened<P> {
        let offer = Offer {
            sectors: image.sectors(),
            physical_sector_size: image.physical_sector_size(),
            read_only: image.read_only(),
            cdrom: assignment.cdrom,
            removable: assignment.removable,
            discard: image
                .discard()
                .filter(|_| assignment.discard && !image.read_only()),
            queues: self.options.queues.max(1),
        };
        log::info!(
            "vbd {}: {} is {}, {} sectors, {}",
            device.id(),
            assignment.name.as_deref().unwrap_or("the disk"),
            assignment.params,
            offer.sectors,
            match assignment.access {
                Access::ReadOnly => "read-only",
                Access::ReadWrite => "read-write",
            },
        );
        // A RAM disk goes with us.
        let lasting = !matches!(assignment.params.parse(), Ok(Spec::Memory { .. }));
        let disk = Disk {
            image: assignment.params,
            access: assignment.access,
            sectors: offer.sectors,
        };
        device
            .record()
            .note(|report| report.about.disk = Some(disk));
        let terms = Arc::new(Terms::new(offer.sectors));
        Opened {
            image,
            offer,
            terms,
            lasting,
        }
    }
}

impl<P: seam::Backend> Kind for Disks<P> {
    type Place = P;
    type About = About;
    type Left = Journal;
    type Opened = Opened<P>;
    type Connection = Connection<P>;

    const NAME: &'static str = "vbd";
    const ORDERS: &'static [&'static str] = Assignment::KEYS;

    fn begin(&self, _: DeviceId, left: Option<&Journal>) -> About {
        // Which one before us may have offered more of.
        let left = left.map_or(0, |journal| journal.header().slots.len());
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        About::new(self.options.queues.max(left))
    }

    fn sum(&self, device: &Device<P>) -> impl fmt::Display + Send {
        device.record().begun().stats.sum()
    }

    async fn find_left(
        &self,
        device: DeviceId,
        own: &Keys,
    ) -> Result<Option<Journal>, client::Error> {
        let Some(journals) = &self.journals else {
            return Ok(None);
        };
        let name: String = match own.find(JOURNAL_KEY).await {
            Ok(Some(name)) => name,
            Err(xenbus::Error::Store(error)) => return Err(error),
            // We write no other names than texts.
            Ok(None) | Err(_) => return Ok(None),
        };
        match journals.open(device, &name) {
            Ok(journal) => Ok(Some(journal)),
            Err(NotThere::None) => Ok(None),
            Err(error) => {
                log::warn!("vbd {device}: {error}");
                Ok(None)
            }
        }
    }

    fn forget_others(&self, devices: &BTreeSet<DeviceId>) {
        if let Some(journals) = &self.journals
            && let Err(error) = journals.retain(|vbd| devices.contains(&vbd))
        {
            log::warn!("old journals are not removed: {error}");
        }
    }

    async fn open(&self, device: &Device<P>, orders: &Values) -> Result<Opened<P>, Error> {
        let assignment = Assignment::parse(|key| orders.get(key))?;
        if assignment.cdrom && assignment.params.is_empty() {
            return Err(NoDisk::EmptyDrive.into());
        }
        let spec: Spec = assignment.params.parse().map_err(NoDisk::Spec)?;
        let image = spec.open_aside(assignment.access).await;
        Ok(self.opened(device, assignment, image.map_err(NoDisk::Image)?))
    }

    fn offer(&self, opened: &Opened<P>) -> Vec<(&'static str, String)> {
        // It may have another size by now.
        let sectors = opened.image.sectors();
        Offer {
            sectors,
            ..opened.offer
        }
        .keys()
    }

    async fn connect(
        &self,
        device: &Device<P>,
        waiting: &Backend<InitWait>,
        opened: &mut Opened<P>,
    ) -> Result<(Queues, Connection<P>), Error> {
        self.begin_connection(device, waiting, opened).await
    }

    fn greeting(&self, connection: &Connection<P>) -> Vec<(&'static str, Option<String>)> {
        connection.greeting()
    }

    async fn tend(
        &self,
        device: &Device<P>,
        end: &Backend<Connected>,
        opened: &mut Opened<P>,
        connection: &mut Connection<P>,
        own: bool,
    ) -> Result<(), Error> {
        connection.tend(device, end, opened, own).await
    }

    fn poll_aside(connection: &mut Connection<P>, cx: &mut Context<'_>) -> Poll<()> {
        connection.poll_upkeep(cx)
    }

    async fn aside(
        &self,
        device: &Device<P>,
        end: &Backend<Connected>,
        opened: &mut Opened<P>,
        connection: &mut Connection<P>,
    ) -> Result<(), Error> {
        connection.deal_with_upkeep(device, end, opened).await
    }

    async fn end(&self, connection: Connection<P>) {
        connection.end().await;
    }

    async fn recover(
        &self,
        device: &Device<P>,
        end: &Backend<Connected>,
        left: Journal,
        orders: &Values,
        changes: &mut parapet_backend::device::Changes,
    ) -> Result<Option<Recovered<Self>>, Error> {
        self.take_up(device, end, &left, orders, changes).await
    }

    fn forget(&self, device: &Device<P>) {
        self.forget_journal(device);
    }
}

impl<P> fmt::Debug for Disks<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disks").field(&self.options).finish()
    }
}
