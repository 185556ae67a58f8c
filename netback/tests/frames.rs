//! Frames, the pools that they come from, the inboxes that they wait in, and the bells that are
//! rung for them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::thread;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::bell::Bell;
use parapet_netback::endpoint::{Endpoint, WAITING};
use parapet_netback::frame::{Frame, FrameFull, HEAD, Hash, Page, Part, Pool, Static};
use parapet_xen_sys::DomId;
use proptest::prelude::*;

fn host() -> (Hypervisor, Domain) {
    let config = Config {
        pcpus: 1,
        ..Config::default()
    };
    let hypervisor = Hypervisor::new(config).unwrap();
    let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
    (hypervisor, dom0)
}

fn pool(dom0: &Domain, frames: u16, pages: u16) -> Pool<Domain> {
    Pool::new(dom0, DomId(1), frames, pages, Arc::default()).unwrap()
}

/// A frame of a head and of parts that begin somewhere in pages of their own.
fn frame(pool: &mut Pool<Domain>, head: &[u8], parts: &[(u16, Vec<u8>)]) -> Frame<Domain> {
    let mut frame = pool.take().unwrap();
    frame.make_head(head.len()).unwrap().copy_from_slice(head);
    for (offset, bytes) in parts {
        let page = pool.take_page().unwrap();
        let at = usize::from(page) * PAGE_SIZE + usize::from(*offset);
        pool.memory().local().view().write_bytes(at, bytes).unwrap();
        let part = Part {
            page: Page::Local(page),
            offset: *offset,
            len: bytes.len() as u16,
        };
        frame.push(part).unwrap();
    }
    frame
}

fn bytes_of(frame: &Frame<Domain>) -> Vec<u8> {
    let mut bytes = vec![0; frame.len()];
    assert_eq!(frame.copy_out(0, &mut bytes), bytes.len());
    bytes
}

#[test]
fn a_frame_comes_home_with_its_pages_from_whichever_thread() {
    let (_hypervisor, dom0) = host();
    let mut pool = pool(&dom0, 4, 4);
    let mut frame = frame(&mut pool, &[1; 60], &[(0, vec![2; 100]), (5, vec![3; 100])]);
    frame.set_tag(7);
    assert_eq!((pool.lent(), pool.free_pages()), (1, 2));
    thread::spawn(move || drop(frame)).join().unwrap();
    assert!(pool.has_returned());
    let mut tags = Vec::new();
    assert!(pool.collect(|tag| tags.push(tag)));
    assert_eq!(tags, [7]);
    assert_eq!((pool.lent(), pool.free_pages()), (0, 4));
    assert!(!pool.collect(|_| panic!("there is none")));
}

#[test]
fn a_pool_has_an_end_and_a_frame_too() {
    let (_hypervisor, dom0) = host();
    let mut pool = pool(&dom0, 1, 2);
    let mut frame = pool.take().unwrap();
    assert!(pool.take().is_none());
    assert_eq!(frame.make_head(1000).err(), Some(FrameFull));
    let part = |page, offset, len| Part {
        page: Page::Local(page),
        offset,
        len,
    };
    // Past the last page; in a mapping that there is not.
    assert_eq!(frame.push(part(1, 4000, 97)), Err(FrameFull));
    assert_eq!(frame.push(part(2, 0, 1)), Err(FrameFull));
    let page = Page::Static {
        mapping: 0,
        page: 0,
    };
    let nowhere = Part {
        page,
        ..part(0, 0, 1)
    };
    assert_eq!(frame.push(nowhere), Err(FrameFull));
    let mut pushed = 0;
    while frame.push(part(0, 0, 4000)).is_ok() {
        pushed += 1;
    }
    assert_eq!(pushed, 16, "65 535 bytes");
}

#[test]
fn pages_that_are_given_up_stay_mapped_until_the_last_frame_in_them_is_home() {
    let (hypervisor, dom0) = host();
    let guest = hypervisor.create(DomainConfig::default()).unwrap();
    let pages = guest.allocate(2).unwrap();
    let grant = guest
        .grant(&pages, dom0.domid(), Access::ReadWrite)
        .unwrap();
    pages.view().write_bytes(PAGE_SIZE, &[9; 10]).unwrap();
    for pool_goes_first in [false, true] {
        let refs: Box<[_]> = grant.refs().into();
        let mapping = dom0.map(guest.domid(), &refs, Access::ReadOnly).unwrap();
        let mut pool = pool(&dom0, 4, 1);
        pool.set_statics(vec![Arc::new(Static { mapping, refs })]);
        let mut frame = pool.take().unwrap();
        let page = Page::Static {
            mapping: 0,
            page: 1,
        };
        frame
            .push(Part {
                page,
                offset: 0,
                len: 10,
            })
            .unwrap();
        pool.set_statics(Vec::new());
        assert_eq!(dom0.mappings(), 2);
        assert_eq!(bytes_of(&frame), [9; 10]);
        if pool_goes_first {
            drop(pool);
            assert_eq!(dom0.mappings(), 2);
            drop(frame);
        } else {
            drop(frame);
            assert_eq!(dom0.mappings(), 2, "nobody has collected it");
            pool.collect(|_| {});
        }
        assert_eq!(dom0.mappings(), 0);
    }
}

