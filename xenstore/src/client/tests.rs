//! Clients against our own xenstored, over rings and pipes.

use alloc::format;
use alloc::vec;
use core::mem::offset_of;
use core::pin::pin;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::SeqCst;
use core::task::Poll;

use futures_util::StreamExt;
use parapet_hypervisor::memory::Scratch;
use parapet_hypervisor::seam::Channel;
use parapet_xen_sys::io::xs_wire::{DomainInterface, RingError};

use super::*;
use crate::server::daemon::{Daemon, Handle};
use crate::store::Store;
use crate::testing::Place;

fn xenstored() -> (Place, Handle) {
    let host = Place::host();
    let (daemon, handle) = Daemon::new(host.clone(), Store::default(), |domid| domid.0 < 10);
    host.spawn(daemon.run());
    (host, handle)
}

/// A domain with a home of its own, and its page.
async fn domain(host: &Place, xenstored: &Handle, domid: u16) -> (Client, Scratch) {
    let (guest, page, channel) = host.domain(DomId(domid));
    let port = channel.port();
    let client = Client::over_ring(&guest, page.clone(), channel).unwrap();
    let local = Client::start(host, xenstored.connect());
    let home = format!("/local/domain/{domid}");
    local.mkdir(&home).await.unwrap();
    let own = [Permission::none(DomId(domid))];
    local.set_permissions(&home, &own).await.unwrap();
    xenstored.introduce(DomId(domid), port).await.unwrap();
    (client, page)
}

#[test]
fn a_guest_uses_the_store_over_its_ring() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        guest.write("data/x", "1").await.unwrap();
        assert_eq!(guest.read("/local/domain/5/data/x").await.unwrap(), b"1");
        guest.mkdir("data/y").await.unwrap();
        assert_eq!(guest.list("data").await.unwrap(), ["x", "y"]);
        assert_eq!(
            guest.permissions("data").await.unwrap(),
            [Permission::none(DomId(5))]
        );
        guest.remove("data/x").await.unwrap();
        let error = guest.read("data/x").await.unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(format!("{error}"), "xenstore: Read data/x: ENOENT");
    });
}

#[test]
fn a_value_longer_than_the_ring_crosses_it() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (domain_0, _) = domain(&host, &xenstored, 0).await;
        let value = vec![b'v'; 4000];
        domain_0.write("/big", &value).await.unwrap();
        assert_eq!(domain_0.read("/big").await.unwrap(), value);
        let too_long = domain_0.write("/big", vec![0; 5000]).await;
        assert!(matches!(too_long, Err(Error::TooLong(_))));
        for n in 0..600 {
            domain_0.mkdir(&format!("/many/number-{n}")).await.unwrap();
        }
        assert_eq!(domain_0.list("/many").await.unwrap().len(), 600);
    });
}

#[test]
fn many_tasks_share_a_connection_and_each_gets_its_own_answer() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        let done = Mailbox::new();
        for n in 0..20 {
            let (guest, done) = (guest.clone(), done.clone());
            host.spawn(async move {
                let path = format!("task/{n}");
                for round in 0..20 {
                    let value = format!("{n} {round}");
                    guest.write(&path, &value).await.unwrap();
                    assert_eq!(guest.read(&path).await.unwrap(), value.as_bytes());
                }
                done.put(());
            });
        }
        for _ in 0..20 {
            poll_fn(|cx| done.poll_take(cx)).await.unwrap();
        }
    });
}

#[test]
fn a_watch_is_a_stream_that_begins_with_its_own_path() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        let local = Client::start(&host, xenstored.connect());
        let mut watch = guest.watch("device").await.unwrap();
        assert_eq!(watch.next().await.unwrap().path, "device");
        local.write("/local/domain/5/device/vbd", "").await.unwrap();
        assert_eq!(watch.next().await.unwrap().path, "device/vbd");
        drop(watch);
        local.write("/local/domain/5/device/vbd", "").await.unwrap();
        let mut watch = guest.watch("device/vbd").await.unwrap();
        assert_eq!(watch.next().await.unwrap().path, "device/vbd");
        local.remove("/local/domain/5/device").await.unwrap();
        assert_eq!(watch.next().await.unwrap().path, "device/vbd");
    });
}

