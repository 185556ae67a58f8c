//! The granting side: a domain's grant table, and the hypervisor's record of who uses it.
//!
//! The entries are in the domain's own pages, written by the guest's half
//! ([`crate::guest::grant_entries`]); a guest may write anything into them. What the hypervisor
//! relies on is its own record: an entry in use is *pinned*, its frame is taken from the pin, and
//! the shared entry is not read again until the last user is gone (XSA-224, 226, 379).

use std::sync::{Arc, Mutex, OnceLock};

use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::{EntryFlags, EntryV1, GrantRef, GrantStatus};

use super::memory::{DomainMemory, Pages};
use crate::guest::grant_entries::{self, ENTRY_SIZE, Word};
use crate::memory::{PAGE_SIZE, View};
use crate::seam::{Access, GrantError, StillMapped};
use crate::wait::lock;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// Entries in one page of the table.
const ENTRIES_PER_FRAME: usize = PAGE_SIZE / ENTRY_SIZE;

/// The references below this are the toolstack's, for console and xenstore.
const RESERVED: u32 = 8;

/// How often the hypervisor tries to mark an entry that its guest keeps changing.
const ATTEMPTS: usize = 5;

/// Who uses a granted page: the hypervisor's own record of an entry.
#[derive(Debug, Default, Clone, Copy)]
struct Pin {
    frame: u32,
    grantee: DomId,
    readers: u32,
    writers: u32,
}

type PinFrame = Box<[Mutex<Pin>; ENTRIES_PER_FRAME]>;

pub(super) struct GrantTable {
    memory: Arc<DomainMemory>,
    first_frame: u32,
    frames: u32,
    free: Mutex<FreeRefs>,
    pins: Box<[OnceLock<PinFrame>]>,
    /// Pages whose grants ended while the peer still mapped them.
    quarantine: Mutex<Vec<(GrantRef, Pages)>>,
}

/// The guest's record of unused references.
struct FreeRefs {
    never_used: u32,
    returned: Vec<GrantRef>,
}

