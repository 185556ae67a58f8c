//! Why frames are dropped, and how many were.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a frame went nowhere. Every frame that comes in goes out, or is counted under one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Drop {
    /// The guest's request made no sense, and was answered with an error.
    Malformed,
    /// The guest's page could not be read or written.
    BadGrant,
    /// It came from an address that the vif may not use.
    Spoofed,
    /// The network has nobody to give it to, or the two may not talk to each other.
    NoWay,
    /// The receiver has no room, or does not take what waits for it.
    ReceiverFull,
    /// The receiver is stalled: it has posted no buffers for long.
    ReceiverStalled,
    /// The receiver cannot take a frame so long.
    TooLong,
    /// The receiver does not listen to this multicast group.
    Multicast,
    /// The host has no memory or the device no room for it.
    Host,
    /// The vif went away, while it was on its way.
    Gone,
}

impl Drop {
    /// All of them.
    pub const ALL: [Drop; 10] = [
        Drop::Malformed,
        Drop::BadGrant,
        Drop::Spoofed,
        Drop::NoWay,
        Drop::ReceiverFull,
        Drop::ReceiverStalled,
        Drop::TooLong,
        Drop::Multicast,
        Drop::Host,
        Drop::Gone,
    ];

    /// Its name in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Drop::Malformed => "malformed",
            Drop::BadGrant => "bad-grant",
            Drop::Spoofed => "spoofed",
            Drop::NoWay => "no-way",
            Drop::ReceiverFull => "receiver-full",
            Drop::ReceiverStalled => "receiver-stalled",
            Drop::TooLong => "too-long",
            Drop::Multicast => "multicast",
            Drop::Host => "host",
            Drop::Gone => "gone",
        }
    }
}

/// How many frames were dropped, by reason. Anybody may count and read.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; Drop::ALL.len()]);

impl Drops {
    /// Counts frames that were dropped.
    pub fn count(&self, why: Drop, frames: u64) {
        self.0[why as usize].fetch_add(frames, Ordering::Relaxed);
    }

    /// How many were dropped for this reason.
    pub fn of(&self, why: Drop) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }

    /// How many were dropped.
    pub fn total(&self) -> u64 {
        Drop::ALL.iter().map(|&why| self.of(why)).sum()
    }
}