#[test]
fn a_watch_with_a_depth_sees_so_many_levels() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let local = Client::start(&host, xenstored.connect());
        let mut watch = local.watch_depth("/w", 1).await.unwrap();
        assert_eq!(watch.next().await.unwrap().path, "/w");
        local.write("/w/a/b", "").await.unwrap();
        local.write("/w/a/b", "too deep").await.unwrap();
        local.write("/w/c", "").await.unwrap();
        let mut paths = vec![];
        while paths.last().is_none_or(|path| path != "/w/c") {
            paths.push(watch.next().await.unwrap().path);
        }
        assert!(!paths.iter().any(|path| path == "/w/a/b"), "{paths:?}");
    });
}

#[test]
fn a_stream_of_events_ends_after_the_error_that_ends_it() {
    let host = Place::host();
    let (daemon, handle) = Daemon::new(host.clone(), Store::default(), |_| true);
    let ending = Mailbox::<()>::new();
    host.spawn({
        let ending = ending.clone();
        async move {
            let mut daemon = pin!(daemon.run());
            poll_fn(|cx| match ending.poll_take(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => daemon.as_mut().poll(cx),
            })
            .await;
        }
    });
    let client = Client::start(&host, handle.connect());
    host.run(async {
        let watch = client.watch("/w").await.unwrap();
        ending.close();
        let events: Vec<_> = watch.collect().await;
        let [Ok(first), Err(Error::Broken(Broken::Closed))] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(first.path, "/w");
    });
}

#[test]
fn domain_0_tells_of_domains_and_asks_for_them() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let local = Client::start(&host, xenstored.connect());
        let (five, six) = (DomId(5), DomId(6));
        assert_eq!(local.domain_path(five).await.unwrap(), "/local/domain/5");
        assert!(!local.is_introduced(five).await.unwrap());
        let refused = local.resume(five).await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::ENOENT));

        let (_guest, _, channel) = host.domain(five);
        local.introduce(five, 0, channel.port()).await.unwrap();
        let (_other, _) = domain(&host, &xenstored, 6).await;
        assert!(local.is_introduced(five).await.unwrap());
        local.resume(five).await.unwrap();
        local.set_target(five, six).await.unwrap();
        local.release(five).await.unwrap();
        assert!(!local.is_introduced(five).await.unwrap());
        assert!(local.set_target(five, six).await.is_err());

        assert!(
            local
                .control("help", &[])
                .await
                .unwrap()
                .starts_with("check")
        );
        assert_eq!(local.control("print", &["hello"]).await.unwrap(), "OK");
        let unknown = local.control("nonsense", &[]).await.unwrap_err();
        assert_eq!(unknown.errno(), Some(Errno::EINVAL));
    });
}

#[test]
fn features_and_quotas_are_asked_for_and_set_by_domain_and_name() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let local = Client::start(&host, xenstored.connect());
        let five = Some(DomId(5));
        let names = local.quotas().await.unwrap();
        assert!(names.iter().any(|name| name == "watches"), "{names:?}");
        for name in &names {
            local.quota(None, name).await.unwrap();
        }
        local.set_quota(None, "watches", 7).await.unwrap();
        local
            .set_features(DomId(5), ServerFeatures::ERROR)
            .await
            .unwrap();
        local.set_quota(five, "watches", 3).await.unwrap();
        assert_eq!(local.quota(None, "watches").await.unwrap(), 7);
        assert_eq!(local.quota(five, "watches").await.unwrap(), 3);
        let unknown = local.quota(None, "nonsense").await.unwrap_err();
        assert_eq!(unknown.errno(), Some(Errno::EINVAL));

        let (guest, _) = domain(&host, &xenstored, 5).await;
        assert_eq!(guest.features(None).await.unwrap(), ServerFeatures::ERROR);
        let all = local.features(None).await.unwrap();
        assert!(all.contains(ServerFeatures::WATCHDEPTH));
        assert_eq!(local.features(five).await.unwrap(), ServerFeatures::ERROR);
        let refused = guest.quotas().await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EACCES));
    });
}

