//! What a frontend asks for: a copy of a slot becomes a request that can be carried out, or a
//! refusal.
//!
//! Nothing here does I/O or looks at shared memory; it works on copies, each made once (XSA-155).
//! The checks are those that [`crate::image`] relies on.
//!
//! An indirect request names pages in which its segments are, so it is checked in two steps:
//! [`check`] says which pages to copy segments from, and [`Indirect::check`] what the copy asks for.

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::blkif::{
    self, DiscardFlags, MAX_INDIRECT_PAGES_PER_REQUEST, MAX_SEGMENTS_PER_REQUEST, Operation,
    SEGMENTS_PER_INDIRECT_PAGE, Segment, Status, x86_32, x86_64,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::image::{Discard, SECTOR_SIZE, Sectors};

/// Sectors in a page.
const SECTORS_PER_PAGE: u8 = (PAGE_SIZE / SECTOR_SIZE) as u8;

/// Segments that an indirect request may have: what the key `feature-max-indirect-segments` offers,
/// and Linux does.
pub const MAX_INDIRECT_SEGMENTS: u16 = 256;

const _: () = assert!(
    MAX_INDIRECT_SEGMENTS as usize <= MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_INDIRECT_PAGE
);

/// How a frontend lays out its slots: what its key `protocol` says.
pub trait Layout: Send + 'static {
    /// A slot's bytes.
    type Slot: FromBytes + IntoBytes + Immutable + Send;
    /// A response.
    type Response: IntoBytes + Immutable + Send;

    /// The fields of the slot.
    fn read(slot: Self::Slot) -> Slot;

    /// The response to the request with this id and operation.
    fn response(id: u64, operation: u8, status: Status) -> Self::Response;
}

/// A slot's fields, whatever the layout they came in, and not checked.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// An [`Operation`], or not.
    pub operation: u8,
    /// The frontend's name for the request.
    pub id: u64,
    /// The disk's first sector.
    pub sector_number: u64,
    /// What depends on the operation.
    pub body: Body,
}

/// The fields of a slot that depend on its operation.
#[derive(Debug, Clone, Copy)]
pub enum Body {
    /// Of every operation that is not one of those below.
    Direct {
        /// How many of `segments` are meant.
        nr_segments: u8,
        /// The memory.
        segments: [Segment; MAX_SEGMENTS_PER_REQUEST],
    },
    /// Of [`Operation::Discard`].
    Discard {
        /// How.
        flag: DiscardFlags,
        /// How many sectors.
        nr_sectors: u64,
    },
    /// Of [`Operation::Indirect`].
    Indirect {
        /// Read or write, or not.
        operation: u8,
        /// How many segments there are in all pages.
        nr_segments: u16,
        /// The pages.
        pages: [GrantRef; MAX_INDIRECT_PAGES_PER_REQUEST],
    },
}

impl Slot {
    /// The operation that the response names: of an indirect request what is done, as Linux's
    /// frontend expects.
    pub fn answered_as(&self) -> u8 {
        match self.body {
            Body::Indirect { operation, .. } => operation,
            _ => self.operation,
        }
    }
}

/// `x86_64-abi`, and native.
#[derive(Debug, Clone, Copy)]
pub enum X86_64 {}

/// `x86_32-abi`.
#[derive(Debug, Clone, Copy)]
pub enum X86_32 {}

macro_rules! layout {
    ($layout:ident, $module:ident) => {
        impl Layout for $layout {
            type Slot = $module::Slot;
            type Response = $module::Response;

            #[inline]
            fn read(slot: Self::Slot) -> Slot {
                let [operation, ..] = slot;
                let (id, sector_number, body) = match Operation::try_from(operation) {
                    Ok(Operation::Discard) => {
                        let request: $module::Discard = zerocopy::transmute!(slot);
                        let body = Body::Discard {
                            flag: request.flag,
                            nr_sectors: request.nr_sectors,
                        };
                        (request.id, request.sector_number, body)
                    }
                    Ok(Operation::Indirect) => {
                        let request: $module::Indirect = zerocopy::transmute!(slot);
                        let body = Body::Indirect {
                            operation: request.indirect_op,
                            nr_segments: request.nr_segments,
                            pages: request.indirect_grefs,
                        };
                        (request.id, request.sector_number, body)
                    }
                    _ => {
                        let request: $module::Request = zerocopy::transmute!(slot);
                        let body = Body::Direct {
                            nr_segments: request.nr_segments,
                            segments: request.seg,
                        };
                        (request.id, request.sector_number, body)
                    }
                };
                Slot {
                    operation,
                    id,
                    sector_number,
                    body,
                }
            }

            #[inline]
            fn response(id: u64, operation: u8, status: Status) -> Self::Response {
                $module::Response {
                    id,
                    operation,
                    status,
                    // What is padding must not tell the frontend anything (XSA-216).
                    ..Default::default()
                }
            }
        }
    };
}

