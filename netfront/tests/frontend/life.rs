//! A backend that goes away, and one that comes.

use std::sync::mpsc;

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{Away, Change, Config, Gone, Hashing, Mac, Offloads, Queue};
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlResponse, ControlStatus, HashTypes, RxFlags, TxFlags,
};
use parapet_xen_sys::io::xenbus::XenbusState;

use crate::stage::{ControlBack, FULL, Keys, Served, Stage, begin_anew, eventually, frame, nodes};

const PLAIN: Offloads = Offloads {
    checksum: parapet_netfront::Checksum::Unchecked,
    gso: None,
};

#[test]
fn an_interface_outlives_its_backend_and_counts_what_was_lost() {
    const TIMES: usize = 3;
    let stage = Stage::new();
    stage.offering(FULL, async move |mut served: Served| {
        for turn in 0..TIMES {
            let domain = served.domain.clone();
            let (back, mut queues, _) = served.accept().await;
            let queue = &mut queues[0];
            // One is answered, one delivered, and one lost.
            let got = queue.next().await;
            assert_eq!(got.bytes, frame(100 + turn));
            queue.done(&got);
            queue
                .deliver(&frame(200 + turn), RxFlags::empty(), &[])
                .await;
            queue.next().await;
            served = begin_anew(back, queues, &domain, FULL).await;
        }
        let (_back, _queues, _) = served.accept().await;
        std::future::pending().await
    });
    let (interface, mut queues) = stage.connect();
    let Queue { sender, receiver } = &mut queues[0];
    for turn in 0..TIMES {
        sender.send_blocking(&[&frame(100 + turn)], PLAIN).unwrap();
        let got = receiver.receive_blocking().unwrap();
        assert_eq!(got.len(), 200 + turn);
        drop(got);
        eventually("the first came back", || {
            sender.collect().unwrap();
            sender.under_way() == 0
        });
        let before = interface.status().unwrap();
        assert!(before.connected);
        sender.send_blocking(&[&frame(60)], PLAIN).unwrap();
        // The next one finds the next backend: the lost one counts by then.
        block_on(async {
            let mut now = before;
            while now.connected {
                now = interface.changed(now).await.unwrap();
            }
            while !now.connected {
                now = interface.changed(now).await.unwrap();
            }
        });
        sender.collect().unwrap();
        assert_eq!(sender.statistics().lost, turn as u64 + 1);
    }
    assert_eq!(sender.statistics().frames, 2 * TIMES as u64);
    assert_eq!(receiver.statistics().frames, TIMES as u64);
    assert_eq!(stage.guest.quarantined(), 0);
}

