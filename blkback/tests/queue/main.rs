//! A queue against a frontend that is no more than a ring: honest, and not.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod hostile;
#[path = "../plain/mod.rs"]
mod plain;

use std::fs::File;
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_channel::oneshot;
use parapet_blkback::grants::{Buffer, PERSISTENT_PAGES};
use parapet_blkback::image::{
    Access as Use, Completion, FileImage, Image, ImageQueue, Job, Limits, MemoryImage, NullImage,
    Operation as Does, SECTOR_SIZE, Sectors, Submitted,
};
use parapet_blkback::limit::Limit;
use parapet_blkback::negotiation::Rates;
use parapet_blkback::queue::{ImageOf, Queue, QueueError, QueueSetup};
use parapet_blkback::request::{X86_32, X86_64};
use parapet_blkback::stats::QueueStats;
use parapet_blkback::terms::{Rate, Terms};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Channel, Events, Grant, Grants, Identity, Memory, Pages};
use parapet_ring::Peer;
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::blkif::{DiscardFlags, Operation, Segment, Status, x86_64};

use plain::{Plain, Wire};

/// The frontend, and the queue that serves it.
struct Guest<W: Wire> {
    plain: Plain<W>,
    stats: Arc<QueueStats>,
    terms: Arc<Terms>,
    stop: Option<oneshot::Sender<()>>,
    outcome: oneshot::Receiver<Result<(), QueueError>>,
    dom0: Domain,
    guest: Domain,
    _hypervisor: Hypervisor,
}

impl<W: Wire> Deref for Guest<W> {
    type Target = Plain<W>;

    fn deref(&self) -> &Plain<W> {
        &self.plain
    }
}

impl<W: Wire> DerefMut for Guest<W> {
    fn deref_mut(&mut self) -> &mut Plain<W> {
        &mut self.plain
    }
}

/// A guest with `PAGES` granted pages and a queue on `image`.
fn boot<W: Wire>(image: Arc<ImageOf<Domain>>, persistent: bool) -> Guest<W> {
    boot_polling(image, persistent, Duration::ZERO)
}

/// One whose queue looks for requests that long before it sleeps.
fn boot_polling<W: Wire>(
    image: Arc<ImageOf<Domain>>,
    persistent: bool,
    poll: Duration,
) -> Guest<W> {
    let hypervisor = Hypervisor::new(loopback::Config::default()).unwrap();
    let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
    let guest = hypervisor.create(DomainConfig::default()).unwrap();
    let plain = Plain::new(&guest, dom0.domid());
    let stats = Arc::new(QueueStats::default());
    let terms = Arc::new(Terms::new(image.sectors()));
    let mapped = dom0
        .map(guest.domid(), plain.ring_grant.refs(), Access::ReadWrite)
        .unwrap();
    let queue = Queue::<Domain, W>::new(QueueSetup {
        place: dom0.clone(),
        peer: guest.domid(),
        ring: Peer::new(mapped).ok().unwrap(),
        channel: dom0.bind(guest.domid(), plain.channel.port()).unwrap(),
        discard: image.discard(),
        terms: Arc::clone(&terms),
        image,
        persistent: if persistent { PERSISTENT_PAGES } else { 0 },
        poll,
        stats: Arc::clone(&stats),
        complaints: Limit::new("the guest"),
    })
    .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (done, outcome) = oneshot::channel();
    dom0.run(|_| async move {
        let stop = async {
            let _ = stopped.await;
        };
        let _ = done.send(queue.run(stop).await);
    });
    Guest {
        plain,
        stats,
        terms,
        stop: Some(stop),
        outcome,
        dom0,
        guest,
        _hypervisor: hypervisor,
    }
}

impl<W: Wire> Guest<W> {
    fn stop(mut self) -> Result<(), QueueError> {
        drop(self.stop.take());
        block_on(&mut self.outcome).unwrap()
    }
}

fn memory(sectors: u64) -> Arc<ImageOf<Domain>> {
    Arc::new(MemoryImage::new(sectors, Use::ReadWrite).unwrap())
}

fn file(sectors: usize, access: Use) -> (Arc<ImageOf<Domain>>, File) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file()
        .set_len((sectors * SECTOR_SIZE) as u64)
        .unwrap();
    let image = FileImage::open(file.path(), access).unwrap();
    (Arc::new(image), file.into_file())
}

