//! Backends that lie: each costs its guest one interface, and tells why.

use std::future::{Future, pending};
use std::pin::Pin;

use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{Gone, Interface, Offloads, Queue, Violation};
use parapet_xen_sys::io::netif::{ExtraInfo, RxFlags, RxResponse, RxSlot, Status};
use parapet_xen_sys::io::xenbus::XenbusState;
use parapet_xenstore::xenbus::{Backend, Connected};

use crate::stage::{Served, Stage, TestBack, eventually, frame};

type Lie<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Ends in order, whatever it did before.
async fn end(mut back: Backend<Connected>, queue: TestBack) {
    while back.changed().await.unwrap() != XenbusState::Closed {}
    drop(queue);
    back.close().await.unwrap().closed().await.unwrap();
}

/// A backend that does `lie` to a guest, of which the guest sees `violation` and closes.
fn told(lie: impl for<'a> FnOnce(&'a mut TestBack) -> Lie<'a> + Send + 'static) -> Violation {
    let stage = Stage::new();
    stage.backend(async move |back, mut queue| {
        lie(&mut queue).await;
        end(back, queue).await;
    });
    let (interface, mut queues) = stage.connect();
    let Queue { sender, receiver } = &mut queues[0];
    // Something to be answered.
    let sent = sender.try_send(&[&frame(60)], Offloads::default());
    sent.unwrap();
    sender.flush();
    let mut gone = None;
    eventually("it is found out", || {
        let looked = sender.collect().err();
        gone = looked.or_else(|| receiver.try_receive().err());
        gone.is_some()
    });
    let Some(Gone::Violation(violation)) = gone else {
        panic!("{gone:?}");
    };
    everybody_is_told(&interface, queues, violation);
    stage.frontend_gets_to(XenbusState::Closed);
    assert!(stage.reported().contains(&violation.to_string()));
    drop(interface);
    stage.nothing_is_left();
    violation
}

fn everybody_is_told(
    interface: &Interface<Domain>,
    mut queues: Vec<Queue<Domain>>,
    violation: Violation,
) {
    let gone = Gone::Violation(violation);
    assert_eq!(interface.status(), Err(gone));
    let Queue { sender, receiver } = &mut queues[0];
    assert_eq!(receiver.receive_blocking().err(), Some(gone));
    let sent = sender.send_blocking(&[&frame(60)], Offloads::default());
    assert_eq!(sent, Err(gone.into()));
}

/// A slot of data received, as the backend likes.
fn slot(id: u16, offset: u16, flags: RxFlags, status: i16) -> RxSlot {
    zerocopy::transmute!(RxResponse {
        id,
        offset,
        flags,
        status,
    })
}

fn extra(kind: u8, more: bool, data: [u8; 6]) -> RxSlot {
    zerocopy::transmute!(ExtraInfo {
        extra: kind,
        flags: zerocopy::transmute!(u8::from(more)),
        data,
    })
}

/// The slots as answers to the first pages.
fn receives(slots: Vec<RxSlot>) -> Violation {
    told(move |queue| {
        Box::pin(async move {
            for slot in slots {
                queue.posted().await;
                queue.push_rx(slot);
            }
            queue.publish_rx();
        })
    })
}

/// An answer to the one frame.
fn answers(id: u16, status: Status) -> Violation {
    told(move |queue| {
        Box::pin(async move {
            let got = queue.next().await;
            queue.answer(if id == RIGHT { got.ids[0] } else { id }, status);
            queue.tx.publish();
        })
    })
}

/// Stands for the id that there is.
const RIGHT: u16 = 0xFFFE;

const PLAIN: RxFlags = RxFlags::empty();

#[test]
fn an_answer_to_what_was_not_sent_is_found_out() {
    for id in [200, 256, 0xFFFF] {
        assert_eq!(
            answers(id, Status::OKAY),
            Violation::NotOutstanding { id },
            "{id}"
        );
    }
}

#[test]
fn a_second_answer_to_a_frame_is_found_out() {
    let stage = Stage::new();
    stage.backend(async |back, mut queue| {
        let (one, _other) = (queue.next().await, queue.next().await);
        for _ in 0..2 {
            queue.answer(one.ids[0], Status::OKAY);
        }
        queue.tx.publish();
        end(back, queue).await;
    });
    let (interface, mut queues) = stage.connect();
    let sender = &mut queues[0].sender;
    for _ in 0..2 {
        let sent = sender.try_send(&[&frame(60)], Offloads::default());
        sent.unwrap();
    }
    sender.flush();
    let mut gone = None;
    eventually("it is found out", || {
        gone = sender.collect().err();
        gone.is_some()
    });
    let Some(Gone::Violation(violation @ Violation::NotOutstanding { .. })) = gone else {
        panic!("{gone:?}");
    };
    everybody_is_told(&interface, queues, violation);
}

#[test]
fn a_status_that_means_nothing_is_found_out() {
    for status in [-3, 2, i16::MIN, i16::MAX] {
        assert_eq!(answers(RIGHT, Status(status)), Violation::Status(status));
    }
    let received = receives(vec![slot(0, 0, PLAIN, -3)]);
    assert_eq!(received, Violation::Status(-3));
}

#[test]
fn an_answer_to_extra_information_that_was_not_sent_is_found_out() {
    let violation = answers(7, Status::NULL);
    assert_eq!(violation, Violation::NotOutstanding { id: 7 });
}

