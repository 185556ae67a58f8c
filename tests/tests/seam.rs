//! The loopback hypervisor keeps the seam's promises, between two domains and within one.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

use std::sync::mpsc;

use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::{Identity, Tasks};
use parapet_tests::conformance;
use parapet_tests::conformance::deaths::{Death, Peer};
use parapet_xen_sys::DomId;

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

/// A domain that plays its part as a task of its own, and is destroyed with it.
struct Doomed {
    domain: Domain,
    survivor: DomId,
    death: Death<Domain>,
}

impl Peer for Doomed {
    fn domid(&self) -> DomId {
        self.domain.domid()
    }

    fn ask(&mut self, numbers: &[u32]) -> Vec<u32> {
        let (answer, answered) = mpsc::channel();
        let (domain, survivor) = (self.domain.clone(), self.survivor);
        let (part, numbers) = (self.death.peer, numbers.to_vec());
        self.domain.spawn(async move {
            let (numbers, held) = part(&domain, survivor, &numbers);
            answer.send(numbers).unwrap();
            std::future::pending::<()>().await;
            drop(held);
        });
        answered.recv().unwrap()
    }

    fn kill(&mut self) {
        self.domain.destroy_blocking();
    }
}

#[test]
fn a_loopback_domain_outlives_its_peer() {
    let hypervisor = Hypervisor::new(Config::default()).unwrap();
    let survivor = hypervisor.create(DomainConfig::default()).unwrap();
    for death in conformance::deaths::deaths::<Domain>() {
        let name = death.name;
        eprintln!("{name}");
        let domain = hypervisor.create(DomainConfig::default()).unwrap();
        let part = death.survivor;
        let mut peer = Doomed {
            domain,
            survivor: survivor.domid(),
            death,
        };
        part(&survivor, &mut peer);
        assert_eq!(survivor.mappings(), 0, "after: {name}");
        assert_eq!(survivor.grants_in_use(), 0, "after: {name}");
        assert_eq!(survivor.quarantined(), 0, "after: {name}");
    }
}
