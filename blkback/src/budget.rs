//! How many pages all disks together keep mapped.
//!
//! Each page that stays mapped for a guest is a mapping of its own, and a process has only so many
//! of these. Who connects first must not leave later guests without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::grants::PERSISTENT_PAGES;

/// The part of what is left that one queue may have.
const PART: usize = 16;

/// Fewer pages than this are not worth keeping: requests would only drive each other out.
const LEAST: usize = 64;

/// Pages that may stay mapped. Clones are the same budget.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Option<Arc<Left>>);

#[derive(Debug)]
struct Left {
    pages: AtomicUsize,
    /// Whether somebody has been told that they do not suffice.
    told: AtomicBool,
}

impl Budget {
    /// A budget of that many pages, or without a bound.
    pub(crate) fn new(pages: Option<usize>) -> Self {
        Budget(pages.map(|pages| {
            let (pages, told) = (pages.into(), AtomicBool::new(false));
            Arc::new(Left { pages, told })
        }))
    }

    /// What one queue may keep, which is none once there is little left.
    pub(crate) fn share(&self) -> Share {
        let most = usize::from(PERSISTENT_PAGES);
        let Some(left) = &self.0 else {
            let pages = PERSISTENT_PAGES;
            return Share { pages, left: None };
        };
        let part = |left: usize| match (left / PART).min(most) {
            ..LEAST => 0,
            part => part,
        };
        let take = |left: usize| Some(left - part(left));
        let before = left
            .pages
            .try_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let pages = before.map_or(0, part);
        if pages < most && !left.told.swap(true, Ordering::Relaxed) {
            log::warn!(
                "so many guests' pages stay mapped that further disks get fewer, and are slower: \
                 let this process have more mappings"
            );
        }
        Share {
            // At most `PERSISTENT_PAGES`.
            pages: pages as u16,
            left: Some(Arc::clone(left)),
        }
    }
}

/// What a queue may keep of its guest's pages, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    pages: u16,
    left: Option<Arc<Left>>,
}

impl Share {
    /// How many pages.
    pub(crate) fn pages(&self) -> u16 {
        self.pages
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(left) = &self.left {
            left.pages.fetch_add(self.pages.into(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_queues_together_keep_no_more_than_the_budget_and_give_it_back() {
        let budget = Budget::new(Some(32_000));
        for _ in 0..2 {
            let shares: Vec<_> = (0..200).map(|_| budget.share()).collect();
            let pages: Vec<usize> = shares.iter().map(|share| share.pages().into()).collect();
            assert!(pages.iter().sum::<usize>() <= 32_000);
            assert!(pages.is_sorted_by(|before, after| before >= after));
            assert_eq!(pages[0], usize::from(PERSISTENT_PAGES));
            assert!(pages.iter().filter(|&&pages| pages >= LEAST).count() > 50);
            assert_eq!(pages.last(), Some(&0));
        }
    }

    #[test]
    fn without_a_bound_each_queue_keeps_what_it_can_use() {
        let budget = Budget::new(None);
        let shares: Vec<_> = (0..100).map(|_| budget.share()).collect();
        assert!(shares.iter().all(|share| share.pages() == PERSISTENT_PAGES));
    }
}
