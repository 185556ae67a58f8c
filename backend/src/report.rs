//! What is known of every device, live or ended, for others to look at.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use parapet_xen_sys::DomId;

/// A device of a kind: whose it is, and the number that the toolstack gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The frontend's domain.
    pub frontend: DomId,
    /// Its number there.
    pub number: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frontend, self.number)
    }
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What is behind it is being opened.
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

/// What is known of a device.
#[derive(Debug, Clone)]
pub struct Report<A> {
    /// Which one.
    pub device: DeviceId,
    /// How far it is.
    pub stage: Stage,
    /// How often a frontend has connected.
    pub connections: u64,
    /// What went wrong most recently, if anything did.
    pub error: Option<String>,
    /// What is known of it as one of its kind.
    pub about: A,
}

impl<A> Report<A> {
    /// Whether it is being served.
    pub fn is_alive(&self) -> bool {
        self.stage != Stage::Ended
    }
}

/// So many devices that are no more are remembered: guests come and go for years.
const MOST_ENDED: usize = 256;

/// Every device that a [`Service`](crate::service::Service) has met. Clones are the same list.
#[derive(Debug)]
pub struct Reports<A>(Arc<Mutex<Known<A>>>);

#[derive(Debug)]
struct Known<A> {
    live: BTreeMap<DeviceId, Report<A>>,
    /// In the order of their ends.
    ended: VecDeque<Report<A>>,
    /// Who waits for the end of a device.
    waiting: Vec<Waker>,
}

impl<A> Default for Reports<A> {
    fn default() -> Self {
        Reports(Arc::new(Mutex::new(Known {
            live: BTreeMap::new(),
            ended: VecDeque::new(),
            waiting: Vec::new(),
        })))
    }
}

impl<A> Clone for Reports<A> {
    fn clone(&self) -> Self {
        Reports(Arc::clone(&self.0))
    }
}

impl<A: Clone> Reports<A> {
    /// The reports as of now: first those of devices that are gone, as they ended, then the others in
    /// the order of domains. A device that was made anew has several.
    pub fn all(&self) -> Vec<Report<A>> {
        self.with(|known| {
            known
                .ended
                .iter()
                .chain(known.live.values())
                .cloned()
                .collect()
        })
    }

    /// The latest report of `device`.
    pub fn of(&self, device: DeviceId) -> Option<Report<A>> {
        self.with(|known| {
            let mut ended = known.ended.iter().rev();
            let latest = known.live.get(&device);
            latest
                .or_else(|| ended.find(|report| report.device == device))
                .cloned()
        })
    }

    /// Waits until `device` is served no more, and nothing of it is open or mapped. Its nodes say so
    /// a little earlier: a closed device may still wait for its frontend to come back.
    pub async fn ended(&self, device: DeviceId) {
        poll_fn(|cx| {
            self.with(|known| {
                if !known.live.contains_key(&device) {
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

    /// Whether `device` is being served.
    pub(crate) fn is_alive(&self, device: DeviceId) -> bool {
        self.with(|known| known.live.contains_key(&device))
    }

    /// Takes up a device that is not alive.
    pub(crate) fn begin(&self, device: DeviceId, about: A) -> Record<A> {
        let report = Report {
            device,
            stage: Stage::Opening,
            connections: 0,
            error: None,
            about: about.clone(),
        };
        self.with(|known| known.live.insert(device, report));
        Record {
            reports: self.clone(),
            device,
            begun: about,
        }
    }

    /// Takes note that the devices that `which` names are served no more.
    pub(crate) fn end(&self, which: impl Fn(DeviceId) -> bool) {
        let waiting = self.with(|known| {
            let ended = known.live.extract_if(.., |device, _| which(*device));
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

    fn with<T>(&self, act: impl FnOnce(&mut Known<A>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a device writes down how it fares.
#[derive(Debug)]
pub struct Record<A> {
    reports: Reports<A>,
    device: DeviceId,
    begun: A,
}

impl<A: Clone> Record<A> {
    /// Which device it is about.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// What was known of it at its beginning, with what its queues count in, which stays the same.
    pub fn begun(&self) -> &A {
        &self.begun
    }

    /// Changes the report.
    pub fn note(&self, change: impl FnOnce(&mut Report<A>)) {
        self.reports.with(|known| {
            // It is there until the service says that the device is not.
            if let Some(report) = known.live.get_mut(&self.device) {
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

    fn device(number: u32) -> DeviceId {
        let frontend = DomId(1);
        DeviceId { frontend, number }
    }

    #[test]
    fn a_device_made_anew_has_a_report_of_each_life() {
        let reports = Reports::<()>::default();
        for life in 1..=2 {
            let record = reports.begin(device(7), ());
            record.note(|report| report.connections = life);
            reports.end(|ended| ended == device(7));
        }
        let lives: Vec<_> = reports
            .all()
            .iter()
            .map(|report| report.connections)
            .collect();
        assert_eq!(lives, [1, 2]);
        assert_eq!(reports.of(device(7)).unwrap().connections, 2);
        reports.begin(device(7), ());
        assert!(reports.of(device(7)).unwrap().is_alive());
    }

    #[test]
    fn the_oldest_of_many_that_ended_are_forgotten_and_none_that_lives() {
        let reports = Reports::<()>::default();
        reports.begin(device(0), ());
        for number in 1..=300 {
            reports.begin(device(number), ());
            reports.end(|ended| ended == device(number));
        }
        assert!(reports.of(device(0)).is_some());
        assert!(reports.of(device(300 - 256)).is_none());
        assert!(reports.of(device(300 - 255)).is_some());
    }
}
