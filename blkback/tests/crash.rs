//! A queue that is killed again and again, wherever it is, and a frontend that must not notice.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod plain;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_channel::oneshot;
use parapet_blkback::grants::{Buffer, PERSISTENT_PAGES};
use parapet_blkback::image::{
    Access as Use, Completion, FileImage, Image, ImageQueue, Job, Limits, SECTOR_SIZE, Submitted,
};
use parapet_blkback::journal::{Journal, Journals, Keep, Log};
use parapet_blkback::limit::Limit;
use parapet_blkback::negotiation::Rates;
use parapet_blkback::queue::{Queue, QueueError, QueueSetup};
use parapet_blkback::report::Vbd;
use parapet_blkback::request::{X86_32, X86_64};
use parapet_blkback::stats::QueueStats;
use parapet_blkback::terms::{Rate, Terms};
use parapet_hypervisor::block_on;
use parapet_hypervisor::host::transfer;
use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor, Process};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{
    Access, Channel, Events, Grant, Grants, Identity, MapError, Pages, Tasks,
};
use parapet_ring::Peer;
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::blkif::{Operation, Segment, Status};

use zerocopy::IntoBytes;

use plain::{Plain, Wire};

type Lent = Buffer<loopback::Mapping>;
type Disk = Arc<dyn Image<Lent>>;

/// Blocks of a page that the disk has.
const BLOCKS: usize = 48;

/// Numbers that look random.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// An image on a file whose jobs are carried out in no order, some long before they are reported,
/// and some not at all if the queue dies before.
#[derive(Debug)]
struct Shuffled {
    file: Arc<File>,
    seed: AtomicU64,
}

struct ShuffledQueue {
    file: Arc<File>,
    random: Random,
    jobs: Vec<Job<Lent>>,
    done: Vec<Completion<Lent>>,
    /// What we write to, and what the queue waits for.
    ready: (UnixStream, UnixStream),
}

impl Image<Lent> for Shuffled {
    fn sectors(&self) -> u64 {
        (BLOCKS * PAGE_SIZE / SECTOR_SIZE) as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn physical_sector_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _: Limits) -> io::Result<Box<dyn ImageQueue<Lent>>> {
        let ready = UnixStream::pair()?;
        ready.1.set_nonblocking(true)?;
        Ok(Box::new(ShuffledQueue {
            file: Arc::clone(&self.file),
            random: Random(self.seed.fetch_add(0x9e37_79b9, Ordering::Relaxed) | 1),
            jobs: Vec::new(),
            done: Vec::new(),
            ready,
        }))
    }
}

impl ShuffledQueue {
    fn carry_out_one(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let which = self.random.below(self.jobs.len() as u64) as usize;
        let Job {
            tag,
            operation,
            lease,
        } = self.jobs.swap_remove(which);
        let result = transfer(&self.file, operation.into(), &lease);
        self.done.push(Completion { tag, result, lease });
    }
}

impl ImageQueue<Lent> for ShuffledQueue {
    fn submit(&mut self, job: Job<Lent>) -> Submitted<Lent> {
        if self.random.below(4) == 0 {
            return Submitted::Done(Completion {
                tag: job.tag,
                result: transfer(&self.file, job.operation.into(), &job.lease),
                lease: job.lease,
            });
        }
        self.jobs.push(job);
        if self.random.below(3) == 0 {
            self.carry_out_one();
        }
        Submitted::Started
    }

    fn kick(&mut self) -> io::Result<()> {
        (&self.ready.0).write_all(&[1])
    }

    fn complete(&mut self) -> Option<Completion<Lent>> {
        if self.random.below(2) == 0 {
            self.carry_out_one();
        }
        if self.random.below(3) == 0 {
            let some = self.done.len() as u64;
            if some > 0 {
                let which = self.random.below(some) as usize;
                return Some(self.done.swap_remove(which));
            }
        }
        // What is left gets another turn, and another event.
        let mut drained = [0; 64];
        while (&self.ready.1).read(&mut drained).is_ok() {}
        if !self.jobs.is_empty() || !self.done.is_empty() {
            (&self.ready.0).write_all(&[1]).unwrap();
        }
        None
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.1.as_fd())
    }
}

