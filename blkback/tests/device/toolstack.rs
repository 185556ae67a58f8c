//! What libxl and its scripts have to do with a vbd.

use parapet_blkback::report::Stage;
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Identity;
use parapet_xen_sys::DomId;
use parapet_xenstore::client::Watch;

use crate::world::{Host, SCRIPT, Vbd, boot, works};

#[test]
fn a_disk_with_a_script_is_connected_when_that_has_succeeded() {
    let host = boot();
    let vbd = host.attach_with(51712, "memory:1M", "w", &[SCRIPT]);
    host.wait(&vbd, "2");
    let mut front = host.front();
    host.publish(&vbd, &front);
    // Others are served meanwhile.
    let other = host.attach(51728, "memory:1M", "w");
    works(&mut host.connect(&other));
    assert_eq!(host.get(&vbd.back, "state"), "2");
    assert_eq!(host.report(&vbd).stage, Stage::Waiting);

    host.set(&vbd.back, "hotplug-status", "connected");
    host.wait(&vbd, "4");
    works(&mut front);
}

#[test]
fn a_script_that_fails_closes_the_disk_with_its_reason() {
    let host = boot();
    let vbd = host.attach_with(51712, "memory:1M", "w", &[SCRIPT]);
    host.wait(&vbd, "2");
    host.set(&vbd.back, "hotplug-error", "no such volume");
    host.set(&vbd.back, "hotplug-status", "error");
    host.wait(&vbd, "5");
    let reason = host.get(&vbd.error(), "error");
    assert!(reason.contains("no such volume"), "{reason}");
    assert_eq!(
        host.report(&vbd).error.unwrap(),
        reason.split_once(": ").unwrap().1
    );
    host.destroy(&vbd);
    host.nothing_is_left(&vbd);
}

#[test]
fn a_script_that_failed_ends_the_device_until_the_toolstack_makes_another() {
    let host = boot();
    let vbd = host.attach_with(51712, "memory:1M", "w", &[SCRIPT]);
    host.wait(&vbd, "2");
    let path = format!("{}/state", vbd.back);
    let mut watch: Watch = block_on(host.store.watch(&path)).unwrap();
    let mut states = Vec::new();
    let mut next = || {
        block_on(watch.next()).unwrap();
        states.push(host.get(&vbd.back, "state"));
        states.last().cloned()
    };
    // The frontend is at its beginning, and has not seen a thing.
    host.set(&vbd.back, "hotplug-status", "error");
    while next().as_deref() != Some("5") {}
    host.set(&vbd.front, "state", "6");
    while next().as_deref() != Some("6") {}
    block_on(host.reports.ended(vbd.key));
    states.dedup();
    assert_eq!(states, ["2", "5", "6"]);

    host.attach_instead(&vbd, "memory:2M", "w");
    works(&mut host.connect(&vbd));
}

#[test]
fn a_disk_that_takes_anothers_place_is_served_as_itself() {
    type Step = fn(&Host, &Vbd);
    let befores: [Step; 4] = [
        |host, vbd| host.wait(vbd, "2"),
        |host, vbd| {
            // Its memory is granted for as long as the guest lives, who forgets it.
            std::mem::forget(host.connect(vbd));
        },
        |host, vbd| {
            host.wait(vbd, "2");
            host.set(&vbd.front, "state", "5");
            host.wait(vbd, "5");
        },
        |host, vbd| {
            host.wait(vbd, "2");
            host.set(&vbd.front, "state", "6");
            host.wait(vbd, "6");
        },
    ];
    for before in befores {
        for params in ["memory:1M", "/no/such.img"] {
            let host = boot();
            let vbd = host.attach(51712, params, "w");
            if params == "memory:1M" {
                before(&host, &vbd);
            } else {
                host.wait(&vbd, "5");
            }
            host.attach_instead(&vbd, "memory:2M", "r");
            host.wait_for(&vbd, "sectors", "4096");
            assert_eq!(host.get(&vbd.back, "info"), "4", "read-only");
            drop(host.connect(&vbd));
        }
    }
}

#[test]
fn an_image_that_cannot_be_opened_is_what_the_script_hears_of() {
    let host = boot();
    let vbd = host.attach_with(51712, "/no/such.img", "w", &[SCRIPT]);
    // What libxl waits for before it runs the script.
    host.wait(&vbd, "2");
    assert_eq!(host.get(&vbd.back, "hotplug-status"), "error");
    let reason = host.get(&vbd.back, "hotplug-error");
    assert!(reason.contains("/no/such.img does not exist"), "{reason}");
    assert!(host.report(&vbd).error.unwrap().contains(&reason));
    host.destroy(&vbd);
    host.nothing_is_left(&vbd);
}

#[test]
fn a_frontend_does_not_get_a_disk_whose_image_cannot_be_opened() {
    let host = boot();
    let vbd = host.attach_with(51712, "/no/such.img", "w", &[SCRIPT]);
    host.wait(&vbd, "2");
    let front = host.front();
    host.publish(&vbd, &front);
    host.wait(&vbd, "5");
    assert_eq!(host.backend.mappings(), 0);
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
}

#[test]
fn an_empty_cd_drive_is_refused_with_the_reason() {
    let host = boot();
    let vbd = host.attach_with(51712, "", "r", &[("device-type", "cdrom")]);
    host.wait(&vbd, "5");
    let reason = host.get(&vbd.error(), "error");
    assert!(reason.contains("CD drive is empty"), "{reason}");
    host.destroy(&vbd);
    host.nothing_is_left(&vbd);
}

#[test]
fn a_cd_is_told_from_a_disk() {
    let host = boot();
    let vbd = host.attach_with(51712, "memory:1M", "r", &[("device-type", "cdrom")]);
    host.wait(&vbd, "2");
    assert_eq!(host.get(&vbd.back, "info"), "5", "read-only, and a CD");
}

#[test]
fn nodes_that_a_toolstack_left_unfinished_close_the_device() {
    let host = boot();
    let vbd = Vbd::new(DomId::ZERO, host.guest.domid(), 51712);
    host.set(&vbd.back, "state", "1");
    host.wait(&vbd, "6");
    block_on(host.reports.ended(vbd.key));
    let reported = host.report(&vbd).error.unwrap();
    assert!(reported.contains("frontend"), "{reported}");
}
