//! Into the guest.

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use parapet_hypervisor::seam::prelude::*;
use parapet_netback::capture;
use parapet_netback::drops::Drop as Why;
use parapet_netback::rx::{GsoForm, Receives};
use parapet_netback::tx::Group;
use parapet_packet::headers::Headers;
use parapet_packet::{Checksum, Gso, GsoKind, Mac, Offloads};
use parapet_ring::{Front, Own};
use parapet_xen_sys::io::netif::{
    ExtraType, HashAlgorithm, HashTypes, RxFlags, RxResponse, Status, TxFlags, TxRequest,
};

use crate::world::{
    ALL, Busy, Guest, Net, Options, PAGES, Plug, World, frame, is_intact, pattern, tcp, until,
};

const BLANK: Offloads = Offloads {
    checksum: Checksum::Blank,
    gso: None,
};

fn to_cut(kind: GsoKind, size: u16) -> Offloads {
    Offloads {
        checksum: Checksum::Blank,
        gso: Some(Gso {
            kind,
            size: NonZeroU16::new(size).unwrap(),
        }),
    }
}

impl Guest {
    fn post_all(&mut self) {
        for page in 0..PAGES - 1 {
            self.post(page);
        }
        self.publish_rx();
    }
}

fn frames_of_any_length_arrive_whole(mapped: bool, split: bool) {
    let world = World::new();
    let options = Options {
        split,
        ..Options::default()
    };
    let (mut guest, _) = world.seen(&options);
    if mapped {
        guest.keep_mapped(0..PAGES);
    }
    let mut pool = world.pool();
    let lens = [14, 60, 255, 256, 257, 1514, 4096, 4097, 9000, 65_535];
    for (seed, len) in lens.into_iter().enumerate() {
        for head in [14, 200, 256] {
            guest.post_all();
            let bytes = pattern(len, seed as u8);
            guest.deliver(frame(&mut pool, &bytes, head));
            let (received, flags, extras) = guest.receive();
            assert!(received == bytes, "{len} with a head of {head}");
            let plain = RxFlags::empty();
            assert_eq!(flags & !RxFlags::MORE_DATA, plain);
            assert!(extras.is_empty());
            let used = len.div_ceil(4096);
            for page in used..PAGES - 1 {
                // The rest is still posted: it is used up.
                let bytes = pattern(20, page as u8);
                guest.deliver(frame(&mut pool, &bytes, 256));
                assert_eq!(guest.receive().0, bytes);
                pool.collect(|_| {});
            }
            pool.collect(|_| {});
        }
    }
    guest.stop().unwrap();
    let stats = &guest.stats;
    assert_eq!(stats.rx.slots.get(), (3 * lens.len() * (PAGES - 1)) as u64);
    assert_eq!(stats.copies.get() == 0, mapped);
    assert_eq!(stats.drops.total(), 0);
    assert_eq!(pool.lent(), 0);
}

#[test]
fn frames_are_copied_by_grant_where_nothing_stays_mapped() {
    frames_of_any_length_arrive_whole(false, true);
    frames_of_any_length_arrive_whole(false, false);
}

#[test]
fn frames_are_written_straight_into_buffers_that_stay_mapped() {
    frames_of_any_length_arrive_whole(true, true);
}

#[test]
fn what_is_left_to_be_done_is_told_to_one_who_takes_it() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let mut pool = world.pool();
    guest.post_all();
    let packet = tcp(true, &[5; 9000]);
    let mut large = frame(&mut pool, &packet, 100);
    large.set_offloads(to_cut(GsoKind::TcpV6, 1440));
    guest.deliver(large);
    let (received, flags, extras) = guest.receive();
    assert!(received == packet);
    let blank = RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED;
    assert!(flags.contains(blank));
    assert_eq!(extras, [[1, 0, 0xa0, 5, 2, 0, 0, 0]]);
    let mut intact = frame(&mut pool, &packet[..60], 100);
    intact.set_offloads(Offloads {
        checksum: Checksum::Intact,
        gso: None,
    });
    guest.deliver(intact);
    assert_eq!(guest.receive().1, RxFlags::DATA_VALIDATED);
    guest.stop().unwrap();
    assert_eq!(guest.stats.rx.gso.get(), 1);
    assert_eq!(guest.stats.sums.get() + guest.stats.segments.get(), 0);
}

