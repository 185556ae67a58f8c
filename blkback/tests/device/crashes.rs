//! A service that crashes, and what the next one makes of what it left.

use std::fs;
use std::path::PathBuf;

use parapet_blkback::journal::Journals;
use parapet_blkback::request::X86_64;
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::Process;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Channel, Grant, Pages};
use parapet_xen_sys::io::blkif::{Operation, Status};

use crate::plain::Plain;
use crate::world::{Host, Vbd, boot_without, works};

/// A host, a folder for images and journals, and the backend that serves.
struct Stage {
    host: Host,
    journals: Journals,
    process: Process,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::in_folder(&folder.path().join("journals")).unwrap();
        let mut host = boot_without();
        let process = host.begin(Some(&journals));
        Stage {
            host,
            journals,
            process,
            folder,
        }
    }

    fn image(&self) -> String {
        let path = self.folder.path().join("disk.img");
        if !path.exists() {
            fs::write(&path, vec![0; 1 << 20]).unwrap();
        }
        path.display().to_string()
    }

    fn journal(&self, vbd: &Vbd) -> PathBuf {
        let name = format!("{}-{}.journal", vbd.key.frontend, vbd.key.number);
        self.journals.folder().join(name)
    }

    /// The backend crashes; nothing is left of it but what it wrote.
    fn crash(&self) {
        block_on(self.process.kill());
        assert_eq!(self.host.backend.mappings(), 0);
    }

    fn begin(&mut self) {
        self.process = self.host.begin(Some(&self.journals));
    }

    /// The nodes of both ends, by which a frontend could notice something.
    fn nodes(&self, vbd: &Vbd) -> Vec<(String, String)> {
        let mut nodes = Vec::new();
        for folder in [&vbd.back, &vbd.front] {
            for name in block_on(self.host.store.list(folder)).unwrap() {
                let value = self.host.get(folder, &name);
                nodes.push((format!("{folder}/{name}"), value));
            }
        }
        nodes
    }
}

/// Requests that a frontend makes while nobody is there.
fn ask(front: &mut Plain<X86_64>, ids: std::ops::Range<u64>) {
    for id in ids {
        let page = id as usize % 32;
        front.fill(page, id as u8);
        let segments = front.segments(page..page + 1, 0, 7);
        front.push(Operation::Write, id, 8 * id, &segments);
    }
    front.publish();
}

fn answered(front: &mut Plain<X86_64>, ids: std::ops::Range<u64>) {
    let mut left: Vec<u64> = ids.collect();
    while !left.is_empty() {
        let (id, status) = front.reply();
        assert_eq!(status, Status::OKAY);
        let at = left.iter().position(|known| *known == id);
        left.remove(at.expect("asked once, answered once"));
    }
}

#[test]
fn a_crash_changes_no_node_and_costs_no_request() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    let before = stage.nodes(&vbd);
    // An event that the backend writes a node for would come by this.
    let mut watch = block_on(stage.host.store.watch(&vbd.back)).unwrap();
    block_on(watch.next()).unwrap();
    for round in 0..20 {
        stage.crash();
        ask(&mut front, 0..20);
        stage.begin();
        answered(&mut front, 0..20);
        works(&mut front);
        assert_eq!(stage.nodes(&vbd), before, "round {round}");
    }
    // Ours is the first event there is.
    stage.host.set(&vbd.back, "last", "1");
    let event = block_on(watch.next()).unwrap();
    assert!(event.path.ends_with("/last"), "{}", event.path);
    for id in 1..20u8 {
        let at = usize::from(id) * PAGE_SIZE;
        let bytes = fs::read(&image).unwrap();
        // `works` writes the second page.
        let byte = if id == 1 { 0x5a } else { id };
        assert!(bytes[at..at + PAGE_SIZE].iter().all(|&found| found == byte));
    }
    stage.host.detach(&vbd);
    stage.host.set(&vbd.front, "state", "6");
    stage.host.wait(&vbd, "6");
    block_on(stage.host.reports.ended(vbd.key));
    assert!(!stage.journal(&vbd).exists());
}

