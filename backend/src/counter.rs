//! Numbers that a queue counts.
//!
//! A queue alone writes its numbers, so an update is a plain load and store, without the price of
//! a locked instruction; anybody may read them at any time.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one task counts and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `more`. For the one who counts only.
    #[inline]
    pub fn add(&self, more: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(more), Ordering::Relaxed);
    }

    /// Says how many there are now. For the one who counts only.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
