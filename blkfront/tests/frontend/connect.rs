//! The handshake, over our own xenstored, with a backend written by hand.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::mpsc;

use futures_util::future::{join_all, select};
use parapet_blkfront::{
    Away, Config, ConnectError, Discard, Disk, Error, Gone, Info, Queue, Violation,
};
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::yield_now;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::Status;
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::xenbus::{self, Backend, Connected};

use crate::stage::{Keys, Served, Stage, nodes};
use crate::world::{TestBack, answer, image};

const PLAIN: &[(&str, &str)] = &[("sectors", "2048"), ("feature-flush-cache", "1")];

#[test]
fn a_disk_is_connected_used_and_left_in_order() {
    let stage = Stage::new();
    let (closed, left) = mpsc::channel();
    stage.backend(PLAIN, |mut back, queue| async move {
        back.frontend_connected().await.unwrap();
        serve_until_closed(back, queue).await;
        closed.send(()).unwrap();
    });
    let disk = stage.connect().unwrap();
    let info = disk.info();
    assert_eq!((info.sectors, info.sector_size), (2048, 512));
    assert!(info.flush && !info.read_only && !info.persistent);
    let bytes: Vec<u8> = (0..1 << 20).map(|at| (at / 7) as u8).collect();
    block_on(disk.write_at(0, &bytes)).unwrap();
    block_on(disk.flush()).unwrap();
    let mut back = vec![0; 1 << 20];
    block_on(disk.read_at(0, &mut back)).unwrap();
    assert!(back == bytes);
    assert!(stage.guest.grants_in_use() > 0);
    drop(disk);
    left.recv().unwrap();
    stage.frontend_gets_to(XenbusState::Closed);
    assert_eq!(stage.dom0.mappings(), 1, "the guest's xenstore page");
    assert_eq!(stage.guest.quarantined(), 0);
}

/// What an honest backend does from then on, until the frontend has closed.
async fn serve_until_closed(mut back: Backend<Connected>, mut queue: TestBack) {
    let image = image(2048);
    {
        let serve = pin!(async {
            loop {
                let request = queue.next().await;
                let response = match request.nr_segments {
                    0 => answer(&request, Status::OKAY),
                    _ => queue.carry_out(&request, &image),
                };
                queue.respond(response);
            }
        });
        let leave =
            pin!(async { while !matches!(back.changed().await, Ok(XenbusState::Closed)) {} });
        select(serve, leave).await;
    }
    drop(queue);
    let back = back.close().await.unwrap();
    back.closed_first().await.unwrap();
}

#[test]
fn all_that_a_backend_says_of_its_disk_is_read() {
    let stage = Stage::new();
    let keys = &[
        ("sectors", "2048"),
        ("sector-size", "4096"),
        ("physical-sector-size", "8192"),
        // A CD, read-only, and a flag that nobody knows.
        ("info", "13"),
        ("feature-flush-cache", "1"),
        ("feature-barrier", "1"),
        ("feature-discard", "1"),
        ("discard-granularity", "4096"),
        ("discard-alignment", "512"),
        ("discard-secure", "1"),
        ("feature-max-indirect-segments", "32"),
        ("feature-persistent", "1"),
    ];
    stage.backend(keys, |_back, _queue| pending());
    let expected = Info {
        sectors: 2048,
        sector_size: 4096,
        physical_sector_size: 8192,
        read_only: true,
        cdrom: true,
        removable: false,
        flush: true,
        barrier: true,
        discard: Some(Discard {
            granularity: 4096,
            alignment: 512,
            secure: true,
        }),
        indirect_segments: 32,
        persistent: true,
    };
    assert_eq!(stage.connect().unwrap().info(), expected);
}

