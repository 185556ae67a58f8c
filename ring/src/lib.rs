//! Xen's shared rings.
#![no_std]
#![forbid(unsafe_code)]

mod back;
mod error;
mod front;
mod header;
mod link;
mod memory;
pub mod notify;
mod ring;

pub use back::{Back, Backend};
pub use error::{AttachError, Full, TooSmall, Violation};
pub use front::{Front, Frontend};
pub use link::{BackLink, FrontLink, Link};
pub use memory::{Own, Peer, RingMemory};
pub use ring::{Ring, Side};
