//! Frames from guest to guest: as they were, with what is left to be done to them.

use std::num::NonZeroU16;
use std::sync::mpsc;
use std::time::Duration;

use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::{
    Checksum, Config, Features, Gso, GsoKind, Mac, Offloads, Queue, Receiver, Sender,
};
use parapet_packet::checksum::{Sum, pseudo};
use parapet_packet::headers::Headers;
use proptest::prelude::*;

use crate::host::{Guest, Host, frame};

const PLAIN: Offloads = Offloads {
    checksum: Checksum::Unchecked,
    gso: None,
};

/// Has the switch learn who is where, from both sides.
pub(crate) fn greet(
    (a, one): (&Guest, &mut Queue<Domain>),
    (b, other): (&Guest, &mut Queue<Domain>),
) {
    let hello = frame(a.mac, b.mac, 1, 60);
    let answer = frame(b.mac, a.mac, 2, 60);
    one.sender.send_blocking(&[&hello], PLAIN).unwrap();
    assert_eq!(received(&mut other.receiver).0, hello);
    other.sender.send_blocking(&[&answer], PLAIN).unwrap();
    assert_eq!(received(&mut one.receiver).0, answer);
}

pub(crate) fn received(receiver: &mut Receiver<Domain>) -> (Vec<u8>, Offloads) {
    let got = receiver.receive_blocking().unwrap();
    let mut bytes = vec![0; got.len()];
    assert_eq!(got.copy_to(0, &mut bytes), bytes.len());
    (bytes, got.offloads())
}

#[test]
fn frames_of_every_length_arrive_as_they_were_sent() {
    for statics in [true, false] {
        let host = Host::new(1);
        let (a, b) = (host.guest(1), host.guest(1));
        let config = Config::new().static_grants(statics);
        let (_a, mut one) = a.connect_one(config);
        let (_b, mut other) = b.connect_one(config.split_channels(statics));
        greet((&a, &mut one), (&b, &mut other));
        let around = |len: usize| len - 2..len + 3;
        let edges = [128, 256, 1514, 4096, 8192].into_iter().flat_map(around);
        let lengths = (14..70).chain(edges).chain((5000..65536).step_by(4321));
        for (seed, len) in (0..).zip(lengths.chain([65535])) {
            let bytes = frame(a.mac, b.mac, seed, len);
            let parts: Vec<&[u8]> = bytes.chunks(4000).collect();
            one.sender.send_blocking(&parts, PLAIN).unwrap();
            let (got, _) = received(&mut other.receiver);
            assert!(got == bytes, "{len} bytes, statics: {statics}");
        }
    }
}

