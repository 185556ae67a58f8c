//! What the loopback hypervisor promises beyond the seam: nothing lost under races, nothing
//! trusted that a guest wrote, nothing left of a domain that is gone.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parapet_hypervisor::block_on;
use parapet_hypervisor::guest::grant_entries;
use parapet_hypervisor::loopback::{
    Config, Domain, DomainConfig, Hypervisor, PortStatus, ShutdownReason,
};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{
    Access, CopyEnd, CopyOp, EventError, GrantError, MapError, yield_now,
};
use parapet_xen_sys::DomId;
use parapet_xen_sys::event_channel::{Port, Virq};
use parapet_xen_sys::grant_table::{EntryFlags, GrantRef, GrantStatus};

fn machine(pcpus: usize) -> Hypervisor {
    Hypervisor::new(Config {
        pcpus,
        ..Config::default()
    })
    .unwrap()
}

fn two(hypervisor: &Hypervisor) -> (Domain, Domain) {
    let a = hypervisor.create(DomainConfig::default()).unwrap();
    (a, hypervisor.create(DomainConfig::default()).unwrap())
}

fn refusal(error: MapError) -> GrantStatus {
    match error {
        MapError::Refused { status, .. } => status,
        MapError::Host(errno) => panic!("the host is not to blame (errno {errno})"),
    }
}

// ---- events ----

/// The receiver must see the last number that was sent, however the sends and waits fall.
#[test]
fn no_event_is_lost_between_racing_vcpus() {
    for pcpus in [1, 2] {
        let hypervisor = machine(pcpus);
        let (a, b) = two(&hypervisor);
        let ours = a.alloc_unbound(b.domid()).unwrap();
        let theirs = b.bind(a.domid(), ours.port()).unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        const LAST: u64 = 200_000;
        let sender = Arc::clone(&sent);
        a.run(async move |_| {
            for number in 1..=LAST {
                sender.store(number, Ordering::Release);
                ours.notify();
                if number % 7 == 0 {
                    yield_now().await;
                }
            }
            // The port stays open until the other side is done.
            ours.wait().await;
        });
        b.run(async move |b| {
            while sent.load(Ordering::Acquire) < LAST {
                theirs.wait().await;
            }
            theirs.notify();
            b.shut_down(ShutdownReason::Poweroff);
        });
        assert_eq!(b.wait_shutdown_blocking(), ShutdownReason::Poweroff);
    }
}

#[test]
fn no_event_is_lost_while_the_receiver_masks_closes_and_binds_again() {
    let hypervisor = machine(2);
    let (a, b) = two(&hypervisor);
    let ours = Arc::new(a.alloc_unbound(b.domid()).unwrap());
    let port = ours.port();
    let sent = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    const LAST: u64 = 30_000;
    let sender = {
        let (ours, sent) = (Arc::clone(&ours), Arc::clone(&sent));
        std::thread::spawn(move || {
            for number in 1..=LAST {
                sent.store(number, Ordering::Release);
                ours.notify();
            }
        })
    };
    let finished = Arc::clone(&done);
    b.run(async move |b| {
        let mut round = 0u32;
        'bind: loop {
            let theirs = b.bind(DomId::ZERO, port).unwrap();
            loop {
                round += 1;
                if sent.load(Ordering::Acquire) == LAST {
                    break 'bind;
                }
                if round.is_multiple_of(5) {
                    theirs.mask();
                    yield_now().await;
                    theirs.unmask();
                }
                theirs.wait().await;
                if round.is_multiple_of(11) {
                    continue 'bind;
                }
            }
        }
        finished.store(true, Ordering::SeqCst);
        b.shut_down(ShutdownReason::Poweroff);
    });
    b.wait_shutdown_blocking();
    sender.join().unwrap();
    assert!(done.load(Ordering::SeqCst));
}

