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

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{self, EventError};
use parapet_xen_sys::io::ring;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xen_sys::{DomId, Port};
use parapet_xenstore::xenbus::{Backend, Closing, Connected};

use super::connection::{Changes, Running};
use super::{Device, DeviceError, Found, Opened, frontend_state};
use crate::image::{OpenError, Spec};
use crate::journal::{Journal, Keep, Unfit};
use crate::negotiation::{Answer, Assignment, Protocol};
use crate::queue::{ImageOf, QueueError};
use crate::report::Stage;
use crate::request::{Layout, X86_32, X86_64};
use parapet_backend::limit::Pace;

/// How long an image may be in use by what is left of another backend: as long as a medium may
/// take for its last input and output.
const LAST_IO: Duration = Duration::from_secs(120);

/// How long a port may be bound by what is left of another backend.
const LAST_PORT: Duration = Duration::from_secs(20);

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

impl<'a> Kept<'a> {
    pub(super) fn journal(self) -> Option<&'a Journal> {
        match self {
            Kept::No => None,
            Kept::Anew(journal) | Kept::On(journal) => Some(journal),
        }
    }

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

impl<P: seam::Backend> Device<P> {
    /// Makes the journal of a new connection, whose frontend has said `keys`; none if none are kept,
    /// or would be of no use.
    pub(super) fn begin_journal(
        &self,
        keys: Found,
        answer: &Answer,
        opened: &Opened<P>,
    ) -> Option<Journal> {
        let journals = self.journals.as_ref().filter(|_| opened.lasting)?;
        let slots = answer.queues.iter().map(|queue| {
            let slots = slots(answer.protocol, queue.ring.len());
            u32::try_from(slots).unwrap_or(u32::MAX)
        });
        let vbd = self.record.vbd();
        match journals.create(vbd, keys.0, slots.collect()) {
            Ok(journal) => Some(journal),
            Err(error) => {
                self.complaints.warn(self.place.now(), || {
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
    pub(super) fn forget_journal(&self) {
        if let Some(journals) = &self.journals
            && let Err(error) = journals.remove(self.record.vbd())
        {
            self.complaints.warn(self.place.now(), || {
                format!("a journal cannot be removed: {error}")
            });
        }
    }

    /// Goes on with a device that another has left, or closes it so that its frontend begins anew.
    pub(super) async fn take_over(&self, journal: Option<Journal>) -> Result<(), DeviceError> {
        let left = Backend::take_up(&self.store, &self.path).await?;
        let mut changes = Changes::of(&left).await?;
        let orders = Found::orders(left.own()).await?;
        let closing = self.go_on(left, journal, &orders, &mut changes).await?;
        self.record.stage(Stage::Closed);
        if !self.frontend_leaves(&closing, &mut changes).await? {
            self.closed(closing, &orders).await?;
            return Ok(());
        }
        let mut pace = Pace::default();
        let reopened = self.reopen(closing, &orders, &mut pace, &mut changes);
        match reopened.await? {
            Some(backend) => {
                // They are watched anew.
                drop(changes);
                self.live(backend).await
            }
            None => Ok(()),
        }
    }

    /// Serves a connection that another has left until it ends, which may be at once.
    async fn go_on(
        &self,
        left: Backend<Connected>,
        journal: Option<Journal>,
        orders: &Found,
        changes: &mut Changes,
    ) -> Result<Backend<Closing>, DeviceError> {
        if let Some(journal) = journal {
            match self.recover(&left, &journal, orders, changes).await {
                Ok(Some((opened, mut running))) => {
                    let mut told = left.own().get_or("sectors", 0).await?;
                    let closing = self
                        .see_to_its_end(left, &opened, &mut running, &mut told, changes)
                        .await;
                    self.end(running, &closing).await;
                    return closing;
                }
                Ok(None) => {}
                Err(error) => self.report(&left, &error).await?,
            }
        }
        self.forget_journal();
        Ok(self.turns.take(left.close()).await?)
    }

    /// Takes up what the journal tells of; nothing if the frontend has left.
    async fn recover(
        &self,
        left: &Backend<Connected>,
        journal: &Journal,
        orders: &Found,
        changes: &mut Changes,
    ) -> Result<Option<(Opened<P>, Running)>, DeviceError> {
        let Some(opened) = self.open_again(left, orders, changes).await? else {
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
        self.set_rates(left, &opened).await?;
        let kept = Kept::On(journal);
        let running = self.run_queues(left.other_domid(), &answer, &opened, kept);
        let running = running.await?;
        let vbd = self.record.vbd();
        log::info!("vbd {vbd}: goes on where a backend before this one was");
        Ok(Some((opened, running)))
    }

    /// Opens the image, as soon as the last input and output of who had it before is over: until
    /// then its descriptors are, and with them its lock. None if the frontend leaves meanwhile.
    async fn open_again(
        &self,
        left: &Backend<Connected>,
        orders: &Found,
        changes: &mut Changes,
    ) -> Result<Option<Opened<P>>, DeviceError> {
        let assignment = Assignment::parse(|key| orders.get(key))?;
        let spec: Spec = assignment.params.parse()?;
        let last = self.place.now().after(LAST_IO);
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
                Ok(image) => return Ok(Some(self.opened(assignment, image))),
                Err(error @ OpenError::Busy { .. }) if self.place.now() < last => {
                    if !std::mem::replace(&mut said, true) {
                        let vbd = self.record.vbd();
                        log::info!("vbd {vbd}: waits for who had it before: {error}");
                    }
                    let mut pause = pin!(self.place.sleep(LOOK));
                    while changes.or(&mut pause).await?.is_none() {}
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Binds a port that another had bound, and may have until it is quite gone.
    pub(super) async fn bind_again(
        &self,
        peer: DomId,
        port: Port,
    ) -> Result<P::Channel, DeviceError> {
        let last = self.place.now().after(LAST_PORT);
        loop {
            match self.place.bind(peer, port) {
                Err(EventError::NoSuchPort { .. }) if self.place.now() < last => {
                    self.place.sleep(LOOK).await;
                }
                bound => return Ok(bound?),
            }
        }
    }
}

/// Whether there is no frontend to go on with.
async fn has_left(left: &Backend<Connected>) -> Result<bool, DeviceError> {
    Ok(!matches!(
        frontend_state(left).await?,
        XenbusState::Initialised | XenbusState::Connected | XenbusState::Closing
    ))
}
