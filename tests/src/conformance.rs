//! What every implementation of the seam must do.
//!
//! Each check takes two handles: one that grants, one that is granted to. They may be handles of
//! the same domain (on a real host, domain 0 can grant to itself and loop events back). A check
//! panics when the place does not do what the seam's page says.
//!
//! What must hold when one of the two dies is in [`deaths`]; what only a real Xen host has, in
//! [`xen`].

pub mod deaths;
mod host;
pub mod xen;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use parapet_hypervisor::block_on;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{
    Access, Backend, Channel, CopyEnd, CopyOp, Grant, MapError, Mapping, Pages,
};
use parapet_xen_sys::event_channel::Port;
use parapet_xen_sys::grant_table::{GrantRef, GrantStatus};

/// One check: its name, which says what it pins, and the check itself.
pub type Check<P> = (&'static str, fn(&P, &P));

/// All checks.
pub fn checks<P: Backend>() -> Vec<Check<P>> {
    vec![
        ("pages come zeroed", pages_come_zeroed),
        (
            "what one side writes the other reads",
            both_sides_see_writes,
        ),
        (
            "a run maps in the order of its references",
            a_run_keeps_its_order,
        ),
        ("a read-only grant refuses a writer", read_only_is_respected),
        (
            "a read-only mapping cannot be written",
            a_read_only_mapping_has_no_writer,
        ),
        (
            "each grant of a batch has its own outcome",
            a_batch_maps_one_by_one,
        ),
        (
            "a grant that is mapped cannot be ended",
            a_mapped_grant_cannot_end,
        ),
        (
            "an ended grant cannot be mapped",
            an_ended_grant_cannot_be_mapped,
        ),
        (
            "copies reach any offset and length",
            copies_reach_any_offset,
        ),
        ("a copy has a status of its own", a_bad_copy_spoils_no_other),
        ("copies happen in order", copies_happen_in_order),
        (
            "the grant that cannot be written is the one to blame",
            the_culprit_is_named,
        ),
        ("an event arrives", an_event_arrives),
        (
            "many events before a wait are no more than two",
            events_coalesce,
        ),
        ("a masked event waits", a_masked_event_waits),
        ("a port of nobody refuses", a_port_of_nobody_refuses),
        (
            "a closed peer hears nothing and hurts nobody",
            a_closed_peer_is_silent,
        ),
        ("a descriptor interrupts", a_descriptor_interrupts),
        ("time passes", time_passes),
        ("a task runs", a_task_runs),
        (
            "system calls reach mapped pages",
            host::system_calls_reach_mapped_pages,
        ),
        (
            "io_uring reaches mapped pages",
            host::io_uring_reaches_mapped_pages,
        ),
        (
            "registering mapped pages helps or does no harm",
            host::registering_mapped_pages_does_no_harm,
        ),
    ]
}

fn fill(pages: &impl Pages, seed: u8) -> Vec<u8> {
    let bytes: Vec<u8> = (0..pages.view().len())
        .map(|at| {
            (at as u8)
                .wrapping_mul(31)
                .wrapping_add(seed)
                .wrapping_add((at / PAGE_SIZE) as u8)
        })
        .collect();
    pages.view().write_bytes(0, &bytes).unwrap();
    bytes
}

fn bytes_of(mapping: &impl Mapping) -> Vec<u8> {
    let mut bytes = vec![0; mapping.view().len()];
    mapping.view().read_bytes(0, &mut bytes).unwrap();
    bytes
}

fn pages_come_zeroed<P: Backend>(a: &P, _: &P) {
    for _ in 0..4 {
        let pages = a.allocate(3).unwrap();
        let mut bytes = vec![1; 3 * PAGE_SIZE];
        pages.view().read_bytes(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        fill(&pages, 9);
    }
}

fn both_sides_see_writes<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(1).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mapped = b.map(a.domid(), grant.refs(), Access::ReadWrite).unwrap();
    pages.view().write(8, &0x1122_3344u32).unwrap();
    assert_eq!(mapped.view().read::<u32>(8).unwrap(), 0x1122_3344);
    let view = mapped.view_mut().unwrap();
    view.write(PAGE_SIZE - 4, &0x5566_7788u32).unwrap();
    assert_eq!(
        pages.view().read::<u32>(PAGE_SIZE - 4).unwrap(),
        0x5566_7788
    );
    drop(mapped);
    grant.end().unwrap();
}

fn a_run_keeps_its_order<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(4).unwrap();
    let bytes = fill(&pages, 1);
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mapped = b.map(a.domid(), grant.refs(), Access::ReadWrite).unwrap();
    assert_eq!(bytes_of(&mapped), bytes);
    drop(mapped);
    let backwards: Vec<GrantRef> = grant.refs().iter().rev().copied().collect();
    let mapped = b.map(a.domid(), &backwards, Access::ReadOnly).unwrap();
    let reversed: Vec<u8> = bytes.chunks(PAGE_SIZE).rev().flatten().copied().collect();
    assert_eq!(bytes_of(&mapped), reversed);
    drop(mapped);
    grant.end().unwrap();
}

