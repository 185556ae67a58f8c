//! What a malicious guest may try.

use std::sync::Arc;

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::drops::Drop as Why;
use parapet_netback::queue::QueueError;
use parapet_netback::tx::Broken;
use parapet_xen_sys::io::netif::{
    ExtraFlags, ExtraGso, ExtraInfo, ExtraType, GsoType, RxResponse, Status, TxFlags, TxRequest,
};
use parapet_xen_sys::{GrantRef, grant_table};

use crate::transmit::{extra, gso};
use crate::world::{Guest, Net, Options, Plug, World, frame, pattern, tcp, until};

const NONE: TxFlags = TxFlags::empty();
const MORE: TxFlags = TxFlags::MORE_DATA;
const EXTRA: TxFlags = TxFlags::EXTRA_INFO;

impl Guest {
    /// All these slots of data are answered with an error, and nothing else is the matter.
    fn is_refused(&mut self, ids: &[u16], extras: usize) {
        self.publish_tx();
        let answers: Vec<_> = (0..ids.len() + extras).map(|_| self.answer()).collect();
        let (data, nothing) = answers.split_at(ids.len());
        let expected: Vec<_> = ids.iter().map(|&id| (id, Status::ERROR)).collect();
        assert_eq!(data, expected);
        assert!(nothing.iter().all(|(_, status)| *status == Status::NULL));
        self.send(0, &pattern(60, 1), NONE);
        assert_eq!(self.answer(), (0, Status::OKAY));
    }

    /// The queue has ended on its own.
    fn ended(&mut self) -> QueueError {
        block_on(&mut self.outcome).unwrap().unwrap_err()
    }
}

fn refused(slots: impl FnOnce(&mut Guest) -> (Vec<u16>, usize), why: Why) {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    let (ids, extras) = slots(&mut guest);
    guest.is_refused(&ids, extras);
    guest.stop().unwrap();
    assert_eq!(guest.stats.drops.of(why), 1);
    assert_eq!(seen.lock().unwrap().len(), 1, "the good one");
}

#[test]
fn zero_length_fragments_do_no_harm() {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    for mapped in [false, true] {
        if mapped {
            guest.keep_mapped(0..8);
        }
        let bytes = pattern(700, 5);
        guest.write(1, 0, &bytes);
        guest.slot(1, 1, 0, 700, MORE);
        guest.slot(2, 2, 0, 0, MORE);
        guest.slot(3, 3, 4096, 0, MORE);
        guest.slot(4, 4, 5, 0, NONE);
        guest.publish_tx();
        assert!(
            guest
                .answers(4)
                .iter()
                .all(|(_, status)| *status == Status::OKAY)
        );
        assert_eq!(seen.lock().unwrap().pop().unwrap().bytes, bytes);
    }
    guest.stop().unwrap();
}

#[test]
fn a_first_slot_of_no_length_is_refused() {
    refused(
        |guest| {
            guest.slot(1, 1, 0, 500, MORE);
            guest.slot(2, 2, 0, 500, NONE);
            (vec![1, 2], 0)
        },
        Why::Malformed,
    );
}

#[test]
fn sizes_that_do_not_add_up_are_refused() {
    refused(
        |guest| {
            guest.slot(1, 1, 0, 500, MORE);
            guest.slot(2, 2, 0, 300, MORE);
            guest.slot(3, 3, 0, 300, NONE);
            (vec![1, 2, 3], 0)
        },
        Why::Malformed,
    );
}

#[test]
fn more_fragments_than_allowed_are_refused() {
    refused(
        |guest| {
            guest.slot(0, 0, 0, 2000, MORE);
            for id in 1..20 {
                guest.slot(1, id, 0, 10, if id < 19 { MORE } else { NONE });
            }
            ((0..20).collect(), 0)
        },
        Why::Malformed,
    );
}

#[test]
fn fragments_without_end_end_the_device() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    guest.slot(0, 0, 0, 2000, MORE);
    for id in 1..100 {
        guest.slot(1, id, 0, 1, MORE);
    }
    guest.publish_tx();
    assert!(matches!(
        guest.ended(),
        QueueError::Transmit(Broken::Endless)
    ));
}

#[test]
fn a_packet_that_the_ring_ends_in_ends_the_device() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    guest.slot(0, 0, 0, 2000, MORE);
    guest.publish_tx();
    assert!(matches!(guest.ended(), QueueError::Transmit(Broken::Cut)));
}

#[test]
fn extra_information_without_end_ends_the_device() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    guest.slot(0, 0, 0, 60, EXTRA);
    for _ in 1..guest.tx.slots() {
        guest.raw(extra(&ExtraGso {
            extra: ExtraType::Gso as u8,
            flags: ExtraFlags::MORE,
            size: 1,
            gso: 1,
            ..Default::default()
        }));
    }
    guest.publish_tx();
    assert!(matches!(guest.ended(), QueueError::Transmit(Broken::Cut)));
}

