//! What a guest kernel does with pages of its own: the entries of its grant table, and the event
//! bits in its shared-info page.
//!
//! Pure functions on a [`View`](crate::memory::View) of those pages, laid out as Xen's headers
//! say, with no allocation and no lock: the loopback domains use them, and so can a unikernel.

pub mod event_bits;
pub mod grant_entries;