/// Two domains, and what outlives a queue.
struct Stage<W: Wire> {
    plain: Plain<W>,
    back: Domain,
    guest: Domain,
    journals: Journals,
    name: String,
    image: Disk,
    persistent: bool,
    stats: Arc<QueueStats>,
    _folder: tempfile::TempDir,
    _hypervisor: Hypervisor,
}

const VBD: Vbd = Vbd {
    frontend: DomId(1),
    number: 51712,
};

/// What a backend has of the frontend.
struct Lives {
    back: Domain,
    guest: Domain,
    ring: Vec<parapet_xen_sys::GrantRef>,
    port: parapet_xen_sys::Port,
    journals: Journals,
    name: String,
    image: Disk,
    persistent: bool,
    stats: Arc<QueueStats>,
}

impl<W: Wire> Stage<W> {
    fn new(image: Disk, persistent: bool) -> Self {
        let hypervisor = Hypervisor::new(loopback::Config::default()).unwrap();
        let back = hypervisor.create(DomainConfig::default()).unwrap();
        let guest = hypervisor.create(DomainConfig::default()).unwrap();
        let plain = Plain::<W>::new(&guest, back.domid());
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::in_folder(folder.path()).unwrap();
        let slots = plain.ring.slots();
        let made = journals.create(VBD, Vec::new(), vec![slots]).unwrap();
        Stage {
            name: made.header().name.clone(),
            plain,
            back,
            guest,
            journals,
            image,
            persistent,
            stats: Arc::default(),
            _folder: folder,
            _hypervisor: hypervisor,
        }
    }

    fn lives(&self) -> Lives {
        Lives {
            back: self.back.clone(),
            guest: self.guest.clone(),
            ring: self.plain.ring_grant.refs().to_vec(),
            port: self.plain.channel.port(),
            journals: self.journals.clone(),
            name: self.name.clone(),
            image: Arc::clone(&self.image),
            persistent: self.persistent,
            stats: Arc::clone(&self.stats),
        }
    }
}

impl Lives {
    fn journal(&self) -> Journal {
        self.journals.open(VBD, &self.name).unwrap()
    }

    /// A process that takes up the queue as its first task does, and may die at any moment of it.
    fn begin<W: Wire>(&self, keep: Keep, uses: u64) -> Process {
        let process = self.back.process();
        process.kill_after(uses);
        let (domain, place) = (self.guest.domid(), process.clone());
        let (ring, port) = (self.ring.clone(), self.port);
        let image = Arc::clone(&self.image);
        let stats = Arc::clone(&self.stats);
        let persistent = if self.persistent { PERSISTENT_PAGES } else { 0 };
        process.spawn(async move {
            let ring: Result<_, MapError> = place.map(domain, &ring, Access::ReadWrite);
            let queue = Queue::<Process, W>::keeping(
                QueueSetup {
                    peer: domain,
                    ring: Peer::new(ring.unwrap()).ok().unwrap(),
                    channel: place.bind(domain, port).unwrap(),
                    terms: Arc::new(Terms::new(image.sectors())),
                    image,
                    discard: None,
                    persistent,
                    poll: Duration::ZERO,
                    stats,
                    complaints: Limit::new("the guest"),
                    place,
                },
                keep,
            );
            let queue: Result<_, QueueError> = queue;
            let ended = queue.unwrap().run(std::future::pending()).await;
            panic!("a queue that was not asked to has ended: {ended:?}");
        });
        process
    }
}

/// What is asked of a block.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Read {
        block: usize,
        page: usize,
    },
    Write {
        block: usize,
        page: usize,
        version: u64,
    },
    Flush,
}