#[test]
fn what_a_backend_says_wrongly_is_its_fault_and_closes_the_device() {
    let wrong: [(&str, Keys); 18] = [
        ("sectors", &[]),
        ("sectors", &[("sectors", "-1")]),
        ("sectors", &[("sectors", "")]),
        ("sectors", &[("sectors", "18446744073709551615")]),
        ("sectors", &[("sectors", "99999999999999999999")]),
        ("sector-size", &[("sectors", "8"), ("sector-size", "513")]),
        ("info", &[("sectors", "8"), ("info", "cdrom")]),
        (
            "physical-sector-size",
            &[("sectors", "8"), ("physical-sector-size", "0")],
        ),
        (
            "feature-flush-cache",
            &[("sectors", "8"), ("feature-flush-cache", "\u{fffd}")],
        ),
        (
            "feature-max-indirect-segments",
            &[("sectors", "8"), ("feature-max-indirect-segments", "-1")],
        ),
        (
            "feature-max-indirect-segments",
            &[("sectors", "8"), ("feature-max-indirect-segments", "1e9")],
        ),
        (
            "feature-max-indirect-segments",
            &[
                ("sectors", "8"),
                ("feature-max-indirect-segments", "99999999999"),
            ],
        ),
        ("sector-size", &[("sectors", "8"), ("sector-size", "-512")]),
        (
            "feature-barrier",
            &[("sectors", "8"), ("feature-barrier", "yes")],
        ),
        (
            "feature-discard",
            &[("sectors", "8"), ("feature-discard", "x")],
        ),
        (
            "discard-granularity",
            &[
                ("sectors", "8"),
                ("feature-discard", "1"),
                ("discard-granularity", "513"),
            ],
        ),
        (
            "discard-alignment",
            &[
                ("sectors", "8"),
                ("feature-discard", "1"),
                ("discard-granularity", "4096"),
                ("discard-alignment", "4096"),
            ],
        ),
        (
            "discard-secure",
            &[
                ("sectors", "8"),
                ("feature-discard", "1"),
                ("discard-secure", "4294967296"),
            ],
        ),
    ];
    for (key, keys) in wrong {
        let stage = Stage::new();
        stage.backend(keys, |_, _| pending());
        let error = stage.connect().unwrap_err();
        let ConnectError::Xenbus(xenbus::Error::Peer { path, .. }) = &error else {
            panic!("{key}: {error}");
        };
        assert!(path.ends_with(&format!("/51712/{key}")), "{path}");
        stage.frontend_gets_to(XenbusState::Closed);
        assert!(stage.reported().contains(key), "{}", stage.reported());
    }
}

#[test]
fn an_offer_of_nothing_or_of_more_than_anybody_wants_is_no_harm() {
    const MOST: &str = "4294967295";
    let offers: [Keys; 5] = [
        &[("multi-queue-max-queues", "0")],
        &[
            ("multi-queue-max-queues", MOST),
            ("max-ring-page-order", MOST),
        ],
        &[("max-ring-pages", MOST), ("max-ring-page-order", "0")],
        &[("max-ring-pages", "0")],
        &[("max-ring-pages", "3")],
    ];
    const DISK: Keys = &[
        ("sectors", "2048"),
        ("feature-max-indirect-segments", "1000000000"),
    ];
    for offer in offers {
        let stage = Stage::new();
        stage.offering(offer, async move |waiting: Served| {
            let image = image(2048);
            let (_back, mut queues) = waiting.accept(DISK).await;
            loop {
                for queue in &mut queues {
                    while let Some(request) = queue.take() {
                        let response = queue.carry_out(&request, &image);
                        queue.respond(response);
                    }
                }
                yield_now().await;
            }
        });
        let disk = stage.connect_as(Config::new().queues(3)).unwrap();
        assert!((1..=3).contains(&disk.queues()), "{offer:?}");
        let buffer = disk.buffer(250).unwrap();
        let (result, _) = block_on(disk.write(0, buffer, ..));
        assert_eq!(result, Ok(()), "{offer:?}");
    }
}