fn read_only_is_respected<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(1).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadOnly).unwrap();
    assert!(b.map(a.domid(), grant.refs(), Access::ReadWrite).is_err());
    let local = b.allocate(1).unwrap();
    let mut ops = [CopyOp {
        from: CopyEnd::Local {
            pages: &local,
            offset: 0,
        },
        to: CopyEnd::Granted {
            domid: a.domid(),
            gref: grant.refs()[0],
            offset: 0,
        },
        len: 16,
        status: GrantStatus::OKAY,
    }];
    b.copy(&mut ops).unwrap();
    assert_ne!(ops[0].status, GrantStatus::OKAY);
    drop(b.map(a.domid(), grant.refs(), Access::ReadOnly).unwrap());
    grant.end().unwrap();
}

fn a_read_only_mapping_has_no_writer<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(1).unwrap();
    let bytes = fill(&pages, 3);
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mapped = b.map(a.domid(), grant.refs(), Access::ReadOnly).unwrap();
    assert!(mapped.view_mut().is_none());
    assert_eq!(bytes_of(&mapped), bytes);
    drop(mapped);
    grant.end().unwrap();
}

fn a_batch_maps_one_by_one<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(3).unwrap();
    let bytes = fill(&pages, 4);
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mut refs = grant.refs().to_vec();
    refs.insert(1, GrantRef(0x7fff_fff0));
    let mut out = Vec::new();
    b.map_each(a.domid(), &refs, Access::ReadWrite, &mut out);
    assert_eq!(out.len(), 4);
    let mapped: Vec<_> = out.into_iter().filter_map(Result::ok).collect();
    assert_eq!(mapped.len(), 3, "only the reference that is none failed");
    let seen: Vec<u8> = mapped.iter().flat_map(bytes_of).collect();
    assert_eq!(seen, bytes);
    b.unmap_each(mapped);
    grant.end().unwrap();
}

fn a_mapped_grant_cannot_end<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(2).unwrap();
    let bytes = fill(&pages, 5);
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let mapped = b
        .map(a.domid(), &grant.refs()[..1], Access::ReadWrite)
        .unwrap();
    match grant.end() {
        Ok(()) => assert!(!P::TELLS_STILL_MAPPED),
        Err(error) => assert_eq!(error.0, 1, "one of the two pages is still mapped"),
    }
    drop(pages);
    // Were the page in quarantine handed out again, it would be zero.
    let others: Vec<_> = (0..8).map(|_| a.allocate(2).unwrap()).collect();
    assert_eq!(bytes_of(&mapped), bytes[..PAGE_SIZE]);
    drop(others);
}

