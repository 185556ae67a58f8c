//! One queue's part of a journal: how it is written, store by store.

use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use parapet_hypervisor::host::FileMemory;
use parapet_hypervisor::memory::View;

/// Bytes of a slot, in the larger of the layouts.
pub const SLOT: usize = 112;

/// Bytes before the entries.
pub(super) const HEAD: usize = 128;
/// Bytes of an entry: two cache lines.
pub(super) const ENTRY: usize = 128;

/// Where in the head lie how many responses the frontend is about to be told of, and how many it
/// has been.
pub(super) const INTENT: usize = 0;
pub(super) const DONE: usize = 8;

/// Where in an entry lies which response is its request's, the request's number, and its slot.
pub(super) const ANSWER: usize = 0;
pub(super) const NUMBER: usize = 8;
pub(super) const CONTENT: usize = 16;

/// In place of a response's number: there is none yet.
pub(super) const NONE: u64 = u64::MAX;

/// Requests and responses are counted with 64 bits, of which the lower 32 are the ring's index: so
/// that an entry that was not used for a week is not taken for one of today. They begin here, and
/// not at zero, so that memory that is all zero is that of entries which are free.
pub(super) const FIRST: u64 = 1 << 32;

/// Bytes that the log of a queue of `slots` slots takes.
pub const fn log_len(slots: u32) -> usize {
    HEAD + slots as usize * ENTRY
}

/// Where a log is kept. What is stored can be cut off after any store, and never in one.
pub trait Memory {
    /// Stores a word, after all that was stored before, and before all that is stored later.
    fn set(&self, at: usize, word: u64);

    /// Stores bytes, in any order, after all that was [`set`](Memory::set) before.
    fn fill(&self, at: usize, bytes: &[u8]);

    /// The word that is there.
    fn word(&self, at: usize) -> u64;

    /// Copies what is there.
    fn copy(&self, at: usize, to: &mut [u8]);
}

/// Part of a journal's file.
#[derive(Debug, Clone)]
pub struct Part {
    file: Arc<FileMemory>,
    first: usize,
    slots: u32,
}

impl Part {
    /// Room for a log of `slots` slots from `first` on, if the file has so much.
    pub(super) fn new(file: &Arc<FileMemory>, first: usize, slots: u32) -> Option<Self> {
        file.view().slice(first, log_len(slots)).ok()?;
        Some(Part {
            file: Arc::clone(file),
            first,
            slots,
        })
    }

    /// The slots of the log that it has room for.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    #[inline]
    fn view(&self) -> View<'_> {
        self.file
            .view()
            .slice(self.first, log_len(self.slots))
            .expect("seen to when it was made")
    }
}

/// A crash ends this process, and with it the order of what it did: whatever stands before the
/// last instruction that was carried out has happened, for whoever looks later. So it is only the
/// compiler that has to keep the order, and no fence of the processor's is needed.
impl Memory for Part {
    #[inline]
    fn set(&self, at: usize, word: u64) {
        compiler_fence(Ordering::SeqCst);
        if let Ok(place) = self.view().atomic_u64(at) {
            place.store(word, Ordering::Release);
        }
        compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    fn fill(&self, at: usize, bytes: &[u8]) {
        // Inside, as `at` is.
        let _ = self.view().write_bytes(at, bytes);
    }

    fn word(&self, at: usize) -> u64 {
        let place = self.view().atomic_u64(at);
        place.map_or(0, |place| place.load(Ordering::Acquire))
    }

    fn copy(&self, at: usize, to: &mut [u8]) {
        // Inside, as `at` is.
        let _ = self.view().read_bytes(at, to);
    }
}

/// A queue's log: of each request that was taken and whose answer the frontend may not know of.
///
/// Entries go by the queue's tags. One may be used again once the frontend has been told of its
/// answer, which is later than that it was answered: see [`Tags`](super::Tags).
#[derive(Debug)]
pub struct Log<M> {
    memory: M,
    slots: u32,
    /// How many requests were taken.
    taken: u64,
    /// How many were answered.
    answered: u64,
}

impl<M: Memory> Log<M> {
    /// Begins the log of a ring of which `index` requests were taken and answered before. Nobody
    /// goes by it before it is finished: this is no place to crash at.
    pub fn begin(memory: M, slots: u32, index: u32) -> Self {
        let count = FIRST + u64::from(index);
        for tag in 0..slots {
            memory.set(entry(tag) + ANSWER, 0);
        }
        memory.set(INTENT, count);
        memory.set(DONE, count);
        Log {
            memory,
            slots,
            taken: count,
            answered: count,
        }
    }

    /// A log that goes on.
    pub(super) fn go_on(memory: M, slots: u32, taken: u64, answered: u64) -> Self {
        Log {
            memory,
            slots,
            taken,
            answered,
        }
    }

    /// Takes note of the next request, before anything of it is begun and before any answer can
    /// take the place of its slot.
    ///
    /// While its body is written the entry is still what it was, an answered request's; one store
    /// makes it the new one's.
    #[inline]
    pub fn take(&mut self, tag: u32, slot: &[u8]) {
        let Some(entry) = self.entry(tag) else { return };
        self.memory.fill(entry + NUMBER, &self.taken.to_le_bytes());
        self.memory
            .fill(entry + CONTENT, slot.get(..SLOT).unwrap_or(slot));
        self.memory.set(entry + ANSWER, NONE);
        self.taken += 1;
    }

    /// Takes note that the next response is to the request of `tag`, before the frontend is told
    /// of it.
    #[inline]
    pub fn answer(&mut self, tag: u32) {
        let Some(entry) = self.entry(tag) else { return };
        self.memory.set(entry + ANSWER, self.answered);
        self.answered += 1;
    }

    /// Tells the frontend of all responses made so far, by `publish`, which moves the shared
    /// index.
    #[inline]
    pub fn publish<R>(&mut self, publish: impl FnOnce() -> R) -> R {
        self.memory.set(INTENT, self.answered);
        let published = publish();
        self.memory.set(DONE, self.answered);
        published
    }

    #[inline]
    fn entry(&self, tag: u32) -> Option<usize> {
        (tag < self.slots).then(|| entry(tag))
    }
}

/// Where an entry begins.
#[inline]
pub(super) const fn entry(tag: u32) -> usize {
    HEAD + tag as usize * ENTRY
}
