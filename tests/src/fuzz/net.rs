//! The back half of a vif, against a frontend that is nothing but bytes.

mod switch;
mod vif;

use std::num::NonZeroU16;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_netback::rx::{GsoForm, Receives};
use parapet_netback::tx::{Packet, SLOTS};
use parapet_packet::{Checksum, Gso, GsoKind, Offloads};
use parapet_xen_sys::io::netif::{
    ControlRequest, RxFlags, RxRequest, RxResponse, TxFlags, TxRequest, TxSlot,
};

pub use switch::net_switch;
use vif::{PATTERN, Port, Vif};

/// Pages of a guest.
const PAGES: usize = 8;
/// Pages of one that receives: as many as its ring has slots.
const BUFFERS: usize = 256;

/// Slots of a transmit ring, whatever they say: each is taken once, and a packet that passes has all
/// its bytes within pages.
pub fn net_transmit(data: &[u8]) {
    let mut slots = data
        .as_chunks::<{ size_of::<TxSlot>() }>()
        .0
        .iter()
        .copied();
    let mut packet = Packet::default();
    while let Some(first) = slots.next() {
        let before = slots.len() + 1;
        let Ok(read) = packet.read(first, || Ok(slots.next())) else {
            return;
        };
        let taken = before - slots.len();
        assert_eq!(packet.ids().len() + usize::from(packet.extras), taken);
        if read.is_err() || packet.group.is_some() {
            continue;
        }
        assert_eq!(packet.slots().len(), packet.ids().len());
        assert!(packet.slots().len() <= SLOTS);
        let mut len = 0;
        for slot in packet.slots() {
            assert!(usize::from(slot.offset) + usize::from(slot.len) <= PAGE_SIZE);
            len += usize::from(slot.len);
        }
        assert_eq!(len, usize::from(packet.len));
        let blank = packet.offloads.checksum == Checksum::Blank;
        assert!(packet.offloads.gso.is_none() || blank);
    }
}

/// What a frontend takes, out of a byte.
fn receives(byte: u8) -> Receives {
    let form = |bits: u8| match bits & 3 {
        0 => GsoForm::None,
        1 => GsoForm::Prefix,
        _ => GsoForm::Extra,
    };
    Receives {
        scatter: byte & 1 == 0,
        gso_v4: form(byte >> 1),
        gso_v6: form(byte >> 3),
        blank_v4: byte & 0x20 == 0,
        blank_v6: byte & 0x40 == 0,
    }
}

/// Headers of TCP before so many bytes.
fn tcp(v6: bool, payload: usize) -> Vec<u8> {
    let len = (payload + 20) as u16;
    let mut bytes = vec![2; 12];
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([6, 64]);
        bytes.extend([7; 32]);
    } else {
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((len + 20).to_be_bytes());
        bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    bytes.extend([
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0,
    ]);
    bytes.resize(bytes.len() + payload, 0x5a);
    bytes
}

/// Frames for a guest that posts as many buffers as it can: each is given or dropped, what is given
/// is a packet by the rules of the ring, and of a buffer no byte is written but those that are said
/// to be. The first bytes choose what the guest takes, and what it keeps mapped.
pub fn net_receive(data: &[u8]) {
    let [takes, flags, steps @ ..] = data else {
        return;
    };
    let mut vif = Vif::new(receives(*takes), Port::Null, flags & 1 != 0, BUFFERS);
    if flags & 2 != 0 {
        vif.keep_mapped();
    }
    let mut pool = vif.pool();
    let mut sent = 0;
    for step in steps.chunks_exact(6) {
        let &[kind, low, high, head, size, offloads] = step else {
            break;
        };
        let len = usize::from(u16::from_le_bytes([low, high]));
        let bytes = match kind % 3 {
            0 => vec![0x5a; len.max(14)],
            v => {
                let mut bytes = tcp(v == 1, len.min(65_000));
                if kind & 0x80 != 0 {
                    // Some bit of the headers is not what it should be.
                    let at = 12 + usize::from(head) % 50;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (size & 7);
                    }
                }
                bytes
            }
        };
        let gso = Gso {
            kind: if offloads & 4 == 0 {
                GsoKind::TcpV4
            } else {
                GsoKind::TcpV6
            },
            size: NonZeroU16::new(u16::from(size) * 20).unwrap_or(NonZeroU16::MIN),
        };
        let offloads = match offloads & 3 {
            0 => Offloads::default(),
            1 => Offloads {
                checksum: Checksum::Intact,
                gso: None,
            },
            2 => Offloads {
                checksum: Checksum::Blank,
                gso: None,
            },
            _ => Offloads {
                checksum: Checksum::Blank,
                gso: Some(gso),
            },
        };
        vif.post_all();
        let head = 14 + usize::from(head) % (256 - 13);
        if vif.deliver(&mut pool, &bytes, head, offloads) {
            sent += 1;
        }
        vif.wait("a frame is given or dropped", |stats| {
            stats.rx.packets.get() + stats.drops.total() == sent
        });
        pool.collect(|_| {});
        receive_all(&mut vif);
    }
    vif.end();
}