layout!(X86_64, x86_64);
layout!(X86_32, x86_32);

/// The disk as a frontend may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// How many sectors it has.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How sectors can be forgotten, if that is offered.
    pub discard: Option<Discard>,
}

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Fill the segments.
    Read(Transfer<'a>),
    /// Write what is in the segments.
    Write(Transfer<'a>),
    /// Make durable what was written before, and, after that, what is in the segments if there are
    /// any: they may be the commit of a journal.
    Flush(Option<Transfer<'a>>),
    /// The same, after all that was asked for before it and before all that is asked for after it.
    Barrier(Option<Transfer<'a>>),
    /// Forget the sectors, of which there may be none.
    Discard {
        /// The sectors, all within the disk.
        sectors: Sectors,
        /// Leave nothing that could be recovered.
        secure: bool,
    },
    /// See what the pages say: nothing but the number of segments was checked.
    Indirect(Indirect<'a>),
}

/// Sectors of the disk and the memory for them: as many sectors in all segments together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer<'a> {
    /// The sectors, all within the disk.
    pub sectors: Sectors,
    /// The memory: for each, `first_sect <= last_sect <= 7`.
    pub segments: &'a [Segment],
}

/// A read or a write whose segments are in pages of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indirect<'a> {
    /// Whether it is a write.
    pub writes: bool,
    /// The disk's first sector.
    pub sector_number: u64,
    /// How many segments there are: 1 to [`MAX_INDIRECT_SEGMENTS`].
    pub segments: usize,
    /// The pages that they are in: an array of [`Segment`] in each, all full but the last.
    pub pages: &'a [GrantRef],
}

/// Why a request is not carried out. None of these closes the device: the frontend is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody knows the operation, or we do not offer it.
    #[error("operation {0} is not offered")]
    Operation(u8),
    /// A discard that leaves nothing to be recovered, of a disk that cannot do that.
    #[error("a secure discard is not offered")]
    SecureDiscard,
    /// Too many segments for a slot, or none where there must be some.
    #[error("{0} segments in a request that has 1 to {MAX_SEGMENTS_PER_REQUEST}")]
    SegmentCount(u8),
    /// More segments than we offer, or none.
    #[error("{0} segments in an indirect request that has 1 to {MAX_INDIRECT_SEGMENTS}")]
    IndirectCount(u16),
    /// An indirect request that is neither a read nor a write.
    #[error("operation {0} in an indirect request, which reads or writes")]
    IndirectOperation(u8),
    /// A segment is not within its page.
    #[error("a segment from sector {first} to sector {last} of a page of 8")]
    Segment {
        /// `first_sect`.
        first: u8,
        /// `last_sect`.
        last: u8,
    },
    /// It would pass the end of the disk.
    #[error("{count} sectors from {first} on, of a disk that has {sectors}")]
    OutOfDisk {
        /// `sector_number`.
        first: u64,
        /// How many the request has.
        count: u64,
        /// The disk's size.
        sectors: u64,
    },
    /// A write to a disk that is read-only.
    #[error("a write to a read-only disk")]
    ReadOnly,
}

impl Refusal {
    /// What the response says.
    pub fn status(self) -> Status {
        match self {
            Refusal::Operation(_) | Refusal::SecureDiscard => Status::EOPNOTSUPP,
            _ => Status::ERROR,
        }
    }
}

/// Checks everything that a slot says against `disk`.
///
/// # Errors
/// The reason to refuse it.
pub fn check<'a>(slot: &'a Slot, disk: &Disk) -> Result<Request<'a>, Refusal> {
    let Slot { sector_number, .. } = *slot;
    match &slot.body {
        Body::Direct {
            nr_segments,
            segments,
        } => {
            let transfer = || {
                let meant = segments.get(..usize::from(*nr_segments));
                let meant = meant.filter(|meant| !meant.is_empty());
                let meant = meant.ok_or(Refusal::SegmentCount(*nr_segments))?;
                transfer(sector_number, meant, disk)
            };
            let written = || match disk.read_only {
                true => Err(Refusal::ReadOnly),
                false => transfer(),
            };
            let maybe_written = || match nr_segments {
                0 => Ok(None),
                _ => written().map(Some),
            };
            match Operation::try_from(slot.operation) {
                Ok(Operation::Read) => transfer().map(Request::Read),
                Ok(Operation::Write) => written().map(Request::Write),
                Ok(Operation::FlushDiskcache) => maybe_written().map(Request::Flush),
                Ok(Operation::WriteBarrier) => maybe_written().map(Request::Barrier),
                _ => Err(Refusal::Operation(slot.operation)),
            }
        }
        Body::Discard { flag, nr_sectors } => {
            let offered = disk.discard.filter(|_| !disk.read_only);
            let offered = offered.ok_or(Refusal::Operation(slot.operation))?;
            let secure = flag.contains(DiscardFlags::SECURE);
            if secure && !offered.secure {
                return Err(Refusal::SecureDiscard);
            }
            let sectors = within(sector_number, *nr_sectors, disk)?;
            Ok(Request::Discard { sectors, secure })
        }
        Body::Indirect {
            operation,
            nr_segments,
            pages,
        } => {
            let writes = match Operation::try_from(*operation) {
                Ok(Operation::Read) => false,
                Ok(Operation::Write) => true,
                _ => return Err(Refusal::IndirectOperation(*operation)),
            };
            if !(1..=MAX_INDIRECT_SEGMENTS).contains(nr_segments) {
                return Err(Refusal::IndirectCount(*nr_segments));
            }
            if writes && disk.read_only {
                return Err(Refusal::ReadOnly);
            }
            let segments = usize::from(*nr_segments);
            let pages = pages
                .get(..segments.div_ceil(SEGMENTS_PER_INDIRECT_PAGE))
                .ok_or(Refusal::IndirectCount(*nr_segments))?;
            Ok(Request::Indirect(Indirect {
                writes,
                sector_number,
                segments,
                pages,
            }))
        }
    }
}