#[test]
fn an_offer_that_is_no_number_is_the_backends_fault_and_closes_the_device() {
    let wrong: [(&str, Keys); 5] = [
        (
            "multi-queue-max-queues",
            &[("multi-queue-max-queues", "-1")],
        ),
        ("multi-queue-max-queues", &[("multi-queue-max-queues", "")]),
        (
            "max-ring-page-order",
            &[("max-ring-page-order", "4294967296")],
        ),
        ("max-ring-pages", &[("max-ring-pages", "many")]),
        ("max-ring-pages", &[("max-ring-pages", "1 1")]),
    ];
    for (key, offer) in wrong {
        let stage = Stage::new();
        stage.offering(offer, async |_waiting: Served| pending().await);
        let error = stage.connect().unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
        stage.frontend_gets_to(XenbusState::Closed);
        assert!(stage.reported().contains(key), "{}", stage.reported());
    }
}

#[test]
fn a_backend_that_gives_up_before_it_connects_is_reported() {
    let stage = Stage::new();
    let path = nodes(&stage.guest).backend_path();
    let client = stage.toolstack.clone();
    stage.dom0.spawn(async move {
        let back = Backend::open(&client, &path).await.unwrap();
        let mut back = back.announce(async |_| Ok(())).await.unwrap();
        back.frontend_ready().await.unwrap();
        back.close().await.unwrap();
    });
    let error = stage.connect().unwrap_err();
    let leaving = xenbus::Error::Leaving(XenbusState::Closing);
    assert_eq!(error, ConnectError::Xenbus(leaving));
    stage.frontend_gets_to(XenbusState::Closed);
}

/// Twenty reads that wait for an answer when the backend does `then`; how they end.
fn reads_end_when<F>(
    stage: &Stage,
    then: impl FnOnce(Backend<Connected>, TestBack) -> F + Send + 'static,
) -> Vec<Result<(), Error>>
where
    F: Future<Output = ()> + Send,
{
    stage.backend(PLAIN, |back, mut queue| async move {
        for _ in 0..20 {
            queue.next().await;
        }
        then(back, queue).await;
    });
    let config = Config::new().when_backend_leaves(Away::Fail);
    let disk = stage.connect_as(config).unwrap();
    let results = block_on(join_all((0..20).map(|_| async {
        let mut bytes = [0; 512];
        disk.read_at(0, &mut bytes).await
    })));
    stage.frontend_gets_to(XenbusState::Closed);
    results
}

#[test]
fn a_backend_that_closes_fails_what_is_outstanding() {
    let stage = Stage::new();
    let results = reads_end_when(&stage, |back, queue| async move {
        let _back = back.close().await.unwrap();
        pending::<()>().await;
        drop(queue);
    });
    let gone = Err(Error::Gone(Gone::BackendClosed));
    assert!(results.iter().all(|result| *result == gone), "{results:?}");
}

#[test]
fn a_backend_whose_nodes_vanish_fails_what_is_outstanding() {
    let stage = Stage::new();
    let (client, path) = (stage.toolstack.clone(), nodes(&stage.guest).backend_path());
    let results = reads_end_when(&stage, |_, queue| async move {
        drop(queue);
        client.remove(&path).await.unwrap();
    });
    let gone = Err(Error::Gone(Gone::BackendClosed));
    assert!(results.iter().all(|result| *result == gone), "{results:?}");
}

#[test]
fn a_violation_is_reported_where_people_look_for_it() {
    let stage = Stage::new();
    let results = reads_end_when(&stage, |_, mut queue| async move {
        queue.respond(parapet_xen_sys::io::blkif::native::Response {
            id: 12345,
            ..Default::default()
        });
        pending::<()>().await;
    });
    let id = 12345;
    let violation = Violation::NotOutstanding { id };
    let gone = Err(Error::Gone(Gone::Violation(violation)));
    assert!(results.iter().all(|result| *result == gone), "{results:?}");
    assert!(stage.reported().contains("0x3039"), "{}", stage.reported());
}

#[test]
fn a_disk_without_nodes_cannot_be_connected() {
    let stage = Stage::new();
    let nowhere = block_on(Disk::connect(&stage.guest, &stage.client, "device/vbd/1"));
    assert!(matches!(nowhere, Err(ConnectError::Xenbus(_))));
    let before = stage.guest.ports_in_use();
    drop(Queue::new(&stage.guest, DomId::ZERO, 1).unwrap());
    assert_eq!(stage.guest.ports_in_use(), before);
}