#[test]
fn extra_information_of_unknown_type_is_refused() {
    for kind in [0, 5, 200] {
        refused(
            |guest| {
                guest.slot(1, 1, 0, 500, EXTRA);
                guest.raw(extra(&ExtraInfo {
                    extra: kind,
                    ..Default::default()
                }));
                (vec![1], 1)
            },
            Why::Malformed,
        );
    }
}

#[test]
fn segments_of_no_size_or_of_another_protocol_are_refused() {
    let with = |packet: Vec<u8>, gso| {
        refused(
            move |guest| {
                guest.write(1, 0, &packet);
                guest.slot(1, 1, 0, packet.len() as u16, EXTRA);
                guest.raw(gso);
                (vec![1], 1)
            },
            Why::Malformed,
        );
    };
    let v4 = tcp(false, &[1; 2000]);
    with(v4.clone(), gso(GsoType::TcpV4, 0));
    with(v4.clone(), gso(GsoType::None, 1000));
    with(v4.clone(), gso(GsoType::TcpV6, 1000));
    with(tcp(true, &[1; 2000]), gso(GsoType::TcpV4, 1000));
    let mut udp = v4;
    udp[23] = 17;
    with(udp, gso(GsoType::TcpV4, 1000));
    with(pattern(1000, 0), gso(GsoType::TcpV4, 100));
}

#[test]
fn a_blank_checksum_outside_the_packet_is_refused() {
    for mapped in [false, true] {
        let full = tcp(false, &[]);
        // Cut before, in, and just before the end of the field; and headers that say too much.
        let mut long = full.clone();
        long[46] = 0xF0;
        let mut short = full.clone();
        short.truncate(53);
        for packet in [
            full[..20].to_vec(),
            full[..51].to_vec(),
            short,
            long,
            pattern(60, 0),
        ] {
            refused(
                |guest| {
                    if mapped {
                        guest.keep_mapped(0..4);
                    }
                    guest.write(1, 0, &packet);
                    guest.slot(1, 1, 0, packet.len() as u16, TxFlags::CSUM_BLANK);
                    (vec![1], 0)
                },
                Why::Malformed,
            );
        }
    }
}

#[test]
fn grants_that_are_not_are_refused() {
    for gref in [99_999, u32::MAX] {
        refused(
            |guest| {
                // The first slot is good.
                guest.slot(1, 1, 0, 500, MORE);
                guest.raw(zerocopy::transmute!(TxRequest {
                    gref: GrantRef(gref),
                    offset: 0,
                    flags: NONE,
                    id: 2,
                    size: 100,
                }));
                (vec![1, 2], 0)
            },
            Why::BadGrant,
        );
    }
}

#[test]
fn bytes_past_the_page_are_refused() {
    for (offset, size) in [(4000, 97), (u16::MAX, 100), (1, 4096)] {
        refused(
            |guest| {
                guest.slot(1, 1, offset, size, NONE);
                (vec![1], 0)
            },
            Why::Malformed,
        );
    }
}

#[test]
fn a_grant_that_was_taken_back_is_refused_and_one_of_a_batch_does_not_hurt_the_others() {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    let more = guest.domain.allocate(1).unwrap();
    let granted = guest
        .domain
        .grant(&more, world.dom0.domid(), Access::ReadWrite);
    let granted = granted.unwrap();
    let gone = granted.refs()[0];
    granted.end().unwrap();
    for id in 0..30 {
        let bytes = pattern(if id % 2 == 0 { 60 } else { 1000 }, id as u8);
        guest.write(usize::from(id), 0, &bytes);
        let gref = if id % 3 == 0 {
            gone
        } else {
            guest.refs[usize::from(id)]
        };
        guest.raw(zerocopy::transmute!(TxRequest {
            gref,
            offset: 0,
            flags: NONE,
            id,
            size: bytes.len() as u16,
        }));
    }
    guest.publish_tx();
    for (id, status) in guest.answers(30) {
        let expected = if id % 3 == 0 {
            Status::ERROR
        } else {
            Status::OKAY
        };
        assert_eq!(status, expected, "{id}");
    }
    guest.stop().unwrap();
    let seen = seen.lock().unwrap();
    let good: Vec<u8> = (0..30).filter(|id| id % 3 != 0).collect();
    assert_eq!(seen.len(), good.len());
    for (seen, id) in seen.iter().zip(good) {
        let len = if id % 2 == 0 { 60 } else { 1000 };
        assert_eq!(seen.bytes, pattern(len, id));
    }
    assert_eq!(guest.stats.drops.of(Why::BadGrant), 10);
}

