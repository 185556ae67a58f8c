//! How fast a device may be used.

use std::sync::atomic::{AtomicU64, Ordering};

use parapet_hypervisor::seam::Instant;

/// So many units a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units a second; at least one.
    pub per_second: u64,
    /// Units that may be used at once by one who did not use any for a while; at least one.
    pub burst: u64,
}

/// The part of a second's units that may be used at once, if nobody says how many.
const BURST_PART: u64 = 10;

impl Rate {
    /// So many units a second, which are some, and a burst of as many as are said, or of a tenth of
    /// a second's worth.
    pub fn new(per_second: u64, burst: Option<u64>) -> Self {
        Rate {
            per_second: per_second.max(1),
            burst: burst.unwrap_or(per_second / BURST_PART).max(1),
        }
    }
}

/// Parts of a nanosecond in which a bucket counts: fine enough for a million units a second, and
/// 36 years fit.
const TICKS: u64 = 16;

/// What a second is in that.
const SECOND: u64 = TICKS * 1_000_000_000;

/// A token bucket that many may use at once, without a lock.
///
/// It is told by the moment at which it will be full again: using a unit moves that moment on by
/// what a unit takes to come back, and while it is farther away than all of the burst but one unit
/// takes there is not even that one. What is used last may go below the bottom, so a request larger
/// than the burst waits for no more than its turn, and everything after it waits longer.
#[derive(Debug, Default)]
pub struct Bucket {
    /// Units a second; zero if there is no limit.
    per_second: AtomicU64,
    /// How long the burst takes to come back, all but one unit.
    burst: AtomicU64,
    full_at: AtomicU64,
}

/// How long so many units take to come back: at most for ever.
fn time_of(units: u64, per_second: u64) -> u64 {
    let ticks = (u128::from(units) * u128::from(SECOND)).div_ceil(per_second.max(1).into());
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn ticks(moment: Instant) -> u64 {
    moment.as_nanos().saturating_mul(TICKS)
}

impl Bucket {
    /// Sets the rate, and fills the bucket; false if that is the rate already.
    pub fn set(&self, rate: Option<Rate>) -> bool {
        let (per_second, burst) = match rate {
            Some(rate) => {
                let per_second = rate.per_second.max(1);
                (
                    per_second,
                    time_of(rate.burst.saturating_sub(1), per_second),
                )
            }
            None => (0, 0),
        };
        let rate_before = self.per_second.swap(per_second, Ordering::Relaxed);
        let burst_before = self.burst.swap(burst, Ordering::Relaxed);
        let differs = (rate_before, burst_before) != (per_second, burst);
        if differs {
            self.full_at.store(0, Ordering::Relaxed);
        }
        differs
    }

    /// Whether there is a limit.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.per_second.load(Ordering::Relaxed) != 0
    }

    /// Whether there is nothing to use.
    pub fn is_empty(&self, now: Instant) -> bool {
        self.is_limited() && {
            let full_at = self.full_at.load(Ordering::Relaxed);
            self.empty_until(full_at) > ticks(now)
        }
    }

    /// When there is something to use; in the past if there is by now.
    pub fn ready_at(&self) -> Instant {
        let full_at = self.full_at.load(Ordering::Relaxed);
        Instant::from_nanos(self.empty_until(full_at).div_ceil(TICKS))
    }

    /// Until when there is nothing to use, if it is full at that moment.
    fn empty_until(&self, full_at: u64) -> u64 {
        full_at.saturating_sub(self.burst.load(Ordering::Relaxed))
    }

    /// Uses so many units. Says when they were there to use, which may be later than now.
    pub fn charge(&self, now: Instant, units: u64) -> Instant {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second == 0 || units == 0 {
            return now;
        }
        let time = time_of(units, per_second);
        let from = ticks(now);
        let used = |full_at: u64| Some(full_at.max(from).saturating_add(time));
        let updated = self
            .full_at
            .try_update(Ordering::Relaxed, Ordering::Relaxed, used);
        // It never refuses.
        let before = updated.unwrap_or_else(|full_at| full_at);
        Instant::from_nanos(self.empty_until(before).div_ceil(TICKS)).max(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(per_second: u64, burst: u64) -> Bucket {
        let bucket = Bucket::default();
        bucket.set(Some(Rate { per_second, burst }));
        bucket
    }

    /// Uses units one by one as soon as there are some, until `end`. How many.
    fn use_up(bucket: &Bucket, from: Instant, end: Instant, units: u64) -> u64 {
        let (mut now, mut used) = (from, 0);
        loop {
            now = bucket.charge(now, units);
            if now >= end {
                return used;
            }
            used += units;
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_then_it_is_the_rate() {
        let start = Instant::from_nanos(77_000_000_000);
        let second = |n: u64| Instant::from_nanos(start.as_nanos() + n * 1_000_000_000);
        let bucket = bucket(1000, 50);
        let mut at_once = 0;
        while !bucket.is_empty(start) {
            bucket.charge(start, 1);
            at_once += 1;
        }
        assert_eq!(at_once, 50);
        let used = use_up(&bucket, start, second(10), 1);
        assert!((9_999..=10_001).contains(&used), "{used}");
        // After a pause the burst is back, and no more than that.
        let used = use_up(&bucket, second(100), second(101), 1);
        assert!((1_049..=1_051).contains(&used), "{used}");
    }

    #[test]
    fn a_unit_larger_than_the_burst_is_paid_for_afterwards() {
        let bucket = bucket(1 << 20, 4096);
        let start = Instant::from_nanos(1);
        let end = Instant::from_nanos(10_000_000_001);
        let used = use_up(&bucket, start, end, 1 << 20);
        assert!((10 << 20..=11 << 20).contains(&used), "{used}");
    }

    #[test]
    fn it_is_said_when_there_is_something_again() {
        let bucket = bucket(1000, 50);
        let start = Instant::from_nanos(77_000_000_000);
        bucket.charge(start, 149);
        let ready = bucket.ready_at();
        assert_eq!(ready, start.after(std::time::Duration::from_millis(100)));
        assert!(!bucket.is_empty(ready));
        assert!(bucket.is_empty(Instant::from_nanos(ready.as_nanos() - 1)));
    }

    #[test]
    fn rates_that_do_not_fit_a_tick_are_kept_all_the_same() {
        let bucket = bucket(1_500_000, 100);
        let second = Instant::from_nanos(1_000_000_000);
        let used = use_up(&bucket, Instant::default(), second, 1);
        assert!(used.abs_diff(1_500_000) < 1_000, "{used}");
    }

    proptest! {
        #[test]
        fn nothing_wraps_whatever_is_asked_for(
            per_second in any::<u64>(), burst in any::<u64>(),
            steps in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..20)
        ) {
            let bucket = bucket(per_second, burst);
            let mut full_at = 0;
            for (now, units) in steps {
                let now = Instant::from_nanos(now);
                bucket.charge(now, units);
                let after = bucket.full_at.load(Ordering::Relaxed);
                prop_assert!(after >= full_at, "it is never full the sooner");
                full_at = after;
                let _ = bucket.is_empty(now);
            }
        }
    }
}
