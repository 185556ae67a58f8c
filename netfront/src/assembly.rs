//! Making frames of the slots of the receive ring: bytes in, a frame's shape out, no ring and no
//! memory.
//!
//! A frame may come in several goes, should the backend publish it so; what has come is kept until
//! the rest does.

use core::num::NonZeroU16;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_packet::{Checksum, Gso, GsoKind, Offloads};
use parapet_xen_sys::io::netif::{
    ExtraFlags, ExtraGso, ExtraHash, ExtraInfo, ExtraType, GsoType, NR_SLOTS_MIN, RxFlags,
    RxResponse, RxSlot, Status,
};

use crate::error::Violation;
use crate::transmit::ETHERNET_HEADER;

/// The most pages that a frame may come in: one more than there must be, for backends that put the
/// headers into a page of their own.
pub(crate) const PARTS: usize = NR_SLOTS_MIN + 1;

/// The hash that a backend made of a frame's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash {
    /// What it was made of: `HashType` of `netif.h`.
    pub kind: u8,
    /// Its value.
    pub value: u32,
}

/// Bytes of one of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Part {
    /// The slot, whose page it is.
    pub(crate) slot: u16,
    pub(crate) offset: u16,
    pub(crate) len: u16,
}

/// What the next slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    First,
    Extra,
    Data,
}

/// A frame as far as it has come.
#[derive(Debug)]
pub(crate) struct Assembly {
    parts: [Part; PARTS],
    count: usize,
    next: Next,
    /// Whether data follow the extra information.
    more: bool,
    /// Which kinds of extra information there were, by bit.
    extras: u8,
    pub(crate) len: usize,
    pub(crate) offloads: Offloads,
    pub(crate) hash: Option<Hash>,
    /// The backend says of a part that there is nothing in it.
    failed: bool,
}

/// What has become of the frame with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is more to come.
    More,
    /// That was all of it.
    Whole,
    /// That was all, and it is no frame: the backend failed to deliver it.
    Failed,
}

impl Assembly {
    pub(crate) const fn new() -> Self {
        Assembly {
            parts: [Part {
                slot: 0,
                offset: 0,
                len: 0,
            }; PARTS],
            count: 0,
            next: Next::First,
            more: false,
            extras: 0,
            len: 0,
            offloads: Offloads {
                checksum: Checksum::Unchecked,
                gso: None,
            },
            hash: None,
            failed: false,
        }
    }

    #[inline]
    pub(crate) fn parts(&self) -> &[Part] {
        self.parts.get(..self.count).unwrap_or_default()
    }

    /// Takes the copy of the next slot, of which `slot` is the number.
    #[inline]
    pub(crate) fn take(&mut self, slot: u16, bytes: RxSlot) -> Result<Progress, Violation> {
        match self.next {
            Next::First => {
                self.count = 0;
                self.extras = 0;
                self.len = 0;
                self.failed = false;
                self.hash = None;
                let response: RxResponse = zerocopy::transmute!(bytes);
                self.part(slot, &response)?;
                let flags = response.flags;
                self.offloads = Offloads {
                    checksum: if flags.contains(RxFlags::CSUM_BLANK) {
                        Checksum::Blank
                    } else if flags.contains(RxFlags::DATA_VALIDATED) {
                        Checksum::Intact
                    } else {
                        Checksum::Unchecked
                    },
                    gso: None,
                };
                self.more = flags.contains(RxFlags::MORE_DATA);
                if flags.contains(RxFlags::EXTRA_INFO) {
                    self.next = Next::Extra;
                    return Ok(Progress::More);
                }
            }
            Next::Extra => {
                let extra: ExtraInfo = zerocopy::transmute!(bytes);
                self.extra(extra.extra, bytes)?;
                if extra.flags.contains(ExtraFlags::MORE) {
                    return Ok(Progress::More);
                }
            }
            Next::Data => {
                let response: RxResponse = zerocopy::transmute!(bytes);
                self.part(slot, &response)?;
                self.more = response.flags.contains(RxFlags::MORE_DATA);
            }
        }
        if self.more {
            self.next = Next::Data;
            return Ok(Progress::More);
        }
        self.next = Next::First;
        Ok(if self.failed || self.len < ETHERNET_HEADER {
            Progress::Failed
        } else {
            Progress::Whole
        })
    }

    #[inline]
    fn part(&mut self, slot: u16, response: &RxResponse) -> Result<(), Violation> {
        // The answer to a slot is in that slot: two ids that are one, or the backend is lost.
        if response.id != slot {
            return Err(Violation::NotOutstanding { id: response.id });
        }
        let offset = response.offset;
        let Ok(len) = u16::try_from(response.status) else {
            self.failed = true;
            return match Status(response.status) {
                Status::DROPPED | Status::ERROR => Ok(()),
                Status(other) => Err(Violation::Status(other)),
            };
        };
        if usize::from(offset) + usize::from(len) > PAGE_SIZE {
            return Err(Violation::OutOfPage { offset, len });
        }
        let part = self.parts.get_mut(self.count);
        *part.ok_or(Violation::TooManyParts)? = Part { slot, offset, len };
        self.count += 1;
        // At most `PARTS` pages.
        self.len += usize::from(len);
        Ok(())
    }

    fn extra(&mut self, kind: u8, bytes: RxSlot) -> Result<(), Violation> {
        let stray = Violation::Extra(kind);
        let known = match ExtraType::try_from(kind) {
            Ok(known @ (ExtraType::Gso | ExtraType::Hash)) => known,
            _ => return Err(stray),
        };
        // Once each: so a chain ends.
        let bit = 1 << kind;
        if self.extras & bit != 0 {
            return Err(stray);
        }
        self.extras |= bit;
        if known == ExtraType::Gso {
            let extra: ExtraGso = zerocopy::transmute!(bytes);
            let (size, kind) = (extra.size, extra.gso);
            let bad = Violation::Gso { size, kind };
            let kind = match GsoType::try_from(kind) {
                Ok(GsoType::TcpV4) => GsoKind::TcpV4,
                Ok(GsoType::TcpV6) => GsoKind::TcpV6,
                _ => return Err(bad),
            };
            let size = NonZeroU16::new(size).ok_or(bad)?;
            self.offloads = Offloads {
                checksum: Checksum::Blank,
                gso: Some(Gso { kind, size }),
            };
        } else {
            let extra: ExtraHash = zerocopy::transmute!(bytes);
            self.hash = Some(Hash {
                kind: extra.hash,
                value: u32::from_le_bytes(extra.value),
            });
        }
        Ok(())
    }
}
