//! What is known of every vbd, live or ended, for others to look at.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use parapet_xen_sys::DomId;

use crate::image::Access;
use crate::negotiation::{Protocol, Rates};
use crate::stats::DiskStats;

/// A vbd: whose it is, and the number that the toolstack gave it (202 << 8 for `xvda`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vbd {
    /// The frontend's domain.
    pub frontend: DomId,
    /// Its number there.
    pub number: u32,
}

impl fmt::Display for Vbd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frontend, self.number)
    }
}

/// How far a vbd is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its image is being opened.
    Opening,
    /// It waits for its frontend, or for the toolstack's script.
    Waiting,
    /// It serves its frontend.
    Connected,
    /// It serves its frontend no more, and is still there.
    Closed,
    /// It is gone.
    Ended,
}

/// What a disk is kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image, as the toolstack named it.
    pub image: String,
    /// What may be done with it.
    pub access: Access,
    /// Its size in units of 512 bytes.
    pub sectors: u64,
}

/// What a frontend and its backend agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// How slots are laid out.
    pub protocol: Protocol,
    /// How many queues there are.
    pub queues: usize,
    /// Pages in the ring of each.
    pub ring_pages: usize,
    /// Whether pages stay mapped between requests.
    pub persistent: bool,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.ring_pages;
        let (s, stay) = (if pages == 1 { "" } else { "s" }, self.persistent);
        let grants = if stay { "persistent" } else { "transient" };
        match self.queues {
            1 => write!(f, "{}, a ring", self.protocol)?,
            queues => write!(f, "{}, {queues} queues, each a ring", self.protocol)?,
        }
        write!(f, " of {pages} page{s}, {grants} grants")
    }
}

/// What is known of a vbd.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which one.
    pub vbd: Vbd,
    /// How far it is.
    pub stage: Stage,
    /// What it is kept in, as soon as that is open.
    pub disk: Option<Disk>,
    /// What was agreed on with the frontend that is, or was last, connected.
    pub connection: Option<Connection>,
    /// How often a frontend has connected.
    pub connections: u64,
    /// What went wrong most recently, if anything did.
    pub error: Option<String>,
    /// How fast it may be used.
    pub rates: Rates,
    /// What its queues did, over all connections.
    pub stats: DiskStats,
}

impl Report {
    /// Whether it is being served.
    pub fn is_alive(&self) -> bool {
        self.stage != Stage::Ended
    }
}

/// So many vbds that are no more are remembered: guests come and go for years.
const MOST_ENDED: usize = 256;

/// Every vbd that a [`Service`](crate::service::Service) has met. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Reports(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    live: BTreeMap<Vbd, Report>,
    /// In the order of their ends.
    ended: VecDeque<Report>,
    /// Who waits for the end of a vbd.
    waiting: Vec<Waker>,
}

impl Reports {
    /// The reports as of now: first those of vbds that are gone, as they ended, then the others in
    /// the order of domains. A vbd that was made anew has several.
    pub fn all(&self) -> Vec<Report> {
        self.with(|known| {
            known
                .ended
                .iter()
                .chain(known.live.values())
                .cloned()
                .collect()
        })
    }

    /// The latest report of `vbd`.
    pub fn of(&self, vbd: Vbd) -> Option<Report> {
        self.with(|known| {
            let mut ended = known.ended.iter().rev();
            let latest = known.live.get(&vbd);
            latest
                .or_else(|| ended.find(|report| report.vbd == vbd))
                .cloned()
        })
    }

    /// Waits until `vbd` is served no more, and nothing of it is open or mapped. Its nodes say so
    /// a little earlier: a closed device may still wait for its frontend to come back.
    pub async fn ended(&self, vbd: Vbd) {
        poll_fn(|cx| {
            self.with(|known| {
                if !known.live.contains_key(&vbd) {
                    return Poll::Ready(());
                }
                let waker = cx.waker();
                if !known.waiting.iter().any(|known| known.will_wake(waker)) {
                    known.waiting.push(waker.clone());
                }
                Poll::Pending
            })
        })
        .await;
    }

    /// Whether `vbd` is being served.
    pub(crate) fn is_alive(&self, vbd: Vbd) -> bool {
        self.with(|known| known.live.contains_key(&vbd))
    }

    /// Takes up a vbd that is not alive.
    pub(crate) fn begin(&self, vbd: Vbd, queues: u32) -> Record {
        let stats = DiskStats::new(queues);
        let report = Report {
            vbd,
            stage: Stage::Opening,
            disk: None,
            connection: None,
            connections: 0,
            error: None,
            rates: Rates::default(),
            stats: stats.clone(),
        };
        self.with(|known| known.live.insert(vbd, report));
        Record {
            reports: self.clone(),
            vbd,
            stats,
        }
    }

    /// Takes note that the vbds that `which` names are served no more.
    pub(crate) fn end(&self, which: impl Fn(Vbd) -> bool) {
        let waiting = self.with(|known| {
            let ended = known.live.extract_if(.., |vbd, _| which(*vbd));
            for (_, mut report) in ended {
                report.stage = Stage::Ended;
                known.ended.push_back(report);
            }
            let too_many = known.ended.len().saturating_sub(MOST_ENDED);
            known.ended.drain(..too_many);
            std::mem::take(&mut known.waiting)
        });
        waiting.into_iter().for_each(Waker::wake);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a device writes down how it fares.
#[derive(Debug)]
pub(crate) struct Record {
    reports: Reports,
    vbd: Vbd,
    stats: DiskStats,
}

impl Record {
    /// Which vbd it is about.
    pub(crate) fn vbd(&self) -> Vbd {
        self.vbd
    }

    /// Where its queues count.
    pub(crate) fn stats(&self) -> &DiskStats {
        &self.stats
    }

    /// Changes the report.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Report)) {
        self.reports.with(|known| {
            // It is there until the service says that the device is not.
            if let Some(report) = known.live.get_mut(&self.vbd) {
                change(report);
            }
        });
    }

    /// Takes note of how far it is.
    pub(crate) fn stage(&self, stage: Stage) {
        self.note(|report| report.stage = stage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vbd(number: u32) -> Vbd {
        let frontend = DomId(1);
        Vbd { frontend, number }
    }

    #[test]
    fn a_vbd_made_anew_has_a_report_of_each_life() {
        let reports = Reports::default();
        for life in 1..=2 {
            let record = reports.begin(vbd(7), 1);
            record.note(|report| report.connections = life);
            reports.end(|ended| ended == vbd(7));
        }
        let lives: Vec<_> = reports
            .all()
            .iter()
            .map(|report| report.connections)
            .collect();
        assert_eq!(lives, [1, 2]);
        assert_eq!(reports.of(vbd(7)).unwrap().connections, 2);
        reports.begin(vbd(7), 1);
        assert!(reports.of(vbd(7)).unwrap().is_alive());
    }

    #[test]
    fn the_oldest_of_many_that_ended_are_forgotten_and_none_that_lives() {
        let reports = Reports::default();
        reports.begin(vbd(0), 1);
        for number in 1..=300 {
            reports.begin(vbd(number), 1);
            reports.end(|ended| ended == vbd(number));
        }
        assert!(reports.of(vbd(0)).is_some());
        assert!(reports.of(vbd(300 - 256)).is_none());
        assert!(reports.of(vbd(300 - 255)).is_some());
    }
}