#[test]
fn a_reset_ends_watches_and_transactions() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        let mut watch = guest.watch("x").await.unwrap();
        assert_eq!(watch.next().await.unwrap().path, "x");
        let inner = guest.clone();
        let ended = guest.transaction(|tx| {
            let inner = inner.clone();
            async move {
                tx.write("x", "lost").await?;
                inner.reset_watches().await
            }
        });
        assert_eq!(ended.await.unwrap_err().errno(), Some(Errno::ENOENT));
        assert!(guest.read("x").await.unwrap_err().is_not_found());
        guest.write("x", "unseen").await.unwrap();
        let mut fresh = guest.watch("y").await.unwrap();
        assert_eq!(fresh.next().await.unwrap().path, "y");
        // What the write had caused would have come before.
        assert!(poll_fn(|cx| Poll::Ready(watch.poll_event(cx).is_pending())).await);
    });
}

#[test]
fn more_events_than_a_watch_keeps_become_one_on_its_own_path() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let local = Client::start(&host, xenstored.connect());
        let mut watch = local.watch("/w").await.unwrap();
        for n in 0..1500 {
            local.mkdir(&format!("/w/{n}")).await.unwrap();
        }
        let mut paths = vec![];
        while paths.iter().filter(|path| *path == "/w").count() < 2 {
            paths.push(watch.next().await.unwrap().path);
        }
        assert_eq!(paths.len(), 1025);
    });
}

#[test]
fn a_transaction_is_repeated_until_nobody_interferes() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        guest.write("n", "0").await.unwrap();
        let mut runs = 0;
        let count = |client: Client| async move {
            let n: u32 = core::str::from_utf8(&client.read("n").await?)
                .unwrap()
                .parse()
                .unwrap();
            client.write("n", format!("{}", n + 1)).await?;
            Ok::<u32, Error>(n + 1)
        };
        let outcome = guest.transaction(|tx| {
            runs += 1;
            let interfere = runs < 3;
            let guest = guest.clone();
            async move {
                let n = count(tx).await?;
                if interfere {
                    count(guest).await?;
                }
                Ok(n)
            }
        });
        assert_eq!(outcome.await.unwrap(), 3);
        assert_eq!(guest.read("n").await.unwrap(), b"3");
        assert_eq!(runs, 3);

        let failed = guest.transaction(|tx| async move {
            tx.write("n", "lost").await?;
            tx.read("none").await
        });
        assert!(failed.await.unwrap_err().is_not_found());
        assert_eq!(guest.read("n").await.unwrap(), b"3");
    });
}

#[test]
fn a_store_that_never_comes_to_rest_ends_a_transaction_with_eagain() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let client = Client::start(&host, xenstored.connect());
        let mut runs = 0;
        let outcome = client.transaction(|tx| {
            runs += 1;
            let other = client.clone();
            async move {
                tx.write("/n", "mine").await?;
                other.write("/n", "other").await
            }
        });
        let error = outcome.await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EAGAIN));
        assert_eq!(runs, TRANSACTION_TRIES);
        assert_eq!(client.read("/n").await.unwrap(), b"other");
    });
}

#[test]
fn an_abandoned_transaction_is_ended() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        // More than a guest may have open at a time.
        for _ in 0..30 {
            let reached = AtomicBool::new(false);
            let never = guest.transaction(|tx| {
                let reached = &reached;
                async move {
                    tx.write("n", "1").await?;
                    reached.store(true, SeqCst);
                    core::future::pending::<Result<(), Error>>().await
                }
            });
            let mut never = pin!(never);
            poll_fn(|cx| match never.as_mut().poll(cx) {
                Poll::Pending if reached.load(SeqCst) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
                Poll::Ready(ended) => panic!("{ended:?}"),
            })
            .await;
        }
        assert!(guest.read("n").await.unwrap_err().is_not_found());
    });
}

