//! A device that a backend before us has left, which crashed.
//!
//! ```text
//!   found at 4 or 5, and its journal ──► opens the image, once the last input and output of the
//!                                        other is over; maps the same rings, binds the same ports;
//!                                        finds out what was in flight; does that, and goes on:
//!                                        the frontend has seen nothing
//!   found like that without one ───────► 5, so that a frontend that can connects again
//! ```
//!
//! Nothing is written into the xenstore by the former. What the frontend said of its rings is
//! taken from the journal: what it says now may be something else.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parapet_backend::Error;
use parapet_backend::device::{Changes, frontend_state};
use parapet_backend::kind::Recovered;
use parapet_backend::values::Values;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam;
use parapet_xen_sys::io::ring;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::xenbus::{Backend, Connected};

use super::connection::{Connection, set_rates};
use super::{Device, Disks, NoDisk, Opened};
use crate::image::{OpenError, Spec};
use crate::journal::{Journal, Keep, Unfit};
use crate::negotiation::{Answer, Assignment, Protocol};
use crate::queue::{ImageOf, QueueError};
use crate::request::{Layout, X86_32, X86_64};

/// How long an image may be in use by what is left of another backend: as long as a medium may
/// take for its last input and output.
const LAST_IO: Duration = Duration::from_secs(120);

/// How often to look whether it is over.
const LOOK: Duration = Duration::from_millis(10);

/// Whether and how the queues of a connection are kept in a journal.
#[derive(Clone, Copy)]
pub(super) enum Kept<'a> {
    /// They are not.
    No,
    /// In this one, which is new.
    Anew(&'a Journal),
    /// In this one, which another has left.
    On(&'a Journal),
}

impl Kept<'_> {
    /// How one of the queues is.
    pub(super) fn of(self, queue: usize) -> Keep {
        let log = |journal: &Journal| journal.log(queue);
        match self {
            Kept::No => Keep::No,
            Kept::Anew(journal) => log(journal).map_or(Keep::No, Keep::Anew),
            Kept::On(journal) => log(journal).map_or(Keep::No, Keep::On),
        }
    }
}

/// Slots of a ring of so many pages.
fn slots(protocol: Protocol, pages: usize) -> usize {
    let slot = match protocol {
        Protocol::X86_64 => size_of::<<X86_64 as Layout>::Slot>(),
        Protocol::X86_32 => size_of::<<X86_32 as Layout>::Slot>(),
    };
    ring::slots(pages * PAGE_SIZE, slot)
}

impl<P: seam::Backend> Disks<P> {
    /// Makes the journal of a new connection, whose frontend has said `keys`; none if none are kept,
    /// or would be of no use.
    pub(super) fn begin_journal(
        &self,
        device: &Device<P>,
        keys: Values,
        answer: &Answer,
        opened: &Opened<P>,
    ) -> Option<Journal> {
        let journals = self.journals.as_ref().filter(|_| opened.lasting)?;
        let slots = answer.queues.iter().map(|queue| {
            let slots = slots(answer.protocol, queue.ring.len());
            u32::try_from(slots).unwrap_or(u32::MAX)
        });
        let vbd = device.id();
        match journals.create(vbd, keys.0, slots.collect()) {
            Ok(journal) => Some(journal),
            Err(error) => {
                device.complaints().warn(device.place().now(), || {
                    format!(
                        "no journal in {} ({error}): a crash would not be invisible",
                        journals.folder().display()
                    )
                });
                None
            }
        }
    }

    /// Removes the journal of a connection that is over.
    pub(super) fn forget_journal(&self, device: &Device<P>) {
        if let Some(journals) = &self.journals
            && let Err(error) = journals.remove(device.id())
        {
            device.complaints().warn(device.place().now(), || {
                format!("a journal cannot be removed: {error}")
            });
        }
    }

    /// Takes up what the journal tells of; nothing if the frontend has left.
    pub(super) async fn take_up(
        &self,
        device: &Device<P>,
        left: &Backend<Connected>,
        journal: &Journal,
        orders: &Values,
        changes: &mut Changes,
    ) -> Result<Option<Recovered<Disks<P>>>, Error> {
        let Some(opened) = self.open_again(device, left, orders, changes).await? else {
            return Ok(None);
        };
        let queues = u32::try_from(journal.header().slots.len()).unwrap_or(0);
        let answer = Answer::parse(queues, |key| journal.get(key))?;
        for (queue, log) in answer.queues.iter().zip(&journal.header().slots) {
            let (ring, log) = (slots(answer.protocol, queue.ring.len()), *log);
            if ring != log as usize {
                let ring = u32::try_from(ring).unwrap_or(0);
                return Err(QueueError::from(Unfit::Slots { ring, log }).into());
            }
        }
        set_rates(device, left, &opened).await?;
        let kept = Kept::On(journal);
        let peer = left.other_domid();
        let queues = self
            .run_queues(device, peer, &answer, &opened, kept)
            .await?;
        let told = left.own().get_or("sectors", 0).await?;
        let name = Some(journal.header().name.clone());
        let connection = Connection::new(device, &opened, name, told);
        Ok(Some(Recovered {
            opened,
            queues,
            connection,
        }))
    }

    /// Opens the image, as soon as the last input and output of who had it before is over: until
    /// then its descriptors are, and with them its lock. None if the frontend leaves meanwhile.
    async fn open_again(
        &self,
        device: &Device<P>,
        left: &Backend<Connected>,
        orders: &Values,
        changes: &mut Changes,
    ) -> Result<Option<Opened<P>>, Error> {
        let assignment = Assignment::parse(|key| orders.get(key))?;
        let spec: Spec = assignment.params.parse().map_err(NoDisk::Spec)?;
        let last = device.place().now().after(LAST_IO);
        let mut said = false;
        loop {
            let mut opening = pin!(spec.clone().open_aside(assignment.access));
            let opened: Result<Arc<ImageOf<P>>, OpenError> = loop {
                if has_left(left).await? {
                    return Ok(None);
                }
                if let Some(opened) = changes.or(&mut opening).await? {
                    break opened;
                }
            };
            match opened {
                Ok(image) => return Ok(Some(self.opened(device, assignment, image))),
                Err(error @ OpenError::Busy { .. }) if device.place().now() < last => {
                    if !std::mem::replace(&mut said, true) {
                        let vbd = device.id();
                        log::info!("vbd {vbd}: waits for who had it before: {error}");
                    }
                    let mut pause = pin!(device.place().sleep(LOOK));
                    while changes.or(&mut pause).await?.is_none() {}
                }
                Err(error) => return Err(NoDisk::Image(error).into()),
            }
        }
    }
}

/// Whether there is no frontend to go on with.
async fn has_left(left: &Backend<Connected>) -> Result<bool, Error> {
    Ok(!matches!(
        frontend_state(left).await?,
        XenbusState::Initialised | XenbusState::Connected | XenbusState::Closing
    ))
}