#[test]
fn an_old_frontend_is_told_of_segments_by_a_slot_before_the_packet() {
    let world = World::new();
    let receives = Receives {
        gso_v4: GsoForm::Prefix,
        ..ALL
    };
    let (mut guest, _) = world.seen(&Options {
        receives,
        ..Options::default()
    });
    let mut pool = world.pool();
    guest.post_all();
    let packet = tcp(false, &[5; 100]);
    let mut large = frame(&mut pool, &packet, 256);
    large.set_offloads(to_cut(GsoKind::TcpV4, 50));
    guest.deliver(large);
    let prefix: RxResponse = zerocopy::transmute!(guest.receive_slot());
    assert_eq!((prefix.id, prefix.offset, prefix.status), (0, 50, 0));
    assert_eq!(prefix.flags, RxFlags::GSO_PREFIX | RxFlags::MORE_DATA);
    let (received, flags, _) = guest.receive();
    assert_eq!(received, packet);
    assert_eq!(flags, RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED);
    guest.stop().unwrap();
}

#[test]
fn checksums_are_made_for_one_who_does_not_take_them_blank() {
    for mapped in [false, true] {
        let world = World::new();
        let receives = Receives {
            blank_v4: false,
            ..ALL
        };
        let (mut guest, _) = world.seen(&Options {
            receives,
            ..Options::default()
        });
        if mapped {
            guest.keep_mapped(0..PAGES);
        }
        let mut pool = world.pool();
        guest.post_all();
        for (payload, head) in [(0, 54), (1, 54), (100, 60), (6001, 256), (7000, 200)] {
            let packet = tcp(false, &pattern(payload, 3));
            let mut blank = frame(&mut pool, &packet, head);
            blank.set_offloads(BLANK);
            guest.deliver(blank);
            let (received, flags, _) = guest.receive();
            assert!(
                is_intact(&received),
                "{payload} bytes, {head} of them in the head"
            );
            assert!(received[54..] == packet[54..]);
            assert_eq!(flags & !RxFlags::MORE_DATA, RxFlags::DATA_VALIDATED);
        }
        // Of the other protocol it takes them.
        let packet = tcp(true, &[1; 10]);
        let mut blank = frame(&mut pool, &packet, 100);
        blank.set_offloads(BLANK);
        guest.deliver(blank);
        assert_eq!(guest.receive().0, packet);
        guest.stop().unwrap();
        assert_eq!(guest.stats.sums.get(), 5);
    }
}

fn is_cut(receives: Receives, v6: bool, mapped: bool, sums: bool) {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options {
        receives,
        ..Options::default()
    });
    if mapped {
        guest.keep_mapped(0..PAGES);
    }
    let mut pool = world.pool();
    guest.post_all();
    let payload = pattern(20_000, 7);
    let packet = tcp(v6, &payload);
    let mut large = frame(&mut pool, &packet, 250);
    let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    large.set_offloads(to_cut(kind, 1400));
    guest.deliver(large);
    let mut together: Vec<u8> = Vec::new();
    for _ in 0..20_000usize.div_ceil(1400) {
        let (segment, flags, extras) = guest.receive();
        let headers = Headers::parse(&segment, segment.len()).unwrap();
        assert_eq!(headers.network.unwrap().end, segment.len());
        together.extend(&segment[headers.len().unwrap()..]);
        assert!(extras.is_empty());
        assert_eq!(is_intact(&segment), sums);
        assert_eq!(flags.contains(RxFlags::CSUM_BLANK), !sums);
    }
    assert!(together == payload);
    guest.stop().unwrap();
    assert_eq!(guest.stats.segments.get(), 15);
    assert_eq!(guest.stats.rx.packets.get(), 1);
}

