//! What all queues of a disk have to keep to, and may change while they serve it: how large the
//! disk is, and how fast it may be used.

use std::sync::atomic::{AtomicU64, Ordering};

use parapet_backend::rate::Bucket;
pub use parapet_backend::rate::Rate;
use parapet_hypervisor::seam::Instant;

use crate::negotiation::Rates;

/// The terms of one disk, which its queues share.
#[derive(Debug)]
pub struct Terms {
    sectors: AtomicU64,
    operations: Bucket,
    bytes: Bucket,
    /// How often the rates were set.
    version: AtomicU64,
}

/// The turn of a queue that found a disk's rate used up. Each of several has a turn of its own, in
/// the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    /// When it is.
    pub(crate) when: Instant,
    /// Of the rates at that time.
    version: u64,
}

/// Bytes that a queue pays for its turn, before it knows what it will take.
const ADVANCE: u64 = 4096;

impl Terms {
    /// A disk of so many sectors, to be used as fast as it goes.
    pub fn new(sectors: u64) -> Self {
        Terms {
            sectors: AtomicU64::new(sectors),
            operations: Bucket::default(),
            bytes: Bucket::default(),
            version: AtomicU64::new(0),
        }
    }

    /// How many sectors the disk has now.
    #[inline]
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Gives it another size. A request that was checked before is the image's to refuse.
    pub(crate) fn set_sectors(&self, sectors: u64) {
        self.sectors.store(sectors, Ordering::Relaxed);
    }

    /// Sets how fast the disk may be used.
    pub fn set_rates(&self, rates: &Rates) {
        let operations = self.operations.set(rates.operations);
        let bytes = self.bytes.set(rates.bytes);
        if operations || bytes {
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there are rates to keep to.
    #[inline]
    pub(crate) fn are_limited(&self) -> bool {
        self.operations.is_limited() || self.bytes.is_limited()
    }

    /// Takes a turn, if there is nothing left to use now. Its operation is paid for with that.
    pub(crate) fn wait(&self, now: Instant) -> Option<Turn> {
        if !self.operations.is_empty(now) && !self.bytes.is_empty(now) {
            return None;
        }
        let when = self.operations.charge(now, 1);
        Some(Turn {
            when: when.max(self.bytes.charge(now, ADVANCE)),
            version: self.version.load(Ordering::Relaxed),
        })
    }

    /// Whether a turn still counts: it does not once the rates are others.
    pub(crate) fn honours(&self, turn: &Turn) -> bool {
        self.version.load(Ordering::Relaxed) == turn.version
    }

    /// Takes note of a request of so many bytes that was taken, by one who had waited for its turn
    /// or had not.
    pub(crate) fn charge(&self, now: Instant, bytes: u64, turn: Option<Turn>) {
        if turn.is_some() {
            self.bytes.charge(now, bytes.saturating_sub(ADVANCE));
        } else {
            self.operations.charge(now, 1);
            self.bytes.charge(now, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_rate_forgets_what_was_used_and_the_same_does_not() {
        let terms = Terms::new(8);
        let rates = |per_second| Rates {
            operations: Some(Rate {
                per_second,
                burst: 1,
            }),
            bytes: None,
        };
        let now = Instant::from_nanos(5);
        assert!(!terms.are_limited());
        terms.set_rates(&rates(1));
        assert!(terms.are_limited());
        terms.charge(now, u64::MAX, None);
        terms.set_rates(&rates(1));
        let turn = terms.wait(now).unwrap();
        assert!(turn.when > now && terms.honours(&turn));
        terms.set_rates(&rates(2));
        assert!(!terms.honours(&turn));
        assert_eq!(terms.wait(now), None);
        terms.charge(now, 0, None);
        assert!(terms.wait(now).is_some());
        terms.set_rates(&Rates::default());
        assert_eq!(terms.wait(now), None);
    }

    #[test]
    fn queues_that_wait_have_their_turns_one_after_the_other() {
        let terms = Terms::new(8);
        let rate = |per_second| Rate {
            per_second,
            burst: 1,
        };
        terms.set_rates(&Rates {
            operations: Some(rate(1000)),
            bytes: Some(rate(1 << 30)),
        });
        let now = Instant::from_nanos(1_000_000_000);
        terms.charge(now, 4096, None);
        let turns: Vec<_> = (0..4).map(|_| terms.wait(now).unwrap().when).collect();
        for (at, when) in turns.iter().enumerate() {
            let after = when.since(now).as_micros();
            assert!(
                after.abs_diff(1000 * (at as u128 + 1)) < 10,
                "{at}: {after}"
            );
        }
        // A turn is paid for: whoever takes its request then does not pay again.
        let turn = terms.wait(now);
        terms.charge(now, 4096, turn);
        let next = terms.wait(now).unwrap().when;
        assert!(next.since(now).as_micros().abs_diff(6000) < 10);
    }
}