#[test]
fn a_crash_while_several_queues_are_busy_is_not_noticed_by_any() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut fronts = stage.host.connect_queues(&vbd, 3);
    for round in 1..=10 {
        for front in &mut fronts {
            ask(front, 0..20);
        }
        // In the middle of them, wherever that is.
        for _ in 0..round * 50 {
            std::thread::yield_now();
        }
        stage.crash();
        stage.begin();
        // All of them, before any sector is looked at: they write the same ones.
        fronts.iter_mut().for_each(|front| answered(front, 0..20));
        fronts.iter_mut().for_each(works);
    }
    assert_eq!(stage.host.report(&vbd).about.connection.unwrap().queues, 3);
}

#[test]
fn what_the_frontend_writes_into_its_nodes_meanwhile_changes_nothing() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    let wild = [
        ("ring-ref", "999"),
        ("event-channel", "7"),
        ("protocol", "x86_32-abi"),
        ("multi-queue-num-queues", "3"),
        ("ring-page-order", "2"),
        ("parapet-journal", "0"),
    ];
    for (key, value) in wild {
        stage.crash();
        stage.host.set(&vbd.front, key, value);
        stage.begin();
        works(&mut front);
    }
    assert_eq!(stage.host.get(&vbd.back, "state"), "4");
}

/// What the frontend has to do to be served again by a backend that has closed.
fn connect_again(stage: &Stage, vbd: &Vbd) {
    stage.host.wait(vbd, "5");
    stage.host.set(&vbd.front, "state", "6");
    stage.host.wait(vbd, "6");
    stage.host.set(&vbd.front, "state", "1");
    let mut front = stage.host.connect(vbd);
    works(&mut front);
}

#[test]
fn indices_that_the_frontend_changes_meanwhile_close_its_device_and_no_other() {
    // `req_prod` and `rsp_prod`, the ring's first and third words.
    for (at, value) in [(0, 0xffff_0000u32), (0, 0), (8, 7), (8, u32::MAX)] {
        let mut stage = Stage::new();
        let image = stage.image();
        let vbd = stage.host.attach(51712, &image, "w");
        let other = stage.host.attach(51728, "null:1G", "w");
        let mut front = stage.host.connect(&vbd);
        let mut honest = stage.host.connect(&other);
        works(&mut front);
        stage.crash();
        front.ring_memory.view().write(at, &value).unwrap();
        ask(&mut honest, 0..10);
        stage.begin();
        answered(&mut honest, 0..10);
        stage.host.wait(&vbd, "5");
        let error = stage.host.get(&vbd.error(), "error");
        let name = if at == 0 { "req_prod" } else { "rsp_prod" };
        assert!(error.contains(name), "{error}");
        drop(front);
        connect_again(&stage, &vbd);
    }
}

#[test]
fn grants_and_ports_that_are_gone_by_then_close_the_device_with_a_reason() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    stage.crash();
    front.ring_grant.end().unwrap();
    drop(front.channel);
    stage.begin();
    stage.host.wait(&vbd, "5");
    let error = stage.host.get(&vbd.error(), "error");
    assert!(error.contains("ring"), "{error}");
    connect_again(&stage, &vbd);
}

#[test]
fn a_journal_that_is_damaged_or_missing_lets_the_frontend_connect_again() {
    let damages: [fn(&mut Vec<u8>); 5] = [
        |bytes| bytes[0] ^= 1,
        |bytes| bytes[40] ^= 1,
        |bytes| bytes.truncate(300),
        |bytes| bytes.clear(),
        // The counts of the log, which is the last of it: one of 32 entries.
        |bytes| {
            let log = bytes.len() - 33 * 128;
            bytes[log + 4] ^= 0x40;
        },
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        let mut stage = Stage::new();
        let image = stage.image();
        let vbd = stage.host.attach(51712, &image, "w");
        let mut front = stage.host.connect(&vbd);
        works(&mut front);
        stage.crash();
        let path = stage.journal(&vbd);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        if at == 0 {
            fs::remove_file(&path).unwrap();
        }
        stage.begin();
        connect_again(&stage, &vbd);
    }
}

#[test]
fn a_journal_of_another_guest_with_the_same_domid_is_not_taken() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    let old = fs::read(stage.journal(&vbd)).unwrap();
    stage.crash();
    // The guest is destroyed while nobody is there, and another gets its domain id.
    stage.host.attach_instead(&vbd, &image, "w");
    stage.host.set(&vbd.front, "state", "4");
    stage.host.set(&vbd.back, "state", "4");
    stage.begin();
    drop(front);
    connect_again(&stage, &vbd);
    // Nor is one that somebody has kept.
    stage.crash();
    fs::write(stage.journal(&vbd), old).unwrap();
    stage.begin();
    connect_again(&stage, &vbd);
}