/// Takes all that a guest was given.
fn receive_all(vif: &mut Vif) {
    while let Some((slot, request)) = vif.take_received() {
        let mut response: RxResponse = zerocopy::transmute!(slot);
        let mut request = request;
        let mut is_first = true;
        loop {
            check(vif, response, request);
            if std::mem::take(&mut is_first) && response.flags.contains(RxFlags::GSO_PREFIX) {
                assert!(response.flags.contains(RxFlags::MORE_DATA) && response.status == 0);
            }
            let mut extra = response.flags.contains(RxFlags::EXTRA_INFO);
            while extra {
                let (slot, _) = vif.take_received().expect("the rest of a packet");
                assert!(matches!(slot[0], 1 | 4), "extra information that there is");
                extra = slot[1] & 1 != 0;
            }
            if !response.flags.contains(RxFlags::MORE_DATA) {
                break;
            }
            let (next, its) = vif.take_received().expect("the rest of a packet");
            response = zerocopy::transmute!(next);
            request = its;
        }
    }
}

fn check(vif: &Vif, response: RxResponse, request: RxRequest) {
    assert_eq!(response.id, request.id, "an answer in its request's slot");
    let len = usize::try_from(response.status).expect("a buffer that can be written");
    // In a slot before the packet, it is the size of the segments.
    let is_prefix = response.flags.contains(RxFlags::GSO_PREFIX);
    assert!(is_prefix || usize::from(response.offset) + len <= PAGE_SIZE);
    let page = vif.page(usize::from(request.id));
    let rest = page.get(len..).unwrap_or_default();
    assert!(
        rest.iter().all(|&byte| byte == PATTERN),
        "what was not said to be written"
    );
}

/// A control ring that bytes drive: every request has its answer, and in the end nothing is mapped.
pub fn net_control(data: &[u8]) {
    let mut vif = Vif::new(Receives::default(), Port::Null, true, PAGES);
    for step in data.chunks_exact(8) {
        let &[control, a, b, c, d, e, f, g] = step else {
            break;
        };
        // Lists of grants, good and bad, named once or more.
        let (first, count) = (usize::from(d), usize::from(e) % 8);
        let mut list = Vec::new();
        for n in 0..count {
            list.extend(
                vif.gref((first + n * usize::from(f & 1)) as u8)
                    .0
                    .to_le_bytes(),
            );
            list.extend([f >> 6, 0, 0xFF, 0xFF]);
        }
        vif.write(0, &list);
        let number = |byte: u8| match byte {
            255 => u32::MAX,
            byte => u32::from(byte) % 64,
        };
        let data = match control % 16 {
            8..=10 => [
                number(a) % 3,
                vif.gref(b % 8).0,
                count as u32 + u32::from(g == 255) * 1000,
            ],
            3 | 6 => [vif.gref(a).0, number(b), number(c)],
            _ => [number(a), number(b), number(c)],
        };
        let control = u16::from(control % 16);
        let response = vif.ask(ControlRequest {
            id: u16::from(g),
            control,
            data,
        });
        assert_eq!((response.id, response.control), (u16::from(g), control));
        assert!(response.status.0 <= 3);
    }
    vif.end();
}

/// A whole back half, rings and all, that sends a guest its own frames back. The first bytes choose
/// what the guest takes, and whether it also writes anywhere into its rings. Memory that was not
/// granted, or not to be written, stays as it was whatever happens; no slot is answered that was not
/// asked; and in the end nothing is mapped.
pub fn net_queue(data: &[u8]) {
    let [takes, flags, steps @ ..] = data else {
        return;
    };
    let mut vif = Vif::new(receives(*takes), Port::Bounce, flags & 1 != 0, PAGES);
    if flags & 2 != 0 {
        vif.keep_mapped();
    }
    let wild = flags & 4 != 0;
    let mut data = steps.iter().copied();
    while let Some(step) = data.next() {
        let mut byte = || data.next().unwrap_or(0);
        let mut word = || u16::from_le_bytes([byte(), byte()]);
        match step % 8 {
            // A packet, or part of one: mostly one that makes sense.
            0..=2 => {
                let (offset, size) = (word(), word());
                let sane = step & 0x80 == 0;
                let request = TxRequest {
                    gref: vif.gref(step >> 3),
                    offset: if sane { offset % 64 } else { offset },
                    flags: TxFlags::from_bits_retain(match step % 8 {
                        0 => 0,
                        1 => u16::from(step >> 3 & 3),
                        _ => u16::from(step >> 3 & 0xF),
                    }),
                    id: 0,
                    size: if sane { 14 + size % 4000 } else { size },
                };
                vif.transmit(request);
            }
            3 => {
                let mut slot = [0; 12];
                slot[..8].fill_with(&mut byte);
                slot[0] %= 6;
                slot[1] &= 1;
                vif.transmit_raw(slot);
            }
            4 => {
                vif.publish();
                vif.let_work();
            }
            5 => {
                for _ in 0..step >> 3 {
                    vif.post(byte().into());
                }
            }
            6 if wild => {
                let at = usize::from(byte());
                let at = if at < 192 { at % 16 } else { (at - 192) * 64 };
                vif.scribble(step >> 3, at, byte());
            }
            6 => {
                // Headers, so that there is something to look into.
                let headers = tcp(step & 8 == 0, usize::from(word()) % 3000);
                let at = usize::from(byte()) % 64;
                let page = usize::from(step >> 4) % PAGES;
                if let Some(some) = headers.get(..headers.len().min(1000)) {
                    vif.write_at(page, at, some);
                }
            }
            _ => vif.answers(wild),
        }
    }
    vif.publish();
    vif.let_work();
    vif.answers(wild);
    vif.end();
}