impl Indirect<'_> {
    /// Checks `segments`, the copy of what is in its pages, against `disk`: a read or a write.
    ///
    /// # Errors
    /// The reason to refuse it.
    pub fn check<'a>(&self, segments: &'a [Segment], disk: &Disk) -> Result<Request<'a>, Refusal> {
        let transfer = transfer(self.sector_number, segments, disk)?;
        Ok(match self.writes {
            true => Request::Write(transfer),
            false => Request::Read(transfer),
        })
    }
}

fn transfer<'a>(first: u64, segments: &'a [Segment], disk: &Disk) -> Result<Transfer<'a>, Refusal> {
    let mut count = 0u64;
    for segment in segments {
        let (first, last) = (segment.first_sect, segment.last_sect);
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(Refusal::Segment { first, last });
        }
        count += u64::from(last - first) + 1;
    }
    Ok(Transfer {
        sectors: within(first, count, disk)?,
        segments,
    })
}

fn within(first: u64, count: u64, disk: &Disk) -> Result<Sectors, Refusal> {
    match first.checked_add(count) {
        Some(end) if end <= disk.sectors => Ok(Sectors { first, count }),
        _ => Err(Refusal::OutOfDisk {
            first,
            count,
            sectors: disk.sectors,
        }),
    }
}

/// Where in its page a checked segment lies: offset and length in bytes.
pub(crate) fn place(segment: &Segment) -> (usize, usize) {
    let first = usize::from(segment.first_sect);
    let end = usize::from(segment.last_sect) + 1;
    (
        first * blkif::SECTOR_SIZE,
        end.saturating_sub(first) * blkif::SECTOR_SIZE,
    )
}

#[cfg(test)]
mod tests {
    use parapet_xen_sys::GrantRef;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;

    const DISK: Disk = Disk {
        sectors: 1000,
        read_only: false,
        discard: None,
    };

    fn segment(first_sect: u8, last_sect: u8) -> Segment {
        Segment {
            gref: GrantRef(8),
            first_sect,
            last_sect,
            ..Default::default()
        }
    }

    fn slot(operation: Operation, sector_number: u64, segments: &[Segment]) -> Slot {
        let mut all = [segment(9, 0); MAX_SEGMENTS_PER_REQUEST];
        all[..segments.len()].copy_from_slice(segments);
        Slot {
            operation: operation as u8,
            id: 77,
            sector_number,
            body: Body::Direct {
                nr_segments: segments.len() as u8,
                segments: all,
            },
        }
    }

