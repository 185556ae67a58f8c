//! What changes while a disk is in use: its size, how fast it may be used; and several queues.

use parapet_blkback::image::SECTOR_SIZE;
use parapet_hypervisor::block_on;
use parapet_xen_sys::io::blkif::{Operation, Status};
use parapet_xenstore::client::Watch;

use crate::world::{Host, Vbd, boot, works};

#[test]
fn each_of_several_queues_is_served_and_their_numbers_are_summed() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    let mut fronts = host.connect_queues(&vbd, 4);
    for front in &mut fronts {
        works(front);
    }
    // What one has written another reads.
    let segments = fronts[0].segments(5..6, 0, 7);
    fronts[0].fill(5, 0x77);
    assert_eq!(fronts[0].run(Operation::Write, 64, &segments), Status::OKAY);
    let segments = fronts[3].segments(5..6, 0, 7);
    assert_eq!(fronts[3].run(Operation::Read, 64, &segments), Status::OKAY);
    assert!(fronts[3].page(5).iter().all(|&byte| byte == 0x77));

    let report = host.report(&vbd);
    assert_eq!(report.about.connection.unwrap().queues, 4);
    assert_eq!(report.about.stats.sum().writes.operations.get(), 5);
    let of_each = report.about.stats.queues().iter();
    let of_each: Vec<_> = of_each.map(|queue| queue.reads.operations.get()).collect();
    assert_eq!(of_each, [1, 1, 1, 2]);
    host.destroy(&vbd);
    drop(fronts);
    host.nothing_is_left(&vbd);
}

#[test]
fn one_queue_may_be_chosen_in_the_way_of_those_who_do_not_know_of_more() {
    let host = boot();
    let vbd = host.attach(51712, "memory:1M", "w");
    host.set(&vbd.front, "multi-queue-num-queues", "1");
    let mut front = host.connect(&vbd);
    works(&mut front);
    assert_eq!(host.report(&vbd).about.connection.unwrap().queues, 1);
}

/// How often the backend's `state` is written until its `sectors` are so many: the events of a
/// frontend, which looks at the size whenever its backend says that it is connected.
fn sees_size(host: &Host, vbd: &Vbd, sectors: u64) {
    let path = format!("{}/state", vbd.back);
    let mut watch: Watch = block_on(host.store.watch(&path)).unwrap();
    while host.get(&vbd.back, "sectors") != sectors.to_string() {
        block_on(watch.next()).unwrap();
        assert_eq!(host.get(&vbd.back, "state"), "4");
    }
}

#[test]
fn a_file_that_grows_or_shrinks_is_a_disk_that_does_and_its_frontend_is_told() {
    let host = boot();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let vbd = host.attach(51712, image.path().to_str().unwrap(), "w");
    let mut fronts = host.connect_queues(&vbd, 2);
    let segments = fronts[1].segments(0..1, 0, 7);
    let mut read = |sector| fronts[1].run(Operation::Read, sector, &segments);
    assert_eq!(read(2048), Status::ERROR);
    image.as_file().set_len(2 << 20).unwrap();
    sees_size(&host, &vbd, 4096);
    assert_eq!(read(2048), Status::OKAY);
    assert_eq!(host.report(&vbd).about.disk.unwrap().sectors, 4096);
    image.as_file().set_len(1 << 19).unwrap();
    sees_size(&host, &vbd, 1024);
    assert_eq!(read(1016), Status::OKAY);
    assert_eq!(read(1017), Status::ERROR);
    let stats = host.report(&vbd).about.stats.sum();
    assert_eq!((stats.refused.get(), stats.reads.errors.get()), (2, 0));
}