/// The bytes of a block's version; of version 0, those of a disk that is new.
fn content(block: usize, version: u64) -> Vec<u8> {
    let word = (block as u64 + 1).wrapping_mul(version.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word.to_le_bytes().repeat(PAGE_SIZE / 8)
}

/// Reads and writes that are verified, `requests` of them, as many at once as the ring takes.
fn verified<W: Wire>(plain: &mut Plain<W>, requests: u64, mut random: Random) {
    let slots = u64::from(plain.ring.slots());
    let mut versions = vec![0u64; BLOCKS];
    let mut idle: Vec<usize> = (0..BLOCKS).collect();
    let mut pages: VecDeque<usize> = (0..plain::PAGES).collect();
    let mut asked: HashMap<u64, Asked> = HashMap::new();
    let mut next = 0;
    while next < requests || !asked.is_empty() {
        while next < requests && (asked.len() as u64) < slots && random.below(8) > 0 {
            next += 1;
            let (id, kind) = (next * 1000 + random.below(1000), random.below(16));
            if kind == 0 {
                plain.push(Operation::FlushDiskcache, id, 0, &[]);
                asked.insert(id, Asked::Flush);
                continue;
            }
            let at = random.below(idle.len() as u64) as usize;
            let (block, page) = (idle.swap_remove(at), pages.pop_front().unwrap());
            let sector = (block * PAGE_SIZE / SECTOR_SIZE) as u64;
            let segments: Vec<Segment> = plain.segments(page..page + 1, 0, 7);
            let view = plain.pages.view();
            if kind < 9 {
                let version = versions[block] + 1;
                let bytes = content(block, version);
                view.write_bytes(page * PAGE_SIZE, &bytes).unwrap();
                plain.push(Operation::Write, id, sector, &segments);
                let write = Asked::Write {
                    block,
                    page,
                    version,
                };
                asked.insert(id, write);
            } else {
                plain.fill(page, 0xee);
                plain.push(Operation::Read, id, sector, &segments);
                asked.insert(id, Asked::Read { block, page });
            }
        }
        plain.publish();
        if asked.is_empty() {
            continue;
        }
        let (id, status) = plain.reply();
        assert_eq!(status, Status::OKAY);
        match asked.remove(&id).expect("asked, and not answered before") {
            Asked::Flush => {}
            Asked::Read { block, page } => {
                assert!(
                    plain.page(page) == content(block, versions[block]),
                    "block {block} is not what was written"
                );
                idle.push(block);
                pages.push_back(page);
            }
            Asked::Write {
                block,
                page,
                version,
            } => {
                versions[block] = version;
                // From now on it may hold anything.
                plain.fill(page, 0xdd);
                idle.push(block);
                pages.push_back(page);
            }
        }
    }
}

/// How many lives it took to serve `requests`, when most ended after at most `uses` uses of their
/// place.
fn killed_again_and_again<W: Wire>(
    image: Disk,
    persistent: bool,
    requests: u64,
    uses: u64,
    seed: u64,
) -> u64 {
    let mut stage = Stage::<W>::new(image, persistent);
    let lives = stage.lives();
    let (over, now) = (AtomicBool::new(false), Mutex::new(None::<Process>));
    let mut random = Random(seed | 1);
    let work = random.clone();
    std::thread::scope(|scope| {
        let killing = scope.spawn(|| {
            let mut count = 0;
            loop {
                let part = lives.journal().log(0).unwrap();
                let keep = match count {
                    // Nobody was there before; the ring is at its beginning.
                    0 => Keep::Anew(part),
                    _ => Keep::On(part),
                };
                count += 1;
                let process = {
                    let mut now = now.lock().unwrap();
                    if over.load(Ordering::SeqCst) {
                        return count;
                    }
                    // The first makes its log, which is no place to crash at.
                    let least = if count == 1 { 20 } else { 1 };
                    // One in some is long enough to get somewhere.
                    let most = if random.below(4) == 0 { 200 } else { uses };
                    let process = lives.begin::<W>(keep, least + random.below(most));
                    *now = Some(process.clone());
                    process
                };
                block_on(process.gone());
                if lives.back.shutdown_reason().is_some() {
                    // A task has panicked, and the frontend would wait for ever.
                    std::process::abort();
                }
                assert_eq!(lives.back.mappings(), 0);
            }
        });
        verified(&mut stage.plain, requests, work);
        let last = {
            let now = now.lock().unwrap();
            over.store(true, Ordering::SeqCst);
            now.clone()
        };
        if let Some(last) = last {
            block_on(last.kill());
        }
        killing.join().unwrap()
    })
}

fn file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let len = (BLOCKS * PAGE_SIZE) as u64;
    file.as_file().set_len(len).unwrap();
    file
}

