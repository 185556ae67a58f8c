//! The byte rings: a stream each way, at any counts, and with a peer that lies about them.

use core::mem::offset_of;
use std::collections::VecDeque;

use parapet_hypervisor::memory::{PAGE_SIZE, Scratch};
use parapet_ring::bytes::{Console, Layout, Xenstore};
use parapet_ring::{ByteRing, ConsoleRing, End, Own, TooSmall, Violation, XenstoreRing};
use parapet_xen_sys::io::console::{self, ConsoleInterface};
use parapet_xen_sys::io::xs_wire::{ConnectionState, DomainInterface, RingError, ServerFeatures};
use proptest::prelude::*;

use crate::common::{peek, scribble};

const XENSTORE_COUNTS: [usize; 4] = [
    offset_of!(DomainInterface, req_cons),
    offset_of!(DomainInterface, req_prod),
    offset_of!(DomainInterface, rsp_cons),
    offset_of!(DomainInterface, rsp_prod),
];

const CONSOLE_COUNTS: [usize; 4] = [
    offset_of!(ConsoleInterface, out_cons),
    offset_of!(ConsoleInterface, out_prod),
    offset_of!(ConsoleInterface, in_cons),
    offset_of!(ConsoleInterface, in_prod),
];

type TestRing<L> = ByteRing<Own<Scratch>, L>;

/// Both ends of a page whose four counts are `start`, and the page.
fn pair<L: Layout>(counts: [usize; 4], start: u32) -> (TestRing<L>, TestRing<L>, Scratch) {
    let memory = Scratch::new(PAGE_SIZE);
    for offset in counts {
        scribble(&memory, offset, start);
    }
    let end = |end| ByteRing::attach(Own(memory.clone()), end).unwrap();
    (end(End::Guest), end(End::Host), memory)
}

fn xenstore(start: u32) -> (TestRing<Xenstore>, TestRing<Xenstore>, Scratch) {
    pair(XENSTORE_COUNTS, start)
}

/// What is written at one end, and how much of what is there is read at the other.
#[derive(Debug, Clone)]
enum Step {
    GuestWrites(Vec<u8>),
    HostReads(usize),
    HostWrites(Vec<u8>),
    GuestReads(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..3000);
    let step = prop_oneof![
        bytes().prop_map(Step::GuestWrites),
        (0usize..3000).prop_map(Step::HostReads),
        bytes().prop_map(Step::HostWrites),
        (0usize..3000).prop_map(Step::GuestReads),
    ];
    proptest::collection::vec(step, 1..40)
}

fn any_start() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), u32::MAX - 5000..=u32::MAX, any::<u32>()]
}

fn write<L: Layout>(
    ring: &mut TestRing<L>,
    model: &mut VecDeque<u8>,
    size: usize,
    bytes: &[u8],
) -> Result<(), TestCaseError> {
    let room = size - model.len();
    prop_assert_eq!(ring.writable(), Ok(room));
    let written = bytes.len().min(room);
    prop_assert_eq!(ring.write(bytes), Ok(written));
    model.extend(&bytes[..written]);
    Ok(())
}

fn read<L: Layout>(
    ring: &mut TestRing<L>,
    model: &mut VecDeque<u8>,
    len: usize,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(ring.readable(), Ok(model.len()));
    let mut to = vec![0; len];
    let read = len.min(model.len());
    prop_assert_eq!(ring.read(&mut to), Ok(read));
    prop_assert_eq!(&to[..read], model.drain(..read).collect::<Vec<_>>());
    Ok(())
}

