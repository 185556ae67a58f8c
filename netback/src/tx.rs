//! What a guest says of a packet that it transmits: the chain of slots, read and checked.
//!
//! ```text
//!   first  EXTRA_INFO | MORE_DATA   the packet's size    ┐
//!   extra  MORE                                          │
//!   extra                                                ├─ Packet: slots, ids, offloads …
//!   next   MORE_DATA                its own size         │
//!   last                            its own size         ┘
//! ```
//!
//! Two things can be wrong. A packet that makes no sense ([`Malformed`]) ends where its flags say
//! that it does: all its slots are answered with an error, and the next packet is read. A chain
//! that does not end ([`Broken`]) leaves nobody to say where the next packet begins: the device is
//! closed. Nothing of a slot is read twice (XSA-155): the caller copies each out of the ring once.
//!
//! Sources: `xen/include/public/io/netif.h`; XSA-216 (every slot has its response); XSA-423, 424 and
//! 432 (backends that believed the sizes of a packet's slots).

use std::num::NonZeroU16;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_packet::{Checksum, Gso, GsoKind, Mac, Offloads};
use parapet_ring::Violation;
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::netif::{
    ExtraFlags, ExtraGso, ExtraHash, ExtraInfo, ExtraMulticast, ExtraType, GsoType, HashAlgorithm,
    HashType, TxExtra, TxFlags, TxRequest, TxSlot,
};

use crate::frame::{Hash, PARTS};

/// Slots with data that a packet may have: one more than `netif.h` demands, as in Linux.
pub const SLOTS: usize = PARTS;

/// Slots with data beyond which a chain is none any more: a packet with more than [`SLOTS`], and no
/// more than these, is refused, which old frontends count on.
const CHAIN: usize = SLOTS + 2;

/// The shortest frame: an Ethernet header.
pub const SHORTEST: u16 = 14;

/// Where some of a packet's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot {
    /// The guest's page.
    pub gref: GrantRef,
    /// The first byte in it.
    pub offset: u16,
    /// How many; they are within the page. May be none.
    pub len: u16,
}

/// A change to the multicast groups that the guest wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Listen to it.
    Join(Mac),
    /// Listen to it no more.
    Leave(Mac),
}

/// Why a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// More than [`SLOTS`].
    #[error("it has {0} slots, of which there may be {SLOTS}")]
    Slots(usize),
    /// The slots after the first are together longer than the packet.
    #[error("its slots are longer than it is itself")]
    Sizes,
    /// Its first slot has less than an Ethernet header.
    #[error("{0} bytes in its first slot are less than an Ethernet header")]
    Short(u16),
    /// A slot goes on after the end of its page.
    #[error("{len} bytes at offset {offset} are not within a page")]
    Page {
        /// The first byte.
        offset: u16,
        /// How many.
        len: u16,
    },
    /// There is no such extra information.
    #[error("extra information of type {0} is not known")]
    Extra(u8),
    /// Segments of no size.
    #[error("it is to be cut into segments of size 0")]
    GsoSize,
    /// There is no such way to cut it.
    #[error("it is to be cut in an unknown way ({0})")]
    GsoType(u8),
    /// What is left to be done to it cannot be done to such a packet: a checksum where none is, or
    /// segments of another protocol.
    #[error("what is left to be done to it does not go with its headers")]
    Offloads,
}

/// The chain of slots has no end that we could find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The ring itself is broken.
    #[error(transparent)]
    Ring(#[from] Violation),
    /// A slot says that another follows, and none does.
    #[error("the ring ends in the middle of a packet")]
    Cut,
    /// So many slots are no packet.
    #[error("a packet has more than {CHAIN} slots")]
    Endless,
}

