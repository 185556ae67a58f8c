//! What both halves of a vif know of a packet.
//!
//! ```text
//!            offloads            what is still to be done to a packet, as metadata
//!               │
//!   headers ────┼──── checksum   where its headers are · making and checking its sums
//!               │
//!        segment│vnet            cutting it into segments · the header that TAP devices speak
//!               │
//!         hash  ·  mac           which flow it belongs to · who it is for
//! ```
//!
//! Everything here is pure: bytes in, bytes or numbers out, no memory of its own. Bytes are a
//! *head*, the first bytes of a packet copied out of shared memory once, or a run of its payload.
//! A packet comes from a peer that may be malicious: nothing here indexes by what a header says
//! without having checked it.

#![no_std]
#![forbid(unsafe_code)]

pub mod checksum;
pub mod hash;
pub mod headers;
mod mac;
mod offloads;
pub mod segment;
pub mod vnet;

pub use mac::{Mac, NotAMac};
pub use offloads::{Checksum, Gso, GsoKind, Offloads};
