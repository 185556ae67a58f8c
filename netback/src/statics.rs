//! Pages that a guest keeps granted, and we keep mapped: no grant has to be looked at on the way of
//! a packet that lies in them.
//!
//! The frontend names them over the control ring (types 8 to 10 of `netif.h`), a queue at a time.
//! The control ring's task maps them, and sends them to the queue's task, which alone has the
//! table; so on the way of a packet nothing is locked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use parapet_hypervisor::seam::{Access, Grants};
use parapet_xen_sys::{DomId, GrantRef};

use crate::bell::Bell;
use crate::frame::{Page, Static};

/// Pages of one queue that may stay mapped: those of two rings, and as many again.
pub const PAGES: usize = 1024;

/// Entries of the table, two for a page, so that few are looked at for one that is sought.
const ENTRIES: usize = 2 * PAGES;

/// No page.
const EMPTY: u16 = u16::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    gref: u32,
    mapping: u16,
    page: u16,
}

/// Why pages are not kept mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There would be more than [`PAGES`].
    #[error("no more than {PAGES} pages stay mapped for a queue")]
    Full,
    /// One of them is mapped already.
    #[error("grant {0} is mapped already")]
    Twice(GrantRef),
}

/// The pages that stay mapped for a queue.
pub struct Statics<P: Grants> {
    peer: DomId,
    /// By number of a mapping.
    mappings: Vec<Kept<P>>,
    /// By reference: open addressing, at the reference's own place or soon after it, since
    /// frontends have references that follow each other.
    entries: Box<[Entry]>,
    pages: usize,
}

struct Kept<P: Grants> {
    pages: Arc<Static<P>>,
    access: Access,
}

fn home_of(gref: u32) -> usize {
    gref as usize % ENTRIES
}

impl<P: Grants> Statics<P> {
    /// None, of this guest.
    pub fn new(peer: DomId) -> Self {
        let empty = Entry {
            gref: 0,
            mapping: EMPTY,
            page: 0,
        };
        Statics {
            peer,
            mappings: Vec::new(),
            entries: vec![empty; ENTRIES].into(),
            pages: 0,
        }
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.pages
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Where a page is, if it is one of these.
    #[inline]
    pub fn find(&self, gref: GrantRef) -> Option<Page> {
        self.entry(gref).map(|entry| Page::Static {
            mapping: entry.mapping,
            page: entry.page,
        })
    }

    #[inline]
    fn entry(&self, gref: GrantRef) -> Option<Entry> {
        if self.pages == 0 {
            return None;
        }
        let (before, from) = self.entries.split_at(home_of(gref.0));
        // Half of them are empty, so it ends.
        from.iter()
            .chain(before)
            .take_while(|entry| entry.mapping != EMPTY)
            .find(|entry| entry.gref == gref.0)
            .copied()
    }

    /// The mapping that a page is in, and which page of it, if it is one of these and may be
    /// written.
    #[inline]
    pub fn writable(&self, gref: GrantRef) -> Option<(&P::Mapping, usize)> {
        let entry = self.entry(gref)?;
        let kept = self.mappings.get(usize::from(entry.mapping))?;
        (kept.access == Access::ReadWrite).then(|| (&kept.pages.mapping, usize::from(entry.page)))
    }

    /// The mappings, by their number.
    pub fn mappings(&self) -> Vec<Arc<Static<P>>> {
        self.mappings
            .iter()
            .map(|kept| Arc::clone(&kept.pages))
            .collect()
    }

    /// Keeps these mapped: all, or none.
    ///
    /// # Errors
    /// There is no room, or one of them is mapped already.
    pub fn add(&mut self, new: Vec<(Static<P>, Access)>) -> Result<(), Refused> {
        let refs = || new.iter().flat_map(|(pages, _)| pages.refs.iter().copied());
        if self.pages + refs().count() > PAGES {
            return Err(Refused::Full);
        }
        if let Some(gref) = refs().find(|&gref| self.entry(gref).is_some()) {
            return Err(Refused::Twice(gref));
        }
        self.mappings
            .extend(new.into_iter().map(|(pages, access)| Kept {
                pages: Arc::new(pages),
                access,
            }));
        self.index();
        Ok(())
    }

    /// Keeps these mapped no longer, and tells of each whether it was. What shared a mapping with
    /// one of them, and is to stay, is mapped anew; if the guest does not grant it any more, it
    /// goes too. The mappings that were given up are unmapped when the last frame that may use
    /// them is home: the second result is there to see when that is.
    pub fn remove(
        &mut self,
        place: &P,
        refs: &[GrantRef],
        mut is_used: impl FnMut(GrantRef) -> bool,
    ) -> (Vec<bool>, Vec<Arc<Static<P>>>) {
        let mut going = Vec::new();
        let removed = refs
            .iter()
            .map(|&gref| {
                let goes = self.entry(gref).is_some() && !going.contains(&gref) && !is_used(gref);
                if goes {
                    going.push(gref);
                }
                goes
            })
            .collect();
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.mappings)
            .into_iter()
            .partition(|kept| kept.pages.refs.iter().any(|gref| going.contains(gref)));
        self.mappings = kept;
        for kept in &gone {
            let stay = kept.pages.refs.iter().filter(|gref| !going.contains(gref));
            let refs: Box<[GrantRef]> = stay.copied().collect();
            if refs.is_empty() {
                continue;
            }
            if let Ok(mapping) = place.map(self.peer, &refs, kept.access) {
                self.mappings.push(Kept {
                    pages: Arc::new(Static { mapping, refs }),
                    access: kept.access,
                });
            }
        }
        self.index();
        (removed, gone.into_iter().map(|kept| kept.pages).collect())
    }