#[test]
fn a_disk_in_memory_is_not_taken_for_what_it_was() {
    let mut stage = Stage::new();
    let vbd = stage.host.attach(51712, "memory:1M", "w");
    works(&mut stage.host.connect(&vbd));
    assert!(!stage.journal(&vbd).exists());
    stage.crash();
    stage.begin();
    connect_again(&stage, &vbd);
}

#[test]
fn a_device_that_was_closing_goes_on_until_its_frontend_has_closed() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    // The toolstack wants it to go; it is mounted, and stays.
    stage.host.detach(&vbd);
    works(&mut front);
    stage.crash();
    ask(&mut front, 0..20);
    stage.begin();
    answered(&mut front, 0..20);
    assert_eq!(stage.host.get(&vbd.back, "state"), "5");
    stage.host.set(&vbd.front, "state", "6");
    stage.host.wait(&vbd, "6");
    block_on(stage.host.reports.ended(vbd.key));
    assert!(!stage.journal(&vbd).exists());
}

#[test]
fn a_guest_that_is_gone_by_then_is_let_go() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    works(&mut stage.host.connect(&vbd));
    stage.crash();
    block_on(stage.host.store.remove(&vbd.front)).unwrap();
    stage.host.detach(&vbd);
    stage.begin();
    stage.host.wait(&vbd, "6");
    block_on(stage.host.reports.ended(vbd.key));
    assert!(!stage.journal(&vbd).exists());
}

#[test]
fn an_image_that_is_still_open_is_waited_for() {
    use parapet_blkback::image::{Access, FileImage};
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    stage.crash();
    // As by what is left of a process whose last writes are under way.
    let left = FileImage::open(image.as_ref(), Access::ReadWrite).unwrap();
    ask(&mut front, 0..20);
    stage.begin();
    // It is up, and serves others, but not this.
    let other = stage.host.attach(51728, "memory:1M", "w");
    works(&mut stage.host.connect(&other));
    assert!(front.ring.take().unwrap().is_none(), "the image is locked");
    drop(left);
    answered(&mut front, 0..20);
    assert_eq!(stage.host.get(&vbd.back, "state"), "4");
}

#[test]
fn a_backend_that_keeps_no_journal_closes_what_another_left() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    works(&mut stage.host.connect(&vbd));
    stage.crash();
    stage.process = stage.host.begin(None);
    connect_again(&stage, &vbd);
}

#[test]
fn an_image_that_grew_meanwhile_is_told_of_afterwards() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    stage.crash();
    fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    ask(&mut front, 0..20);
    stage.begin();
    answered(&mut front, 0..20);
    stage.host.wait_for(&vbd, "sectors", "4096");
    let segments = front.segments(0..1, 0, 7);
    assert_eq!(front.run(Operation::Read, 4088, &segments), Status::OKAY);
}

#[test]
fn events_that_came_while_nobody_was_there_are_seen() {
    // The frontend sleeps on an answer that was published by one who died before it said so: the
    // next one notifies without being asked.
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    stage.crash();
    while front.channel.take() {}
    stage.begin();
    block_on(front.channel.wait());
}

#[test]
fn a_xenstore_that_fails_is_not_the_end_of_a_connection() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    let mut front = stage.host.connect(&vbd);
    works(&mut front);
    let before = stage.nodes(&vbd);
    stage.crash();
    let (process, stream) = stage.host.begin_over_a_stream(&stage.journals);
    works(&mut front);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    // The service has to end, and so does all that it had begun.
    block_on(process.gone());
    ask(&mut front, 0..20);
    stage.begin();
    answered(&mut front, 0..20);
    works(&mut front);
    assert_eq!(stage.nodes(&vbd), before);
}

#[test]
fn a_journal_is_not_taken_for_that_of_a_later_connection_that_kept_none() {
    let mut stage = Stage::new();
    let image = stage.image();
    let vbd = stage.host.attach(51712, &image, "w");
    works(&mut stage.host.connect(&vbd));
    stage.crash();
    stage.process = stage.host.begin(None);
    connect_again(&stage, &vbd);
    assert!(
        stage.journal(&vbd).exists(),
        "nobody was there to remove it"
    );
    assert!(!stage.host.exists(&format!("{}/parapet-journal", vbd.back)));
    stage.crash();
    stage.begin();
    connect_again(&stage, &vbd);
}