/// A TCP segment with that much payload, over IPv4 or IPv6, whose checksum is blank.
fn tcp(from: Mac, to: Mac, v6: bool, payload: usize) -> Vec<u8> {
    let len = 20 + payload;
    let mut ip = Vec::new();
    if v6 {
        ip.extend([0x60, 0, 0, 0]);
        ip.extend((len as u16).to_be_bytes());
        ip.extend([6, 64]);
        ip.extend((0..32).map(|at| at * 5));
    } else {
        ip.extend([0x45, 0]);
        ip.extend((len as u16 + 20).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = Sum::new().and(&ip).finish().to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
    }
    let addresses = if v6 { &ip[8..40] } else { &ip[12..20] };
    let sum = pseudo(addresses, 6, len as u32).folded();
    let mut bytes = [to.0, from.0].concat();
    bytes.extend(if v6 { [0x86, 0xDD] } else { [0x08, 0] });
    bytes.extend(&ip);
    let ports_and_numbers = [0x9C, 0x40, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1];
    bytes.extend(ports_and_numbers);
    bytes.extend([0x50, 0x10, 1, 0]);
    bytes.extend(sum.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((0..payload).map(|at| (at % 239) as u8));
    bytes
}

fn blank(kind: Option<GsoKind>) -> Offloads {
    let size = NonZeroU16::new(1400).unwrap();
    Offloads {
        checksum: Checksum::Blank,
        gso: kind.map(|kind| Gso { kind, size }),
    }
}

const VERSIONS: [(bool, GsoKind); 2] = [(false, GsoKind::TcpV4), (true, GsoKind::TcpV6)];

#[test]
fn what_is_left_to_be_done_is_done_by_nobody_if_both_ends_are_guests() {
    let host = Host::new(1);
    let (a, b) = (host.guest(1), host.guest(1));
    let (_a, mut one) = a.connect_one(Config::new());
    let (_b, mut other) = b.connect_one(Config::new());
    greet((&a, &mut one), (&b, &mut other));
    for (v6, kind) in VERSIONS {
        let gso = Some(kind);
        for (payload, kind) in [(100, None), (1000, None), (9000, gso), (60000, gso)] {
            let bytes = tcp(a.mac, b.mac, v6, payload);
            one.sender.send_blocking(&[&bytes], blank(kind)).unwrap();
            let (got, offloads) = received(&mut other.receiver);
            assert!(got == bytes, "{payload} bytes");
            assert_eq!(offloads, blank(kind));
        }
    }
}

/// Whether a frame's checksum is right.
fn is_intact(bytes: &[u8]) -> bool {
    let headers = Headers::parse(bytes, bytes.len()).unwrap();
    let covers = headers.checksum().unwrap().covers;
    let pseudo = headers.pseudo(bytes, covers.len() as u32).unwrap();
    pseudo.and(&bytes[covers]).is_intact()
}

#[test]
fn a_guest_that_takes_nothing_unfinished_gets_whole_segments_with_their_checksums() {
    let host = Host::new(1);
    let (a, b) = (host.guest(1), host.guest(1));
    let (_a, mut one) = a.connect_one(Config::new());
    let poor = Features {
        scatter: true,
        ..Features::NONE
    };
    let (_b, mut other) = b.connect_one(Config::new().takes(poor));
    greet((&a, &mut one), (&b, &mut other));
    for (v6, kind) in VERSIONS {
        let bytes = tcp(a.mac, b.mac, v6, 1000);
        one.sender.send_blocking(&[&bytes], blank(None)).unwrap();
        let (got, offloads) = received(&mut other.receiver);
        assert_eq!(offloads.gso, None);
        assert_ne!(offloads.checksum, Checksum::Blank);
        assert!(is_intact(&got));
        let bytes = tcp(a.mac, b.mac, v6, 14000);
        let unfinished = blank(Some(kind));
        one.sender.send_blocking(&[&bytes], unfinished).unwrap();
        let header = bytes.len() - 14000;
        let mut payload: Vec<u8> = Vec::new();
        for _ in 0..10 {
            let (got, offloads) = received(&mut other.receiver);
            assert_ne!(offloads.checksum, Checksum::Blank);
            assert!(is_intact(&got));
            payload.extend_from_slice(&got[header..]);
        }
        assert!(payload == bytes[header..]);
    }
}

#[test]
fn every_queue_of_a_guest_sends_and_what_comes_for_it_comes_on_one_of_them() {
    // As many as a receiver may leave waiting, so that none is lost.
    const EACH: u32 = 100;
    let host = Host::new(2);
    let (a, b) = (host.guest(2), host.guest(2));
    let (_a, one) = a.connect(Config::new().queues(4));
    let (_b, mut other) = b.connect(Config::new().queues(4));
    assert_eq!((one.len(), other.len()), (4, 4));
    let (from, to) = (a.mac, b.mac);
    // So that the switch knows where it is.
    let hello = frame(to, from, 0, 60);
    other[0].sender.send_blocking(&[&hello], PLAIN).unwrap();
    let (done, was_done) = mpsc::channel();
    for queue in other {
        let (mut receiver, done) = (queue.receiver, done.clone());
        b.domain.spawn(async move {
            loop {
                let got = receiver.receive().await.unwrap();
                let mut bytes = vec![0; got.len()];
                got.copy_to(0, &mut bytes);
                done.send(bytes).unwrap();
            }
        });
    }
    for (number, queue) in (0..).zip(one) {
        let mut sender: Sender<Domain> = queue.sender;
        a.domain.spawn(async move {
            for at in 0..EACH {
                let bytes = frame(from, to, number * EACH + at, 60 + at as usize * 3);
                sender.send(&[&bytes], PLAIN).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
    }
    let mut seen = [false; 4 * EACH as usize];
    for _ in 0..seen.len() {
        let Ok(bytes) = was_done.recv_timeout(Duration::from_secs(60)) else {
            let missing = seen.iter().filter(|&&seen| !seen).count();
            let stats = host.report(&b).unwrap().about.stats;
            panic!("{missing} frames are missing: {stats}");
        };
        let seed = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
        let len = 60 + (seed % EACH) as usize * 3;
        assert!(bytes == frame(from, to, seed, len));
        assert!(!std::mem::replace(&mut seen[seed as usize], true), "twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_frames_in_any_parts_arrive_in_order(
        frames in proptest::collection::vec((18usize..=65535, 1usize..9000), 1..60),
        statics in any::<bool>(),
        split in any::<bool>(),
    ) {
        let host = Host::new(1);
        let (a, b) = (host.guest(1), host.guest(1));
        let config = Config::new().static_grants(statics).split_channels(split);
        let (_a, mut one) = a.connect_one(config);
        let (_b, mut other) = b.connect_one(Config::new());
        greet((&a, &mut one), (&b, &mut other));
        let (from, to) = (a.mac, b.mac);
        let mut sender = one.sender;
        let sent = frames.clone();
        a.domain.spawn(async move {
            for (seed, (len, part)) in (0..).zip(sent) {
                let bytes = frame(from, to, seed, len);
                let parts: Vec<&[u8]> = bytes.chunks(part).collect();
                sender.send(&parts, PLAIN).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        for (seed, (len, _)) in (0..).zip(frames) {
            let (got, _) = received(&mut other.receiver);
            prop_assert!(got == frame(from, to, seed, len), "{} bytes", len);
        }
    }
}
