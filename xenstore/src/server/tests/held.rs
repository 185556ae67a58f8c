//! Guests that wait, for what and for how long; and events that do not wait for ever.

use alloc::sync::Arc;
use core::pin::pin;
use core::task::Waker;
use core::time::Duration;
use std::sync::Mutex;

use parapet_hypervisor::seam::{Clock, Instant, yield_now};

use super::*;
use crate::store::Quota;

const MS: Duration = Duration::from_millis(1);

impl Bench {
    fn set(&mut self, name: &str, value: u32) {
        let request = set_quota(Some(DOMAIN), name.as_bytes(), value);
        self.ask(self.local, 0, &request).unwrap();
    }

    fn used(&self, quota: Quota) -> usize {
        self.server.store().used(DOMAIN)[quota]
    }

    /// So much later.
    fn wait(&mut self, duration: Duration) {
        let now = self.server.store().now().after(duration);
        self.server.tick(now);
    }

    fn begin(&mut self, client: ClientId) -> u32 {
        let id = self.ask(client, 0, &Request::TransactionStart).unwrap();
        let id = String::from_utf8(id).unwrap();
        id.trim_end_matches('\0').parse().unwrap()
    }

    fn commit(&mut self, client: ClientId, tx: u32) -> Result<(), Errno> {
        let end = Request::TransactionEnd { commit: true };
        self.ask(client, tx, &end).map(drop)
    }

    /// A transaction of `client` reads a node that the guest changes, and is open for so long.
    fn disturbed(&mut self, client: ClientId, duration: Duration) -> Result<(), Errno> {
        let tx = self.begin(client);
        let path = b"/local/domain/5/x".as_slice();
        let _ = self.ask(client, tx, &Request::Read(path));
        if self.server.wants_input(self.guest) {
            self.ask(self.guest, 0, &write(b"x", b"1")).unwrap();
        }
        self.wait(duration);
        self.ask(client, tx, &write(b"/local/domain/5/y", b"1"))
            .unwrap();
        self.commit(client, tx)
    }
}

#[test]
fn a_guest_with_as_many_requests_outstanding_as_it_may_is_not_served() {
    let mut bench = Bench::new();
    let guest = bench.guest;
    let mut requests = vec![];
    for n in 0..50 {
        Request::Read(b"/").encode(n, 0, &mut requests).unwrap();
    }
    bench.send(guest, &requests);
    assert_eq!(bench.used(Quota::Outstanding), 20);
    assert!(!bench.server.wants_input(guest));
    assert_eq!(bench.received(guest).len(), 20);
    assert!(bench.server.wants_input(guest));
    bench.set("outstanding", 5);
    while bench.server.serve(guest, &mut bench.world) {}
    assert_eq!(bench.received(guest).len(), 5);
    bench.set("outstanding", 0);
    while bench.server.serve(guest, &mut bench.world) {}
    assert_eq!(bench.received(guest).len(), 25);
    assert_eq!(bench.used(Quota::Outstanding), 0);
}

#[test]
fn a_request_is_outstanding_until_domain_0_was_sent_its_events() {
    let mut bench = Bench::new();
    let guest = bench.guest;
    let domain_0 = bench.domain_0(b"t");
    bench.ask(bench.local, 0, &watch(b"/")).unwrap();
    bench.received(bench.local);
    for n in 0..20 {
        assert!(bench.server.wants_input(guest), "{n}");
        let path = alloc::format!("device/{n}");
        bench.ask(guest, 0, &write(path.as_bytes(), b"")).unwrap();
    }
    assert_eq!(bench.used(Quota::Outstanding), 20);
    bench.assert_held(guest);
    bench.events(domain_0);
    bench.assert_held(guest);
    bench.server.take_stirred();
    bench.events(bench.local);
    assert!(bench.server.take_stirred().contains(&guest));
    while bench.server.serve(guest, &mut bench.world) {}
    assert_eq!(
        bench.received(guest).len(),
        2,
        "both that were asked while it was held"
    );
    bench.events(bench.local);
    bench.events(domain_0);
    assert_eq!(bench.used(Quota::Outstanding), 0);
}

#[test]
fn a_guest_that_does_not_read_its_events_holds_no_other() {
    let mut bench = Bench::new();
    let world = &mut bench.world;
    let idle = bench.server.introduce(DomId(6), Port(1), world).unwrap();
    let permissions = vec![Permission::none(DOMAIN), Permission::read(DomId(6))];
    let path = b"/local/domain/5".as_slice();
    let open = Request::SetPerms { path, permissions };
    bench.ask(bench.local, 0, &open).unwrap();
    bench.ask(idle, 0, &watch(path)).unwrap();
    for n in 0..100 {
        let path = alloc::format!("{n}");
        let node = write(path.as_bytes(), b"");
        bench.ask(bench.guest, 0, &node).unwrap();
    }
    assert!(bench.server.output(idle).len() > 100 * 20);
}

