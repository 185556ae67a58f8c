//! Requests before they are slots: what was checked, and what a frontend remembers of each while
//! it is outstanding.
//!
//! A [`Work`] cannot be wrong: [`Transfer::new`] is the only way to one, and looks at everything a
//! buffer and a slot set bounds to. What a disk's size sets bounds to is the disk's business.

use core::ops::Range;

use parapet_hypervisor::memory::{PAGE_SIZE, View};
use parapet_hypervisor::seam::Guest;
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::blkif::{
    DiscardFlags, MAX_SEGMENTS_PER_REQUEST, Operation, SECTOR_SIZE, Segment, x86_64,
};

use crate::buffer::{Buffer, Hold, Route};

/// A slot of the ring: the layout `x86_64-abi`.
pub(crate) type Slot = x86_64::Slot;

/// The most bytes that a request carries whose segments are in its slot; only from the start of a
/// page. Every backend takes that much.
pub const MAX_REQUEST: usize = MAX_SEGMENTS_PER_REQUEST * PAGE_SIZE;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the disk into the buffer.
    Read,
    /// From the buffer onto the disk.
    Write,
}

/// What to do with sectors that are not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erase {
    /// Forget them: what is read there from then on is undefined.
    Forget,
    /// Leave nothing there that could be recovered.
    Secure,
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
    #[error("{pages} pages in a request that has at most {most}")]
    TooLong {
        /// How many pages it reaches into.
        pages: usize,
        /// How many there can be.
        most: usize,
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
    /// Checks everything but the disk's size, and the length of a request: see [`Transfer::cut`].
    #[inline]
    pub(crate) fn new(
        direction: Direction,
        sector: u64,
        buffer: &Buffer<G>,
        range: Range<usize>,
        route: Route,
    ) -> Result<Self, Unfit> {
        fit(&range, buffer.len())?;
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

    /// How many pages it reaches into: as many segments does it need.
    #[inline]
    fn segments(&self) -> usize {
        pages(&self.range).len()
    }

    /// Takes off what a request of `most` segments can carry, if that is not all of it. All but
    /// the last part end with a page.
    #[inline]
    fn cut(&mut self, most: usize) -> Option<Self> {
        let first = pages(&self.range).start;
        let end = first.saturating_add(most.max(1)).saturating_mul(PAGE_SIZE);
        if end >= self.range.end {
            return None;
        }
        let part = Transfer {
            direction: self.direction,
            sector: self.sector,
            memory: self.memory.clone(),
            range: self.range.start..end,
        };
        self.sector = self
            .sector
            .saturating_add((part.range.len() / SECTOR_SIZE) as u64);
        self.range.start = end;
        Some(part)
    }

    /// Its segments, in order.
    #[inline]
    fn each_segment(&self) -> impl Iterator<Item = Segment> + '_ {
        let refs = self.memory.refs().iter().skip(pages(&self.range).start);
        segments(&self.range)
            .zip(refs)
            .map(|((first_sect, last_sect), &gref)| Segment {
                gref,
                first_sect,
                last_sect,
                ..Default::default()
            })
    }
}

/// Checks that `range` is whole sectors of a buffer of `len` bytes.
pub(crate) fn fit(range: &Range<usize>, len: usize) -> Result<(), Unfit> {
    let Range { start, end } = *range;
    if start >= end || end > len {
        return Err(Unfit::OutOfBuffer { start, end, len });
    }
    if !start.is_multiple_of(SECTOR_SIZE) || !end.is_multiple_of(SECTOR_SIZE) {
        return Err(Unfit::Misaligned { start, end });
    }
    Ok(())
}

/// The pages that a range reaches into.
#[inline]
fn pages(range: &Range<usize>) -> Range<usize> {
    range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE)
}

/// What the backend is to do, checked.
pub(crate) enum Work<G: Guest> {
    Transfer(Transfer<G>),
    /// A write after all that was asked for before it and ahead of all after, durable when it is
    /// answered. Without data it is what flushes a disk that cannot be flushed otherwise.
    Barrier(Option<Transfer<G>>),
    Flush,
    Discard {
        sector: u64,
        count: u64,
        how: Erase,
    },
}

impl<G: Guest> Work<G> {
    /// The operation that the response has to name, whichever shape the request has.
    #[inline]
    pub(crate) fn operation(&self) -> Operation {
        match self {
            Work::Transfer(transfer) => transfer.operation(),
            Work::Barrier(_) => Operation::WriteBarrier,
            Work::Flush => Operation::FlushDiskcache,
            Work::Discard { .. } => Operation::Discard,
        }
    }

