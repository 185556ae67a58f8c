//! The handshake.

use std::sync::mpsc;

use parapet_hypervisor::block_on;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{
    Config, ConnectError, ControlError, Features, Gone, Hashing, Offloads, Status,
};
use parapet_xen_sys::io::netif::{
    ControlResponse, ControlStatus, ControlType, GrefFlags, GrefMapping, HashTypes,
};
use parapet_xen_sys::io::xenbus::XenbusState;
use zerocopy::FromBytes;

use crate::stage::{ControlBack, FULL, Keys, Served, Stage, frame};

#[test]
fn an_interface_is_what_the_toolstack_says_and_tells_the_backend_what_it_takes() {
    let stage = Stage::new();
    stage.backend(async |_back, _queue| std::future::pending().await);
    let config = Config::new().takes(Features {
        gso_v6: false,
        checksum_v4: false,
        ..Features::ALL
    });
    let (interface, mut queues) = stage.connect_as(config).unwrap();
    assert_eq!(interface.mac().to_string(), "00:16:3e:00:00:01");
    assert_eq!(interface.mtu(), 9000);
    assert_eq!(queues.len(), 1);
    assert_eq!(queues[0].sender.features(), Features::ALL);
    let expected = [
        ("state", "4"),
        ("request-rx-copy", "1"),
        ("feature-rx-notify", "1"),
        ("feature-sg", "1"),
        // It needs a checksum.
        ("feature-gso-tcpv4", "0"),
        ("feature-gso-tcpv6", "0"),
        ("feature-no-csum-offload", "1"),
        ("feature-ipv6-csum-offload", "1"),
    ];
    for (key, value) in expected {
        assert_eq!(stage.frontend_key(key).as_deref(), Some(value), "{key}");
    }
    for key in ["event-channel-tx", "event-channel-rx"] {
        assert!(stage.frontend_key(key).is_some(), "{key}");
    }
    for key in ["event-channel", "multi-queue-num-queues", "ctrl-ring-ref"] {
        assert_eq!(stage.frontend_key(key), None, "{key}");
    }
}

#[test]
fn there_are_as_many_queues_as_both_want_each_with_its_own_rings() {
    for split in [true, false] {
        let stage = Stage::new();
        let (sent, got) = mpsc::channel();
        stage.offering(FULL, async move |served: Served| {
            let (_back, queues, _) = served.accept().await;
            for (at, mut queue) in queues.into_iter().enumerate() {
                let got = queue.next().await;
                queue.done(&got);
                sent.send((at, got.bytes)).unwrap();
            }
            std::future::pending().await
        });
        let config = Config::new().queues(9).split_channels(split);
        let (_interface, mut queues) = stage.connect_as(config).unwrap();
        assert_eq!(queues.len(), 4);
        for (at, queue) in queues.iter_mut().enumerate() {
            let bytes = frame(60 + at);
            let sender = &mut queue.sender;
            sender
                .send_blocking(&[&bytes], Offloads::default())
                .unwrap();
            assert_eq!(got.recv().unwrap(), (at, bytes));
        }
    }
}

#[test]
fn a_backend_that_does_not_copy_is_refused_with_the_reason() {
    let stage = Stage::new();
    stage.offering(&[], async |_served: Served| std::future::pending().await);
    let refused = stage.connect_as(Config::new());
    assert!(matches!(refused, Err(ConnectError::NoCopy)));
    assert!(stage.reported().contains("feature-rx-copy"));
    stage.frontend_gets_to(XenbusState::Closed);
    stage.nothing_is_left();
}

#[test]
fn a_carrier_that_is_lost_and_comes_back_is_told_of() {
    let stage = Stage::new();
    stage.backend(async |_back, _queue| std::future::pending().await);
    let (interface, _queues) = stage.connect();
    let up = Status {
        connected: true,
        carrier: true,
    };
    let down = Status {
        carrier: false,
        ..up
    };
    let before = interface.status().unwrap();
    if before != up {
        assert_eq!(block_on(interface.changed(before)), Ok(up));
    }
    stage.set_backend_key("carrier", "0");
    assert_eq!(block_on(interface.changed(up)), Ok(down));
    stage.set_backend_key("carrier", "1");
    assert_eq!(block_on(interface.changed(down)), Ok(up));
}

const CONTROL: Keys = &[
    ("feature-rx-copy", "1"),
    ("feature-sg", "1"),
    ("feature-split-event-channels", "1"),
    ("feature-ctrl-ring", "1"),
    ("multi-queue-max-queues", "2"),
];

/// Answers requests, and tells of each.
async fn serve_control(mut control: ControlBack, statics: u32, told: mpsc::Sender<Told>) {
    let mut kept = Vec::new();
    loop {
        let request = control.link.next().await.unwrap();
        let [a, b, c] = request.data;
        let kind = ControlType::try_from(request.control).unwrap();
        let (mut data, mut bytes) = (0, Vec::new());
        match kind {
            ControlType::GetGrefMappingSize => data = statics,
            ControlType::AddGrefMapping => {
                bytes = control.named(b, c as usize * size_of::<GrefMapping>());
                for entry in <[GrefMapping]>::ref_from_bytes(&bytes).unwrap() {
                    let access = match entry.flags.contains(GrefFlags::READONLY) {
                        true => Access::ReadOnly,
                        false => Access::ReadWrite,
                    };
                    kept.push(control.map(entry.gref.0, access));
                }
            }
            ControlType::SetHashKey => bytes = control.named(a, b as usize),
            ControlType::SetHashMapping => bytes = control.named(a, b as usize * 4),
            _ => {}
        }
        told.send((kind, request.data, bytes)).unwrap();
        control.respond(ControlResponse {
            id: request.id,
            control: request.control,
            status: match (kind, a) {
                (ControlType::SetHashFlags, 0) => ControlStatus::INVALID_PARAMETER,
                _ => ControlStatus::SUCCESS,
            },
            data,
        });
    }
}

