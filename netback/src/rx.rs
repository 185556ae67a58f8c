//! How a guest is given a frame: what of it the guest takes as it is, and the slots that it fills.
//!
//! ```text
//!   [prefix]  GSO_PREFIX | MORE_DATA   only for old frontends     ┐
//!   first     EXTRA_INFO | MORE_DATA   up to a page               │
//!   extra     MORE                     how to cut it              ├─ Form
//!   extra                              its hash                   │
//!   next      MORE_DATA                up to a page               │
//!   last                                                          ┘
//! ```
//!
//! Each of these takes a buffer that the guest has posted, in the order in which they were posted,
//! also those without data: a response is in the slot of its request.
//!
//! Source: `xen/include/public/io/netif.h`.

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_packet::headers::{Headers, Version};
use parapet_packet::{Checksum, Gso, GsoKind, Offloads};
use parapet_xen_sys::io::netif::{
    ExtraFlags, ExtraGso, ExtraHash, ExtraInfo, ExtraType, GsoType, HashAlgorithm, RxFlags,
    RxResponse, RxSlot,
};

use crate::frame::{Hash, Page, Part};

/// How a frontend is told that a packet is to be cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GsoForm {
    /// It does not take such packets.
    #[default]
    None,
    /// By extra information: `feature-gso-tcpv4`.
    Extra,
    /// By a slot before the packet: `feature-gso-tcpv4-prefix`.
    Prefix,
}

/// What a frontend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Receives {
    /// Packets of more than one slot: `feature-sg`.
    pub scatter: bool,
    /// Packets of TCP over IPv4 to be cut into segments.
    pub gso_v4: GsoForm,
    /// The same over IPv6.
    pub gso_v6: GsoForm,
    /// Blank checksums in packets of IPv4: no `feature-no-csum-offload`.
    pub blank_v4: bool,
    /// The same of IPv6: `feature-ipv6-csum-offload`.
    pub blank_v6: bool,
}

/// What has to be done to a frame before its receiver takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Nothing.
    AsIs,
    /// Its checksum has to be made.
    Sum,
    /// It has to be cut into segments, whose checksums have to be made, or not.
    Cut {
        /// Whether.
        sum: bool,
    },
    /// It cannot be made to fit: it is too long.
    TooLong,
    /// It cannot be made to fit: its headers do not go with what is left to be done.
    Malformed,
}

impl Receives {
    fn gso(&self, kind: GsoKind) -> GsoForm {
        match kind {
            GsoKind::TcpV4 => self.gso_v4,
            GsoKind::TcpV6 => self.gso_v6,
        }
    }

    fn blank(&self, version: Version) -> bool {
        match version {
            Version::V4 => self.blank_v4,
            Version::V6 => self.blank_v6,
        }
    }

    /// What has to be done to a frame of `len` bytes with this left to be done.
    #[inline]
    pub fn fit(&self, offloads: Offloads, len: usize, head: &[u8]) -> Fit {
        let fits = self.scatter || len <= PAGE_SIZE;
        if let Some(gso) = offloads.gso {
            let version = match gso.kind {
                GsoKind::TcpV4 => Version::V4,
                GsoKind::TcpV6 => Version::V6,
            };
            let blank = self.blank(version);
            return match self.gso(gso.kind) {
                GsoForm::Extra | GsoForm::Prefix if blank && fits => Fit::AsIs,
                _ => Fit::Cut { sum: !blank },
            };
        }
        if !fits {
            return Fit::TooLong;
        }
        if offloads.checksum != Checksum::Blank || (self.blank_v4 && self.blank_v6) {
            return Fit::AsIs;
        }
        let headers = Headers::parse(head, len);
        match headers.ok().and_then(|headers| headers.transport()) {
            Some((network, _)) if self.blank(network.version) => Fit::AsIs,
            Some(_) => Fit::Sum,
            None => Fit::Malformed,
        }
    }

    /// How it is told what is left to be done to a packet, which it takes as it is.
    pub fn form(&self, offloads: Offloads, hash: Option<Hash>) -> Form {
        Form {
            checksum: offloads.checksum,
            gso: offloads.gso,
            is_prefix: offloads
                .gso
                .is_some_and(|gso| self.gso(gso.kind) == GsoForm::Prefix),
            hash,
        }
    }
}

/// What a receiver is told about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// How its checksum stands.
    pub checksum: Checksum,
    /// How it is to be cut.
    pub gso: Option<Gso>,
    /// That is told by a slot before it.
    pub is_prefix: bool,
    /// Its hash.
    pub hash: Option<Hash>,
}

impl Form {
    /// Slots for a packet of `len` bytes.
    #[inline]
    pub fn slots(&self, len: usize) -> usize {
        len.div_ceil(PAGE_SIZE) + usize::from(self.gso.is_some()) + usize::from(self.hash.is_some())
    }

