//! blkfront against blkback, with xenstored between them: what neither can promise alone.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parapet::config::GuestConfig;
use parapet::guest::Guest;
use parapet::host::Host;
use parapet_blkfront::Queue;
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::yield_now;
use parapet_xen_sys::DomId;

fn host(pcpus: usize) -> Host {
    Host::builder().pcpus(pcpus).build().unwrap()
}

fn guest_with(name: &str, disks: &[&str]) -> GuestConfig {
    let mut config = GuestConfig::new(name);
    config.disks = disks.iter().map(|disk| disk.parse().unwrap()).collect();
    config
}

/// Bytes that tell which sector they belong to, and which round wrote them.
fn pattern(sector: u64, round: u8, len: usize) -> Vec<u8> {
    let sectors = (0..).map(|index| sector + index);
    sectors
        .flat_map(|sector| (0..512u64).map(move |at| (sector.wrapping_mul(31) + at) as u8 ^ round))
        .take(len)
        .collect()
}

async fn write_and_verify(guest: &Guest, vdev: &str, tasks: u64) -> anyhow::Result<()> {
    let disk = guest.disk(vdev).await?;
    let share = disk.info().sectors / tasks;
    let left = Arc::new(AtomicU64::new(tasks));
    let failed = Arc::new(AtomicBool::new(false));
    for task in 0..tasks {
        let (disk, left, failed) = (disk.clone(), Arc::clone(&left), Arc::clone(&failed));
        guest.domain().spawn(async move {
            let first = task * share;
            for round in 0..3u8 {
                // Odd lengths of sectors, so that requests begin and end anywhere in a page.
                let mut sector = first;
                for sectors in [1u64, 3, 8, 13, 88, 200].into_iter().cycle() {
                    let sectors = sectors.min(first + share - sector);
                    if sectors == 0 {
                        break;
                    }
                    let bytes = pattern(sector, round, sectors as usize * 512);
                    let mut back = vec![0; bytes.len()];
                    let done = disk.write_at(sector * 512, &bytes).await.is_ok()
                        && disk.read_at(sector * 512, &mut back).await.is_ok();
                    if !done || back != bytes {
                        failed.store(true, Ordering::SeqCst);
                    }
                    sector += sectors;
                }
            }
            left.fetch_sub(1, Ordering::SeqCst);
        });
    }
    while left.load(Ordering::SeqCst) > 0 {
        yield_now().await;
    }
    disk.flush().await?;
    anyhow::ensure!(
        !failed.load(Ordering::SeqCst),
        "what was read is not what was written"
    );
    Ok(())
}

#[test]
fn many_tasks_find_what_they_wrote() {
    for pcpus in [1, 2] {
        let host = host(pcpus);
        let mut config = guest_with("writer", &["vdev=xvda, target=memory:4M"]);
        config.vcpus = pcpus;
        let running = host
            .start(&config, async |guest| {
                write_and_verify(&guest, "xvda", 16).await
            })
            .unwrap();
        running.wait().unwrap();
        let disks = host.disks();
        let stats = disks[0].stats.sum();
        assert_eq!(
            stats.writes.bytes.get(),
            3 * (4 << 20),
            "each round wrote all of it"
        );
        assert_eq!(stats.reads.bytes.get(), 3 * (4 << 20));
        assert_eq!(stats.flushes.operations.get(), 1);
        assert_eq!(stats.writes.errors.get() + stats.reads.errors.get(), 0);
        assert_eq!(
            host.dom0().mappings(),
            1,
            "only domain 0's own xenstore page"
        );
    }
}

#[test]
fn what_one_guest_wrote_the_next_one_reads() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let host = host(2);
    let disk = format!("vdev=xvda, target={}", image.display());
    let config = guest_with("first", &[&disk]);
    let running = host.start(&config, async |guest| {
        let disk = guest.disk("xvda").await?;
        disk.write_at(512 * 7, &pattern(7, 1, 40 * 512)).await?;
        disk.flush().await?;
        Ok(())
    });
    running.unwrap().wait().unwrap();
    let mut config = guest_with("second", &[&disk.replace("vdev", "access=ro, vdev")]);
    config.disks[0].vdev = "xvdb".parse().unwrap();
    let running = host.start(&config, async |guest| {
        let disk = guest.disk("xvdb").await?;
        let mut back = vec![0; 40 * 512];
        disk.read_at(512 * 7, &mut back).await?;
        assert!(
            disk.write_at(0, &[1; 512]).await.is_err(),
            "it is read-only"
        );
        Ok(back)
    });
    assert_eq!(running.unwrap().wait().unwrap(), pattern(7, 1, 40 * 512));
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!(bytes[512 * 7..512 * 47], pattern(7, 1, 40 * 512));
    assert_eq!(bytes[..512], [0; 512]);
}

