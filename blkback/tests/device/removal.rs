//! Vbds that go: the toolstack takes them, or their guest dies.

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Identity;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::{Operation, Status};
use parapet_xenstore::client::Watch;

use crate::world::{Host, Vbd, boot, boot_after, boot_driver_domain, make, works};

#[test]
fn a_device_that_was_never_connected_is_removed_at_once() {
    let host = boot();
    let vbd = host.attach(51712, "null:1G", "w");
    host.wait(&vbd, "2");
    host.detach(&vbd);
    host.wait(&vbd, "6");
}

#[test]
fn a_frontend_whose_directory_vanishes_is_closed() {
    let host = boot();
    let vbd = host.attach(51712, "null:1G", "w");
    let mut front = host.connect(&vbd);
    let segments = front.segments(0..1, 0, 7);
    assert_eq!(front.run(Operation::Read, 0, &segments), Status::OKAY);
    block_on(host.store.remove(&vbd.front)).unwrap();
    host.wait(&vbd, "6");
    assert_eq!(host.guest.grants_in_use(), 0);
}

/// What has happened to a device when its guest dies.
type Step = fn(&Host, &Vbd);

/// A frontend's way through life, one step after the other.
const STEPS: &[Step] = &[
    |_, _| {},
    |host, vbd| host.wait(vbd, "2"),
    |host, vbd| {
        let front = host.front();
        host.publish(vbd, &front);
        // Its memory is granted for as long as the guest lives, who forgets it.
        std::mem::forget(front);
    },
    |host, vbd| host.wait(vbd, "4"),
    |host, vbd| host.set(&vbd.front, "state", "4"),
    |host, vbd| host.set(&vbd.front, "state", "5"),
    |host, vbd| host.wait(vbd, "5"),
    |host, vbd| host.set(&vbd.front, "state", "6"),
    |host, vbd| host.wait(vbd, "6"),
    |host, vbd| host.set(&vbd.front, "state", "1"),
    |host, vbd| host.wait(vbd, "2"),
];

#[test]
fn a_guest_that_dies_between_any_two_states_leaves_nothing() {
    for steps in 1..=STEPS.len() {
        let host = boot();
        let vbd = host.attach(51712, "memory:1M", "w");
        for step in &STEPS[..steps] {
            step(&host, &vbd);
        }
        host.guest.destroy_blocking();
        host.destroy(&vbd);
        host.nothing_is_left(&vbd);
    }
}

#[test]
fn a_device_goes_at_once_whatever_a_frontend_that_is_not_connected_does() {
    for state in ["1", "3", "5", "7", "99", "?"] {
        let host = boot();
        let vbd = host.attach(51712, "memory:1M", "w");
        host.wait(&vbd, "2");
        // Without a ring, so that there is nothing to connect.
        host.set(&vbd.front, "state", state);
        host.detach(&vbd);
        host.wait(&vbd, "6");
        block_on(host.store.remove(&vbd.back)).unwrap();
        host.nothing_is_left(&vbd);
    }
}

#[test]
fn a_device_taken_away_before_it_was_seen_is_closed() {
    let vbd = Vbd::new(DomId::ZERO, DomId(1), 51712);
    let host = boot_after(|store| {
        make(
            store,
            &vbd,
            &[("params", "null:1G"), ("mode", "w"), ("state", "5")],
        );
        block_on(store.write(&format!("{}/online", vbd.back), "0")).unwrap();
    });
    host.wait(&vbd, "6");
    assert!(host.reports.of(vbd.key).is_none());
}

/// A device in `state`, which a backend that is no more has left, and whose frontend uses it.
fn left_in(state: &str, vbd: &Vbd) -> Host {
    boot_after(|store| {
        let keys = [("params", "memory:1M"), ("mode", "w"), ("state", state)];
        make(store, vbd, &keys);
        block_on(store.write(&format!("{}/state", vbd.front), "4")).unwrap();
    })
}

#[test]
fn what_a_backend_before_left_begins_anew_when_its_frontend_has_left_it() {
    for state in ["3", "4", "5", "7"] {
        for left in ["6", "1"] {
            let vbd = Vbd::new(DomId::ZERO, DomId(1), 51712);
            let host = left_in(state, &vbd);
            host.wait(&vbd, "5");
            // It may take its time, and finish what it has begun.
            host.set(&vbd.front, "state", "5");
            assert_eq!(host.get(&vbd.back, "state"), "5");
            host.set(&vbd.front, "state", left);
            host.set(&vbd.front, "state", "1");
            works(&mut host.connect(&vbd));
        }
    }
}

#[test]
fn what_a_backend_before_left_connected_without_a_journal_can_be_taken_away() {
    let vbd = Vbd::new(DomId::ZERO, DomId(1), 51712);
    let host = left_in("4", &vbd);
    // It goes on with others meanwhile.
    let other = host.attach(51728, "null:1G", "w");
    host.connect(&other);
    host.wait(&vbd, "5");
    block_on(async {
        host.store.remove(&vbd.front).await.unwrap();
    });
    host.detach(&vbd);
    host.wait(&vbd, "6");
}