/// A packet to transmit. One of these is used for all packets of a queue, one after the other.
#[derive(Debug, Clone)]
pub struct Packet {
    slots: [Slot; SLOTS],
    ids: [u16; CHAIN],
    count: usize,
    /// Slots of extra information.
    pub extras: u16,
    /// Bytes.
    pub len: u16,
    /// What is left to be done to it.
    pub offloads: Offloads,
    /// It is to be cut into segments, and nobody said that its checksum is blank, as old frontends
    /// forget to: there may be anything in the field.
    pub is_unsummed: bool,
    /// The hash that came with it.
    pub hash: Option<Hash>,
    /// It is no packet, but asks for this.
    pub group: Option<Group>,
}

impl Default for Packet {
    fn default() -> Self {
        Packet {
            slots: [Slot::default(); SLOTS],
            ids: [0; CHAIN],
            count: 0,
            extras: 0,
            len: 0,
            offloads: Offloads::default(),
            is_unsummed: false,
            hash: None,
            group: None,
        }
    }
}

impl Packet {
    /// Where its bytes are, in order.
    #[inline]
    pub fn slots(&self) -> &[Slot] {
        self.slots.get(..self.count).unwrap_or(&self.slots)
    }

    /// The ids of all its slots but those of extra information: of a malformed one too.
    #[inline]
    pub fn ids(&self) -> &[u16] {
        self.ids.get(..self.count).unwrap_or(&self.ids)
    }

    /// Reads a packet, the first slot of which is `first`; the others are had from `next`. All its
    /// slots are taken when this is over, also if it is malformed.
    ///
    /// # Errors
    /// The chain has no end. Inside: the packet makes no sense.
    #[inline]
    pub fn read(
        &mut self,
        first: TxSlot,
        mut next: impl FnMut() -> Result<Option<TxSlot>, Violation>,
    ) -> Result<Result<(), Malformed>, Broken> {
        let first: TxRequest = zerocopy::transmute!(first);
        let flags = first.flags;
        self.count = 0;
        self.extras = 0;
        self.len = first.size;
        self.is_unsummed = false;
        self.hash = None;
        self.group = None;
        self.offloads = Offloads {
            checksum: if flags.contains(TxFlags::CSUM_BLANK) {
                Checksum::Blank
            } else if flags.contains(TxFlags::DATA_VALIDATED) {
                Checksum::Intact
            } else {
                Checksum::Unchecked
            },
            gso: None,
        };
        let mut outcome = Ok(());
        if flags.contains(TxFlags::EXTRA_INFO) {
            outcome = self.read_extras(&mut next)?;
        }
        self.add(&first);
        let mut own = first.size;
        let mut more = flags.contains(TxFlags::MORE_DATA);
        while more {
            if self.count == CHAIN {
                return Err(Broken::Endless);
            }
            let slot: TxRequest = zerocopy::transmute!(next()?.ok_or(Broken::Cut)?);
            more = slot.flags.contains(TxFlags::MORE_DATA);
            self.add(&slot);
            match own.checked_sub(slot.size) {
                Some(rest) => own = rest,
                None => outcome = outcome.and(Err(Malformed::Sizes)),
            }
        }
        if self.group.is_some() {
            // Nobody looks at its data.
            return Ok(outcome);
        }
        Ok(outcome.and_then(|()| self.check(own)))
    }

    #[inline]
    fn add(&mut self, request: &TxRequest) {
        if let Some(slot) = self.slots.get_mut(self.count) {
            *slot = Slot {
                gref: request.gref,
                offset: request.offset,
                len: request.size,
            };
        }
        if let Some(id) = self.ids.get_mut(self.count) {
            *id = request.id;
        }
        self.count += 1;
    }

    /// Checks a chain that has ended, with `own` bytes in its first slot.
    #[inline]
    fn check(&mut self, own: u16) -> Result<(), Malformed> {
        let Some(slots) = self.slots.get_mut(..self.count) else {
            return Err(Malformed::Slots(self.count));
        };
        if own < SHORTEST {
            return Err(Malformed::Short(own));
        }
        if let Some(first) = slots.first_mut() {
            first.len = own;
        }
        match slots
            .iter()
            .find(|slot| usize::from(slot.offset) + usize::from(slot.len) > PAGE_SIZE)
        {
            Some(&Slot { offset, len, .. }) => Err(Malformed::Page { offset, len }),
            None => Ok(()),
        }
    }