#[test]
fn a_tag_is_pushed_into_a_full_head_and_popped_again() {
    let (_hypervisor, dom0) = host();
    let mut pool = pool(&dom0, 1, 1);
    let head: Vec<u8> = (0..HEAD).map(|at| at as u8).collect();
    let mut frame = frame(&mut pool, &head, &[(0, vec![1; 5])]);
    frame.push_tag(0x123).unwrap();
    assert_eq!(frame.len(), HEAD + 9);
    assert_eq!(frame.head()[10..18], [10, 11, 0x81, 0, 1, 0x23, 12, 13]);
    assert_eq!(frame.push_tag(1), Err(FrameFull));
    frame.pop_tag();
    assert_eq!(frame.head(), head);
    frame.pop_tag();
    assert_eq!(frame.len(), HEAD + 5);
}

proptest! {
    #[test]
    fn a_copy_has_the_bytes_of_the_frame_wherever_they_were(
        head in proptest::collection::vec(any::<u8>(), 14..HEAD),
        parts in proptest::collection::vec(
            (0u16..1000, proptest::collection::vec(any::<u8>(), 0..3000)), 0..6),
        from in 0usize..5000,
    ) {
        let (_hypervisor, dom0) = host();
        let mut theirs = pool(&dom0, 1, 6);
        let mut ours = pool(&dom0, 1, 6);
        let mut one = frame(&mut theirs, &head, &parts);
        let hash = Hash { kind: 1, value: 5 };
        one.set_hash(Some(hash));
        let mut expected = head;
        parts.iter().for_each(|(_, bytes)| expected.extend(bytes));
        prop_assert_eq!(&bytes_of(&one), &expected);
        let copy = ours.copy_of(&one).unwrap();
        drop(one);
        prop_assert_eq!(&bytes_of(&copy), &expected);
        prop_assert_eq!(copy.hash(), Some(hash));
        let mut some = vec![0; 500];
        let read = copy.copy_out(from, &mut some);
        let rest = expected.get(from..).unwrap_or_default();
        prop_assert_eq!(&some[..read], &rest[..rest.len().min(500)]);
        drop(copy);
        ours.collect(|_| {});
        prop_assert_eq!((ours.lent(), ours.free_pages()), (0, 6));
    }
}

#[test]
fn a_full_inbox_gives_a_frame_back_and_so_does_one_that_is_closed() {
    let (_hypervisor, dom0) = host();
    let mut pool = pool(&dom0, WAITING as u16 + 4, 1);
    let endpoint = Endpoint::new([Arc::default(), Arc::default()], Arc::default());
    for _ in 0..WAITING {
        assert_eq!(endpoint.deliver(3, pool.take().unwrap()).ok(), Some(1));
    }
    assert!(endpoint.deliver(1, pool.take().unwrap()).is_err());
    assert_eq!(endpoint.close(1), WAITING as u64);
    assert!(endpoint.deliver(1, pool.take().unwrap()).is_err());
    assert!(
        endpoint.deliver(0, pool.take().unwrap()).is_ok(),
        "the other is not"
    );
    drop(endpoint);
    pool.collect(|_| {});
    assert_eq!(pool.lent(), 0);
}

#[test]
fn what_is_delivered_while_an_inbox_closes_is_counted_by_one_of_the_two() {
    let (_hypervisor, dom0) = host();
    for _ in 0..300 {
        let mut pool = pool(&dom0, 64, 1);
        let endpoint = Arc::new(Endpoint::new([Arc::default()], Arc::default()));
        let frames: Vec<_> = (0..64).map(|_| pool.take().unwrap()).collect();
        let back = AtomicU64::new(0);
        let closed = thread::scope(|scope| {
            let mut frames = frames.into_iter();
            for _ in 0..2 {
                let some: Vec<_> = frames.by_ref().take(32).collect();
                scope.spawn(|| {
                    for frame in some {
                        if endpoint.deliver(0, frame).is_err() {
                            back.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            thread::yield_now();
            endpoint.close(0)
        });
        assert_eq!(closed + back.into_inner(), 64);
        assert!(endpoint.is_empty(0));
        pool.collect(|_| {});
        assert_eq!(pool.lent(), 0);
    }
}

/// Two threads that wake each other by turns: a ring that is lost leaves both asleep.
#[test]
fn no_ring_is_lost() {
    const ROUNDS: u64 = 20_000;
    let bells = [Bell::default(), Bell::default()];
    let turn = AtomicU64::new(0);
    thread::scope(|scope| {
        for side in 0..2 {
            let (bells, turn) = (&bells, &turn);
            scope.spawn(move || {
                for round in (side..2 * ROUNDS).step_by(2) {
                    let own = &bells[side as usize];
                    block_on(poll_fn(|cx| {
                        if turn.load(Ordering::Relaxed) == round {
                            return Poll::Ready(());
                        }
                        own.listen(cx);
                        match turn.load(Ordering::Relaxed) == round {
                            true => Poll::Ready(()),
                            false => Poll::Pending,
                        }
                    }));
                    own.hush();
                    turn.store(round + 1, Ordering::Relaxed);
                    bells[1 - side as usize].ring();
                }
            });
        }
    });
    assert_eq!(turn.into_inner(), 2 * ROUNDS);
}
