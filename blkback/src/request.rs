//! What a frontend asks for: a copy of a slot becomes a request that can be carried out, or a
//! refusal.
//!
//! Nothing here does I/O or looks at shared memory; it works on a copy, made once (XSA-155). The
//! checks are those that [`crate::image`] relies on.

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_xen_sys::io::blkif::{
    self, MAX_SEGMENTS_PER_REQUEST, Operation, Segment, Status, x86_32, x86_64,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::image::{SECTOR_SIZE, Sectors};

/// Sectors in a page.
const SECTORS_PER_PAGE: u8 = (PAGE_SIZE / SECTOR_SIZE) as u8;

/// How a frontend lays out its slots: what its key `protocol` says.
pub trait Layout: Send + 'static {
    /// A slot's bytes.
    type Slot: FromBytes + Send;
    /// A response.
    type Response: IntoBytes + Immutable + Send;

    /// The fields of the slot.
    fn read(slot: Self::Slot) -> Slot;

    /// The response to the request with this id and operation.
    fn response(id: u64, operation: u8, status: Status) -> Self::Response;
}

/// A slot's fields, whatever the layout they came in, and not checked.
///
/// Its segments mean something for the operations that have them in the slot itself.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// An [`Operation`], or not.
    pub operation: u8,
    /// How many of `segments` are meant.
    pub nr_segments: u8,
    /// The frontend's name for the request.
    pub id: u64,
    /// The disk's first sector.
    pub sector_number: u64,
    /// The memory.
    pub segments: [Segment; MAX_SEGMENTS_PER_REQUEST],
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
                let request: $module::Request = zerocopy::transmute!(slot);
                Slot {
                    operation: request.operation,
                    nr_segments: request.nr_segments,
                    id: request.id,
                    sector_number: request.sector_number,
                    segments: request.seg,
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
}

/// A request that can be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Fill the segments.
    Read(Transfer<'a>),
    /// Write what is in the segments.
    Write(Transfer<'a>),
    /// Make durable what was written before, and, first, what is in the segments if there are any.
    Flush(Option<Transfer<'a>>),
}

/// Sectors of the disk and the memory for them: as many sectors in all segments together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer<'a> {
    /// The sectors, all within the disk.
    pub sectors: Sectors,
    /// The memory: for each, `first_sect <= last_sect <= 7`.
    pub segments: &'a [Segment],
}

/// Why a request is not carried out. None of these closes the device: the frontend is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody knows the operation, or we do not offer it.
    #[error("operation {0} is not offered")]
    Operation(u8),
    /// Too many segments for a slot, or none where there must be some.
    #[error("{0} segments in a request that has 1 to {MAX_SEGMENTS_PER_REQUEST}")]
    SegmentCount(u8),
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
        /// How many the segments have.
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
            Refusal::Operation(_) => Status::EOPNOTSUPP,
            _ => Status::ERROR,
        }
    }
}

/// Checks everything that a slot says against `disk`.
///
/// # Errors
/// The reason to refuse it.
pub fn check<'a>(slot: &'a Slot, disk: &Disk) -> Result<Request<'a>, Refusal> {
    match Operation::try_from(slot.operation) {
        Ok(Operation::Read) => Ok(Request::Read(transfer(slot, disk)?)),
        Ok(Operation::Write) if disk.read_only => Err(Refusal::ReadOnly),
        Ok(Operation::Write) => Ok(Request::Write(transfer(slot, disk)?)),
        Ok(Operation::FlushDiskcache) if slot.nr_segments == 0 => Ok(Request::Flush(None)),
        Ok(Operation::FlushDiskcache) if disk.read_only => Err(Refusal::ReadOnly),
        Ok(Operation::FlushDiskcache) => Ok(Request::Flush(Some(transfer(slot, disk)?))),
        _ => Err(Refusal::Operation(slot.operation)),
    }
}

fn transfer<'a>(slot: &'a Slot, disk: &Disk) -> Result<Transfer<'a>, Refusal> {
    let segments = slot
        .segments
        .get(..usize::from(slot.nr_segments))
        .filter(|segments| !segments.is_empty())
        .ok_or(Refusal::SegmentCount(slot.nr_segments))?;
    let mut count = 0u64;
    for segment in segments {
        let (first, last) = (segment.first_sect, segment.last_sect);
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(Refusal::Segment { first, last });
        }
        count += u64::from(last - first) + 1;
    }
    let first = slot.sector_number;
    match first.checked_add(count) {
        Some(end) if end <= disk.sectors => Ok(Transfer {
            sectors: Sectors { first, count },
            segments,
        }),
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
            nr_segments: segments.len() as u8,
            id: 77,
            sector_number,
            segments: all,
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
            read.nr_segments = count;
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
        for operation in [Operation::Write, Operation::FlushDiskcache] {
            let refused = check(&slot(operation, 0, &one), &disk).map(drop);
            assert_eq!(refused, Err(Refusal::ReadOnly));
        }
        assert!(check(&slot(Operation::Read, 0, &one), &disk).is_ok());
        let flush = slot(Operation::FlushDiskcache, 0, &[]);
        assert_eq!(check(&flush, &disk), Ok(Request::Flush(None)));
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
        for operation in [2, 4, 5, 6, 7, 255] {
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
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_a_transfer_that_passes_lies_in_disk_and_pages(
            mut bytes in any::<[[u8; 28]; 4]>(), disk in 0u64..100_000, tame: bool
        ) {
            if tame {
                bytes[0][0] %= 4;
                bytes[0][1] %= 12;
                bytes[0][18..24].fill(0);
            }
            let slot: x86_64::Slot = zerocopy::transmute!(bytes);
            let mut slot = X86_64::read(slot);
            if tame {
                for segment in &mut slot.segments {
                    segment.first_sect %= 4;
                    segment.last_sect = segment.last_sect % 4 + 4;
                }
            }
            let disk = Disk { sectors: disk, read_only: false };
            let transfer = match check(&slot, &disk) {
                Ok(Request::Read(t) | Request::Write(t) | Request::Flush(Some(t))) => t,
                Ok(Request::Flush(None)) | Err(_) => return Ok(()),
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
