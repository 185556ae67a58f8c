//! A disk that tasks share, in front of an honest backend.

use std::future::Future;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use futures_util::future::{join_all, poll_immediate};
use parapet_blkfront::{BlockingDisk, Disk, Error, Gone, Info, MAX_REQUEST, Unfit};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::yield_now;
use parapet_xen_sys::io::blkif::{SECTOR_SIZE, Status};

use crate::world::{Image, World, answer, image};

const FLUSHABLE: Info = Info {
    flush: true,
    ..Info::plain(4096)
};

/// A disk with an honest backend in front of `image`.
fn served(world: &World, info: Info) -> (Disk<Domain>, Image) {
    let (disk, back) = world.disk(info);
    let image = image(info.sectors);
    world.back.spawn(back.serve(image.clone()));
    (disk, image)
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, len: usize, salt: u64) -> Vec<u8> {
    let word = |at: u64| (offset / 8 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
    (0..len as u64 / 8)
        .flat_map(|at| word(at).to_le_bytes())
        .collect()
}

#[test]
fn what_is_written_is_on_the_disk_and_is_read_back() {
    let world = World::new(1);
    let (disk, image) = served(&world, FLUSHABLE);
    // Several requests, more than the ring holds, and less than one.
    for (offset, len) in [
        (512, 1024 * 1024),
        (0, 512),
        (MAX_REQUEST as u64, MAX_REQUEST),
    ] {
        let bytes = pattern(offset, len, 1);
        block_on(disk.write_at(offset, &bytes)).unwrap();
        assert_eq!(image.lock().unwrap()[offset as usize..][..len], bytes);
        let mut back = vec![0; len];
        block_on(disk.read_at(offset, &mut back)).unwrap();
        assert!(back == bytes, "{len} bytes at {offset}");
    }
    let everything = FLUSHABLE.bytes().unwrap() as usize;
    let mut all = vec![0; everything];
    block_on(disk.read_at(0, &mut all)).unwrap();
    assert!(all == *image.lock().unwrap());
}

#[test]
fn a_buffer_goes_and_comes_back_without_a_copy() {
    let world = World::new(1);
    let (disk, image) = served(&world, FLUSHABLE);
    let buffer = disk.buffer(40).unwrap();
    let len = buffer.len() - 1024;
    let bytes = pattern(0, len, 2);
    buffer.view().write_bytes(512, &bytes).unwrap();
    let address = buffer.view().as_ptr();
    let (result, buffer) = block_on(disk.write(8, buffer, 512..512 + len));
    assert_eq!((result, buffer.view().as_ptr()), (Ok(()), address));
    assert!(image.lock().unwrap()[8 * SECTOR_SIZE..][..len] == bytes);
    buffer.view().zero();
    let (result, buffer) = block_on(disk.read(8, buffer, 512..=len + 511));
    assert_eq!(result, Ok(()));
    let mut back = vec![1; buffer.len()];
    buffer.view().read_bytes(0, &mut back).unwrap();
    assert!(back[512..][..len] == bytes);
    assert_eq!(back[..512], [0; 512]);
    assert_eq!(back[512 + len..], [0; 512]);
}

/// Nobody serves the disk: whatever is answered here was not sent.
#[test]
fn what_the_disk_cannot_do_is_refused_before_it_is_sent() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(Info::plain(100));
    let out_of_range = |first, count| Error::OutOfRange {
        first,
        count,
        sectors: 100,
    };
    let mut bytes = [0; 1024];
    let mut read = |offset| block_on(disk.read_at(offset, &mut bytes));
    assert_eq!(read(99 * 512), Err(out_of_range(99, 2)));
    assert!(matches!(read(1), Err(Error::Misaligned { offset: 1, .. })));
    let last = u64::MAX - 511;
    assert_eq!(read(last), Err(out_of_range(last / 512, 2)));
    let write = block_on(disk.write_at(0, &[0; 100]));
    assert!(matches!(write, Err(Error::Misaligned { end: 100, .. })));
    assert_eq!(block_on(disk.flush()), Err(Error::Unsupported));

    for sector in [100, u64::MAX, u64::MAX / 512 + 1] {
        let (result, _) = block_on(disk.read(sector, disk.buffer(1).unwrap(), ..));
        assert!(matches!(result, Err(Error::OutOfRange { .. })), "{sector}");
    }
    let (result, _) = block_on(disk.read(0, disk.buffer(1).unwrap(), 0..4608));
    assert!(matches!(
        result,
        Err(Error::Unfit(Unfit::OutOfBuffer { .. }))
    ));
    let (result, _) = block_on(disk.read(0, disk.buffer(1).unwrap(), ..0));
    assert!(matches!(
        result,
        Err(Error::Unfit(Unfit::OutOfBuffer { .. }))
    ));
    let (other, _other_back) = World::disk(&world, Info::plain(100));
    let foreign = parapet_blkfront::Buffer::new(&world.back, world.guest.domid(), 1).unwrap();
    let (result, _) = block_on(other.read(0, foreign, ..));
    assert_eq!(result, Err(Error::Unfit(Unfit::Foreign)));
    assert_eq!(block_on(disk.read_at(0, &mut [])), Ok(()));
    assert!(back.take().is_none());
}

