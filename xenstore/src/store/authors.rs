//! Which guest made which change, for as long as a transaction may fail because of it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use parapet_xen_sys::DomId;

use super::permissions::Caller;

/// So many changes are remembered; of older ones it is not known who made them.
const MANY: usize = 16384;

/// The changes that guests made while any transaction was open, by generation.
#[derive(Debug, Default)]
pub(super) struct Authors {
    recent: VecDeque<(u64, Option<DomId>)>,
    open: usize,
}

impl Authors {
    /// A transaction has begun.
    pub(super) fn begun(&mut self) {
        self.open += 1;
    }

    /// A transaction is over.
    pub(super) fn ended(&mut self) {
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            self.recent.clear();
        }
    }

    /// The change of this generation, which is the latest, was made by `caller`.
    pub(super) fn note(&mut self, generation: u64, caller: &Caller) {
        if self.open == 0 || caller.privileged {
            return;
        }
        if self.recent.len() >= MANY {
            self.recent.pop_front();
        }
        self.recent.push_back((generation, Some(caller.domid)));
    }

    /// A domain is gone: the next one with its id is not to blame for what it did.
    pub(super) fn forget(&mut self, domid: DomId) {
        for (_, author) in &mut self.recent {
            author.take_if(|author| *author == domid);
        }
    }

    /// The guests that made these changes, but `victim`. Each change is blamed on them once.
    pub(super) fn blame(
        &mut self,
        generations: impl Iterator<Item = u64>,
        victim: DomId,
    ) -> Vec<DomId> {
        let mut guests = Vec::new();
        for generation in generations {
            let found = self.recent.binary_search_by_key(&generation, |it| it.0);
            let author = found.ok().and_then(|at| self.recent.get_mut(at));
            guests.extend(author.and_then(|(_, author)| author.take_if(|it| *it != victim)));
        }
        guests.sort_unstable();
        guests.dedup();
        guests
    }
}
