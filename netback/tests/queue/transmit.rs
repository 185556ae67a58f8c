//! Out of the guest.

use std::num::NonZeroU16;
use std::sync::Arc;

use parapet_backend::rate::Rate;
use parapet_hypervisor::seam::prelude::*;
use parapet_packet::{Checksum, Gso, GsoKind, Mac};
use parapet_xen_sys::io::netif::{
    ExtraGso, ExtraInfo, ExtraMulticast, ExtraType, GsoType, Status, TxFlags, TxSlot,
};
use zerocopy::IntoBytes;

use crate::world::{Net, Options, World, pattern, tcp, until};

const NONE: TxFlags = TxFlags::empty();
const MORE: TxFlags = TxFlags::MORE_DATA;

/// A slot of extra information to transmit.
pub(crate) fn extra(info: &(impl IntoBytes + zerocopy::Immutable)) -> TxSlot {
    let mut slot = [0; 12];
    slot[..size_of::<ExtraInfo>()].copy_from_slice(info.as_bytes());
    slot
}

pub(crate) fn gso(kind: GsoType, size: u16) -> TxSlot {
    extra(&ExtraGso {
        extra: ExtraType::Gso as u8,
        size,
        gso: kind as u8,
        ..Default::default()
    })
}

fn packets_of_any_length_arrive_whole(mapped: bool, split: bool) {
    let world = World::new();
    let options = Options {
        split,
        ..Options::default()
    };
    let (mut guest, seen) = world.seen(&options);
    if mapped {
        guest.keep_mapped(0..32);
    }
    let lens = [14, 60, 255, 256, 257, 1514, 4096, 4097, 9000, 65_535];
    for (seed, len) in lens.into_iter().enumerate() {
        let bytes = pattern(len, seed as u8);
        let chunks: Vec<_> = bytes.chunks(4096).collect();
        let last = chunks.len() - 1;
        for (page, chunk) in chunks.into_iter().enumerate() {
            guest.write(page, 0, chunk);
            let size = if page == 0 { len } else { chunk.len() };
            let flags = if page == last { NONE } else { MORE };
            guest.slot(page, page as u16, 0, size as u16, flags);
        }
        guest.publish_tx();
        let expected: Vec<_> = (0..=last as u16).map(|id| (id, Status::OKAY)).collect();
        assert_eq!(guest.answers(last + 1), expected);
        let seen = seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.bytes, bytes, "{len}");
    }
    guest.stop().unwrap();
    let stats = &guest.stats;
    assert_eq!(stats.tx.packets.get(), lens.len() as u64);
    assert_eq!(stats.tx.bytes.get(), lens.iter().sum::<usize>() as u64);
    assert_eq!(stats.copies.get() == 0, mapped);
    assert_eq!(stats.drops.total(), 0);
}

#[test]
fn packets_are_copied_by_grant_where_nothing_stays_mapped() {
    packets_of_any_length_arrive_whole(false, true);
    packets_of_any_length_arrive_whole(false, false);
}

#[test]
fn packets_in_pages_that_stay_mapped_are_not_copied_by_grant() {
    packets_of_any_length_arrive_whole(true, true);
    packets_of_any_length_arrive_whole(true, false);
}

#[test]
fn headers_may_be_split_over_slots_at_every_byte() {
    for mapped in [false, true] {
        let world = World::new();
        let (mut guest, seen) = world.seen(&Options::default());
        if mapped {
            guest.keep_mapped(0..32);
        }
        let packet = tcp(true, b"some payload of a packet");
        for cut in 14..packet.len() {
            let (one, rest) = packet.split_at(cut);
            // A third slot, of one byte, where there is one.
            let (two, three) = rest.split_at(rest.len() - 1);
            guest.write(0, 100, one);
            guest.write(1, 4096 - two.len(), two);
            guest.write(2, 7, three);
            guest.slot(0, 0, 100, packet.len() as u16, MORE | TxFlags::CSUM_BLANK);
            guest.slot(1, 1, (4096 - two.len()) as u16, two.len() as u16, MORE);
            guest.slot(2, 2, 7, 1, NONE);
            guest.publish_tx();
            let okay = Status::OKAY;
            assert_eq!(guest.answers(3), [(0, okay), (1, okay), (2, okay)], "{cut}");
            let seen = seen.lock().unwrap().pop().unwrap();
            assert_eq!(seen.bytes, packet);
            assert_eq!(seen.offloads.checksum, Checksum::Blank);
        }
        guest.stop().unwrap();
    }
}

