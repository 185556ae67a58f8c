//! How long a queue looks for requests before it sleeps.
//!
//! Looking costs processor time, sleeping costs a notification and a wake-up. A queue whose
//! requests come soon after it has gone to sleep should have looked a little longer; one that
//! sleeps for long should not have looked at all. So the budget grows when a sleep was short and
//! shrinks when it was long, between nothing and a bound, as in kernels that look before they halt
//! a virtual processor.

use std::time::Duration;

use parapet_hypervisor::seam::Instant;

/// What a budget begins with that had come down to nothing.
const LEAST: Duration = Duration::from_micros(4);

/// How long to look, and since when that goes on.
#[derive(Debug)]
pub struct Polling {
    most: Duration,
    budget: Duration,
    since: Option<Instant>,
}

impl Polling {
    /// Looks for up to `most` before a sleep, and at first for all of that.
    pub fn new(most: Duration) -> Self {
        Polling {
            most,
            budget: most,
            since: None,
        }
    }

    /// There was something to do.
    #[inline]
    pub fn found(&mut self) {
        self.since = None;
    }

    /// There was nothing to do: whether to look again before going to sleep.
    #[inline]
    pub fn look_again(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.budget.is_zero() {
            return false;
        }
        let now = now();
        now.since(*self.since.get_or_insert(now)) < self.budget
    }

    /// Whether it matters how long a sleep is.
    pub fn is_measured(&self) -> bool {
        !self.most.is_zero()
    }

    /// There was something to do after a sleep of this length.
    pub fn slept(&mut self, time: Duration) {
        self.since = None;
        self.budget = if time <= self.most {
            (self.budget * 2).max(LEAST).min(self.most)
        } else if self.budget <= LEAST {
            Duration::ZERO
        } else {
            self.budget / 2
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    /// How long it looks, by a clock that goes on a microsecond at each look.
    fn looks_for(polling: &mut Polling) -> u64 {
        let mut time = 0;
        while polling.look_again(|| Instant::from_nanos(1_000_000 + time * 1000)) {
            time += 1;
        }
        time
    }

    #[test]
    fn who_has_nothing_to_do_for_long_looks_less_and_less_and_then_not_at_all() {
        let mut polling = Polling::new(MOST);
        assert_eq!(looks_for(&mut polling), 50);
        let mut before = 50;
        while before > 0 {
            polling.slept(Duration::from_secs(1));
            let looks = looks_for(&mut polling);
            assert!(looks < before);
            before = looks;
        }
        polling.slept(Duration::from_secs(1));
        assert!(!polling.look_again(|| panic!("not even at the clock")));
    }

    #[test]
    fn who_is_woken_soon_looks_longer_up_to_the_bound() {
        let mut polling = Polling::new(MOST);
        for _ in 0..9 {
            polling.slept(Duration::from_secs(1));
        }
        let mut looks = Vec::new();
        for _ in 0..6 {
            polling.slept(Duration::from_micros(10));
            looks.push(looks_for(&mut polling));
        }
        assert_eq!(looks, [4, 8, 16, 32, 50, 50]);
    }

    #[test]
    fn what_was_found_gives_the_whole_budget_again() {
        let mut polling = Polling::new(MOST);
        assert_eq!(looks_for(&mut polling), 50);
        assert!(!polling.look_again(|| Instant::from_nanos(2_000_000)));
        polling.found();
        assert!(polling.look_again(|| Instant::from_nanos(3_000_000)));
    }

    #[test]
    fn without_a_bound_to_look_for_there_is_no_looking() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.slept(Duration::ZERO);
        assert!(!polling.look_again(|| panic!("not even at the clock")));
        assert!(!polling.is_measured());
    }
}
