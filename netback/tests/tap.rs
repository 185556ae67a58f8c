//! Vifs on TAP devices of a network namespace of each test's own, which takes root; without it the
//! tests say so and do nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use parapet_hypervisor::block_on;
use parapet_hypervisor::host::Tap;
use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::bell::Bell;
use parapet_netback::drops::{Drop, Drops};
use parapet_netback::endpoint::Endpoint;
use parapet_netback::frame::{Frame, Pool};
use parapet_netback::port::cable::Cable;
use parapet_netback::port::switch::Switch;
use parapet_netback::port::tap::{Device, TapNetwork};
use parapet_netback::port::{Network, Port, Vif};
use parapet_packet::checksum::{Sum, pseudo};
use parapet_packet::{Checksum, Mac, Offloads};
use parapet_xen_sys::DomId;

const GUEST: Mac = Mac([0, 0x16, 0x3e, 0, 0, 5]);
const GUEST_IP: [u8; 4] = [10, 9, 0, 5];
const HOST_IP: [u8; 4] = [10, 9, 0, 1];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;

/// Runs a test in a namespace of its own, with a domain to play the host.
fn apart(test: impl FnOnce(Domain) + Send) {
    thread::scope(|scope| {
        let worker = scope.spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {
                let config = Config {
                    pcpus: 1,
                    ..Config::default()
                };
                let hypervisor = Hypervisor::new(config).unwrap();
                test(hypervisor.create(DomainConfig::default()).unwrap());
            }
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

fn vif() -> Vif {
    Vif {
        frontend: DomId(5),
        handle: 0,
        name: "vif5.0".into(),
        mac: GUEST,
        addresses: Vec::new(),
        bridge: None,
        mtu: 1500,
        locked: false,
        isolated: false,
    }
}

type Ports = Vec<Box<dyn Port<Domain>>>;

/// A vif's other side.
struct Guest {
    endpoint: Arc<Endpoint<Domain>>,
    bell: Arc<Bell>,
    ports: Ports,
    pool: Pool<Domain>,
    drops: Drops,
}

impl Guest {
    fn new(place: &Domain, connect: impl FnOnce(Arc<Endpoint<Domain>>) -> Ports) -> Self {
        let bell = Arc::new(Bell::default());
        let endpoint = Arc::new(Endpoint::new([Arc::clone(&bell)], Arc::default()));
        Guest {
            ports: connect(Arc::clone(&endpoint)),
            endpoint,
            bell,
            pool: Pool::new(place, place.domid(), 8, 8, Arc::default()).unwrap(),
            drops: Drops::default(),
        }
    }

    fn send(&mut self, bytes: &[u8], checksum: Checksum) {
        self.pool.collect(|_| {});
        let mut frame = self.pool.take().unwrap();
        frame.make_head(bytes.len()).unwrap().copy_from_slice(bytes);
        frame.set_offloads(Offloads {
            checksum,
            gso: None,
        });
        self.ports[0].send(&mut vec![frame], &self.drops);
    }

    /// The next frame of that type, from wherever they come.
    fn next(&mut self, kind: u16) -> Frame<Domain> {
        loop {
            let mut frames = Vec::new();
            block_on(poll_fn(|cx| {
                self.bell.listen(cx);
                frames.extend(self.endpoint.take(0));
                match self.ports[0].poll_receive(cx, &mut frames, 1) {
                    Poll::Pending if frames.is_empty() => Poll::Pending,
                    Poll::Pending => Poll::Ready(Ok(())),
                    ready => ready,
                }
            }))
            .unwrap();
            // The host's own advertisements come in between.
            let found = |frame: &Frame<Domain>| frame.head()[12..14] == kind.to_be_bytes();
            if let Some(at) = frames.iter().position(found) {
                return frames.swap_remove(at);
            }
        }
    }

    /// Asks who has the host's address, and checks the answer.
    fn ask(&mut self) {
        let mut frame = [&[0xFF; 6][..], &GUEST.0, &ARP.to_be_bytes()].concat();
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([&GUEST.0[..], &GUEST_IP, &[0; 6], &HOST_IP].concat());
        self.send(&frame, Checksum::Unchecked);
        let answer = self.next(ARP);
        assert_eq!(answer.destination(), Some(GUEST));
        assert_eq!(answer.head()[28..32], HOST_IP);
    }
}

/// A datagram whose checksum is left to be made.
fn datagram(to: Mac, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend((20 + len).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend([GUEST_IP, HOST_IP].concat());
    let sum = Sum::new().and(&header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let blank = pseudo(&header[12..20], 17, len.into()).folded();
    let mut bytes = [&to.0[..], &GUEST.0, &IPV4.to_be_bytes(), &header].concat();
    bytes.extend([7u16, 9, len, blank].map(u16::to_be_bytes).concat());
    bytes.extend(payload);
    bytes
}

#[test]
fn a_vif_is_a_device_of_the_host_whose_cable_is_in_while_its_frontend_is_connected() {
    apart(|place| {
        ip("link add xenbr0 type bridge");
        let network = TapNetwork::new(place).bridge("xenbr0");
        let mut socket = network.plug(&vif()).unwrap();
        let shown = ip("link show vif5.0");
        for expected in [
            "NO-CARRIER",
            "master xenbr0",
            "fe:ff:ff:ff:ff:ff",
            "mtu 1500",
        ] {
            assert!(shown.contains(expected), "{shown}");
        }
        let bells = [Arc::default(), Arc::default()];
        let endpoint = Arc::new(Endpoint::new(bells, Arc::default()));
        let ports = socket.connect(endpoint).unwrap();
        assert_eq!(ports.len(), 2);
        assert!(!ip("link show vif5.0").contains("NO-CARRIER"));
        drop(ports);
        assert!(ip("link show vif5.0").contains("NO-CARRIER"));
        drop(socket);
        assert!(!ip("link show").contains("vif5.0"));
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named() {
    apart(|place| {
        let network = TapNetwork::new(place).bridge("xenbr7");
        let error = network.plug(&vif()).err().unwrap();
        assert!(error.to_string().contains("xenbr7"), "{error}");
    });
}

#[test]
fn checksums_are_left_blank_both_ways() {
    apart(|place| {
        let mut socket = TapNetwork::new(place.clone()).plug(&vif()).unwrap();
        ip("addr add 10.9.0.1/24 dev vif5.0");
        ip("neigh add 10.9.0.5 lladdr 00:16:3e:00:00:05 dev vif5.0");
        let mut guest = Guest::new(&place, |endpoint| socket.connect(endpoint).unwrap());
        // Until the host has noticed the carrier it drops what it has for the device.
        while !ip("link show vif5.0").contains("state UP") {
            thread::yield_now();
        }
        guest.ask();

        let host = UdpSocket::bind("10.9.0.1:9").unwrap();
        host.send_to(&[7; 1400], "10.9.0.5:7").unwrap();
        let frame = guest.next(IPV4);
        assert_eq!(frame.offloads().checksum, Checksum::Blank);
        let mut got = vec![0; frame.len()];
        frame.copy_out(0, &mut got);
        assert_eq!(got[42..], [7; 1400]);

        let back = datagram(frame.source().unwrap(), b"hello");
        guest.send(&back, Checksum::Blank);
        let mut got = [0; 16];
        let (len, from) = host.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from.port()), (&b"hello"[..], 7));
        assert_eq!(guest.drops.total(), 0);
    });
}

#[test]
fn a_locked_vif_is_held_to_its_addresses_here_too() {
    apart(|place| {
        let locked = Vif {
            locked: true,
            addresses: vec!["10.9.0.6".into()],
            ..vif()
        };
        let mut socket = TapNetwork::new(place.clone()).plug(&locked).unwrap();
        let mut guest = Guest::new(&place, |endpoint| socket.connect(endpoint).unwrap());
        guest.send(&datagram(Mac::BROADCAST, b"hello"), Checksum::Blank);
        assert_eq!(guest.drops.of(Drop::Spoofed), 1);
    });
}

#[test]
fn a_switch_reaches_the_host_by_a_cable() {
    apart(|place| {
        let switch = Switch::new(place.clone());
        let tap = Tap::open("parapet0").unwrap();
        tap.set_up(true).unwrap();
        ip("addr add 10.9.0.1/24 dev parapet0");
        let device = Device::new(place.clone(), tap).unwrap();
        // First, so that what the host advertises finds somebody.
        let mut socket = switch.plug(&vif()).unwrap();
        let mut guest = Guest::new(&place, |endpoint| socket.connect(endpoint).unwrap());
        let ends = [switch.uplink("parapet0").unwrap(), Box::new(device)];
        let cable = Cable::new(&place, ends, 1).unwrap();
        guest.ask();
        assert_eq!(cable.drops().iter().map(Drops::total).sum::<u64>(), 0);
        drop(cable);
        let heard = switch.stations();
        assert_eq!(heard.len(), 1, "nobody is behind it any more: {heard:?}");
    });
}

#[test]
fn the_host_learns_no_routes_from_a_guest() {
    apart(|dom0| {
        let network = TapNetwork::new(dom0);
        let _socket = network.plug(&vif()).unwrap();
        match std::fs::read_to_string("/proc/sys/net/ipv6/conf/vif5.0/accept_ra") {
            Ok(accepts) => assert_eq!(accepts, "0\n"),
            Err(error) => eprintln!("skipped: no IPv6 ({error})"),
        }
    });
}