fn writes_and_reads_back<W: Wire>(persistent: bool) {
    let (image, file) = file(4096, Use::ReadWrite);
    let mut guest = boot::<W>(image, persistent);
    for page in 0..11 {
        guest.fill(page, page as u8 + 1);
    }
    let all = guest.segments(0..11, 0, 7);
    assert_eq!(guest.run(Operation::Write, 1000, &all), Status::OKAY);
    assert_eq!(guest.run(Operation::FlushDiskcache, 0, &[]), Status::OKAY);
    let mut on_disk = vec![0; 11 * PAGE_SIZE];
    file.read_exact_at(&mut on_disk, 1000 * SECTOR_SIZE as u64)
        .unwrap();
    for (page, bytes) in on_disk.chunks(PAGE_SIZE).enumerate() {
        assert!(bytes.iter().all(|&byte| byte == page as u8 + 1));
    }
    // One sector, into the middle of a page; the rest of the page stays.
    let one = guest.segments(20..21, 3, 3);
    guest.fill(20, 0xee);
    assert_eq!(guest.run(Operation::Read, 1008, &one), Status::OKAY);
    let page = guest.page(20);
    let (before, rest) = page.split_at(3 * SECTOR_SIZE);
    let (sector, after) = rest.split_at(SECTOR_SIZE);
    assert!(sector.iter().all(|&byte| byte == 2));
    assert!(before.iter().chain(after).all(|&byte| byte == 0xee));

    assert_eq!(guest.stats.writes.operations.get(), 1);
    assert_eq!(guest.stats.writes.bytes.get(), 11 * 4096);
    assert_eq!(guest.stats.reads.bytes.get(), 512);
    assert_eq!(guest.stats.flushes.operations.get(), 1);
    let kept = if persistent { 12 } else { 0 };
    assert_eq!(guest.dom0.mappings(), kept + 1, "and the ring");
    guest.stop().unwrap();
}

#[test]
fn what_is_written_is_on_the_disk_and_is_read_back() {
    writes_and_reads_back::<X86_64>(true);
}

#[test]
fn a_frontend_without_persistent_grants_is_served_and_nothing_stays_mapped() {
    writes_and_reads_back::<X86_64>(false);
}

#[test]
fn a_frontend_of_the_other_layout_is_served() {
    writes_and_reads_back::<X86_32>(true);
}

fn reads_and_writes_indirectly<W: Wire>(persistent: bool) {
    let (image, file) = file(4096, Use::ReadWrite);
    let mut guest = boot::<W>(image, persistent);
    // 256 pieces of a sector each, of 32 pages, in an order of their own.
    let order = (0..256).map(|at| (at % 32, (at / 32) as u8));
    let segments: Vec<_> = order
        .flat_map(|(page, sector)| guest.segments(page..page + 1, sector, sector))
        .collect();
    for page in 0..32 {
        guest.fill(page, page as u8 + 1);
    }
    let status = guest.run_indirect(Operation::Write, 100, &segments, 40);
    assert_eq!(status, Status::OKAY);
    let mut on_disk = vec![0; 256 * SECTOR_SIZE];
    file.read_exact_at(&mut on_disk, 100 * SECTOR_SIZE as u64)
        .unwrap();
    for (at, sector) in on_disk.chunks(SECTOR_SIZE).enumerate() {
        let expected = (at % 32) as u8 + 1;
        assert!(sector.iter().all(|&byte| byte == expected), "{at}");
    }
    for page in 0..32 {
        guest.fill(page, 0);
    }
    let status = guest.run_indirect(Operation::Read, 100, &segments, 41);
    assert_eq!(status, Status::OKAY);
    for page in 0..32 {
        assert!(guest.page(page).iter().all(|&byte| byte == page as u8 + 1));
    }
    let stats = &guest.stats;
    let (reads, writes) = (&stats.reads, &stats.writes);
    assert_eq!((reads.operations.get(), reads.bytes.get()), (1, 256 * 512));
    assert_eq!(
        (writes.operations.get(), writes.bytes.get()),
        (1, 256 * 512)
    );
    let kept = if persistent { 34 } else { 0 };
    assert_eq!(guest.dom0.mappings(), kept + 1, "and the ring");
    guest.stop().unwrap();
}

#[test]
fn an_indirect_request_of_all_segments_is_carried_out_in_their_order() {
    reads_and_writes_indirectly::<X86_64>(true);
    reads_and_writes_indirectly::<X86_64>(false);
    reads_and_writes_indirectly::<X86_32>(true);
}