#[test]
fn packets_are_cut_for_one_who_does_not_take_them_long() {
    for mapped in [false, true] {
        let no_gso = Receives {
            gso_v4: GsoForm::None,
            gso_v6: GsoForm::None,
            ..ALL
        };
        is_cut(no_gso, false, mapped, false);
        is_cut(no_gso, true, mapped, false);
        is_cut(
            Receives {
                scatter: false,
                ..ALL
            },
            false,
            mapped,
            false,
        );
        is_cut(
            Receives {
                blank_v6: false,
                ..no_gso
            },
            true,
            mapped,
            true,
        );
    }
}

#[test]
fn what_cannot_be_made_to_fit_is_dropped_and_counted() {
    let world = World::new();
    let receives = Receives {
        scatter: false,
        blank_v4: false,
        ..ALL
    };
    let (mut guest, _) = world.seen(&Options {
        receives,
        ..Options::default()
    });
    let mut pool = world.pool();
    guest.post_all();
    guest.deliver(frame(&mut pool, &pattern(5000, 0), 256));
    let mut nonsense = frame(&mut pool, &pattern(500, 0), 256);
    nonsense.set_offloads(BLANK);
    guest.deliver(nonsense);
    let mut nonsense = frame(&mut pool, &pattern(5000, 0), 256);
    nonsense.set_offloads(to_cut(GsoKind::TcpV4, 1000));
    guest.deliver(nonsense);
    // More segments than the ring has slots can never be taken.
    let mut tiny = frame(&mut pool, &tcp(false, &[1; 9000]), 256);
    tiny.set_offloads(to_cut(GsoKind::TcpV4, 1));
    guest.deliver(tiny);
    guest.deliver(frame(&mut pool, &pattern(60, 0), 256));
    assert_eq!(guest.receive().0, pattern(60, 0));
    guest.stop().unwrap();
    let drops = &guest.stats.drops;
    assert_eq!((drops.of(Why::TooLong), drops.of(Why::Malformed)), (2, 2));
    assert_eq!(drops.total(), 4);
}

#[test]
fn groups_that_the_guest_did_not_ask_for_are_not_given_to_it() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let mut pool = world.pool();
    guest.post_all();
    let to = |group: Mac| {
        let mut bytes = pattern(60, 1);
        bytes[..6].copy_from_slice(&group.0);
        bytes
    };
    let [wanted, other] = [1, 2].map(|n| Mac([0x33, 0x33, 0, 0, 0, n]));
    guest.multicast.change(Group::Join(wanted)).unwrap();
    guest.multicast.apply(true);
    for mac in [other, wanted, Mac::BROADCAST] {
        guest.deliver(frame(&mut pool, &to(mac), 256));
    }
    assert_eq!(guest.receive().0, to(wanted));
    assert_eq!(guest.receive().0, to(Mac::BROADCAST));
    guest.stop().unwrap();
    assert_eq!(guest.stats.drops.of(Why::Multicast), 1);
}

/// A packet of one guest goes to another without a copy but the last, whoever keeps pages mapped.
#[test]
fn guests_talk_to_each_other_whoever_of_them_keeps_pages_mapped() {
    for (from_mapped, to_mapped) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = World::new();
        let plug = Plug::new();
        let cable = Net::Cable(Arc::clone(&plug.endpoint));
        let mut to = world.plugged(plug, Net::Sink(Arc::default()), &Options::default());
        let mut from = world.guest(cable, &Options::default());
        if from_mapped {
            from.keep_mapped(0..8);
        }
        if to_mapped {
            to.keep_mapped(0..PAGES);
        }
        to.post_all();
        for seed in 0..10 {
            let bytes = pattern(6000, seed);
            from.write(0, 96, &bytes[..4000]);
            from.write(1, 0, &bytes[4000..]);
            from.slot(0, 0, 96, 6000, TxFlags::MORE_DATA);
            from.slot(1, 1, 0, 2000, TxFlags::empty());
            from.publish_tx();
            assert!(to.receive().0 == bytes);
            let okay = Status::OKAY;
            assert_eq!(from.answers(2), [(0, okay), (1, okay)]);
        }
        // Each waits for its frames, and the one that has those of the other goes on.
        from.stop().unwrap();
        to.stop().unwrap();
        assert_eq!(from.stats.copies.get() == 0, from_mapped);
        assert_eq!(to.stats.copies.get() == 0, to_mapped);
    }
}

