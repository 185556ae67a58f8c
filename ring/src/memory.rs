//! The memory that a ring lives in: ours and granted, or the peer's and mapped.

use parapet_hypervisor::memory::View;
use parapet_hypervisor::seam::{Mapping, Pages};

/// Memory that a ring can live in: a run of pages that both sides may write.
pub trait RingMemory: Send + Unpin {
    /// All of it. It begins on a page boundary, and is the same memory at every call.
    fn view(&self) -> View<'_>;
}

/// Pages of our own, which the peer has mapped: what a frontend makes its ring of.
#[derive(Debug, Clone)]
pub struct Own<P: Pages>(pub P);

impl<P: Pages> RingMemory for Own<P> {
    #[inline]
    fn view(&self) -> View<'_> {
        self.0.view()
    }
}

/// The peer's pages, which we have mapped: where a backend finds its ring.
#[derive(Debug)]
pub struct Peer<M: Mapping>(M);

impl<M: Mapping> Peer<M> {
    /// Takes a mapping that may be written.
    ///
    /// # Errors
    /// Gives it back if it is read-only.
    pub fn new(mapping: M) -> Result<Self, M> {
        if mapping.view_mut().is_some() {
            Ok(Peer(mapping))
        } else {
            Err(mapping)
        }
    }

    /// Gives the mapping back.
    pub fn into_inner(self) -> M {
        self.0
    }
}

impl<M: Mapping> RingMemory for Peer<M> {
    #[inline]
    fn view(&self) -> View<'_> {
        self.0
            .view_mut()
            .expect("a mapping that was writable stays so")
    }
}
