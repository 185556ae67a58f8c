//! The control ring.

use std::sync::Arc;

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::control::ControlError;
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlStatus, ControlType, GrefFlags, GrefMapping, Status, TxFlags,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::world::{Guest, Net, Options, PAGES, World, mapping, pattern, until};

const OK: ControlStatus = ControlStatus::SUCCESS;
const INVALID: ControlStatus = ControlStatus::INVALID_PARAMETER;

/// Microsoft's key, as its verification suite has it, of which this is the beginning.
const KEY: [u8; 12] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d,
];

impl Guest {
    /// The statuses that the last list was given.
    fn statuses(&self, entries: usize) -> Vec<u16> {
        let bytes = self.read(PAGES - 1, 0, entries * size_of::<GrefMapping>());
        let list = <[GrefMapping]>::ref_from_bytes(&bytes).unwrap();
        list.iter().map(|entry| entry.status).collect()
    }
}

#[test]
fn a_frontend_has_its_frames_hashed_as_it_says() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    // First the algorithm: without one there are no flags.
    assert_eq!(
        guest.ask(ControlType::GetHashFlags, [0; 3]),
        (ControlStatus::NOT_SUPPORTED, 0)
    );
    assert_eq!(
        guest.ask(ControlType::SetHashAlgorithm, [2, 0, 0]),
        (INVALID, 0)
    );
    assert_eq!(guest.ask(ControlType::SetHashAlgorithm, [1, 0, 0]), (OK, 0));
    assert_eq!(guest.ask(ControlType::GetHashFlags, [0; 3]), (OK, 0xF));
    assert_eq!(
        guest.ask(ControlType::SetHashFlags, [0x10, 0, 0]),
        (INVALID, 0)
    );
    assert_eq!(guest.ask(ControlType::SetHashFlags, [3, 0, 0]), (OK, 0));
    guest.write(5, 0, &KEY);
    let page = guest.refs[5].0;
    assert_eq!(
        guest.ask(ControlType::SetHashKey, [page, 41, 0]).0,
        ControlStatus::BUFFER_OVERFLOW
    );
    assert_eq!(
        guest.ask(ControlType::SetHashKey, [99_999, 12, 0]).0,
        INVALID
    );
    assert_eq!(guest.ask(ControlType::SetHashKey, [page, 12, 0]), (OK, 0));
    let mut packet = vec![2; 12];
    packet.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend([66, 9, 149, 187, 161, 142, 100, 80]);
    let (_, hash) = guest.steering.steer(&packet, packet.len(), 1).unwrap();
    assert_eq!((hash.kind, hash.value), (0, 0x323e_8fc2));

    // Who is hashed is told so.
    let mut pool = world.pool();
    guest.post(0);
    guest.post(1);
    guest.publish_rx();
    guest.deliver(crate::world::frame(&mut pool, &packet, 256));
    let (received, _, extras) = guest.receive();
    assert_eq!(received, packet);
    assert_eq!(extras, [[4, 0, 0, 1, 0xc2, 0x8f, 0x3e, 0x32]]);

    let size = guest.ask(ControlType::GetHashMappingSize, [0; 3]);
    assert_eq!(size, (OK, 128));
    assert_eq!(
        guest.ask(ControlType::SetHashMappingSize, [129, 0, 0]).0,
        INVALID
    );
    assert_eq!(
        guest.ask(ControlType::SetHashMappingSize, [64, 0, 0]),
        (OK, 0)
    );
    guest.write(5, 0, [0u32; 64].as_bytes());
    let set = |guest: &mut Guest, count, from| {
        guest
            .ask(ControlType::SetHashMapping, [page, count, from])
            .0
    };
    assert_eq!(set(&mut guest, 64, 0), OK);
    assert_eq!(set(&mut guest, 64, 1), INVALID);
    assert_eq!(set(&mut guest, 1, u32::MAX), INVALID);
    assert_eq!(set(&mut guest, 5000, 0), INVALID);
    guest.write(5, 0, &[1]);
    assert_eq!(set(&mut guest, 64, 0), INVALID, "there is no queue 1");
    guest.stop().unwrap();
}