#[test]
fn what_is_discarded_reads_as_zeroes_and_is_counted_as_its_own_kind() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let none = DiscardFlags::empty();
    let segments = guest.segments(0..1, 0, 7);
    guest.fill(0, 7);
    assert_eq!(guest.run(Operation::Write, 8, &segments), Status::OKAY);
    assert_eq!(guest.discard(none, 9, 6), Status::OKAY);
    assert_eq!(guest.discard(none, 0, 0), Status::OKAY);
    assert_eq!(guest.run(Operation::Read, 8, &segments), Status::OKAY);
    let page = guest.page(0);
    assert!(page[512..7 * 512].iter().all(|&byte| byte == 0));
    assert_eq!((page[511], page[7 * 512]), (7, 7));

    assert_eq!(
        guest.discard(DiscardFlags::SECURE, 0, 8),
        Status::EOPNOTSUPP
    );
    for (first, count) in [(4096, 1), (0, 4097), (u64::MAX, 2), (8, u64::MAX)] {
        assert_eq!(guest.discard(none, first, count), Status::ERROR);
    }
    let kind = &guest.stats.discards;
    assert_eq!((kind.operations.get(), kind.bytes.get()), (2, 6 * 512));
    assert_eq!(guest.stats.refused.get(), 5);
    guest.stop().unwrap();

    let mut guest = boot::<X86_64>(Arc::new(NullImage::new(4096)), true);
    assert_eq!(guest.discard(none, 0, 8), Status::EOPNOTSUPP);
    guest.stop().unwrap();
}

#[test]
fn a_disk_with_a_rate_is_served_no_faster_and_nobody_spins_for_it() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let segments = guest.segments(0..1, 0, 7);
    guest.terms.set_rates(&Rates {
        operations: Some(Rate::new(500, Some(1))),
        bytes: None,
    });
    let begun = std::time::Instant::now();
    for id in 0..20 {
        guest.push(Operation::Write, id, 0, &segments);
    }
    guest.publish();
    for id in 0..20 {
        assert_eq!(guest.reply(), (id, Status::OKAY));
    }
    // The first goes at once, each of the others two milliseconds after the one before it.
    assert!(begun.elapsed() >= Duration::from_millis(38));
    let (throttled, sleeps) = (&guest.stats.throttled, &guest.stats.sleeps);
    assert!((1..=40).contains(&throttled.get()), "{}", throttled.get());
    assert!(sleeps.get() <= 100, "{}", sleeps.get());

    // One that waits for ages is let go when the limit is.
    guest.terms.set_rates(&Rates {
        operations: None,
        bytes: Some(Rate::new(1, None)),
    });
    assert_eq!(guest.run(Operation::Write, 0, &segments), Status::OKAY);
    guest.push(Operation::Write, 7, 0, &segments);
    guest.publish();
    let_it_see(&guest);
    assert!(guest.ring.take().unwrap().is_none());
    guest.terms.set_rates(&Rates::default());
    assert_eq!(guest.reply(), (7, Status::OKAY));
    guest.stop().unwrap();
}

#[test]
fn a_full_ring_of_requests_is_answered_with_few_notifications() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let slots = guest.ring.slots();
    let rounds = 50;
    for round in 0..rounds {
        for id in 0..slots {
            let page = id as usize;
            guest.fill(page, (round + id) as u8);
            let segments = guest.segments(page..page + 1, 0, 7);
            guest.push(Operation::Write, id.into(), u64::from(id) * 8, &segments);
        }
        guest.publish();
        let mut seen = vec![false; slots as usize];
        for _ in 0..slots {
            let (id, status) = guest.reply();
            assert_eq!(status, Status::OKAY);
            assert!(!std::mem::replace(&mut seen[id as usize], true));
        }
    }
    assert_eq!(
        guest.stats.writes.operations.get(),
        u64::from(slots * rounds)
    );
    assert_eq!(guest.stats.maps.get(), u64::from(slots), "each page once");
    // The frontend asks for an event whenever it sleeps; a batch brings one, not thirty-two.
    assert!(guest.stats.notifications.get() <= u64::from(slots * rounds / 4));
    guest.stop().unwrap();
}

