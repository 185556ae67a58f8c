//! Clients against our own xenstored, over rings and pipes.

use alloc::format;
use alloc::vec;
use core::mem::offset_of;
use core::pin::pin;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::SeqCst;
use core::task::Poll;

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
