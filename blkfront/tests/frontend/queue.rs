//! The polling interface.

use std::task::{Context, Waker};

use parapet_blkfront::{
    Buffer, Direction, Erase, Failure, Pool, Queue, QueueError, SubmitError, Unfit,
};
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Identity;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::{Operation, Status, native};

use crate::world::{World, answer, image};

#[test]
fn a_request_is_answered_once_under_the_callers_name_for_it() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    let image = image(64);
    let buffer = world.buffer(2);
    buffer.view().write_bytes(512, &[7; 4096]).unwrap();
    queue
        .submit(40, Direction::Write, 3, &buffer, 512..4608)
        .unwrap();
    queue
        .submit(41, Direction::Read, 5, &buffer, 4608..5120)
        .unwrap();
    queue.submit_flush(42).unwrap();
    assert_eq!(queue.complete(), Ok(None));
    assert!(queue.publish(), "the backend waits for the first");
    for _ in 0..2 {
        let request = back.take().unwrap();
        let response = back.carry_out(&request, &image);
        back.respond(response);
    }
    let flush = back.take().unwrap();
    assert_eq!(flush.operation, Operation::FlushDiskcache as u8);
    assert_eq!((flush.nr_segments, flush.sector_number), (0, 0));
    back.respond(answer(&flush, Status::EOPNOTSUPP));

    block_on(queue.wait()).unwrap();
    let mut done = Vec::new();
    while let Some(completion) = queue.complete().unwrap() {
        done.push((completion.token, completion.result));
    }
    assert_eq!(
        done,
        [(40, Ok(())), (41, Ok(())), (42, Err(Failure::Unsupported))]
    );
    let mut read = [0; 512];
    buffer.view().read_bytes(4608, &mut read).unwrap();
    assert_eq!(read, [7; 512], "the third of the sectors written");
    assert_eq!(queue.outstanding().count(), 0);
    assert_eq!(queue.free(), queue.capacity());
    drop((queue, back, buffer));
    world.assert_nothing_is_left();
}

#[test]
fn eleven_pages_fit_a_request_and_twelve_do_not() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    let buffer = world.buffer(12);
    let mut submit = |range| queue.submit(0, Direction::Read, 0, &buffer, range);
    submit(0..11 * 4096).unwrap();
    submit(4096..12 * 4096).unwrap();
    submit(3584..3584 + 10 * 4096).unwrap();
    for range in [0..11 * 4096 + 512, 3584..3584 + 11 * 4096] {
        let error = SubmitError::Unfit(Unfit::TooLong {
            pages: 12,
            most: 11,
        });
        assert_eq!(submit(range), Err(error));
    }
    queue.publish();
    for (first, last) in [((0, 7), (0, 7)), ((0, 7), (0, 7)), ((7, 7), (0, 6))] {
        let request = back.take().unwrap();
        assert_eq!(request.nr_segments, 11);
        assert_eq!((request.seg[0].first_sect, request.seg[0].last_sect), first);
        assert_eq!(
            (request.seg[10].first_sect, request.seg[10].last_sect),
            last
        );
    }
    assert!(back.take().is_none());
}

#[test]
fn as_many_pages_fit_a_request_as_the_backend_takes() {
    let world = World::new(1);
    for (offered, most) in [
        (0, 11),
        (11, 11),
        (12, 12),
        (256, 256),
        (1_000_000_000, 256),
    ] {
        let (mut queue, mut back) = world.queue();
        queue.allow_segments(&world.guest, offered).unwrap();
        assert_eq!(queue.max_segments(), most);
        let buffer = world.buffer(most + 1);
        let image = image(2100);
        let bytes: Vec<u8> = (0..buffer.len()).map(|at| (at / 300) as u8).collect();
        buffer.view().write_bytes(0, &bytes).unwrap();
        let (from, to) = (512, most * 4096 - 512);
        let long = queue.submit(0, Direction::Write, 2, &buffer, 512..most * 4096 + 512);
        let pages = most + 1;
        assert_eq!(long, Err(Unfit::TooLong { pages, most }.into()));
        for token in 0..3 {
            queue
                .submit(token, Direction::Write, 2, &buffer, from..to)
                .unwrap();
        }
        queue.publish();
        for token in 0..3 {
            let request = back.take().unwrap();
            let (operation, segments) = back.parse(&request);
            assert_eq!((operation, segments.len()), (Operation::Write, most));
            let indirect = request.operation == Operation::Indirect as u8;
            assert_eq!(indirect, most > 11);
            let response = back.carry_out(&request, &image);
            back.respond(response);
            assert_eq!(queue.complete().unwrap().unwrap().token, token);
        }
        assert!(image.lock().unwrap()[1024..][..to - from] == bytes[from..to]);
        drop((back, queue, buffer));
        world.assert_nothing_is_left();
    }
}

#[test]
fn a_discard_and_a_barrier_say_what_they_are() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    queue.allow_segments(&world.guest, 256).unwrap();
    let buffer = world.buffer(20);
    queue
        .submit_discard(1, 8, u64::MAX / 512, Erase::Forget)
        .unwrap();
    queue.submit_discard(2, 9, 1, Erase::Secure).unwrap();
    queue.submit_barrier(3, 7, &buffer, 0..512).unwrap();
    queue.submit_barrier(4, 7, &buffer, 0..20 * 4096).unwrap();
    queue.publish();
    for (sector, count, flag) in [(8, u64::MAX / 512, 0), (9, 1, 1)] {
        let request = back.take().unwrap();
        back.respond(answer(&request, Status::OKAY));
        let discard: native::Discard = zerocopy::transmute!(request);
        assert_eq!(discard.operation, Operation::Discard as u8);
        assert_eq!((discard.sector_number, discard.nr_sectors), (sector, count));
        assert_eq!(discard.flag.bits(), flag);
    }
    for segments in [1, 20] {
        let request = back.take().unwrap();
        let (operation, all) = back.parse(&request);
        assert_eq!((operation, all.len()), (Operation::WriteBarrier, segments));
        let response = back.carry_out(&request, &image(1000));
        back.respond(response);
    }
    for token in 1..5 {
        let completion = queue.complete().unwrap().unwrap();
        assert_eq!((completion.token, completion.result), (token, Ok(())));
    }
}

