//! A connected disk: its queues, how large it is, and how fast it may be used.

use std::sync::Arc;
use std::task::{Context, Poll};

use parapet_backend::Error;
use parapet_backend::queues::Queues;
use parapet_backend::values::Values;
use parapet_hypervisor::seam::{self, Access, MapError};
use parapet_ring::Peer;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::xenbus::{Backend, Connected, End, InitWait, Keys};

use super::recovery::Kept;
use super::upkeep::{Done, Upkeep};
use super::{Device, Disks, JOURNAL_KEY, Opened};
use crate::budget::Share;
use crate::negotiation::{Answer, Protocol, QueueAnswer, Rates, resize_to};
use crate::queue::{Queue, QueueSetup};
use crate::report::Connection as Agreed;
use crate::request::{Layout, X86_32, X86_64};

/// What a connection has beside its queues.
pub struct Connection<P: seam::Backend> {
    /// The name of its journal, if it has one.
    journal: Option<String>,
    /// The size that the frontend was told.
    told: u64,
    upkeep: Upkeep<P>,
    /// What was done aside, until it is dealt with.
    done: Option<Done>,
    /// Whether the image may have another size than it had.
    looked: bool,
}

impl<P: seam::Backend> Connection<P> {
    /// A connection whose frontend was told a size.
    pub(super) fn new(
        device: &Device<P>,
        opened: &Opened<P>,
        journal: Option<String>,
        told: u64,
    ) -> Self {
        Connection {
            journal,
            told,
            upkeep: Upkeep::new(device.place().clone(), Arc::clone(&opened.image)),
            done: None,
            // While nobody was there it may have changed.
            looked: true,
        }
    }

    /// What to write when it begins. The image may have another size by then than was offered.
    pub(super) fn greeting(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("sectors", Some(self.told.to_string())),
            // None: that of an earlier connection, whose journal may still be somewhere.
            (JOURNAL_KEY, self.journal.clone()),
        ]
    }

    pub(super) async fn tend(
        &mut self,
        device: &Device<P>,
        end: &Backend<Connected>,
        opened: &Opened<P>,
        own: bool,
    ) -> Result<(), Error> {
        let sectors = opened.image.sectors();
        if std::mem::take(&mut self.looked) && sectors != self.told {
            opened.terms.set_sectors(self.upkeep.at_most(sectors));
            tell_size(device, sectors).await?;
            self.told = sectors;
        }
        if own {
            set_rates(device, end, opened).await?;
            if let Some(sectors) = wanted_size(device, end).await? {
                // Before it is smaller: what is written behind its end makes a file larger.
                let terms = &opened.terms;
                terms.set_sectors(sectors.min(terms.sectors()));
                self.upkeep.resize(sectors);
            }
        }
        Ok(())
    }

    pub(super) fn poll_upkeep(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.upkeep.poll(cx).map(|done| self.done = Some(done))
    }

    pub(super) async fn deal_with_upkeep(
        &mut self,
        device: &Device<P>,
        end: &Backend<Connected>,
        opened: &Opened<P>,
    ) -> Result<(), Error> {
        self.looked = true;
        if let Some(Done::Resized(wish, outcome)) = self.done.take() {
            let sectors = opened.image.sectors();
            opened.terms.set_sectors(self.upkeep.at_most(sectors));
            let outcome = outcome.as_ref().map_err(|e| e.to_string());
            answer_resize(device, end, Some(wish), outcome).await?;
        }
        Ok(())
    }

    /// Waits for what is being done, so that nobody has the image.
    pub(super) async fn end(self) {
        self.upkeep.stop().await;
    }
}

impl<P: seam::Backend> Disks<P> {
    /// Reads the frontend's answer, takes what it names, and starts the queues on it.
    pub(super) async fn begin_connection(
        &self,
        device: &Device<P>,
        waiting: &Backend<InitWait>,
        opened: &Opened<P>,
    ) -> Result<(Queues, Connection<P>), Error> {
        let offered = opened.offer.queues;
        let other = waiting.other();
        // First how many queues there are, so that not every key of every queue is asked for.
        let chosen: Option<String> = other.find("multi-queue-num-queues").await?;
        let queues = Answer::queues(offered, |_| chosen.clone())?;
        let keys: Vec<String> = Answer::keys(queues).collect();
        let keys = Values::read(other, keys.iter().map(String::as_str)).await?;
        let answer = Answer::parse(offered, |key| keys.get(key))?;
        set_rates(device, waiting, opened).await?;
        opened.terms.set_sectors(opened.image.sectors());
        let journal = self.begin_journal(device, keys, &answer, opened);
        let kept = match &journal {
            Some(journal) => Kept::Anew(journal),
            None => Kept::No,
        };
        let peer = waiting.other_domid();
        let queues = self.run_queues(device, peer, &answer, opened, kept).await?;
        let journal = journal.map(|journal| journal.header().name.clone());
        let told = opened.terms.sectors();
        Ok((queues, Connection::new(device, opened, journal, told)))
    }

