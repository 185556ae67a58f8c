//! Halves that go away.

use parapet_hypervisor::block_on;
use parapet_netfront::{Config, Offloads};

use crate::frames::{greet, received};
use crate::host::{Host, eventually, frame};

#[test]
fn guests_go_on_when_their_backend_was_killed_and_another_has_come() {
    for statics in [true, false] {
        let host = Host::new(1);
        let (a, b) = (host.guest(1), host.guest(1));
        let config = Config::new().static_grants(statics);
        let (_a, mut one) = a.connect_one(config);
        let (_b, mut other) = b.connect_one(config);
        greet((&a, &mut one), (&b, &mut other));
        for turn in 0..3 {
            host.restart_backend();
            // Frames are lost until both are back, and then they are not.
            let mut seed = turn * 100_000;
            eventually("a frame arrives again", || {
                seed += 1;
                let bytes = frame(a.mac, b.mac, seed, 60);
                let _ = one.sender.try_send(&[&bytes], Offloads::default());
                one.sender.flush();
                matches!(other.receiver.try_receive(), Ok(Some(_)))
            });
        }
        let marked = frame(a.mac, b.mac, 0xFFFF_FFFF, 9000);
        let sent = one.sender.send_blocking(&[&marked], Offloads::default());
        assert_eq!(sent, Ok(()));
        while received(&mut other.receiver).0 != marked {}
        assert_eq!(a.domain.quarantined(), 0);
        assert_eq!(b.domain.quarantined(), 0);
    }
}

#[test]
fn a_guest_that_dies_leaves_its_neighbours_alone() {
    let host = Host::new(1);
    let (a, b) = (host.guest(1), host.guest(1));
    let (_a, mut one) = a.connect_one(Config::new());
    let (_b, mut other) = b.connect_one(Config::new());
    greet((&a, &mut one), (&b, &mut other));
    for _ in 0..3 {
        let dying = host.guest(1);
        let (_interface, mut queue) = dying.connect_one(Config::new());
        greet((&dying, &mut queue), (&a, &mut one));
        // It has posted buffers, and is not there to take what comes.
        for seed in 0..100 {
            let bytes = frame(a.mac, dying.mac, seed, 5000);
            let sent = one.sender.send_blocking(&[&bytes], Offloads::default());
            assert_eq!(sent, Ok(()));
        }
        dying.domain.destroy_blocking();
        let bytes = frame(a.mac, b.mac, 77, 30000);
        let sent = one.sender.send_blocking(&[&bytes], Offloads::default());
        assert_eq!(sent, Ok(()));
        while received(&mut other.receiver).0 != bytes {}
    }
    eventually("everything that was sent is answered", || {
        one.sender.collect().unwrap();
        one.sender.under_way() == 0
    });
}

#[test]
fn an_interface_closed_and_connected_again_works_as_before() {
    let host = Host::new(1);
    let (a, b) = (host.guest(1), host.guest(1));
    let (_b, mut other) = b.connect_one(Config::new());
    let before = a.domain.grants_in_use();
    for _ in 0..3 {
        let (interface, mut one) = a.connect_one(Config::new());
        greet((&a, &mut one), (&b, &mut other));
        drop((interface, one));
        eventually("nothing is granted", || a.domain.grants_in_use() == before);
    }
    assert_eq!(a.domain.quarantined(), 0);
    let closed = block_on(a.store.read("device/vif/0/state")).unwrap();
    assert_eq!(closed, b"6");
}