#[test]
fn a_guest_whose_memory_is_used_up_waits_until_somebody_gives_it_some_back() {
    let mut bench = Bench::new();
    let guest = bench.guest;
    bench.ask(guest, 0, &write(b"x", &[b'v'; 1000])).unwrap();
    bench.set("memory", 900);
    bench.assert_held(guest);
    bench.server.take_stirred();
    let large = Request::Rm(b"/local/domain/5/x");
    bench.ask(bench.local, 0, &large).unwrap();
    assert!(bench.server.take_stirred().contains(&guest));
    while bench.server.serve(guest, &mut bench.world) {}
    assert_eq!(bench.received(guest).len(), 1);
    let full = bench.ask(guest, 0, &write(b"y", &[b'v'; 900]));
    assert_eq!(full, Err(Errno::ENOMEM));
    bench.ask(guest, 0, &write(b"y", &[b'v'; 700])).unwrap();
}

#[test]
fn events_that_a_guest_does_not_read_in_time_are_dropped() {
    let mut bench = Bench::new();
    let guest = bench.guest;
    assert_eq!(bench.server.due(), None);
    bench.ask(guest, 0, &watch(b"x")).unwrap();
    bench.received(guest);
    assert_eq!(bench.server.due(), None, "it has read all");
    let change = |bench: &mut Bench, path: &[u8]| {
        bench.ask(bench.local, 0, &write(path, b"1")).unwrap();
    };
    change(&mut bench, b"/local/domain/5/x");
    let due = bench.server.due().unwrap();
    assert_eq!(due, Instant::default().after(20_000 * MS));
    bench.wait(15_000 * MS);
    change(&mut bench, b"/local/domain/5/x/y");
    bench.wait(5_000 * MS);
    assert_eq!(bench.events(guest), ["x/y\0t\0"]);

    bench.server.set_event_timeout(None);
    change(&mut bench, b"/local/domain/5/x");
    assert_eq!(bench.server.due(), None);
    bench.wait(1_000_000 * MS);
    assert_eq!(bench.events(guest), ["x\0t\0"]);
}

#[test]
fn a_guest_that_made_others_lose_time_waits_for_as_long() {
    let mut bench = Bench::new();
    let guest = bench.guest;
    let mut lost = Duration::ZERO;
    while bench.server.wants_input(guest) {
        let ended = bench.disturbed(bench.local, 40 * MS);
        assert_eq!(ended, Err(Errno::EAGAIN));
        lost += 40 * MS;
        assert!(lost < 1000 * MS, "nothing holds it");
    }
    bench.assert_held(guest);
    // Whoever tries again now is not disturbed.
    bench.disturbed(bench.local, 10 * MS).unwrap();

    let due = bench.server.due().unwrap();
    let left = due.since(bench.server.store().now());
    assert!(left > Duration::ZERO && left <= 80 * MS, "{left:?}");
    bench.server.take_stirred();
    bench.wait(left);
    assert!(bench.server.take_stirred().contains(&guest));
    while bench.server.serve(guest, &mut bench.world) {}
    assert_eq!(bench.received(guest).len(), 1, "nothing of it is lost");
    assert_eq!(bench.server.due(), None);
}

#[test]
fn a_long_transaction_is_tried_once_more_and_no_longer() {
    for duration in [200 * MS, 1000 * MS, 5000 * MS] {
        let mut bench = Bench::new();
        let first = bench.disturbed(bench.local, duration);
        assert_eq!(first, Err(Errno::EAGAIN));
        let again = bench.disturbed(bench.local, duration);
        assert_eq!(again, Ok(()), "{duration:?}");
    }
}

#[test]
fn only_whose_change_made_a_transaction_fail_is_held_and_only_once_for_each() {
    let mut bench = Bench::new();
    let world = &mut bench.world;
    let other = bench.server.introduce(DomId(6), Port(1), world).unwrap();
    let path = b"/local/domain/6".as_slice();
    let permissions = vec![Permission::none(DomId(6))];
    let own = Request::SetPerms { path, permissions };
    bench.ask(bench.local, 0, &Request::Mkdir(path)).unwrap();
    bench.ask(bench.local, 0, &own).unwrap();

    bench.wait(1000 * MS);
    let open = [(); 3].map(|()| {
        let tx = bench.begin(bench.local);
        let _ = bench.ask(bench.local, tx, &Request::Read(b"/local/domain/5/x"));
        tx
    });
    bench.ask(other, 0, &write(b"x", b"1")).unwrap();
    bench.ask(bench.guest, 0, &write(b"x", b"1")).unwrap();
    bench.wait(40 * MS);
    for tx in open {
        assert_eq!(bench.commit(bench.local, tx), Err(Errno::EAGAIN));
    }
    assert!(bench.server.wants_input(other));
    assert!(bench.server.wants_input(bench.guest), "it was one change");
}

