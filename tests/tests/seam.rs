//! The loopback hypervisor keeps the seam's promises, between two domains and within one.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_tests::conformance;

fn run_all(pcpus: usize, loop_back: bool) {
    let hypervisor = Hypervisor::new(Config {
        pcpus,
        ..Config::default()
    })
    .unwrap();
    let a = hypervisor.create(DomainConfig::default()).unwrap();
    let b = hypervisor.create(DomainConfig::default()).unwrap();
    let b = if loop_back { &a } else { &b };
    for (name, check) in conformance::checks::<Domain>() {
        eprintln!("{name}");
        check(&a, b);
        assert_eq!(b.mappings(), 0, "after: {name}");
        assert_eq!(a.grants_in_use(), 0, "after: {name}");
        assert_eq!(a.quarantined(), 0, "after: {name}");
    }
}

#[test]
fn loopback_conforms_between_two_domains() {
    run_all(2, false);
}

#[test]
fn loopback_conforms_on_one_physical_cpu() {
    run_all(1, false);
}

#[test]
fn loopback_conforms_within_one_domain() {
    run_all(2, true);
}