    /// Starts the queues of a connection, new or taken over.
    pub(super) async fn run_queues(
        &self,
        device: &Device<P>,
        peer: DomId,
        answer: &Answer,
        opened: &Opened<P>,
        kept: Kept<'_>,
    ) -> Result<Queues, Error> {
        let queues = match answer.protocol {
            Protocol::X86_64 => {
                let started = self.start::<X86_64>(device, peer, answer, opened, kept);
                started.await?
            }
            Protocol::X86_32 => {
                let started = self.start::<X86_32>(device, peer, answer, opened, kept);
                started.await?
            }
        };
        let ring_pages = answer.queues.first().map_or(0, |queue| queue.ring.len());
        let agreed = Agreed {
            protocol: answer.protocol,
            queues: answer.queues.len(),
            ring_pages,
            persistent: answer.persistent,
        };
        device
            .record()
            .note(|report| report.about.connection = Some(agreed));
        device.note_connection(agreed);
        Ok(queues)
    }

    /// Makes all queues, and if that goes well starts them, each in a task of its own.
    async fn start<L: Layout>(
        &self,
        device: &Device<P>,
        peer: DomId,
        answer: &Answer,
        opened: &Opened<P>,
        kept: Kept<'_>,
    ) -> Result<Queues, Error> {
        let stats = &device.record().begun().stats;
        let mut queues = Vec::new();
        let of_each = answer.queues.iter().zip(stats.queues());
        for (at, (queue, stats)) in of_each.enumerate() {
            let QueueAnswer { ring, port } = queue;
            let ring = device.place().map(peer, ring, Access::ReadWrite)?;
            let Ok(ring) = Peer::new(ring) else {
                // Asked for to be writable, and the place says that it is.
                return Err(MapError::Host(0).into());
            };
            let channel = match kept {
                Kept::On(_) => device.bind_again(peer, *port).await?,
                Kept::No | Kept::Anew(_) => device.place().bind(peer, *port)?,
            };
            let share = answer.persistent.then(|| self.budget.share());
            let setup = QueueSetup {
                place: device.place().clone(),
                peer,
                ring,
                channel,
                image: Arc::clone(&opened.image),
                terms: Arc::clone(&opened.terms),
                discard: opened.offer.discard,
                persistent: share.as_ref().map_or(0, Share::pages),
                poll: self.options.poll,
                stats: Arc::clone(stats),
                complaints: device.complaints().clone(),
            };
            queues.push((Queue::<P, L>::keeping(setup, kept.of(at))?, share));
        }
        let works = queues.into_iter().map(|(queue, share)| {
            move |stopped| async move {
                let outcome = queue.run(stopped).await;
                // Its share of mapped pages is another's from now on.
                drop(share);
                outcome
            }
        });
        Ok(Queues::start(device.place(), works))
    }
}

/// Sees how fast the operator lets the disk be used. What makes no sense changes nothing.
pub(super) async fn set_rates<P: seam::Backend>(
    device: &Device<P>,
    end: &End,
    opened: &Opened<P>,
) -> Result<(), Error> {
    let keys = Values::read(end.own(), Rates::KEYS.iter().copied()).await?;
    match Rates::parse(|key| keys.get(key)) {
        Ok(rates) => {
            opened.terms.set_rates(&rates);
            device.record().note(|report| report.about.rates = rates);
        }
        Err(error) => device.complain(&error.into()),
    }
    Ok(())
}

/// How many sectors the operator wants the disk to have, if it is to have others.
async fn wanted_size<P: seam::Backend>(
    device: &Device<P>,
    end: &End,
) -> Result<Option<u64>, Error> {
    let Some(value) = end.own().find::<String>("resize-to").await? else {
        return Ok(None);
    };
    match resize_to(value) {
        Ok(sectors) => Ok(Some(sectors)),
        Err(error) => {
            answer_resize(device, end, None, Err(error.to_string())).await?;
            Ok(None)
        }
    }
}

/// Takes the operator's wish for another size away, if it is still that of so many sectors (or
/// one that makes no sense), and leaves what was wrong with it, if something was.
async fn answer_resize<P: seam::Backend>(
    device: &Device<P>,
    end: &End,
    wish: Option<u64>,
    outcome: Result<&(), String>,
) -> Result<(), Error> {
    let (own, outcome) = (end.own(), &outcome);
    let answered = device.store().transaction(|tx| async move {
        let own = own.within(&tx);
        // Another may have come meanwhile, and will be seen to.
        let now = tx.read(&own.path("resize-to")).await;
        let now = String::from_utf8_lossy(now.as_deref().unwrap_or_default()).into_owned();
        if resize_to(now).ok() == wish {
            own.remove("resize-to").await?;
        }
        match outcome {
            Ok(()) => own.remove("resize-error").await,
            Err(error) => own.set("resize-error", error).await,
        }
    });
    device.turns().take(answered).await?;
    if let Err(error) = outcome {
        let vbd = device.id();
        log::warn!("vbd {vbd}: it cannot be resized: {error}");
    }
    Ok(())
}

/// Tells a connected frontend of the disk's size, as Linux does: the key, and our state once
/// more, for which frontends have a watch.
async fn tell_size<P: seam::Backend>(device: &Device<P>, sectors: u64) -> Result<(), Error> {
    let path = device.path();
    let told = device.store().transaction(|tx| async move {
        let own = Keys::new(tx.clone(), path);
        own.set("sectors", sectors).await?;
        // Not if the toolstack has written another meanwhile.
        match tx.read(&own.path("state")).await?.as_slice() {
            b"4" => own.set("state", u32::from(XenbusState::Connected)).await,
            _ => Ok(()),
        }
    });
    device.turns().take(told).await?;
    device.record().note(|report| {
        if let Some(disk) = &mut report.about.disk {
            disk.sectors = sectors;
        }
    });
    let vbd = device.id();
    log::info!("vbd {vbd}: it has {sectors} sectors from now on");
    Ok(())
}