#[test]
fn domain_0_and_local_clients_wait_for_nobody_and_one_guest_for_another_not_long() {
    let mut bench = Bench::new();
    let second = bench.server.connect_local();
    let tx = bench.begin(bench.local);
    let _ = bench.ask(bench.local, tx, &Request::Read(b"/x"));
    bench.ask(second, 0, &write(b"/x", b"1")).unwrap();
    bench.wait(5000 * MS);
    assert_eq!(bench.commit(bench.local, tx), Err(Errno::EAGAIN));
    assert!(bench.server.wants_input(second));

    let world = &mut bench.world;
    let victim = bench.server.introduce(DomId(6), Port(1), world).unwrap();
    let path = b"/local/domain/5".as_slice();
    let permissions = vec![Permission::none(DOMAIN), Permission::read(DomId(6))];
    let open = Request::SetPerms { path, permissions };
    bench.ask(bench.local, 0, &open).unwrap();
    for _ in 0..3 {
        let tx = bench.begin(victim);
        let _ = bench.ask(victim, tx, &Request::Read(b"/local/domain/5/x"));
        bench.ask(bench.guest, 0, &write(b"x", b"1")).unwrap();
        bench.wait(5000 * MS);
        assert_eq!(bench.commit(victim, tx), Err(Errno::EAGAIN));
        assert!(bench.server.wants_input(bench.guest));
    }
}

#[test]
fn a_domain_is_not_blamed_for_what_one_did_that_had_its_id() {
    let mut bench = Bench::new();
    bench.wait(1000 * MS);
    let path = b"/open".as_slice();
    bench.ask(bench.local, 0, &Request::Mkdir(path)).unwrap();
    let permissions = vec!["b0".parse().unwrap()];
    let open = Request::SetPerms { path, permissions };
    bench.ask(bench.local, 0, &open).unwrap();
    let tx = bench.begin(bench.local);
    bench.ask(bench.local, tx, &Request::Read(path)).unwrap();
    bench.ask(bench.guest, 0, &write(path, b"1")).unwrap();
    bench.server.release(DOMAIN, &mut bench.world);
    let world = &mut bench.world;
    let next = bench.server.introduce(DOMAIN, Port(3), world).unwrap();
    bench.wait(1000 * MS);
    assert_eq!(bench.commit(bench.local, tx), Err(Errno::EAGAIN));
    assert!(bench.server.wants_input(next));
}

#[test]
fn a_guest_is_let_go_on_when_its_memory_comes_back_in_a_later_slice() {
    let mut bench = Bench::new();
    let (local, guest) = (bench.local, bench.guest);
    bench.ask(local, 0, &Request::Mkdir(b"/big")).unwrap();
    let path = b"/big/a".as_slice();
    bench.ask(local, 0, &write(path, &[b'v'; 1000])).unwrap();
    let permissions = vec![Permission::none(DOMAIN)];
    let own = Request::SetPerms { path, permissions };
    bench.ask(local, 0, &own).unwrap();
    for n in 0..5000 {
        let path = alloc::format!("/big/b{n}");
        let node = Request::Mkdir(path.as_bytes());
        bench.ask(local, 0, &node).unwrap();
    }
    bench.set("memory", 900);
    bench.assert_held(guest);
    bench.ask(local, 0, &Request::Rm(b"/big")).unwrap();
    assert!(!bench.server.wants_input(guest), "it takes time");
    bench.server.take_stirred();
    while bench.server.tidy() {}
    assert!(bench.server.take_stirred().contains(&guest));
    assert!(bench.server.wants_input(guest));
}

#[test]
fn a_guest_is_let_go_on_when_its_memory_was_below_a_domain_that_died() {
    let mut bench = Bench::new();
    let (local, guest) = (bench.local, bench.guest);
    let world = &mut bench.world;
    bench.server.introduce(DomId(6), Port(1), world).unwrap();
    for (path, owner) in [(&b"/big"[..], DomId(6)), (b"/big/a", DOMAIN)] {
        bench.ask(local, 0, &write(path, &[b'v'; 1000])).unwrap();
        let permissions = vec![Permission::none(owner)];
        let own = Request::SetPerms { path, permissions };
        bench.ask(local, 0, &own).unwrap();
    }
    bench.set("memory", 900);
    bench.assert_held(guest);
    bench.server.take_stirred();
    bench.server.release(DomId(6), &mut bench.world);
    assert!(bench.server.take_stirred().contains(&guest));
}