    /// Reads slots of extra information until one says that it is the last. Of two of a type the
    /// later counts.
    fn read_extras(
        &mut self,
        next: &mut impl FnMut() -> Result<Option<TxSlot>, Violation>,
    ) -> Result<Result<(), Malformed>, Broken> {
        let mut outcome = Ok(());
        loop {
            // There are no more than the ring has slots.
            let slot: TxExtra = zerocopy::transmute!(next()?.ok_or(Broken::Cut)?);
            self.extras = self.extras.saturating_add(1);
            outcome = outcome.and(self.read_extra(slot.info));
            if !slot.info.flags.contains(ExtraFlags::MORE) {
                return Ok(outcome);
            }
        }
    }

    fn read_extra(&mut self, info: ExtraInfo) -> Result<(), Malformed> {
        const GSO: u8 = ExtraType::Gso as u8;
        const JOIN: u8 = ExtraType::MulticastAdd as u8;
        const LEAVE: u8 = ExtraType::MulticastDel as u8;
        const HASH: u8 = ExtraType::Hash as u8;
        match info.extra {
            GSO => {
                let gso: ExtraGso = zerocopy::transmute!(info);
                let kind = match gso.gso {
                    kind if kind == GsoType::TcpV4 as u8 => GsoKind::TcpV4,
                    kind if kind == GsoType::TcpV6 as u8 => GsoKind::TcpV6,
                    kind => return Err(Malformed::GsoType(kind)),
                };
                let size = NonZeroU16::new(gso.size).ok_or(Malformed::GsoSize)?;
                self.is_unsummed |= self.offloads.checksum != Checksum::Blank;
                self.offloads = Offloads {
                    // Each segment needs its own.
                    checksum: Checksum::Blank,
                    gso: Some(Gso { kind, size }),
                };
            }
            JOIN | LEAVE => {
                let group: ExtraMulticast = zerocopy::transmute!(info);
                self.group = Some(match info.extra {
                    JOIN => Group::Join(Mac(group.addr)),
                    _ => Group::Leave(Mac(group.addr)),
                });
            }
            HASH => {
                let hash: ExtraHash = zerocopy::transmute!(info);
                let known = hash.hash <= HashType::Ipv6Tcp as u8
                    && hash.algorithm == HashAlgorithm::Toeplitz as u8;
                self.hash = known.then_some(Hash {
                    kind: hash.hash,
                    value: u32::from_le_bytes(hash.value),
                });
            }
            other => return Err(Malformed::Extra(other)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u16, offset: u16, size: u16, flags: TxFlags) -> TxSlot {
        zerocopy::transmute!(TxRequest {
            gref: GrantRef(u32::from(id) + 100),
            offset,
            flags,
            id,
            size,
        })
    }

    fn extra<T: zerocopy::IntoBytes + zerocopy::Immutable>(info: &T) -> TxSlot {
        let mut slot = [0; 12];
        slot[..8].copy_from_slice(info.as_bytes());
        slot
    }

    fn gso(kind: u8, size: u16, more: bool) -> TxSlot {
        extra(&ExtraGso {
            extra: ExtraType::Gso as u8,
            flags: if more {
                ExtraFlags::MORE
            } else {
                ExtraFlags::empty()
            },
            size,
            gso: kind,
            ..Default::default()
        })
    }

    /// The packet, and how many slots of `chain` it left.
    fn read(chain: &[TxSlot]) -> (Packet, Result<Result<(), Malformed>, Broken>, usize) {
        let mut packet = Packet::default();
        let mut slots = chain.iter().copied();
        let first = slots.next().unwrap();
        let outcome = packet.read(first, || Ok(slots.next()));
        (packet, outcome, slots.len())
    }

    const MORE: TxFlags = TxFlags::MORE_DATA;
    const NONE: TxFlags = TxFlags::empty();
    const EXTRA: TxFlags = TxFlags::EXTRA_INFO;

    #[test]
    fn the_first_slot_has_what_the_others_leave_of_the_packets_size() {
        let chain = [
            request(7, 10, 1000, MORE),
            request(8, 0, 300, MORE),
            request(9, 4000, 96, NONE),
            request(1, 0, 60, NONE),
        ];
        let (packet, outcome, left) = read(&chain);
        assert_eq!((outcome, left), (Ok(Ok(())), 1));
        assert_eq!(packet.ids(), [7, 8, 9]);
        let lens: Vec<u16> = packet.slots().iter().map(|slot| slot.len).collect();
        assert_eq!((packet.len, lens), (1000, vec![604, 300, 96]));
    }

    #[test]
    fn slots_of_no_length_are_put_up_with_after_the_first() {
        let chain = [
            request(1, 0, 100, MORE),
            request(2, 4096, 0, MORE),
            request(3, 0, 0, NONE),
        ];
        let (packet, outcome, _) = read(&chain);
        assert_eq!(outcome, Ok(Ok(())));
        assert_eq!(packet.slots()[0].len, 100);
    }

    #[test]
    fn sizes_that_do_not_add_up_are_malformed_and_every_slot_is_taken() {
        let chain = [
            request(1, 0, 100, MORE),
            request(2, 0, 90, MORE),
            request(3, 0, 90, MORE),
            request(4, 0, 1, NONE),
        ];
        let (packet, outcome, left) = read(&chain);
        assert_eq!((outcome, left), (Ok(Err(Malformed::Sizes)), 0));
        assert_eq!(packet.ids(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_first_slot_without_a_whole_ethernet_header_is_malformed() {
        for (total, rest) in [(0, 0), (13, 0), (100, 87)] {
            let chain = [request(1, 0, total, MORE), request(2, 0, rest, NONE)];
            let (_, outcome, _) = read(&chain);
            assert_eq!(outcome, Ok(Err(Malformed::Short(total - rest))));
        }
    }

    #[test]
    fn bytes_past_the_page_are_malformed_wherever_they_are() {
        let first = [request(1, 4000, 97, NONE)];
        let page = Malformed::Page {
            offset: 4000,
            len: 97,
        };
        assert_eq!(read(&first).1, Ok(Err(page)));
        let later = [request(1, 0, 200, MORE), request(2, u16::MAX, 1, NONE)];
        let page = Malformed::Page {
            offset: u16::MAX,
            len: 1,
        };
        assert_eq!(read(&later).1, Ok(Err(page)));
    }

    #[test]
    fn a_packet_of_as_many_slots_as_there_may_be_passes_and_one_more_is_malformed() {
        for count in [SLOTS, SLOTS + 1, CHAIN] {
            let chain: Vec<_> = (0..count as u16)
                .map(|id| match id {
                    0 => request(id, 0, 2000, MORE),
                    _ if usize::from(id) + 1 == count => request(id, 0, 1, NONE),
                    _ => request(id, 0, 1, MORE),
                })
                .collect();
            let (packet, outcome, left) = read(&chain);
            let expected = match count {
                SLOTS => Ok(()),
                _ => Err(Malformed::Slots(count)),
            };
            assert_eq!((outcome, left), (Ok(expected), 0));
            assert_eq!(packet.ids().len(), count, "all of them are answered");
        }
    }

    #[test]
    fn a_chain_of_slots_without_end_is_broken() {
        let mut chain = vec![request(0, 0, 2000, MORE)];
        chain.extend((1..100).map(|id| request(id, 0, 1, MORE)));
        assert_eq!(read(&chain).1, Err(Broken::Endless));
    }

    #[test]
    fn a_chain_that_the_ring_ends_in_is_broken() {
        assert_eq!(read(&[request(0, 0, 60, MORE)]).1, Err(Broken::Cut));
        assert_eq!(read(&[request(0, 0, 60, EXTRA)]).1, Err(Broken::Cut));
    }

    #[test]
    fn extra_information_without_end_is_broken() {
        let mut chain = vec![request(0, 0, 60, EXTRA)];
        chain.extend((0..255).map(|_| gso(1, 1448, true)));
        assert_eq!(read(&chain).1, Err(Broken::Cut));
    }

    #[test]
    fn extra_information_of_an_unknown_type_is_malformed() {
        for kind in [0, 5, 255] {
            let info = ExtraInfo {
                extra: kind,
                ..Default::default()
            };
            let chain = [request(0, 0, 60, EXTRA), extra(&info)];
            let (packet, outcome, left) = read(&chain);
            assert_eq!((outcome, left), (Ok(Err(Malformed::Extra(kind))), 0));
            assert_eq!((packet.ids().len(), packet.extras), (1, 1));
        }
    }

    #[test]
    fn segments_of_no_size_or_unknown_kind_are_malformed() {
        let of = |kind, size| read(&[request(0, 0, 60, EXTRA), gso(kind, size, false)]).1;
        assert_eq!(of(1, 0), Ok(Err(Malformed::GsoSize)));
        assert_eq!(of(0, 1448), Ok(Err(Malformed::GsoType(0))));
        assert_eq!(of(3, 1448), Ok(Err(Malformed::GsoType(3))));
    }

    #[test]
    fn extras_come_between_the_first_slot_and_the_second() {
        let hash = ExtraHash {
            extra: ExtraType::Hash as u8,
            hash: HashType::Ipv4Tcp as u8,
            algorithm: HashAlgorithm::Toeplitz as u8,
            value: [4, 3, 2, 1],
            ..Default::default()
        };
        let chain = [
            request(1, 0, 3000, MORE | EXTRA | TxFlags::DATA_VALIDATED),
            gso(2, 1440, true),
            extra(&hash),
            request(2, 0, 2000, NONE),
        ];
        let (packet, outcome, left) = read(&chain);
        assert_eq!((outcome, left), (Ok(Ok(())), 0));
        let gso = packet.offloads.gso.unwrap();
        assert_eq!((gso.kind, gso.size.get()), (GsoKind::TcpV6, 1440));
        assert_eq!(packet.offloads.checksum, Checksum::Blank);
        let hash = packet.hash.unwrap();
        assert_eq!((hash.kind, hash.value), (1, 0x0102_0304));
        assert_eq!((packet.extras, packet.ids()), (2, &[1, 2][..]));
    }

    #[test]
    fn one_packet_leaves_nothing_for_the_next() {
        let mut packet = Packet::default();
        let mut rest = [gso(1, 1448, false)].into_iter();
        let first = request(1, 0, 60, EXTRA);
        assert_eq!(packet.read(first, || Ok(rest.next())), Ok(Ok(())));
        assert_eq!(
            packet.read(request(2, 0, 64, NONE), || Ok(None)),
            Ok(Ok(()))
        );
        assert_eq!(packet.offloads, Offloads::default());
        assert_eq!((packet.extras, packet.ids()), (0, &[2][..]));
    }

    #[test]
    fn a_wish_for_a_group_is_no_packet_and_needs_no_bytes() {
        let wish = |kind: ExtraType| {
            let info = ExtraMulticast {
                extra: kind as u8,
                addr: [1, 0, 0x5e, 0, 0, 1],
                ..Default::default()
            };
            let (packet, outcome, _) = read(&[request(1, 0, 0, EXTRA), extra(&info)]);
            assert_eq!(outcome, Ok(Ok(())));
            packet.group
        };
        let group = Mac([1, 0, 0x5e, 0, 0, 1]);
        assert_eq!(wish(ExtraType::MulticastAdd), Some(Group::Join(group)));
        assert_eq!(wish(ExtraType::MulticastDel), Some(Group::Leave(group)));
    }
}