    /// How many segments it needs.
    #[inline]
    pub(crate) fn segments(&self) -> usize {
        match self {
            Work::Transfer(transfer) | Work::Barrier(Some(transfer)) => transfer.segments(),
            Work::Barrier(None) | Work::Flush | Work::Discard { .. } => 0,
        }
    }

    /// Takes off what one request of `most` segments can carry, if that is not all of it. A
    /// barrier is never cut: half of it would be none.
    #[inline]
    pub(crate) fn cut(&mut self, most: usize) -> Option<Self> {
        match self {
            Work::Transfer(transfer) => transfer.cut(most).map(Work::Transfer),
            _ => None,
        }
    }

    /// The sectors of the disk that it is about, first and how many, and whether it changes them.
    pub(crate) fn extent(&self) -> Option<(u64, u64, bool)> {
        match self {
            Work::Transfer(transfer) | Work::Barrier(Some(transfer)) => Some((
                transfer.sector,
                (transfer.range.len() / SECTOR_SIZE) as u64,
                transfer.direction == Direction::Write,
            )),
            Work::Discard { sector, count, .. } => Some((*sector, *count, true)),
            Work::Barrier(None) | Work::Flush => None,
        }
    }

    /// The slot that asks for it, every byte written; none if its segments do not fit there.
    #[inline]
    pub(crate) fn slot(&self, id: u64) -> Option<Slot> {
        let operation = self.operation() as u8;
        let transfer = match self {
            Work::Transfer(transfer) | Work::Barrier(Some(transfer)) => transfer,
            Work::Discard { sector, count, how } => {
                let request = x86_64::Discard {
                    operation,
                    flag: match how {
                        Erase::Forget => DiscardFlags::empty(),
                        Erase::Secure => DiscardFlags::SECURE,
                    },
                    id,
                    sector_number: *sector,
                    nr_sectors: *count,
                    ..Default::default()
                };
                return Some(zerocopy::transmute!(request));
            }
            Work::Barrier(None) | Work::Flush => {
                let request = x86_64::Request {
                    operation,
                    id,
                    ..Default::default()
                };
                return Some(zerocopy::transmute!(request));
            }
        };
        if transfer.segments() > MAX_SEGMENTS_PER_REQUEST {
            return None;
        }
        let mut request = x86_64::Request {
            operation,
            id,
            sector_number: transfer.sector,
            ..Default::default()
        };
        for (to, segment) in request.seg.iter_mut().zip(transfer.each_segment()) {
            *to = segment;
            request.nr_segments += 1;
        }
        Some(zerocopy::transmute!(request))
    }

    /// The slot that asks for it with its segments in a page of their own, which is `page` of
    /// reference `gref`. What has no segments has no such slot, and neither has what needs more
    /// than fit the page.
    #[inline]
    pub(crate) fn indirect_slot(&self, id: u64, page: View<'_>, gref: GrantRef) -> Option<Slot> {
        let (Work::Transfer(transfer) | Work::Barrier(Some(transfer))) = self else {
            return None;
        };
        for (at, segment) in transfer.each_segment().enumerate() {
            page.write(at * size_of::<Segment>(), &segment).ok()?;
        }
        let mut request = x86_64::Indirect {
            operation: Operation::Indirect as u8,
            indirect_op: self.operation() as u8,
            nr_segments: u16::try_from(transfer.segments()).ok()?,
            id,
            sector_number: transfer.sector,
            ..Default::default()
        };
        *request.indirect_grefs.first_mut()? = gref;
        Some(zerocopy::transmute!(request))
    }
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

/// Cuts the first `len` bytes of something into ranges of at most `most` bytes.
pub(crate) fn pieces(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(most.max(1))
        .map(move |start| start..len.min(start.saturating_add(most)))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_whole_sectors_inside_the_buffer() {
        assert_eq!(fit(&(0..4096), 8192), Ok(()));
        assert_eq!(fit(&(3584..8192), 8192), Ok(()));
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

    #[test]
    fn pieces_cover_a_length_once() {
        let of = |len, most| pieces(len, most).collect::<Vec<_>>();
        assert_eq!(of(10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(of(8, 4), [0..4, 4..8]);
        assert!(of(0, 4).is_empty());
    }

    proptest! {
        #[test]
        fn segments_cover_a_range_once(start in 0usize..64, sectors in 1usize..2000) {
            let range = start * SECTOR_SIZE..(start + sectors) * SECTOR_SIZE;
            let bytes: usize = segments(&range)
                .map(|(first, last)| (usize::from(last - first) + 1) * SECTOR_SIZE)
                .sum();
            prop_assert_eq!(bytes, range.len());
            prop_assert_eq!(segments(&range).count(), pages(&range).len());
        }
    }
}
