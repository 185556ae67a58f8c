//! What a frontend can put into the host's log, which is one for the whole process.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "plain/mod.rs"]
mod plain;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "device/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parapet_xen_sys::io::blkif::{Operation, Status};

static LINES: AtomicU64 = AtomicU64::new(0);

struct Count;

impl Log for Count {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        about.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_frontend_that_connects_again_and_again_does_not_fill_the_log() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let host = world::boot();
    let vbd = host.attach(51712, image.path().to_str().unwrap(), "w");
    host.wait(&vbd, "2");
    image.as_file().set_len(0).unwrap();
    log::set_logger(&Count).unwrap();
    log::set_max_level(LevelFilter::Info);
    let begun = Instant::now();
    for _ in 0..20 {
        let mut front = host.connect(&vbd);
        let segments = front.segments(0..1, 0, 7);
        assert_eq!(front.run(Operation::Read, 0, &segments), Status::ERROR);
        host.set(&vbd.front, "state", "6");
        host.wait(&vbd, "6");
        host.set(&vbd.front, "state", "1");
    }
    // A line a second of each sort: who connects, and what fails.
    let most = 2 * (begun.elapsed().as_secs() + 1);
    let lines = LINES.load(Ordering::Relaxed);
    assert!((1..=most).contains(&lines), "{lines} lines, not {most}");
}
