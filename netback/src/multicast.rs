//! The multicast groups that a guest wants to hear.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use parapet_packet::Mac;

use crate::tx::Group;

/// Groups that a guest may listen to, as in Linux.
pub const GROUPS: usize = 64;

/// A guest listens to [`GROUPS`] groups already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a guest may listen to {GROUPS} groups")]
pub struct TooManyGroups;

/// The groups of one vif. All queues share it, and the frontend may change it over any of them.
#[derive(Debug, Default)]
pub struct Multicast {
    applies: AtomicBool,
    groups: RwLock<Vec<Mac>>,
}

impl Multicast {
    /// Whether only groups that were asked for are heard, from now on: `request-multicast-control`.
    pub fn apply(&self, applies: bool) {
        self.applies.store(applies, Ordering::Relaxed);
    }

    /// Forgets all groups: another frontend has connected.
    pub fn clear(&self) {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.clear();
    }

    /// Does what the guest asked for.
    ///
    /// # Errors
    /// There is no room for one more.
    pub fn change(&self, change: Group) -> Result<(), TooManyGroups> {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            Group::Join(group) => {
                if !groups.contains(&group) {
                    if groups.len() == GROUPS {
                        return Err(TooManyGroups);
                    }
                    groups.push(group);
                }
            }
            Group::Leave(group) => groups.retain(|&other| other != group),
        }
        Ok(())
    }

    /// Whether the guest is to be given what is sent to this address.
    #[inline]
    pub fn hears(&self, to: Mac) -> bool {
        !to.is_group() || !self.applies.load(Ordering::Relaxed) || self.asked_for(to)
    }

    fn asked_for(&self, to: Mac) -> bool {
        to == Mac::BROADCAST || {
            let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
            groups.contains(&to)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Mac = Mac([1, 0, 0x5e, 0, 0, 1]);

    #[test]
    fn only_groups_that_were_asked_for_are_heard_once_the_guest_wants_that() {
        let multicast = Multicast::default();
        assert!(multicast.hears(GROUP), "nobody asked to filter");
        multicast.apply(true);
        assert!(!multicast.hears(GROUP));
        assert!(multicast.hears(Mac::BROADCAST));
        assert!(multicast.hears(Mac([0, 0x16, 0x3e, 0, 0, 1])));
        multicast.change(Group::Join(GROUP)).unwrap();
        assert!(multicast.hears(GROUP));
        multicast.change(Group::Leave(GROUP)).unwrap();
        assert!(!multicast.hears(GROUP));
        multicast.apply(false);
        assert!(multicast.hears(GROUP));
    }

    #[test]
    fn there_is_an_end_to_groups_and_one_asked_for_twice_counts_once() {
        let multicast = Multicast::default();
        for n in 0..GROUPS as u8 {
            multicast
                .change(Group::Join(Mac([1, 0, 0, 0, 0, n])))
                .unwrap();
            multicast
                .change(Group::Join(Mac([1, 0, 0, 0, 0, 0])))
                .unwrap();
        }
        assert_eq!(multicast.change(Group::Join(GROUP)), Err(TooManyGroups));
        multicast.clear();
        assert_eq!(multicast.change(Group::Join(GROUP)), Ok(()));
    }
}
