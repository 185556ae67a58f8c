//! Frames out and in.

use std::num::NonZeroU16;

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{
    Checksum, Config, Features, Gso, GsoKind, Hash, Offloads, Queue, SendError, Unfit,
};
use parapet_xen_sys::io::netif::{
    ExtraFlags, ExtraGso, ExtraHash, ExtraType, GsoType, RxFlags, Status, TxFlags,
};

use crate::stage::{FULL, Served, Stage, eventually, frame};

const BLANK: Offloads = Offloads {
    checksum: Checksum::Blank,
    gso: None,
};

fn gso(kind: GsoKind, size: u16) -> Offloads {
    let size = NonZeroU16::new(size).unwrap();
    Offloads {
        checksum: Checksum::Blank,
        gso: Some(Gso { kind, size }),
    }
}

#[test]
fn frames_of_any_length_arrive_as_they_were_sent_in_as_few_slots_as_hold_them() {
    const LENGTHS: [usize; 9] = [14, 60, 64, 1514, 4095, 4096, 4097, 9014, 65535];
    let stage = Stage::new();
    let (sent, got) = std::sync::mpsc::channel();
    stage.backend(async move |_, mut queue| {
        loop {
            let got = queue.next().await;
            queue.done(&got);
            sent.send(got).unwrap();
        }
    });
    let (_interface, mut queues) = stage.connect();
    let sender = &mut queues[0].sender;
    for len in LENGTHS {
        let bytes = frame(len);
        // In parts that end anywhere.
        let parts: Vec<&[u8]> = bytes.chunks(1000).collect();
        sender.send_blocking(&parts, Offloads::default()).unwrap();
        let got = got.recv().unwrap();
        assert_eq!(got.bytes, bytes);
        assert_eq!(got.slots, len.div_ceil(4096));
        assert!(
            !got.flags
                .intersects(TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED)
        );
    }
    let counts = sender.statistics();
    assert_eq!(counts.frames, LENGTHS.len() as u64);
    assert_eq!(counts.bytes, LENGTHS.iter().sum::<usize>() as u64);
    eventually("all pages came back", || {
        sender.collect().unwrap();
        sender.under_way() == 0
    });
    assert_eq!(sender.statistics().failed, 0);
}

#[test]
fn what_is_left_to_be_done_to_a_frame_goes_beside_it() {
    let stage = Stage::new();
    let (sent, got) = std::sync::mpsc::channel();
    stage.backend(async move |_, mut queue| {
        loop {
            let got = queue.next().await;
            queue.done(&got);
            sent.send(got).unwrap();
        }
    });
    let (_interface, mut queues) = stage.connect();
    let sender = &mut queues[0].sender;
    let bytes = frame(9000);
    let mut send = |offloads, hash: Option<Hash>| {
        let mut draft = sender.reserve(bytes.len()).unwrap();
        draft.write(0, &bytes).unwrap();
        if let Some(hash) = hash {
            draft.set_hash(hash);
        }
        draft.send(offloads).unwrap();
        sender.flush();
        let got = got.recv().unwrap();
        assert_eq!(got.bytes, bytes);
        got
    };
    let intact = Offloads {
        checksum: Checksum::Intact,
        gso: None,
    };
    let got = send(intact, None);
    assert!(got.flags.contains(TxFlags::DATA_VALIDATED));
    assert!(!got.flags.contains(TxFlags::CSUM_BLANK));
    let got = send(BLANK, None);
    assert!(
        got.flags
            .contains(TxFlags::DATA_VALIDATED | TxFlags::CSUM_BLANK)
    );
    assert!(got.extras.is_empty());
    let hash = Hash {
        kind: 1,
        value: 0x0102_0304,
    };
    for (kind, wire) in [(GsoKind::TcpV4, 1), (GsoKind::TcpV6, 2)] {
        let got = send(gso(kind, 1448), None);
        assert!(got.flags.contains(TxFlags::CSUM_BLANK));
        assert_eq!(got.extras, [[1, 0, 0xA8, 0x05, wire, 0, 0, 0]]);
        let got = send(gso(kind, 1448), Some(hash));
        let expected = [
            [1, 1, 0xA8, 0x05, wire, 0, 0, 0],
            [4, 0, 1, 1, 0x04, 0x03, 0x02, 0x01],
        ];
        assert_eq!(got.extras, expected);
    }
}