#[test]
fn a_guest_that_died_while_it_was_held_is_not_looked_after_for_ever() {
    let mut bench = Bench::new();
    bench
        .ask(bench.guest, 0, &write(b"x", &[b'v'; 1000]))
        .unwrap();
    bench.set("memory", 900);
    bench.server.release(DOMAIN, &mut bench.world);
    bench.ask(bench.local, 0, &Request::Read(b"/")).unwrap();
    assert!(bench.server.agenda.no_memory.is_empty());
}

#[test]
fn the_daemon_takes_apart_what_was_removed_though_nobody_asks_for_anything() {
    let host = Place::host();
    let mut store = Store::default();
    let (client, live) = (ClientId(0), crate::TransactionId::NONE);
    store.attach(client, Caller::PRIVILEGED);
    store.know(DOMAIN);
    let path = |text: &str| crate::store::Path::new(text).unwrap();
    for n in 0..20_000 {
        let path = path(&alloc::format!("/big/{n}"));
        store.mkdir(client, live, &path).unwrap();
    }
    let own = [Permission::none(DOMAIN)];
    store
        .set_permissions(client, live, &path("/big"), &own)
        .unwrap();
    store.detach(client);
    let (daemon, xenstored) = Daemon::new(host.clone(), store, |_| false);
    host.spawn(daemon.run());
    host.run(async {
        xenstored.release(DOMAIN).await;
        for _ in 0..100 {
            yield_now().await;
        }
        let statistics = xenstored.statistics().await.unwrap();
        let left = statistics.domains[0].used[Quota::Nodes];
        assert!(left < 10, "{left} nodes are left");
    });
}

/// A clock that goes on when it is told to.
#[derive(Clone, Default)]
struct ByHand(Arc<Mutex<Hand>>);

#[derive(Default)]
struct Hand {
    now: Instant,
    waiting: Vec<(Instant, Waker)>,
}

impl ByHand {
    fn advance(&self, duration: Duration) {
        let mut clock = self.0.lock().unwrap();
        let now = clock.now.after(duration);
        clock.now = now;
        for (_, waiting) in clock.waiting.extract_if(.., |(when, _)| *when <= now) {
            waiting.wake();
        }
    }
}

impl Clock for ByHand {
    fn now(&self) -> Instant {
        self.0.lock().unwrap().now
    }

    fn sleep_until(&self, when: Instant) -> impl Future<Output = ()> + Send + 'static {
        let clock = self.0.clone();
        poll_fn(move |cx| {
            let mut clock = clock.lock().unwrap();
            if clock.now >= when {
                return Poll::Ready(());
            }
            clock.waiting.push((when, cx.waker().clone()));
            Poll::Pending
        })
    }
}

#[test]
fn the_daemon_lets_a_guest_go_on_when_it_is_time() {
    let host = Place::host();
    let clock = ByHand::default();
    let (daemon, xenstored) = Daemon::new(host.clone(), Store::default(), |domid| domid.0 < 10);
    host.spawn(daemon.with_clock(clock.clone()).run());
    host.run(async {
        let (place, page, channel) = host.domain(DOMAIN);
        let port = channel.port();
        let guest = Client::over_ring(&place, page, channel).unwrap();
        let local = Client::start(&host, xenstored.connect());
        local.mkdir("/local/domain/5").await.unwrap();
        let own = [Permission::none(DOMAIN)];
        local
            .set_permissions("/local/domain/5", &own)
            .await
            .unwrap();
        xenstored.introduce(DOMAIN, port).await.unwrap();

        let mut tries = 0;
        let disturbed = local.transaction(|transaction| {
            tries += 1;
            let first = tries == 1;
            let (guest, clock) = (guest.clone(), clock.clone());
            async move {
                let _ = transaction.read("/local/domain/5/x").await;
                if first {
                    guest.write("x", "1").await?;
                    clock.advance(1000 * MS);
                }
                transaction.write("/local/domain/5/y", "1").await
            }
        });
        disturbed.await.unwrap();
        assert_eq!(tries, 2);

        let mut asked = pin!(guest.write("x", "2"));
        let mut answered = false;
        for _ in 0..100 {
            answered |= poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx).is_ready())).await;
            yield_now().await;
        }
        assert!(!answered, "it is held");
        clock.advance(1900 * MS);
        asked.await.unwrap();
    });
}