#[test]
fn what_is_left_to_be_done_comes_along() {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    let packet = tcp(false, &[7; 3000]);
    guest.write(0, 0, &packet);
    let flags = TxFlags::CSUM_BLANK | TxFlags::EXTRA_INFO;
    guest.slot(0, 5, 0, packet.len() as u16, flags);
    guest.raw(gso(GsoType::TcpV4, 1448));
    guest.publish_tx();
    // Each slot has its answer; that of extra information says nothing.
    assert_eq!(guest.answer(), (5, Status::OKAY));
    assert_eq!(guest.answer().1, Status::NULL);
    let expected = Gso {
        kind: GsoKind::TcpV4,
        size: NonZeroU16::new(1448).unwrap(),
    };
    assert_eq!(seen.lock().unwrap()[0].offloads.gso, Some(expected));
    guest.send(1, &pattern(100, 0), TxFlags::DATA_VALIDATED);
    assert_eq!(guest.answer(), (1, Status::OKAY));
    let checksum = seen.lock().unwrap()[1].offloads.checksum;
    assert_eq!(checksum, Checksum::Intact);
    guest.stop().unwrap();
}

#[test]
fn an_old_frontend_that_says_nothing_of_a_blank_checksum_has_it_prepared() {
    for mapped in [false, true] {
        let world = World::new();
        let (mut guest, seen) = world.seen(&Options::default());
        if mapped {
            guest.keep_mapped(0..2);
        }
        let packet = tcp(true, &[7; 3000]);
        let mut spoilt = packet.clone();
        spoilt[70..72].copy_from_slice(&[0xAB; 2]);
        guest.write(0, 0, &spoilt);
        guest.slot(0, 5, 0, packet.len() as u16, TxFlags::EXTRA_INFO);
        guest.raw(gso(GsoType::TcpV6, 1440));
        guest.publish_tx();
        assert_eq!(guest.answer(), (5, Status::OKAY));
        guest.stop().unwrap();
        assert!(seen.lock().unwrap()[0].bytes == packet);
    }
}

#[test]
fn a_packet_in_mapped_pages_is_answered_when_the_last_who_has_it_lets_go() {
    let world = World::new();
    let kept = Arc::default();
    let mut guest = world.guest(Net::Keep(Arc::clone(&kept)), &Options::default());
    guest.keep_mapped(0..4);
    // All head: nobody needs the guest's page.
    guest.send(0, &pattern(60, 1), NONE);
    assert_eq!(guest.answer(), (0, Status::OKAY));
    guest.send(1, &pattern(2000, 1), NONE);
    until("it is sent", || kept.lock().unwrap().len() == 2);
    assert!(guest.tx.take().unwrap().is_none(), "it is in use");
    kept.lock().unwrap().clear();
    assert_eq!(guest.answer(), (1, Status::OKAY));
    guest.stop().unwrap();
}

#[test]
fn a_copied_packet_is_answered_at_once_and_its_grant_may_go() {
    let world = World::new();
    let kept = Arc::default();
    let mut guest = world.guest(Net::Keep(Arc::clone(&kept)), &Options::default());
    let bytes = pattern(3000, 9);
    guest.send(0, &bytes, NONE);
    assert_eq!(guest.answer(), (0, Status::OKAY));
    guest.grant.take().unwrap().end().unwrap();
    guest.write(0, 0, &[0; 3000]);
    let mut out = vec![0; 3000];
    assert_eq!(kept.lock().unwrap()[0].copy_out(0, &mut out), 3000);
    assert_eq!(out, bytes);
    kept.lock().unwrap().clear();
    guest.stop().unwrap();
}