#[test]
fn a_full_queue_refuses_a_request_and_takes_it_after_a_completion() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    let buffer = world.buffer(1);
    let capacity = queue.capacity() as u64;
    assert_eq!(capacity, 32);
    for token in 0..capacity {
        queue
            .submit(token, Direction::Read, 0, &buffer, 0..512)
            .unwrap();
    }
    let one_more = |queue: &mut Queue<_>| queue.submit(99, Direction::Read, 0, &buffer, 0..512);
    assert!(matches!(one_more(&mut queue), Err(SubmitError::Full(_))));
    queue.publish();
    let request = back.take().unwrap();
    back.respond(answer(&request, Status::OKAY));
    assert_eq!(queue.complete().unwrap().unwrap().token, 0);
    one_more(&mut queue).unwrap();
    assert_eq!(queue.free(), 0);
}

#[test]
fn only_whole_sectors_inside_a_buffer_of_this_backend_are_asked_for() {
    let world = World::new(1);
    let (mut queue, _back) = world.queue();
    let buffer = world.buffer(1);
    let elsewhere = Buffer::new(&world.guest, DomId::ZERO, 1).unwrap();
    for range in [0..0, 512..512, 0..4608, 1..512, 0..100] {
        let result = queue.submit(0, Direction::Read, 0, &buffer, range.clone());
        assert!(matches!(result, Err(SubmitError::Unfit(_))), "{range:?}");
    }
    let foreign = queue.submit(0, Direction::Read, 0, &elsewhere, 0..512);
    assert_eq!(foreign, Err(SubmitError::Unfit(Unfit::Foreign)));
    assert_eq!(queue.free(), queue.capacity());
}

#[test]
fn a_ring_has_a_power_of_two_of_pages() {
    let world = World::new(1);
    for pages in [0, 3, 512] {
        let result = Queue::new(&world.guest, world.back.domid(), pages);
        assert_eq!(result.err(), Some(QueueError::RingPages(pages)));
    }
    let queue = Queue::new(&world.guest, world.back.domid(), 4).unwrap();
    assert_eq!(queue.ring_refs().len(), 4);
    assert_eq!(queue.capacity(), 128);
}

#[test]
fn a_batch_is_one_notification() {
    let world = World::new(1);
    let (mut queue, _back) = world.queue();
    let buffer = world.buffer(1);
    for _ in 0..4 {
        queue
            .submit(0, Direction::Read, 0, &buffer, 0..512)
            .unwrap();
    }
    assert!(queue.publish());
    queue
        .submit(0, Direction::Read, 0, &buffer, 0..512)
        .unwrap();
    assert!(!queue.publish(), "the backend has not gone to sleep again");
}

#[test]
fn a_buffer_dropped_under_way_lives_until_its_answer() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    let image = image(8);
    image.lock().unwrap().fill(9);
    let buffer = world.buffer(1);
    queue
        .submit(1, Direction::Read, 0, &buffer, 0..4096)
        .unwrap();
    queue.publish();
    drop(buffer);
    let request = back.take().unwrap();
    // It would fail to map what is granted no more.
    let response = back.carry_out(&request, &image);
    assert_eq!(world.guest.quarantined(), 0);
    back.respond(response);
    assert!(queue.complete().unwrap().is_some());
    assert_eq!(world.guest.quarantined(), 1, "the backend still maps it");
    drop(back);
    drop(queue);
    world.assert_nothing_is_left();
}

#[test]
fn a_pooled_buffer_is_used_again_only_after_the_answer() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    let pool = Pool::new(&world.guest, world.back.domid(), 1, 8);
    let first = pool.take().unwrap();
    let address = first.view().as_ptr();
    queue
        .submit(1, Direction::Read, 0, &first, 0..4096)
        .unwrap();
    queue.publish();
    drop(first);
    let second = pool.take().unwrap();
    assert_ne!(second.view().as_ptr(), address, "it is under way");
    drop(second);
    let request = back.take().unwrap();
    back.respond(answer(&request, Status::OKAY));
    assert!(queue.complete().unwrap().is_some());
    let third = [pool.take().unwrap(), pool.take().unwrap()];
    assert!(third.iter().any(|buffer| buffer.view().as_ptr() == address));
}

#[test]
fn waiting_ends_with_the_answer() {
    let world = World::new(1);
    let (mut queue, mut back) = world.queue();
    let buffer = world.buffer(1);
    let mut cx = Context::from_waker(Waker::noop());
    for turn in 0..100 {
        queue
            .submit(turn, Direction::Read, 0, &buffer, 0..512)
            .unwrap();
        queue.publish();
        assert!(queue.poll_ready(&mut cx).is_pending());
        let request = back.take().unwrap();
        back.respond(answer(&request, Status::OKAY));
        block_on(queue.wait()).unwrap();
        assert_eq!(queue.complete().unwrap().unwrap().token, turn);
    }
}