fn shuffled(seed: u64) -> Disk {
    Arc::new(Shuffled {
        file: Arc::new(file().into_file()),
        seed: seed.into(),
    })
}

#[test]
fn kills_in_the_middle_of_out_of_order_answers_are_not_noticed() {
    for seed in 1..=4 {
        let lives = killed_again_and_again::<X86_64>(shuffled(seed), true, 10_000, 60, seed);
        assert!(lives > 10, "{lives} lives");
    }
}

#[test]
fn kills_are_not_noticed_by_a_frontend_without_persistent_grants() {
    for seed in 11..=12 {
        let lives = killed_again_and_again::<X86_64>(shuffled(seed), false, 5000, 60, seed);
        assert!(lives > 10, "{lives} lives");
    }
}

#[test]
fn kills_are_not_noticed_by_a_frontend_of_the_other_layout() {
    let lives = killed_again_and_again::<X86_32>(shuffled(21), true, 5000, 60, 21);
    assert!(lives > 10, "{lives} lives");
}

#[test]
fn a_life_may_end_before_it_has_done_anything() {
    let lives = killed_again_and_again::<X86_64>(shuffled(31), true, 3000, 8, 31);
    assert!(lives > 100, "{lives} lives");
}

#[test]
fn kills_in_the_middle_of_real_input_and_output_are_not_noticed() {
    for (persistent, seed) in [(true, 41), (false, 42)] {
        let file = file();
        let image: Disk = Arc::new(FileImage::open(file.path(), Use::ReadWrite).unwrap());
        let lives = killed_again_and_again::<X86_64>(image, persistent, 10_000, 60, seed);
        assert!(lives > 10, "{lives} lives");
    }
}

#[test]
fn what_another_had_taken_is_answered_at_a_stop_whatever_the_rate_is() {
    let image: Disk = Arc::new(FileImage::open(file().path(), Use::ReadWrite).unwrap());
    let mut stage = Stage::<X86_64>::new(image, true);
    let lives = stage.lives();
    let slots = stage.plain.ring.slots();
    let mut log = Log::begin(lives.journal().log(0).unwrap(), slots, 0);
    let segments = stage.plain.segments(0..1, 0, 7);
    for tag in 0..4 {
        let id = u64::from(tag);
        let request = X86_64::request(Operation::Write as u8, id, id * 8, &segments);
        stage.plain.ring.push(&request).unwrap();
        log.take(tag, request.as_bytes());
    }
    let _ = stage.plain.ring.publish();
    drop(log);
    let terms = Arc::new(Terms::new(lives.image.sectors()));
    terms.set_rates(&Rates {
        operations: Some(Rate::new(1, None)),
        bytes: Some(Rate::new(1, None)),
    });
    let (back, peer) = (lives.back.clone(), lives.guest.domid());
    let ring = back.map(peer, &lives.ring, Access::ReadWrite).unwrap();
    let queue = Queue::<Domain, X86_64>::keeping(
        QueueSetup {
            peer,
            ring: Peer::new(ring).ok().unwrap(),
            channel: back.bind(peer, lives.port).unwrap(),
            terms,
            image: Arc::clone(&lives.image),
            discard: None,
            persistent: PERSISTENT_PAGES,
            poll: Duration::ZERO,
            stats: Arc::clone(&lives.stats),
            complaints: Limit::new("the guest"),
            place: back.clone(),
        },
        Keep::On(lives.journal().log(0).unwrap()),
    );
    let (ended, outcome) = oneshot::channel();
    back.run(|_| async move { drop(ended.send(queue.unwrap().run(std::future::ready(())).await)) });
    block_on(outcome).unwrap().unwrap();
    let mut answers: Vec<_> = (0..4).map(|_| stage.plain.reply()).collect();
    answers.sort_by_key(|(id, _)| *id);
    let all: Vec<_> = (0..4).map(|id| (id, Status::OKAY)).collect();
    assert_eq!(answers, all);
}