#[test]
fn requests_in_flight_on_a_file_complete_out_of_each_others_way() {
    let (image, file) = file(8 * 4096, Use::ReadOnly);
    for block in 0..4096u64 {
        // The image is open read-only, the file is not.
        file.write_all_at(&block.to_le_bytes(), block * 4096)
            .unwrap();
    }
    let mut guest = boot::<X86_64>(image, true);
    let slots = u64::from(guest.ring.slots());
    let mut expected = vec![None; slots as usize];
    let (mut next, mut done) = (0, 0);
    let mut free: Vec<u64> = (0..slots).collect();
    while done < 2000 {
        while next < 2000
            && let Some(id) = free.pop()
        {
            let block = (next * 2_654_435_761) % 4096;
            expected[id as usize] = Some(block);
            let segments = guest.segments(id as usize..id as usize + 1, 0, 7);
            guest.push(Operation::Read, id, block * 8, &segments);
            next += 1;
        }
        guest.publish();
        let (id, status) = guest.reply();
        assert_eq!(status, Status::OKAY);
        let block = expected[id as usize].take().expect("an id in flight");
        let page = guest.page(id as usize);
        assert_eq!(page[..8], block.to_le_bytes());
        free.push(id);
        done += 1;
    }
    assert_eq!(guest.stats.reads.errors.get(), 0);
    guest.stop().unwrap();
}

#[test]
fn a_queue_that_polls_needs_no_event_and_stops_when_asked() {
    let (image, _file) = file(4096, Use::ReadWrite);
    let mut guest = boot_polling::<X86_64>(image, true, Duration::from_secs(3600));
    let segments = guest.segments(0..1, 0, 7);
    for sector in 0..100 {
        assert_eq!(guest.run(Operation::Write, sector, &segments), Status::OKAY);
    }
    assert_eq!(guest.stats.sleeps.get(), 0);
    guest.stop().unwrap();
}

#[test]
fn a_stop_answers_what_was_taken() {
    let (image, _file) = file(4096, Use::ReadWrite);
    let mut guest = boot::<X86_64>(image, true);
    // One request proves that the queue runs; the rest is under way when it is asked to stop.
    let segments = guest.segments(0..1, 0, 7);
    assert_eq!(guest.run(Operation::Read, 0, &segments), Status::OKAY);
    for id in 0..20 {
        guest.push(Operation::Write, id, id * 8, &segments);
    }
    guest.publish();
    guest.stop.take();
    block_on(&mut guest.outcome).unwrap().unwrap();
    let mut answered = 0;
    while let Some(reply) = guest.ring.take().unwrap() {
        assert_eq!(X86_64::reply(reply).1, Status::OKAY);
        answered += 1;
    }
    // Those that were taken; none of them half.
    assert_eq!(guest.stats.writes.operations.get(), answered);
    assert_eq!(guest.dom0.mappings(), 0);
    assert_eq!(guest.guest.grants_in_use(), 0);
}

#[test]
fn a_grant_can_be_ended_as_soon_as_the_response_is_seen() {
    for persistent in [false, true] {
        let mut guest = boot::<X86_64>(Arc::new(NullImage::new(1 << 20)), persistent);
        for _ in 0..200 {
            let page = guest.guest.allocate(1).unwrap();
            let grant = guest
                .guest
                .grant(&page, guest.dom0.domid(), Access::ReadOnly)
                .unwrap();
            let segment = Segment {
                gref: grant.refs()[0],
                first_sect: 0,
                last_sect: 7,
                ..Default::default()
            };
            let status = guest.run(Operation::Write, 0, &[segment]);
            if persistent {
                // A persistent grant has to allow writing: this frontend lied, and is told so.
                assert_eq!(status, Status::ERROR);
            } else {
                assert_eq!(status, Status::OKAY);
            }
            grant.end().unwrap();
        }
        guest.stop().unwrap();
    }
}