#[test]
fn a_device_whose_directory_the_toolstack_removed_does_not_come_back() {
    for steps in 1..=STEPS.len() {
        let host = boot();
        let vbd = host.attach(51712, "memory:1M", "w");
        for step in &STEPS[..steps] {
            step(&host, &vbd);
        }
        block_on(host.store.transaction(|tx| {
            let Vbd { back, front, .. } = &vbd;
            async move {
                tx.remove(back).await?;
                tx.remove(front).await
            }
        }))
        .unwrap();
        host.nothing_is_left(&vbd);
    }
}

#[test]
fn a_toolstack_that_closes_without_asking_the_frontend_first_waits_for_it() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    host.detach(&vbd);
    // The disk is mounted: the guest has seen the wish, and goes on.
    host.set(&vbd.front, "state", "5");
    for _ in 0..100 {
        works(&mut front);
    }
    assert_eq!(host.get(&vbd.back, "state"), "5");
    host.destroy(&vbd);
    drop(front);
    host.nothing_is_left(&vbd);
}

#[test]
fn in_a_driver_domain_the_backend_removes_its_directory_itself() {
    let host = boot_driver_domain();
    let vbd = host.attach_with(51712, "memory:1M", "w", &[crate::world::SCRIPT]);
    assert_ne!(host.backend.domid(), DomId::ZERO);
    // Nobody runs the script.
    let mut front = host.connect(&vbd);
    works(&mut front);
    block_on(host.store.remove(&vbd.front)).unwrap();
    host.detach(&vbd);
    // The toolstack sees first that it has closed.
    host.wait(&vbd, "6");
    let mut watch: Watch = block_on(host.store.watch(&vbd.back)).unwrap();
    while host.exists(&vbd.back) {
        block_on(watch.next()).unwrap();
    }
    drop(front);
    host.nothing_is_left(&vbd);
    let (guest, _) = vbd.back.rsplit_once('/').unwrap();
    let mut watch: Watch = block_on(host.store.watch(guest)).unwrap();
    while host.exists(guest) {
        block_on(watch.next()).unwrap();
    }
}

#[test]
fn a_driver_domain_serves_sixty_disks_within_its_quotas() {
    let host = boot_driver_domain();
    // 128 watches, 10 transactions at once.
    let vbds: Vec<Vbd> = (0..60)
        .map(|disk| host.attach(51712 + 16 * disk, "null:1G", "w"))
        .collect();
    for vbd in &vbds {
        host.wait(vbd, "2");
    }
    works(&mut host.connect(&host.attach(9999, "memory:1M", "w")));
    for vbd in &vbds {
        host.detach(vbd);
    }
    let folder = format!("/local/domain/{}/backend/vbd", host.backend.domid());
    let mut watch: Watch = block_on(host.store.watch(&folder)).unwrap();
    for vbd in &vbds {
        block_on(host.reports.ended(vbd.key));
        assert_eq!(host.report(vbd).error, None);
        while host.exists(&vbd.back) {
            block_on(watch.next()).unwrap();
        }
    }
}

#[test]
fn a_daemon_that_starts_again_takes_up_what_was_not_connected() {
    for state in ["2", "6"] {
        let vbd = Vbd::new(DomId::ZERO, DomId(1), 51712);
        let host = boot_after(|store| {
            let keys = [("params", "memory:1M"), ("mode", "w"), ("state", state)];
            make(store, &vbd, &keys);
        });
        works(&mut host.connect(&vbd));
        host.destroy(&vbd);
        host.nothing_is_left(&vbd);
    }
}

#[test]
fn a_frontend_that_left_before_the_daemon_started_again_is_closed_again_once() {
    let vbd = Vbd::new(DomId::ZERO, DomId(1), 51712);
    let host = boot_after(|store| {
        let keys = [("params", "memory:1M"), ("mode", "w"), ("state", "6")];
        make(store, &vbd, &keys);
        block_on(store.write(&format!("{}/state", vbd.front), "6")).unwrap();
    });
    // That it was offered shows that it was taken up.
    host.wait_for(&vbd, "sectors", "2048");
    host.wait(&vbd, "6");
    let other = host.attach(51728, "memory:1M", "w");
    works(&mut host.connect(&other));
    assert_eq!(host.get(&vbd.back, "state"), "6");
    host.set(&vbd.front, "state", "1");
    works(&mut host.connect(&vbd));
}

#[test]
fn a_number_that_is_spelled_otherwise_is_nobodys_disk() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    let (guest, _) = vbd.back.rsplit_once('/').unwrap();
    for name in ["051712", "00", "5x", "-5"] {
        host.set(&format!("{guest}/{name}"), "state", "1");
    }
    let other = host.attach(51728, "memory:1M", "w");
    works(&mut host.connect(&other));
    works(&mut front);
    for name in ["051712", "00", "5x", "-5"] {
        assert_eq!(host.get(&format!("{guest}/{name}"), "state"), "1");
    }
    assert_eq!(host.reports.all().len(), 2);
}