fn an_ended_grant_cannot_be_mapped<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(1).unwrap();
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let gref = grant.refs()[0];
    grant.end().unwrap();
    let refused = b.map(a.domid(), &[gref], Access::ReadWrite).err();
    assert!(matches!(
        refused,
        Some(MapError::Refused { .. } | MapError::Host(_))
    ));
}

fn copies_reach_any_offset<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(2).unwrap();
    let bytes = fill(&pages, 6);
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let local = b.allocate(2).unwrap();
    for (offset, len) in [
        (0, PAGE_SIZE),
        (1, 1),
        (77, 1500),
        (PAGE_SIZE - 3, 3),
        (5, 0),
    ] {
        let mut ops = [
            CopyOp {
                from: CopyEnd::Granted {
                    domid: a.domid(),
                    gref: grant.refs()[1],
                    offset: offset as u16,
                },
                to: CopyEnd::Local {
                    pages: &local,
                    offset: PAGE_SIZE,
                },
                len: len as u16,
                status: GrantStatus::GENERAL_ERROR,
            },
            CopyOp {
                from: CopyEnd::Local {
                    pages: &local,
                    offset: PAGE_SIZE,
                },
                to: CopyEnd::Granted {
                    domid: a.domid(),
                    gref: grant.refs()[0],
                    offset: 0,
                },
                len: len as u16,
                status: GrantStatus::GENERAL_ERROR,
            },
        ];
        b.copy(&mut ops).unwrap();
        assert!(ops.iter().all(|op| op.status == GrantStatus::OKAY));
        let mut seen = vec![0; len];
        pages.view().read_bytes(0, &mut seen).unwrap();
        assert_eq!(seen, bytes[PAGE_SIZE + offset..PAGE_SIZE + offset + len]);
    }
    grant.end().unwrap();
}

fn a_bad_copy_spoils_no_other<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(1).unwrap();
    let bytes = fill(&pages, 7);
    let grant = a.grant(&pages, b.domid(), Access::ReadOnly).unwrap();
    let local = b.allocate(1).unwrap();
    let op = |gref, offset, len| CopyOp {
        from: CopyEnd::Granted {
            domid: a.domid(),
            gref,
            offset,
        },
        to: CopyEnd::Local {
            pages: &local,
            offset: 0,
        },
        len,
        status: GrantStatus::EAGAIN,
    };
    let good = grant.refs()[0];
    let mut ops = [
        op(GrantRef(0x7fff_fff0), 0, 16),
        op(good, PAGE_SIZE as u16 - 8, 16),
        op(good, 32, 16),
    ];
    b.copy(&mut ops).unwrap();
    assert_ne!(ops[0].status, GrantStatus::OKAY, "no such grant");
    assert_ne!(ops[1].status, GrantStatus::OKAY, "past the end of the page");
    assert_eq!(ops[2].status, GrantStatus::OKAY);
    let mut seen = [0; 16];
    local.view().read_bytes(0, &mut seen).unwrap();
    assert_eq!(seen, bytes[32..48]);
    grant.end().unwrap();
}

fn copies_happen_in_order<P: Backend>(a: &P, b: &P) {
    let pages = a.allocate(1).unwrap();
    let bytes = fill(&pages, 8);
    let grant = a.grant(&pages, b.domid(), Access::ReadWrite).unwrap();
    let local = b.allocate(2).unwrap();
    let granted = |offset| CopyEnd::Granted {
        domid: a.domid(),
        gref: grant.refs()[0],
        offset,
    };
    let here = |offset| CopyEnd::Local {
        pages: &local,
        offset,
    };
    // From the grant, on to another page of ours, and back into the grant.
    let steps = [
        (granted(0), here(0)),
        (here(0), here(PAGE_SIZE)),
        (here(PAGE_SIZE), granted(2048)),
    ];
    let mut ops = steps.map(|(from, to)| CopyOp {
        from,
        to,
        len: 64,
        status: GrantStatus::GENERAL_ERROR,
    });
    b.copy(&mut ops).unwrap();
    assert!(ops.iter().all(|op| op.status == GrantStatus::OKAY));
    let mut seen = [0; 64];
    pages.view().read_bytes(2048, &mut seen).unwrap();
    assert_eq!(seen, bytes[..64]);
    grant.end().unwrap();
}

