//! Complaints at a limited rate: a peer that misbehaves must not fill the log.

use std::fmt;
use std::time::Duration;

use log::Level;
use parapet_hypervisor::seam::Instant;

/// The least time between two complaints about one peer.
const INTERVAL: Duration = Duration::from_secs(1);

/// Complaints about one peer.
#[derive(Debug)]
pub(crate) struct Limit {
    about: String,
    /// When the next may be made.
    next: Instant,
    /// How many were not made.
    withheld: u64,
}

impl Limit {
    /// Complaints that begin with `about`.
    pub(crate) fn new(about: String) -> Self {
        Limit {
            about,
            next: Instant::default(),
            withheld: 0,
        }
    }

    /// Complains of the host's fault.
    pub(crate) fn warn<T: fmt::Display>(&mut self, now: Instant, what: impl FnOnce() -> T) {
        self.log(Level::Warn, now, what);
    }

    /// Complains of the peer's fault, which is the peer's trouble.
    pub(crate) fn debug<T: fmt::Display>(&mut self, now: Instant, what: impl FnOnce() -> T) {
        self.log(Level::Debug, now, what);
    }

    /// Tells what the peer does.
    pub(crate) fn info<T: fmt::Display>(&mut self, now: Instant, what: impl FnOnce() -> T) {
        self.log(Level::Info, now, what);
    }

    fn log<T: fmt::Display>(&mut self, level: Level, now: Instant, what: impl FnOnce() -> T) {
        if !log::log_enabled!(level) {
            return;
        }
        if now < self.next {
            self.withheld += 1;
            return;
        }
        self.next = now.after(INTERVAL);
        match std::mem::take(&mut self.withheld) {
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