#[test]
fn what_the_backend_does_not_know_is_not_supported() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    assert_eq!(
        guest.ask(ControlType::Invalid, [0; 3]).0,
        ControlStatus::NOT_SUPPORTED
    );
    guest.stop().unwrap();
}

#[test]
fn pages_stay_mapped_until_the_frontend_says_otherwise() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let rings = world.dom0.mappings();
    assert_eq!(
        guest.ask(ControlType::GetGrefMappingSize, [0; 3]),
        (OK, 1024)
    );
    assert_eq!(
        guest.ask(ControlType::GetGrefMappingSize, [1, 0, 0]).0,
        INVALID
    );
    guest.keep_mapped(0..10);
    assert_eq!(world.dom0.mappings(), rings + 10);
    assert_eq!(guest.stats.statics.get(), 10);
    let mut some: Vec<_> = guest.refs[4..12].iter().copied().map(mapping).collect();
    some.push(mapping(GrantRef(77_777)));
    assert_eq!(guest.list(ControlType::DelGrefMapping, &some), (OK, 6));
    let (ok, invalid) = (0, INVALID.0 as u16);
    let mut expected = vec![ok; 6];
    expected.extend([invalid; 3]);
    assert_eq!(guest.statuses(9), expected);
    assert_eq!(world.dom0.mappings(), rings + 4);
    // The first are still of use.
    guest.send(2, &pattern(500, 1), TxFlags::empty());
    assert_eq!(guest.answer().1, Status::OKAY);
    assert_eq!(guest.stats.copies.get(), 0);
    guest.stop().unwrap();
}

#[test]
fn a_list_is_mapped_whole_or_not_at_all() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let rings = world.dom0.mappings();
    let list = |refs: &[GrantRef]| refs.iter().copied().map(mapping).collect::<Vec<_>>();
    let add =
        |guest: &mut Guest, list: &[GrefMapping]| guest.list(ControlType::AddGrefMapping, list).0;

    // A grant that there is not.
    let mut bad = list(&guest.refs[..3]);
    bad.push(mapping(GrantRef(77_777)));
    assert_eq!(add(&mut guest, &bad), INVALID);
    // One named twice in a list.
    let mut twice = list(&guest.refs[..3]);
    twice.push(twice[0]);
    assert_eq!(add(&mut guest, &twice), INVALID);
    // Flags that nobody knows.
    let mut flags = list(&guest.refs[..3]);
    flags[1].flags = GrefFlags::from_bits_retain(2);
    assert_eq!(add(&mut guest, &flags), INVALID);
    // None; more than a page has; a page that is not granted; a queue that there is not.
    let page = guest.refs[PAGES - 1].0;
    for data in [[0, page, 0], [0, page, 513], [0, 77_777, 1], [1, page, 1]] {
        assert_eq!(
            guest.ask(ControlType::AddGrefMapping, data).0,
            INVALID,
            "{data:?}"
        );
    }
    assert_eq!(world.dom0.mappings(), rings);

    // One that is mapped already.
    let good = list(&guest.refs[..3]);
    assert_eq!(add(&mut guest, &good), OK);
    let again = list(&guest.refs[2..5]);
    assert_eq!(add(&mut guest, &again), INVALID);
    assert_eq!(world.dom0.mappings(), rings + 3);
    guest.stop().unwrap();
}

