//! Backends that lie, storm, stall and die. Only errors come out: no hang, no panic, no leak.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use futures_util::future::join_all;
use parapet_blkfront::{Completion, Direction, Disk, Error, Failure, Gone, Info, Queue, Violation};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::yield_now;
use parapet_xen_sys::io::blkif::native::{Request, Response};
use parapet_xen_sys::io::blkif::{Operation, Status};
use proptest::prelude::*;

use crate::world::{TestBack, World, answer, image};

/// A queue with `count` reads outstanding, and what its backend has taken of them.
fn outstanding(world: &World, count: u64) -> (Queue<Domain>, TestBack, Vec<Request>) {
    let (mut queue, mut back) = world.queue();
    let buffer = world.buffer(1);
    for token in 0..count {
        queue
            .submit(token, Direction::Read, token, &buffer, 0..512)
            .unwrap();
    }
    queue.publish();
    let taken = (0..count).map(|_| back.take().unwrap()).collect();
    (queue, back, taken)
}

fn assert_ended(queue: &mut Queue<Domain>, world: &World, violation: Violation) {
    assert_eq!(queue.complete(), Err(violation));
    assert_eq!(queue.complete(), Err(violation), "for good");
    assert_eq!(block_on(queue.wait()), Err(violation));
    let refused = queue.submit(9, Direction::Read, 0, &world.buffer(1), 0..512);
    assert_eq!(refused, Err(violation.into()));
}

#[test]
fn an_answer_to_a_request_that_was_never_made_ends_the_queue() {
    let world = World::new(1);
    for id in [5, 0xffff, 31, 1 << 16, u64::MAX, 0x1_0000_0000_0000] {
        let (mut queue, mut back, taken) = outstanding(&world, 2);
        let lie = Request { id, ..taken[0] };
        back.respond(answer(&lie, Status::OKAY));
        assert_ended(&mut queue, &world, Violation::NotOutstanding { id });
        assert_eq!(queue.outstanding().count(), 2);
    }
}

#[test]
fn a_second_answer_to_a_request_ends_the_queue() {
    let world = World::new(1);
    let (mut queue, mut back, taken) = outstanding(&world, 2);
    back.respond(answer(&taken[1], Status::OKAY));
    back.respond(answer(&taken[1], Status::OKAY));
    let first = Completion {
        token: 1,
        result: Ok(()),
    };
    assert_eq!(queue.complete(), Ok(Some(first)));
    let id = taken[1].id;
    assert_ended(&mut queue, &world, Violation::NotOutstanding { id });
}

#[test]
fn a_second_answer_is_not_taken_for_one_to_the_next_user_of_the_place() {
    let world = World::new(1);
    let (mut queue, mut back, taken) = outstanding(&world, 1);
    let old = answer(&taken[0], Status::OKAY);
    back.respond(old);
    assert!(queue.complete().unwrap().is_some());
    queue
        .submit(7, Direction::Read, 0, &world.buffer(1), 0..512)
        .unwrap();
    queue.publish();
    let new = back.take().unwrap();
    assert_ne!(new.id, old.id);
    back.respond(old);
    let violation = Violation::NotOutstanding { id: old.id };
    assert_ended(&mut queue, &world, violation);
    assert_eq!(queue.outstanding().collect::<Vec<_>>(), [7]);
}

#[test]
fn an_answer_to_another_operation_ends_the_queue() {
    let world = World::new(1);
    for answered in [1, 3, 6, 255] {
        let (mut queue, mut back, taken) = outstanding(&world, 1);
        let lie = Request {
            operation: answered,
            ..taken[0]
        };
        back.respond(answer(&lie, Status::OKAY));
        let asked = Operation::Read;
        assert_ended(
            &mut queue,
            &world,
            Violation::WrongOperation { asked, answered },
        );
        assert_eq!(queue.outstanding().count(), 1, "its memory is kept");
    }
}

#[test]
fn more_answers_than_requests_end_the_queue() {
    let world = World::new(1);
    for produced in [3, 33, 1 << 31, u32::MAX] {
        let (mut queue, back, _) = outstanding(&world, 2);
        set_rsp_prod(&back, produced);
        let violation = queue.complete().unwrap_err();
        assert!(matches!(violation, Violation::Ring(_)));
        assert_ended(&mut queue, &world, violation);
    }
}

fn set_rsp_prod(back: &TestBack, value: u32) {
    let view = back.ring_view();
    view.atomic_u32(8).unwrap().store(value, Ordering::SeqCst);
    back.link.channel.notify();
}

#[test]
fn a_response_that_is_changed_after_it_was_read_changes_nothing() {
    let world = World::new(1);
    let (mut queue, mut back, taken) = outstanding(&world, 2);
    back.respond(answer(&taken[0], Status::OKAY));
    let first = queue.complete().unwrap().unwrap();
    assert_eq!((first.token, first.result), (0, Ok(())));
    let lie = answer(&taken[1], Status::ERROR);
    back.ring_view().write(64, &lie).unwrap();
    assert_eq!(queue.complete(), Ok(None));
    back.respond(answer(&taken[1], Status::OKAY));
    let second = queue.complete().unwrap().unwrap();
    assert_eq!((second.token, second.result), (1, Ok(())));
}