#[test]
fn a_port_that_is_bound_anew_hears_nothing_of_its_old_peer() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let ours = a.alloc_unbound(b.domid()).unwrap();
    let theirs = b.bind(a.domid(), ours.port()).unwrap();
    let old = theirs.port();
    ours.notify();
    drop(theirs);
    let other = b.alloc_unbound(a.domid()).unwrap();
    assert_eq!(other.port(), old, "the lowest free port is taken");
    assert!(!other.take(), "an event of the old binding");
    ours.notify();
    assert!(!other.take());
    assert_eq!(a.port_status(ours.port()), PortStatus::Unbound(b.domid()));
}

#[test]
fn both_ends_close_at_once_without_a_deadlock() {
    let hypervisor = machine(2);
    let (a, b) = two(&hypervisor);
    for _ in 0..2_000 {
        let ours = a.alloc_unbound(b.domid()).unwrap();
        let theirs = b.bind(a.domid(), ours.port()).unwrap();
        let other = std::thread::spawn(move || {
            theirs.notify();
            drop(theirs);
        });
        ours.notify();
        drop(ours);
        other.join().unwrap();
    }
    // Xenstore and console remain.
    assert_eq!((a.ports_in_use(), b.ports_in_use()), (2, 2));
}

#[test]
fn ports_run_out_with_an_error() {
    let hypervisor = machine(1);
    let config = DomainConfig {
        max_ports: 70,
        ..DomainConfig::default()
    };
    let a = hypervisor.create(config).unwrap();
    let mut held = Vec::new();
    let error = loop {
        match a.alloc_unbound(DomId::ZERO) {
            Ok(channel) => held.push(channel),
            Err(error) => break error,
        }
    };
    assert_eq!(error, EventError::NoSpace);
    assert_eq!(held.len(), 70 - 3, "all but port 0, xenstore and console");
    held.pop();
    assert!(a.alloc_unbound(DomId::ZERO).is_ok());
}

#[test]
fn a_port_is_bound_only_by_the_domain_it_waits_for() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let c = hypervisor.create(DomainConfig::default()).unwrap();
    let ours = a.alloc_unbound(b.domid()).unwrap();
    assert!(c.bind(a.domid(), ours.port()).is_err());
    assert!(c.bind(DomId(77), ours.port()).is_err());
    assert!(a.bind(a.domid(), ours.port()).is_err());
    let theirs = b.bind(a.domid(), ours.port()).unwrap();
    assert_eq!(
        b.port_status(theirs.port()),
        PortStatus::Interdomain(a.domid(), ours.port())
    );
    assert_eq!(
        c.ports_in_use(),
        2,
        "a bind that failed leaves no port behind"
    );
}

#[test]
fn interprocessor_and_virtual_interrupts_arrive() {
    let hypervisor = machine(2);
    let config = DomainConfig {
        vcpus: 2,
        ..DomainConfig::default()
    };
    let a = hypervisor.create(config).unwrap();
    let ipi = a.bind_ipi(1).unwrap();
    ipi.notify();
    block_on(ipi.wait());
    assert!(a.bind_ipi(2).is_err(), "no such vCPU");
    let virq = a.bind_virq(Virq::DomExc as u32).unwrap();
    assert!(a.bind_virq(Virq::DomExc as u32).is_err(), "bound already");
    let guest = hypervisor.create(DomainConfig::default()).unwrap();
    guest.shut_down(ShutdownReason::Poweroff);
    block_on(virq.wait());
}

#[test]
fn a_reset_closes_every_port() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let ours = a.alloc_unbound(b.domid()).unwrap();
    let theirs = b.bind(a.domid(), ours.port()).unwrap();
    b.reset_ports();
    assert_eq!(b.ports_in_use(), 0);
    assert_eq!(a.port_status(ours.port()), PortStatus::Unbound(b.domid()));
    theirs.notify();
    assert!(!ours.take());
}

#[test]
fn what_a_guest_scribbles_over_its_event_bits_hurts_only_itself() {
    let hypervisor = machine(2);
    let (a, b) = two(&hypervisor);
    let ours = a.alloc_unbound(b.domid()).unwrap();
    let theirs = b.bind(a.domid(), ours.port()).unwrap();
    for pattern in [0xffu8, 0x55, 0x00, 0xff] {
        b.shared_info()
            .write_bytes(0, &vec![pattern; PAGE_SIZE])
            .unwrap();
        ours.notify();
        b.run(async |_| yield_now().await);
    }
    theirs.notify();
    block_on(ours.wait());
}