    /// The slot before the packet, if there is one, as the answer to request `id`.
    pub fn prefix(&self, id: u16) -> Option<RxSlot> {
        let gso = self.gso.filter(|_| self.is_prefix)?;
        Some(zerocopy::transmute!(RxResponse {
            id,
            offset: gso.size.get(),
            flags: RxFlags::GSO_PREFIX | RxFlags::MORE_DATA,
            status: 0,
        }))
    }

    /// What follows the first slot of data.
    #[inline]
    pub fn extras(&self) -> impl Iterator<Item = RxSlot> {
        let gso = self.gso.filter(|_| !self.is_prefix);
        let more = match self.hash {
            Some(_) => ExtraFlags::MORE,
            None => ExtraFlags::empty(),
        };
        let gso = gso.map(|gso| {
            zerocopy::transmute!(ExtraGso {
                extra: ExtraType::Gso as u8,
                flags: more,
                size: gso.size.get(),
                gso: match gso.kind {
                    GsoKind::TcpV4 => GsoType::TcpV4 as u8,
                    GsoKind::TcpV6 => GsoType::TcpV6 as u8,
                },
                ..Default::default()
            })
        });
        let hash = self.hash.map(|hash| {
            zerocopy::transmute!(ExtraHash {
                extra: ExtraType::Hash as u8,
                flags: ExtraFlags::empty(),
                hash: hash.kind,
                algorithm: HashAlgorithm::Toeplitz as u8,
                value: hash.value.to_le_bytes(),
            })
        });
        gso.into_iter().chain(hash)
    }

    /// The flags of a slot of data.
    #[inline]
    pub fn flags(&self, is_first: bool, is_last: bool) -> RxFlags {
        let mut flags = RxFlags::empty();
        if is_first {
            flags = match self.checksum {
                Checksum::Unchecked => flags,
                Checksum::Intact => RxFlags::DATA_VALIDATED,
                Checksum::Blank => RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED,
            };
            if (self.gso.is_some() && !self.is_prefix) || self.hash.is_some() {
                flags |= RxFlags::EXTRA_INFO;
            }
        }
        if !is_last {
            flags |= RxFlags::MORE_DATA;
        }
        flags
    }
}

const _: () = assert!(size_of::<ExtraInfo>() == size_of::<RxSlot>());

/// A run of a frame's bytes that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// In its head.
    Head {
        /// The first.
        from: usize,
        /// How many.
        len: usize,
    },
    /// In one of its parts, or a part of that.
    Part(Part),
}

impl Run {
    /// How many bytes.
    #[expect(clippy::len_without_is_empty, reason = "no run is empty")]
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Run::Head { len, .. } => *len,
            Run::Part(part) => usize::from(part.len),
        }
    }
}

/// The bytes of a frame, from one on, as runs that lie together.
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    head: usize,
    at: usize,
    parts: &'a [Part],
    skip: u16,
}

impl<'a> Runs<'a> {
    /// The bytes from `from` on of a frame that has so many in its head and the others in its
    /// parts.
    #[inline]
    pub fn new(head: usize, parts: &'a [Part], from: usize) -> Self {
        let mut skip = from.saturating_sub(head);
        let mut parts = parts;
        while let [first, rest @ ..] = parts
            && skip >= usize::from(first.len)
        {
            skip -= usize::from(first.len);
            parts = rest;
        }
        Runs {
            head,
            at: from.min(head),
            parts,
            // Less than the length of a part, or of no use.
            skip: skip as u16,
        }
    }

    /// The next run, of no more than `most` bytes, if that is some; nothing at the end.
    #[inline]
    pub fn next(&mut self, most: usize) -> Option<Run> {
        if self.at < self.head {
            let (from, len) = (self.at, most.min(self.head - self.at));
            self.at += len;
            return Some(Run::Head { from, len });
        }
        loop {
            let [part, rest @ ..] = self.parts else {
                return None;
            };
            let left = part.len.saturating_sub(self.skip);
            if left == 0 {
                self.parts = rest;
                self.skip = 0;
                continue;
            }
            let len = left.min(u16::try_from(most).unwrap_or(u16::MAX));
            let run = Part {
                page: part.page,
                // Within the page, as all of the part is.
                offset: part.offset.saturating_add(self.skip),
                len,
            };
            self.skip += len;
            return Some(Run::Part(run));
        }
    }
}