#[test]
fn a_backend_that_never_answers_costs_no_more_than_what_can_be_under_way() {
    let world = World::new(1);
    let (disk, _back) = world.disk(flushable());
    let mut bytes = [0; 512];
    let mut cx = Context::from_waker(Waker::noop());
    let mut most = 0;
    for turn in 0..1000 {
        let mut read = std::pin::pin!(disk.read_at(turn * 512, &mut bytes));
        assert!(read.as_mut().poll(&mut cx).is_pending());
        most = most.max(world.guest.grants_in_use());
    }
    // 64 places, a buffer of eleven pages each, and the ring.
    assert!(most <= 64 * 11 + 1, "{most} grants");
    disk.close(Gone::Closed);
    assert_eq!(
        block_on(disk.read_at(0, &mut bytes)),
        Err(Gone::Closed.into())
    );
}

#[test]
fn a_status_that_nobody_knows_is_a_failure_of_the_request_alone() {
    let world = World::new(1);
    for status in [-1, -3, 1, i16::MIN, i16::MAX] {
        let (mut queue, mut back, taken) = outstanding(&world, 2);
        back.respond(answer(&taken[0], Status(status)));
        back.respond(answer(&taken[1], Status::OKAY));
        let failed = queue.complete().unwrap().unwrap();
        assert_eq!(failed.result, Err(Failure::Io(Status(status))));
        assert_eq!(queue.complete().unwrap().unwrap().result, Ok(()));
    }
}

#[test]
fn a_failed_request_is_an_error_of_the_one_who_asked() {
    let world = World::new(1);
    let info = Info {
        flush: true,
        ..Info::plain(4096)
    };
    let (disk, mut back) = world.disk(info);
    let image = image(4096);
    world.back.spawn(async move {
        loop {
            let request = back.next().await;
            let response = match request.sector_number {
                _ if request.operation == 3 => answer(&request, Status::EOPNOTSUPP),
                88 => answer(&request, Status::ERROR),
                _ => back.carry_out(&request, &image),
            };
            back.respond(response);
        }
    });
    let io = Err(Error::Io(Status::ERROR));
    let mut bytes = vec![0; 1 << 20];
    assert_eq!(
        block_on(disk.read_at(0, &mut bytes)),
        io,
        "its second request"
    );
    assert_eq!(block_on(disk.write_at(88 * 512, &bytes)), io, "its first");
    assert_eq!(block_on(disk.flush()), Err(Error::Unsupported));
    assert_eq!(block_on(disk.read_at(176 * 512, &mut bytes)), Ok(()));
}

/// `count` requests of all kinds at the same time, and how each ended.
fn all_at_once(disk: &Disk<Domain>, count: u64) -> Vec<Result<(), Error>> {
    block_on(join_all((0..count).map(|at| async move {
        let mut bytes = vec![0; 512 * (at as usize % 300 + 1)];
        match at % 4 {
            0 => disk.read_at(at * 512, &mut bytes).await,
            1 => disk.write_at(at * 512, &bytes).await,
            2 => disk.flush().await,
            _ => {
                let buffer = disk.buffer(20).unwrap();
                disk.read(at, buffer, ..).await.0
            }
        }
    })))
}

fn flushable() -> Info {
    Info {
        flush: true,
        ..Info::plain(100_000)
    }
}

#[test]
fn after_a_violation_everybody_gets_the_reason_and_nobody_hangs() {
    for pcpus in [1, 2] {
        let world = World::new(pcpus);
        let (disk, mut back) = world.disk(flushable());
        let image = image(100_000);
        world.back.spawn(async move {
            for _ in 0..40 {
                let request = back.next().await;
                if request.nr_segments > 0 {
                    back.carry_out(&request, &image);
                }
                back.respond(answer(&request, Status::OKAY));
            }
            let mut lie = back.next().await;
            lie.id ^= 1 << 40;
            back.respond(answer(&lie, Status::OKAY));
            std::future::pending::<()>().await;
        });
        let results = all_at_once(&disk, 120);
        let gone = disk.gone().unwrap();
        assert!(matches!(
            gone,
            Gone::Violation(Violation::NotOutstanding { .. })
        ));
        let failed = results.iter().filter(|result| result.is_err());
        assert!(failed.clone().count() > 0);
        for result in failed {
            assert_eq!(*result, Err(Error::Gone(gone)));
        }
        for result in all_at_once(&disk, 120) {
            assert_eq!(result, Err(Error::Gone(gone)));
        }
    }
}