#[test]
fn a_read_only_disk_refuses_writes_before_they_are_sent() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(Info {
        read_only: true,
        ..Info::plain(100)
    });
    assert_eq!(block_on(disk.write_at(0, &[0; 512])), Err(Error::ReadOnly));
    let (result, _) = block_on(disk.write(0, disk.buffer(1).unwrap(), ..));
    assert_eq!(result, Err(Error::ReadOnly));
    assert!(back.take().is_none());
}

#[test]
fn large_sectors_set_the_alignment_of_requests_and_of_memory() {
    let world = World::new(1);
    let (disk, _) = served(
        &world,
        Info {
            sector_size: 4096,
            ..Info::plain(80)
        },
    );
    let misaligned = |result| matches!(result, Err(Error::Misaligned { .. }));
    assert!(misaligned(block_on(disk.write_at(512, &[0; 4096]))));
    assert!(misaligned(block_on(disk.write_at(0, &[0; 512]))));
    let buffer = disk.buffer(2).unwrap();
    let (result, buffer) = block_on(disk.read(1, buffer, ..4096));
    assert!(misaligned(result));
    let (result, buffer) = block_on(disk.read(8, buffer, 512..4608));
    assert!(misaligned(result));
    let (result, _) = block_on(disk.read(8, buffer, 4096..));
    assert_eq!(result, Ok(()));
}

/// A generator of numbers: what it gives is the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Writes, reads back and verifies sectors of its own, as one of many tasks.
async fn churn(disk: Disk<Domain>, task: u64, tasks: u64) {
    let share = disk.info().bytes().unwrap() / tasks;
    let mut dice = Dice(task * 77 + 1);
    for turn in 0..30 {
        let len = (dice.roll(share / 512) + 1) * 512;
        let offset = task * share + dice.roll((share - len) / 512 + 1) * 512;
        let bytes = pattern(offset, len as usize, turn);
        if turn % 2 == 0 {
            disk.write_at(offset, &bytes).await.unwrap();
        } else {
            let buffer = disk.buffer(len.div_ceil(4096) as usize).unwrap();
            buffer.view().write_bytes(0, &bytes).unwrap();
            let (result, _) = disk.write(offset / 512, buffer, ..len as usize).await;
            result.unwrap();
        }
        let mut back = vec![0; len as usize];
        disk.read_at(offset, &mut back).await.unwrap();
        assert!(back == bytes, "task {task}, turn {turn}");
    }
}

fn many_tasks_keep_their_data(pcpus: usize) {
    const TASKS: u64 = 40;
    let world = World::new(pcpus);
    let (disk, _) = served(&world, Info::plain(40 * 200));
    let done = Arc::new(AtomicUsize::new(0));
    let finished = world.back.alloc_unbound(world.guest.domid()).unwrap();
    let finish = Arc::new(
        world
            .guest
            .bind(world.back.domid(), finished.port())
            .unwrap(),
    );
    for task in 0..TASKS {
        let (disk, done, finish) = (disk.clone(), done.clone(), finish.clone());
        world.guest.spawn(async move {
            churn(disk, task, TASKS).await;
            if done.fetch_add(1, Ordering::SeqCst) + 1 == TASKS as usize {
                finish.notify();
            }
        });
    }
    block_on(finished.wait());
    assert_eq!(world.guest.shutdown_reason(), None, "no task has panicked");
}

#[test]
fn many_tasks_on_one_physical_cpu_keep_their_data() {
    many_tasks_keep_their_data(1);
}

#[test]
fn many_tasks_on_two_physical_cpus_keep_their_data() {
    many_tasks_keep_their_data(2);
}

#[test]
fn threads_and_tasks_share_a_disk() {
    let world = World::new(2);
    let (disk, _) = served(&world, Info::plain(4 * 200));
    world.guest.spawn(churn(disk.clone(), 3, 4));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let disk = disk.clone();
            scope.spawn(move || block_on(churn(disk, thread, 4)));
        }
    });
}

#[test]
fn more_requests_than_places_wait_their_turn() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(Info::plain(4096));
    let all = join_all((0..200).map(|sector| {
        let (disk, buffer) = (&disk, disk.buffer(1).unwrap());
        async move { disk.read(sector, buffer, ..512).await.0 }
    }));
    world.back.spawn(async move {
        let mut answered = 0;
        while answered < 200 {
            let request = back.next().await;
            assert_eq!(request.sector_number, answered, "in the order of asking");
            back.respond(answer(&request, Status::OKAY));
            answered += 1;
        }
    });
    assert!(block_on(all).into_iter().all(|result| result.is_ok()));
}

