//! A vbd that nobody troubles.

use std::fs::File;
use std::path::Path;

use parapet_blkback::image::Access;
use parapet_blkback::negotiation::Protocol;
use parapet_blkback::report::{Connection, Disk, Stage};
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Grant;
use parapet_xen_sys::io::blkif::{DiscardFlags, Operation, Status};

use crate::world::{boot, works};

#[test]
fn a_vbd_is_offered_connected_closed_and_removed() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    for (key, value) in [
        ("sectors", "2048"),
        ("sector-size", "512"),
        ("info", "0"),
        ("feature-flush-cache", "1"),
        ("feature-persistent", "1"),
        ("feature-barrier", "1"),
        ("feature-max-indirect-segments", "256"),
        ("feature-discard", "1"),
        ("discard-granularity", "512"),
        ("discard-alignment", "0"),
        ("discard-secure", "0"),
        ("multi-queue-max-queues", "4"),
    ] {
        assert_eq!(host.get(&vbd.back, key), value, "{key}");
    }
    works(&mut front);
    assert_eq!(
        host.report(&vbd).about.stats.sum().writes.operations.get(),
        1
    );
    assert!(host.report(&vbd).is_alive());

    host.detach(&vbd);
    works(&mut front);
    host.set(&vbd.front, "state", "5");
    host.wait(&vbd, "5");
    // A frontend that is closing may have something to write yet.
    works(&mut front);
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    assert_eq!(host.guest.grants_in_use(), 0);
    front.grant.end().unwrap();
    front.ring_grant.end().unwrap();
}

#[test]
fn discard_is_offered_only_if_the_toolstack_the_mode_and_the_image_allow_it() {
    let host = boot();
    for (number, params, mode, enabled) in [
        (1, "memory:1M", "w", "0"),
        (2, "memory:1M", "r", "1"),
        (3, "null:1M", "w", "1"),
    ] {
        let more = [("discard-enable", enabled)];
        let vbd = host.attach_with(number, params, mode, &more);
        let mut front = host.connect(&vbd);
        assert_eq!(host.get(&vbd.back, "feature-discard"), "0");
        assert!(!host.exists(&format!("{}/discard-granularity", vbd.back)));
        let status = front.discard(DiscardFlags::empty(), 0, 8);
        assert_eq!(status, Status::EOPNOTSUPP);
    }
}

#[test]
fn a_frontend_may_close_and_come_back_to_the_same_bytes() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    works(&mut front);
    host.set(&vbd.front, "state", "5");
    host.wait(&vbd, "5");
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    drop(front);

    host.set(&vbd.front, "state", "1");
    let mut front = host.connect(&vbd);
    let segments = front.segments(3..4, 0, 7);
    assert_eq!(front.run(Operation::Read, 8, &segments), Status::OKAY);
    assert!(front.page(3).iter().all(|&byte| byte == 0x5a));
    assert_eq!(
        host.report(&vbd).about.stats.sum().reads.operations.get(),
        2,
        "since the device was made"
    );
}

#[test]
fn a_disk_made_again_under_the_same_number_is_served_again() {
    let host = boot();
    for round in 1..=3u64 {
        let vbd = host.attach(51712, &format!("memory:{round}M"), "w");
        let mut front = host.connect(&vbd);
        assert_eq!(host.get(&vbd.back, "sectors"), (round * 2048).to_string());
        works(&mut front);
        block_on(host.store.remove(&vbd.front)).unwrap();
        host.wait(&vbd, "6");
        block_on(host.store.remove(&vbd.back)).unwrap();
    }
}

#[test]
fn an_image_that_cannot_be_used_closes_the_device_with_the_reason() {
    let host = boot();
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("odd.img");
    File::create(&odd).unwrap().set_len(1000).unwrap();
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    for (number, params, mode) in [
        (1, name(&odd), "w"),
        (2, name(&folder.path().join("none.img")), "r"),
        (3, name(folder.path()), "w"),
        (4, "null:1000".into(), "w"),
        (5, "memory:1M".into(), "x"),
    ] {
        let vbd = host.attach(number, &params, mode);
        host.wait(&vbd, "5");
        let reason = host.get(&vbd.error(), "error");
        let names = if number == 5 { "mode" } else { params.as_str() };
        assert!(reason.contains(names), "{reason}");
        assert!(!reason.contains('\n'), "{reason}");
        host.set(&vbd.front, "state", "6");
        host.wait(&vbd, "6");
    }
}

#[test]
fn two_disks_on_one_image_cannot_both_write_it() {
    let host = boot();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let path = image.path().to_str().unwrap();
    let first = host.attach(51712, path, "w");
    host.wait(&first, "2");
    let second = host.attach(51728, path, "w");
    host.wait(&second, "5");
    let mut front = host.connect(&first);
    works(&mut front);
}

#[test]
fn a_report_says_what_a_disk_is_and_how_it_was_used() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    host.wait(&vbd, "2");
    assert_eq!(host.report(&vbd).stage, Stage::Waiting);
    let mut front = host.connect(&vbd);
    let report = host.report(&vbd);
    assert_eq!(report.stage, Stage::Connected);
    let disk = Disk {
        image: "memory:1M".into(),
        access: Access::ReadWrite,
        sectors: 2048,
    };
    assert_eq!(report.about.disk, Some(disk));
    let connection = Connection {
        protocol: Protocol::X86_64,
        queues: 1,
        ring_pages: 1,
        persistent: true,
    };
    assert_eq!(report.about.connection, Some(connection));

    works(&mut front);
    assert_eq!(report.about.stats.sum().persistent_pages.get(), 2);
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    assert_eq!(report.about.stats.sum().persistent_pages.get(), 0);
    host.set(&vbd.front, "state", "1");
    host.connect(&vbd);
    assert_eq!(host.report(&vbd).connections, 2);
    host.destroy(&vbd);
    block_on(host.reports.ended(vbd.key));
    let report = host.report(&vbd);
    assert_eq!((report.stage, report.error), (Stage::Ended, None));
}

#[test]
fn what_is_counted_is_what_the_guest_asked_for() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut front = host.connect(&vbd);
    for sector in 0..7 {
        let segments = front.segments(0..1, 0, 7);
        assert_eq!(front.run(Operation::Write, sector, &segments), Status::OKAY);
    }
    for sector in 0..5 {
        // Three pages of three sectors each.
        let segments = front.segments(0..3, 2, 4);
        assert_eq!(front.run(Operation::Read, sector, &segments), Status::OKAY);
    }
    for _ in 0..3 {
        assert_eq!(front.run(Operation::FlushDiskcache, 0, &[]), Status::OKAY);
    }
    // Beyond the end of the disk.
    let segments = front.segments(0..1, 0, 7);
    assert_eq!(front.run(Operation::Read, 2048, &segments), Status::ERROR);

    let stats = host.report(&vbd).about.stats.sum();
    for (kind, operations, sectors) in [
        (&stats.writes, 7, 7 * 8),
        (&stats.reads, 5, 5 * 9),
        (&stats.flushes, 3, 0),
    ] {
        assert_eq!(kind.operations.get(), operations);
        assert_eq!(kind.bytes.get(), sectors * 512);
        assert_eq!(kind.errors.get(), 0);
    }
    assert_eq!(stats.refused.get(), 1);
    let line = "5 reads (23040 bytes), 7 writes (28672 bytes), 3 flushes, \
                0 discards (0 bytes), 0 errors, 1 refused";
    assert_eq!(stats.to_string(), line);
}