#[test]
fn a_queue_ends_when_its_frames_are_home_and_leaves_nothing_mapped() {
    let world = World::new();
    let kept = Arc::default();
    let mut guest = world.guest(Net::Keep(Arc::clone(&kept)), &Options::default());
    guest.keep_mapped(0..8);
    guest.send(1, &pattern(2000, 1), NONE);
    until("it is sent", || kept.lock().unwrap().len() == 1);
    drop(guest.stop.take());
    // It cannot have ended: the frame is here.
    assert!(guest.outcome.try_recv().unwrap().is_none());
    kept.lock().unwrap().clear();
    guest.stop().unwrap();
    assert_eq!(guest.answer(), (1, Status::OKAY));
    // The control ring's page.
    until("all is unmapped", || world.dom0.mappings() == 1);
}

#[test]
fn a_wish_for_a_group_is_granted_and_not_sent() {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    let group = [1, 0, 0x5e, 0, 0, 9];
    guest.multicast.apply(true);
    for (kind, hears) in [
        (ExtraType::MulticastAdd, true),
        (ExtraType::MulticastDel, false),
    ] {
        guest.slot(0, 3, 0, 0, TxFlags::EXTRA_INFO);
        guest.raw(extra(&ExtraMulticast {
            extra: kind as u8,
            addr: group,
            ..Default::default()
        }));
        guest.publish_tx();
        assert_eq!(guest.answer(), (3, Status::OKAY));
        assert_eq!(guest.answer().1, Status::NULL);
        assert_eq!(guest.multicast.hears(Mac(group)), hears);
    }
    guest.stop().unwrap();
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn a_rate_holds_packets_back_until_they_are_due_and_can_be_lifted() {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    // A packet a minute.
    guest.rate.set(Some(Rate {
        per_second: 1000 / 60,
        burst: 1,
    }));
    for page in 0..4 {
        guest.write(page, 0, &pattern(1000, 0));
        guest.slot(page, page as u16, 0, 1000, NONE);
    }
    guest.publish_tx();
    assert_eq!(guest.answer(), (0, Status::OKAY));
    until("it waits", || guest.stats.throttled.get() > 0);
    assert_eq!(seen.lock().unwrap().len(), 1);
    guest.rate.set(None);
    let okay = Status::OKAY;
    assert_eq!(guest.answers(3), [(1, okay), (2, okay), (3, okay)]);
    guest.stop().unwrap();
}

#[test]
fn more_packets_than_the_ring_has_slots_all_go() {
    let world = World::new();
    let (mut guest, seen) = world.seen(&Options::default());
    guest.keep_mapped(0..2);
    let mut outstanding = 0u32;
    for n in 0..5000u32 {
        if outstanding == guest.tx.slots() {
            guest.publish_tx();
            guest.answer();
            outstanding -= 1;
        }
        // Mapped, copied, all head, and not.
        let len = 100 + (n % 3) as u16 * 500;
        guest.slot(n as usize % 4, n as u16, 0, len, NONE);
        outstanding += 1;
    }
    guest.publish_tx();
    for _ in 0..outstanding {
        // Random bytes are no malformed packets if nothing is left to be done to them.
        assert_eq!(guest.answer().1, Status::OKAY);
    }
    guest.stop().unwrap();
    assert_eq!(seen.lock().unwrap().len(), 5000);
    assert!(guest.stats.tx.notifications.get() <= guest.stats.tx.batches.get());
}

#[test]
fn a_queue_whose_rate_is_used_up_sleeps_until_it_is_not() {
    let world = World::new();
    let (mut guest, _) = world.seen(&Options::default());
    // A packet in half a second.
    guest.rate.set(Some(Rate {
        per_second: 2000,
        burst: 1,
    }));
    for page in 0..2 {
        guest.write(page, 0, &pattern(1000, 0));
        guest.slot(page, page as u16, 0, 1000, NONE);
    }
    guest.publish_tx();
    assert_eq!(guest.answer(), (0, Status::OKAY));
    assert_eq!(guest.answer(), (1, Status::OKAY));
    guest.stop().unwrap();
    // It does look now and then, since the rate may be lifted.
    let looks = guest.stats.throttled.get();
    assert!((1..50).contains(&looks), "{looks}");
}
