//! The xenstore: the small tree of names and values through which domains find each other.
//!
//! ```text
//!   /                                    every domain has a home; a device has a directory at
//!   ├─ tool                              each of its two ends, and each names the other:
//!   └─ local ─ domain ─┬─ 0 ─ backend ─ vbd ─ 5 ─ 51712 ─┬─ frontend = /local/domain/5/device/...
//!                      │                                 └─ state = 4
//!                      └─ 5 ─ device ─ vbd ─ 51712 ─┬─ backend = /local/domain/0/backend/...
//!                                                   └─ state = 4
//! ```
//!
//! Values are small and mostly text. A node says who may read and write it; a change can be
//! watched for; several can be made at once, in a transaction. One daemon, xenstored, has the tree
//! in its memory, and domains talk to it over a page that they share with it.
//!
//! ```text
//!   xenbus      the handshake of a device's two ends                       no_std
//!     client    a connection, shared by tasks; blocking too ([`client`])   no_std
//!   ─────────── transport: ring, socket, pipe ([`transport`]) ───────────
//!     server    connections and domains, as a value; one task around it    no_std
//!       store   nodes, permissions, watches, transactions: pure            no_std
//!   wire        messages and requests as bytes: pure ([`wire`])            no_std
//!   migration   what a xenstored knows, as bytes: pure ([`migration`])     no_std
//! ```
//!
//! * [`store`] is a data structure, [`wire`] a codec, [`server::Server`] the two put together: none
//!   of them does any input or output. [`migration`] is how one xenstored hands over to the next.
//! * [`server::daemon::Daemon`] is xenstored as a task on any place that has the seam;
//!   `server::socket` (feature `std`) lets local processes in, Debian's tools among them.
//! * [`client::Client`] is what a guest uses over its ring; `client::blocking` (feature `std`) what
//!   a tool uses. `host` (feature `std`) finds the xenstored of the host that the process is on.
//! * [`xenbus`] is what a device driver uses of all this.
//!
//! Without the feature `std`, which is on by default, the crate is `no_std`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod client;
#[cfg(feature = "std")]
pub mod host;
mod mailbox;
pub mod migration;
mod permission;
pub mod server;
pub mod store;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod wire;
pub mod xenbus;

pub use permission::{Access, Entry, Permission};

/// A transaction's number, of one client; zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// Outside any transaction.
    pub const NONE: Self = TransactionId(0);
}
