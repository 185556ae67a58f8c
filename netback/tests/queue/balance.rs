//! Every frame in is a frame out, or a drop that is counted and named.

use std::sync::Arc;
use std::time::Duration;

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Channel;
use parapet_netback::queue::Patience;
use parapet_netback::rx::{GsoForm, Receives};
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::netif::{GsoType, TxFlags};
use proptest::prelude::*;

use crate::transmit::gso;
use crate::world::{Guest, Net, Options, PAGES, Plug, World, pattern, tcp, until};

/// What one of the two guests does.
#[derive(Debug, Clone)]
enum Step {
    /// Transmits a packet of so many bytes of payload.
    Send { bytes: usize, kind: Kind },
    /// Posts so many buffers.
    Post(u16),
    /// Posts one that cannot be written.
    PostBad,
    /// Lets the host work until it sleeps.
    Wait,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Of no protocol that anybody knows.
    Plain,
    /// Of TCP, to be summed.
    Blank { v6: bool },
    /// Of TCP, to be cut.
    Gso { v6: bool, size: u16 },
    /// Of no protocol, and to be summed.
    Nonsense,
    /// In a page that is not granted.
    Bad,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Plain),
        2 => any::<bool>().prop_map(|v6| Kind::Blank { v6 }),
        2 => (any::<bool>(), 1u16..3000).prop_map(|(v6, size)| Kind::Gso { v6, size }),
        1 => Just(Kind::Nonsense),
        1 => Just(Kind::Bad),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![0usize..300, 0usize..20_000];
    prop_oneof![
        6 => (bytes, kind()).prop_map(|(bytes, kind)| Step::Send { bytes, kind }),
        3 => (1u16..20).prop_map(Step::Post),
        1 => Just(Step::PostBad),
        1 => Just(Step::Wait),
    ]
}

fn receives() -> impl Strategy<Value = Receives> {
    let form = || prop::sample::select(vec![GsoForm::None, GsoForm::Extra, GsoForm::Prefix]);
    let all = (any::<bool>(), form(), form(), any::<bool>(), any::<bool>());
    all.prop_map(|(scatter, gso_v4, gso_v6, blank_v4, blank_v6)| Receives {
        scatter,
        gso_v4,
        gso_v6,
        blank_v4,
        blank_v6,
    })
}

impl Guest {
    /// Takes all that there is to take, without waiting. How many transmit slots are free then.
    fn take_all(&mut self) -> u32 {
        while self.tx.take().unwrap().is_some() {}
        while self.rx.take().unwrap().is_some() {}
        self.tx.free()
    }

    /// Waits until so many transmit slots are free.
    fn make_room(&mut self, slots: u32) {
        while self.take_all() < slots {
            if !self.tx.arm().unwrap() {
                block_on(self.tx_channel.wait());
            }
        }
    }

    fn do_step(&mut self, step: &Step, sent: &mut u64) {
        match *step {
            Step::Send { bytes, kind } => {
                let mut flags = TxFlags::CSUM_BLANK;
                let mut cut = None;
                let packet = match kind {
                    Kind::Plain | Kind::Bad => {
                        flags = TxFlags::empty();
                        pattern(bytes + 14, 1)
                    }
                    Kind::Nonsense => pattern(bytes + 14, 1),
                    Kind::Blank { v6 } => tcp(v6, &pattern(bytes, 2)),
                    Kind::Gso { v6, size } => {
                        let kind = if v6 { GsoType::TcpV6 } else { GsoType::TcpV4 };
                        cut = Some(gso(kind, size));
                        flags |= TxFlags::EXTRA_INFO;
                        tcp(v6, &pattern(bytes, 3))
                    }
                };
                let pages = packet.len().div_ceil(4096);
                self.make_room(pages as u32 + 1);
                for (page, chunk) in packet.chunks(4096).enumerate() {
                    self.write(page, 0, chunk);
                    let more = match page + 1 == pages {
                        true => TxFlags::empty(),
                        false => TxFlags::MORE_DATA,
                    };
                    let (size, own) = match page {
                        0 => (packet.len(), flags),
                        _ => (chunk.len(), TxFlags::empty()),
                    };
                    // The last page is granted no more.
                    let page = if matches!(kind, Kind::Bad) {
                        PAGES - 1
                    } else {
                        page
                    };
                    self.slot(page, page as u16, 0, size as u16, own | more);
                    if let Some(cut) = cut.take() {
                        self.raw(cut);
                    }
                }
                self.publish_tx();
                *sent += 1;
            }
            Step::Post(count) => {
                for n in 0..count.min(self.rx.free() as u16) {
                    self.post(32 + usize::from(n));
                }
                self.publish_rx();
            }
            Step::PostBad => {
                if self.rx.free() > 0 {
                    self.post_gref(0, GrantRef(99_999));
                    self.publish_rx();
                }
            }
            Step::Wait => {
                let sleeps = self.stats.sleeps.get();
                for _ in 0..10 {
                    self.tx_channel.notify();
                    if self.stats.sleeps.get() > sleeps {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
        }
        self.take_all();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn every_frame_in_is_a_frame_out_or_a_counted_drop(
        steps in proptest::collection::vec((any::<bool>(), step()), 1..150),
        takes in [receives(), receives()],
        mapped in any::<[bool; 2]>(),
        aside in any::<bool>(),
        drain in any::<bool>(),
    ) {
        let world = World::new();
        let plugs = [Plug::new(), Plug::new()];
        let cables = [1, 0].map(|other: usize| Net::Cable(Arc::clone(&plugs[other].endpoint)));
        let long = Duration::from_secs(3600);
        let after = |soon: bool| if soon { Duration::ZERO } else { long };
        let patience = Patience { aside: after(aside), drain: after(drain), stall: long };
        let mut guests: Vec<Guest> = Vec::new();
        for ((plug, cable), receives) in plugs.into_iter().zip(cables).zip(takes) {
            let options = Options { receives, patience, ..Options::default() };
            guests.push(world.plugged(plug, cable, &options));
        }
        for (guest, mapped) in guests.iter_mut().zip(mapped) {
            // Not the last, which is to be bad.
            if mapped {
                guest.keep_mapped(0..PAGES - 1);
            }
            guest.refs[PAGES - 1] = GrantRef(77_777);
        }
        let mut sent = 0;
        for (which, step) in &steps {
            // A sender whose frames nobody takes waits for its slots: somebody has to.
            if !(aside || drain) {
                for guest in &mut guests {
                    guest.do_step(&Step::Post(30), &mut sent);
                }
            }
            guests[usize::from(*which)].do_step(step, &mut sent);
        }
        let taken = |guests: &[Guest]| -> u64 {
            let of = |guest: &Guest| {
                let stats = &guest.stats;
                stats.tx.packets.get() + stats.tx.errors.get()
            };
            guests.iter().map(of).sum()
        };
        until("all was taken", || {
            for guest in &mut guests {
                guest.take_all();
            }
            taken(&guests) == sent
        });
        for guest in &mut guests {
            drop(guest.stop.take());
        }
        for guest in &mut guests {
            guest.stop().unwrap();
        }
        let (mut out, mut dropped) = (0, 0);
        for guest in &guests {
            out += guest.stats.rx.packets.get();
            dropped += guest.stats.drops.total();
        }
        prop_assert_eq!(sent, out + dropped, "given {}, dropped {}", out, dropped);
    }
}
