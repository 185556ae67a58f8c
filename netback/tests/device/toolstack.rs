//! What toolstacks do: scripts, vifs made anew, and guests that are destroyed.

use std::sync::atomic::Ordering;

use parapet_hypervisor::seam::Identity;
use parapet_netback::report::Stage;

use crate::world::{SCRIPT, boot, boot_without, works};

#[test]
fn a_vif_has_its_place_on_the_network_before_the_script_runs_and_waits_for_it() {
    let host = boot();
    let vif = host.attach_with(0, &[SCRIPT, ("vifname", "blue")]);
    let other = host.attach(1);
    let mut far = host.connect(&other);
    host.wait(&vif, "2");
    assert_eq!(host.plugged.load(Ordering::SeqCst), 2);
    // The script gives it the name.
    let name = host.report(&vif).about.vif.unwrap().name;
    assert_eq!(name, format!("vif{}.0", host.guest.domid()));
    let mut front = host.queue(true);
    host.publish(&vif, std::slice::from_ref(&front));
    host.set(&vif.front, "state", "4");
    assert_eq!(host.report(&vif).stage, Stage::Waiting);
    host.set(&vif.back, "hotplug-status", "connected");
    host.wait(&vif, "4");
    works((&vif, &mut front), (&other, &mut far));
}

#[test]
fn a_script_that_fails_closes_the_vif_with_its_reason() {
    let host = boot();
    let vif = host.attach_with(0, &[SCRIPT]);
    host.wait(&vif, "2");
    host.set(&vif.back, "hotplug-error", "no bridge xenbr0");
    host.set(&vif.back, "hotplug-status", "error");
    host.wait(&vif, "5");
    let error = host.get(&vif.error(), "error");
    assert!(error.contains("no bridge xenbr0"), "{error}");
}

#[test]
fn a_vif_that_its_network_does_not_take_is_an_error_to_the_toolstack() {
    let host = boot();
    for (more, reason) in [
        (&[("bridge", "nowhere")][..], "there is no bridge nowhere"),
        (&[("mac", "01:00:5e:00:00:01")], "mac"),
        (&[("mtu", "9")], "mtu"),
    ] {
        let vif = host.attach_with(0, more);
        host.wait(&vif, "5");
        let error = host.get(&vif.back, "hotplug-error");
        assert!(error.contains(reason), "{error}");
        assert_eq!(host.get(&vif.back, "hotplug-status"), "error");
        host.destroy(&vif);
        host.nothing_is_left(&vif);
    }
}

#[test]
fn a_guest_that_is_destroyed_leaves_nothing() {
    let host = boot();
    let vif = host.attach(0);
    let queues = host.connect_queues(&vif, 4, true);
    drop(queues);
    host.destroy(&vif);
    host.nothing_is_left(&vif);
}

#[test]
fn a_vif_that_was_never_connected_goes_at_once() {
    let host = boot();
    let vif = host.attach(0);
    host.wait(&vif, "2");
    host.destroy(&vif);
    host.nothing_is_left(&vif);
}

#[test]
fn another_vif_in_the_place_of_one_has_another_address() {
    let host = boot();
    let mut vif = host.attach(0);
    let mut front = host.connect(&vif);
    let other = host.attach(1);
    let mut far = host.connect(&other);
    works((&vif, &mut front), (&other, &mut far));
    vif.mac.0[0] = 2;
    host.make(&vif, &[], true);
    let mut front = host.connect(&vif);
    works((&vif, &mut front), (&other, &mut far));
    assert_eq!(host.report(&vif).about.vif.unwrap().mac, vif.mac);
}

#[test]
fn a_vif_that_waited_for_the_backend_is_served_when_it_comes() {
    let mut host = boot_without();
    let (vif, other) = (host.attach(0), host.attach(1));
    let _process = host.begin();
    let mut front = host.connect(&vif);
    let mut far = host.connect(&other);
    works((&vif, &mut front), (&other, &mut far));
}
