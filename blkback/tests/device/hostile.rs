//! Frontends that do what they should not: it costs them their own device, and nobody else.

use parapet_hypervisor::block_on;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Channel, Events, Grant, Grants, Identity, Memory, Pages};

use crate::plain::PAGES;
use crate::world::{Host, Vbd, boot, works};

/// Every way to answer that cannot be.
fn bad_answers(host: &Host) -> Vec<(&'static str, Option<String>)> {
    let backend = host.backend.domid();
    // Granted by the same guest to somebody else, and a port that waits for somebody else.
    let pages = host.guest.allocate(1).unwrap();
    let grant = host
        .guest
        .grant(&pages, host.stranger.domid(), Access::ReadWrite);
    let grant = grant.unwrap();
    let foreign_ref = grant.refs()[0].0.to_string();
    let read_only = host.guest.grant(&pages, backend, Access::ReadOnly).unwrap();
    let read_only_ref = read_only.refs()[0].0.to_string();
    let channel = host.guest.alloc_unbound(host.stranger.domid()).unwrap();
    let foreign_port = channel.port().0.to_string();
    // Its own is bound already, to itself.
    let own = host.guest.alloc_unbound(host.guest.domid()).unwrap();
    let bound = host.guest.bind(host.guest.domid(), own.port()).unwrap();
    let bound_port = bound.port().0.to_string();
    // They stay for as long as the guest does.
    std::mem::forget((pages, grant, read_only, channel, own, bound));

    let mut answers = vec![
        ("ring-ref", None),
        ("event-channel", None),
        ("ring-ref", Some(foreign_ref)),
        ("ring-ref", Some(read_only_ref)),
        ("event-channel", Some(foreign_port)),
        ("event-channel", Some(bound_port)),
    ];
    let texts = [
        ("ring-ref", "-1"),
        ("ring-ref", "99999"),
        ("ring-ref", "4294967295"),
        ("ring-ref", "4294967296"),
        ("ring-ref", "8 9"),
        ("ring-ref", ""),
        ("event-channel", "0"),
        ("event-channel", "4000"),
        ("event-channel", "4294967295"),
        ("event-channel", "99999999999999999999"),
        ("event-channel", "seven"),
        ("event-channel", ""),
        ("protocol", "vax-abi"),
        ("protocol", ""),
        // More pages than it has named.
        ("ring-page-order", "1"),
        ("ring-page-order", "4"),
        ("ring-page-order", "31"),
        ("num-ring-pages", "3"),
        ("feature-persistent", "maybe"),
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "4294967295"),
        ("multi-queue-num-queues", "-1"),
        ("multi-queue-num-queues", ""),
        // Queues that it has not named.
        ("multi-queue-num-queues", "2"),
    ];
    answers.extend(texts.map(|(key, value)| (key, Some(value.to_owned()))));
    answers
}

#[test]
fn an_answer_that_makes_no_sense_closes_the_device_with_the_reason_and_may_be_mended() {
    let host = boot();
    let good = host.attach(51712, "memory:1M", "w");
    let mut neighbour = host.connect(&good);
    let bad = host.attach(51728, "memory:1M", "w");
    let mappings = host.backend.mappings();
    let ports = host.backend.ports_in_use();
    for (key, value) in bad_answers(&host) {
        host.wait(&bad, "2");
        let front = host.front();
        let _ = block_on(host.store.remove(&bad.error()));
        host.set(&bad.front, "state", "1");
        for (own, right) in [
            ("ring-ref", front.ring_grant.refs()[0].0.to_string()),
            ("event-channel", front.channel.port().0.to_string()),
        ] {
            host.set(&bad.front, own, &right);
        }
        match &value {
            Some(value) => host.set(&bad.front, key, value),
            None => block_on(host.store.remove(&format!("{}/{key}", bad.front))).unwrap(),
        }
        host.set(&bad.front, "state", "3");
        host.wait(&bad, "5");
        let reason = host.get(&bad.error(), "error");
        let said = host.report(&bad).error.unwrap();
        assert!(reason.ends_with(&said), "{key}={value:?}: {reason}: {said}");
        assert_eq!(host.backend.ports_in_use(), ports, "{key}={value:?}");
        works(&mut neighbour);
        for key in [
            "protocol",
            "ring-page-order",
            "num-ring-pages",
            "feature-persistent",
            "multi-queue-num-queues",
        ] {
            let _ = block_on(host.store.remove(&format!("{}/{key}", bad.front)));
        }
        host.set(&bad.front, "state", "6");
        host.wait(&bad, "6");
        host.set(&bad.front, "state", "1");
    }
    // Those of the neighbour alone, who by now has pages that stay.
    assert_eq!(host.backend.mappings(), mappings + 2);
    let mut front = host.connect(&bad);
    works(&mut front);
    works(&mut neighbour);
}