#[test]
fn a_channel_that_was_reset_names_nobody_elses_port() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let stale = a.alloc_unbound(b.domid()).unwrap();
    a.reset_ports();
    let ours = a.alloc_unbound(b.domid()).unwrap();
    assert_ne!(ours.port(), stale.port());
    let theirs = b.bind(a.domid(), ours.port()).unwrap();
    theirs.notify();
    assert!(!stale.take());
    drop(stale);
    let bound = PortStatus::Interdomain(b.domid(), theirs.port());
    assert_eq!(a.port_status(ours.port()), bound);
    assert!(ours.take());
}

#[test]
fn the_xenstore_port_has_one_holder() {
    let hypervisor = machine(1);
    let (a, _) = two(&hypervisor);
    let first = a.xenstore();
    assert!(first.is_some() && a.xenstore().is_none());
    drop(first);
    assert!(a.xenstore().is_none());
}

#[test]
fn a_virtual_interrupt_never_comes_by_a_port_of_another_kind() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let stop = Arc::new(AtomicBool::new(false));
    let raiser = {
        let (a, stop) = (a.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                a.raise_virq(7);
            }
        })
    };
    for _ in 0..20_000 {
        drop(a.bind_virq(7).unwrap());
        let other = a.alloc_unbound(b.domid()).unwrap();
        assert!(!other.take(), "nobody is bound to it");
    }
    stop.store(true, Ordering::Relaxed);
    raiser.join().unwrap();
}

// ---- grants ----

#[test]
fn only_the_domain_that_a_page_was_granted_to_may_use_it() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let c = hypervisor.create(DomainConfig::default()).unwrap();
    let pages = a.allocate(1).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let refused = c.map(a.domid(), grant.refs(), Access::ReadOnly);
    assert_eq!(refusal(refused.err().unwrap()), GrantStatus::GENERAL_ERROR);
    let nobody = b.map(DomId(99), grant.refs(), Access::ReadOnly);
    assert_eq!(refusal(nobody.err().unwrap()), GrantStatus::BAD_DOMAIN);
    let mapped = b.map(a.domid(), grant.refs(), Access::ReadOnly).unwrap();
    let late = c.map(a.domid(), grant.refs(), Access::ReadOnly);
    assert!(late.is_err(), "also while its owner's friend uses it");
    drop(mapped);
    assert!(
        matches!(
            b.grant(&pages, c.domid(), Access::ReadOnly),
            Err(GrantError::NotGrantable(_))
        ),
        "nobody grants another's pages"
    );
}

#[test]
fn a_mapped_frame_does_not_move_when_its_entry_is_rewritten() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let pages = a.allocate(2).unwrap();
    pages.view().write(0, &1u32).unwrap();
    pages.view().write(PAGE_SIZE, &2u32).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let (first, second) = (grant.refs()[0], grant.refs()[1]);
    let mapped = b.map(a.domid(), &[first], Access::ReadWrite).unwrap();
    let frame_of = |gref: GrantRef| gref.0 as usize * grant_entries::ENTRY_SIZE + 4;
    let other: u32 = a.grant_table().read(frame_of(second)).unwrap();
    a.grant_table().write(frame_of(first), &other).unwrap();
    assert_eq!(mapped.view().read::<u32>(0).unwrap(), 1);
    // A second mapping of a pinned entry is of the pinned frame.
    let again = b.map(a.domid(), &[first], Access::ReadWrite).unwrap();
    assert_eq!(again.view().read::<u32>(0).unwrap(), 1);
    drop((mapped, again));
    let moved = b.map(a.domid(), &[first], Access::ReadWrite).unwrap();
    assert_eq!(moved.view().read::<u32>(0).unwrap(), 2);
}

