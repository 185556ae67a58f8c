//! Vifs of guests on a host: both halves, the toolstack's nodes, and the network between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use parapet::config::{GuestConfig, HostConfig};
use parapet::guest::Guest;
use parapet::host::{Host, StartError};
use parapet_hypervisor::loopback::Domain;
use parapet_netfront::{Gone, Offloads, Queue};

const KIND: [u8; 2] = [0x88, 0xB5];

fn guest(name: &str, vifs: &[&str]) -> GuestConfig {
    let vifs: Vec<String> = vifs.iter().map(|vif| format!("{vif:?}")).collect();
    let text = format!("name = '{name}'\nvif = [{}]", vifs.join(", "));
    let mut config = HostConfig::parse(&text, "/vifs.toml").unwrap();
    config.guests.remove(0)
}

fn host() -> Host {
    Host::builder().pcpus(1).build().unwrap()
}

/// The next frame of our own kind, without the addresses.
async fn next(queue: &mut Queue<Domain>) -> Result<Vec<u8>, Gone> {
    loop {
        let frame = queue.receiver.receive().await?;
        let mut bytes = vec![0; frame.len()];
        frame.copy_to(0, &mut bytes);
        if bytes[12..14] == KIND {
            return Ok(bytes.split_off(14));
        }
    }
}

async fn send(queue: &mut Queue<Domain>, to: [u8; 6], from: [u8; 6], text: &[u8]) {
    let parts: [&[u8]; 4] = [&to, &from, &KIND, text];
    queue
        .sender
        .send(&parts, Offloads::default())
        .await
        .unwrap();
}

/// Says hello to whoever asks, and ends.
async fn answer(guest: Guest) -> anyhow::Result<Vec<u8>> {
    let (interface, mut queues) = guest.interface(0).await?;
    let queue = &mut queues[0];
    // Whoever asked is asked again until it is there.
    let question = next(queue).await?;
    send(queue, [0xFF; 6], interface.mac().0, b"hello").await;
    queue.sender.room(0).await?;
    // The answer is to leave before the vif does.
    while queue.sender.under_way() > 0 {
        queue.sender.collect()?;
        parapet_hypervisor::seam::yield_now().await;
    }
    Ok(question)
}

async fn ask(guest: Guest) -> anyhow::Result<Vec<u8>> {
    use parapet_hypervisor::seam::Clock;
    let (interface, mut queues) = guest.interface(0).await?;
    let queue = &mut queues[0];
    let mac = interface.mac().0;
    let domain = guest.domain().clone();
    let Queue { sender, receiver } = queue;
    let asking = async {
        loop {
            let parts: [&[u8]; 4] = [&[0xFF; 6], &mac, &KIND, b"who is there?"];
            sender.send(&parts, Offloads::default()).await.unwrap();
            domain.sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let answering = async {
        let frame = receiver.receive().await?;
        let mut bytes = vec![0; frame.len()];
        frame.copy_to(0, &mut bytes);
        Ok::<_, Gone>(bytes.split_off(14))
    };
    let (asking, answering) = (std::pin::pin!(asking), std::pin::pin!(answering));
    match futures_util::future::select(asking, answering).await {
        futures_util::future::Either::Left((never, _)) => never,
        futures_util::future::Either::Right((answer, _)) => Ok(answer?),
    }
}

#[test]
fn two_guests_talk_on_the_network_that_is_there_if_none_is_said() {
    let host = host();
    let one = host.start(&guest("one", &[""]), answer).unwrap();
    let two = host.start(&guest("two", &["locked"]), ask).unwrap();
    assert_eq!(two.wait().unwrap(), b"hello");
    assert_eq!(one.wait().unwrap(), b"who is there?");
    let vifs = host.vifs();
    let names: Vec<&str> = vifs.iter().map(|vif| vif.guest.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(vifs[0].stats.sum(|queue| queue.tx.packets.get()), 1);
}

#[test]
fn a_guest_is_told_which_interfaces_it_has() {
    let host = host();
    let program = async |guest: Guest| {
        let wrong = guest.interface(1).await.err().unwrap().to_string();
        Ok((guest.vifs().await?, wrong))
    };
    let running = host.start(&guest("a", &["devid=7", ""]), program).unwrap();
    let (vifs, wrong) = running.wait().unwrap();
    assert_eq!(vifs, [0, 7]);
    assert_eq!(wrong, "there is no interface 1: the guest has 0, 7");
}

#[test]
fn a_vif_that_the_network_does_not_take_is_named() {
    let host = host();
    let idle = async |_: Guest| Ok(());
    let one = guest("one", &["mac=00:16:3e:00:00:01"]);
    let _running = host
        .start(&one, async |guest: Guest| {
            guest.interface(0).await?;
            std::future::pending::<()>().await;
            Ok(())
        })
        .unwrap();
    let two = guest("two", &["mac=00:16:3e:00:00:01"]);
    let error = host.start(&two, idle).err().unwrap();
    assert!(
        matches!(&error, StartError::Vif { guest, number: 0, .. } if guest == "two"),
        "{error}"
    );
    assert!(error.to_string().contains("00:16:3e:00:00:01"), "{error}");
}

#[test]
fn a_vif_is_let_go_with_its_guest() {
    let host = host();
    let config = guest("a", &["mac=00:16:3e:00:00:01"]);
    for _ in 0..3 {
        let running = host.start(&config, async |guest: Guest| {
            guest.interface(0).await?;
            Ok(())
        });
        running.unwrap().wait().unwrap();
    }
}

#[test]
fn vifs_can_be_captured_over_a_socket_while_they_run() {
    use std::io::Read;

    use parapet::daemon::capture::{CaptureError, CaptureSocket, Wish, capture};
    use parapet_hypervisor::seam::{Clock, Identity};
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::{Block, PcapNgReader};

    let host = host();
    let folder = tempfile::tempdir().unwrap();
    let place = host.dom0().clone();
    let _socket = CaptureSocket::open(folder.path(), "test", host.vif_reports(), move || {
        place.now()
    })
    .unwrap();
    let one = host.start(&guest("one", &[""]), answer).unwrap();
    let vif = format!("vif{}.0", one.domain().domid());
    let wish = |vif: &str| Wish {
        vifs: vec![vif.into()],
        longest: 65535,
    };
    let refused = capture(folder.path(), "test", &wish("vif99.0")).err();
    let Some(CaptureError::Refused(reason)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(reason, format!("there is no vif vif99.0: there are {vif}"));

    let (mut frames, stop) = capture(folder.path(), "test", &wish(&vif)).unwrap();
    let two = host.start(&guest("two", &[""]), ask).unwrap();
    two.wait().unwrap();
    one.wait().unwrap();
    stop.stop();
    let mut file = Vec::new();
    frames.read_to_end(&mut file).unwrap();
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    let (mut inbound, mut outbound, mut last) = (Vec::new(), Vec::new(), None);
    while let Some(block) = reader.next_block() {
        let block = block.unwrap().into_owned();
        if let Block::EnhancedPacket(frame) = &block {
            match frame.options[..] {
                [EnhancedPacketOption::Flags(1)] => inbound.push(frame.data[14..].to_vec()),
                _ => outbound.push(frame.data[14..].to_vec()),
            }
        }
        last = Some(block);
    }
    assert_eq!(inbound, [b"hello"]);
    assert_eq!(outbound[0], b"who is there?");
    assert!(matches!(last, Some(Block::InterfaceStatistics(_))));
}