#[test]
fn a_future_that_is_dropped_under_way_leaves_no_trace() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(Info::plain(4096));
    let image = image(4096);
    image.lock().unwrap().fill(5);
    let mut forgotten = vec![0; 20 * MAX_REQUEST];
    let mut wanted = vec![0; 4096];
    {
        let mut read = pin!(disk.read_at(0, &mut forgotten));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(read.as_mut().poll(&mut cx).is_pending());
    }
    let first = block_on(back.next());
    // What was forgotten is answered while the next request, which must not share its memory,
    // is under way.
    let served = image.clone();
    world.back.spawn(async move {
        let mut late = vec![first];
        loop {
            let request = back.next().await;
            if request.sector_number == 4000 {
                let response = back.carry_out(&request, &served);
                served.lock().unwrap().fill(6);
                for request in late.drain(..) {
                    let response = back.carry_out(&request, &served);
                    back.respond(response);
                }
                back.respond(response);
            } else {
                late.push(request);
            }
        }
    });
    block_on(disk.read_at(4000 * 512, &mut wanted)).unwrap();
    assert_eq!(wanted, [5; 4096]);
}

#[test]
fn a_future_that_is_dropped_at_any_point_gives_its_place_back() {
    let world = World::new(1);
    let (disk, image) = served(&world, FLUSHABLE);
    let mut bytes = [0; 4096];
    for _ in 0..500 {
        // Sent and forgotten, or still waiting for a place.
        block_on(poll_immediate(pin!(disk.read_at(0, &mut bytes))));
    }
    image.lock().unwrap().fill(3);
    block_on(disk.read_at(0, &mut bytes)).unwrap();
    assert_eq!(bytes, [3; 4096]);
}

#[test]
fn the_last_handle_closes_the_disk_and_gives_everything_back() {
    let world = World::new(1);
    let (disk, _) = served(&world, FLUSHABLE);
    block_on(disk.write_at(0, &[1; 65536])).unwrap();
    let other = disk.clone();
    drop(disk);
    block_on(other.write_at(0, &[1; 512])).unwrap();
    drop(other);
    block_on(world.back.destroy());
    // The queue's task of the guest drops the ring on its next turn.
    let (turned, turn) = (Arc::new(AtomicUsize::new(0)), world.guest.clone());
    let seen = turned.clone();
    turn.spawn(async move {
        yield_now().await;
        seen.store(1, Ordering::SeqCst);
    });
    crate::world::eventually("the guest's tasks have run", || {
        turned.load(Ordering::SeqCst) == 1
    });
    world.assert_nothing_is_left();
}

#[test]
fn a_closed_disk_answers_everything_with_the_reason() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(FLUSHABLE);
    let mut under_way = [0; 512];
    let mut read = pin!(disk.read_at(0, &mut under_way));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(read.as_mut().poll(&mut cx).is_pending());
    let _taken = block_on(back.next());
    disk.close(Gone::BackendClosed);
    let gone = Err(Error::Gone(Gone::BackendClosed));
    assert_eq!(block_on(read), gone);
    disk.close(Gone::Closed);
    assert_eq!(block_on(disk.flush()), gone, "the first reason stands");
    assert_eq!(disk.gone(), Some(Gone::BackendClosed));
}

#[test]
fn a_thread_reads_and_writes_a_disk_as_a_stream_to_its_end() {
    let world = World::new(1);
    let (disk, image) = served(&world, FLUSHABLE);
    let size = image.lock().unwrap().len();
    let bytes = pattern(0, size, 3);
    let mut stream = BlockingDisk::new(disk);
    stream.write_all(&bytes).unwrap();
    stream.flush().unwrap();
    assert_eq!(stream.write(&[0; 512]).unwrap(), 0, "the disk is full");
    assert!(*image.lock().unwrap() == bytes);
    assert_eq!(
        stream.seek(SeekFrom::End(-1024)).unwrap(),
        size as u64 - 1024
    );
    assert!(stream.seek(SeekFrom::Current(i64::MIN)).is_err());
    let mut rest = [0; 4096];
    assert_eq!(stream.read(&mut rest).unwrap(), 1024, "as much as there is");
    assert_eq!(rest[..1024], bytes[size - 1024..]);
    stream.seek(SeekFrom::Start(1)).unwrap();
    let misaligned = stream.read(&mut rest).unwrap_err();
    assert_eq!(misaligned.kind(), ErrorKind::InvalidInput);
    stream.rewind().unwrap();
    let mut all = vec![0; size];
    stream.read_exact(&mut all).unwrap();
    assert!(all == bytes);
}
