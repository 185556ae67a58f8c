//! A whole queue of blkback, against a frontend that is nothing but bytes.

use std::sync::Arc;
use std::sync::mpsc;

use futures_channel::oneshot;
use parapet_blkback::grants::PERSISTENT_PAGES;
use parapet_blkback::image::{Access as Use, MemoryImage};
use parapet_blkback::limit::Limit;
use parapet_blkback::queue::{ImageOf, Queue, QueueSetup};
use parapet_blkback::request::{Layout, X86_32, X86_64};
use parapet_blkback::stats::QueueStats;
use parapet_blkback::terms::Terms;
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Access, Backend};
use parapet_ring::{Front, Own, Peer};
use parapet_xen_sys::GrantRef;

/// A queue on a ring that bytes drive: the first chooses the slots' layout, whether grants are
/// persistent, and whether the frontend also writes anywhere into its ring, which none in its right
/// mind does. One that does not gets exactly one answer to each request, of the id that it gave.
/// Memory that was not granted, or not to be written, stays as it was whatever happens, and in the
/// end nothing is mapped.
pub fn block_queue(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else {
        return;
    };
    match flags & 1 {
        0 => drive::<X86_64, 112, 16>(flags, data),
        _ => drive::<X86_32, 108, 12>(flags, data),
    }
}

/// Pages granted to be written; pages granted to be read; pages not granted at all.
const PAGES: [usize; 3] = [6, 1, 1];
/// What is in every page at first, so that it can be told which were written to.
const PATTERN: u8 = 0xa7;
/// Sectors of the disk.
const SECTORS: u64 = 64;

/// The guest's half of the world.
struct Guest<const SLOT: usize, const RESPONSE: usize> {
    ring: Front<Own<loopback::Pages>, [u8; SLOT], [u8; RESPONSE]>,
    ring_memory: loopback::Pages,
    channel: loopback::Channel,
    pages: [loopback::Pages; 3],
    /// What a request may name: good and bad.
    refs: Vec<GrantRef>,
    next_id: u64,
    /// Ids without an answer.
    asked: Vec<u64>,
}

fn drive<L, const SLOT: usize, const RESPONSE: usize>(flags: u8, data: &[u8])
where
    L: Layout<Slot = [u8; SLOT]>,
{
    let config = Config {
        pcpus: 1,
        ..Config::default()
    };
    let hypervisor = Hypervisor::new(config).expect("the host has a thread");
    let domain = || {
        let created = hypervisor.create(DomainConfig::default());
        created.expect("the host has memory")
    };
    let (back, front) = (domain(), domain());
    let pages = PAGES.map(|count| {
        let pages = front.allocate(count).expect("a few pages");
        let fill = vec![PATTERN; count * PAGE_SIZE];
        pages.view().write_bytes(0, &fill).expect("all of them");
        pages
    });
    let grant = |pages, access| {
        let granted = front.grant(pages, back.domid(), access);
        granted.expect("the grant table has room")
    };
    let [written, read, _] = &pages;
    let grants = [
        grant(written, Access::ReadWrite),
        grant(read, Access::ReadOnly),
    ];
    let ring_memory = front.allocate(1).expect("a page");
    let ring = Front::new(Own(ring_memory.clone())).expect("a page is a ring");
    let ring_grant = grant(&ring_memory, Access::ReadWrite);
    let channel = front.alloc_unbound(back.domid()).expect("a port");

    let image = MemoryImage::new(SECTORS, Use::ReadWrite).expect("a little memory");
    let image: Arc<ImageOf<Domain>> = Arc::new(image);
    let persistent = flags & 2 != 0;
    let mapped = back.map(front.domid(), ring_grant.refs(), Access::ReadWrite);
    let queue = Queue::<Domain, L>::new(QueueSetup {
        place: back.clone(),
        peer: front.domid(),
        ring: Peer::new(mapped.expect("a page that is granted"))
            .ok()
            .expect("to be written"),
        channel: back.bind(front.domid(), channel.port()).expect("our port"),
        discard: image.discard(),
        terms: Arc::new(Terms::new(SECTORS)),
        image,
        persistent: if persistent { PERSISTENT_PAGES } else { 0 },
        poll: Default::default(),
        stats: Arc::new(QueueStats::default()),
        complaints: Limit::new("a fuzzer"),
    });
    let queue = queue.expect("the ring has slots");
    let (stop, outcome) = start(&back, queue);

    let bad = [GrantRef(0), GrantRef(9999), GrantRef(u32::MAX)];
    let wild = flags & 4 != 0;
    // A disk that is read into the ring breaks that as well as anybody could.
    let good = grants.iter().chain(wild.then_some(&ring_grant));
    let mut guest = Guest::<SLOT, RESPONSE> {
        ring,
        ring_memory,
        channel,
        refs: good
            .flat_map(|grant| grant.refs())
            .chain(&bad)
            .copied()
            .collect(),
        pages,
        next_id: 0,
        asked: Vec::new(),
    };
    let mut data = data.iter().copied();
    while let Some(step) = data.next() {
        guest.step(step, &mut data, wild);
    }
    if !wild {
        guest.publish();
        guest.hear();
    }
    drop(stop);
    let outcome = outcome.recv().expect("the queue did not panic");
    assert!(wild || outcome, "a frontend that broke nothing is cut off");
    let [_, read, ungranted] = &guest.pages;
    for pages in [read, ungranted] {
        let mut bytes = vec![0; pages.view().len()];
        pages.view().read_bytes(0, &mut bytes).expect("all of them");
        assert!(bytes.iter().all(|byte| *byte == PATTERN));
    }
    assert_eq!(back.mappings(), 0);
}

