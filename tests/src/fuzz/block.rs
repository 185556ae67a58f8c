//! blkback's half of the block protocol, and whoever may speak it.

use parapet_blkback::image::{Discard, Sectors};
use parapet_blkback::request::{
    Disk, Layout, MAX_INDIRECT_SEGMENTS, Refusal, Request, Transfer, X86_32, X86_64, check,
};
use parapet_xen_sys::io::blkif::{SEGMENTS_PER_INDIRECT_PAGE, Segment};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A block request in both layouts, and after it what is in its indirect pages: what passes the
/// check lies within the disk and the pages.
pub fn block_request(data: &[u8]) {
    let Some((&[flags, size], data)) = data.split_first_chunk() else {
        return;
    };
    let discard = Discard {
        granularity: 512,
        alignment: 0,
        secure: flags & 4 != 0,
    };
    let disk = Disk {
        sectors: 1 << (size % 64),
        read_only: flags & 1 != 0,
        discard: (flags & 2 != 0).then_some(discard),
    };
    request_of::<X86_64>(data, &disk);
    request_of::<X86_32>(data, &disk);
}

fn request_of<L: Layout>(data: &[u8], disk: &Disk) {
    let Ok((slot, rest)) = L::Slot::read_from_prefix(data) else {
        return;
    };
    let slot = L::read(slot);
    let mut copy = [Segment::new_zeroed(); MAX_INDIRECT_SEGMENTS as usize];
    let copied = rest.len().min(size_of_val(&copy));
    copy.as_mut_bytes()[..copied].copy_from_slice(&rest[..copied]);
    let (request, most) = match check(&slot, disk) {
        Ok(Request::Indirect(indirect)) => {
            let count = indirect.segments;
            assert!((1..=copy.len()).contains(&count));
            assert!((1..=8).contains(&indirect.pages.len()));
            assert!(indirect.pages.len() * SEGMENTS_PER_INDIRECT_PAGE >= count);
            (indirect.check(&copy[..count], disk), count)
        }
        request => (request, 11),
    };
    match request {
        Ok(Request::Read(transfer)) => lies_within(&transfer, disk, most),
        Ok(Request::Write(transfer)) => {
            assert!(!disk.read_only);
            lies_within(&transfer, disk, most);
        }
        Ok(Request::Flush(transfer) | Request::Barrier(transfer)) => {
            assert!(!(transfer.is_some() && disk.read_only));
            transfer.inspect(|transfer| lies_within(transfer, disk, most));
        }
        Ok(Request::Discard { sectors, secure }) => {
            assert!(!disk.read_only);
            assert!(disk.discard.is_some_and(|offer| offer.secure || !secure));
            are_within(sectors, disk);
        }
        Ok(Request::Indirect(_)) => panic!("an indirect request in an indirect request"),
        Err(Refusal::Operation(operation)) => assert!(operation > 3),
        Err(_) => {}
    }
}

fn are_within(sectors: Sectors, disk: &Disk) {
    let end = sectors.first.checked_add(sectors.count);
    assert!(end.is_some_and(|end| end <= disk.sectors));
}

fn lies_within(transfer: &Transfer<'_>, disk: &Disk, most: usize) {
    are_within(transfer.sectors, disk);
    let of_segments: u64 = transfer
        .segments
        .iter()
        .inspect(|segment| assert!(segment.first_sect <= segment.last_sect))
        .inspect(|segment| assert!(segment.last_sect < 8))
        .map(|segment| u64::from(segment.last_sect - segment.first_sect) + 1)
        .sum();
    assert_eq!(of_segments, transfer.sectors.count);
    assert!((1..=most).contains(&transfer.segments.len()));
}