#[test]
fn a_bad_request_is_answered_and_the_next_is_served() {
    let (image, _file) = file(4096, Use::ReadOnly);
    let mut guest = boot::<X86_64>(image, true);
    let good = guest.segments(0..1, 0, 7);
    let mut foreign = good.clone();
    foreign[0].gref = GrantRef(0x7fff_ffff);
    let backwards = guest.segments(0..1, 5, 4);
    let outside = guest.segments(0..1, 0, 8);
    for (operation, sector, segments, status) in [
        (Operation::Read, 4096, &good, Status::ERROR),
        (Operation::Read, u64::MAX, &good, Status::ERROR),
        (Operation::Read, 0, &foreign, Status::ERROR),
        (Operation::Read, 0, &backwards, Status::ERROR),
        (Operation::Read, 0, &outside, Status::ERROR),
        (Operation::Write, 0, &good, Status::ERROR),
        (Operation::Discard, 0, &good, Status::EOPNOTSUPP),
        (Operation::Indirect, 0, &good, Status::ERROR),
        (Operation::Reserved1, 0, &good, Status::EOPNOTSUPP),
    ] {
        assert_eq!(
            guest.run(operation, sector, segments),
            status,
            "{operation:?}"
        );
        assert_eq!(guest.run(Operation::Read, 0, &good), Status::OKAY);
    }
    assert_eq!(guest.stats.refused.get(), 8);
    assert_eq!(guest.stats.reads.errors.get(), 1);
    guest.stop().unwrap();
}

#[test]
fn a_host_that_fails_gives_an_error_and_never_a_success() {
    let (image, file) = file(4096, Use::ReadWrite);
    file.set_len(0).unwrap();
    let mut guest = boot::<X86_64>(image, true);
    let segments = guest.segments(0..2, 0, 7);
    assert_eq!(guest.run(Operation::Read, 0, &segments), Status::ERROR);
    assert_eq!(guest.stats.reads.errors.get(), 1);
    assert_eq!(guest.stats.reads.operations.get(), 0);
    guest.stop().unwrap();
}

#[test]
fn a_ring_index_that_jumps_ends_the_queue_with_a_violation() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let segments = guest.segments(0..1, 0, 7);
    assert_eq!(guest.run(Operation::Write, 0, &segments), Status::OKAY);
    // `req_prod`, the ring's first word.
    guest.ring_memory.view().write(0, &1_000_000u32).unwrap();
    guest.channel.notify();
    match block_on(&mut guest.outcome).unwrap() {
        Err(QueueError::Violation(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(guest.dom0.mappings(), 0, "nothing of the guest is kept");
}

type Lent = Buffer<loopback::Mapping>;

/// An image whose jobs are over when the test says so.
#[derive(Debug)]
struct Slow {
    shared: Arc<Shared>,
    /// What the queue waits for.
    ready: UnixStream,
}

#[derive(Debug, Default)]
struct Shared {
    /// All that was asked for.
    log: Mutex<Vec<Does>>,
    /// Tags and memory of jobs in flight.
    jobs: Mutex<Vec<(u32, Lent)>>,
    open: AtomicBool,
    /// Jobs that were in flight when the queue let go of the image.
    left: AtomicUsize,
}

impl Image<Lent> for Slow {
    fn sectors(&self) -> u64 {
        4096
    }

    fn read_only(&self) -> bool {
        false
    }

    fn physical_sector_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _: Limits) -> io::Result<Box<dyn ImageQueue<Lent>>> {
        Ok(Box::new(Slow {
            shared: Arc::clone(&self.shared),
            ready: self.ready.try_clone()?,
        }))
    }
}

impl ImageQueue<Lent> for Slow {
    fn submit(&mut self, job: Job<Lent>) -> Submitted<Lent> {
        self.shared.log.lock().unwrap().push(job.operation);
        let mut jobs = self.shared.jobs.lock().unwrap();
        jobs.push((job.tag, job.lease));
        Submitted::Started
    }

    fn complete(&mut self) -> Option<Completion<Lent>> {
        if !self.shared.open.load(Ordering::Acquire) {
            return None;
        }
        let (tag, lease) = self.shared.jobs.lock().unwrap().pop()?;
        let result = Ok(());
        Some(Completion { tag, result, lease })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let left = self.shared.jobs.lock().unwrap().len();
        self.shared.left.fetch_add(left, Ordering::Relaxed);
    }
}

impl Shared {
    /// Waits until so many jobs are in flight.
    fn wait(&self, jobs: usize) {
        while self.jobs.lock().unwrap().len() < jobs {
            std::thread::yield_now();
        }
    }
}

/// A guest whose jobs end when the test says so, by writing to the stream.
fn boot_slow(persistent: bool) -> (Guest<X86_64>, Arc<Shared>, UnixStream) {
    let (ready, finger) = UnixStream::pair().unwrap();
    let shared = Arc::new(Shared::default());
    let image = Slow {
        shared: Arc::clone(&shared),
        ready,
    };
    (boot(Arc::new(image), persistent), shared, finger)
}

/// Lets the backend's processor run until a queue there has seen all that there is.
fn let_it_see<W: Wire>(guest: &Guest<W>) {
    for _ in 0..1000 {
        let (ran, runs) = oneshot::channel();
        guest.dom0.run(|_| async move { ran.send(()).unwrap() });
        block_on(runs).unwrap();
    }
}

#[test]
fn a_barrier_comes_after_all_before_it_and_before_all_after_it() {
    for persistent in [false, true] {
        let (mut guest, shared, mut finger) = boot_slow(persistent);
        let segments = guest.segments(0..1, 0, 7);
        for sector in [0, 8] {
            guest.push(Operation::Write, sector, sector, &segments);
        }
        let barrier = guest.segments(1..2, 0, 7);
        guest.push(Operation::WriteBarrier, 16, 16, &barrier);
        for sector in [24, 32] {
            guest.push(Operation::Write, sector, sector, &segments);
        }
        guest.push(Operation::WriteBarrier, 40, 0, &[]);
        guest.publish();
        shared.wait(2);
        // It does not sleep past what comes, nor does it turn round and round meanwhile.
        guest.channel.notify();
        let_it_see(&guest);
        let sleeps = guest.stats.sleeps.get();
        let_it_see(&guest);
        assert_eq!(guest.stats.sleeps.get(), sleeps);
        assert_eq!(shared.log.lock().unwrap().len(), 2, "the barrier waits");
        shared.open.store(true, Ordering::Release);
        finger.write_all(&[1]).unwrap();
        let mut answers: Vec<_> = (0..6).map(|_| guest.reply()).collect();
        assert!(answers.iter().all(|(_, status)| *status == Status::OKAY));
        answers[..2].sort_by_key(|(id, _)| *id);
        answers[3..5].sort_by_key(|(id, _)| *id);
        let ids: Vec<_> = answers.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [0, 8, 16, 24, 32, 40]);
        let write = |first| Does::Write(Sectors { first, count: 8 });
        assert_eq!(
            *shared.log.lock().unwrap(),
            [
                write(0),
                write(8),
                Does::Flush,
                write(16),
                Does::Flush,
                write(24),
                write(32),
                Does::Flush,
            ]
        );
        guest.stop().unwrap();
    }
}

