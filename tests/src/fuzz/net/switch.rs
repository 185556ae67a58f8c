//! Vifs that come, go and send what they like, and the switch between them.

use std::sync::Arc;

use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::Identity;
use parapet_netback::drops::Drops;
use parapet_netback::endpoint::Endpoint;
use parapet_netback::frame::Pool;
use parapet_netback::port::switch::{Memory, Switch};
use parapet_netback::port::{Network, Port, Socket, Vif};
use parapet_packet::Mac;
use parapet_xen_sys::DomId;

/// Who may be on it: the last is an uplink.
const MEMBERS: usize = 6;
/// Queues of each.
const QUEUES: usize = 2;
/// Frames that each may have under way.
const FRAMES: u16 = 64;
/// The VLAN that two are in.
const VLAN: u16 = 5;
/// Stations that a vif may have behind it.
const STATIONS: usize = 3;

struct Member {
    index: usize,
    socket: Option<Box<dyn Socket<Domain>>>,
    endpoint: Option<Arc<Endpoint<Domain>>>,
    lanes: Vec<Box<dyn Port<Domain>>>,
    pool: Pool<Domain>,
    drops: Drops,
}

fn own(index: usize) -> Mac {
    Mac([0, 0x16, 0x3E, 0, 0, index as u8])
}

/// Of two that are locked, two that are isolated, and two in a VLAN.
fn vif(index: usize) -> Vif {
    Vif {
        frontend: DomId(index as u16),
        handle: 0,
        name: format!("vif{index}.0"),
        mac: own(index),
        addresses: Vec::new(),
        bridge: Some(match is_in_vlan(index) {
            true => format!("lan.{VLAN}"),
            false => "lan".into(),
        }),
        mtu: 1500,
        locked: index < 2,
        isolated: is_isolated(index),
    }
}

fn is_isolated(index: usize) -> bool {
    matches!(index, 1 | 2)
}

fn is_in_vlan(index: usize) -> bool {
    matches!(index, 3 | 4)
}

/// An address that a byte names: everybody's own, some strangers, groups.
fn mac(byte: u8) -> Mac {
    match byte % 16 {
        index @ 0..6 => own(index.into()),
        6 => Mac::BROADCAST,
        7 => Mac([1, 0, 0x5E, 0, 0, 1]),
        8 => Mac::default(),
        stranger => Mac([2, 0, 0, 0, 0, stranger]),
    }
}

impl Member {
    fn disconnect(&mut self) {
        self.lanes.clear();
        if let Some(endpoint) = self.endpoint.take() {
            for queue in 0..endpoint.queues() {
                endpoint.close(queue);
            }
        }
    }

    fn connect(&mut self) {
        self.disconnect();
        if let Some(socket) = &mut self.socket {
            let bells = (0..QUEUES).map(|_| Arc::default());
            let endpoint = Arc::new(Endpoint::new(bells, Arc::default()));
            let lanes = socket.connect(Arc::clone(&endpoint));
            self.lanes = lanes.expect("a switch lets everybody connect");
            assert_eq!(self.lanes.len(), QUEUES);
            self.endpoint = Some(endpoint);
        }
    }

