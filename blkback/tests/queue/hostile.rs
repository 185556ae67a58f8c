//! Frontends that ask for what cannot be, or change what they have asked for: it costs them an
//! answer that says so, or their own queue, and nobody else anything.

use super::*;

/// How often a test tries what should never work.
const TRIES: usize = 20;

#[test]
fn a_slot_that_changes_after_it_was_read_changes_nothing() {
    // XSA-155.
    for persistent in [false, true] {
        let (mut guest, shared, mut finger) = boot_slow(persistent);
        let segments = guest.segments(0..2, 0, 7);
        guest.push(Operation::Write, 77, 8, &segments);
        guest.put_segments(40, &guest.segments(2..4, 1, 1));
        let table = [guest.gref(40)];
        let indirect = X86_64::indirect(Operation::Write as u8, 78, 64, 2, &table);
        guest.ring.push(&indirect).unwrap();
        guest.publish();
        shared.wait(2);
        // Slots begin after 64 bytes: another operation, id, sector and segments, in both.
        let garbage = [0xff; 2 * 112];
        guest.ring_memory.view().write_bytes(64, &garbage).unwrap();
        let garbage = [guest.segments(5..6, 7, 0)[0]; 256];
        guest.put_segments(40, &garbage);
        shared.open.store(true, Ordering::Release);
        finger.write_all(&[1]).unwrap();
        let mut answers = [guest.reply(), guest.reply()];
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers, [(77, Status::OKAY), (78, Status::OKAY)]);
        let mut asked = shared.log.lock().unwrap().clone();
        asked.sort_by_key(|job| match job {
            Does::Write(sectors) => sectors.first,
            other => panic!("{other:?}"),
        });
        let write = |first, count| Does::Write(Sectors { first, count });
        assert_eq!(asked, [write(8, 16), write(64, 2)]);
        guest.stop().unwrap();
    }
}

#[test]
fn an_id_that_is_used_twice_is_answered_twice() {
    let (mut guest, shared, mut finger) = boot_slow(true);
    let segments = guest.segments(0..1, 0, 7);
    for sector in [0, 8, 16] {
        guest.push(Operation::Write, 5, sector, &segments);
    }
    guest.publish();
    shared.wait(3);
    shared.open.store(true, Ordering::Release);
    finger.write_all(&[1]).unwrap();
    for _ in 0..3 {
        assert_eq!(guest.reply(), (5, Status::OKAY));
    }
    assert!(guest.ring.take().unwrap().is_none());
    guest.stop().unwrap();
}

#[test]
fn indirect_requests_that_make_no_sense_are_answered_and_the_next_is_served() {
    for persistent in [false, true] {
        let (image, _file) = file(4096, Use::ReadWrite);
        let mut guest = boot::<X86_64>(image, persistent);
        let good = guest.segments(0..3, 0, 7);
        let mut backwards = good.clone();
        backwards[2].first_sect = 5;
        backwards[2].last_sect = 4;
        let mut outside = good.clone();
        outside[1].last_sect = 8;
        let mut foreign = good.clone();
        foreign[1].gref = GrantRef(0x7fff_ffff);
        let (table, read) = (40, Operation::Read as u8);
        let mut run = |operation, sector, count, segments: &[Segment]| {
            guest.put_segments(table, segments);
            let pages = [guest.gref(table)];
            let request = X86_64::indirect(operation, 42, sector, count, &pages);
            let (id, status) = guest.run_raw(request);
            assert_eq!(id, 42);
            status
        };
        for (operation, sector, count, segments) in [
            (read, 0, 0, &good),
            (read, 0, 257, &good),
            (read, 0, u16::MAX, &good),
            (Operation::FlushDiskcache as u8, 0, 3, &good),
            (Operation::Discard as u8, 0, 3, &good),
            (Operation::Indirect as u8, 0, 3, &good),
            (255, 0, 3, &good),
            (read, 4096 - 23, 3, &good),
            (read, u64::MAX - 23, 3, &good),
            (read, u64::MAX, 3, &good),
            (read, 0, 3, &backwards),
            (read, 0, 3, &outside),
            (read, 0, 3, &foreign),
        ] {
            let status = run(operation, sector, count, segments);
            assert_eq!(status, Status::ERROR, "{operation} {sector} {count}");
            assert_eq!(run(read, 0, 3, &good), Status::OKAY);
        }
        // Pages of segments that are not there.
        for gref in [1 << 14, 1 << 25, u32::MAX] {
            let request = X86_64::indirect(read, 9, 0, 3, &[GrantRef(gref)]);
            assert_eq!(guest.run_raw(request), (9, Status::ERROR));
        }
        assert_eq!(guest.stats.refused.get(), 12);
        assert_eq!(guest.stats.reads.errors.get(), 4);
        guest.stop().unwrap();
    }
}

