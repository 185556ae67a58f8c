//! Load on a disk, to measure it: a closed loop of reads and writes from within a guest.
//!
//! ```text
//!   Load ── run ──> `depth` workers, a buffer each ──> Disk ──> queues ──> its backend
//!                       │ offsets, read or write
//!                       └── latencies, and when ──> Measured ──> text, JSON, a page
//! ```
//!
//! A request is timed from the moment that a worker asks the disk until it has the answer in its
//! hands. A worker that has it asks again at once, so `depth` requests are under way at all times.

pub mod frames;
pub mod net;
mod offsets;
pub mod page;
pub mod vifs;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_channel::mpsc;
use hdrhistogram::Histogram;
use parapet_blkfront::{Buffer, Disk, Error};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Guest, Instant};
use parapet_xen_sys::io::blkif::SECTOR_SIZE;

pub use offsets::{Offsets, Pattern};
use page::{Results, Series};

/// Into how many slices the time is cut, to show how the load went.
pub const SLICES: usize = 60;

/// What is asked of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Where.
    pub pattern: Pattern,
    /// How many of a hundred requests are reads.
    pub reads: u8,
    /// Bytes of a request.
    pub block: u32,
    /// Requests under way at once.
    pub depth: usize,
    /// How long before anything counts: what is mapped once is mapped then.
    pub warm_up: Duration,
    /// How long it counts.
    pub time: Duration,
}

/// What came of requests of one kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// From asking to the answer, in nanoseconds, for each.
    pub latency: Histogram<u64>,
    /// How many ended in each slice of the time.
    pub slices: Vec<u64>,
}

/// What came of a load.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The reads.
    pub reads: Kind,
    /// The writes.
    pub writes: Kind,
    /// How long it was.
    pub time: Duration,
}

impl Kind {
    fn new() -> Result<Self> {
        Ok(Kind {
            // 1 ns to 100 s, to three digits.
            latency: Histogram::new_with_bounds(1, 100_000_000_000, 3)?,
            slices: vec![0; SLICES],
        })
    }

    fn add(&mut self, other: &Kind) -> Result<()> {
        self.latency.add(&other.latency)?;
        for (ours, more) in self.slices.iter_mut().zip(&other.slices) {
            *ours += more;
        }
        Ok(())
    }

    /// How many there were in a second.
    pub fn per_second(&self, time: Duration) -> f64 {
        self.latency.len() as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Measured {
    fn new(time: Duration) -> Result<Self> {
        Ok(Measured {
            reads: Kind::new()?,
            writes: Kind::new()?,
            time,
        })
    }

    /// The same, to be shown.
    pub fn results(&self) -> Results<'_> {
        fn series<'a>(name: &'a str, kind: &'a Kind) -> Series<'a> {
            Series {
                name,
                count: kind.latency.len(),
                latency: &kind.latency,
                slices: &kind.slices,
            }
        }
        Results {
            what: "requests",
            time: self.time,
            series: vec![series("reads", &self.reads), series("writes", &self.writes)],
        }
    }

    fn add(&mut self, other: &Measured) -> Result<()> {
        self.reads.add(&other.reads)?;
        self.writes.add(&other.writes)
    }
}

/// What a worker needs to know.
struct Job<G: Guest> {
    guest: G,
    disk: Disk<G>,
    load: Load,
    /// The number of the next request, of all workers'.
    next: Arc<AtomicU64>,
    begin: Instant,
}

/// Puts `load` on `disk`, whose content is lost where it is written.
///
/// # Errors
/// The disk fails a request, or a block does not fit it.
pub async fn run<G: Guest>(guest: &G, disk: &Disk<G>, load: Load) -> Result<Measured> {
    let info = disk.info();
    ensure!(
        load.block > 0 && load.block.is_multiple_of(info.sector_size),
        "a block of {} bytes is not whole sectors of {}",
        load.block,
        info.sector_size
    );
    ensure!(
        info.bytes().is_some_and(|bytes| bytes >= load.block.into()),
        "the disk is smaller than a block of {} bytes",
        load.block
    );
    let next = Arc::new(AtomicU64::new(0));
    // None of them begins before all of them could.
    let begin = guest.now().after(load.warm_up);
    let (results, mut finished) = mpsc::unbounded();
    for _ in 0..load.depth {
        let pages = (load.block as usize).div_ceil(PAGE_SIZE);
        let buffer = disk.buffer(pages)?;
        let job = Job {
            guest: guest.clone(),
            disk: disk.clone(),
            load,
            next: Arc::clone(&next),
            begin,
        };
        let results = results.clone();
        guest.spawn(async move {
            // Who does not listen any more has seen another fail.
            let _ = results.unbounded_send(job.work(buffer).await);
        });
    }
    drop(results);
    let mut all = Measured::new(load.time)?;
    for _ in 0..load.depth {
        let worker = finished.recv().await.context("a worker is lost")?;
        all.add(&worker?)?;
    }
    Ok(all)
}

impl<G: Guest> Job<G> {
    async fn work(self, mut buffer: Buffer<G>) -> Result<Measured> {
        let load = self.load;
        let mut measured = Measured::new(load.time)?;
        let offsets = Offsets::new(load.pattern, self.disk.info().bytes(), load.block);
        let end = self.begin.after(load.time);
        let mut asked = self.guest.now();
        while asked < end {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let reads = offsets::is_read(number, load.reads);
            let sector = offsets.of(number) / SECTOR_SIZE as u64;
            let range = ..load.block as usize;
            let result: Result<(), Error>;
            (result, buffer) = match reads {
                true => self.disk.read(sector, buffer, range).await,
                false => self.disk.write(sector, buffer, range).await,
            };
            result?;
            let answered = self.guest.now();
            if self.begin <= asked && answered < end {
                let kind = match reads {
                    true => &mut measured.reads,
                    false => &mut measured.writes,
                };
                let nanos = u64::try_from(answered.since(asked).as_nanos()).unwrap_or(u64::MAX);
                kind.latency.saturating_record(nanos);
                let at = answered.since(self.begin).as_nanos() * SLICES as u128;
                let slice = at / load.time.as_nanos().max(1);
                if let Some(slice) = kind.slices.get_mut(slice as usize) {
                    *slice += 1;
                }
            }
            asked = answered;
        }
        Ok(measured)
    }
}