#[test]
fn a_hundred_guests_with_a_disk_each_run_at_once() {
    let host = host(2);
    let running: Vec<_> = (0..100)
        .map(|index| {
            let config = guest_with(&format!("guest{index}"), &["vdev=xvda, target=memory:256K"]);
            let program = async |guest: Guest| write_and_verify(&guest, "xvda", 2).await;
            host.start(&config, program).unwrap()
        })
        .collect();
    for guest in running {
        guest.wait().unwrap();
    }
    assert_eq!(host.disks().len(), 100);
    assert_eq!(host.dom0().mappings(), 1);
}

#[test]
fn a_guest_that_dies_in_the_middle_leaves_nothing_behind() {
    let host = host(2);
    for round in 0..10 {
        let config = guest_with("victim", &["vdev=xvda, target=memory:1M"]);
        let started = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&started);
        let running = host.start(&config, async move |guest| {
            let disk = guest.disk("xvda").await?;
            loop {
                disk.write_at(0, &[round; 4096 * 8]).await?;
                counted.fetch_add(1, Ordering::SeqCst);
            }
            #[allow(unreachable_code, reason = "the type of a program that never ends")]
            Ok(())
        });
        let running = running.unwrap();
        while started.load(Ordering::SeqCst) < 20 * u64::from(round) {
            std::thread::yield_now();
        }
        // As `xl destroy`: no word to the guest.
        drop(running);
        assert_eq!(host.dom0().mappings(), 1, "its ring and pages are unmapped");
    }
    let ports = host.dom0().ports_in_use();
    let config = guest_with("after", &["vdev=xvda, target=memory:1M"]);
    let running = host.start(&config, async |guest| {
        write_and_verify(&guest, "xvda", 2).await
    });
    running.unwrap().wait().unwrap();
    assert_eq!(host.dom0().ports_in_use(), ports, "no port is left bound");
}

/// A frontend that connects as it should, and then writes whatever it likes into its ring.
async fn scribble(guest: Guest, seed: u64) -> anyhow::Result<()> {
    let domain = guest.domain().clone();
    let store = guest.store();
    let path = "device/vbd/51712";
    let pages = domain.allocate(1)?;
    let grant = domain.grant(&pages, DomId::ZERO, Access::ReadWrite)?;
    let channel = domain.alloc_unbound(DomId::ZERO)?;
    // A header as SHARED_RING_INIT leaves it.
    pages.view().write(4, &1u32)?;
    pages.view().write(12, &1u32)?;
    store
        .write(&format!("{path}/ring-ref"), grant.refs()[0].to_string())
        .await?;
    store
        .write(&format!("{path}/event-channel"), channel.port().to_string())
        .await?;
    store
        .write(&format!("{path}/protocol"), "x86_64-abi")
        .await?;
    store.write(&format!("{path}/state"), "3").await?;
    let backend = store.read(&format!("{path}/backend")).await?;
    let backend = String::from_utf8(backend)?;
    let mut watch = store.watch(&format!("{backend}/state")).await?;
    while store.read(&format!("{backend}/state")).await? != b"4" {
        watch.next().await?;
    }
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    loop {
        for _ in 0..32 {
            // Mostly slots, with plausible operations and counts; sometimes the indices too.
            let at = 64 + random() as usize % 500 * 8;
            let value =
                [random(), random() & 0x0000_0000_0000_0b05, random() % 64][random() as usize % 3];
            let _ = pages.view().write(at, &value);
        }
        let step = if random() % 50 == 0 {
            random() as u32
        } else {
            random() as u32 % 8
        };
        let produced: u32 = pages.view().read(0)?;
        pages.view().write(0, &produced.wrapping_add(step))?;
        channel.notify();
        yield_now().await;
        if store.read(&format!("{backend}/state")).await? != b"4" {
            return Ok(());
        }
    }
}

#[test]
fn a_frontend_that_writes_garbage_costs_itself_its_device_and_no_neighbour() {
    let host = host(2);
    for seed in 1..=8 {
        let hostile = guest_with("hostile", &["vdev=xvda, target=memory:1M"]);
        let honest = guest_with("honest", &["vdev=xvda, target=memory:1M"]);
        let hostile = host
            .start(&hostile, async move |guest| {
                scribble(guest, seed * 0x9e37_79b9).await
            })
            .unwrap();
        let honest = host
            .start(&honest, async |guest| {
                write_and_verify(&guest, "xvda", 4).await
            })
            .unwrap();
        honest.wait().unwrap();
        // It ends when its backend has closed.
        hostile.wait().unwrap();
        assert_eq!(host.dom0().mappings(), 1);
    }
}