#[test]
fn the_ring_itself_may_hold_the_segments_and_be_read_into() {
    let mut guest = boot::<X86_64>(memory(4096), false);
    let ring = guest.ring_grant.refs()[0];
    for _ in 0..TRIES {
        // Whatever is in the ring as segments: the indices and slots of this very request.
        let request = X86_64::indirect(Operation::Read as u8, 3, 0, 256, &[ring]);
        assert_eq!(guest.run_raw(request).0, 3);
    }
    // A table that is filled by the request that it belongs to: what was copied counts.
    let table = guest.gref(40);
    let mut segments = guest.segments(40..41, 0, 7);
    segments.extend(guest.segments(1..3, 0, 7));
    let status = guest.run_indirect(Operation::Read, 0, &segments, 40);
    assert_eq!(status, Status::OKAY);
    assert!(guest.page(40).iter().all(|&byte| byte == 0));
    // Now it names grant 0 three times, which is what it is.
    let request = X86_64::indirect(Operation::Read as u8, 4, 0, 3, &[table]);
    assert_eq!(guest.run_raw(request).0, 4);
    // The disk is read over the ring's header, and the frontend has broken its own ring.
    let over_ring = Segment {
        gref: ring,
        first_sect: 0,
        last_sect: 7,
        ..Default::default()
    };
    guest.push(Operation::Read, 5, 0, &[over_ring]);
    guest.publish();
    match block_on(&mut guest.outcome).unwrap() {
        Err(QueueError::Violation(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(guest.dom0.mappings(), 0);
}

#[test]
fn a_grant_that_ends_in_flight_is_finished_and_its_page_is_nobodys_until_then() {
    for persistent in [false, true] {
        let (mut guest, shared, mut finger) = boot_slow(persistent);
        let pages = guest.guest.allocate(1).unwrap();
        let grant = guest
            .guest
            .grant(&pages, guest.dom0.domid(), Access::ReadWrite)
            .unwrap();
        let segment = Segment {
            gref: grant.refs()[0],
            first_sect: 0,
            last_sect: 7,
            ..Default::default()
        };
        guest.push(Operation::Read, 1, 0, &[segment]);
        guest.publish();
        shared.wait(1);
        // XSA-396: it is told that this is too early.
        assert!(grant.end().is_err());
        assert_eq!(guest.guest.quarantined(), 1);
        shared.open.store(true, Ordering::Release);
        finger.write_all(&[1]).unwrap();
        assert_eq!(guest.reply(), (1, Status::OKAY));
        let dom0 = guest.dom0.clone();
        guest.stop().unwrap();
        assert_eq!(dom0.mappings(), 0);
    }
}

#[test]
fn a_page_to_be_read_only_is_not_read_into() {
    for persistent in [false, true] {
        let mut guest = boot::<X86_64>(memory(64), persistent);
        let pages = guest.guest.allocate(1).unwrap();
        pages.view().write_bytes(0, &[9; PAGE_SIZE]).unwrap();
        let backend = guest.dom0.domid();
        let grant = guest.guest.grant(&pages, backend, Access::ReadOnly);
        let grant = grant.unwrap();
        let segment = Segment {
            gref: grant.refs()[0],
            first_sect: 0,
            last_sect: 7,
            ..Default::default()
        };
        for _ in 0..TRIES {
            assert_eq!(guest.run(Operation::Read, 0, &[segment]), Status::ERROR);
            let status = guest.run_indirect(Operation::Read, 0, &[segment], 40);
            assert_eq!(status, Status::ERROR);
        }
        let mut bytes = [0; PAGE_SIZE];
        pages.view().read_bytes(0, &mut bytes).unwrap();
        assert_eq!(bytes, [9; PAGE_SIZE]);
        let tried = 2 * TRIES as u64;
        assert_eq!(guest.stats.reads.errors.get(), tried);
        guest.stop().unwrap();
    }
}

#[test]
fn a_queue_that_never_takes_its_responses_is_answered_until_it_stops_asking() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let segments = guest.segments(0..1, 0, 7);
    let slots = guest.ring.slots();
    for id in 0..slots {
        guest.push(Operation::Write, id.into(), 0, &segments);
    }
    guest.publish();
    // Everything is answered, and the slots hold what nobody takes. An honest frontend has no room
    // for more; this one asks over its answers, which the backend has no way to mind.
    for round in 2..=TRIES as u32 {
        // `req_prod` is the ring's first word, `rsp_prod` its third.
        let view = guest.ring_memory.view();
        while view.read::<u32>(8).unwrap() < (round - 1) * slots {
            std::thread::yield_now();
        }
        view.write(0, &(round * slots)).unwrap();
        guest.channel.notify();
    }
    let dom0 = guest.dom0.clone();
    assert!(dom0.mappings() <= 2, "one page, and the ring");
    guest.stop().unwrap();
    assert_eq!(dom0.mappings(), 0);
}

#[test]
fn an_honest_queue_beside_a_hostile_one_on_one_processor_is_served() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let hostile = Plain::<X86_64>::new(&guest.guest, guest.dom0.domid());
    let peer = guest.guest.domid();
    let mapped = guest
        .dom0
        .map(peer, hostile.ring_grant.refs(), Access::ReadWrite);
    let image = memory(64);
    let queue = Queue::<Domain, X86_64>::new(QueueSetup {
        place: guest.dom0.clone(),
        peer,
        ring: Peer::new(mapped.unwrap()).ok().unwrap(),
        channel: guest.dom0.bind(peer, hostile.channel.port()).unwrap(),
        discard: None,
        terms: Arc::new(Terms::new(64)),
        image,
        persistent: 0,
        poll: Duration::ZERO,
        stats: Arc::default(),
        complaints: Limit::new("the hostile one"),
    })
    .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    guest.dom0.run(|_| async move {
        let _ = queue.run(async { _ = stopped.await }).await;
    });
    let over = Arc::new(AtomicBool::new(false));
    let storm = std::thread::spawn({
        let over = Arc::clone(&over);
        let mut hostile = hostile;
        move || {
            let nonsense = hostile.segments(0..11, 7, 0);
            while !over.load(Ordering::Relaxed) {
                while hostile.ring.take().unwrap().is_some() {}
                while hostile
                    .ring
                    .push(&X86_64::request(0, 1, u64::MAX, &nonsense))
                    .is_ok()
                {}
                let _ = hostile.ring.publish();
                hostile.channel.notify();
            }
        }
    });
    let segments = guest.segments(0..1, 0, 7);
    for sector in 0..2000 {
        assert_eq!(guest.run(Operation::Write, sector, &segments), Status::OKAY);
    }
    over.store(true, Ordering::Relaxed);
    storm.join().unwrap();
    drop(stop);
    guest.stop().unwrap();
}