#[test]
fn a_silent_backend_that_dies_fails_what_waits_for_it() {
    let world = World::new(2);
    let (disk, mut back) = world.disk(flushable());
    let supervisor = disk.clone();
    let domain = world.back.clone();
    world.back.spawn(async move {
        // Takes some, maps them, and is gone before it answers.
        let image = image(100_000);
        for _ in 0..10 {
            let request = back.next().await;
            if request.nr_segments > 0 {
                back.carry_out(&request, &image);
            }
        }
        domain.shut_down(parapet_hypervisor::loopback::ShutdownReason::Crash);
        std::future::pending::<()>().await;
    });
    let back = world.back.clone();
    world.guest.spawn(async move {
        back.wait_shutdown().await;
        back.destroy().await;
        supervisor.close(Gone::BackendClosed);
    });
    for result in all_at_once(&disk, 120) {
        assert_eq!(result, Err(Error::Gone(Gone::BackendClosed)));
    }
    assert_eq!(world.guest.grants_in_use(), 0);
    assert_eq!(world.guest.quarantined(), 0);
}

#[test]
fn a_guest_that_is_destroyed_frees_a_thread_that_waits_for_its_disk() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(flushable());
    let guest = world.guest.clone();
    world.back.spawn(async move {
        let _never_answered = back.next().await;
        guest.destroy().await;
        std::future::pending::<()>().await;
    });
    for result in all_at_once(&disk, 60) {
        assert_eq!(result, Err(Error::Gone(Gone::Stopped)));
    }
}

#[test]
fn a_storm_of_events_costs_no_request_and_no_other_task() {
    let world = World::new(1);
    let (disk, mut back) = world.disk(flushable());
    let image = image(100_000);
    world.back.spawn(async move {
        loop {
            // An event a turn, whether there is anything to say or not.
            back.link.channel.notify();
            while let Some(request) = back.take() {
                let response = match request.nr_segments {
                    0 => answer(&request, Status::OKAY),
                    _ => back.carry_out(&request, &image),
                };
                back.respond(response);
            }
            yield_now().await;
        }
    });
    for result in all_at_once(&disk, 120) {
        assert_eq!(result, Ok(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever bytes are where responses should be, and whatever the index: what comes out is
    /// completions of requests that were outstanding, each once, and then perhaps a violation.
    #[test]
    fn garbage_in_the_ring_yields_completions_of_what_was_asked_or_a_violation(
        slots in proptest::collection::vec(any::<[u8; 16]>(), 32),
        ids in proptest::collection::vec(proptest::option::of(0usize..24), 32),
        operation in 0u8..2,
        rsp_prod in prop_oneof![0u32..26, any::<u32>()],
        tame: bool,
    ) {
        let world = World::new(1);
        let (mut queue, back, taken) = outstanding(&world, 24);
        let view = back.ring_view();
        for (at, (bytes, id)) in slots.iter().zip(&ids).enumerate() {
            let mut response: Response = zerocopy::transmute!(*bytes);
            if let Some(id) = *id {
                response.id = taken[id].id;
            }
            if tame {
                response.operation = operation;
            }
            view.write(64 + at * 112, &response).unwrap();
        }
        set_rsp_prod(&back, rsp_prod);
        let mut seen = std::collections::HashSet::new();
        let violation = loop {
            match queue.complete() {
                Ok(Some(completion)) => {
                    prop_assert!(completion.token < 24);
                    prop_assert!(seen.insert(completion.token), "completed twice");
                }
                Ok(None) => break None,
                Err(violation) => break Some(violation),
            }
        };
        prop_assert_eq!(queue.outstanding().count(), 24 - seen.len());
        if let Some(violation) = violation {
            assert_ended(&mut queue, &world, violation);
        }
        drop(queue);
        drop(back);
        world.assert_nothing_is_left();
    }

    /// The same under a disk in use: every future ends.
    #[test]
    fn garbage_under_a_disk_ends_every_future(
        noise in proptest::collection::vec((0usize..4096, any::<u8>()), 1..200), honest in 0u32..60
    ) {
        let world = World::new(1);
        let (disk, mut back) = world.disk(flushable());
        let watch = disk.clone();
        world.back.spawn(async move {
            for _ in 0..honest {
                let request = back.next().await;
                back.respond(answer(&request, Status::OKAY));
            }
            let view = back.ring_view();
            for (offset, value) in noise {
                view.write(offset, &value).unwrap();
                back.link.channel.notify();
                yield_now().await;
            }
            // If nothing of that was noticed, this is.
            while watch.gone().is_none() {
                set_rsp_prod(&back, 1 << 30);
                yield_now().await;
                set_rsp_prod(&back, 1 << 31);
                yield_now().await;
            }
        });
        for result in all_at_once(&disk, 80) {
            prop_assert!(matches!(
                result,
                Ok(()) | Err(Error::Gone(_) | Error::Io(_) | Error::Unsupported)
            ), "{:?}", result);
        }
    }
}