#[test]
fn what_a_guest_writes_into_its_nodes_closes_its_device_with_the_reason() {
    let host = host(1);
    let bad = [
        ("ring-ref", ""),
        ("ring-ref", "x"),
        ("ring-ref", "4294967296"),
        ("ring-ref", "30000"),
        ("event-channel", "-1"),
        ("event-channel", "4000"),
        ("protocol", "vax-abi"),
    ];
    for (key, value) in bad {
        let config = guest_with("liar", &["vdev=xvda, target=memory:1M"]);
        let running = host.start(&config, async move |guest| {
            let queue = Queue::new(guest.domain(), DomId::ZERO, 1)?;
            let store = guest.store();
            let path = "device/vbd/51712";
            let good = [
                ("ring-ref", queue.ring_refs()[0].to_string()),
                ("event-channel", queue.port().to_string()),
                ("protocol", "x86_64-abi".into()),
            ];
            for (name, good) in good {
                let value = if name == key { value.into() } else { good };
                store.write(&format!("{path}/{name}"), value).await?;
            }
            let backend = String::from_utf8(store.read(&format!("{path}/backend")).await?)?;
            let mut watch = store.watch(&format!("{backend}/state")).await?;
            store.write(&format!("{path}/state"), "3").await?;
            while store.read(&format!("{backend}/state")).await? != b"5" {
                watch.next().await?;
            }
            Ok(())
        });
        running.unwrap().wait().unwrap();
    }
    assert_eq!(host.dom0().mappings(), 1);
}

/// Set for the process that is to be killed: the image that its guest writes.
const IMAGE_OF_THE_VICTIM: &str = "PARAPET_TEST_IMAGE";

#[test]
fn what_was_flushed_survives_the_kill_of_the_process() {
    if let Ok(image) = std::env::var(IMAGE_OF_THE_VICTIM) {
        return flush_and_go_on(&image);
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    std::fs::write(&image, vec![0; 8 << 20]).unwrap();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "what_was_flushed_survives_the_kill_of_the_process",
        ])
        .arg("--nocapture")
        .env(IMAGE_OF_THE_VICTIM, &image)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().ends_with("flushed")),
        "it ended before it flushed"
    );
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success(), "it was over before");
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!(bytes[..4 << 20], pattern(0, 5, 4 << 20));
}

/// Fills the first half of a disk, flushes it, says so, and then writes the second for ever.
fn flush_and_go_on(image: &str) {
    let host = host(2);
    let config = guest_with("victim", &[&format!("vdev=xvda, target={image}")]);
    let running = host.start(&config, async |guest| {
        let disk = guest.disk("xvda").await?;
        disk.write_at(0, &pattern(0, 5, 4 << 20)).await?;
        disk.flush().await?;
        println!("flushed");
        loop {
            disk.write_at(4 << 20, &pattern(1, 6, 1 << 20)).await?;
        }
        #[allow(unreachable_code, reason = "the type of a program that never ends")]
        Ok(())
    });
    running.unwrap().wait().unwrap();
}

/// More pages than stay mapped, and more in one batch than a careless cache would keep apart.
#[test]
fn a_cache_that_is_full_of_mapped_pages_fails_no_request() {
    let host = host(2);
    let config = guest_with("wide", &["vdev=xvda, target=memory:16M"]);
    let running = host.start(&config, async |guest| {
        let disk = guest.disk("xvda").await?;
        let mut buffer = disk.buffer(2000)?;
        let mut random = 12345u64;
        for _ in 0..200 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let first = (random % (2000 - 352)) as usize;
            let range = first * 4096..(first + 352) * 4096;
            let (result, back) = disk.read(0, buffer, range).await;
            result?;
            buffer = back;
        }
        Ok(())
    });
    running.unwrap().wait().unwrap();
    assert_eq!(host.disks()[0].stats.sum().reads.errors.get(), 0);
    assert_eq!(host.dom0().mappings(), 1);
}

#[test]
fn a_disk_that_was_left_is_connected_again() {
    let host = host(2);
    let config = guest_with("again", &["vdev=xvda, target=memory:1M"]);
    let running = host.start(&config, async |guest| {
        for round in 0..20 {
            let disk = guest.disk("xvda").await?;
            let mut before = [0; 512];
            disk.read_at(0, &mut before).await?;
            assert_eq!(
                before, [round; 512],
                "what the connection before has written"
            );
            disk.write_at(0, &[round + 1; 512]).await?;
            drop(disk);
            if round % 2 == 0 {
                continue;
            }
            // Every other time only when both ends have closed.
            let store = guest.store();
            let backend = String::from_utf8(store.read("device/vbd/51712/backend").await?)?;
            let backend = format!("{backend}/state");
            let mut watch = store.watch(&backend).await?;
            while store.read(&backend).await? != b"6" {
                watch.next().await?;
            }
        }
        Ok(())
    });
    running.unwrap().wait().unwrap();
    assert_eq!(host.dom0().mappings(), 1);
}

#[test]
fn an_error_that_is_too_long_for_a_node_is_still_told() {
    let host = host(1);
    for len in [600, 2100, 3900] {
        let path = "/aaaaaaaaa".repeat(len / 10);
        let config = guest_with("long", &[&format!("vdev=xvda, target={path}")]);
        let started = host.start(&config, async |_| Ok(()));
        let error = started.err().unwrap().to_string();
        assert!(error.contains("the disk image /aaaaaaaaa"), "{error}");
    }
    // And domain 0 goes on.
    let config = guest_with("after", &["vdev=xvda, target=memory:1M"]);
    let running = host.start(&config, async |guest| {
        write_and_verify(&guest, "xvda", 2).await
    });
    running.unwrap().wait().unwrap();
}
