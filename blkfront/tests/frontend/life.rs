//! Disks whose backends come and go, grow and shrink.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use parapet_blkfront::{Change, Config, Disk, Error, Gone};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::yield_now;
use parapet_xen_sys::io::blkif::{Operation, SECTOR_SIZE, Status};
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::Permission;
use parapet_xenstore::xenbus::{Backend, Keys};

use crate::stage::{Served, Stage, begin_anew, nodes};
use crate::world::{Image, TestBack, answer, image};

type Seen = Arc<Mutex<Vec<u64>>>;

const PLAIN: crate::stage::Keys = &[
    ("sectors", "2048"),
    ("feature-flush-cache", "1"),
    ("feature-max-indirect-segments", "256"),
];

/// Serves all queues for ever, and takes down the sectors asked for.
async fn serve(mut queues: Vec<TestBack>, image: Image, seen: Seen) {
    loop {
        for queue in &mut queues {
            while let Some(request) = queue.take() {
                seen.lock().unwrap().push(request.sector_number);
                let response = match request.nr_segments {
                    0 => answer(&request, Status::OKAY),
                    _ => queue.carry_out(&request, &image),
                };
                queue.respond(response);
            }
        }
        yield_now().await;
    }
}

/// What sector `at` is full of when it was written.
fn value(at: u64) -> u8 {
    (at % 251) as u8 + 1
}

/// Writes sector `at` with its number.
async fn mark(disk: &Disk<Domain>, at: u64) -> Result<(), Error> {
    disk.write_at(at * 512, &[value(at); 512]).await
}

fn assert_marked(image: &Image, sectors: impl Iterator<Item = u64>) {
    let image = image.lock().unwrap();
    for at in sectors {
        assert_eq!(
            image[at as usize * SECTOR_SIZE],
            at as u8 + 1,
            "sector {at}"
        );
    }
}

#[test]
fn what_a_backend_left_unanswered_is_asked_of_the_next_once_and_in_order() {
    let stage = Stage::new();
    let (image, seen) = (image(2048), Seen::default());
    let (served, taken) = (image.clone(), seen.clone());
    stage.offering(&[], async move |first: Served| {
        let domain = first.domain.clone();
        let (back, mut queues) = first.accept(PLAIN).await;
        for at in 0..30 {
            let request = queues[0].next().await;
            assert_eq!(request.sector_number, at);
            if at % 3 == 0 {
                let response = queues[0].carry_out(&request, &served);
                queues[0].respond(response);
            }
        }
        let (_back, queues) = begin_anew(back, queues, &domain, &[])
            .await
            .accept(PLAIN)
            .await;
        serve(queues, served, taken).await;
    });
    let disk = stage.connect().unwrap();
    let results = block_on(join_all((0..100).map(|at| mark(&disk, at))));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let expected = (0..100).filter(|at| *at >= 30 || at % 3 != 0);
    assert_eq!(*seen.lock().unwrap(), expected.collect::<Vec<_>>());
    assert_marked(&image, 0..100);
    assert_eq!(stage.guest.quarantined(), 0);
}

#[test]
fn a_backend_whose_directory_vanishes_and_comes_back_is_served_again() {
    let stage = Stage::new();
    let (image, seen) = (image(2048), Seen::default());
    let (served, taken) = (image.clone(), seen.clone());
    let path = nodes(&stage.guest).backend_path();
    let front = nodes(&stage.guest).frontend_path();
    let store = stage.toolstack.clone();
    let guest = stage.guest.domid();
    stage.offering(&[], async move |first: Served| {
        let domain = first.domain.clone();
        let (_back, mut queues) = first.accept(PLAIN).await;
        for _ in 0..5 {
            queues[0].next().await;
        }
        drop(queues);
        store.remove(&path).await.unwrap();
        let mut watch = store.watch(&format!("{front}/state")).await.unwrap();
        while store.read(&format!("{front}/state")).await.unwrap() != b"1" {
            watch.next().await.unwrap();
        }
        let (path, front) = (&path, &front);
        let made = store.transaction(|tx| async move {
            tx.mkdir(path).await?;
            let entries = [Permission::none(domain_zero()), Permission::read(guest)];
            tx.set_permissions(path, &entries).await?;
            let keys = Keys::new(tx, path.as_str());
            keys.set("frontend", front).await?;
            keys.set("frontend-id", guest).await?;
            keys.set("online", 1).await?;
            keys.set("state", 1).await
        });
        made.await.unwrap();
        let back = Backend::open(&store, path).await.unwrap();
        let again = Served::announce(domain, back, &[]).await;
        let (_back, queues) = again.accept(PLAIN).await;
        serve(queues, served, taken).await;
    });
    let disk = stage.connect().unwrap();
    let results = block_on(join_all((0..20).map(|at| mark(&disk, at))));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_marked(&image, 0..20);
}

