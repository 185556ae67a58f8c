//! Frontends that do what they should not: it costs them their own device, and nobody else.

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::{Access, Channel, Events, Grant, Grants, Identity, Memory};

use crate::world::{Host, boot, works};

/// Every way to answer that cannot be: a key, and what it says, if it is there.
fn bad_answers(host: &Host) -> Vec<(&'static str, Option<String>)> {
    let backend = host.backend.domid();
    // Granted by the same guest to somebody else, and a port that waits for somebody else.
    let pages = host.guest.allocate(1).unwrap();
    let grant = |to, access| host.guest.grant(&pages, to, access).unwrap();
    let foreign = grant(host.stranger.domid(), Access::ReadWrite);
    let read_only = grant(backend, Access::ReadOnly);
    let channel = host.guest.alloc_unbound(host.stranger.domid()).unwrap();
    let of = |grant: &<parapet_hypervisor::loopback::Domain as Grants>::Grant| {
        Some(grant.refs()[0].0.to_string())
    };
    let mut answers = vec![
        ("tx-ring-ref", None),
        ("rx-ring-ref", None),
        ("event-channel", None),
        ("request-rx-copy", None),
        ("tx-ring-ref", of(&foreign)),
        ("rx-ring-ref", of(&read_only)),
        ("event-channel", Some(channel.port().0.to_string())),
    ];
    // They stay for as long as the guest does.
    std::mem::forget((foreign, read_only, channel));
    let texts = [
        ("request-rx-copy", "0"),
        ("request-rx-copy", "please"),
        ("tx-ring-ref", "-1"),
        ("tx-ring-ref", "99999"),
        ("rx-ring-ref", "4294967295"),
        ("rx-ring-ref", "4294967296"),
        ("rx-ring-ref", ""),
        ("event-channel", "0"),
        ("event-channel", "4294967295"),
        ("event-channel", "seven"),
        ("event-channel-tx", "x"),
        ("feature-sg", "maybe"),
        ("feature-gso-tcpv4", "1 1"),
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "4294967295"),
        // Queues that it has not named.
        ("multi-queue-num-queues", "2"),
        ("ctrl-ring-ref", "99999"),
    ];
    answers.extend(texts.map(|(key, value)| (key, Some(value.to_owned()))));
    answers
}

#[test]
fn an_answer_that_makes_no_sense_closes_the_vif_with_the_reason_and_may_be_mended() {
    let host = boot();
    let (one, other) = (host.attach(0), host.attach(1));
    let mut neighbours = (host.connect(&one), host.connect(&other));
    let bad = host.attach(2);
    let mappings = host.backend.mappings();
    let ports = host.backend.ports_in_use();
    for (key, value) in bad_answers(&host) {
        host.wait(&bad, "2");
        let front = host.queue(false);
        let _ = block_on(host.store.remove(&bad.error()));
        host.publish(&bad, std::slice::from_ref(&front));
        match &value {
            Some(value) => host.set(&bad.front, key, value),
            None => block_on(host.store.remove(&format!("{}/{key}", bad.front))).unwrap(),
        }
        host.set(&bad.front, "state", "4");
        host.wait(&bad, "5");
        let reason = host.get(&bad.error(), "error");
        let said = host.report(&bad).error.unwrap();
        assert!(reason.ends_with(&said), "{key}={value:?}: {reason}: {said}");
        assert_eq!(host.backend.ports_in_use(), ports, "{key}={value:?}");
        assert_eq!(host.backend.mappings(), mappings, "{key}={value:?}");
        works((&one, &mut neighbours.0), (&other, &mut neighbours.1));
        for key in ["event-channel-tx", "ctrl-ring-ref"] {
            let _ = block_on(host.store.remove(&format!("{}/{key}", bad.front)));
        }
        host.set(&bad.front, "state", "6");
        host.wait(&bad, "6");
        host.set(&bad.front, "state", "1");
    }
    let mut front = host.connect(&bad);
    works((&bad, &mut front), (&other, &mut neighbours.1));
}

#[test]
fn a_frontend_that_breaks_its_ring_loses_its_connection_and_may_begin_another() {
    let host = boot();
    let (vif, other) = (host.attach(0), host.attach(1));
    let mut far = host.connect(&other);
    let mut front = host.connect(&vif);
    works((&vif, &mut front), (&other, &mut far));
    // More requests than there are slots.
    front.jump();
    host.wait(&vif, "5");
    let error = host.get(&vif.error(), "error");
    assert!(error.contains("transmit ring"), "{error}");
    host.set(&vif.front, "state", "6");
    host.wait(&vif, "6");
    front.tx_grant.end().unwrap();
    host.set(&vif.front, "state", "1");
    let mut front = host.connect(&vif);
    works((&vif, &mut front), (&other, &mut far));
}

#[test]
fn what_a_frontend_says_after_it_is_connected_changes_nothing() {
    let host = boot();
    let (vif, other) = (host.attach(0), host.attach(1));
    let mut far = host.connect(&other);
    let mut front = host.connect(&vif);
    for (key, value) in [
        ("tx-ring-ref", "99999"),
        ("event-channel-tx", "0"),
        ("multi-queue-num-queues", "1000000"),
        ("request-multicast-control", "of course"),
        ("state", "3"),
        ("state", "77"),
        ("state", "4"),
    ] {
        host.set(&vif.front, key, value);
        works((&vif, &mut front), (&other, &mut far));
    }
    assert_eq!(host.get(&vif.back, "state"), "4");
}
