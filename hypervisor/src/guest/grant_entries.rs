//! Entries of a version 1 grant table (`grant_table.h`), as the granting guest writes them.
//!
//! Flags and domid share a 32-bit word that guest and hypervisor change with compare-and-swap; the
//! frame is written before the flags make the entry valid, and is never changed while they do.

use core::sync::atomic::Ordering;

use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::{EntryFlags, EntryV1, GrantRef};

use crate::memory::{OutOfView, View};
use crate::seam::Access;

/// Bytes of an entry.
pub const ENTRY_SIZE: usize = size_of::<EntryV1>();

/// Where the entry of `gref` begins in the table.
pub(crate) fn offset(gref: GrantRef) -> usize {
    (gref.0 as usize).saturating_mul(ENTRY_SIZE)
}

/// The first word of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u32);

impl Word {
    pub(crate) fn new(flags: EntryFlags, domid: DomId) -> Self {
        Word(u32::from(flags.bits()) | u32::from(domid.0) << 16)
    }

    pub(crate) fn flags(self) -> EntryFlags {
        EntryFlags::from_bits_retain(self.0 as u16)
    }

    #[cfg(feature = "loopback")]
    pub(crate) fn domid(self) -> DomId {
        DomId((self.0 >> 16) as u16)
    }
}

/// Grants `frame` to `domid`. The entry must not be in use.
///
/// # Errors
/// `gref` lies beyond the table.
pub fn permit(
    table: View<'_>,
    gref: GrantRef,
    domid: DomId,
    frame: u32,
    access: Access,
) -> Result<(), OutOfView> {
    let at = offset(gref);
    let word = table.atomic_u32(at)?;
    table
        .atomic_u32(at.saturating_add(core::mem::offset_of!(EntryV1, frame)))?
        .store(frame, Ordering::Relaxed);
    let mut flags = EntryFlags::PERMIT_ACCESS;
    if access == Access::ReadOnly {
        flags |= EntryFlags::READONLY;
    }
    // Release: who sees the flags sees the frame.
    word.store(Word::new(flags, domid).0, Ordering::Release);
    Ok(())
}

/// Takes the grant back. False, and nothing changed, while the grantee still uses the page.
///
/// # Errors
/// `gref` lies beyond the table.
pub fn end(table: View<'_>, gref: GrantRef) -> Result<bool, OutOfView> {
    let word = table.atomic_u32(offset(gref))?;
    let outcome = word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |now| {
        let used = EntryFlags::READING | EntryFlags::WRITING;
        (!Word(now).flags().intersects(used)).then_some(0)
    });
    Ok(outcome.is_ok())
}