fn domain_zero() -> parapet_xen_sys::DomId {
    parapet_xen_sys::DomId::ZERO
}

#[test]
fn a_backend_may_leave_again_and_again_under_load() {
    let stage = Stage::new();
    let image = image(2048);
    let served = image.clone();
    stage.offering(&[], async move |mut waiting: Served| {
        let domain = waiting.domain.clone();
        for turn in 0.. {
            let (back, mut queues) = waiting.accept(PLAIN).await;
            // More are taken than are answered, and what is answered is not in order.
            let mut taken = vec![queues[0].next().await];
            for _ in 0..turn % 7 {
                yield_now().await;
                taken.extend(queues[0].take());
            }
            for request in taken.iter().skip(turn % 3).rev() {
                let response = match request.nr_segments {
                    0 => answer(request, Status::OKAY),
                    _ => queues[0].carry_out(request, &served),
                };
                queues[0].respond(response);
            }
            waiting = begin_anew(back, queues, &domain, &[]).await;
        }
    });
    let disk = stage.connect().unwrap();
    let results = block_on(join_all((0..4).map(|task| {
        let disk = &disk;
        async move {
            for at in (task..120).step_by(4) {
                mark(disk, at).await?;
                disk.flush().await?;
                let mut back = [0; 512];
                disk.read_at(at * 512, &mut back).await?;
                assert_eq!(back, [value(at); 512]);
            }
            Ok::<_, Error>(())
        }
    })));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_marked(&image, 0..120);
}

#[test]
fn a_backend_that_comes_back_with_fewer_queues_and_shorter_requests_serves_everything() {
    const MANY: crate::stage::Keys = &[
        ("multi-queue-max-queues", "4"),
        ("max-ring-page-order", "1"),
        ("max-ring-pages", "2"),
    ];
    const SHORT: crate::stage::Keys =
        &[("sectors", "2048"), ("feature-max-indirect-segments", "0")];
    let stage = Stage::new();
    let (image, seen) = (image(2048), Seen::default());
    let (served, taken) = (image.clone(), seen.clone());
    stage.offering(MANY, async move |first: Served| {
        let domain = first.domain.clone();
        let (back, queues) = first.accept(PLAIN).await;
        assert_eq!(queues.len(), 4);
        let keys = Keys::new(back.client().clone(), back.own().base());
        assert!(keys.find::<String>("none").await.unwrap().is_none());
        let mut queues = queues;
        for queue in &mut queues {
            // Every queue has something to do.
            queue.next().await;
        }
        for key in MANY {
            keys.remove(key.0).await.unwrap();
        }
        let again = begin_anew(back, queues, &domain, &[]).await;
        let (_back, queues) = again.accept(SHORT).await;
        assert_eq!(queues.len(), 1, "and no key of the others is left");
        serve(queues, served, taken).await;
    });
    let config = Config::new().queues(8).ring_order(1);
    let disk = stage.connect_as(config).unwrap();
    assert_eq!(disk.queues(), 4);
    let bytes: Vec<u8> = (0..64 * 4096u32)
        .map(|at| value(u64::from(at) / 512))
        .collect();
    let buffers = join_all((0..4).map(|at| {
        let buffer = disk.buffer(64).unwrap();
        buffer.view().write_bytes(0, &bytes).unwrap();
        disk.write(at * 512, buffer, ..)
    }));
    for (result, _) in block_on(buffers) {
        assert_eq!(result, Ok(()));
    }
    let image = image.lock().unwrap();
    assert!(image.chunks(64 * 4096).all(|part| part == bytes));
    let seen = seen.lock().unwrap();
    let unique: BTreeSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "each part once");
    assert_eq!(seen.len(), 4 * 64usize.div_ceil(11));
}

