//! What stands before the slots, and how large those are.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use parapet_hypervisor::memory::View;
use parapet_xen_sys::io::ring::{self as layout, RingHeader};

use crate::TooSmall;
use crate::notify::Direction;

/// Where the first slot begins.
pub(crate) const SIZE: usize = layout::HEADER_SIZE;

#[inline]
fn word(view: View<'_>, offset: usize) -> &AtomicU32 {
    view.atomic_u32(offset)
        .expect("ring memory is aligned and longer than the header")
}

/// The direction from the frontend to the backend, of the ring that begins where `view` does.
#[inline]
pub(crate) fn requests(view: View<'_>) -> Direction<'_, AtomicU32> {
    Direction {
        name: "req_prod",
        producer: word(view, offset_of!(RingHeader, req_prod)),
        event: word(view, offset_of!(RingHeader, req_event)),
    }
}

/// The direction from the backend to the frontend.
#[inline]
pub(crate) fn responses(view: View<'_>) -> Direction<'_, AtomicU32> {
    Direction {
        name: "rsp_prod",
        producer: word(view, offset_of!(RingHeader, rsp_prod)),
        event: word(view, offset_of!(RingHeader, rsp_event)),
    }
}

/// Makes the header that of an empty ring (`SHARED_RING_INIT`).
pub(crate) fn initialise(view: View<'_>) {
    view.write_bytes(0, &[0; SIZE])
        .expect("ring memory is longer than the header");
    for direction in [requests(view), responses(view)] {
        direction.event.store(1, Ordering::Release);
    }
}

/// How many bytes a slot has: a request or a response, whichever is larger, as in a C union.
pub(crate) const fn slot_size<Out, In>() -> usize {
    const fn max(a: usize, b: usize) -> usize {
        if a > b { a } else { b }
    }
    let size = max(size_of::<Out>(), size_of::<In>());
    assert!(size > 0, "a ring of entries without a size");
    size.next_multiple_of(max(align_of::<Out>(), align_of::<In>()))
}

/// How many slots of `slot` bytes fit behind the header in `len` bytes: a power of two, so that an
/// index is masked and not divided.
pub(crate) fn slots(len: usize, slot: usize) -> Result<u32, TooSmall> {
    match u32::try_from(layout::slots(len, slot)) {
        Ok(slots) if slots > 0 => Ok(slots),
        // None fit. (Or more than 2^31, and nobody has so much memory.)
        _ => Err(TooSmall {
            len,
            needed: SIZE + slot,
        }),
    }
}
