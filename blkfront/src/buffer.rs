//! Memory for requests: pages that the backend may reach as long as the buffer lives.
//!
//! A buffer is granted once, when it is made, for reading and writing, and ended when it goes: on
//! the way of a request nothing is granted, and a backend that keeps grants mapped
//! (`feature-persistent`) maps each page once.
//!
//! A request holds the memory of its buffer. So a buffer may be dropped while the backend works on
//! it; the pages go when the request is answered. Should the backend still have them mapped then,
//! they are quarantined by the seam, and not given to anybody else (XSA-396).

use alloc::sync::{Arc, Weak};
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use parapet_hypervisor::memory::View;
use parapet_hypervisor::seam::{Access, Grant, GrantError, Guest, OutOfMemory, Pages};
use parapet_xen_sys::{DomId, GrantRef};

/// Why there is no buffer to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// Our domain has no free run of pages.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// They cannot be granted.
    #[error(transparent)]
    Grant(#[from] GrantError),
}

/// Who grants to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) frontend: DomId,
    pub(crate) backend: DomId,
}

/// A run of pages, contiguous for us, that a backend may read and write.
///
/// The backend may change the bytes at any moment, not only while it reads into them; they are
/// reached as all shared memory is, through a [`View`].
pub struct Buffer<G: Guest>(Hold<G>);

impl<G: Guest> Buffer<G> {
    /// Takes `pages` pages and grants them to domain `backend`.
    ///
    /// # Errors
    /// There is no memory, or no free grant.
    pub fn new(guest: &G, backend: DomId, pages: usize) -> Result<Self, BufferError> {
        Self::with_home(guest, backend, pages, Weak::new())
    }

    fn with_home(
        guest: &G,
        backend: DomId,
        pages: usize,
        home: Weak<Shelf<G>>,
    ) -> Result<Self, BufferError> {
        let pages = guest.allocate(pages)?;
        let grant = guest.grant(&pages, backend, Access::ReadWrite)?;
        let route = Route {
            frontend: guest.domid(),
            backend,
        };
        Ok(Buffer(Hold(Arc::new(Granted {
            grant,
            pages,
            route,
            holders: AtomicUsize::new(1),
            home,
        }))))
    }

    /// The bytes.
    #[inline]
    pub fn view(&self) -> View<'_> {
        self.0.0.pages.view()
    }

    /// How many bytes there are: whole pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A claim on the memory, for a request.
    #[inline]
    pub(crate) fn hold(&self) -> Hold<G> {
        self.0.clone()
    }
}

impl<G: Guest> fmt::Debug for Buffer<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.view()).finish()
    }
}

struct Granted<G: Guest> {
    grant: G::Grant,
    pages: G::Pages,
    route: Route,
    /// How many [`Hold`]s there are: the memory may be used anew when there is none.
    holders: AtomicUsize,
    /// The pool it belongs to, if it does and the pool still is.
    home: Weak<Shelf<G>>,
}

/// A claim on a buffer's memory: the buffer has one, and so does each request that uses it.
pub(crate) struct Hold<G: Guest>(Arc<Granted<G>>);

impl<G: Guest> Hold<G> {
    pub(crate) fn route(&self) -> Route {
        self.0.route
    }

    /// The references of its pages, in order.
    #[inline]
    pub(crate) fn refs(&self) -> &[GrantRef] {
        self.0.grant.refs()
    }
}

impl<G: Guest> Clone for Hold<G> {
    #[inline]
    fn clone(&self) -> Self {
        self.0.holders.fetch_add(1, Ordering::Relaxed);
        Hold(Arc::clone(&self.0))
    }
}

impl<G: Guest> Drop for Hold<G> {
    #[inline]
    fn drop(&mut self) {
        // Release: what we did to the bytes comes before what their next user does. Acquire: so
        // does what the other holders did.
        if self.0.holders.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(home) = self.0.home.upgrade()
        {
            // A pool that is full lets it go.
            let _ = home.push(Arc::clone(&self.0));
        }
    }
}

type Shelf<G> = ArrayQueue<Arc<Granted<G>>>;

/// Buffers of one size to be used again and again: made when there is none, back in the pool when
/// nobody holds them any more, neither a caller nor a request.
pub struct Pool<G: Guest> {
    guest: G,
    backend: DomId,
    pages: usize,
    shelf: Arc<Shelf<G>>,
}

impl<G: Guest> Pool<G> {
    /// A pool that keeps at most `keep` buffers (at least one) of `pages` pages while nobody uses
    /// them. It has none yet.
    pub fn new(guest: &G, backend: DomId, pages: usize, keep: usize) -> Self {
        Pool {
            guest: guest.clone(),
            backend,
            pages,
            shelf: Arc::new(ArrayQueue::new(keep.max(1))),
        }
    }

    /// How many pages its buffers have.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// A buffer. What its last user left is still in it; the backend has seen that already.
    ///
    /// # Errors
    /// The pool is empty, and a new one cannot be made.
    pub fn take(&self) -> Result<Buffer<G>, BufferError> {
        match self.shelf.pop() {
            Some(granted) => {
                granted.holders.store(1, Ordering::Relaxed);
                Ok(Buffer(Hold(granted)))
            }
            None => Buffer::with_home(
                &self.guest,
                self.backend,
                self.pages,
                Arc::downgrade(&self.shelf),
            ),
        }
    }
}

impl<G: Guest> fmt::Debug for Pool<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("pages", &self.pages)
            .field("idle", &self.shelf.len())
            .finish_non_exhaustive()
    }
}
