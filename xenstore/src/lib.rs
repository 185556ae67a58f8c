//! The xenstore.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod client;
mod mailbox;
mod permission;
pub mod server;
pub mod store;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod wire;
pub mod xenbus;

pub use permission::{Access, Permission};

/// A transaction's number, of one client; zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// Outside any transaction.
    pub const NONE: Self = TransactionId(0);
}
