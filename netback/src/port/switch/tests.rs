//! What a switch does with frames of vifs that are only endpoints here.

use std::task::Waker;

use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_xen_sys::DomId;

use super::*;
use crate::drops::Drop;
use crate::frame::{Frame, HEAD, Page, Part, Pool};

struct World {
    switch: Switch<Domain>,
    place: Domain,
    _hypervisor: Hypervisor,
}

/// A vif's other side: what it sends and what it gets.
struct Guest {
    mac: Mac,
    socket: Box<dyn Socket<Domain>>,
    endpoint: Arc<Endpoint<Domain>>,
    lanes: Vec<Box<dyn Port<Domain>>>,
    pool: Pool<Domain>,
    drops: Drops,
}

const BROADCAST: Mac = Mac::BROADCAST;

fn mac(last: u8) -> Mac {
    Mac([0, 0x16, 0x3e, 0, 0, last])
}

fn vif(last: u8) -> Vif {
    Vif {
        frontend: DomId(last.into()),
        handle: 0,
        name: format!("vif{last}.0"),
        mac: mac(last),
        addresses: Vec::new(),
        bridge: None,
        mtu: 1500,
        locked: false,
        isolated: false,
    }
}

impl World {
    fn new() -> Self {
        Self::with(Memory::default())
    }

    fn with(memory: Memory) -> Self {
        let config = Config {
            pcpus: 1,
            ..Config::default()
        };
        let hypervisor = Hypervisor::new(config).unwrap();
        let place = hypervisor.create(DomainConfig::default()).unwrap();
        World {
            switch: Switch::with_memory(place.clone(), memory),
            place,
            _hypervisor: hypervisor,
        }
    }

    fn join(&self, socket: Box<dyn Socket<Domain>>, mac: Mac) -> Guest {
        let mut guest = Guest {
            mac,
            socket,
            endpoint: Arc::new(Endpoint::new([], Arc::default())),
            lanes: Vec::new(),
            pool: Pool::new(&self.place, self.place.domid(), 600, 40, Arc::default()).unwrap(),
            drops: Drops::default(),
        };
        guest.connect(1);
        guest
    }

    fn plug(&self, vif: &Vif) -> Guest {
        self.join(self.switch.plug(vif).unwrap(), vif.mac)
    }

    fn guest(&self, last: u8) -> Guest {
        self.plug(&vif(last))
    }

    fn uplink(&self) -> Guest {
        self.join(self.switch.uplink("up").unwrap(), mac(200))
    }
}

impl Guest {
    fn connect(&mut self, queues: usize) {
        self.lanes.clear();
        self.endpoint = Arc::new(Endpoint::new(
            (0..queues).map(|_| Arc::default()),
            Arc::default(),
        ));
        self.lanes = self.socket.connect(Arc::clone(&self.endpoint)).unwrap();
    }

    fn frame(&mut self, from: Mac, to: Mac, rest: &[u8]) -> Frame<Domain> {
        let bytes = [&to.0[..], &from.0, rest].concat();
        let mut frame = self.pool.take().unwrap();
        let (head, body) = bytes.split_at(bytes.len().min(HEAD));
        frame.make_head(head.len()).unwrap().copy_from_slice(head);
        for piece in body.chunks(PAGE_SIZE) {
            let page = self.pool.take_page().unwrap();
            let at = usize::from(page) * PAGE_SIZE;
            let local = self.pool.memory().local().view();
            local.write_bytes(at, piece).unwrap();
            let part = Part {
                page: Page::Local(page),
                offset: 0,
                len: piece.len() as u16,
            };
            frame.push(part).unwrap();
        }
        frame
    }

    fn send_as(&mut self, from: Mac, to: Mac, rest: &[u8]) {
        self.pool.collect(|_| {});
        let frame = self.frame(from, to, rest);
        self.lanes[0].send(&mut vec![frame], &self.drops);
    }

    fn send(&mut self, to: Mac, rest: &[u8]) {
        self.send_as(self.mac, to, rest);
    }

