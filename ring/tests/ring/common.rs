//! What the tests of this crate share.

use core::mem::offset_of;
use std::sync::atomic::Ordering;

use parapet_hypervisor::memory::{PAGE_SIZE, Scratch};
use parapet_ring::{Back, Front, Own};
use parapet_xen_sys::io::ring::RingHeader;

/// As long as a block request, the longest that any protocol has; one that straddles pages.
pub(crate) type Request = [u32; 28];
/// Shorter than a request, as a response usually is.
pub(crate) type Response = [u32; 4];

pub(crate) type TestFront = Front<Own<Scratch>, Request, Response>;
pub(crate) type TestBack = Back<Own<Scratch>, Request, Response>;

/// The offsets of the four words that the two ends synchronise on.
pub(crate) const REQ_PROD: usize = offset_of!(RingHeader, req_prod);
pub(crate) const REQ_EVENT: usize = offset_of!(RingHeader, req_event);
pub(crate) const RSP_PROD: usize = offset_of!(RingHeader, rsp_prod);
pub(crate) const RSP_EVENT: usize = offset_of!(RingHeader, rsp_event);

/// A request that tells in every word which one it is.
pub(crate) fn request(number: u32) -> Request {
    core::array::from_fn(|i| number.wrapping_mul(31).wrapping_add(i as u32))
}

/// A response that tells in every word which one it is.
pub(crate) fn response(number: u32) -> Response {
    core::array::from_fn(|i| number.wrapping_mul(37).wrapping_add(i as u32))
}

/// What a peer does that does not use the ring as it should.
pub(crate) fn scribble(memory: &Scratch, offset: usize, value: u32) {
    memory
        .view()
        .atomic_u32(offset)
        .unwrap()
        .store(value, Ordering::SeqCst);
}

/// What is in the shared page.
pub(crate) fn peek(memory: &Scratch, offset: usize) -> u32 {
    memory.view().load_u32(offset, Ordering::SeqCst).unwrap()
}

/// Both ends of a ring over `pages` pages on which `start` requests have come and gone.
pub(crate) fn pair(pages: usize, start: u32) -> (TestFront, TestBack, Scratch) {
    let memory = Scratch::new(pages * PAGE_SIZE);
    drop(TestFront::new(Own(memory.clone())).unwrap());
    scribble(&memory, REQ_PROD, start);
    scribble(&memory, RSP_PROD, start);
    scribble(&memory, REQ_EVENT, start.wrapping_add(1));
    scribble(&memory, RSP_EVENT, start.wrapping_add(1));
    let front = TestFront::attach(Own(memory.clone())).unwrap();
    let back = TestBack::attach_at(Own(memory.clone()), start).unwrap();
    (front, back, memory)
}