#[test]
fn a_ring_index_that_jumps_closes_the_device_and_it_may_connect_again() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let front = host.connect(&vbd);
    front.ring_memory.view().write(0, &0x8000_0000u32).unwrap();
    front.channel.notify();
    host.wait(&vbd, "5");
    let reason = host.get(&vbd.error(), "error");
    assert!(reason.contains("req_prod"), "{reason}");
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    host.set(&vbd.front, "state", "1");
    drop(front);
    let mut front = host.connect(&vbd);
    works(&mut front);
}

#[test]
fn two_queues_on_one_ring_or_port_close_the_device_and_leave_nothing_bound() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    host.wait(&vbd, "2");
    let (mappings, ports) = (host.backend.mappings(), host.backend.ports_in_use());
    for shared in ["ring-ref", "event-channel"] {
        let fronts = [host.front(), host.front()];
        host.wait(&vbd, "2");
        host.publish_queues(&vbd, &fronts);
        host.wait(&vbd, "4");
        host.set(&vbd.front, "state", "6");
        host.wait(&vbd, "6");
        host.set(&vbd.front, "state", "1");
        host.wait(&vbd, "2");
        let fronts = [host.front(), host.front()];
        let first = host.get(&format!("{}/queue-0", vbd.front), shared);
        host.name_queues(&vbd, &fronts);
        let first_now = host.get(&format!("{}/queue-0", vbd.front), shared);
        assert_ne!(first, first_now);
        host.set(&format!("{}/queue-1", vbd.front), shared, &first_now);
        host.set(&vbd.front, "state", "3");
        host.wait(&vbd, "5");
        let reason = host.get(&vbd.error(), "error");
        assert!(reason.contains(shared), "{reason}");
        host.set(&vbd.front, "state", "6");
        host.wait(&vbd, "6");
        assert_eq!(host.backend.mappings(), mappings);
        assert_eq!(host.backend.ports_in_use(), ports);
        host.set(&vbd.front, "state", "1");
    }
}

#[test]
fn a_queue_that_is_broken_takes_the_others_of_its_disk_along_and_no_other_disk() {
    let host = boot();
    let neighbour = host.attach(51728, "memory:1M", "w");
    let mut honest = host.connect(&neighbour);
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut fronts = host.connect_queues(&vbd, 4);
    fronts.iter_mut().for_each(works);
    let ring = &fronts[2].ring_memory;
    ring.view().write(0, &0x8000_0000u32).unwrap();
    fronts[2].channel.notify();
    host.wait(&vbd, "5");
    let reason = host.get(&vbd.error(), "error");
    assert!(reason.contains("req_prod"), "{reason}");
    works(&mut honest);
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    host.set(&vbd.front, "state", "1");
    drop(fronts);
    let mut fronts = host.connect_queues(&vbd, 3);
    fronts.iter_mut().for_each(works);
    works(&mut honest);
}

#[test]
fn states_that_say_nothing_are_passed_over() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    host.wait(&vbd, "2");
    for state in ["0", "2", "7", "8", "9", "99999999999", "-1", "", "closed"] {
        host.set(&vbd.front, "state", state);
    }
    let mut front = host.front();
    host.publish(&vbd, &front);
    host.wait(&vbd, "4");
    for state in ["4", "3", "7", "8", "nonsense", "4"] {
        host.set(&vbd.front, "state", state);
        works(&mut front);
    }
    assert_eq!(host.get(&vbd.back, "state"), "4");
    assert_eq!(host.report(&vbd).error, None);
}

#[test]
fn a_frontend_that_jumps_ahead_or_back_is_followed() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    host.wait(&vbd, "2");
    // Leaves before it has come.
    host.set(&vbd.front, "state", "5");
    host.wait(&vbd, "5");
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    host.set(&vbd.front, "state", "1");
    host.wait(&vbd, "2");
    // From the middle to the beginning, as a guest that was reset.
    for _ in 0..3 {
        let mut front = host.connect(&vbd);
        works(&mut front);
        host.set(&vbd.front, "state", "1");
        host.wait(&vbd, "2");
        assert_eq!(host.backend.mappings(), 0);
    }
    // To the end at once.
    host.connect(&vbd);
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    assert_eq!(host.backend.mappings(), 0);
}

#[test]
fn keys_that_change_after_the_connection_change_nothing() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    for key in [
        "ring-ref",
        "event-channel",
        "protocol",
        "feature-persistent",
        "backend",
        "backend-id",
    ] {
        host.set(&vbd.front, key, "garbage");
    }
    host.set(&vbd.front, "state", "4");
    works(&mut front);
    assert_eq!(front.pages.view().len(), PAGES * PAGE_SIZE);
}

#[test]
fn a_node_as_long_as_nodes_get_is_an_error_of_a_line() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    host.wait(&vbd, "2");
    let Vbd { front, .. } = &vbd;
    host.set(front, "ring-ref", &"\u{1}9".repeat(900));
    host.set(front, "event-channel", "1");
    host.set(front, "state", "3");
    host.wait(&vbd, "5");
    let reason = host.get(&vbd.error(), "error");
    assert!(reason.len() < 600, "{reason}");
    assert!(!reason.contains('\u{1}'), "{reason}");
}
