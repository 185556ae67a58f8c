//! A guest that takes nothing.

use std::sync::Arc;
use std::time::Duration;

use parapet_netback::drops::Drop as Why;
use parapet_netback::queue::Patience;
use parapet_xen_sys::io::netif::{Status, TxFlags};

use crate::world::{Net, Options, Plug, World, frame, pattern, until};

const LONG: Duration = Duration::from_secs(3600);

/// Loses patience at once, up to a point.
fn patience(aside: bool, drain: bool, stall: bool) -> Options {
    let after = |soon| if soon { Duration::ZERO } else { LONG };
    Options {
        patience: Patience {
            aside: after(aside),
            drain: after(drain),
            stall: after(stall),
        },
        ..Options::default()
    }
}

#[test]
fn a_sender_gets_its_pages_back_from_a_receiver_that_posts_nothing() {
    let world = World::new();
    let plug = Plug::new();
    let cable = Net::Cable(Arc::clone(&plug.endpoint));
    let mut to = world.plugged(
        plug,
        Net::Sink(Arc::default()),
        &patience(true, false, false),
    );
    let mut from = world.guest(cable, &Options::default());
    from.keep_mapped(0..4);
    let bytes = pattern(4000, 1);
    from.send(0, &bytes, TxFlags::empty());
    assert_eq!(from.answer(), (0, Status::OKAY));
    assert_eq!(to.stats.set_aside.get(), 1);
    from.write(0, 0, &[0; 4000]);
    // It is not lost.
    to.post(0);
    to.publish_rx();
    assert!(to.receive().0 == bytes);
    from.stop().unwrap();
    to.stop().unwrap();
}

#[test]
fn there_is_an_end_to_what_is_set_aside_and_the_rest_is_dropped() {
    let world = World::new();
    let (mut guest, _) = world.seen(&patience(true, false, false));
    let mut pool = world.pool();
    let mut sent = 0;
    while guest.stats.drops.of(Why::ReceiverFull) == 0 {
        for _ in 0..50 {
            guest.deliver(frame(&mut pool, &pattern(1000, 0), 256));
            sent += 1;
        }
        until("they are back", || {
            pool.collect(|_| {});
            pool.lent() == 0
        });
    }
    let kept = guest.stats.set_aside.get();
    assert!((1..sent).contains(&kept));
    // What it transmits itself has its part of the pool.
    guest.send(0, &pattern(4000, 1), TxFlags::empty());
    assert_eq!(guest.answer(), (0, Status::OKAY));
    guest.stop().unwrap();
    let drops = &guest.stats.drops;
    assert_eq!(kept + drops.of(Why::ReceiverFull), sent);
    assert_eq!(drops.of(Why::Gone), kept);
}

#[test]
fn what_waits_too_long_is_dropped_and_so_is_what_comes_then() {
    let world = World::new();
    let (mut guest, _) = world.seen(&patience(true, true, false));
    let mut pool = world.pool();
    guest.deliver(frame(&mut pool, &pattern(1000, 0), 256));
    until("it is dropped", || {
        guest.stats.drops.of(Why::ReceiverStalled) == 1
    });
    guest.deliver(frame(&mut pool, &pattern(60, 0), 256));
    until("it is dropped", || {
        guest.stats.drops.of(Why::ReceiverStalled) == 2
    });
    guest.post(0);
    guest.publish_rx();
    until("buffers are seen", || {
        guest.deliver(frame(&mut pool, &pattern(60, 3), 256));
        guest.rx.arm().unwrap()
    });
    assert_eq!(guest.receive().0, pattern(60, 3));
    guest.stop().unwrap();
}

#[test]
fn a_guest_that_posts_nothing_for_long_is_stalled_until_it_does() {
    let world = World::new();
    let (mut guest, _) = world.seen(&patience(true, true, true));
    let mut pool = world.pool();
    guest.deliver(frame(&mut pool, &pattern(1000, 0), 256));
    until("it is stalled", || guest.stats.stalled.get() == 1);
    assert_eq!(guest.stats.stalls.get(), 1);
    // It can still transmit.
    guest.send(0, &pattern(100, 1), TxFlags::empty());
    assert_eq!(guest.answer(), (0, Status::OKAY));
    guest.post(1);
    guest.publish_rx();
    until("it has recovered", || guest.stats.stalled.get() == 0);
    guest.deliver(frame(&mut pool, &pattern(60, 3), 256));
    assert_eq!(guest.receive().0, pattern(60, 3));
    guest.stop().unwrap();
    assert_eq!(guest.stats.stalls.get(), 1);
}

#[test]
fn a_guest_that_posts_and_never_takes_stalls_itself_alone() {
    let world = World::new();
    let (mut guest, _) = world.seen(&patience(true, true, true));
    let mut pool = world.pool();
    for _ in 0..guest.rx.slots() {
        guest.post(0);
    }
    guest.publish_rx();
    let slots = u64::from(guest.rx.slots());
    for n in 0..slots + 10 {
        until("there is room", || {
            pool.collect(|_| {});
            pool.idle() > 0
        });
        guest.deliver(frame(&mut pool, &pattern(60, n as u8), 256));
    }
    until("all are gone", || {
        let stats = &guest.stats;
        stats.rx.packets.get() == slots && stats.drops.of(Why::ReceiverStalled) == 10
    });
    guest.stop().unwrap();
}

#[test]
fn a_frame_that_was_dropped_after_all_is_not_waited_for() {
    let world = World::new();
    let (mut guest, _) = world.seen(&patience(true, true, true));
    let mut pool = world.pool();
    guest.deliver(frame(&mut pool, &pattern(9000, 0), 256));
    until("it is stalled", || guest.stats.stalled.get() == 1);
    // Too few for what was dropped, enough for what comes.
    guest.post(1);
    guest.publish_rx();
    until("it has recovered", || guest.stats.stalled.get() == 0);
    guest.deliver(frame(&mut pool, &pattern(60, 3), 256));
    assert_eq!(guest.receive().0, pattern(60, 3));
    guest.stop().unwrap();
}

/// Otherwise it would keep hundreds of frames of somebody who has others to talk to as well.
#[test]
fn a_receiver_that_posts_buffers_one_by_one_does_not_keep_its_senders_memory() {
    let world = World::new();
    let aside = Duration::from_millis(50);
    let (mut guest, _) = world.seen(&Options {
        patience: Patience {
            aside,
            drain: LONG,
            stall: LONG,
        },
        ..Options::default()
    });
    let mut pool = world.pool();
    const FRAMES: usize = 100;
    for n in 0..FRAMES {
        guest.deliver(frame(&mut pool, &pattern(1000, n as u8), 256));
    }
    // Always one, before patience is lost that it posts any.
    let mut got = 0;
    while pool.lent() > 0 {
        guest.post(0);
        guest.publish_rx();
        assert_eq!(guest.receive().0, pattern(1000, got as u8));
        got += 1;
        assert!(got < FRAMES, "it kept them until it had them");
        std::thread::sleep(aside / 20);
        pool.collect(|_| {});
    }
    assert!(guest.stats.set_aside.get() > 0);
    guest.stop().unwrap();
}