    fn discard(sector_number: u64, nr_sectors: u64, flag: DiscardFlags) -> Slot {
        Slot {
            operation: Operation::Discard as u8,
            body: Body::Discard { flag, nr_sectors },
            ..slot(Operation::Read, sector_number, &[])
        }
    }

    fn indirect(operation: u8, sector_number: u64, nr_segments: u16) -> Slot {
        let pages = std::array::from_fn(|page| GrantRef(page as u32 + 10));
        Slot {
            operation: Operation::Indirect as u8,
            body: Body::Indirect {
                operation,
                nr_segments,
                pages,
            },
            ..slot(Operation::Read, sector_number, &[])
        }
    }

    #[test]
    fn the_sectors_of_all_segments_are_counted() {
        let segments = [segment(0, 7), segment(3, 3), segment(6, 7)];
        let read = slot(Operation::Read, 10, &segments);
        let transfer = Transfer {
            sectors: Sectors {
                first: 10,
                count: 11,
            },
            segments: &segments,
        };
        assert_eq!(check(&read, &DISK), Ok(Request::Read(transfer)));
        let write = slot(Operation::Write, 10, &segments);
        assert_eq!(check(&write, &DISK), Ok(Request::Write(transfer)));
        assert_eq!(place(&segments[2]), (3072, 1024));
    }

    #[test]
    fn the_last_sector_can_be_reached_and_none_after_it() {
        let at = |first| check(&slot(Operation::Read, first, &[segment(0, 7)]), &DISK).is_ok();
        assert!(at(992));
        assert!(!at(993) && !at(1000));
        assert!(!at(u64::MAX) && !at(u64::MAX - 7), "the end wraps");
    }

    #[test]
    fn a_segment_that_is_backwards_or_leaves_its_page_is_refused() {
        for (first, last) in [(1, 0), (0, 8), (8, 8), (255, 255)] {
            let read = slot(Operation::Read, 0, &[segment(0, 7), segment(first, last)]);
            assert_eq!(check(&read, &DISK), Err(Refusal::Segment { first, last }));
        }
    }

    #[test]
    fn no_segments_and_too_many_are_refused() {
        for count in [0, 12, 255] {
            let mut read = slot(Operation::Read, 0, &[segment(0, 7); 11]);
            if let Body::Direct { nr_segments, .. } = &mut read.body {
                *nr_segments = count;
            }
            assert_eq!(check(&read, &DISK), Err(Refusal::SegmentCount(count)));
        }
    }

    #[test]
    fn a_read_only_disk_refuses_every_write_and_allows_reads_and_flushes() {
        let disk = Disk {
            read_only: true,
            ..DISK
        };
        let one = [segment(0, 7)];
        for operation in [
            Operation::Write,
            Operation::FlushDiskcache,
            Operation::WriteBarrier,
        ] {
            let refused = check(&slot(operation, 0, &one), &disk).map(drop);
            assert_eq!(refused, Err(Refusal::ReadOnly));
        }
        assert!(check(&slot(Operation::Read, 0, &one), &disk).is_ok());
        let flush = slot(Operation::FlushDiskcache, 0, &[]);
        assert_eq!(check(&flush, &disk), Ok(Request::Flush(None)));
        let barrier = slot(Operation::WriteBarrier, 0, &[]);
        assert_eq!(check(&barrier, &disk), Ok(Request::Barrier(None)));
        let read = indirect(0, 0, 1);
        assert!(matches!(check(&read, &disk), Ok(Request::Indirect(_))));
        let write = indirect(1, 0, 1);
        assert_eq!(check(&write, &disk), Err(Refusal::ReadOnly));
        let disk = Disk {
            discard: ANY_DISCARD,
            ..disk
        };
        let refusal = check(&discard(0, 8, DiscardFlags::empty()), &disk).unwrap_err();
        assert_eq!(refusal.status(), Status::EOPNOTSUPP);
    }

    const ANY_DISCARD: Option<Discard> = Some(Discard {
        granularity: 4096,
        alignment: 0,
        secure: true,
    });

