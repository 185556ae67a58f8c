//! What is still to be done to a packet.

use core::num::NonZeroU16;

/// What a stack has left to whoever comes after it, which travels beside the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// How its transport checksum stands.
    pub checksum: Checksum,
    /// How it is to be cut into segments, if it is longer than one. Each segment then needs its
    /// own checksum, so [`Offloads::checksum`] is [`Checksum::Blank`].
    pub gso: Option<Gso>,
}

/// How a packet's transport checksum stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// It is there, and nobody has checked it: as a packet comes off a wire.
    #[default]
    Unchecked,
    /// The data are known to be intact, whatever the field says.
    Intact,
    /// It is left to be made: the field holds the sum of the pseudo header. The data are known to
    /// be intact, since they have not been on a wire.
    Blank,
}

/// How a packet is to be cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// By which protocol.
    pub kind: GsoKind,
    /// The most payload in a segment, in bytes: TCP's MSS.
    pub size: NonZeroU16,
}

/// By which protocol a packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}
