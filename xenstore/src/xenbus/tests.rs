//! Both ends against each other, over our own xenstored.

use alloc::string::ToString;

use parapet_hypervisor::seam::{Channel, Tasks};
use parapet_xen_sys::{DomId, Errno, Port};

use super::*;
use crate::Permission;
use crate::client::Client;
use crate::mailbox::Mailbox;
use crate::server::daemon::{Daemon, Handle};
use crate::store::Store;
use crate::testing::Place;

struct Stage {
    host: Place,
    xenstored: Handle,
    toolstack: Client,
    /// The backend's, of domain 0.
    back: Client,
    /// The frontend's, of domain 5.
    front: Client,
}

fn nodes<'a>() -> DeviceNodes<'a> {
    DeviceNodes {
        kind: "vbd",
        devid: 51712,
        frontend: DomId(5),
        backend: DomId(0),
        frontend_keys: &[],
        backend_keys: &[],
    }
}

async fn stage(host: &Place) -> Stage {
    let (daemon, xenstored) = Daemon::new(host.clone(), Store::default(), |domid| domid.0 < 10);
    host.spawn(daemon.run());
    let toolstack = Client::start(host, xenstored.connect());
    let mut clients = alloc::vec![];
    for domid in [DomId(0), DomId(5)] {
        let (place, page, channel) = host.domain(domid);
        let port = channel.port();
        clients.push(Client::over_ring(&place, page, channel).unwrap());
        xenstored.introduce(domid, port).await.unwrap();
        let home = alloc::format!("/local/domain/{domid}");
        toolstack.mkdir(&home).await.unwrap();
        let own = [Permission::none(domid)];
        toolstack.set_permissions(&home, &own).await.unwrap();
    }
    nodes().create(&toolstack).await.unwrap();
    let front = clients.pop().unwrap();
    let back = clients.pop().unwrap();
    Stage {
        host: host.clone(),
        xenstored,
        toolstack,
        back,
        front,
    }
}

async fn state(client: &Client, path: &str) -> XenbusState {
    Keys::new(client.clone(), path).state().await.unwrap()
}

/// Connects, follows a frontend that closes, and says so.
async fn serve(client: Client) -> Result<(), Error> {
    let back = Backend::open(&client, &nodes().backend_path()).await?;
    assert_eq!(back.other_domid(), DomId(5));
    let mut back = back
        .announce(async |keys| keys.set("feature-flush-cache", 1).await)
        .await?;
    back.frontend_ready().await?;
    let port: Port = back.other().get("event-channel").await?;
    assert_eq!(port, Port(9));
    let mut back = back
        .connect(async |keys| keys.set("sectors", 2048).await)
        .await?;
    back.frontend_connected().await?;
    assert_eq!(back.changed().await?, XenbusState::Closing);
    back.close().await?.closed().await?;
    Ok(())
}

#[test]
fn the_ends_meet_use_the_device_and_leave() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let served = Mailbox::new();
        let (reply, back) = (served.clone(), stage.back.clone());
        stage
            .host
            .spawn(async move { reply.put(serve(back).await) });

        let mut front = Frontend::open(&stage.front, "device/vbd/51712")
            .await
            .unwrap();
        front.backend_waits().await.unwrap();
        assert!(
            front
                .other()
                .get::<bool>("feature-flush-cache")
                .await
                .unwrap()
        );
        assert_eq!(front.other().find::<u32>("none").await.unwrap(), None);
        let published = front.publish(async |keys| keys.set("event-channel", 9).await);
        let mut front = published.await.unwrap();
        front.backend_connected().await.unwrap();
        assert_eq!(front.other().get::<u64>("sectors").await.unwrap(), 2048);
        let front = front.connect().await.unwrap();
        let front = front.close().await.unwrap();
        front.closed_first().await.unwrap();
        core::future::poll_fn(|cx| served.poll_take(cx))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            state(&stage.toolstack, &nodes().backend_path()).await,
            XenbusState::Closed
        );
        assert_eq!(
            state(&stage.toolstack, &nodes().frontend_path()).await,
            XenbusState::Closed
        );
    });
}

