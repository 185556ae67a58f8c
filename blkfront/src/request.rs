//! Requests before they are slots: what was checked, and what a frontend remembers of each while
//! it is outstanding.
//!
//! A [`Work`] cannot be wrong: [`Transfer::new`] is the only way to one, and looks at everything a
//! buffer and a slot set bounds to. What a disk's size sets bounds to is the disk's business.

use core::ops::Range;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::io::blkif::{
    MAX_SEGMENTS_PER_REQUEST, Operation, SECTOR_SIZE, Segment, x86_64,
};

use crate::buffer::{Buffer, Hold, Route};

/// A slot of the ring: the layout `x86_64-abi`.
pub(crate) type Slot = x86_64::Slot;

/// The most bytes that one request carries; only from the start of a page.
pub const MAX_REQUEST: usize = MAX_SEGMENTS_PER_REQUEST * PAGE_SIZE;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the disk into the buffer.
    Read,
    /// From the buffer onto the disk.
    Write,
}

/// A request that no slot can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The range is empty, backwards, or goes past the end of the buffer.
    #[error("bytes {start} to {end} of a buffer of {len}")]
    OutOfBuffer {
        /// Where the range begins.
        start: usize,
        /// Where it ends.
        end: usize,
        /// How long the buffer is.
        len: usize,
    },
    /// The range does not begin and end on the boundary of a sector.
    #[error("bytes {start} to {end} of a buffer are no whole sectors of {SECTOR_SIZE} bytes")]
    Misaligned {
        /// Where the range begins.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// It reaches into more pages than a request can name.
    #[error("{pages} pages in a request that has at most {MAX_SEGMENTS_PER_REQUEST}")]
    TooLong {
        /// How many pages it reaches into.
        pages: usize,
    },
    /// The buffer was granted to another backend, or belongs to another domain: its references
    /// would name whatever else was granted to this one.
    #[error("the buffer was not granted by this domain to this backend")]
    Foreign,
}

/// Bytes to move between the disk and a buffer.
pub(crate) struct Transfer<G: Guest> {
    direction: Direction,
    sector: u64,
    memory: Hold<G>,
    range: Range<usize>,
}

impl<G: Guest> Transfer<G> {
    /// Checks everything but the disk's size.
    #[inline]
    pub(crate) fn new(
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
        route: Route,
    ) -> Result<Self, Unfit> {
        let pages = fit(&range, buffer.len())?;
        if pages.len() > MAX_SEGMENTS_PER_REQUEST {
            return Err(Unfit::TooLong { pages: pages.len() });
        }
        let memory = buffer.hold();
        if memory.route() != route {
            return Err(Unfit::Foreign);
        }
        Ok(Transfer {
            direction,
            sector,
            memory,
            range,
        })
    }

    fn operation(&self) -> Operation {
        match self.direction {
            Direction::Read => Operation::Read,
            Direction::Write => Operation::Write,
        }
    }
}

/// Checks that `range` is whole sectors of a buffer of `len` bytes; the pages it reaches into.
pub(crate) fn fit(range: &Range<usize>, len: usize) -> Result<Range<usize>, Unfit> {
    let Range { start, end } = *range;
    if start >= end || end > len {
        return Err(Unfit::OutOfBuffer { start, end, len });
    }
    if !start.is_multiple_of(SECTOR_SIZE) || !end.is_multiple_of(SECTOR_SIZE) {
        return Err(Unfit::Misaligned { start, end });
    }
    Ok(start / PAGE_SIZE..end.div_ceil(PAGE_SIZE))
}

/// What the backend is to do, checked.
pub(crate) enum Work<G: Guest> {
    Transfer(Transfer<G>),
    Flush,
}

impl<G: Guest> Work<G> {
    /// The operation that the response has to name.
    #[inline]
    pub(crate) fn operation(&self) -> Operation {
        match self {
            Work::Transfer(transfer) => transfer.operation(),
            Work::Flush => Operation::FlushDiskcache,
        }
    }

    /// The slot that asks for it, every byte written.
    #[inline]
    pub(crate) fn slot(&self, id: u64) -> Slot {
        let mut request = x86_64::Request {
            operation: self.operation() as u8,
            id,
            ..Default::default()
        };
        if let Work::Transfer(transfer) = self {
            let segments = segments(&transfer.range).zip(refs_of(transfer));
            for (to, ((first_sect, last_sect), gref)) in request.seg.iter_mut().zip(segments) {
                *to = Segment {
                    gref,
                    first_sect,
                    last_sect,
                    ..Default::default()
                };
                request.nr_segments += 1;
            }
            request.sector_number = transfer.sector;
        }
        zerocopy::transmute!(request)
    }
}

/// The references of the pages that a transfer reaches into, and of those after.
fn refs_of<G: Guest>(
    transfer: &Transfer<G>,
) -> impl Iterator<Item = parapet_xen_sys::GrantRef> + '_ {
    let first = transfer.range.start / PAGE_SIZE;
    transfer.memory.refs().iter().skip(first).copied()
}

/// The first and the last sector in each page that a checked range reaches into.
fn segments(range: &Range<usize>) -> impl Iterator<Item = (u8, u8)> + use<> {
    let Range { start, end } = *range;
    (start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).map(move |page| {
        let page = page * PAGE_SIZE;
        let from = start.max(page) - page;
        let to = end.min(page + PAGE_SIZE) - page;
        // Within a page: 0 to 7.
        (
            (from / SECTOR_SIZE) as u8,
            (to / SECTOR_SIZE).saturating_sub(1) as u8,
        )
    })
}

/// Cuts a range of a buffer into ranges that a request each can carry: all but the last end with a
/// page.
pub(crate) fn pieces(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut start = range.start;
    core::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let end = (start / PAGE_SIZE * PAGE_SIZE + MAX_REQUEST).min(range.end);
        let piece = start..end;
        start = end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_whole_sectors_inside_the_buffer() {
        assert_eq!(fit(&(0..4096), 8192), Ok(0..1));
        assert_eq!(fit(&(3584..8192), 8192), Ok(0..2));
        for range in [0..0, 512..512, 0..8704, 8192..8704] {
            assert!(matches!(fit(&range, 8192), Err(Unfit::OutOfBuffer { .. })));
        }
        assert!(fit(&(usize::MAX - 511..usize::MAX), 8192).is_err());
        for range in [1..512, 0..511, 256..768] {
            assert!(matches!(fit(&range, 8192), Err(Unfit::Misaligned { .. })));
        }
    }

    #[test]
    fn a_segment_names_its_sectors_within_the_page() {
        let of = |range: Range<usize>| segments(&range).collect::<Vec<_>>();
        assert_eq!(of(0..512), [(0, 0)]);
        assert_eq!(of(512..4096), [(1, 7)]);
        assert_eq!(of(3584..8704), [(7, 7), (0, 7), (0, 0)]);
    }

    proptest! {
        #[test]
        fn pieces_cover_a_range_once_and_each_fits_a_request(start in 0usize..64, sectors in 1usize..2000) {
            let range = start * SECTOR_SIZE..(start + sectors) * SECTOR_SIZE;
            let mut at = range.start;
            for piece in pieces(range.clone()) {
                prop_assert_eq!(piece.start, at);
                let pages = fit(&piece, range.end).unwrap();
                prop_assert!(pages.len() <= MAX_SEGMENTS_PER_REQUEST);
                let bytes: usize = segments(&piece)
                    .map(|(first, last)| (usize::from(last - first) + 1) * SECTOR_SIZE)
                    .sum();
                prop_assert_eq!(bytes, piece.len());
                at = piece.end;
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