#[test]
fn a_page_that_is_in_use_is_not_unmapped() {
    let world = World::new();
    let kept = Arc::default();
    let mut guest = world.guest(Net::Keep(Arc::clone(&kept)), &Options::default());
    guest.keep_mapped(0..4);
    guest.send(1, &pattern(2000, 1), TxFlags::empty());
    until("it is sent", || kept.lock().unwrap().len() == 1);
    let list = [mapping(guest.refs[1])];
    assert_eq!(guest.list(ControlType::DelGrefMapping, &list), (OK, 0));
    assert_eq!(guest.statuses(1), [INVALID.0 as u16]);
    kept.lock().unwrap().clear();
    assert_eq!(guest.answer(), (1, Status::OKAY));
    assert_eq!(guest.list(ControlType::DelGrefMapping, &list), (OK, 1));
    guest.stop().unwrap();
}

#[test]
fn an_answer_that_a_page_is_unmapped_comes_when_it_is() {
    let world = World::new();
    let kept = Arc::default();
    let mut guest = world.guest(Net::Keep(Arc::clone(&kept)), &Options::default());
    let rings = world.dom0.mappings();
    guest.keep_mapped(0..2);
    // Abroad is a frame that lies in the one page; the other goes, and shares its mapping.
    guest.send(1, &pattern(2000, 1), TxFlags::empty());
    until("it is sent", || kept.lock().unwrap().len() == 1);
    let list = [mapping(guest.refs[0])];
    guest.write(PAGES - 1, 0, list.as_bytes());
    let page = guest.refs[PAGES - 1].0;
    guest
        .control
        .push(&ControlRequest {
            id: 1,
            control: ControlType::DelGrefMapping as u16,
            data: [0, page, 1],
        })
        .unwrap();
    if guest.control.publish() {
        guest.control_channel.notify();
    }
    until("it is looked at", || guest.stats.statics.get() == 1);
    assert!(guest.control.take().unwrap().is_none());
    kept.lock().unwrap().clear();
    until("it is done", || guest.control.arm().unwrap());
    assert_eq!(guest.control.take().unwrap().unwrap().data, 1);
    assert_eq!(world.dom0.mappings(), rings + 1);
    guest.stop().unwrap();
}

#[test]
fn a_page_that_was_mapped_to_be_read_is_not_received_into_but_by_grant() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let list = [GrefMapping {
        flags: GrefFlags::READONLY,
        ..mapping(guest.refs[0])
    }];
    assert_eq!(guest.list(ControlType::AddGrefMapping, &list).0, OK);
    guest.post(0);
    guest.publish_rx();
    let mut pool = world.pool();
    guest.deliver(crate::world::frame(&mut pool, &pattern(60, 1), 256));
    assert_eq!(guest.receive().0, pattern(60, 1));
    assert_eq!(guest.stats.copies.get(), 1);
    guest.stop().unwrap();
}

#[test]
fn a_control_ring_that_floods_is_served_at_a_rate_and_the_queue_goes_on() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let before = world.dom0.now();
    let mut asked = 0u32;
    let mut answered = 0;
    while answered < 400 {
        while guest.control.free() > 0 {
            let control = ControlType::GetHashMappingSize as u16;
            let request = ControlRequest {
                id: asked as u16,
                control,
                data: [0; 3],
            };
            guest.control.push(&request).unwrap();
            asked += 1;
        }
        if guest.control.publish() {
            guest.control_channel.notify();
        }
        while guest.control.take().unwrap().is_some() {
            answered += 1;
        }
        guest.send(0, &pattern(60, 1), TxFlags::empty());
        assert_eq!(guest.answer().1, Status::OKAY);
    }
    // A burst of 256 goes at once, and then it is one a millisecond.
    let took = world.dom0.now().since(before);
    assert!(took.as_millis() >= 100, "{took:?}");
    guest.stop().unwrap();
}

#[test]
fn a_control_ring_whose_index_jumps_is_served_no_more() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    guest.control_memory.view().write(0, &1000u32).unwrap();
    guest.control_channel.notify();
    let outcome = block_on(&mut guest.control_outcome).unwrap();
    assert!(
        matches!(outcome, Err(ControlError::Violation(_))),
        "{outcome:?}"
    );
    guest.stop().unwrap();
}