#[test]
fn garbage_in_a_grant_table_is_refused_with_a_status() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let table = a.grant_table();
    let entry = |gref: u32, flags: u16, domid: u16, frame: u32| {
        let at = gref as usize * grant_entries::ENTRY_SIZE;
        table.write(at, &flags).unwrap();
        table.write(at + 2, &domid).unwrap();
        table.write(at + 4, &frame).unwrap();
    };
    let permit = EntryFlags::PERMIT_ACCESS.bits();
    let to = b.domid().0;
    let attempt = |gref: u32, access| {
        b.map(a.domid(), &[GrantRef(gref)], access)
            .map(drop)
            .map_err(refusal)
    };
    entry(20, permit, to, u32::MAX);
    assert_eq!(attempt(20, Access::ReadOnly), Err(GrantStatus::BAD_PAGE));
    entry(20, permit, to, (64 << 20) / PAGE_SIZE as u32);
    assert_eq!(attempt(20, Access::ReadOnly), Err(GrantStatus::BAD_PAGE));
    entry(20, EntryFlags::TRANSITIVE.bits(), to, 100);
    assert_eq!(
        attempt(20, Access::ReadOnly),
        Err(GrantStatus::GENERAL_ERROR)
    );
    entry(20, 0, to, 100);
    assert_eq!(
        attempt(20, Access::ReadOnly),
        Err(GrantStatus::GENERAL_ERROR)
    );
    entry(20, permit, 0x7fff, 100);
    assert_eq!(
        attempt(20, Access::ReadOnly),
        Err(GrantStatus::GENERAL_ERROR)
    );
    for gref in [64 * 512, u32::MAX] {
        assert_eq!(
            attempt(gref, Access::ReadOnly),
            Err(GrantStatus::BAD_GNTREF)
        );
    }
    entry(20, permit, to, 100);
    assert_eq!(attempt(20, Access::ReadWrite), Ok(()));
    assert_eq!(a.grants_in_use(), 0, "what was refused is not in use");
    assert_eq!(b.mappings(), 0);
}

#[test]
fn a_failed_run_leaves_nothing_mapped() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let pages = a.allocate(3).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mut refs = grant.refs().to_vec();
    refs.push(GrantRef(30_000));
    assert!(b.map(a.domid(), &refs, Access::ReadWrite).is_err());
    assert!(b.map(a.domid(), &[], Access::ReadWrite).is_err());
    assert_eq!((a.grants_in_use(), b.mappings()), (0, 0));
    grant.end().unwrap();
}

#[test]
fn a_page_in_quarantine_comes_back_when_the_peer_lets_go() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let pages = a.allocate(1).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mapped = b.map(a.domid(), grant.refs(), Access::ReadWrite).unwrap();
    drop(pages);
    drop(grant);
    assert_eq!(a.quarantined(), 1);
    drop(mapped);
    assert_eq!(a.quarantined(), 0);
}

#[test]
fn memory_in_quarantine_is_found_again_by_who_needs_it() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let pages: Vec<_> = std::iter::from_fn(|| b.allocate(1).ok()).collect();
    let grants: Vec<_> = pages
        .into_iter()
        .map(|pages| b.grant(&pages, a.domid(), Access::ReadWrite).unwrap())
        .collect();
    let mapped: Vec<_> = grants
        .iter()
        .map(|grant| a.map(b.domid(), grant.refs(), Access::ReadWrite).unwrap())
        .collect();
    for grant in grants {
        assert!(grant.end().is_err());
    }
    assert!(b.allocate(1).is_err());
    drop(mapped);
    assert!(b.allocate(1).is_ok());
    assert!(b.allocate(usize::MAX).is_err());
}

