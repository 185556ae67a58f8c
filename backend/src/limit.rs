//! What a peer may cause at a limited rate: complaints, since one that misbehaves must not fill the
//! log; and new beginnings.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::Level;
use parapet_hypervisor::seam::Instant;

/// The least time between two complaints about one peer.
const INTERVAL: Duration = Duration::from_secs(1);

/// Complaints about one peer. Clones share the rate.
#[derive(Debug, Clone)]
pub struct Limit {
    about: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// When the next may be made.
    next: Instant,
    /// How many were not made.
    withheld: u64,
}

impl Limit {
    /// Complaints that begin with `about`.
    pub fn new(about: impl Into<Arc<str>>) -> Self {
        Limit {
            about: about.into(),
            state: Arc::default(),
        }
    }

    /// Complains of the host's fault.
    pub fn warn<T: fmt::Display>(&self, now: Instant, what: impl FnOnce() -> T) {
        self.log(Level::Warn, now, what);
    }

    /// Complains of the peer's fault, which is the peer's trouble.
    pub fn debug<T: fmt::Display>(&self, now: Instant, what: impl FnOnce() -> T) {
        self.log(Level::Debug, now, what);
    }

    /// Tells what the peer does.
    pub fn info<T: fmt::Display>(&self, now: Instant, what: impl FnOnce() -> T) {
        self.log(Level::Info, now, what);
    }

    fn log<T: fmt::Display>(&self, level: Level, now: Instant, what: impl FnOnce() -> T) {
        if !log::log_enabled!(level) {
            return;
        }
        let withheld = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if now < state.next {
                state.withheld += 1;
                return;
            }
            state.next = now.after(INTERVAL);
            std::mem::take(&mut state.withheld)
        };
        match withheld {
            0 => log::log!(level, "{}: {}", self.about, what()),
            withheld => log::log!(
                level,
                "{}: {} (and {withheld} more like it)",
                self.about,
                what()
            ),
        }
    }
}

/// New beginnings within [`INTERVAL`] that are put up with: far more than an honest peer makes, and
/// far fewer than one could that does nothing else.
const BEGINNINGS: u32 = 32;

/// How often a peer begins anew.
#[derive(Debug, Default)]
pub struct Pace {
    since: Instant,
    beginnings: u32,
}

impl Pace {
    /// Counts one more beginning, at `now`. If there were too many, says until when to wait.
    pub fn begin(&mut self, now: Instant) -> Option<Instant> {
        let end = self.since.after(INTERVAL);
        if now >= end || self.beginnings == 0 {
            *self = Pace {
                since: now,
                beginnings: 1,
            };
            return None;
        }
        self.beginnings += 1;
        (self.beginnings > BEGINNINGS).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_begins_anew_without_end_has_to_wait_and_who_does_now_and_then_has_not() {
        let at = |millis: u64| Instant::from_nanos(5_000_000_000 + millis * 1_000_000);
        let mut hasty = Pace::default();
        for beginning in 0..BEGINNINGS {
            assert_eq!(hasty.begin(at(beginning.into())), None);
        }
        assert_eq!(hasty.begin(at(900)), Some(at(1000)));
        assert_eq!(hasty.begin(at(999)), Some(at(1000)));
        assert_eq!(hasty.begin(at(1000)), None);

        let mut honest = Pace::default();
        assert!((0..1000).all(|second| honest.begin(at(second * 100)).is_none()));
    }
}