#[test]
fn an_operator_resizes_a_disk_by_a_key() {
    let host = boot();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let vbd = host.attach(51712, image.path().to_str().unwrap(), "w");
    let mut front = host.connect(&vbd);
    // What it cannot be.
    for wrong in ["0", "1000", "-512", "huge", "18446744073709551616"] {
        host.set(&vbd.back, "resize-to", wrong);
        host.wait_until_gone(&vbd, "resize-to");
        assert!(!host.get(&vbd.back, "resize-error").is_empty());
    }
    assert_eq!(host.get(&vbd.back, "sectors"), "2048");
    host.set(&vbd.back, "resize-to", &(3 << 20).to_string());
    sees_size(&host, &vbd, 3 * 2048);
    assert!(!host.exists(&format!("{}/resize-to", vbd.back)));
    assert!(!host.exists(&format!("{}/resize-error", vbd.back)));
    let len = image.as_file().metadata().unwrap().len();
    assert_eq!(len, 3 << 20);
    let segments = front.segments(0..1, 0, 7);
    let last = (len / SECTOR_SIZE as u64) - 8;
    assert_eq!(front.run(Operation::Write, last, &segments), Status::OKAY);

    let other = host.attach(51728, "memory:1M", "w");
    let mut front = host.connect(&other);
    host.set(&other.back, "resize-to", "2097152");
    host.wait_until_gone(&other, "resize-to");
    assert!(!host.get(&other.back, "resize-error").is_empty());
    works(&mut front);
}

#[test]
fn a_frontend_that_goes_on_writing_does_not_keep_a_disk_from_shrinking() {
    let host = boot();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(2 << 20).unwrap();
    let vbd = host.attach(51712, image.path().to_str().unwrap(), "w");
    let mut front = host.connect(&vbd);
    let segments = front.segments(0..1, 0, 7);
    let len = || image.as_file().metadata().unwrap().len();
    for _ in 0..20 {
        host.set(&vbd.back, "resize-to", &(1 << 20).to_string());
        while len() != 1 << 20 {
            std::thread::yield_now();
        }
        // The backend has not told anybody yet, most likely.
        assert_eq!(front.run(Operation::Write, 4088, &segments), Status::ERROR);
        host.wait_until_gone(&vbd, "resize-to");
        sees_size(&host, &vbd, 2048);
        assert_eq!(len(), 1 << 20);
        host.set(&vbd.back, "resize-to", &(2 << 20).to_string());
        sees_size(&host, &vbd, 4096);
    }
    // One that cannot be resized is as large as before.
    let other = host.attach(51728, "memory:1M", "w");
    let mut front = host.connect(&other);
    host.set(&other.back, "resize-to", "512");
    host.wait_until_gone(&other, "resize-to");
    assert_eq!(front.run(Operation::Write, 2040, &segments), Status::OKAY);
}

#[test]
fn a_frontend_that_connects_after_the_image_has_grown_is_told_so() {
    let host = boot();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let vbd = host.attach(51712, image.path().to_str().unwrap(), "w");
    drop(host.connect(&vbd));
    image.as_file().set_len(2 << 20).unwrap();
    sees_size(&host, &vbd, 4096);
    host.set(&vbd.front, "state", "6");
    host.wait(&vbd, "6");
    host.set(&vbd.front, "state", "1");
    host.wait(&vbd, "2");
    assert_eq!(host.get(&vbd.back, "sectors"), "4096");
    let mut front = host.connect(&vbd);
    works(&mut front);
}

#[test]
fn rates_are_followed_while_the_disk_is_in_use_and_nonsense_changes_nothing() {
    let host = boot();
    let more = [("rate-iops", "1000000"), ("rate-iops-burst", "5000")];
    let vbd = host.attach_with(51712, "memory:1M", "w", &more);
    let mut front = host.connect(&vbd);
    works(&mut front);
    let operations = || {
        let rates = host.report(&vbd).about.rates;
        rates.operations.map(|rate| (rate.per_second, rate.burst))
    };
    assert_eq!(operations(), Some((1_000_000, 5000)));
    host.set(&vbd.back, "rate-iops", "fast");
    while host.report(&vbd).error.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(operations(), Some((1_000_000, 5000)));
    host.set(&vbd.back, "rate-iops", "2000000");
    while operations() != Some((2_000_000, 5000)) {
        std::thread::yield_now();
    }
    host.set(&vbd.back, "rate-iops", "0");
    while operations().is_some() {
        std::thread::yield_now();
    }
    works(&mut front);
}