    /// Makes the table anew.
    fn index(&mut self) {
        for entry in &mut self.entries {
            entry.mapping = EMPTY;
        }
        self.pages = 0;
        for (mapping, kept) in self.mappings.iter().enumerate() {
            for (page, &gref) in kept.pages.refs.iter().enumerate() {
                let (before, from) = self.entries.split_at_mut(home_of(gref.0));
                let mut free = from.iter_mut().chain(before);
                if let Some(entry) = free.find(|entry| entry.mapping == EMPTY) {
                    // There are no more than `PAGES` of either.
                    *entry = Entry {
                        gref: gref.0,
                        mapping: mapping as u16,
                        page: page as u16,
                    };
                    self.pages += 1;
                }
            }
        }
    }
}

/// What the control ring's task has for a queue.
pub enum Order<P: Grants> {
    /// Keep these mapped.
    Add {
        /// All of them, or none.
        pages: Vec<(Static<P>, Access)>,
        /// Whether they are.
        done: oneshot::Sender<Result<(), Refused>>,
    },
    /// Keep these mapped no longer.
    Remove {
        /// Which.
        refs: Vec<GrantRef>,
        /// Of each whether it was, and is unmapped by now.
        done: oneshot::Sender<Vec<bool>>,
    },
}

/// Orders on their way to a queue.
pub struct Orders<P: Grants> {
    any: AtomicBool,
    waiting: Mutex<Vec<Order<P>>>,
    bell: Arc<Bell>,
}

impl<P: Grants> Orders<P> {
    /// Orders to the queue whose task this bell wakes.
    pub fn new(bell: Arc<Bell>) -> Self {
        Orders {
            any: AtomicBool::new(false),
            waiting: Mutex::default(),
            bell,
        }
    }

    /// Sends one.
    pub fn send(&self, order: Order<P>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(order);
        self.any.store(true, Ordering::Release);
        drop(waiting);
        self.bell.ring();
    }

    /// Whether there are some.
    #[inline]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Takes all.
    pub fn take(&self) -> Vec<Order<P>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut waiting)
    }
}

#[cfg(test)]
mod tests {
    use parapet_hypervisor::loopback::{self, Config, Domain, DomainConfig, Hypervisor};
    use parapet_hypervisor::seam::prelude::*;

    use super::*;