#[test]
fn what_a_flush_brings_is_written_after_what_was_there_is_durable() {
    let (mut guest, shared, _finger) = boot_slow(true);
    shared.open.store(true, Ordering::Release);
    let segments = guest.segments(0..1, 0, 7);
    // As Linux (a preflush) and QEMU: the data may be what says that the rest is there.
    let status = guest.run(Operation::FlushDiskcache, 8, &segments);
    assert_eq!(status, Status::OKAY);
    let write = Does::Write(Sectors { first: 8, count: 8 });
    let log = shared.log.lock().unwrap();
    assert_eq!(*log, [Does::Flush, write, Does::Flush]);
}

/// An image with room for one job, which cannot do what did not fit twice.
#[derive(Debug)]
struct Narrow {
    /// Never ready.
    ready: UnixStream,
    started: Option<(u32, Lent)>,
    refused: u8,
}

impl Image<Lent> for Narrow {
    fn sectors(&self) -> u64 {
        4096
    }

    fn read_only(&self) -> bool {
        false
    }

    fn physical_sector_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _: Limits) -> io::Result<Box<dyn ImageQueue<Lent>>> {
        Ok(Box::new(Narrow {
            ready: self.ready.try_clone()?,
            started: None,
            refused: 0,
        }))
    }
}

impl ImageQueue<Lent> for Narrow {
    fn submit(&mut self, job: Job<Lent>) -> Submitted<Lent> {
        let (tag, lease) = (job.tag, job.lease);
        let result = match (job.operation, self.started.is_some(), self.refused) {
            (Does::Flush, ..) => Ok(()),
            (_, false, 0) => {
                self.started = Some((tag, lease));
                return Submitted::Started;
            }
            (operation, _, 0 | 1) => {
                self.refused += 1;
                return Submitted::Full(Job {
                    tag,
                    operation,
                    lease,
                });
            }
            (..) => Err(io::ErrorKind::Other.into()),
        };
        Submitted::Done(Completion { tag, result, lease })
    }