    #[test]
    fn a_discard_is_of_sectors_of_the_disk_and_secure_only_where_that_is_offered() {
        let plain = Discard {
            granularity: 512,
            alignment: 0,
            secure: false,
        };
        let (none, secure) = (DiscardFlags::empty(), DiscardFlags::SECURE);
        let disk = |discard| Disk { discard, ..DISK };
        let outcome = |slot, offer| check(&slot, &disk(offer)).map(drop);
        assert_eq!(outcome(discard(0, 1000, none), Some(plain)), Ok(()));
        assert_eq!(outcome(discard(1000, 0, none), Some(plain)), Ok(()));
        assert_eq!(outcome(discard(0, 8, secure), ANY_DISCARD), Ok(()));
        let refused = outcome(discard(0, 8, secure), Some(plain)).unwrap_err();
        assert_eq!(refused, Refusal::SecureDiscard);
        assert_eq!(refused.status(), Status::EOPNOTSUPP);
        assert_eq!(
            outcome(discard(0, 8, none), None),
            Err(Refusal::Operation(5))
        );
        for (first, count) in [
            (0, 1001),
            (999, 2),
            (1, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (1 << 63, 1 << 63),
        ] {
            let refused = outcome(discard(first, count, none), Some(plain));
            assert!(
                matches!(refused, Err(Refusal::OutOfDisk { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn an_indirect_request_has_as_many_pages_as_its_segments_need() {
        for (count, pages) in [(1, 1), (256, 1)] {
            match check(&indirect(1, 5, count), &DISK) {
                Ok(Request::Indirect(indirect)) => {
                    assert!(indirect.writes);
                    assert_eq!(indirect.segments, usize::from(count));
                    assert_eq!(indirect.pages.len(), pages);
                }
                other => panic!("{other:?}"),
            }
        }
        let slot = indirect(0, 5, 2);
        let Ok(Request::Indirect(request)) = check(&slot, &DISK) else {
            panic!("it makes sense");
        };
        let segments = [segment(0, 7), segment(1, 1)];
        let transfer = Transfer {
            sectors: Sectors { first: 5, count: 9 },
            segments: &segments,
        };
        assert_eq!(request.check(&segments, &DISK), Ok(Request::Read(transfer)));
        let bad = [segment(0, 7), segment(4, 3)];
        let refused = request.check(&bad, &DISK);
        assert_eq!(refused, Err(Refusal::Segment { first: 4, last: 3 }));
    }

    #[test]
    fn an_indirect_request_of_no_segments_too_many_or_of_anything_but_data_is_refused() {
        for count in [0, 257, 4096, u16::MAX] {
            let refused = check(&indirect(0, 0, count), &DISK).map(drop);
            assert_eq!(refused, Err(Refusal::IndirectCount(count)));
        }
        for operation in [2, 3, 4, 5, 6, 255] {
            let slot = indirect(operation, 0, 1);
            let refusal = check(&slot, &DISK).unwrap_err();
            assert_eq!(refusal, Refusal::IndirectOperation(operation));
            assert_eq!(refusal.status(), Status::ERROR);
            assert_eq!(slot.answered_as(), operation);
        }
    }

    #[test]
    fn a_flush_may_bring_data() {
        let flush = slot(Operation::FlushDiskcache, 999, &[segment(7, 7)]);
        assert!(matches!(
            check(&flush, &DISK),
            Ok(Request::Flush(Some(Transfer { .. })))
        ));
    }

    #[test]
    fn what_is_not_offered_is_told_from_what_went_wrong() {
        for operation in [4, 7, 255] {
            let mut unknown = slot(Operation::Read, 0, &[segment(0, 7)]);
            unknown.operation = operation;
            let refusal = check(&unknown, &DISK).unwrap_err();
            assert_eq!(refusal, Refusal::Operation(operation));
            assert_eq!(refusal.status(), Status::EOPNOTSUPP);
        }
        assert_eq!(Refusal::ReadOnly.status(), Status::ERROR);
    }

    #[test]
    fn both_layouts_say_the_same() {
        let mut wide = x86_64::Request::new_zeroed();
        wide.operation = 1;
        wide.nr_segments = 1;
        wide.id = 0x0102_0304_0506_0708;
        wide.sector_number = 500;
        wide.seg[0] = segment(1, 2);
        let narrow = x86_32::Request {
            operation: wide.operation,
            nr_segments: wide.nr_segments,
            handle: wide.handle,
            id: wide.id,
            sector_number: wide.sector_number,
            seg: wide.seg,
        };
        let wide = X86_64::read(zerocopy::transmute!(wide));
        let narrow = X86_32::read(zerocopy::transmute!(narrow));
        assert_eq!(wide.id, narrow.id);
        assert_eq!(check(&wide, &DISK), check(&narrow, &DISK));
        assert!(check(&wide, &DISK).is_ok());

        let wide = x86_64::Discard {
            operation: 5,
            flag: DiscardFlags::SECURE,
            id: 9,
            sector_number: 7,
            nr_sectors: 0x1_0000_0001,
            ..Default::default()
        };
        let narrow = x86_32::Discard {
            operation: 5,
            flag: DiscardFlags::SECURE,
            id: 9,
            sector_number: 7,
            nr_sectors: 0x1_0000_0001,
            ..Default::default()
        };
        let of = |slot: Slot| match slot.body {
            Body::Discard { flag, nr_sectors } => {
                (slot.id, slot.sector_number, flag.bits(), nr_sectors)
            }
            other => panic!("{other:?}"),
        };
        let expected = (9, 7, 1, 0x1_0000_0001);
        assert_eq!(of(X86_64::read(zerocopy::transmute!(wide))), expected);
        assert_eq!(of(X86_32::read(zerocopy::transmute!(narrow))), expected);

        let grefs: [GrantRef; 8] = std::array::from_fn(|page| GrantRef(page as u32));
        let wide = x86_64::Indirect {
            operation: 6,
            indirect_op: 1,
            nr_segments: 300,
            id: 9,
            sector_number: 7,
            indirect_grefs: grefs,
            ..Default::default()
        };
        let narrow = x86_32::Indirect {
            operation: 6,
            indirect_op: 1,
            nr_segments: 300,
            id: 9,
            sector_number: 7,
            indirect_grefs: grefs,
            ..Default::default()
        };
        let of = |slot: Slot| match slot.body {
            Body::Indirect {
                operation,
                nr_segments,
                pages,
            } => (
                slot.id,
                slot.sector_number,
                operation,
                nr_segments,
                pages,
                slot.answered_as(),
            ),
            other => panic!("{other:?}"),
        };
        let expected = (9, 7, 1, 300, grefs, 1);
        assert_eq!(of(X86_64::read(zerocopy::transmute!(wide))), expected);
        assert_eq!(of(X86_32::read(zerocopy::transmute!(narrow))), expected);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_a_transfer_that_passes_lies_in_disk_and_pages(
            mut bytes in any::<[[u8; 28]; 4]>(), disk in 0u64..100_000, tame: bool
        ) {
            if tame {
                bytes[0][0] %= 7;
                bytes[0][1] %= 12;
                bytes[0][18..24].fill(0);
            }
            let slot: x86_64::Slot = zerocopy::transmute!(bytes);
            let mut slot = X86_64::read(slot);
            if let Body::Direct { segments, .. } = &mut slot.body && tame {
                for segment in segments {
                    segment.first_sect %= 4;
                    segment.last_sect = segment.last_sect % 4 + 4;
                }
            }
            let disk = Disk { sectors: disk, read_only: false, discard: ANY_DISCARD };
            let segments = [Segment::default(); 256];
            let request = match check(&slot, &disk) {
                Ok(Request::Indirect(indirect)) => {
                    prop_assert!((1..=256).contains(&indirect.segments));
                    prop_assert!(indirect.pages.len() * 512 >= indirect.segments);
                    indirect.check(&segments[..indirect.segments], &disk)
                }
                direct => direct,
            };
            let transfer = match request {
                Ok(Request::Read(t) | Request::Write(t)) => t,
                Ok(Request::Flush(Some(t)) | Request::Barrier(Some(t))) => t,
                Ok(Request::Discard { sectors: Sectors { first, count }, .. }) => {
                    prop_assert!(u128::from(first) + u128::from(count) <= disk.sectors.into());
                    return Ok(());
                }
                Ok(_) | Err(_) => return Ok(()),
            };
            let Sectors { first, count } = transfer.sectors;
            prop_assert!(u128::from(first) + u128::from(count) <= u128::from(disk.sectors));
            let mut bytes = 0;
            for segment in transfer.segments {
                let (offset, len) = place(segment);
                prop_assert!(len > 0 && offset + len <= PAGE_SIZE);
                bytes += len;
            }
            prop_assert_eq!(bytes, count as usize * SECTOR_SIZE);
        }
    }
}
