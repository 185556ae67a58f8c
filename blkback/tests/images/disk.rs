//! What every kind of image is tried with.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use parapet_blkback::image::{
    Completion, Image, ImageQueue, Job, Limits, Operation, SECTOR_SIZE, Sectors, Submitted,
};
use parapet_hypervisor::host::{Lease, Page};
use parapet_hypervisor::memory::{ReadOnly, Scratch, View};
use proptest::prelude::*;

/// A run of memory, every sector of it a part of its own, the later half before the former so that
/// neighbours in the lease are not neighbours in memory.
#[derive(Debug)]
pub(crate) struct Memory(pub(crate) Scratch);

impl Memory {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let memory = Memory(Scratch::new(bytes.len()));
        for (part, bytes) in memory.targets().zip(bytes.chunks(SECTOR_SIZE)) {
            part.write_bytes(0, bytes).unwrap();
        }
        memory
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for part in self.sources() {
            let mut bytes = vec![0; part.len()];
            part.read_bytes(0, &mut bytes).unwrap();
            all.extend(bytes);
        }
        all
    }
}

pub(crate) struct Registered(Scratch);

impl Page for Registered {
    fn view(&self) -> View<'_> {
        self.0.view()
    }
}

impl Lease for Memory {
    type Page = Registered;

    fn targets(&self) -> impl Iterator<Item = View<'_>> {
        let view = self.0.view();
        let sectors = view.len() / SECTOR_SIZE;
        (sectors / 2..sectors)
            .chain(0..sectors / 2)
            .map(move |sector| view.slice(sector * SECTOR_SIZE, SECTOR_SIZE).unwrap())
    }

    fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
        self.targets().map(View::read_only)
    }

    fn registered(&self) -> Option<u16> {
        None
    }
}

pub(crate) const LIMITS: Limits = Limits {
    depth: 8,
    segments: 4,
    buffers: 0,
};

pub(crate) type Queue = Box<dyn ImageQueue<Memory>>;

pub(crate) fn open_queue(image: &dyn Image<Memory>) -> Queue {
    image.open_queue(LIMITS).unwrap()
}

/// Submits one job and waits for it.
pub(crate) fn run(queue: &mut Queue, operation: Operation, lease: Memory) -> Completion<Memory> {
    let job = Job {
        tag: 5,
        operation,
        lease,
    };
    match queue.submit(job) {
        Submitted::Done(done) => done,
        Submitted::Full(job) => panic!("no room for {job:?}"),
        Submitted::Started => loop {
            queue.kick().unwrap();
            if let Some(done) = queue.complete() {
                assert_eq!(done.tag, 5);
                return done;
            }
            thread::yield_now();
        },
    }
}

pub(crate) fn read(queue: &mut Queue, sectors: Sectors) -> io::Result<Vec<u8>> {
    let memory = Memory(Scratch::new(sectors.count as usize * SECTOR_SIZE));
    let done = run(queue, Operation::Read(sectors), memory);
    done.result.map(|()| done.lease.bytes())
}

pub(crate) fn write(queue: &mut Queue, first: u64, bytes: &[u8]) -> io::Result<()> {
    let count = (bytes.len() / SECTOR_SIZE) as u64;
    let sectors = Sectors { first, count };
    run(queue, Operation::Write(sectors), Memory::of(bytes)).result
}

pub(crate) fn file_of(bytes: usize, folder: &Path) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(folder).unwrap();
    file.as_file().set_len(bytes as u64).unwrap();
    file
}

pub(crate) const SECTORS: u64 = 64;

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Read(Sectors),
    Write(Sectors, u8),
    Flush,
    Discard(Sectors),
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = (0..SECTORS, 1u64..20).prop_map(|(first, count)| Sectors {
        first,
        count: count.min(SECTORS - first),
    });
    let step = prop_oneof![
        sectors.clone().prop_map(Step::Read),
        (sectors.clone(), any::<u8>()).prop_map(|(sectors, seed)| Step::Write(sectors, seed)),
        Just(Step::Flush),
        sectors.prop_map(Step::Discard),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Two queues of one image take turns; what is read is what the model has.
pub(crate) fn follows_the_model(image: &dyn Image<Memory>, steps: &[Step]) {
    let mut model = vec![0u8; SECTORS as usize * SECTOR_SIZE];
    let mut queues = [open_queue(image), open_queue(image)];
    for (i, step) in steps.iter().enumerate() {
        let queue = &mut queues[i % 2];
        match *step {
            Step::Read(sectors) => {
                let at = sectors.first as usize * SECTOR_SIZE;
                let expected = &model[at..at + sectors.count as usize * SECTOR_SIZE];
                assert_eq!(read(queue, sectors).unwrap(), expected);
            }
            Step::Write(sectors, seed) => {
                let bytes: Vec<u8> = (0..sectors.count as usize * SECTOR_SIZE)
                    .map(|i| (i * 31 / 7) as u8 ^ seed)
                    .collect();
                let at = sectors.first as usize * SECTOR_SIZE;
                model[at..at + bytes.len()].copy_from_slice(&bytes);
                write(queue, sectors.first, &bytes).unwrap();
            }
            Step::Flush => {
                let memory = Memory(Scratch::new(SECTOR_SIZE));
                run(queue, Operation::Flush, memory).result.unwrap();
            }
            Step::Discard(sectors) => {
                let at = sectors.first as usize * SECTOR_SIZE;
                model[at..at + sectors.count as usize * SECTOR_SIZE].fill(0);
                let discard = Operation::Discard {
                    sectors,
                    secure: false,
                };
                let memory = Memory(Scratch::new(SECTOR_SIZE));
                run(queue, discard, memory).result.unwrap();
            }
        }
    }
}

pub(crate) fn discard(queue: &mut Queue, sectors: Sectors) {
    let operation = Operation::Discard {
        sectors,
        secure: false,
    };
    let nothing = Memory(Scratch::new(SECTOR_SIZE));
    run(queue, operation, nothing).result.unwrap();
}

/// Fills an image, forgets its middle, and finds that it takes up less room, and reads as zeroes
/// there and nowhere else.
pub(crate) fn shrinks(image: &dyn Image<Memory>, file: &File) {
    let sectors = image.sectors();
    let offer = image.discard().expect("it forgets");
    assert!(offer.granularity.is_multiple_of(SECTOR_SIZE as u32));
    let mut queue = open_queue(image);
    for first in (0..sectors).step_by(128) {
        write(&mut queue, first, &[7; 128 * SECTOR_SIZE]).unwrap();
    }
    let sync = Memory(Scratch::new(SECTOR_SIZE));
    run(&mut queue, Operation::Flush, sync).result.unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    // Not aligned to anything but sectors: what is forgotten is exactly that.
    let middle = Sectors {
        first: 129,
        count: sectors - 2 * 129,
    };
    discard(&mut queue, middle);
    file.sync_all().unwrap();
    let after = file.metadata().unwrap().blocks();
    assert!(after < before / 2, "{before} blocks, then {after}");
    let edge = Sectors {
        first: 128,
        count: 2,
    };
    let mut expected = [7; 2 * SECTOR_SIZE];
    expected[SECTOR_SIZE..].fill(0);
    assert_eq!(read(&mut queue, edge).unwrap(), expected);
    let edge = Sectors {
        first: sectors - 130,
        count: 2,
    };
    let mut expected = [0; 2 * SECTOR_SIZE];
    expected[SECTOR_SIZE..].fill(7);
    assert_eq!(read(&mut queue, edge).unwrap(), expected);
}