#[test]
fn a_backend_may_die_in_every_state_of_its_way_back() {
    let stage = Stage::new();
    let (image, seen) = (image(2048), Seen::default());
    let (served, taken) = (image.clone(), seen.clone());
    stage.offering(&[], async move |first: Served| {
        let domain = first.domain.clone();
        let (back, mut queues) = first.accept(PLAIN).await;
        for _ in 0..5 {
            queues[0].next().await;
        }
        // In InitWait, as soon as it is there.
        let second = begin_anew(back, queues, &domain, &[]).await;
        let third = begin_anew(second.back, Vec::new(), &domain, &[]).await;
        // In InitWait, when the frontend has published its ring.
        let mut waiting = third.back;
        waiting.frontend_ready().await.unwrap();
        let fourth = begin_anew(waiting, Vec::new(), &domain, &[]).await;
        // Connected, before the frontend is so too, and with requests in the ring or without.
        let (back, queues) = fourth.accept(PLAIN).await;
        let fifth = begin_anew(back, queues, &domain, &[]).await;
        let (_back, queues) = fifth.accept(PLAIN).await;
        serve(queues, served, taken).await;
    });
    let disk = stage.connect().unwrap();
    let results = block_on(join_all((0..20).map(|at| mark(&disk, at))));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_marked(&image, 0..20);
}

#[test]
fn a_storm_of_states_costs_no_request() {
    let stage = Stage::new();
    let image = image(2048);
    stage.backend(PLAIN, |back, queue| async move {
        let storm = async {
            loop {
                back.own().set("state", 4).await.unwrap();
            }
        };
        let serve = serve(vec![queue], image, Seen::default());
        futures_util::future::join(std::pin::pin!(serve), std::pin::pin!(storm)).await;
    });
    let disk = stage.connect().unwrap();
    for at in 0..100 {
        assert_eq!(block_on(mark(&disk, at)), Ok(()));
    }
}

/// Ten reads that the first backend leaves unanswered, and the second is like `keys`.
fn ten_reads_over_a_change(keys: crate::stage::Keys) -> (Disk<Domain>, Vec<Result<(), Error>>) {
    let stage = Stage::new();
    stage.offering(&[], async move |first: Served| {
        let domain = first.domain.clone();
        let (back, mut queues) = first.accept(PLAIN).await;
        for _ in 0..10 {
            queues[0].next().await;
        }
        let again = begin_anew(back, queues, &domain, &[]).await;
        let (_back, queues) = again.accept(keys).await;
        serve(queues, image(2048), Seen::default()).await;
    });
    let disk = stage.connect().unwrap();
    let results = block_on(join_all((0..10).map(|at| {
        let disk = &disk;
        async move {
            let mut bytes = [0; 512];
            disk.read_at(at * 512, &mut bytes).await
        }
    })));
    if disk.gone().is_some() {
        stage.frontend_gets_to(XenbusState::Closed);
    }
    (disk, results)
}

#[test]
fn what_no_longer_fits_a_disk_that_shrank_fails_and_the_rest_is_done() {
    let (disk, results) = ten_reads_over_a_change(&[("sectors", "5")]);
    for (at, result) in results.into_iter().enumerate() {
        let expected = match at {
            0..5 => Ok(()),
            _ => Err(Error::Io(Status::ERROR)),
        };
        assert_eq!(result, expected, "sector {at}");
    }
    assert_eq!(disk.info().sectors, 5);
}

#[test]
fn a_backend_that_comes_back_with_other_sectors_is_not_taken_for_the_same_disk() {
    let keys = &[("sectors", "2048"), ("sector-size", "4096")];
    let (disk, results) = ten_reads_over_a_change(keys);
    let change = Change::SectorSize {
        was: 512,
        now: 4096,
    };
    let gone = Gone::Changed(change);
    assert!(results.iter().all(|result| *result == Err(gone.into())));
    assert_eq!(disk.gone(), Some(gone));
}

#[test]
fn a_backend_that_comes_back_with_nonsense_ends_the_disk() {
    let (_, results) = ten_reads_over_a_change(&[("sectors", "-1")]);
    let gone = Gone::Changed(Change::Unusable);
    assert!(results.iter().all(|result| *result == Err(gone.into())));
}

#[test]
fn a_disk_that_the_toolstack_removes_fails_what_is_outstanding() {
    let stage = Stage::new();
    let store = stage.toolstack.clone();
    let device = nodes(&stage.guest);
    stage.backend(PLAIN, |_back, mut queue| async move {
        queue.next().await;
        device.detach(&store).await.unwrap();
        std::future::pending::<()>().await;
    });
    let disk = stage.connect().unwrap();
    let gone = Err(Error::Gone(Gone::Removed));
    assert_eq!(block_on(mark(&disk, 0)), gone);
    assert_eq!(block_on(mark(&disk, 1)), gone);
    stage.frontend_gets_to(XenbusState::Closed);
}

