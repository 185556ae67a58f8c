//! The mapping side of grants: what a domain has mapped of others, and copies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::{GrantRef, GrantStatus};

use super::domain::DomainInner;
use super::memory::{Pages, Region};
use crate::memory::{OutOfView, PAGE_SIZE, ReadOnly, View};
use crate::seam::{self, Access, CopyEnd, CopyOp, MapError, Pages as _, StillMapped};

/// Pages of a loopback domain that a peer may reach.
pub struct Grant {
    pub(super) domain: Arc<DomainInner>,
    pub(super) pages: Pages,
    pub(super) refs: Vec<GrantRef>,
}

impl seam::Grant for Grant {
    fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    fn end(mut self) -> Result<(), StillMapped> {
        self.take_back()
    }
}

impl Grant {
    fn take_back(&mut self) -> Result<(), StillMapped> {
        let refs = std::mem::take(&mut self.refs);
        self.domain.grants.end(&refs, &self.pages)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            log::debug!("domain {}: {error}", self.domain.domid);
        }
    }
}

/// A run of a peer's pages, mapped.
pub struct Mapping {
    // Before `uses`: the grant's use ends when its address is gone.
    region: Region,
    _uses: Uses,
}

impl seam::Mapping for Mapping {
    #[inline]
    fn view(&self) -> View<'_, ReadOnly> {
        self.region.view()
    }

    #[inline]
    fn view_mut(&self) -> Option<View<'_>> {
        self.region.view_mut()
    }
}

/// Grants in use by one mapping; given back on drop.
struct Uses {
    mapper: Arc<DomainInner>,
    granter: Arc<DomainInner>,
    refs: Vec<GrantRef>,
    access: Access,
}

impl Drop for Uses {
    fn drop(&mut self) {
        for &gref in &self.refs {
            self.granter.grants.release(gref, self.access);
        }
        self.mapper
            .mappings
            .fetch_sub(self.refs.len(), Ordering::Relaxed);
    }
}

impl DomainInner {
    /// Maps `refs` of domain `from` as one run.
    pub(super) fn map_grants(
        self: &Arc<Self>,
        from: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> Result<Mapping, MapError> {
        let refused = |gref, status| MapError::Refused {
            domid: from,
            gref,
            status,
        };
        let Some(&first) = refs.first() else {
            return Err(MapError::Host(libc::EINVAL));
        };
        if self.is_dying() {
            return Err(MapError::Host(libc::ESRCH));
        }
        let granter = self
            .machine
            .domain(from)
            .ok_or(refused(first, GrantStatus::BAD_DOMAIN))?;
        let mut uses = Uses {
            mapper: Arc::clone(self),
            granter,
            refs: Vec::with_capacity(refs.len()),
            access,
        };
        let mut frames = Vec::with_capacity(refs.len());
        for &gref in refs {
            if self.mappings.fetch_add(1, Ordering::Relaxed) >= self.max_mappings {
                self.mappings.fetch_sub(1, Ordering::Relaxed);
                return Err(refused(gref, GrantStatus::NO_SPACE));
            }
            match uses.granter.grants.acquire(gref, self.domid, access) {
                Ok(frame) => {
                    frames.push(frame);
                    uses.refs.push(gref);
                }
                Err(status) => {
                    self.mappings.fetch_sub(1, Ordering::Relaxed);
                    return Err(refused(gref, status));
                }
            }
        }
        let region = uses
            .granter
            .memory
            .map(&frames, access)
            .map_err(|error| MapError::Host(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(Mapping {
            region,
            _uses: uses,
        })
    }

    /// Does one copy, and says how it went.
    pub(super) fn copy_grant(&self, op: &CopyOp<'_, Pages>) -> GrantStatus {
        if self.is_dying() {
            return GrantStatus::GENERAL_ERROR;
        }
        let len = usize::from(op.len);
        let copied = self.with_end(&op.from, len, Access::ReadOnly, |from| {
            self.with_end(&op.to, len, Access::ReadWrite, |to| {
                from.copy_to(0, to, 0, len)
                    .map_err(|OutOfView { .. }| GrantStatus::BAD_COPY_ARG)
            })
        });
        match copied {
            Ok(()) => GrantStatus::OKAY,
            Err(status) => status,
        }
    }

    /// Runs `work` on the bytes that one end of a copy names.
    fn with_end<R>(
        &self,
        end: &CopyEnd<'_, Pages>,
        len: usize,
        access: Access,
        work: impl FnOnce(View<'_>) -> Result<R, GrantStatus>,
    ) -> Result<R, GrantStatus> {
        let outside = |OutOfView { .. }| GrantStatus::BAD_COPY_ARG;
        match *end {
            CopyEnd::Local { pages, offset } => {
                let within = offset % PAGE_SIZE;
                if within + len > PAGE_SIZE {
                    return Err(GrantStatus::BAD_COPY_ARG);
                }
                work(pages.view().slice(offset, len).map_err(outside)?)
            }
            CopyEnd::Granted {
                domid,
                gref,
                offset,
            } => {
                // Checked before the grant is touched: an entry that is in use only for an instant
                // is still one that its owner may fail to end.
                let offset = usize::from(offset);
                if offset + len > PAGE_SIZE {
                    return Err(GrantStatus::BAD_COPY_ARG);
                }
                let granter = self.machine.domain(domid).ok_or(GrantStatus::BAD_DOMAIN)?;
                let frame = granter.grants.acquire(gref, self.domid, access)?;
                let page = granter.page(frame);
                let done = page.slice(offset, len).map_err(outside).and_then(work);
                granter.grants.release(gref, access);
                done
            }
        }
    }
}