fn both_ways<L: Layout>(
    (mut guest, mut host, _): (TestRing<L>, TestRing<L>, Scratch),
    (to_host, to_guest): (usize, usize),
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let (mut sent, mut answered) = (VecDeque::new(), VecDeque::new());
    for step in steps {
        match step {
            Step::GuestWrites(bytes) => write(&mut guest, &mut sent, to_host, &bytes)?,
            Step::HostReads(len) => read(&mut host, &mut sent, len)?,
            Step::HostWrites(bytes) => write(&mut host, &mut answered, to_guest, &bytes)?,
            Step::GuestReads(len) => read(&mut guest, &mut answered, len)?,
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn xenstores_page_is_a_stream_of_bytes_each_way(start in any_start(), steps in steps()) {
        both_ways(xenstore(start), (1024, 1024), steps)?;
    }

    #[test]
    fn the_consoles_page_is_a_stream_of_bytes_each_way(start in any_start(), steps in steps()) {
        both_ways(pair::<Console>(CONSOLE_COUNTS, start), (2048, 1024), steps)?;
    }

    #[test]
    fn garbage_in_the_page_is_a_violation_or_bytes_and_nothing_worse(
        scribbles in proptest::collection::vec((0usize..8, any::<u32>(), any::<bool>()), 1..60),
        end in prop_oneof![Just(End::Guest), Just(End::Host)],
    ) {
        let memory = Scratch::new(PAGE_SIZE);
        let mut ring = XenstoreRing::attach(Own(memory.clone()), end).unwrap();
        let mut broken = None;
        for (word, value, near) in scribbles {
            // From the counts on, every word of the page; half of the time with a small value.
            let value = if near { value % 1100 } else { value };
            scribble(&memory, XENSTORE_COUNTS[0] + 4 * word, value);
            let mut to = [0; 300];
            for outcome in [ring.read(&mut to), ring.write(&[1; 300])] {
                match (outcome, broken) {
                    (Ok(len), None) => prop_assert!(len <= 300),
                    (Err(violation), None) => broken = Some(violation),
                    (outcome, Some(violation)) => prop_assert_eq!(outcome, Err(violation)),
                }
            }
            let _ = ring.connection();
            let _ = (ring.features(), ring.error());
        }
    }
}

#[test]
fn a_reader_that_claims_more_than_was_written_breaks_the_ring_for_good() {
    let (mut guest, _host, memory) = xenstore(7);
    guest.write(b"abc").unwrap();
    scribble(&memory, offset_of!(DomainInterface, req_cons), 11);
    let violation = Violation::Index {
        name: "req_cons",
        value: 11,
        least: 10u32.wrapping_sub(1024),
        most: 10,
    };
    assert_eq!(guest.write(b"d"), Err(violation));
    scribble(&memory, offset_of!(DomainInterface, req_cons), 10);
    assert_eq!(guest.write(b"d"), Err(violation));
    assert_eq!(guest.read(&mut [0; 4]), Err(violation));
}

#[test]
fn a_writer_that_claims_more_than_fits_breaks_the_ring_for_good() {
    let (_guest, mut host, memory) = xenstore(0);
    scribble(&memory, offset_of!(DomainInterface, req_prod), 1025);
    assert!(host.read(&mut [0; 4]).is_err());
    scribble(&memory, offset_of!(DomainInterface, req_prod), 1);
    assert!(host.read(&mut [0; 4]).is_err());
    assert!(host.write(b"x").is_err());
}

#[test]
fn our_own_counts_in_the_page_are_not_believed() {
    let (mut guest, mut host, memory) = xenstore(0);
    guest.write(b"hello").unwrap();
    // The guest's page is the host's to write, its own words included.
    scribble(&memory, offset_of!(DomainInterface, req_prod), 1000);
    guest.write(b" world").unwrap();
    let mut to = [0; 32];
    let len = host.read(&mut to).unwrap();
    assert_eq!(&to[..len], b"hello world");
}

#[test]
fn a_guest_reconnects_after_it_broke_the_ring() {
    let (mut guest, mut host, memory) = xenstore(u32::MAX - 2);
    host.advertise(ServerFeatures::RECONNECTION | ServerFeatures::ERROR);
    assert_eq!(
        guest.features(),
        ServerFeatures::RECONNECTION | ServerFeatures::ERROR
    );
    guest.write(b"half a mess").unwrap();
    scribble(&memory, offset_of!(DomainInterface, req_prod), 5000);
    assert!(host.readable().is_err());
    host.set_error(RingError::RingIdx);
    assert_eq!(guest.error(), u32::from(RingError::RingIdx));

    guest.request_reconnect();
    assert_eq!(host.connection(), Ok(ConnectionState::Reconnect));
    host.reset();
    assert_eq!(guest.connection(), Ok(ConnectionState::Connected));
    guest.reload();
    assert_eq!(guest.error(), 0);
    assert_eq!(guest.readable(), Ok(0));
    assert_eq!(host.readable(), Ok(0));
    guest.write(b"a message").unwrap();
    assert_eq!(host.readable(), Ok(9));
}

#[test]
fn a_connection_state_that_means_nothing_is_an_error() {
    let (guest, _host, memory) = xenstore(0);
    scribble(&memory, offset_of!(DomainInterface, connection), 2);
    assert!(guest.connection().is_err());
}

#[test]
fn a_console_says_whether_it_is_served() {
    let (guest, mut host, _) = pair::<Console>(CONSOLE_COUNTS, 0);
    host.set_connection(console::ConnectionState::Disconnected);
    assert_eq!(
        guest.connection(),
        Ok(console::ConnectionState::Disconnected)
    );
}

#[test]
fn memory_shorter_than_the_page_is_refused() {
    let len = size_of::<ConsoleInterface>() - 1;
    assert_eq!(
        ConsoleRing::attach(Own(Scratch::new(len)), End::Guest).unwrap_err(),
        TooSmall {
            len,
            needed: len + 1
        }
    );
}

#[test]
fn the_counts_lie_where_xen_puts_them() {
    let (mut guest, mut host, memory) = xenstore(0);
    guest.write(b"to host").unwrap();
    host.write(b"to guest").unwrap();
    host.read(&mut [0; 3]).unwrap();
    guest.read(&mut [0; 2]).unwrap();
    assert_eq!(
        XENSTORE_COUNTS.map(|offset| peek(&memory, offset)),
        [3, 7, 2, 8]
    );
    assert_eq!(memory.view().read::<[u8; 7]>(0), Ok(*b"to host"));
    assert_eq!(memory.view().read::<[u8; 8]>(1024), Ok(*b"to guest"));
}
