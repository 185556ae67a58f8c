//! Pages, and the right to another domain's pages.

use alloc::vec::Vec;

use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::{GrantRef, GrantStatus};

use crate::memory::{ReadOnly, View};

/// What the domain that is given a page may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// There is no run of free pages of that length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no run of {count} free pages is left in the domain's memory")]
pub struct OutOfMemory {
    /// How many pages were asked for.
    pub count: usize,
}

/// Memory of our own that can be granted to a peer.
pub trait Memory {
    /// A run of pages, contiguous in our address space.
    type Pages: Pages;

    /// Takes `count` pages, all zero, so that granting one never leaks what was there before
    /// (XSA-365 and its like).
    fn allocate(&self, count: usize) -> Result<Self::Pages, OutOfMemory>;
}

/// A run of pages of our own. Clones share the memory; the last one gives it back.
pub trait Pages: Clone + Send + Sync + Unpin + 'static {
    /// The whole run.
    fn view(&self) -> View<'_>;
}

/// Why a page could not be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Every entry of the grant table is in use, and it cannot grow.
    #[error("the grant table is full ({limit} entries): end some grants or raise its limit")]
    TableFull {
        /// How many entries it has at the most.
        limit: usize,
    },
    /// The place cannot grant these pages to that domain (on Linux a page is granted to one
    /// domain only).
    #[error("these pages cannot be granted to domain {0}")]
    NotGrantable(DomId),
    /// The host's own fault, as an errno.
    #[error("the host refused to grant pages (errno {0})")]
    Host(i32),
}

/// Why a peer's pages could not be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// What the hypervisor said of the first grant that it refused: the peer's fault.
    #[error("grant {gref} of domain {domid} cannot be mapped: {status}")]
    Refused {
        /// The granting domain.
        domid: DomId,
        /// The grant.
        gref: GrantRef,
        /// The hypervisor's reason.
        status: GrantStatus,
    },
    /// The host's own fault, as an errno.
    #[error("the host cannot map grants (errno {0})")]
    Host(i32),
}

impl MapError {
    /// Whether the peer is to blame, and not our host.
    pub fn is_peers_fault(&self) -> bool {
        matches!(
            self,
            MapError::Refused { status, .. }
                if !matches!(*status, GrantStatus::NO_DEVICE_SPACE | GrantStatus::NO_SPACE)
        )
    }
}

/// The peer still has the page mapped: it is quarantined, and freed only when the peer lets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} of the granted pages are still mapped by the peer, and were put in quarantine")]
pub struct StillMapped(pub usize);

/// Pages that a peer may reach. Dropping it ends the grant, as [`Grant::end`] does without the
/// report.
pub trait Grant: Send + Sync + Unpin + 'static {
    /// The references to hand to the peer, one a page, in order.
    fn refs(&self) -> &[GrantRef];

    /// Takes the right away. When the peer still maps a page it fails (where the place can tell:
    /// [`Grants::TELLS_STILL_MAPPED`]), and that page, with its reference, is put in quarantine:
    /// never reused, never freed while the peer holds it (XSA-396).
    fn end(self) -> Result<(), StillMapped>;
}

/// A peer's pages, mapped: a run that is contiguous in our address space. Dropping it unmaps; where
/// a kernel still has the pages in hand for I/O, when that is over.
pub trait Mapping: Send + Sync + Unpin + 'static {
    /// The run, to read.
    fn view(&self) -> View<'_, ReadOnly>;

    /// The run, to write: none if it was mapped read-only.
    fn view_mut(&self) -> Option<View<'_>>;
}

/// Granting pages, and using what was granted to us.
pub trait Grants: Memory {
    /// See [`Grant`].
    type Grant: Grant;
    /// See [`Mapping`].
    type Mapping: Mapping;

    /// Whether [`Grant::end`] can tell that the peer still maps a page. Where it cannot, it always
    /// succeeds, and such a page is kept from use all the same.
    const TELLS_STILL_MAPPED: bool = true;

    /// Lets domain `to` reach every page of `pages`.
    fn grant(
        &self,
        pages: &Self::Pages,
        to: DomId,
        access: Access,
    ) -> Result<Self::Grant, GrantError>;

    /// Maps pages that `from` granted as one run, in the order given: all of them or none.
    fn map(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> Result<Self::Mapping, MapError>;

    /// Maps each of `refs` as a mapping of its own, and pushes the outcome of each, in order, to
    /// `out`. One that fails leaves the others mapped.
    ///
    /// A place may unmap the mappings of one call together, when the last of them is dropped: what
    /// is to be kept for longer than the rest is mapped by a call of its own.
    fn map_each(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<Self::Mapping, MapError>>,
    );

    /// Unmaps many at once, where the place can do that cheaper than one by one.
    fn unmap_each(&self, mappings: Vec<Self::Mapping>) {
        drop(mappings);
    }

    /// Copies between grants and pages of our own, in order; each operation gets its own status.
    ///
    /// # Errors
    /// An errno, when our host could not run the batch at all; the statuses then say nothing.
    fn copy(&self, ops: &mut [CopyOp<'_, Self::Pages>]) -> Result<(), i32>;
}

/// One end of a copy.
#[derive(Debug)]
pub enum CopyEnd<'a, P> {
    /// A page that `domid` granted to us.
    Granted {
        /// The granting domain.
        domid: DomId,
        /// Its grant.
        gref: GrantRef,
        /// Where in that page, in bytes.
        offset: u16,
    },
    /// Pages of our own.
    Local {
        /// The run.
        pages: &'a P,
        /// Where in the run, in bytes.
        offset: usize,
    },
}

impl<P> Clone for CopyEnd<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for CopyEnd<'_, P> {}

/// One copy, within one page at each end.
#[derive(Debug)]
pub struct CopyOp<'a, P> {
    /// Where the bytes come from.
    pub from: CopyEnd<'a, P>,
    /// Where they go.
    pub to: CopyEnd<'a, P>,
    /// How many; offset and length together stay within a page at both ends.
    pub len: u16,
    /// The outcome, filled in by [`Grants::copy`].
    pub status: GrantStatus,
}