#[test]
fn a_disk_can_be_closed_while_its_backend_is_away() {
    let stage = Stage::new();
    stage.backend(PLAIN, |back, mut queue| async move {
        queue.next().await;
        // It never comes back.
        let closing = back.close().await.unwrap();
        let _closed = closing.closed().await.unwrap();
        std::future::pending::<()>().await;
    });
    let disk = stage.connect().unwrap();
    let closer = async {
        stage.frontend_gets_to(XenbusState::Initialising);
        disk.close(Gone::Closed);
    };
    let (results, ()) = block_on(futures_util::future::join(
        join_all((0..300).map(|at| mark(&disk, at))),
        closer,
    ));
    let gone = Err(Error::Gone(Gone::Closed));
    assert!(results.iter().all(|result| *result == gone));
    stage.frontend_gets_to(XenbusState::Closed);
}

#[test]
fn a_backend_that_leaves_for_ever_and_keeps_our_memory_gets_only_so_much() {
    let stage = Stage::new();
    stage.offering(&[], async move |mut waiting: Served| {
        let domain = waiting.domain.clone();
        let mut kept = Vec::new();
        for _ in 0..100 {
            let (back, mut queues) = waiting.accept(PLAIN).await;
            let request = queues[0].next().await;
            queues[0].respond(answer(&request, Status::OKAY));
            kept.extend(queues);
            waiting = begin_anew(back, Vec::new(), &domain, &[]).await;
        }
    });
    let disk = stage.connect().unwrap();
    let grasping = Gone::Changed(Change::Grasping);
    let end = block_on(async {
        loop {
            if let Err(error) = disk.flush().await {
                return error;
            }
        }
    });
    assert_eq!(end, Error::Gone(grasping));
    // A ring of one page each time.
    assert_eq!(stage.guest.quarantined(), 17);
}

#[test]
fn a_new_size_is_known_to_who_waits_for_it_and_to_requests() {
    let stage = Stage::new();
    let mut sizes = vec![4096, 4096, 1024, 99, 3000];
    stage.backend(PLAIN, |back, mut queue| async move {
        let image = image(8192);
        loop {
            let request = queue.next().await;
            if let Operation::FlushDiskcache = request.operation.try_into().unwrap() {
                back.own().set("sectors", sizes.remove(0)).await.unwrap();
                back.own().set("state", 4).await.unwrap();
                queue.respond(answer(&request, Status::OKAY));
            } else {
                let response = queue.carry_out(&request, &image);
                queue.respond(response);
            }
        }
    });
    let disk = stage.connect().unwrap();
    let mut resizes = disk.resizes();
    block_on(async {
        let resized = disk.resized();
        assert!(mark(&disk, 4095).await.is_err());
        disk.flush().await.unwrap();
        assert_eq!(resized.await, Some(4096));
        mark(&disk, 4095).await.unwrap();
        assert_eq!(resizes.next().await, Some(4096));
        // The same again is no change.
        disk.flush().await.unwrap();
        disk.flush().await.unwrap();
        assert_eq!(resizes.next().await, Some(1024));
        assert!(matches!(
            mark(&disk, 1024).await,
            Err(Error::OutOfRange { sectors: 1024, .. })
        ));
        disk.flush().await.unwrap();
        assert_eq!(resizes.next().await, Some(99));
        drop(disk);
        assert_eq!(resizes.next().await, None);
    });
}

#[test]
fn a_size_that_is_none_changes_nothing() {
    let stage = Stage::new();
    stage.backend(PLAIN, |back, mut queue| async move {
        for size in ["-1", "", "99999999999999999999", "x", "4096"] {
            let request = queue.next().await;
            back.own().set("sectors", size).await.unwrap();
            back.own().set("state", 4).await.unwrap();
            queue.respond(answer(&request, Status::OKAY));
        }
        std::future::pending::<()>().await;
    });
    let disk = stage.connect().unwrap();
    let resized = disk.resized();
    for _ in 0..5 {
        block_on(disk.flush()).unwrap();
    }
    assert_eq!(block_on(resized), Some(4096));
    assert_eq!(disk.gone(), None);
}