#[test]
fn frames_come_in_with_all_that_the_backend_says_of_them() {
    let stage = Stage::new();
    stage.backend(async move |_back, mut queue| {
        let gso = ExtraGso {
            extra: ExtraType::Gso as u8,
            flags: ExtraFlags::MORE,
            size: 1448,
            gso: GsoType::TcpV6 as u8,
            _pad: 0,
            features: 0,
        };
        let hash = ExtraHash {
            extra: ExtraType::Hash as u8,
            flags: ExtraFlags::empty(),
            hash: 3,
            algorithm: 1,
            value: [0x78, 0x56, 0x34, 0x12],
        };
        let blank = RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED;
        queue.deliver(&frame(60), RxFlags::empty(), &[]).await;
        queue
            .deliver(&frame(1514), RxFlags::DATA_VALIDATED, &[])
            .await;
        queue.deliver(&frame(9014), blank, &[]).await;
        let extras = [zerocopy::transmute!(gso), zerocopy::transmute!(hash)];
        queue.deliver(&frame(65549), blank, &extras).await;
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect();
    let receiver = &mut queues[0].receiver;
    let expected = [
        (60, Checksum::Unchecked),
        (1514, Checksum::Intact),
        (9014, Checksum::Blank),
    ];
    let mut bytes = vec![0; 70000];
    for (len, checksum) in expected {
        let got = receiver.receive_blocking().unwrap();
        assert_eq!(got.copy_to(0, &mut bytes), len);
        assert_eq!(bytes[..len], frame(len));
        assert_eq!(
            got.offloads(),
            Offloads {
                checksum,
                gso: None
            }
        );
        assert_eq!(got.hash(), None);
        // From anywhere.
        assert_eq!(got.copy_to(50, &mut bytes[..10]), 10);
        assert_eq!(bytes[..10], frame(60)[50..]);
    }
    let got = receiver.receive_blocking().unwrap();
    assert_eq!(got.len(), 65549);
    assert_eq!(got.copy_to(0, &mut bytes), 65549);
    assert_eq!(bytes[..65549], frame(65549));
    assert_eq!(got.offloads(), gso(GsoKind::TcpV6, 1448));
    let hash = got.hash().unwrap();
    assert_eq!((hash.kind, hash.value), (3, 0x1234_5678));
}

#[test]
fn pages_are_posted_again_for_as_long_as_frames_come() {
    const COUNT: usize = 3000;
    for split in [true, false] {
        let stage = Stage::new();
        stage.backend(async move |_back, mut queue| {
            for at in 0..COUNT {
                let len = 14 + at % 5000;
                queue.deliver(&frame(len), RxFlags::empty(), &[]).await;
            }
            std::future::pending().await
        });
        let config = Config::new().split_channels(split);
        let (_interface, mut queues) = stage.connect_as(config).unwrap();
        let mut queue = queues.remove(0);
        let mut bytes = vec![0; 6000];
        for at in 0..COUNT {
            let got = queue.receiver.receive_blocking().unwrap();
            let len = got.copy_to(0, &mut bytes);
            assert_eq!(len, 14 + at % 5000);
            assert_eq!(bytes[..len], frame(len));
        }
        assert_eq!(queue.receiver.statistics().frames, COUNT as u64);
    }
}

#[test]
fn a_frame_whose_slots_are_published_one_by_one_is_one_frame() {
    let stage = Stage::new();
    let (more, go_on) = std::sync::mpsc::channel();
    stage.backend(async move |_back, mut queue| {
        for part in 0..3 {
            let request = queue.posted().await;
            queue.write(&request, 100, &[part; 50]);
            let flags = match part {
                2 => RxFlags::empty(),
                _ => RxFlags::MORE_DATA,
            };
            queue.fill(&request, 100, flags, 50);
            queue.publish_rx();
            queue.notify_rx();
            more.send(()).unwrap();
        }
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect();
    let receiver = &mut queues[0].receiver;
    go_on.recv().unwrap();
    let got = receiver.receive_blocking().unwrap();
    let mut bytes = [0; 150];
    assert_eq!(got.copy_to(0, &mut bytes), 150);
    assert_eq!(bytes[..50], [0; 50]);
    assert_eq!(bytes[100..], [2; 50]);
}

#[test]
fn a_frame_that_the_backend_could_not_deliver_is_counted_and_the_next_one_comes() {
    let stage = Stage::new();
    stage.backend(async move |_back, mut queue| {
        let request = queue.posted().await;
        queue.fill(&request, 0, RxFlags::empty(), Status::ERROR.0);
        let request = queue.posted().await;
        queue.fill(&request, 0, RxFlags::MORE_DATA, 1000);
        let request = queue.posted().await;
        queue.fill(&request, 0, RxFlags::empty(), Status::DROPPED.0);
        // Too short for a frame.
        let request = queue.posted().await;
        queue.fill(&request, 0, RxFlags::empty(), 13);
        queue.deliver(&frame(99), RxFlags::empty(), &[]).await;
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect();
    let receiver = &mut queues[0].receiver;
    assert_eq!(receiver.receive_blocking().unwrap().len(), 99);
    assert_eq!(receiver.statistics().failed, 3);
    assert_eq!(receiver.statistics().frames, 1);
}

#[test]
fn what_the_backend_refuses_is_counted() {
    let stage = Stage::new();
    stage.backend(async move |_back, mut queue| {
        for status in [Status::ERROR, Status::DROPPED, Status::OKAY] {
            let got = queue.next().await;
            queue.answer(got.ids[0], status);
            queue.tx.publish();
        }
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect();
    let sender = &mut queues[0].sender;
    for _ in 0..3 {
        sender.send_blocking(&[&frame(60)], BLANK).unwrap();
    }
    eventually("all are answered", || {
        sender.collect().unwrap();
        sender.under_way() == 0
    });
    assert_eq!(sender.statistics().failed, 2);
}

#[test]
fn a_full_ring_has_no_room_until_the_backend_answers() {
    let stage = Stage::new();
    let (full, is_full) = std::sync::mpsc::channel::<()>();
    let (total, answered) = std::sync::mpsc::channel();
    stage.backend(async move |_back, mut queue| {
        let mut held = Vec::new();
        for _ in 0..254 {
            held.push(queue.next().await);
        }
        // By then the other has found no room.
        while is_full.try_recv().is_err() {
            parapet_hypervisor::seam::yield_now().await;
        }
        let mut count = 0;
        loop {
            for got in held.drain(..) {
                queue.done(&got);
                count += 1;
            }
            if count == 1000 {
                total.send(count).unwrap();
            }
            held.push(queue.next().await);
        }
    });
    let (_interface, mut queues) = stage.connect();
    let sender = &mut queues[0].sender;
    let bytes = frame(64);
    let mut sent = 0;
    // Two slots are kept for extra information.
    while sender.try_send(&[&bytes], BLANK).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 254);
    assert_eq!(sender.try_send(&[&bytes], BLANK), Err(SendError::NoRoom));
    assert!(!sender.arm(64).unwrap());
    full.send(()).unwrap();
    block_on(async {
        while sent < 1000 {
            sender.feed(&[&bytes], BLANK).await.unwrap();
            sent += 1;
        }
        sender.flush();
    });
    assert_eq!(answered.recv().unwrap(), 1000);
}

#[test]
fn what_no_backend_or_not_this_one_takes_is_refused_and_nothing_is_lost() {
    const POOR: crate::stage::Keys = &[("feature-rx-copy", "1"), ("feature-no-csum-offload", "1")];
    let stage = Stage::new();
    stage.offering(POOR, async move |served: Served| {
        let (_back, mut queues, _) = served.accept().await;
        let got = queues[0].next().await;
        queues[0].done(&got);
        std::future::pending().await
    });
    let (_interface, mut queues) = stage.connect();
    let sender = &mut queues[0].sender;
    assert_eq!(sender.features(), Features::NONE);
    let refused = |result, unfit| assert_eq!(result, Err(SendError::Unfit(unfit)));
    let plain = Offloads::default();
    refused(sender.try_send(&[&frame(13)], plain), Unfit::TooShort(13));
    let too_long = Unfit::TooLong {
        len: 4097,
        most: 4096,
    };
    refused(sender.try_send(&[&frame(4097)], plain), too_long);
    refused(sender.try_send(&[&frame(60)], BLANK), Unfit::Offload);
    let segments = gso(GsoKind::TcpV4, 1448);
    refused(sender.try_send(&[&frame(4000)], segments), Unfit::Offload);
    assert_eq!(sender.under_way(), 0);
    sender.send_blocking(&[&frame(4096)], plain).unwrap();
    assert_eq!(sender.statistics().frames, 1);
}

#[test]
fn a_draft_can_be_shortened_or_dropped() {
    let stage = Stage::new();
    let (sent, got) = std::sync::mpsc::channel();
    stage.backend(async move |_, mut queue| {
        loop {
            let got = queue.next().await;
            queue.done(&got);
            sent.send(got.bytes).unwrap();
        }
    });
    let (_interface, mut queues) = stage.connect();
    let Queue { sender, .. } = &mut queues[0];
    drop(sender.reserve(65535).unwrap());
    assert_eq!(sender.under_way(), 0);
    for len in [60, 4096, 4097, 20000] {
        let mut draft = sender.reserve(65535).unwrap();
        draft.write(0, &frame(65535)).unwrap();
        assert_eq!(draft.shorten(13), Err(Unfit::TooShort(13)));
        draft.shorten(len).unwrap();
        assert!(draft.shorten(len + 1).is_err());
        assert!(draft.write(len, &[0]).is_err());
        draft.send(BLANK).unwrap();
        sender.flush();
        assert_eq!(got.recv().unwrap(), frame(len));
    }
}

#[test]
fn the_two_ends_of_a_queue_are_used_by_two_tasks_at_once() {
    const COUNT: usize = 2000;
    for split in [true, false] {
        let stage = Stage::new();
        // An echo.
        stage.offering(FULL, async move |served: Served| {
            let (_back, mut queues, _) = served.accept().await;
            let mut queue = queues.remove(0);
            loop {
                let got = queue.next().await;
                queue.done(&got);
                queue.deliver(&got.bytes, RxFlags::empty(), &[]).await;
            }
        });
        let config = Config::new().split_channels(split);
        let (_interface, mut queues) = stage.connect_as(config).unwrap();
        let Queue {
            mut sender,
            mut receiver,
        } = queues.remove(0);
        let (done, was_done) = std::sync::mpsc::channel();
        stage.guest.spawn(async move {
            for at in 0..COUNT {
                sender.send(&[&frame(14 + at)], BLANK).await.unwrap();
            }
            // Until the other has got all.
            std::future::pending::<()>().await;
        });
        stage.guest.spawn(async move {
            for at in 0..COUNT {
                let got = receiver.receive().await.unwrap();
                assert_eq!(got.len(), 14 + at);
            }
            done.send(()).unwrap();
        });
        was_done.recv().unwrap();
    }
}