    fn complete(&mut self) -> Option<Completion<Lent>> {
        if self.refused == 0 {
            return None;
        }
        let (tag, lease) = self.started.take()?;
        let result = Ok(());
        Some(Completion { tag, result, lease })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }
}

#[test]
fn a_barrier_begins_also_when_what_it_waited_for_was_refused_by_the_image() {
    let (ready, _finger) = UnixStream::pair().unwrap();
    let image = Narrow {
        ready,
        started: None,
        refused: 0,
    };
    let mut guest = boot::<X86_64>(Arc::new(image), false);
    let segments = guest.segments(0..1, 0, 7);
    guest.push(Operation::Write, 1, 0, &segments);
    guest.push(Operation::Write, 2, 8, &segments);
    guest.push(Operation::WriteBarrier, 3, 0, &[]);
    guest.publish();
    assert_eq!(guest.reply(), (1, Status::OKAY));
    assert_eq!(guest.reply(), (2, Status::ERROR));
    assert_eq!(guest.reply(), (3, Status::OKAY));
    guest.stop().unwrap();
}

#[test]
fn a_stop_while_a_barrier_waits_answers_it_too() {
    let (mut guest, shared, mut finger) = boot_slow(true);
    let segments = guest.segments(0..1, 0, 7);
    guest.push(Operation::Write, 1, 0, &segments);
    guest.push(Operation::WriteBarrier, 2, 8, &segments);
    guest.push(Operation::Write, 3, 16, &segments);
    guest.publish();
    shared.wait(1);
    // Until it sleeps: what is done before is none of the stop's.
    let_it_see(&guest);
    guest.stop.take();
    shared.open.store(true, Ordering::Release);
    finger.write_all(&[1]).unwrap();
    block_on(&mut guest.outcome).unwrap().unwrap();
    assert_eq!(guest.reply(), (1, Status::OKAY));
    assert_eq!(guest.reply(), (2, Status::OKAY));
    // What comes after is nobody's promise, unless it was taken.
    if let Some(response) = guest.ring.take().unwrap() {
        assert_eq!((response.id, response.status), (3, Status::OKAY));
    }
    assert_eq!(guest.dom0.mappings(), 0);
}

#[test]
fn a_ring_that_is_broken_while_the_image_works_keeps_no_thread_waiting() {
    let (mut guest, shared, mut finger) = boot_slow(true);
    for sector in 0..3 {
        let segments = guest.segments(0..1, 0, 7);
        guest.push(Operation::Write, sector, sector, &segments);
    }
    guest.publish();
    shared.wait(3);
    guest.ring_memory.view().write(0, &1_000_000u32).unwrap();
    guest.channel.notify();
    let_it_see(&guest);
    assert_eq!(guest.outcome.try_recv().unwrap().map(drop), None);
    assert_eq!(shared.left.load(Ordering::Relaxed), 0);
    shared.open.store(true, Ordering::Release);
    finger.write_all(&[1]).unwrap();
    match block_on(&mut guest.outcome).unwrap() {
        Err(QueueError::Violation(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(shared.left.load(Ordering::Relaxed), 0);
    assert_eq!(
        guest.stats.writes.operations.get(),
        0,
        "nothing is answered"
    );
    assert_eq!(guest.dom0.mappings(), 0);
}

#[test]
fn a_storm_of_events_is_put_up_with_and_requests_still_come_through() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let segments = guest.segments(0..1, 0, 7);
    for _ in 0..100 {
        for _ in 0..1000 {
            guest.channel.notify();
        }
        assert_eq!(guest.run(Operation::Write, 0, &segments), Status::OKAY);
    }
    guest.stop().unwrap();
}

#[test]
fn garbage_in_every_slot_is_refused_and_brings_nobody_down() {
    let mut guest = boot::<X86_64>(memory(4096), true);
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u32
    };
    for _ in 0..2000 {
        let words: [u32; 28] = std::array::from_fn(|_| random() >> (random() % 32));
        let request: x86_64::Request = zerocopy::transmute!(words);
        guest.ring.push(&request).unwrap();
        guest.publish();
        let (id, _) = guest.reply();
        assert_eq!(id, request.id);
    }
    let segments = guest.segments(0..1, 0, 7);
    assert_eq!(guest.run(Operation::Read, 0, &segments), Status::OKAY);
    guest.stop().unwrap();
}
