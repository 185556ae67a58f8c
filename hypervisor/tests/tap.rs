//! TAP devices of a network namespace of each test's own, which takes root; without it the tests
//! say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use parapet_hypervisor::host::{TAP_HEADER, Tap, Unfinished, in_network_namespace};
use parapet_hypervisor::memory::{PAGE_SIZE, Scratch, View};

/// Runs a test in a namespace of its own.
fn apart(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let worker = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => test(),
            Err(error) => eprintln!("skipped: no network namespace ({error}); run it as root"),
        });
        worker.join().unwrap();
    });
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A device that is on, at 10.9.0.1, and knows where 10.9.0.2 is.
fn device() -> Tap {
    let tap = Tap::open("tap%d").unwrap();
    let name = tap.name();
    tap.set_mac(HOST).unwrap();
    tap.set_up(true).unwrap();
    ip(&format!("addr add 10.9.0.1/24 dev {name}"));
    ip(&format!(
        "neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev {name}"
    ));
    tap
}

const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];

/// The next frame of that type, cut at `head` bytes: its header, head and the rest.
fn next(tap: &Tap, kind: [u8; 2], head: usize) -> ([u8; TAP_HEADER], Vec<u8>, Vec<u8>) {
    let pages = Scratch::new(4 * PAGE_SIZE);
    loop {
        let mut header = [0; TAP_HEADER];
        let mut first = vec![0; head];
        match tap.receive(&mut header, &mut first, [pages.view()]) {
            Ok(len) => {
                let mut rest = vec![0; len.saturating_sub(head)];
                pages.view().read_bytes(0, &mut rest).unwrap();
                first.truncate(len);
                // The host's own advertisements come in between.
                if first[12..14] == kind {
                    return (header, first, rest);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut readable = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
                poll(&mut readable, PollTimeout::from(10_000u16)).unwrap();
                assert!(readable[0].any().unwrap(), "no frame in ten seconds");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_host_answers_what_is_sent_in_pieces() {
    apart(|| {
        let tap = device();
        let mut frame = [&[0xFF; 6][..], &GUEST, &ARP].concat();
        // Who has 10.9.0.1? Tell 10.9.0.2.
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([&GUEST[..], &[10, 9, 0, 2], &[0; 6], &[10, 9, 0, 1]].concat());
        let page = Scratch::new(PAGE_SIZE);
        page.view().write_bytes(7, &frame[20..30]).unwrap();
        page.view().write_bytes(100, &frame[30..]).unwrap();
        let piece = |offset, len| page.view().read_only().slice(offset, len).unwrap();
        let pieces = [piece(7, 10), piece(100, frame.len() - 30)];
        tap.send(&[0; TAP_HEADER], &frame[..20], pieces).unwrap();

        let (_, head, rest) = next(&tap, ARP, 30);
        let answer = [head, rest].concat();
        assert_eq!(answer[..12], [GUEST, HOST].concat());
        assert_eq!(answer[20..32], [0, 2, 2, 0, 0, 0, 0, 1, 10, 9, 0, 1]);
    });
}

#[test]
fn a_checksum_is_left_to_who_takes_such_frames_only() {
    apart(|| {
        let tap = device();
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        for (takes, flags) in [(Unfinished::default(), 0), (Unfinished::ALL, 1)] {
            tap.set_takes(takes).unwrap();
            socket.send_to(&[7; 1000], "10.9.0.2:9").unwrap();
            let (header, head, rest) = next(&tap, IPV4, 64);
            assert_eq!(header[0], flags, "{takes:?}");
            assert_eq!(head.len() + rest.len(), 14 + 20 + 8 + 1000);
            assert!(rest.iter().all(|&byte| byte == 7));
        }
    });
}

#[test]
fn a_device_lives_as_long_as_one_of_its_queues() {
    apart(|| {
        let first = device();
        let name = first.name();
        let second = first.another_queue().unwrap();
        assert_eq!(second.name(), name);
        drop(first);
        second.set_attached(false).unwrap();
        second.set_attached(true).unwrap();
        ip(&format!("link show {name}"));
        drop(second);
        let left = Command::new("ip").args(["link", "show", &name]).output();
        assert!(!left.unwrap().status.success());
    });
}

#[test]
fn a_device_that_was_made_for_one_queue_has_one() {
    apart(|| {
        ip("tuntap add tap7 mode tap vnet_hdr");
        let tap = Tap::open("tap7").unwrap();
        assert!(!tap.is_multi_queue());
        assert_eq!(
            tap.another_queue().unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        let other = Tap::open("tap7").unwrap_err();
        assert_eq!(other.kind(), ErrorKind::ResourceBusy);
    });
}

#[test]
fn the_host_sees_cable_and_mtu() {
    apart(|| {
        let tap = device();
        let name = tap.name();
        tap.set_mtu(9000).unwrap();
        tap.set_carrier(false).unwrap();
        let shown = ip(&format!("link show {name}"));
        assert!(
            shown.contains("mtu 9000") && shown.contains("NO-CARRIER"),
            "{shown}"
        );
        tap.set_carrier(true).unwrap();
        let shown = ip(&format!("link show {name}"));
        assert!(!shown.contains("NO-CARRIER"), "{shown}");
    });
}

#[test]
fn a_device_can_be_put_on_a_bridge() {
    apart(|| {
        ip("link add xenbr0 type bridge");
        let tap = device();
        tap.join_bridge("xenbr0").unwrap();
        assert!(ip(&format!("link show {}", tap.name())).contains("master xenbr0"));
        assert_eq!(
            tap.join_bridge("xenbr1").unwrap_err().raw_os_error(),
            Some(19)
        );
    });
}

#[test]
fn a_device_can_be_in_another_namespace() {
    apart(|| {
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        let shown = thread::scope(|scope| {
            // From outside.
            let outside = scope.spawn(|| -> io::Result<String> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let path = format!("/proc/self/fd/{}", here.as_raw_fd());
                let tap = Tap::open_in(Path::new(&path), "tap%d")?;
                let _second = tap.another_queue()?;
                tap.set_up(true)?;
                in_network_namespace(&here, || ip("link show"))
            });
            outside.join().unwrap()
        });
        assert!(shown.unwrap().contains("tap0: <BROADCAST,MULTICAST,UP"));
    });
}

#[test]
fn more_pieces_than_fit_are_refused() {
    apart(|| {
        let tap = device();
        let page = Scratch::new(PAGE_SIZE);
        let pieces: Vec<View<'_, _>> = (0..40)
            .map(|i| page.view().read_only().slice(i * 32, 16).unwrap())
            .collect();
        let error = tap.send(&[0; TAP_HEADER], &[0; 14], pieces).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_name_that_no_device_can_have_is_refused() {
    for name in ["", "a-name-of-16-chars"] {
        assert_eq!(Tap::open(name).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
