//! What a real Xen host has beyond the seam: last words, which the kernel says for a process that
//! was killed.

use parapet_hypervisor::block_on;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Channel, Events, Grant, Grants, Mapping, Memory, Pages};
use parapet_hypervisor::xen::{LastWords, Xen};
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::grant_table::GrantRef;

use super::deaths::{Death, Peer, Played};

/// All checks.
pub fn deaths() -> Vec<Death<Xen>> {
    vec![
        Death {
            name: "a killed process's mapping clears its byte and notifies",
            peer: maps_with_last_words,
            survivor: hears_of_a_mappings_end,
        },
        Death {
            name: "a killed process's grant clears its byte and notifies",
            peer: grants_with_last_words,
            survivor: hears_of_a_grants_end,
        },
    ]
}

/// The byte that is cleared.
const BYTE: usize = 77;

/// The last words of a page, by a channel bound to `port` of `peer`.
fn words(place: &Xen, peer: DomId, port: u32) -> <Xen as Events>::Channel {
    place.bind(peer, Port(port)).unwrap()
}

fn maps_with_last_words(place: &Xen, from: DomId, numbers: &[u32]) -> Played {
    let channel = words(place, from, numbers[1]);
    let refs = [GrantRef(numbers[0])];
    let mapped = place.map(from, &refs, Access::ReadWrite).unwrap();
    let last = LastWords {
        clear: Some(BYTE),
        notify: Some(&channel),
    };
    mapped.last_words(last).unwrap();
    let beyond = LastWords {
        clear: Some(PAGE_SIZE),
        notify: None,
    };
    assert!(mapped.last_words(beyond).is_err(), "that is another page");
    (Vec::new(), Box::new((mapped, channel)))
}

fn hears_of_a_mappings_end(place: &Xen, peer: &mut dyn Peer) {
    let pages = place.allocate(1).unwrap();
    pages.view().write(BYTE - 1, &[1u8; 3]).unwrap();
    let access = Access::ReadWrite;
    let grant = place.grant(&pages, peer.domid(), access).unwrap();
    let channel = place.alloc_unbound(peer.domid()).unwrap();
    peer.ask(&[grant.refs()[0].0, channel.port().0]);
    assert!(!channel.take(), "nothing has ended yet");
    peer.kill();
    block_on(channel.wait());
    assert_eq!(pages.view().read::<[u8; 3]>(BYTE - 1).unwrap(), [1, 0, 1]);
}

fn grants_with_last_words(place: &Xen, to: DomId, numbers: &[u32]) -> Played {
    let channel = words(place, to, numbers[0]);
    let pages = place.allocate(1).unwrap();
    pages.view().write(BYTE - 1, &[1u8; 3]).unwrap();
    let grant = place.grant(&pages, to, Access::ReadWrite).unwrap();
    let last = LastWords {
        clear: Some(BYTE),
        notify: Some(&channel),
    };
    grant.last_words(last).unwrap();
    (vec![grant.refs()[0].0], Box::new((grant, channel)))
}

fn hears_of_a_grants_end(place: &Xen, peer: &mut dyn Peer) {
    let channel = place.alloc_unbound(peer.domid()).unwrap();
    let refs = [GrantRef(peer.ask(&[channel.port().0])[0])];
    let mapped = place.map(peer.domid(), &refs, Access::ReadWrite).unwrap();
    assert!(!channel.take(), "nothing has ended yet");
    peer.kill();
    block_on(channel.wait());
    assert_eq!(mapped.view().read::<[u8; 3]>(BYTE - 1).unwrap(), [1, 0, 1]);
}