    /// Sends a frame that says who has sent it; whether it was sent at all.
    fn send(&mut self, from: Mac, to: Mac, tag: Option<u16>, len: usize, lane: usize) -> bool {
        self.pool.collect(|_| {});
        let (Some(lane), Some(mut frame)) = (self.lanes.get_mut(lane), self.pool.take()) else {
            return false;
        };
        let mut bytes = [to.0, from.0].concat();
        if let Some(tag) = tag {
            bytes.extend([0x81, 0]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend([0x88, 0xB5, self.index as u8]);
        bytes.resize(bytes.len().max(len), 0xA5);
        let head = frame.make_head(bytes.len()).expect("it is a short one");
        head.copy_from_slice(&bytes);
        let mut frames = vec![frame];
        lane.send(&mut frames, &self.drops);
        true
    }
}

/// The switch of a host, and what its vifs do with it: a byte says what, and the next three with
/// whom. Nobody gets what is not for him, or from whom it is not; and each frame gets somewhere or is
/// counted, and comes home.
pub fn net_switch(data: &[u8]) {
    let config = Config {
        pcpus: 1,
        ..Config::default()
    };
    let hypervisor = Hypervisor::new(config).expect("the host has a thread");
    let place = hypervisor.create(DomainConfig::default());
    let place = place.expect("the host has memory");
    let memory = Memory {
        of_a_vif: STATIONS,
        stations: 12,
        ..Memory::default()
    };
    let switch = Switch::with_memory(place.clone(), memory);
    let mut members: Vec<Member> = (0..MEMBERS)
        .map(|index| Member {
            index,
            socket: None,
            endpoint: None,
            lanes: Vec::new(),
            pool: Pool::new(&place, place.domid(), FRAMES, 1, Arc::default())
                .expect("a page is there"),
            drops: Drops::default(),
        })
        .collect();
    for step in data.chunks_exact(4) {
        let index = usize::from(step[0] >> 4) % MEMBERS;
        match step[0] % 8 {
            0 => {
                let member = &mut members[index];
                member.disconnect();
                // The old place is given up before there is a new one.
                member.socket = None;
                let plugged = match index {
                    5 => switch.uplink("up"),
                    _ => switch.plug(&vif(index)),
                };
                member.socket = Some(plugged.expect("nobody else has its address"));
                member.connect();
            }
            1 => members[index].connect(),
            2 => members[index].disconnect(),
            3 => members[index].socket = None,
            _ => {
                let (from, to) = (mac(step[1]), mac(step[2]));
                let tag = (step[3] & 3 == 3).then_some(VLAN + u16::from(step[3] >> 6));
                let before = members[index].drops.total();
                let sent = members[index].send(
                    from,
                    to,
                    tag,
                    usize::from(step[3]),
                    usize::from(step[3] & 1),
                );
                let dropped = members[index].drops.total() - before;
                let got = take_all(&members, index, (from, to), tag);
                assert_eq!(
                    sent,
                    dropped + u64::from(got > 0) == 1,
                    "it gets somewhere, or is counted once"
                );
            }
        }
        assert!(switch.stations().len() <= 12 + MEMBERS);
    }
    for member in &mut members {
        member.disconnect();
    }
    for member in &mut members {
        member.pool.collect(|_| {});
        assert_eq!(member.pool.lent(), 0, "a frame has not come home");
    }
}

/// Takes what everybody was given of a frame; how many these were.
fn take_all(members: &[Member], sender: usize, (from, to): (Mac, Mac), tag: Option<u16>) -> usize {
    let mut all = 0;
    for member in members {
        let Some(endpoint) = &member.endpoint else {
            continue;
        };
        let mut got = 0;
        for queue in 0..QUEUES {
            while let Some(frame) = endpoint.take(queue) {
                got += 1;
                assert_eq!(
                    (frame.destination(), frame.source()),
                    (Some(to), Some(from))
                );
                let head = frame.head();
                let tagged = head[12..14] == [0x81, 0];
                assert_eq!(usize::from(head[if tagged { 18 } else { 14 }]), sender);
                if is_in_vlan(member.index) {
                    assert!(!tagged && (is_in_vlan(sender) || tag == Some(VLAN)));
                } else {
                    assert_eq!(tagged, is_in_vlan(sender) || tag.is_some());
                }
            }
        }
        assert!(got <= 1, "one copy each");
        if got > 0 {
            assert_ne!(member.index, sender, "not its own");
            assert!(!(is_isolated(member.index) && is_isolated(sender)));
            assert!(!from.is_group() && from != Mac::default());
            let owner = members
                .iter()
                .find(|other| other.socket.is_some() && from == own(other.index));
            assert!(
                owner.is_none_or(|owner| owner.index == sender || owner.index == MEMBERS - 1),
                "nobody is another"
            );
            if sender < 2 {
                assert_eq!(from, own(sender), "it is locked");
            }
        }
        all += got;
    }
    all
}
