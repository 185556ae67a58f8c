//! What must hold for the one who is left when its peer dies.
//!
//! ```text
//!   survivor                                   the peer
//!   asks it to hold something ──numbers──────► maps, grants or binds
//!                             ◄─────numbers─── and holds on to it
//!   has it killed
//!   looks at what is left
//! ```
//!
//! How the peer lives is the caller's: a loopback domain that is destroyed, a process that is
//! killed.

use std::any::Any;

use parapet_hypervisor::block_on;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Backend, Channel, Grant, Mapping, Pages};
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::grant_table::GrantRef;

/// What the peer holds until it dies.
pub type Held = Box<dyn Any + Send>;

/// What came of the peer's part: the numbers that it answers, and what it holds on to.
pub type Played = (Vec<u32>, Held);

/// The peer, as the survivor knows it.
pub trait Peer {
    /// Its domain.
    fn domid(&self) -> DomId;

    /// Has it play its part, and returns the numbers that it answers.
    fn ask(&mut self, numbers: &[u32]) -> Vec<u32>;

    /// Ends it as it stands. When this returns, it is gone.
    fn kill(&mut self);
}

/// One check.
pub struct Death<P> {
    /// What it pins.
    pub name: &'static str,
    /// The peer's part: what it does with numbers from the domain that survives it.
    pub peer: fn(&P, DomId, &[u32]) -> Played,
    /// The survivor's part.
    pub survivor: fn(&P, &mut dyn Peer),
}

/// All checks.
pub fn deaths<P: Backend>() -> Vec<Death<P>> {
    vec![
        Death {
            name: "what a dead domain granted stays readable while it is mapped",
            peer: grants_a_page,
            survivor: maps_a_dead_domains_page,
        },
        Death {
            name: "a dead domain maps nothing",
            peer: maps_a_page,
            survivor: takes_a_page_back_from_the_dead,
        },
        Death {
            name: "a dead domain's end of a channel is closed",
            peer: binds_a_port,
            survivor: notifies_the_dead,
        },
    ]
}

const WORDS: u64 = 0x0123_4567_89ab_cdef;

fn grants_a_page<P: Backend>(place: &P, to: DomId, _: &[u32]) -> Played {
    let pages = place.allocate(1).unwrap();
    pages.view().write(8, &WORDS).unwrap();
    let grant = place.grant(&pages, to, Access::ReadWrite).unwrap();
    (vec![grant.refs()[0].0], Box::new((pages, grant)))
}

fn maps_a_dead_domains_page<P: Backend>(place: &P, peer: &mut dyn Peer) {
    let refs = [GrantRef(peer.ask(&[])[0])];
    let mapped = place.map(peer.domid(), &refs, Access::ReadWrite).unwrap();
    peer.kill();
    assert_eq!(mapped.view().read::<u64>(8).unwrap(), WORDS);
    let view = mapped.view_mut().unwrap();
    view.write(PAGE_SIZE - 8, &WORDS).unwrap();
    assert_eq!(mapped.view().read::<u64>(PAGE_SIZE - 8).unwrap(), WORDS);
}

fn maps_a_page<P: Backend>(place: &P, from: DomId, numbers: &[u32]) -> Played {
    let refs: Vec<GrantRef> = numbers.iter().copied().map(GrantRef).collect();
    let mapped = place.map(from, &refs, Access::ReadWrite).unwrap();
    mapped.view_mut().unwrap().write(0, &WORDS).unwrap();
    (Vec::new(), Box::new(mapped))
}

fn takes_a_page_back_from_the_dead<P: Backend>(place: &P, peer: &mut dyn Peer) {
    let pages = place.allocate(1).unwrap();
    let grant = place
        .grant(&pages, peer.domid(), Access::ReadWrite)
        .unwrap();
    peer.ask(&[grant.refs()[0].0]);
    peer.kill();
    assert_eq!(pages.view().read::<u64>(0).unwrap(), WORDS);
    grant.end().unwrap();
}

fn binds_a_port<P: Backend>(place: &P, to: DomId, numbers: &[u32]) -> Played {
    let channel = place.bind(to, Port(numbers[0])).unwrap();
    channel.notify();
    (Vec::new(), Box::new(channel))
}

fn notifies_the_dead<P: Backend>(place: &P, peer: &mut dyn Peer) {
    let channel = place.alloc_unbound(peer.domid()).unwrap();
    peer.ask(&[channel.port().0]);
    block_on(channel.wait());
    channel.notify();
    peer.kill();
    channel.notify();
    assert!(!channel.take(), "nobody is left to send anything");
    // The port is as good as another: one of the next to be handed out may be it.
    drop(channel);
    let again = place.alloc_unbound(peer.domid()).unwrap();
    assert!(!again.take());
}