impl GrantTable {
    /// A table of `frames` pages, which begin at `first_frame` of the domain's memory.
    pub(super) fn new(memory: Arc<DomainMemory>, first_frame: u32, frames: u32) -> Self {
        GrantTable {
            memory,
            first_frame,
            frames,
            free: Mutex::new(FreeRefs {
                never_used: RESERVED,
                returned: Vec::new(),
            }),
            pins: (0..frames).map(|_| OnceLock::new()).collect(),
            quarantine: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn entries(&self) -> View<'_> {
        self.memory.view(self.first_frame, self.frames)
    }

    fn limit(&self) -> u32 {
        self.frames * ENTRIES_PER_FRAME as u32
    }

    // ---- the guest's half ----

    /// Grants each page of `pages`.
    pub(super) fn permit(
        &self,
        pages: &Pages,
        to: DomId,
        access: Access,
    ) -> Result<Vec<GrantRef>, GrantError> {
        if !pages.is_of(&self.memory) {
            return Err(GrantError::NotGrantable(to));
        }
        let frames = pages.frames();
        let refs = self.take_refs(frames.len())?;
        for (&gref, frame) in refs.iter().zip(frames) {
            self.permit_at(gref, frame, to, access);
        }
        Ok(refs)
    }

    /// Fills the entry `gref`, which is the caller's to use.
    pub(super) fn permit_at(&self, gref: GrantRef, frame: u32, to: DomId, access: Access) {
        grant_entries::permit(self.entries(), gref, to, frame, access)
            .expect("the table hands out references below its limit");
    }

    fn take_refs(&self, count: usize) -> Result<Vec<GrantRef>, GrantError> {
        self.retry_quarantine();
        let mut free = lock(&self.free);
        let fresh = (self.limit() - free.never_used) as usize;
        if free.returned.len() + fresh < count {
            return Err(GrantError::TableFull {
                limit: self.limit() as usize,
            });
        }
        let mut refs = Vec::with_capacity(count);
        while refs.len() < count {
            refs.push(match free.returned.pop() {
                Some(gref) => gref,
                None => {
                    free.never_used += 1;
                    GrantRef(free.never_used - 1)
                }
            });
        }
        Ok(refs)
    }

    /// Ends the grants of `pages`; those still in use go to quarantine, with their pages.
    pub(super) fn end(&self, refs: &[GrantRef], pages: &Pages) -> Result<(), StillMapped> {
        let mut used = 0;
        for &gref in refs {
            if self.end_at(gref) {
                lock(&self.free).returned.push(gref);
            } else {
                used += 1;
                lock(&self.quarantine).push((gref, pages.clone()));
            }
        }
        if used == 0 {
            Ok(())
        } else {
            Err(StillMapped(used))
        }
    }

    fn end_at(&self, gref: GrantRef) -> bool {
        grant_entries::end(self.entries(), gref)
            .expect("the table hands out references below its limit")
    }

    pub(super) fn retry_quarantine(&self) {
        let mut quarantine = lock(&self.quarantine);
        if quarantine.is_empty() {
            return;
        }
        let mut freed = Vec::new();
        quarantine.retain(|(gref, _)| {
            let ended = self.end_at(*gref);
            if ended {
                freed.push(*gref);
            }
            !ended
        });
        drop(quarantine);
        lock(&self.free).returned.extend(freed);
    }

    /// Pages that are kept because a peer would not let go.
    pub(super) fn quarantined(&self) -> usize {
        self.retry_quarantine();
        lock(&self.quarantine).len()
    }

    // ---- the hypervisor's half ----

    fn pin(&self, gref: GrantRef) -> Option<&Mutex<Pin>> {
        let index = gref.0 as usize;
        let frame = self
            .pins
            .get(index / ENTRIES_PER_FRAME)?
            .get_or_init(|| Box::new(std::array::from_fn(|_| Mutex::new(Pin::default()))));
        frame.get(index % ENTRIES_PER_FRAME)
    }

    /// Begins to use a grant: marks its entry and gives the frame.
    pub(super) fn acquire(
        &self,
        gref: GrantRef,
        grantee: DomId,
        access: Access,
    ) -> Result<u32, GrantStatus> {
        let pin = self.pin(gref).ok_or(GrantStatus::BAD_GNTREF)?;
        let mut pin = lock(pin);
        let write = access == Access::ReadWrite;
        let unused = pin.readers == 0 && pin.writers == 0;
        if !unused && pin.grantee != grantee {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        if unused || (write && pin.writers == 0) {
            self.mark(gref, grantee, write)?;
        }
        if unused {
            let frame = self
                .entries()
                .load_u32(
                    grant_entries::offset(gref) + offset_of!(EntryV1, frame),
                    Ordering::Acquire,
                )
                .map_err(|_| GrantStatus::BAD_GNTREF)?;
            if frame >= self.memory.frames() {
                self.unmark(gref, EntryFlags::READING | EntryFlags::WRITING);
                return Err(GrantStatus::BAD_PAGE);
            }
            pin.frame = frame;
            pin.grantee = grantee;
        }
        let users = if write {
            &mut pin.writers
        } else {
            &mut pin.readers
        };
        *users = users.checked_add(1).ok_or(GrantStatus::NO_SPACE)?;
        Ok(pin.frame)
    }

    /// Checks the shared entry and marks it as in use, in one step.
    fn mark(&self, gref: GrantRef, grantee: DomId, write: bool) -> Result<(), GrantStatus> {
        let word = self
            .entries()
            .atomic_u32(grant_entries::offset(gref))
            .map_err(|_| GrantStatus::BAD_GNTREF)?;
        let mut now = word.load(Ordering::Acquire);
        for _ in 0..ATTEMPTS {
            let entry = Word(now);
            let flags = entry.flags();
            // As Xen has it: whatever an entry says that does not allow this is the general error.
            let kind = EntryFlags::TYPE_MASK | EntryFlags::SUB_PAGE;
            let allows = flags & kind == EntryFlags::PERMIT_ACCESS && entry.domid() == grantee;
            if !allows || (write && flags.contains(EntryFlags::READONLY)) {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            let mut marks = EntryFlags::READING;
            if write {
                marks |= EntryFlags::WRITING;
            }
            let marked = Word::new(flags | marks, entry.domid()).0;
            match word.compare_exchange(now, marked, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(changed) => now = changed,
            }
        }
        Err(GrantStatus::GENERAL_ERROR)
    }

    fn unmark(&self, gref: GrantRef, marks: EntryFlags) {
        if let Ok(word) = self.entries().atomic_u32(grant_entries::offset(gref)) {
            word.fetch_and(!u32::from(marks.bits()), Ordering::SeqCst);
        }
    }

    /// Ends one use that [`GrantTable::acquire`] began.
    pub(super) fn release(&self, gref: GrantRef, access: Access) {
        let Some(pin) = self.pin(gref) else { return };
        let mut pin = lock(pin);
        let mut done = EntryFlags::empty();
        match access {
            Access::ReadOnly => pin.readers = pin.readers.saturating_sub(1),
            Access::ReadWrite => pin.writers = pin.writers.saturating_sub(1),
        }
        if pin.writers == 0 {
            done |= EntryFlags::WRITING;
            if pin.readers == 0 {
                done |= EntryFlags::READING;
            }
        }
        if !done.is_empty() {
            self.unmark(gref, done);
        }
    }

    /// How many uses of this table's grants there are now.
    pub(super) fn uses(&self) -> usize {
        let frames = self.pins.iter().filter_map(OnceLock::get);
        frames
            .flat_map(|frame| frame.iter())
            .map(|pin| {
                let pin = lock(pin);
                pin.readers as usize + pin.writers as usize
            })
            .sum()
    }
}