#[test]
fn a_grant_that_a_sender_takes_back_is_not_held_against_the_receiver() {
    let world = World::new();
    let plug = Plug::new();
    let cable = Net::Cable(Arc::clone(&plug.endpoint));
    let mut to = world.plugged(plug, Net::Sink(Arc::default()), &Options::default());
    let mut from = world.guest(cable, &Options::default());
    from.keep_mapped(0..4);
    let bytes = pattern(3000, 1);
    from.send(1, &bytes, NONE);
    // It is on its way, and waits. Its page stays mapped whatever the guest does.
    until("it waits", || to.stats.sleeps.get() > 1);
    let entry = from.refs[1].0 as usize * size_of::<grant_table::EntryV1>();
    from.domain.grant_table().write(entry, &0u16).unwrap();
    to.post(0);
    to.publish_rx();
    assert!(to.receive().0 == bytes);
    assert_eq!(to.stats.copies.get(), 2, "of the head and of what follows");
    assert_eq!(from.answer(), (1, Status::OKAY));
    assert_eq!(to.stats.drops.total() + to.stats.rx.errors.get(), 0);
    from.stop().unwrap();
    to.stop().unwrap();
}

#[test]
fn a_buffer_that_cannot_be_written_is_answered_with_an_error_in_its_slot() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let page = guest.domain.allocate(1).unwrap();
    let read_only = guest
        .domain
        .grant(&page, world.dom0.domid(), Access::ReadOnly);
    let read_only = read_only.unwrap();
    let mut pool = world.pool();
    guest.post(0);
    guest.post_gref(7, GrantRef(99_999));
    guest.post_gref(8, read_only.refs()[0]);
    guest.post(3);
    guest.publish_rx();
    // Two slots, the second bad; one bad; one good.
    guest.deliver(frame(&mut pool, &pattern(5000, 1), 256));
    guest.deliver(frame(&mut pool, &pattern(100, 2), 256));
    guest.deliver(frame(&mut pool, &pattern(100, 3), 256));
    let mut next = || -> RxResponse { zerocopy::transmute!(guest.receive_slot()) };
    assert_eq!((next().id, next().status), (0, -1));
    let bad = next();
    assert_eq!((bad.id, bad.status), (8, -1));
    let good = next();
    assert_eq!((good.id, good.status), (3, 100));
    assert_eq!(guest.read(3, 0, 100), pattern(100, 3));
    guest.stop().unwrap();
    assert_eq!(guest.stats.drops.of(Why::BadGrant), 2);
    assert_eq!(guest.stats.rx.packets.get(), 1);
}

#[test]
fn a_request_index_that_jumps_ends_the_device() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    guest.tx_memory.view().write(0, &300u32).unwrap();
    guest.tx_channel.notify();
    assert!(matches!(
        guest.ended(),
        QueueError::Transmit(Broken::Ring(_))
    ));

    let (mut guest, _) = world.seen(&Options::default());
    guest.rx_memory.view().write(0, &u32::MAX).unwrap();
    guest.rx_channel().notify();
    assert!(matches!(guest.ended(), QueueError::Receive(_)));
}

#[test]
fn a_storm_of_events_is_kept_out_and_what_comes_with_it_is_served() {
    for split in [false, true] {
        let world = World::new();
        let (mut guest, seen) = world.seen(&Options {
            split,
            ..Options::default()
        });
        until("it is a storm", || {
            for _ in 0..100 {
                guest.tx_channel.notify();
                guest.rx_channel().notify();
            }
            guest.stats.spurious.get() > 12
        });
        for n in 0..3 {
            for _ in 0..100 {
                guest.tx_channel.notify();
            }
            guest.send(n, &pattern(60, 1), NONE);
            assert_eq!(guest.answer().1, Status::OKAY);
        }
        assert_eq!(seen.lock().unwrap().len(), 3);
        guest.stop().unwrap();
    }
}

#[test]
fn a_guest_that_dies_takes_nothing_with_it() {
    let world = World::new();
    let kept = Arc::default();
    let mut guest = world.guest(Net::Keep(Arc::clone(&kept)), &Options::default());
    guest.keep_mapped(0..8);
    guest.send(1, &pattern(2000, 1), NONE);
    until("it is sent", || kept.lock().unwrap().len() == 1);
    let mut pool = world.pool();
    guest.deliver(frame(&mut pool, &pattern(100, 3), 256));
    guest.domain.destroy_blocking();
    kept.lock().unwrap().clear();
    guest.stop().unwrap();
    assert_eq!(pool.lent() - usize::from(pool.collect(|_| {})), 0);
}

#[test]
fn a_ring_that_breaks_behind_good_packets_ends_the_device_all_the_same() {
    for mapped in [false, true] {
        let world = World::new();
        let (mut guest, _) = world.seen(&Options::default());
        if mapped {
            guest.keep_mapped(0..8);
        }
        for page in 1..4 {
            guest.write(page, 0, &pattern(2000, 1));
            guest.slot(page, page as u16, 0, 2000, NONE);
        }
        guest.slot(4, 4, 0, 2000, MORE);
        guest.publish_tx();
        assert!(matches!(guest.ended(), QueueError::Transmit(Broken::Cut)));
        assert_eq!(guest.stats.drops.of(Why::Gone), 3);
    }
}