type Told = (ControlType, [u32; 3], Vec<u8>);

fn controlled(stage: &Stage, statics: u32) -> mpsc::Receiver<Told> {
    let (told, hears) = mpsc::channel();
    stage.offering(CONTROL, async move |served: Served| {
        let (_back, _queues, control) = served.accept().await;
        serve_control(control.unwrap(), statics, told).await;
    });
    hears
}

#[test]
fn a_backend_that_can_is_given_all_pages_to_keep_mapped_before_anything_is_sent() {
    for (statics, lists) in [(1024, 2), (256, 1), (255, 0), (0, 0)] {
        let stage = Stage::new();
        let told = controlled(&stage, statics);
        let (_interface, queues) = stage.connect_as(Config::new().queues(2)).unwrap();
        assert_eq!(queues.len(), 2);
        for queue in 0..2 {
            let (kind, data, _) = told.try_recv().unwrap();
            assert_eq!(kind, ControlType::GetGrefMappingSize);
            assert_eq!(data, [queue, 0, 0]);
            for list in 0..lists {
                let (kind, [of, _, entries], bytes) = told.try_recv().unwrap();
                assert_eq!(kind, ControlType::AddGrefMapping);
                assert_eq!((of, entries), (queue, 256));
                let entries = <[GrefMapping]>::ref_from_bytes(&bytes).unwrap();
                let read_only = list == 0;
                for entry in entries {
                    assert_eq!(entry.flags.contains(GrefFlags::READONLY), read_only);
                }
            }
        }
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn pages_stay_unmapped_when_that_is_wanted() {
    let stage = Stage::new();
    let told = controlled(&stage, 1024);
    let config = Config::new().static_grants(false);
    let _connection = stage.connect_as(config).unwrap();
    assert!(told.try_recv().is_err());
}

#[test]
fn the_backend_is_told_how_to_hash() {
    let stage = Stage::new();
    let told = controlled(&stage, 0);
    let (mut interface, _queues) = stage.connect();
    assert_eq!(told.recv().unwrap().0, ControlType::GetGrefMappingSize);
    let hashing = Hashing {
        types: HashTypes::IPV4 | HashTypes::IPV4_TCP,
        key: (0..40).collect(),
        mapping: (0..1100).map(|at| at % 2).collect(),
    };
    block_on(interface.set_hash(&hashing)).unwrap();
    let hears = || told.try_recv().unwrap();
    assert_eq!(hears(), (ControlType::SetHashAlgorithm, [1, 0, 0], vec![]));
    let (kind, [_, len, _], key) = hears();
    assert_eq!((kind, len), (ControlType::SetHashKey, 40));
    assert_eq!(key, hashing.key);
    assert_eq!(hears().1, [1100, 0, 0]);
    // As much of it as fits a page, each time.
    let (mut table, entries) = (Vec::new(), PAGE_SIZE as u32 / 4);
    for (expected, first) in [(entries, 0), (1100 - entries, entries)] {
        let (kind, [_, count, offset], bytes) = hears();
        assert_eq!(kind, ControlType::SetHashMapping);
        assert_eq!((count, offset), (expected, first));
        table.extend(bytes);
    }
    assert_eq!(<[u32]>::ref_from_bytes(&table).unwrap(), hashing.mapping);
    assert_eq!(hears(), (ControlType::SetHashFlags, [3, 0, 0], vec![]));
    let refused = Hashing {
        types: HashTypes::empty(),
        ..hashing
    };
    let refused = block_on(interface.set_hash(&refused));
    let expected = ControlError::Refused(ControlStatus::INVALID_PARAMETER);
    assert_eq!(refused, Err(expected));
}

#[test]
fn a_backend_without_a_control_ring_cannot_be_told() {
    let stage = Stage::new();
    stage.backend(async |_back, _queue| std::future::pending().await);
    let (mut interface, _queues) = stage.connect();
    let told = block_on(interface.hash_no_more());
    assert_eq!(told, Err(ControlError::NoRing));
}

#[test]
fn dropping_everything_closes_the_device_and_leaves_nothing_granted() {
    let stage = Stage::new();
    stage.backend(async |mut back, queue| {
        while back.changed().await.unwrap() != XenbusState::Closed {}
        drop(queue);
        back.close().await.unwrap().closed().await.unwrap();
    });
    let (interface, queues) = stage.connect();
    drop(interface);
    // A queue alone keeps it.
    assert_eq!(stage.frontend_key("state").as_deref(), Some("4"));
    drop(queues);
    stage.frontend_gets_to(XenbusState::Closed);
    stage.nothing_is_left();
}

#[test]
fn closing_tells_everybody_who_uses_a_queue() {
    let stage = Stage::new();
    stage.backend(async |mut back, queue| {
        while back.changed().await.unwrap() != XenbusState::Closed {}
        drop(queue);
        back.close().await.unwrap().closed().await.unwrap();
    });
    let (interface, mut queues) = stage.connect();
    let mut queue = queues.remove(0);
    let (ended, end) = mpsc::channel();
    stage.guest.spawn(async move {
        ended.send(queue.receiver.receive().await.err()).unwrap();
        let bytes = frame(60);
        let sent = queue.sender.send(&[&bytes], Offloads::default()).await;
        assert_eq!(sent, Err(Gone::Closed.into()));
    });
    interface.close();
    assert_eq!(end.recv().unwrap(), Some(Gone::Closed));
    stage.frontend_gets_to(XenbusState::Closed);
    stage.nothing_is_left();
}