    struct World {
        dom0: Domain,
        guest: Domain,
        grant: loopback::Grant,
        _pages: loopback::Pages,
        _hypervisor: Hypervisor,
    }

    fn world() -> World {
        let hypervisor = Hypervisor::new(Config::default()).unwrap();
        let [dom0, guest] = [(); 2].map(|()| hypervisor.create(DomainConfig::default()).unwrap());
        let pages = guest.allocate(64).unwrap();
        let grant = guest
            .grant(&pages, dom0.domid(), Access::ReadWrite)
            .unwrap();
        World {
            dom0,
            guest,
            grant,
            _pages: pages,
            _hypervisor: hypervisor,
        }
    }

    impl World {
        fn mapped(
            &self,
            range: std::ops::Range<usize>,
            access: Access,
        ) -> (Static<Domain>, Access) {
            let refs: Box<[GrantRef]> = self.grant.refs()[range].into();
            let mapping = self.dom0.map(self.guest.domid(), &refs, access).unwrap();
            (Static { mapping, refs }, access)
        }
    }

    #[test]
    fn all_of_a_list_are_added_or_none() {
        let world = world();
        let mut statics = Statics::new(world.guest.domid());
        statics
            .add(vec![world.mapped(0..8, Access::ReadWrite)])
            .unwrap();
        let again = vec![
            world.mapped(8..16, Access::ReadOnly),
            world.mapped(7..8, Access::ReadWrite),
        ];
        let refs = world.grant.refs();
        assert_eq!(statics.add(again), Err(Refused::Twice(refs[7])));
        assert_eq!(statics.len(), 8);
        assert_eq!(statics.find(refs[8]), None);
        let page = Page::Static {
            mapping: 0,
            page: 7,
        };
        assert_eq!(statics.find(refs[7]), Some(page));
    }

    #[test]
    fn a_page_mapped_to_be_read_is_not_written() {
        let world = world();
        let mut statics = Statics::new(world.guest.domid());
        let both = vec![
            world.mapped(0..1, Access::ReadOnly),
            world.mapped(1..2, Access::ReadWrite),
        ];
        statics.add(both).unwrap();
        let refs = world.grant.refs();
        assert!(statics.find(refs[0]).is_some());
        assert!(statics.writable(refs[0]).is_none());
        assert!(statics.writable(refs[1]).is_some());
    }

    #[test]
    fn what_is_removed_is_unmapped_and_what_was_mapped_with_it_stays() {
        let world = world();
        let mut statics = Statics::new(world.guest.domid());
        statics
            .add(vec![world.mapped(0..8, Access::ReadWrite)])
            .unwrap();
        statics
            .add(vec![world.mapped(8..10, Access::ReadWrite)])
            .unwrap();
        let refs = world.grant.refs().to_vec();
        let asked = [refs[3], refs[9], refs[20], refs[3], refs[4]];
        let (removed, gone) = statics.remove(&world.dom0, &asked, |gref| gref == refs[4]);
        assert_eq!(removed, [true, true, false, false, false]);
        drop(gone);
        assert_eq!(world.dom0.mappings(), 8);
        assert_eq!(statics.len(), 8);
        for (at, &gref) in refs[..10].iter().enumerate() {
            assert_eq!(statics.find(gref).is_some(), at != 3 && at != 9, "{at}");
        }
    }

    #[test]
    fn references_that_want_the_same_place_are_all_found() {
        let world = world();
        let mut statics = Statics::<Domain>::new(world.guest.domid());
        let (mut pages, access) = world.mapped(0..3, Access::ReadWrite);
        let refs = [5, 5 + ENTRIES as u32, 4 + 3 * ENTRIES as u32].map(GrantRef);
        pages.refs = refs.into();
        statics.add(vec![(pages, access)]).unwrap();
        for (at, gref) in refs.into_iter().enumerate() {
            let page = Page::Static {
                mapping: 0,
                page: at as u16,
            };
            assert_eq!(statics.find(gref), Some(page));
        }
        assert_eq!(statics.find(GrantRef(6)), None);
    }
}