#[test]
fn who_waits_for_room_or_for_a_frame_waits_on_for_the_next_backend() {
    let stage = Stage::new();
    stage.offering(FULL, async |served: Served| {
        let domain = served.domain.clone();
        let (back, mut queues, _) = served.accept().await;
        // The guest has no room any more, and waits.
        for _ in 0..254 {
            queues[0].next().await;
        }
        let served = begin_anew(back, queues, &domain, FULL).await;
        let (_back, mut queues, _) = served.accept().await;
        let got = queues[0].next().await;
        queues[0].done(&got);
        queues[0].deliver(&got.bytes, RxFlags::empty(), &[]).await;
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect();
    let Queue {
        mut sender,
        mut receiver,
    } = queues.remove(0);
    let (received, was_received) = mpsc::channel();
    stage.guest.spawn(async move {
        let got = receiver.receive().await.unwrap();
        received.send(got.len()).unwrap();
    });
    for _ in 0..254 {
        sender.send_blocking(&[&frame(60)], PLAIN).unwrap();
    }
    sender.send_blocking(&[&frame(77)], PLAIN).unwrap();
    assert_eq!(was_received.recv(), Ok(77));
    assert_eq!(sender.statistics().lost, 254);
}

#[test]
fn groups_are_joined_again_with_the_next_backend() {
    const MULTICAST: Keys = &[
        ("feature-rx-copy", "1"),
        ("feature-split-event-channels", "1"),
        ("feature-multicast-control", "1"),
    ];
    let stage = Stage::new();
    let (joined, joins) = mpsc::channel();
    stage.offering(MULTICAST, async move |mut served: Served| {
        for count in [3, 1] {
            let domain = served.domain.clone();
            let (back, mut queues, _) = served.accept().await;
            for _ in 0..count {
                let got = queues[0].next().await;
                assert_eq!(got.flags, TxFlags::EXTRA_INFO);
                queues[0].done(&got);
                joined.send(got.extras[0]).unwrap();
            }
            served = begin_anew(back, queues, &domain, MULTICAST).await;
        }
    });
    let config = Config::new().multicast_control(true);
    let (interface, mut queues) = stage.connect_as(config).unwrap();
    let key = stage.frontend_key("request-multicast-control");
    assert_eq!(key.as_deref(), Some("1"));
    let group = |last| Mac([1, 0, 0x5E, 0, 0, last]);
    let of = |kind, last| [kind, 0, 1, 0, 0x5E, 0, 0, last];
    let sender = &mut queues[0].sender;
    block_on(async {
        sender.join(group(1)).await.unwrap();
        sender.join(group(2)).await.unwrap();
        sender.leave(group(1)).await.unwrap();
    });
    let heard = || joins.recv().unwrap();
    assert_eq!([heard(), heard(), heard()], [of(2, 1), of(2, 2), of(3, 1)]);
    // Nobody has to do anything for it.
    assert_eq!(heard(), of(2, 2));
    drop(interface);
}

#[test]
fn a_backend_that_shall_not_be_waited_for_ends_the_interface() {
    let stage = Stage::new();
    stage.backend(async |back, mut queue| {
        queue.next().await;
        let mut closing = back.close().await.unwrap();
        while closing.changed().await.unwrap() != XenbusState::Closed {}
        drop(queue);
        closing.closed().await.unwrap();
    });
    let config = Config::new().when_backend_leaves(Away::Fail);
    let (_interface, mut queues) = stage.connect_as(config).unwrap();
    let Queue { sender, receiver } = &mut queues[0];
    sender.send_blocking(&[&frame(60)], PLAIN).unwrap();
    let gone = receiver.receive_blocking().err();
    assert_eq!(gone, Some(Gone::BackendClosed));
    drop(queues);
    stage.nothing_is_left();
}

#[test]
fn an_interface_that_the_toolstack_takes_away_is_gone() {
    let stage = Stage::new();
    stage.backend(async |back, queue| {
        while back.is_online().await.unwrap() {
            let _ = parapet_hypervisor::seam::yield_now().await;
        }
        let mut closing = back.close().await.unwrap();
        while closing.changed().await.unwrap() != XenbusState::Closed {}
        drop(queue);
        closing.closed().await.unwrap();
    });
    let (_interface, mut queues) = stage.connect();
    block_on(nodes(&stage.guest).detach(&stage.toolstack)).unwrap();
    let gone = queues[0].receiver.receive_blocking().err();
    assert_eq!(gone, Some(Gone::Removed));
    drop(queues);
    stage.nothing_is_left();
}

#[test]
fn a_backend_that_comes_back_with_fewer_queues_than_are_in_use_ends_the_interface() {
    const ONE: Keys = &[("feature-rx-copy", "1")];
    let stage = Stage::new();
    stage.offering(FULL, async |served: Served| {
        let domain = served.domain.clone();
        let (back, mut queues, _) = served.accept().await;
        queues[1].next().await;
        // What it offered before is in its directory still.
        back.own().remove("multi-queue-max-queues").await.unwrap();
        let served = begin_anew(back, queues, &domain, ONE).await;
        let (_back, _queues, _) = served.accept().await;
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect_as(Config::new().queues(2)).unwrap();
    let Queue { sender, receiver } = &mut queues[1];
    sender.send_blocking(&[&frame(60)], PLAIN).unwrap();
    let gone = receiver.receive_blocking().err();
    let expected = Change::Queues { was: 2, now: 1 };
    assert_eq!(gone, Some(Gone::Changed(expected)));
}

#[test]
fn a_backend_that_leaves_in_the_middle_of_being_told_to_hash_is_waited_for_again() {
    const CONTROL: Keys = &[("feature-rx-copy", "1"), ("feature-ctrl-ring", "1")];
    /// What one asks for that has an algorithm, a key, a table without entries, and types.
    const REQUESTS: usize = 4;
    async fn next(control: &mut Option<ControlBack>) -> ControlRequest {
        control.as_mut().unwrap().link.next().await.unwrap()
    }
    async fn obey(control: &mut Option<ControlBack>) {
        for _ in 0..REQUESTS {
            let ControlRequest {
                id, control: kind, ..
            } = next(control).await;
            control.as_mut().unwrap().respond(ControlResponse {
                id,
                control: kind,
                status: ControlStatus::SUCCESS,
                data: 0,
            });
        }
    }
    let stage = Stage::new();
    stage.offering(CONTROL, async |served: Served| {
        let domain = served.domain.clone();
        let (back, queues, mut control) = served.accept().await;
        obey(&mut control).await;
        drop(control);
        let served = begin_anew(back, queues, &domain, CONTROL).await;
        let (back, queues, mut control) = served.accept().await;
        next(&mut control).await;
        drop(control);
        let served = begin_anew(back, queues, &domain, CONTROL).await;
        let (_back, mut queues, mut control) = served.accept().await;
        obey(&mut control).await;
        queues[0].deliver(&frame(77), RxFlags::empty(), &[]).await;
        std::future::pending().await
    });
    let config = Config::new().static_grants(false);
    let (mut interface, mut queues) = stage.connect_as(config).unwrap();
    let hashing = Hashing {
        types: HashTypes::IPV4,
        key: vec![1; 40],
        mapping: Vec::new(),
    };
    block_on(interface.set_hash(&hashing)).unwrap();
    eventually("the third backend serves it", || {
        let got = queues[0].receiver.try_receive().unwrap();
        got.is_some_and(|got| got.len() == 77)
    });
    assert_eq!(stage.guest.quarantined(), 0);
}
