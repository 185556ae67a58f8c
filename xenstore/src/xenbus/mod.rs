//! The handshake by which the two ends of a device find and leave each other.
//!
//! Each end has a directory in the store, writes its `state` there, and watches the other's:
//!
//! ```text
//!   frontend: /local/domain/5/device/vbd/51712      backend: /local/domain/0/backend/vbd/5/51712
//!
//!   Initialising                                    Initialising       as the toolstack made them
//!        │                                               │ announce: what it can do
//!        │ backend_waits  ◀───────────────────────── InitWait
//!        │ publish: its rings and ports                  │
//!   Initialised  ─────────────────────────────▶ frontend_ready
//!        │                                               │ connect: maps, binds, says what it is
//!        │ backend_connected  ◀──────────────────── Connected
//!        │ connect                                       │
//!   Connected  ───────────────────────────────▶ frontend_connected
//!        ·                                               ·
//!     Closing ⇄ Closing, Closed ⇄ Closed: whoever begins, the other follows
//! ```
//!
//! A [`Frontend`] or [`Backend`] has its own state as its type: a step that is not in the picture
//! cannot be written. What the *other* end says is data from a peer: a missing directory means
//! that it has closed, a value that makes no sense is its fault ([`Error::Peer`]).
//!
//! Sources: `io/xenbus.h`, `docs/misc/xenstore-paths.pandoc`, and what Linux and libxl do.

mod ends;
mod keys;
#[cfg(test)]
mod tests;
mod toolstack;

use alloc::string::String;

use parapet_xen_sys::io::xenbus::XenbusState;

use crate::client;

pub use ends::{
    Backend, Closed, Closing, Connected, End, Frontend, InitWait, Initialised, Initialising,
};
pub use keys::{Key, Keys};
pub use toolstack::DeviceNodes;

/// Why a step of the handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The store refused something, or is gone.
    #[error(transparent)]
    Store(#[from] client::Error),
    /// The other end wrote what makes no sense: its fault.
    #[error("the other end's {path} {what}")]
    Peer {
        /// The node that it wrote, or did not write.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The other end is closing, or gone.
    #[error("the other end of the device is closing (it is {0:?})")]
    Leaving(XenbusState),
}