    /// What it got since it was asked last, without the addresses.
    fn got(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for queue in 0..self.endpoint.queues() {
            while let Some(frame) = self.endpoint.take(queue) {
                let mut bytes = vec![0; frame.len()];
                assert_eq!(frame.copy_out(0, &mut bytes), bytes.len());
                all.push(bytes.split_off(12));
            }
        }
        all
    }

    fn got_nothing(&self) -> bool {
        self.got().is_empty()
    }
}

const HELLO: &[u8] = b"\x88\xb5hello";

#[test]
fn a_vif_is_known_from_when_it_is_plugged_in() {
    let world = World::new();
    let (mut a, b, c) = (world.guest(1), world.guest(2), world.guest(3));
    a.send(b.mac, HELLO);
    assert_eq!(b.got(), [HELLO]);
    assert!(c.got_nothing());
    assert_eq!(world.switch.stats().flooded.load(Ordering::Relaxed), 0);
}

#[test]
fn the_very_frame_is_handed_over_and_comes_home_from_there() {
    let world = World::new();
    let (mut a, b) = (world.guest(1), world.guest(2));
    a.send(b.mac, HELLO);
    assert_eq!(a.pool.lent(), 1);
    let frame = b.endpoint.take(0).unwrap();
    drop(frame);
    assert!(a.pool.collect(|_| {}));
    assert_eq!(a.pool.lent(), 0);
}