/// Whether a part is in a page of the owner's own.
pub(crate) fn is_local(part: Part) -> bool {
    matches!(part.page, Page::Local(_))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;

    use super::*;

    const ALL: Receives = Receives {
        scatter: true,
        gso_v4: GsoForm::Extra,
        gso_v6: GsoForm::Prefix,
        blank_v4: true,
        blank_v6: true,
    };

    fn gso(kind: GsoKind) -> Offloads {
        Offloads {
            checksum: Checksum::Blank,
            gso: Some(Gso {
                kind,
                size: NonZeroU16::new(1448).unwrap(),
            }),
        }
    }

    #[test]
    fn what_a_frontend_does_not_take_is_done_for_it() {
        let (v4, v6) = (gso(GsoKind::TcpV4), gso(GsoKind::TcpV6));
        assert_eq!(ALL.fit(v4, 60_000, &[]), Fit::AsIs);
        let no_gso = Receives {
            gso_v6: GsoForm::None,
            ..ALL
        };
        assert_eq!(no_gso.fit(v6, 60_000, &[]), Fit::Cut { sum: false });
        let no_sums = Receives {
            blank_v4: false,
            ..ALL
        };
        assert_eq!(no_sums.fit(v4, 60_000, &[]), Fit::Cut { sum: true });
        assert_eq!(no_sums.fit(v6, 60_000, &[]), Fit::AsIs);
        let no_scatter = Receives {
            scatter: false,
            ..ALL
        };
        assert_eq!(no_scatter.fit(v4, 60_000, &[]), Fit::Cut { sum: false });
        assert_eq!(no_scatter.fit(v4, 4096, &[]), Fit::AsIs);
        let plain = Offloads::default();
        assert_eq!(no_scatter.fit(plain, 4096, &[]), Fit::AsIs);
        assert_eq!(no_scatter.fit(plain, 4097, &[]), Fit::TooLong);
        let blank = Offloads {
            checksum: Checksum::Blank,
            gso: None,
        };
        assert_eq!(no_sums.fit(blank, 60, &[0; 60]), Fit::Malformed);
    }

    #[test]
    fn a_packet_takes_a_slot_for_each_page_and_for_whatever_else_is_told() {
        let hash = Some(Hash { kind: 1, value: 7 });
        let slots = |offloads, hash, len| ALL.form(offloads, hash).slots(len);
        let plain = Offloads::default();
        assert_eq!(slots(plain, None, 60), 1);
        assert_eq!(slots(plain, None, 4096), 1);
        assert_eq!(slots(plain, hash, 4097), 3);
        assert_eq!(slots(gso(GsoKind::TcpV4), hash, 65_535), 18);
        assert_eq!(slots(gso(GsoKind::TcpV6), None, 65_535), 17);
    }

    #[test]
    fn segments_are_told_by_extra_information_or_by_a_slot_before() {
        let hash = Some(Hash {
            kind: 1,
            value: 0x0102_0304,
        });
        let form = ALL.form(gso(GsoKind::TcpV4), hash);
        assert_eq!(form.prefix(9), None);
        let extras: Vec<RxSlot> = form.extras().collect();
        assert_eq!(
            extras,
            [[1, 1, 0xa8, 5, 1, 0, 0, 0], [4, 0, 1, 1, 4, 3, 2, 1],]
        );
        let blank = RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED;
        let first = blank | RxFlags::EXTRA_INFO | RxFlags::MORE_DATA;
        assert_eq!(form.flags(true, false), first);
        assert_eq!(form.flags(false, true), RxFlags::empty());

        let form = ALL.form(gso(GsoKind::TcpV6), None);
        assert_eq!(form.prefix(9), Some([9, 0, 0xa8, 5, 0b1_0100, 0, 0, 0]));
        assert_eq!(form.extras().count(), 0);
        assert_eq!(form.flags(true, true), blank);
    }

    proptest! {
        #[test]
        fn the_runs_of_a_frame_are_its_bytes_in_order(
            head in 0usize..256,
            lens in proptest::collection::vec(0u16..5, 0..8),
            from in 0usize..300,
            most in 1usize..7,
        ) {
            let mut parts = Vec::new();
            let mut bytes: Vec<(usize, usize)> = (0..head).map(|at| (usize::MAX, at)).collect();
            for (page, len) in lens.into_iter().enumerate() {
                let part = Part { page: Page::Local(page as u16), offset: 100, len };
                parts.push(part);
                bytes.extend((0..usize::from(len)).map(|at| (page, 100 + at)));
            }
            let mut runs = Runs::new(head, &parts, from);
            let mut found = Vec::new();
            while let Some(run) = runs.next(most) {
                prop_assert!((1..=most).contains(&run.len()));
                match run {
                    Run::Head { from, len } => {
                        found.extend((from..from + len).map(|at| (usize::MAX, at)));
                    }
                    Run::Part(Part { page: Page::Local(page), offset, len }) => {
                        let at = usize::from(offset);
                        found.extend((at..at + usize::from(len)).map(|at| (usize::from(page), at)));
                    }
                    Run::Part(_) => prop_assert!(false),
                }
            }
            prop_assert_eq!(&found[..], bytes.get(from..).unwrap_or_default());
        }
    }
}