#[test]
fn a_guest_that_breaks_its_ring_is_told_so_and_nobody_else_notices() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (victim, page) = domain(&host, &xenstored, 5).await;
        let (other, _) = domain(&host, &xenstored, 6).await;
        victim.write("x", "1").await.unwrap();
        let word = |offset| page.view().atomic_u32(offset).unwrap();
        word(offset_of!(DomainInterface, req_prod)).store(0x8000_0000, SeqCst);
        let answer = victim.read("x").await;
        assert!(matches!(answer, Err(Error::Broken(_))), "{answer:?}");
        let error = word(offset_of!(DomainInterface, error)).load(SeqCst);
        assert_eq!(error, u32::from(RingError::RingIdx));
        other.write("y", "1").await.unwrap();
        assert!(matches!(victim.read("x").await, Err(Error::Broken(_))));
    });
}

#[test]
fn a_kernel_that_finds_a_used_ring_gets_a_fresh_start_and_nothing_of_the_one_before() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, page, channel) = host.domain(DomId(5));
        let first = Client::over_ring(&guest, page.clone(), channel.clone()).unwrap();
        let port = channel.port();
        xenstored.introduce(DomId(5), port).await.unwrap();
        let local = Client::start(&host, xenstored.connect());
        let _watch = first.watch("/tool").await.unwrap();
        first.call(&Request::TransactionStart).await.unwrap();
        // It leaves half a request in the ring, and counts that nobody can follow.
        let word = |offset| page.view().atomic_u32(offset).unwrap();
        word(offset_of!(DomainInterface, req_prod)).fetch_add(3, SeqCst);
        channel.notify();
        word(offset_of!(DomainInterface, rsp_cons)).store(0x4000_0000, SeqCst);
        assert!(first.read("/").await.is_err());
        drop(first);

        let second = Client::over_used_ring(&guest, page.clone(), channel).unwrap();
        let refused = second.read("/").await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EACCES));
        assert_eq!(word(offset_of!(DomainInterface, error)).load(SeqCst), 0);
        let arguments = vec![&b"5"[..]];
        let command = b"quota";
        let quotas = Request::Control { command, arguments };
        let quotas = String::from_utf8(local.call(&quotas).await.unwrap()).unwrap();
        for quota in ["watches", "transactions"] {
            let line = quotas.lines().find(|line| line.starts_with(quota)).unwrap();
            assert!(line.contains(":        0 "), "{line}");
        }
    });
}

#[test]
fn a_domain_without_a_page_is_not_introduced() {
    let (host, xenstored) = xenstored();
    host.run(async {
        assert_eq!(
            xenstored.introduce(DomId(5), Port(1)).await,
            Err(Errno::EINVAL)
        );
        let local = Client::start(&host, xenstored.connect());
        let refused = local.introduce(DomId(5), 0, Port(1)).await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EINVAL));
    });
}

#[test]
fn a_released_domain_leaves_its_nodes_behind_for_nobody() {
    let (host, xenstored) = xenstored();
    host.run(async {
        let (guest, _) = domain(&host, &xenstored, 5).await;
        guest.write("x", "1").await.unwrap();
        let local = Client::start(&host, xenstored.connect());
        let mut watch = local.watch("@releaseDomain").await.unwrap();
        watch.next().await.unwrap();
        xenstored.release(DomId(5)).await;
        assert_eq!(watch.next().await.unwrap().path, "@releaseDomain");
        assert!(
            local
                .read("/local/domain/5")
                .await
                .unwrap_err()
                .is_not_found()
        );
    });
}

#[test]
fn when_xenstored_is_gone_everybody_is_told() {
    let host = Place::host();
    let (daemon, handle) = Daemon::new(host.clone(), Store::default(), |_| true);
    let client = Client::start(&host, handle.connect());
    drop(daemon);
    host.run(async {
        assert!(matches!(
            client.read("/").await,
            Err(Error::Broken(Broken::Closed))
        ));
        assert!(matches!(
            client.watch("/").await,
            Err(Error::Broken(Broken::Closed))
        ));
        assert_eq!(handle.introduce(DomId(1), Port(1)).await, Err(Errno::EIO));
        let late = Client::start(&host, handle.connect());
        assert!(matches!(
            late.read("/").await,
            Err(Error::Broken(Broken::Closed))
        ));
    });
}