#[test]
fn the_grant_table_and_the_mappings_have_their_limits() {
    let hypervisor = machine(1);
    let config = DomainConfig {
        grant_frames: 1,
        max_mappings: 10,
        ..DomainConfig::default()
    };
    let a = hypervisor.create(config.clone()).unwrap();
    let b = hypervisor.create(config).unwrap();
    let pages = a.allocate(500).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let more = a.allocate(5).unwrap();
    let full = a.grant(&more, b.domid(), Access::ReadWrite).err();
    assert_eq!(full, Some(GrantError::TableFull { limit: 512 }));
    let held = b
        .map(a.domid(), &grant.refs()[..10], Access::ReadOnly)
        .unwrap();
    let refused = b.map(a.domid(), &grant.refs()[10..11], Access::ReadOnly);
    assert_eq!(refusal(refused.err().unwrap()), GrantStatus::NO_SPACE);
    drop(held);
    assert!(
        b.map(a.domid(), &grant.refs()[10..11], Access::ReadOnly)
            .is_ok()
    );
    drop(grant);
    assert!(a.grant(&more, b.domid(), Access::ReadWrite).is_ok());
}

#[test]
fn granting_mapping_and_ending_race_without_losing_count() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let pages = a.allocate(8).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mapped = Arc::new(AtomicUsize::new(0));
    let mappers: Vec<_> = (0..2)
        .map(|_| {
            let (b, stop, mapped) = (b.clone(), Arc::clone(&stop), Arc::clone(&mapped));
            std::thread::spawn(move || {
                let mut gref = 8;
                while !stop.load(Ordering::Relaxed) {
                    gref = 8 + (gref + 1) % 64;
                    if b.map(DomId::ZERO, &[GrantRef(gref)], Access::ReadWrite)
                        .is_ok()
                    {
                        mapped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut rounds = 0;
    while rounds < 2_000 || mapped.load(Ordering::Relaxed) < 100 {
        drop(a.grant(&pages, b.domid(), Access::ReadWrite).unwrap());
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for mapper in mappers {
        mapper.join().unwrap();
    }
    assert_eq!(
        (a.grants_in_use(), b.mappings(), a.quarantined()),
        (0, 0, 0)
    );
}

#[test]
fn a_copy_between_two_peers_grants_goes_through() {
    let hypervisor = machine(1);
    let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
    let (a, b) = two(&hypervisor);
    let (from, to) = (a.allocate(1).unwrap(), b.allocate(1).unwrap());
    from.view().write_bytes(100, b"across").unwrap();
    let granted = a.grant(&from, dom0.domid(), Access::ReadOnly).unwrap();
    let target = b.grant(&to, dom0.domid(), Access::ReadWrite).unwrap();
    let mut ops = [CopyOp {
        from: CopyEnd::Granted {
            domid: a.domid(),
            gref: granted.refs()[0],
            offset: 100,
        },
        to: CopyEnd::Granted {
            domid: b.domid(),
            gref: target.refs()[0],
            offset: 7,
        },
        len: 6,
        status: GrantStatus::EAGAIN,
    }];
    dom0.copy(&mut ops).unwrap();
    assert_eq!(ops[0].status, GrantStatus::OKAY);
    let mut seen = [0; 6];
    to.view().read_bytes(7, &mut seen).unwrap();
    assert_eq!(&seen, b"across");
}

// ---- domains ----

#[test]
fn pages_outlive_their_domain_while_somebody_maps_them() {
    let hypervisor = machine(2);
    let (a, b) = two(&hypervisor);
    let pages = b.allocate(1).unwrap();
    pages.view().write(0, &77u32).unwrap();
    let grant = b.grant(&pages, a.domid(), Access::ReadWrite).unwrap();
    let mapped = a.map(b.domid(), grant.refs(), Access::ReadWrite).unwrap();
    let gref = grant.refs()[0];
    let domid = b.domid();
    drop((grant, pages));
    b.destroy_blocking();
    assert!(hypervisor.domain(domid).is_none());
    drop(b);
    assert_eq!(mapped.view().read::<u32>(0).unwrap(), 77);
    mapped.view_mut().unwrap().write(0, &78u32).unwrap();
    let late = a.map(domid, &[gref], Access::ReadOnly);
    assert_eq!(refusal(late.err().unwrap()), GrantStatus::BAD_DOMAIN);
    drop(mapped);
    assert_eq!(a.mappings(), 0);
}

#[test]
fn a_destroyed_domain_leaves_no_task_port_or_mapping() {
    let hypervisor = machine(2);
    let (a, b) = two(&hypervisor);
    let pages = a.allocate(2).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let ours = a.alloc_unbound(b.domid()).unwrap();
    let alive = Arc::new(());
    for kind in 0..4 {
        let refs = grant.refs().to_vec();
        let held = Arc::clone(&alive);
        let port = ours.port();
        b.run(async move |b| {
            let _held = held;
            let _mapped = b.map(DomId::ZERO, &refs, Access::ReadWrite).unwrap();
            match kind {
                0 => b.bind(DomId::ZERO, port).unwrap().wait().await,
                1 => b.sleep(Duration::from_secs(1000)).await,
                2 => loop {
                    yield_now().await;
                },
                _ => b.alloc_unbound(DomId::ZERO).unwrap().wait().await,
            }
            loop {
                yield_now().await;
            }
        });
    }
    while b.mappings() < 8 {
        std::thread::yield_now();
    }
    b.destroy_blocking();
    assert_eq!(Arc::strong_count(&alive), 1, "every task was dropped");
    assert_eq!(
        (b.mappings(), b.ports_in_use(), a.grants_in_use()),
        (0, 0, 0)
    );
    assert_eq!(a.port_status(ours.port()), PortStatus::Unbound(b.domid()));
    grant.end().unwrap();
    b.run(async |_| panic!("a dead domain runs nothing"));
    assert!(b.is_dead());
}

/// Tells how many of itself there are.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_task_that_is_started_while_its_domain_dies_is_dropped_too() {
    let hypervisor = machine(2);
    for _ in 0..300 {
        let domain = hypervisor.create(DomainConfig::default()).unwrap();
        let alive = Arc::new(AtomicUsize::new(0));
        let starter = {
            let (domain, alive) = (domain.clone(), Arc::clone(&alive));
            std::thread::spawn(move || {
                while !domain.is_dead() {
                    let counted = Counted::new(&alive);
                    domain.run(async move |_| {
                        let _counted = counted;
                        std::future::pending::<()>().await;
                    });
                }
            })
        };
        while alive.load(Ordering::SeqCst) < 3 {
            std::thread::yield_now();
        }
        domain.destroy_blocking();
        starter.join().unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_domain_that_is_gone_maps_and_binds_nothing() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    let pages = a.allocate(1).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let ours = a.alloc_unbound(b.domid()).unwrap();
    b.destroy_blocking();
    assert!(b.map(a.domid(), grant.refs(), Access::ReadOnly).is_err());
    assert!(b.bind(a.domid(), ours.port()).is_err());
    assert!(b.alloc_unbound(a.domid()).is_err());
    assert_eq!(a.port_status(ours.port()), PortStatus::Unbound(b.domid()));
}

/// It panics, and so does the drop of what it panicked with.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("this panic is part of the test");
    }
}

#[test]
fn a_panic_crashes_its_domain_and_no_other() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    b.run(async |_| std::panic::panic_any(Bomb));
    assert_eq!(b.wait_shutdown_blocking(), ShutdownReason::Crash);
    a.run(async |a| a.shut_down(ShutdownReason::Poweroff));
    assert_eq!(a.wait_shutdown_blocking(), ShutdownReason::Poweroff);
}

#[test]
fn a_domain_can_wait_for_anothers_end_and_destroy_it() {
    let hypervisor = machine(1);
    let (a, b) = two(&hypervisor);
    b.run(async |b| b.shut_down(ShutdownReason::Reboot));
    let gone = b.clone();
    a.run(async move |a| {
        assert_eq!(gone.wait_shutdown().await, ShutdownReason::Reboot);
        gone.destroy().await;
        a.shut_down(ShutdownReason::Poweroff);
    });
    a.wait_shutdown_blocking();
    assert!(b.is_dead());
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_name() {
    let hypervisor = machine(1);
    let wrong = [
        DomainConfig {
            vcpus: 0,
            ..DomainConfig::default()
        },
        DomainConfig {
            vcpus: 33,
            ..DomainConfig::default()
        },
        DomainConfig {
            memory: 4096,
            ..DomainConfig::default()
        },
        DomainConfig {
            memory: u64::MAX,
            ..DomainConfig::default()
        },
        DomainConfig {
            pinned: Some(1),
            ..DomainConfig::default()
        },
        DomainConfig {
            grant_frames: 0,
            ..DomainConfig::default()
        },
        DomainConfig {
            max_ports: 1,
            ..DomainConfig::default()
        },
    ];
    for mut config in wrong {
        config.name = "odd".into();
        let error = hypervisor.create(config).unwrap_err().to_string();
        assert!(error.starts_with("domain odd: "), "{error}");
    }
    assert_eq!(
        hypervisor.create(DomainConfig::default()).unwrap().domid(),
        DomId::ZERO
    );
}

#[test]
fn a_thousand_guests_come_and_go() {
    let hypervisor = machine(2);
    let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
    for _ in 0..10 {
        let guests: Vec<_> = (0..100)
            .map(|_| hypervisor.create(DomainConfig::default()).unwrap())
            .collect();
        for guest in &guests {
            let ours = dom0.alloc_unbound(guest.domid()).unwrap();
            let port = ours.port();
            dom0.run(async move |_| {
                ours.wait().await;
                ours.notify();
            });
            guest.run(async move |guest| {
                let theirs = guest.bind(DomId::ZERO, port).unwrap();
                theirs.take();
                theirs.notify();
                theirs.wait().await;
                guest.shut_down(ShutdownReason::Poweroff);
            });
        }
        for guest in guests {
            guest.wait_shutdown_blocking();
            guest.destroy_blocking();
        }
    }
    assert_eq!(hypervisor.domains().len(), 1);
}

#[test]
fn every_vcpu_gets_its_turn_on_one_physical_cpu() {
    let hypervisor = machine(1);
    let turns: Arc<[AtomicU64; 4]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    for index in 0..4 {
        let guest = hypervisor.create(DomainConfig::default()).unwrap();
        let (turns, stop) = (Arc::clone(&turns), Arc::clone(&stop));
        guest.run(async move |_| {
            // It never waits: only the end of its slice lets the others run.
            while !stop.load(Ordering::Relaxed) {
                turns[index].fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
    }
    while turns
        .iter()
        .any(|turn| turn.load(Ordering::Relaxed) < 10_000)
    {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
}

#[test]
fn a_vcpu_behind_one_that_never_waits_moves_to_an_idle_physical_cpu() {
    let hypervisor = machine(2);
    // Domains 0 and 2 begin on the same physical CPU.
    let hog = hypervisor.create(DomainConfig::default()).unwrap();
    let _other = hypervisor.create(DomainConfig::default()).unwrap();
    let light = hypervisor.create(DomainConfig::default()).unwrap();
    let (started, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (running, over) = (Arc::clone(&started), Arc::clone(&done));
    hog.run(async move |_| {
        running.store(true, Ordering::SeqCst);
        while !over.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    });
    while !started.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    light.run(async move |light| light.shut_down(ShutdownReason::Poweroff));
    light.wait_shutdown_blocking();
    done.store(true, Ordering::SeqCst);
}

#[test]
fn sleepers_wake_in_the_order_of_their_time() {
    let hypervisor = machine(1);
    let a = hypervisor.create(DomainConfig::default()).unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let start = a.now();
    for index in [3u64, 1, 2, 0] {
        let order = Arc::clone(&order);
        a.run(async move |a| {
            a.sleep_until(start.after(Duration::from_millis(20 + 5 * index)))
                .await;
            order.lock().unwrap().push(index);
            if index == 3 {
                a.shut_down(ShutdownReason::Poweroff);
            }
        });
    }
    a.wait_shutdown_blocking();
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
}

#[test]
fn a_port_beyond_the_table_is_closed() {
    let hypervisor = machine(1);
    let a = hypervisor.create(DomainConfig::default()).unwrap();
    for port in [0, 3, 64, 4095, 4096, u32::MAX] {
        assert_eq!(a.port_status(Port(port)), PortStatus::Closed);
    }
}