#[test]
fn a_backend_that_takes_up_anothers_end_writes_nothing_and_can_go_on() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let (back, path) = (&stage.back, nodes().backend_path());
        Backend::open(back, &path).await.unwrap();
        let state_path = alloc::format!("{path}/state");
        stage.toolstack.write(&state_path, "4").await.unwrap();
        let taken_up = Backend::<Connected>::take_up(back, &path).await.unwrap();
        assert_eq!(taken_up.other_domid(), DomId(5));
        assert_eq!(state(&stage.toolstack, &path).await, XenbusState::Connected);
        taken_up.close().await.unwrap();
        assert_eq!(state(&stage.toolstack, &path).await, XenbusState::Closing);
    });
}

#[test]
fn each_end_owns_its_directory_and_reads_the_others() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let entries = async |path| stage.toolstack.permissions(path).await.unwrap();
        let (front, back) = (nodes().frontend_path(), nodes().backend_path());
        let both = [Permission::none(DomId(5)), Permission::read(DomId(0))];
        assert_eq!(entries(&front).await, both);
        let both = [Permission::none(DomId(0)), Permission::read(DomId(5))];
        assert_eq!(entries(&back).await, both);
        assert_eq!(entries(&alloc::format!("{back}/state")).await, both);
        let refused = stage
            .front
            .write(&alloc::format!("{back}/state"), "4")
            .await;
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::EACCES));
    });
}

#[test]
fn a_malformed_key_is_the_peers_fault_and_named() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let front = nodes().frontend_path();
        stage.front.write("device/vbd/51712/ring-ref", "8x").await.unwrap();
        let keys = Keys::new(stage.back.clone(), front.clone());
        let fault = keys.get::<u32>("ring-ref").await.unwrap_err();
        let expected = "the other end's /local/domain/5/device/vbd/51712/ring-ref is \"8x\" and not a number (u32)";
        assert_eq!(fault.to_string(), expected);
        let missing = keys.get::<u32>("event-channel").await.unwrap_err();
        assert!(matches!(missing, Error::Peer { .. }), "{missing}");
        stage.front.write("device/vbd/51712/state", "ninety").await.unwrap();
        let mut back = Backend::open(&stage.back, &nodes().backend_path()).await.unwrap();
        assert!(matches!(back.changed().await, Err(Error::Peer { .. })));
    });
}

#[test]
fn a_frontend_whose_directory_is_gone_has_closed() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let back = Backend::open(&stage.back, &nodes().backend_path())
            .await
            .unwrap();
        let mut back = back.announce(async |_| Ok(())).await.unwrap();
        stage
            .toolstack
            .remove(&nodes().frontend_path())
            .await
            .unwrap();
        let left = back.frontend_ready().await;
        assert_eq!(left, Err(Error::Leaving(XenbusState::Closed)));
        back.close().await.unwrap().closed().await.unwrap();
        nodes().remove(&stage.toolstack).await.unwrap();
        nodes().remove(&stage.toolstack).await.unwrap();
    });
}

#[test]
fn a_removed_device_does_not_come_back_as_a_lone_state() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let front = Frontend::open(&stage.front, "device/vbd/51712")
            .await
            .unwrap();
        nodes().remove(&stage.toolstack).await.unwrap();
        assert!(front.close().await.is_err());
        assert!(
            stage
                .toolstack
                .read(&nodes().frontend_path())
                .await
                .unwrap_err()
                .is_not_found()
        );
    });
}

#[test]
fn errors_are_reported_where_people_look() {
    let host = Place::host();
    host.run(async {
        let stage = stage(&host).await;
        let front = Frontend::open(&stage.front, "device/vbd/51712")
            .await
            .unwrap();
        front.report(Errno::EINVAL, "no rings").await.unwrap();
        let read = stage
            .toolstack
            .read("/local/domain/5/error/device/vbd/51712/error")
            .await;
        assert_eq!(read.unwrap(), b"22 EINVAL: no rings");
        let back = Backend::open(&stage.back, &nodes().backend_path())
            .await
            .unwrap();
        assert!(back.is_online().await.unwrap());
        back.hotplug_failed("no such image").await.unwrap();
        assert_eq!(
            back.own().get::<String>("hotplug-status").await.unwrap(),
            "error"
        );
        nodes().detach(&stage.toolstack).await.unwrap();
        assert!(!back.is_online().await.unwrap());
        stage.xenstored.shut_down(DomId(5));
    });
}
