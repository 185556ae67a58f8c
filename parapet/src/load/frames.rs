//! The frames that are sent: TCP over IPv4, with a checksum left blank.

use anyhow::{Context, Result};
use parapet_packet::checksum::{Sum, pseudo};
use parapet_packet::headers::Headers;
use parapet_packet::vnet::VnetHeader;
use parapet_packet::{Checksum, Gso, GsoKind, Mac, Offloads};
use std::num::NonZeroU16;

/// The longest frame that goes over a wire; one that is longer is to be cut.
pub const WIRE: usize = 1514;

/// The longest frame that a stack hands down.
pub const LONGEST: usize = 65226;

/// The shortest: its headers, and ten bytes.
pub const SHORTEST: usize = 64;

/// The most payload in a segment, of frames that are to be cut.
const SEGMENT: NonZeroU16 = NonZeroU16::new(1448).expect("not zero");

/// Ethernet, IPv4 and TCP.
pub const HEADERS: usize = 14 + 20 + 20;

/// A frame of `len` bytes between two stations.
pub fn frame(len: usize, from: Mac, to: Mac) -> Vec<u8> {
    let addresses = [192, 0, 2, 1, 192, 0, 2, 2];
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(to.0);
    bytes.extend(from.0);
    bytes.extend([0x08, 0x00]);
    let mut ip = vec![0x45, 0];
    ip.extend(((len - 14) as u16).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(addresses);
    let sum = Sum::new().and(&ip).finish();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(ip);
    let mut tcp = vec![
        0x20, 0, 0x20, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xFF, 0xFF, 0, 0, 0, 0,
    ];
    let blank = pseudo(&addresses, 6, (len - 34) as u32).folded();
    tcp[16..18].copy_from_slice(&blank.to_be_bytes());
    bytes.extend(tcp);
    bytes.resize(len, 0x5A);
    bytes
}

/// What is left to be done to a frame of `len` bytes.
pub fn offloads(len: usize) -> Offloads {
    Offloads {
        checksum: Checksum::Blank,
        gso: (len > WIRE).then_some(Gso {
            kind: GsoKind::TcpV4,
            size: SEGMENT,
        }),
    }
}

/// The same as a TAP device is told it.
///
/// # Errors
/// None, as long as such frames are well formed.
pub fn vnet(bytes: &[u8]) -> Result<VnetHeader> {
    let head = bytes.get(..HEADERS).context("no room for the headers")?;
    let headers = Headers::parse(head, bytes.len())?;
    Ok(VnetHeader::new(offloads(bytes.len()), &headers)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_all_lengths_are_what_they_are_said_to_be() {
        for len in [SHORTEST, WIRE, LONGEST] {
            let bytes = frame(len, Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
            assert_eq!(bytes.len(), len);
            let headers = Headers::parse(&bytes, len).unwrap();
            assert_eq!(headers.len(), Some(HEADERS));
            let told = vnet(&bytes).unwrap().offloads(&headers).unwrap();
            assert_eq!(told, offloads(len));
        }
    }
}