#[test]
fn a_frame_in_a_page_that_was_not_next_is_found_out() {
    let received = receives(vec![slot(1, 0, PLAIN, 60)]);
    assert_eq!(received, Violation::NotOutstanding { id: 1 });
    let received = receives(vec![
        slot(0, 0, RxFlags::MORE_DATA, 60),
        slot(0, 0, PLAIN, 60),
    ]);
    assert_eq!(received, Violation::NotOutstanding { id: 0 });
}

#[test]
fn a_frame_that_reaches_past_its_page_is_found_out() {
    for (offset, len) in [
        (0, 4097),
        (4096, 1),
        (4000, 97),
        (u16::MAX, 1),
        (1, i16::MAX),
    ] {
        let received = receives(vec![slot(0, offset, PLAIN, len)]);
        let len = len as u16;
        assert_eq!(received, Violation::OutOfPage { offset, len });
    }
}

#[test]
fn a_frame_without_end_is_found_out() {
    let slots = (0..30).map(|id| slot(id, 0, RxFlags::MORE_DATA, 10));
    assert_eq!(receives(slots.collect()), Violation::TooManyParts);
}

#[test]
fn extra_information_without_end_is_found_out() {
    let first = slot(0, 0, RxFlags::EXTRA_INFO, 60);
    let gso = extra(1, true, [100, 0, 1, 0, 0, 0]);
    let hash = extra(4, true, [0; 6]);
    let received = receives(vec![first, gso, hash, gso]);
    assert_eq!(received, Violation::Extra(1));
    let received = receives(vec![first, hash, hash]);
    assert_eq!(received, Violation::Extra(4));
}

#[test]
fn extra_information_that_is_not_for_us_is_found_out() {
    let first = slot(0, 0, RxFlags::EXTRA_INFO, 60);
    for kind in [0, 2, 3, 5, 255] {
        let received = receives(vec![first, extra(kind, false, [0; 6])]);
        assert_eq!(received, Violation::Extra(kind));
    }
}

#[test]
fn segments_of_no_size_or_of_no_protocol_are_found_out() {
    let first = slot(0, 0, RxFlags::EXTRA_INFO, 60);
    for (size, kind) in [(0, 1), (100, 0), (100, 3), (100, 255)] {
        let gso = extra(1, false, [size, 0, kind, 0, 0, 0]);
        let size = u16::from(size);
        assert_eq!(receives(vec![first, gso]), Violation::Gso { size, kind });
    }
}

#[test]
fn a_ring_index_that_jumps_is_found_out() {
    const RSP_PROD: usize = 8;
    for jump in [2, 257, 0x8000_0000, u32::MAX] {
        let transmit = told(move |queue| {
            Box::pin(async move {
                queue.next().await;
                queue.tx_ring().write(RSP_PROD, &jump).unwrap();
            })
        });
        assert!(matches!(transmit, Violation::Ring(_)), "{jump}: {transmit}");
    }
    for jump in [257, 0x8000_0000, u32::MAX] {
        let receive = told(move |queue| {
            Box::pin(async move {
                queue.rx_ring().write(RSP_PROD, &jump).unwrap();
                queue.notify_rx();
            })
        });
        assert!(matches!(receive, Violation::Ring(_)), "{jump}: {receive}");
    }
}

#[test]
fn a_backend_that_storms_with_events_does_not_keep_the_guest_from_its_work() {
    let stage = Stage::new();
    stage.backend(async |_back, queue| {
        loop {
            queue.notify_rx();
            parapet_hypervisor::seam::yield_now().await;
        }
    });
    let (_interface, mut queues) = stage.connect();
    let mut queue = queues.remove(0);
    stage.guest.spawn(async move {
        let _ = queue.receiver.receive().await;
    });
    // On the one processor that both have.
    let (done, was_done) = std::sync::mpsc::channel();
    stage.guest.spawn(async move { done.send(()).unwrap() });
    was_done.recv().unwrap();
}

#[test]
fn pages_that_a_dead_backend_keeps_are_quarantined() {
    let stage = Stage::new();
    let (kept, keeps) = std::sync::mpsc::channel();
    stage.offering(crate::stage::FULL, async move |served: Served| {
        let (back, mut queues, _) = served.accept().await;
        queues[0].next().await;
        // It says that it has let go, and has not.
        let mut closing = back.close().await.unwrap();
        while closing.changed().await.unwrap() != XenbusState::Closed {}
        let _closed = closing.closed().await.unwrap();
        kept.send(queues).unwrap();
        pending().await
    });
    let config = parapet_netfront::Config::new().when_backend_leaves(parapet_netfront::Away::Fail);
    let (interface, mut queues) = stage.connect_as(config).unwrap();
    let Queue { sender, receiver } = &mut queues[0];
    let sent = sender.send_blocking(&[&frame(60)], Offloads::default());
    assert_eq!(sent, Ok(()));
    let gone = receiver.receive_blocking().err();
    assert_eq!(gone, Some(Gone::BackendClosed));
    let rings = keeps.recv().unwrap();
    drop((interface, queues));
    eventually("two rings are in quarantine", || {
        stage.guest.quarantined() == 2
    });
    drop(rings);
    stage.nothing_is_left();
}
