//! The header that TAP devices put before a packet, to say what is left to be done to it.
//!
//! Source: `struct virtio_net_hdr_v1` of the virtio specification (5.1.6), which Linux's
//! `IFF_VNET_HDR` follows, in the host's byte order.

use core::num::NonZeroU16;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::headers::Headers;
use crate::offloads::{Checksum, Gso, GsoKind, Offloads};
use crate::segment::is_fit;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Beside another: the packet has been marked for congestion. It changes nothing for us.
const GSO_ECN: u8 = 0x80;

/// The header, of twelve bytes (`TUNSETVNETHDRSZ`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VnetHeader {
    /// Whether the checksum is blank, or the data are known to be intact.
    pub flags: u8,
    /// How it is to be cut.
    pub gso_type: u8,
    /// How long all headers are, if it is to be cut.
    pub hdr_len: u16,
    /// The most payload in a segment.
    pub gso_size: u16,
    /// Where what the checksum covers begins.
    pub csum_start: u16,
    /// Where the field is, from there.
    pub csum_offset: u16,
    /// One.
    pub num_buffers: u16,
}

/// Offloads and packet do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// A checksum is left to be made that has no place in such a packet.
    #[error("its checksum is to be made, and it is neither TCP nor UDP, or a fragment")]
    Checksum,
    /// It is to be cut as a packet of another protocol.
    #[error("it is to be cut into segments, and is no such packet")]
    Gso,
    /// It is to be cut in a way that vifs do not have.
    #[error("it is to be cut in way {0}, which vifs do not have")]
    GsoType(u8),
}

impl VnetHeader {
    /// How long it is, in bytes.
    pub const LEN: usize = size_of::<VnetHeader>();

    /// Says of a packet with these headers what is left to be done to it.
    ///
    /// # Errors
    /// That cannot be done to such a packet.
    pub fn new(offloads: Offloads, headers: &Headers) -> Result<Self, Disagreement> {
        let mut vnet = VnetHeader {
            num_buffers: 1,
            ..VnetHeader::default()
        };
        match offloads.checksum {
            Checksum::Unchecked => {}
            Checksum::Intact => vnet.flags = DATA_VALID,
            Checksum::Blank => {
                let place = headers.checksum().ok_or(Disagreement::Checksum)?;
                vnet.flags = NEEDS_CSUM;
                // Both are inside a head, which is short.
                vnet.csum_start = place.covers.start as u16;
                vnet.csum_offset = (place.field - place.covers.start) as u16;
            }
        }
        if let Some(gso) = offloads.gso {
            let fit = is_fit(gso, headers) && offloads.checksum == Checksum::Blank;
            let headers = headers.len().filter(|_| fit).ok_or(Disagreement::Gso)?;
            vnet.gso_type = match gso.kind {
                GsoKind::TcpV4 => GSO_TCPV4,
                GsoKind::TcpV6 => GSO_TCPV6,
            };
            vnet.hdr_len = headers as u16;
            vnet.gso_size = gso.size.get();
        }
        Ok(vnet)
    }

    /// What is left to be done to a packet with these headers.
    ///
    /// # Errors
    /// Something that a vif has no words for.
    pub fn offloads(&self, headers: &Headers) -> Result<Offloads, Disagreement> {
        let checksum = if self.flags & NEEDS_CSUM != 0 {
            let place = headers.checksum().ok_or(Disagreement::Checksum)?;
            let start = usize::from(self.csum_start);
            if place.covers.start != start || place.field != start + usize::from(self.csum_offset) {
                return Err(Disagreement::Checksum);
            }
            Checksum::Blank
        } else if self.flags & DATA_VALID != 0 {
            Checksum::Intact
        } else {
            Checksum::Unchecked
        };
        let kind = match self.gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            other => return Err(Disagreement::GsoType(other)),
        };
        let gso = match kind {
            None => None,
            Some(kind) => {
                let size = NonZeroU16::new(self.gso_size).ok_or(Disagreement::Gso)?;
                let gso = Gso { kind, size };
                if !is_fit(gso, headers) || checksum != Checksum::Blank {
                    return Err(Disagreement::Gso);
                }
                Some(gso)
            }
        };
        Ok(Offloads { checksum, gso })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::packet;
    use crate::headers::{Version, protocol};

    #[test]
    fn what_is_said_is_heard() {
        let tcp = packet(Version::V6, protocol::TCP, &[1; 3000]);
        let headers = Headers::parse(&tcp, tcp.len()).unwrap();
        let gso = Gso {
            kind: GsoKind::TcpV6,
            size: NonZeroU16::new(1440).unwrap(),
        };
        let all = [
            Offloads::default(),
            Offloads {
                checksum: Checksum::Intact,
                gso: None,
            },
            Offloads {
                checksum: Checksum::Blank,
                gso: None,
            },
            Offloads {
                checksum: Checksum::Blank,
                gso: Some(gso),
            },
        ];
        for offloads in all {
            let vnet = VnetHeader::new(offloads, &headers).unwrap();
            assert_eq!(vnet.offloads(&headers), Ok(offloads));
        }
        let vnet = VnetHeader::new(all[3], &headers).unwrap();
        assert_eq!((vnet.csum_start, vnet.csum_offset), (54, 16));
        assert_eq!((vnet.hdr_len, vnet.gso_size), (74, 1440));
    }

    #[test]
    fn a_checksum_outside_the_packet_is_refused() {
        let udp = packet(Version::V4, protocol::UDP, &[1; 30]);
        let headers = Headers::parse(&udp, udp.len()).unwrap();
        for (csum_start, csum_offset) in [(34, 16), (0, 6), (34, 0xFFFF), (0xFFFF, 6)] {
            let vnet = VnetHeader {
                flags: NEEDS_CSUM,
                csum_start,
                csum_offset,
                ..VnetHeader::default()
            };
            assert_eq!(vnet.offloads(&headers), Err(Disagreement::Checksum));
        }
    }

    #[test]
    fn segments_of_size_zero_or_of_another_protocol_are_refused() {
        let tcp = packet(Version::V4, protocol::TCP, &[1; 30]);
        let headers = Headers::parse(&tcp, tcp.len()).unwrap();
        let blank = Offloads {
            checksum: Checksum::Blank,
            gso: None,
        };
        let vnet = VnetHeader::new(blank, &headers).unwrap();
        for (gso_type, gso_size) in [(GSO_TCPV4, 0), (GSO_TCPV6, 100)] {
            let vnet = VnetHeader {
                gso_type,
                gso_size,
                ..vnet
            };
            assert_eq!(vnet.offloads(&headers), Err(Disagreement::Gso));
        }
        let vnet = VnetHeader {
            gso_type: 3,
            ..vnet
        };
        assert_eq!(vnet.offloads(&headers), Err(Disagreement::GsoType(3)));
    }
}
