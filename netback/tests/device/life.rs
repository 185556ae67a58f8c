//! A vif that nobody troubles.

use std::sync::atomic::Ordering;

use parapet_hypervisor::seam::{Grant, Identity};
use parapet_netback::report::Stage;
use parapet_packet::Mac;
use parapet_xen_sys::io::netif::Status;

use crate::front::frame;
use crate::world::{QUEUES, boot, works};

#[test]
fn a_vif_is_offered_connected_closed_and_removed() {
    let host = boot();
    let (vif, other) = (host.attach(0), host.attach(1));
    let mut far = host.connect(&other);
    let mut front = host.connect(&vif);
    for (key, value) in [
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
        ("feature-rx-copy", "1"),
        ("feature-rx-flip", "0"),
        ("feature-multicast-control", "1"),
        ("feature-dynamic-multicast-control", "1"),
        ("feature-split-event-channels", "1"),
        ("feature-ctrl-ring", "1"),
        ("multi-queue-max-queues", "4"),
        ("carrier", "1"),
    ] {
        assert_eq!(host.get(&vif.back, key), value, "{key}");
    }
    works((&vif, &mut front), (&other, &mut far));
    let report = host.report(&vif);
    assert_eq!((report.stage, report.connections), (Stage::Connected, 1));
    assert_eq!(
        report.about.vif.unwrap().name,
        format!("vif{}.0", host.guest.domid())
    );
    let agreed = report.about.connection.unwrap();
    assert!(agreed.split && agreed.queues == 1 && !agreed.control);
    let stats = &report.about.stats;
    assert_eq!(stats.sum(|queue| queue.tx.packets.get()), 1);
    assert_eq!(stats.sum(|queue| queue.rx.bytes.get()), 100);

    host.detach(&vif);
    // A frontend that is closing may have something to send yet.
    host.wait(&vif, "5");
    works((&vif, &mut front), (&other, &mut far));
    host.set(&vif.front, "state", "6");
    host.wait(&vif, "6");
    front.tx_grant.end().unwrap();
    front.rx_grant.end().unwrap();
    front.grant.end().unwrap();
}

#[test]
fn a_frontend_may_close_and_come_back_and_the_numbers_go_on() {
    let host = boot();
    let (vif, other) = (host.attach(0), host.attach(1));
    let mut far = host.connect(&other);
    for life in 1..=3 {
        let mut front = host.connect(&vif);
        works((&vif, &mut front), (&other, &mut far));
        host.set(&vif.front, "state", "5");
        host.wait(&vif, "5");
        host.set(&vif.front, "state", "6");
        host.wait(&vif, "6");
        front.tx_grant.end().unwrap();
        let report = host.report(&vif);
        assert_eq!(report.connections, life);
        let sent = report.about.stats.sum(|queue| queue.tx.packets.get());
        assert_eq!(sent, life);
        host.set(&vif.front, "state", "1");
    }
    // It kept its place meanwhile.
    assert_eq!(host.plugged.load(Ordering::SeqCst), 2);
}

#[test]
fn every_queue_is_served_with_an_event_channel_or_two() {
    let host = boot();
    let (vif, other) = (host.attach(0), host.attach(1));
    let mut far = host.connect(&other);
    for split in [false, true] {
        let mut queues = host.connect_queues(&vif, QUEUES as usize, split);
        for queue in &mut queues {
            let frame = frame(vif.mac, other.mac, 3);
            assert_eq!(queue.send(&frame), Status::OKAY);
            assert_eq!(far.receive(), frame);
        }
        assert_eq!(host.report(&vif).about.connection.unwrap().queues, 4);
        host.set(&vif.front, "state", "6");
        host.wait(&vif, "6");
        host.set(&vif.front, "state", "1");
    }
}

#[test]
fn the_rate_is_followed_while_it_runs_and_nonsense_changes_nothing() {
    let host = boot();
    let vif = host.attach_with(0, &[("rate", "1000,1000")]);
    let mut front = host.connect(&vif);
    let set = |value: &str| {
        host.set(&vif.back, "rate", value);
        // The service looks at its own directory before it does what the frontend says next.
        host.set(&vif.front, "state", "4");
    };
    let rate = || host.report(&vif).about.rate.map(|rate| rate.per_second);
    let wait_for = |wanted: Option<u64>| {
        while rate() != wanted {
            std::thread::yield_now();
        }
    };
    wait_for(Some(1_000_000));
    set("5000,1000000");
    wait_for(Some(5000));
    set("much");
    while host.report(&vif).error.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(rate(), Some(5000));
    set("0,0");
    wait_for(None);
    let to_all = frame(vif.mac, Mac::BROADCAST, 0);
    assert_eq!(front.send(&to_all), Status::OKAY);
}

#[test]
fn multicast_is_heard_until_the_frontend_wants_to_be_asked_and_again() {
    let host = boot();
    let (vif, other) = (host.attach(0), host.attach(1));
    let mut far = host.connect(&other);
    let mut front = host.connect(&vif);
    let group = Mac([1, 0, 0x5e, 0, 0, 7]);
    let unheard = || {
        let stats = host.report(&other).about.stats;
        stats.dropped(parapet_netback::drops::Drop::Multicast)
    };
    let heard = frame(vif.mac, group, 1);
    assert_eq!(front.send(&heard), Status::OKAY);
    assert_eq!(far.receive(), heard);
    host.set(&other.front, "request-multicast-control", "1");
    // It takes effect soon: until then the other hears.
    while unheard() == 0 {
        assert_eq!(front.send(&frame(vif.mac, group, 2)), Status::OKAY);
        let sign = frame(vif.mac, other.mac, 3);
        assert_eq!(front.send(&sign), Status::OKAY);
        while far.receive() != sign {}
    }
    host.set(&other.front, "request-multicast-control", "0");
    loop {
        assert_eq!(front.send(&heard), Status::OKAY);
        let sign = frame(vif.mac, other.mac, 4);
        assert_eq!(front.send(&sign), Status::OKAY);
        if far.receive() == heard {
            break;
        }
    }
}