#[test]
fn a_frame_longer_than_what_is_posted_waits_for_buffers() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    let mut pool = world.pool();
    guest.post(0);
    guest.publish_rx();
    let bytes = pattern(9000, 1);
    guest.deliver(frame(&mut pool, &bytes, 256));
    until("it waits", || guest.stats.sleeps.get() > 1);
    assert!(guest.rx.take().unwrap().is_none());
    guest.post(1);
    guest.publish_rx();
    guest.post(2);
    guest.publish_rx();
    assert!(guest.receive().0 == bytes);
    guest.stop().unwrap();
}

#[test]
fn a_queue_that_looks_busily_does_the_same() {
    let world = World::new();
    let poll = std::time::Duration::from_micros(50);
    let (mut guest, seen) = world.seen(&Options {
        poll,
        ..Options::default()
    });
    let mut pool = world.pool();
    guest.post_all();
    for n in 0..50 {
        guest.deliver(frame(&mut pool, &pattern(100, n), 256));
        assert_eq!(guest.receive().0, pattern(100, n));
        guest.send(PAGES - 1, &pattern(200, n), TxFlags::empty());
        assert_eq!(guest.answer().1, Status::OKAY);
    }
    guest.stop().unwrap();
    assert_eq!(seen.lock().unwrap().len(), 50);
}

#[test]
fn a_packet_is_cut_for_one_who_never_posts_as_many_buffers_as_it_has_segments() {
    for mapped in [false, true] {
        let world = World::new();
        let receives = Receives {
            gso_v4: GsoForm::None,
            blank_v4: false,
            scatter: false,
            ..ALL
        };
        let (mut guest, _) = world.seen(&Options {
            receives,
            ..Options::default()
        });
        if mapped {
            guest.keep_mapped(0..PAGES);
        }
        let mut pool = world.pool();
        let interface = capture::Interface {
            name: "vif".into(),
            mac: Mac::default(),
            queues: vec![Arc::clone(&guest.stats)],
        };
        let now = world.dom0.now();
        let started = capture::start(vec![interface], 100_000, now, SystemTime::now());
        let (recording, recorder) = started.unwrap();
        let payload = pattern(20_000, 7);
        let mut large = frame(&mut pool, &tcp(false, &payload), 250);
        large.set_offloads(to_cut(GsoKind::TcpV4, 1400));
        guest.deliver(large);
        guest.deliver(frame(&mut pool, &pattern(60, 1), 256));
        let mut together: Vec<u8> = Vec::new();
        while together.len() < payload.len() {
            for page in 0..4 {
                guest.post(page);
            }
            guest.publish_rx();
            for _ in 0..4 {
                let (packet, _, _) = guest.receive();
                if packet == pattern(60, 1) {
                    break;
                }
                assert!(is_intact(&packet));
                together.extend(&packet[54..]);
            }
        }
        assert!(together == payload);
        guest.stop().unwrap();
        drop(recording);
        assert_eq!(recorder.write(Vec::new()).unwrap().frames, 2);
        assert_eq!(guest.stats.segments.get(), 15);
        assert_eq!(guest.stats.rx.packets.get(), 2);
        assert_eq!(guest.stats.drops.total(), 0);
        pool.collect(|_| {});
        assert_eq!(pool.lent(), 0);
    }
}