/// Runs a queue: dropping the sender stops it, and the receiver hears whether it ended well.
fn start<P: Backend, L: Layout>(
    place: &P,
    queue: Queue<P, L>,
) -> (oneshot::Sender<()>, mpsc::Receiver<bool>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let (ended, outcome) = mpsc::channel();
    place.spawn(async move {
        let ended_well = queue.run(async { _ = stopped.await }).await.is_ok();
        // The fuzzer may have panicked.
        let _ = ended.send(ended_well);
    });
    (stop, outcome)
}

impl<const SLOT: usize, const RESPONSE: usize> Guest<SLOT, RESPONSE> {
    /// Where the id is, after which come the sector and then what depends on the operation.
    const ID: usize = if SLOT == 112 { 8 } else { 4 };
    const SECTOR: usize = Self::ID + 8;
    const BODY: usize = Self::ID + 16;

    fn step(&mut self, step: u8, data: &mut impl Iterator<Item = u8>, wild: bool) {
        match step % 8 {
            0..=3 => {
                let slot = self.slot(step >> 3, data);
                if self.ring.push(&slot).is_ok() {
                    self.asked.push(self.next_id);
                    self.next_id += 1;
                }
            }
            4 => {
                self.publish();
                if !wild {
                    self.hear();
                }
            }
            // An array of segments, in a page that may well be used for something else too.
            5 => {
                let page = usize::from(step >> 3) % PAGES[0];
                for segment in 0..usize::from(data.next().unwrap_or(0)) {
                    let segment = (segment * 8, self.segment(data));
                    let at = page * PAGE_SIZE + segment.0;
                    let [written, ..] = &self.pages;
                    let put = written.view().write_bytes(at, &segment.1);
                    put.expect("256 segments fit a page");
                }
            }
            6 if wild => {
                let at = usize::from(data.next().unwrap_or(0));
                // Mostly the indices, which come first.
                let at = if at < 128 { at % 16 } else { at * 16 };
                let byte = [data.next().unwrap_or(0)];
                let put = self.ring_memory.view().write_bytes(at, &byte);
                put.expect("256 times 16 bytes are a page");
            }
            _ => self.channel.notify(),
        }
    }

    /// A request: mostly one that makes sense.
    fn slot(&self, operation: u8, data: &mut impl Iterator<Item = u8>) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let mut byte = || data.next().unwrap_or(0);
        let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
        let (operation, count, sector) = (operation % 8, byte(), byte());
        // Segments, or the operation of an indirect request, or the flag of a discard.
        put(0, &[operation, count % 13]);
        put(Self::ID, &self.next_id.to_le_bytes());
        let sector = match sector {
            255 => u64::MAX,
            254 => 1 << 55,
            sector => u64::from(sector) % (SECTORS + 8),
        };
        put(Self::SECTOR, &sector.to_le_bytes());
        match operation {
            5 => {
                put(1, &[count % 2]);
                let sectors = match byte() {
                    255 => u64::MAX,
                    sectors => u64::from(sectors) % 32,
                };
                put(Self::BODY, &sectors.to_le_bytes());
            }
            6 => {
                put(1, &[count % 3]);
                let segments = u16::from(byte()) + u16::from(count >> 6);
                put(2, &segments.to_le_bytes());
                for page in 0..8 {
                    let gref = self.gref(byte());
                    put(Self::BODY + 4 + 4 * page, &gref.0.to_le_bytes());
                }
            }
            _ => {
                for segment in 0..usize::from(count % 13).min(11) {
                    let bytes = self.segment(data);
                    let at = Self::BODY + 8 * segment;
                    slot[at..at + 8].copy_from_slice(&bytes);
                }
            }
        }
        slot
    }

    fn gref(&self, byte: u8) -> GrantRef {
        self.refs[usize::from(byte) % self.refs.len()]
    }

    fn segment(&self, data: &mut impl Iterator<Item = u8>) -> [u8; 8] {
        let mut byte = || data.next().unwrap_or(0);
        let gref = self.gref(byte()).0.to_le_bytes();
        let [first, last] = match byte() {
            odd @ 240.. => [odd, byte()],
            sectors => [
                (sectors & 7).min(sectors >> 3 & 7),
                (sectors & 7).max(sectors >> 3 & 7),
            ],
        };
        [gref[0], gref[1], gref[2], gref[3], first, last, 0, 0]
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            self.channel.notify();
        }
    }

    /// Waits for the answer to everything.
    fn hear(&mut self) {
        while !self.asked.is_empty() {
            match self.ring.take().expect("the backend breaks no ring") {
                Some(answer) => {
                    let id = answer.first_chunk().map(|id| u64::from_le_bytes(*id));
                    let at = self.asked.iter().position(|asked| Some(*asked) == id);
                    self.asked
                        .swap_remove(at.expect("an id that was asked, once"));
                }
                None if self.ring.arm().expect("the backend breaks no ring") => {}
                None => block_on(self.channel.wait()),
            }
        }
    }
}