#[test]
fn a_receiver_is_woken_once_a_batch() {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let world = World::new();
    let (mut a, mut b) = (world.guest(1), world.guest(2));
    let bell = Arc::new(crate::bell::Bell::default());
    b.endpoint = Arc::new(Endpoint::new([Arc::clone(&bell)], Arc::default()));
    b.lanes.clear();
    b.lanes = b.socket.connect(Arc::clone(&b.endpoint)).unwrap();
    let count = Arc::new(Count(AtomicUsize::new(0)));
    bell.listen_with(&Waker::from(Arc::clone(&count)));
    let mut frames = (0..5).map(|_| a.frame(a.mac, b.mac, HELLO)).collect();
    a.lanes[0].send(&mut frames, &a.drops);
    assert_eq!(b.got().len(), 5);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_frame_to_all_is_the_same_everywhere() {
    let world = World::new();
    let (mut a, b, c, d) = (
        world.guest(1),
        world.guest(2),
        world.guest(3),
        world.uplink(),
    );
    let long: Vec<u8> = (0..9000u32).map(|i| (i % 251) as u8).collect();
    for rest in [HELLO, &long] {
        a.send(BROADCAST, rest);
        for guest in [&b, &c, &d] {
            assert_eq!(guest.got(), [rest]);
        }
        assert!(a.got_nothing());
    }
    assert_eq!(world.switch.stats().copies.load(Ordering::Relaxed), 4);
    assert_eq!(a.drops.total(), 0);
}

#[test]
fn who_is_behind_a_port_is_learned_and_lost_with_it() {
    let world = World::new();
    let (mut a, mut b, mut up) = (world.guest(1), world.guest(2), world.uplink());
    let far = mac(77);
    a.send(far, HELLO);
    assert_eq!((b.got().len(), up.got().len()), (1, 1), "nobody knows it");
    up.send_as(far, a.mac, HELLO);
    a.send(far, HELLO);
    assert_eq!((b.got().len(), up.got().len()), (0, 1));
    let heard = world.switch.stations();
    assert!(
        heard
            .iter()
            .any(|heard| heard.mac == far && &*heard.port == "up")
    );
    up.connect(1);
    b.send(far, HELLO);
    assert_eq!((a.got().len(), up.got().len()), (2, 1), "flooded again");
}

#[test]
fn who_says_nothing_for_long_is_forgotten_by_lanes_too() {
    let world = World::with(Memory {
        age: Duration::ZERO,
        ..Memory::default()
    });
    let (mut a, b, mut up) = (world.guest(1), world.guest(2), world.uplink());
    up.send_as(mac(77), a.mac, HELLO);
    a.send(mac(77), HELLO);
    assert_eq!((b.got().len(), up.got().len()), (1, 1));
}

#[test]
fn a_vif_cannot_be_another() {
    let world = World::new();
    let (mut a, b, mut up) = (world.guest(1), world.guest(2), world.uplink());
    up.send_as(mac(77), a.mac, HELLO);
    for from in [b.mac, mac(77), BROADCAST, Mac::default()] {
        a.send_as(from, BROADCAST, HELLO);
    }
    assert!(b.got_nothing() && up.got_nothing());
    assert_eq!(a.drops.of(Drop::Spoofed), 4);
    assert_eq!(a.pool.lent(), 1, "the last is home, and not collected yet");
}

#[test]
fn a_locked_vif_has_its_own_addresses_only() {
    let world = World::new();
    let locked = Vif {
        locked: true,
        addresses: vec!["10.0.0.1".into()],
        ..vif(1)
    };
    let (mut a, b) = (world.plug(&locked), world.guest(2));
    a.send_as(mac(9), b.mac, HELLO);
    a.send(b.mac, HELLO);
    assert_eq!(a.drops.of(Drop::Spoofed), 2);
    let mut arp = vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([&a.mac.0[..], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat());
    a.send(b.mac, &arp);
    assert_eq!(b.got(), [arp]);
}

#[test]
fn isolated_vifs_reach_the_uplink_and_not_each_other() {
    let world = World::new();
    let isolated = |last| Vif {
        isolated: true,
        ..vif(last)
    };
    let (mut a, b, up) = (
        world.plug(&isolated(1)),
        world.plug(&isolated(2)),
        world.uplink(),
    );
    let c = world.guest(3);
    a.send(b.mac, HELLO);
    assert_eq!(a.drops.of(Drop::NoWay), 1);
    a.send(BROADCAST, HELLO);
    assert!(b.got_nothing());
    assert_eq!((c.got().len(), up.got().len()), (1, 1));
}

#[test]
fn a_vlan_is_a_network_of_its_own_and_has_tags_on_the_uplink() {
    let world = World::new();
    let in_vlan = |last, vlan| Vif {
        bridge: Some(format!("xenbr0.{vlan}")),
        ..vif(last)
    };
    let (mut a, b) = (world.plug(&in_vlan(1, 5)), world.plug(&in_vlan(2, 5)));
    let (c, mut up) = (world.plug(&in_vlan(3, 6)), world.uplink());
    a.send(b.mac, HELLO);
    assert_eq!(b.got(), [HELLO]);
    a.send(c.mac, HELLO);
    assert_eq!(a.drops.of(Drop::NoWay), 1);
    a.send(BROADCAST, HELLO);
    let tagged = [&[0x81, 0, 0, 5], HELLO].concat();
    assert_eq!(b.got(), [HELLO]);
    assert_eq!(up.got(), std::slice::from_ref(&tagged));
    assert!(c.got_nothing());

    up.send(a.mac, &tagged);
    assert_eq!(a.got(), [HELLO]);
    up.send(a.mac, HELLO);
    up.send(c.mac, &tagged);
    a.send(b.mac, &tagged);
    assert!(a.got_nothing() && b.got_nothing() && c.got_nothing());
    assert_eq!((up.drops.of(Drop::NoWay), a.drops.of(Drop::NoWay)), (2, 2));

    let wrong = Vif {
        bridge: Some("xenbr0.4095".into()),
        ..vif(4)
    };
    let error = world.switch.plug(&wrong).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_receiver_that_takes_nothing_costs_the_others_nothing() {
    let world = World::new();
    let (mut a, stuck, b) = (world.guest(1), world.guest(2), world.guest(3));
    for _ in 0..2000 {
        a.send(BROADCAST, HELLO);
        assert_eq!(b.got(), [HELLO]);
    }
    assert!(!stuck.got_nothing());
    assert_eq!(a.drops.total(), 0);
    assert!(world.switch.stats().lost.of(Drop::ReceiverFull) > 0);
}

#[test]
fn receivers_that_take_nothing_leave_pages_for_those_that_do() {
    let world = World::new();
    let mut a = world.guest(1);
    let slow = [world.guest(2), world.guest(3)];
    let others = [world.guest(4), world.guest(5)];
    for _ in 0..100 {
        a.send(BROADCAST, &[0x88; 1000]);
        for other in &others {
            assert_eq!(other.got().len(), 1);
        }
    }
    for slow in slow {
        assert!(!slow.got_nothing());
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let world = World::new();
    let (mut a, b) = (world.guest(1), world.guest(2));
    let sent = crate::endpoint::WAITING + 10;
    for _ in 0..sent {
        a.send(b.mac, HELLO);
    }
    assert_eq!(a.drops.of(Drop::ReceiverFull), 10);
    assert_eq!(b.got().len(), sent - 10);
}

#[test]
fn who_is_gone_keeps_no_frame_of_others() {
    let world = World::new();
    let (mut a, mut b) = (world.guest(1), world.guest(2));
    a.send(b.mac, HELLO);
    assert_eq!(b.endpoint.close(0), 1);
    b.lanes.clear();
    a.pool.collect(|_| {});
    assert_eq!(a.pool.lent(), 0);
    a.send(b.mac, HELLO);
    assert_eq!(a.drops.of(Drop::NoWay), 1, "known, and not connected");
    b.connect(1);
    a.send(b.mac, HELLO);
    assert_eq!(b.got(), [HELLO]);
    drop(b);
    a.send(mac(2), HELLO);
    assert_eq!(a.drops.of(Drop::NoWay), 2, "nobody is left at all");
}

#[test]
fn a_connection_that_came_to_nothing_keeps_no_frame_of_others() {
    let world = World::new();
    let (mut a, mut b, mut idle) = (world.guest(1), world.guest(2), world.guest(3));
    // From now on it knows b's endpoint, and does not look again.
    idle.send(a.mac, HELLO);
    a.send(b.mac, HELLO);
    // No queue of it ever ran that could have closed it.
    b.lanes.clear();
    b.endpoint = Arc::new(Endpoint::new([], Arc::default()));
    a.pool.collect(|_| {});
    assert_eq!(a.pool.lent(), 0);
    assert_eq!(world.switch.stats().lost.of(Drop::Gone), 1);
}

#[test]
fn a_frontend_may_connect_again_before_its_old_queues_are_gone() {
    let world = World::new();
    let (mut a, mut b) = (world.guest(1), world.guest(2));
    let mut old = std::mem::take(&mut b.lanes);
    b.connect(2);
    let frame = b.frame(b.mac, a.mac, HELLO);
    old[0].send(&mut vec![frame], &b.drops);
    assert_eq!(b.drops.of(Drop::Gone), 1, "and have no say any more");
    drop(old);
    a.send(b.mac, HELLO);
    assert_eq!(b.got(), [HELLO]);
}

#[test]
fn a_flood_of_addresses_is_counted_and_forgets_nobody() {
    let world = World::new();
    let (mut a, mut b, mut up) = (world.guest(1), world.guest(2), world.uplink());
    up.send_as(mac(77), a.mac, HELLO);
    for last in 0..1000u16 {
        let [high, low] = last.to_be_bytes();
        a.send_as(Mac([2, 0, 0, 9, high, low]), b.mac, HELLO);
        assert_eq!(b.got().len(), 1);
    }
    let most = Memory::default().of_a_vif as u64;
    let unlearned = world.switch.stats().unlearned.load(Ordering::Relaxed);
    assert_eq!(unlearned, 1000 - most);
    b.send(mac(77), HELLO);
    assert_eq!((up.got().len(), a.got().len()), (1, 1));
}

#[test]
fn two_vifs_with_one_address_are_one_too_many() {
    let world = World::new();
    let _a = world.guest(1);
    let error = world.switch.plug(&vif(1)).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let none = Vif {
        mac: Mac::BROADCAST,
        ..vif(2)
    };
    let error = world.switch.plug(&none).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