fn the_culprit_is_named<P: Backend>(a: &P, b: &P) {
    let (good, bad) = (a.allocate(1).unwrap(), a.allocate(1).unwrap());
    let good = a.grant(&good, b.domid(), Access::ReadWrite).unwrap();
    let bad = a.grant(&bad, b.domid(), Access::ReadOnly).unwrap();
    let refs = [good.refs()[0], bad.refs()[0], good.refs()[0]];
    let error = b.map(a.domid(), &refs, Access::ReadWrite).err().unwrap();
    assert!(error.is_peers_fault());
    assert!(
        matches!(error, MapError::Refused { gref, .. } if gref == bad.refs()[0]),
        "{error}"
    );
    good.end().unwrap();
    bad.end().unwrap();
}

/// A pair of bound channels, with the event taken that binding sends to the binder.
fn pair<P: Backend>(a: &P, b: &P) -> (P::Channel, P::Channel) {
    let ours = a.alloc_unbound(b.domid()).unwrap();
    let theirs = b.bind(a.domid(), ours.port()).unwrap();
    theirs.take();
    (ours, theirs)
}

fn an_event_arrives<P: Backend>(a: &P, b: &P) {
    let (ours, theirs) = pair(a, b);
    for _ in 0..50 {
        ours.notify();
        block_on(theirs.wait());
        theirs.notify();
        block_on(ours.wait());
    }
}

fn events_coalesce<P: Backend>(a: &P, b: &P) {
    let (ours, theirs) = pair(a, b);
    for _ in 0..10 {
        ours.notify();
    }
    block_on(theirs.wait());
    let more = (0..10).filter(|_| theirs.take()).count();
    assert!(
        more <= 1,
        "all of them were one, or one held and one behind it"
    );
}

fn a_masked_event_waits<P: Backend>(a: &P, b: &P) {
    let (ours, theirs) = pair(a, b);
    theirs.mask();
    ours.notify();
    assert!(!theirs.take());
    theirs.unmask();
    block_on(theirs.wait());
}

fn a_port_of_nobody_refuses<P: Backend>(a: &P, b: &P) {
    let (ours, _theirs) = pair(a, b);
    assert!(b.bind(a.domid(), Port(4000)).is_err(), "no such port");
    assert!(b.bind(a.domid(), Port(u32::MAX)).is_err(), "no port at all");
    assert!(b.bind(a.domid(), ours.port()).is_err(), "bound already");
}

fn a_closed_peer_is_silent<P: Backend>(a: &P, b: &P) {
    let (ours, theirs) = pair(a, b);
    drop(theirs);
    ours.notify();
    let again = b.bind(a.domid(), ours.port()).unwrap();
    again.take();
    ours.notify();
    block_on(again.wait());
    drop(ours);
    again.notify();
    assert!(!again.take());
}

fn a_descriptor_interrupts<P: Backend>(a: &P, _: &P) {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"x").unwrap();
    let interrupt = a.bind_descriptor(reader.as_fd()).unwrap();
    let mut byte = [0];
    for _ in 0..20 {
        block_on(interrupt.wait());
        reader.read_exact(&mut byte).unwrap();
        writer.write_all(b"y").unwrap();
    }
}

fn time_passes<P: Backend>(a: &P, _: &P) {
    let before = a.now();
    block_on(a.sleep(Duration::from_millis(2)));
    assert!(a.now().since(before) >= Duration::from_millis(2));
}

fn a_task_runs<P: Backend>(a: &P, b: &P) {
    let (ours, theirs) = pair(a, b);
    a.spawn(async move {
        ours.wait().await;
        ours.notify();
        // Held until the other side has heard.
        ours.wait().await;
    });
    theirs.notify();
    block_on(theirs.wait());
    theirs.notify();
}