#[test]
fn a_packet_some_segments_of_which_met_bad_buffers_is_dropped_once() {
    let world = World::new();
    let receives = Receives {
        gso_v4: GsoForm::None,
        ..ALL
    };
    let (mut guest, _) = world.seen(&Options {
        receives,
        ..Options::default()
    });
    let mut pool = world.pool();
    let mut large = frame(&mut pool, &tcp(false, &pattern(4000, 7)), 250);
    large.set_offloads(to_cut(GsoKind::TcpV4, 1000));
    guest.deliver(large);
    for round in 0..4 {
        match round % 2 {
            0 => guest.post_gref(0, parapet_xen_sys::GrantRef(99_999)),
            _ => guest.post(0),
        }
        guest.publish_rx();
        let answer: RxResponse = zerocopy::transmute!(guest.receive_slot());
        assert_eq!(answer.status > 0, round % 2 == 1);
    }
    guest.stop().unwrap();
    assert_eq!(guest.stats.drops.of(Why::BadGrant), 1);
    assert_eq!(guest.stats.drops.total() + guest.stats.rx.packets.get(), 1);
}

#[test]
fn a_tag_pushed_into_a_full_head_is_no_reason_to_lose_the_packet() {
    let world = World::new();
    let receives = Receives {
        gso_v4: GsoForm::None,
        blank_v4: false,
        ..ALL
    };
    let (mut guest, _) = world.seen(&Options {
        receives,
        ..Options::default()
    });
    let mut pool = world.pool();
    guest.post_all();
    for offloads in [BLANK, to_cut(GsoKind::TcpV4, 1000)] {
        let mut tagged = frame(&mut pool, &tcp(false, &pattern(1000, 3)), 256);
        tagged.set_offloads(offloads);
        tagged.push_tag(5).unwrap();
        guest.deliver(tagged);
        let (received, _, _) = guest.receive();
        assert!(is_intact(&received));
        assert_eq!(
            Headers::parse(&received, received.len()).unwrap().vlan,
            Some(5)
        );
    }
    guest.stop().unwrap();
}

#[test]
fn a_port_has_its_turn_while_the_guest_sends_without_end() {
    let world = World::new();
    let busy = Arc::<Mutex<Busy>>::default();
    let mut guest = world.guest(Net::Busy(Arc::clone(&busy)), &Options::default());
    let mut pool = world.pool();
    guest.post_all();
    guest.write(0, 0, &pattern(60, 1));
    for _ in 0..128 {
        guest.slot(0, 0, 0, 60, TxFlags::empty());
    }
    let slot = zerocopy::transmute!(TxRequest {
        gref: guest.refs[0],
        size: 60,
        ..Default::default()
    });
    // The guest has no ring any more.
    let other = Front::new(Own(guest.domain.allocate(1).unwrap())).unwrap();
    let mut ring = std::mem::replace(&mut guest.tx, other);
    let _: bool = ring.publish();
    busy.lock().unwrap().ring = Some((ring, slot));
    guest.tx_channel.notify();
    until("it sends", || guest.stats.tx.packets.get() > 10_000);
    let frame = frame(&mut pool, &pattern(60, 1), 256);
    busy.lock().unwrap().frames.push(frame);
    until("it gets what there is for it", || {
        guest.stats.rx.packets.get() == 1
    });
    busy.lock().unwrap().ring = None;
    guest.stop().unwrap();
}

#[test]
fn what_comes_by_a_port_goes_to_the_queue_that_the_guest_says_too() {
    let world = World::new();
    let busy = Arc::<Mutex<Busy>>::default();
    let mut guest = world.guest(Net::Busy(Arc::clone(&busy)), &Options::default());
    let mut pool = world.pool();
    guest.post_all();
    guest.steering.set_algorithm(HashAlgorithm::Toeplitz);
    guest.steering.set_key(&[0x5A; 40]).unwrap();
    guest.steering.set_types(HashTypes::IPV4_TCP).unwrap();
    let frame = frame(&mut pool, &tcp(false, &[1; 100]), 256);
    busy.lock().unwrap().frames.push(frame);
    // It looks when it is woken.
    guest.send(PAGES - 1, &pattern(60, 1), TxFlags::empty());
    let (_, flags, extras) = guest.receive();
    assert!(flags.contains(RxFlags::EXTRA_INFO));
    assert_eq!(extras[0][..3], [ExtraType::Hash as u8, 0, 1]);
    guest.stop().unwrap();
}
