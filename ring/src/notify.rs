//! When to notify: the event-index protocol, and nothing else.
//!
//! A ring has two directions, requests and responses, and they obey the same rules. In each, a
//! *producer* makes entries and says how far it has come in the producer index; a *consumer* takes
//! them and says in the event index which entry it wants to be woken for.
//!
//! ```text
//!   publish                                arm (before going to sleep)
//!   ───────                                ───
//!   entries written                        nothing left to take
//!   producer index := new   (release)      event index := next + 1
//!   full barrier                           full barrier
//!   event index read                       producer index read once more (acquire)
//!   notify if old < event <= new           sleep if it has not moved
//! ```
//!
//! Each side writes its own index before it reads the other's, with a full barrier between the
//! two. So of a publication and an arming at the same moment at least one sees the other: either
//! the producer reads the new event index and notifies, or the consumer reads the new producer
//! index and stays awake. Without either barrier both may miss, and a consumer sleeps on a ring
//! that is not empty, for ever.
//!
//! This module is generic over [`Word`] so that the very code that runs in a driver runs under
//! loom (`tests/loom.rs`), which tries every order in which two threads can execute it and shows
//! that no wake-up is lost, and that one is as soon as a barrier is left out.
//!
//! Source: `xen/include/public/io/ring.h`, the comment on notification hold-off and the
//! `RING_PUSH_*_AND_CHECK_NOTIFY` and `RING_FINAL_CHECK_FOR_*` macros.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use crate::Violation;

/// A 32-bit index in shared memory, and the full barrier that goes with it.
pub trait Word {
    /// Reads the index.
    fn load(&self, order: Ordering) -> u32;

    /// Writes the index.
    fn store(&self, value: u32, order: Ordering);

    /// Orders everything before it against everything after it, a write before a read included
    /// (Xen's `xen_mb`).
    fn full_barrier();
}

impl Word for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }

    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }

    #[inline]
    fn full_barrier() {
        fence(Ordering::SeqCst);
    }
}

/// The two shared words that speak for one direction of a ring.
#[derive(Debug)]
pub struct Direction<'a, W> {
    /// What the header calls its producer index, for messages.
    pub name: &'static str,
    /// How many entries the producer has published since the ring began, modulo 2^32.
    pub producer: &'a W,
    /// The count at which the consumer wants to be woken.
    pub event: &'a W,
}

/// The producer's private half of a direction.
#[derive(Debug)]
pub struct Producer {
    next: u32,
    published: u32,
}

impl Producer {
    /// A producer that has made, and published, `index` entries.
    pub const fn starting_at(index: u32) -> Self {
        Producer {
            next: index,
            published: index,
        }
    }

    /// The index of the entry that will be made next.
    #[inline]
    pub const fn next(&self) -> u32 {
        self.next
    }

    /// The index of the first entry that the consumer has not been told of.
    #[inline]
    pub const fn published(&self) -> u32 {
        self.published
    }

    /// Counts one more entry, which is in its slot by now.
    #[inline]
    pub const fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// Lets the consumer see all entries made so far, and says whether it must be notified.
    ///
    /// The count published before is our own record and not the shared word, which the peer could
    /// have changed.
    #[inline]
    pub fn publish<W: Word>(&mut self, direction: &Direction<'_, W>) -> bool {
        let (old, new) = (self.published, self.next);
        if old == new {
            return false;
        }
        self.published = new;
        direction.producer.store(new, Ordering::Release);
        W::full_barrier();
        let event = direction.event.load(Ordering::Relaxed);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }
}

/// The consumer's private half of a direction.
#[derive(Debug)]
pub struct Consumer {
    next: u32,
    /// How far the producer was when we last looked; bounded then, and trusted since.
    seen: u32,
    violation: Option<Violation>,
}

impl Consumer {
    /// A consumer that has taken `index` entries.
    pub const fn starting_at(index: u32) -> Self {
        Consumer {
            next: index,
            seen: index,
            violation: None,
        }
    }

    /// The index of the entry that will be taken next.
    #[inline]
    pub const fn next(&self) -> u32 {
        self.next
    }

    /// How many entries were there when last looked for and are not yet taken.
    #[inline]
    pub const fn unread(&self) -> u32 {
        self.seen.wrapping_sub(self.next)
    }

    /// Takes an entry that has been seen: its index, if there is one.
    #[inline]
    pub fn advance(&mut self) -> Option<u32> {
        if self.next == self.seen {
            return None;
        }
        let index = self.next;
        self.next = index.wrapping_add(1);
        Some(index)
    }

    /// Reads the producer index, which can be no more than `room` ahead of us, and says how many
    /// entries are there to take.
    ///
    /// # Errors
    /// The index went back or too far. From then on that is the answer to every call, and the
    /// entries seen before but not yet taken are withdrawn.
    pub fn look<W: Word>(
        &mut self,
        direction: &Direction<'_, W>,
        room: u32,
    ) -> Result<u32, Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        let value = direction.producer.load(Ordering::Acquire);
        let most = self.next.wrapping_add(room);
        if value.wrapping_sub(self.seen) > most.wrapping_sub(self.seen) {
            let violation = Violation::Index {
                name: direction.name,
                value,
                least: self.seen,
                most,
            };
            self.seen = self.next;
            self.violation = Some(violation);
            return Err(violation);
        }
        self.seen = value;
        Ok(self.unread())
    }

    /// Asks to be notified as soon as `count` entries are there to take. True: they are there
    /// already, and there may be no notification; do not sleep.
    ///
    /// `count` is brought into 1 to `room`, since more than `room` cannot come.
    ///
    /// # Errors
    /// As [`Consumer::look`].
    pub fn arm<W: Word>(
        &mut self,
        direction: &Direction<'_, W>,
        room: u32,
        count: u32,
    ) -> Result<bool, Violation> {
        let count = count.min(room).max(1);
        if self.unread() >= count || self.look(direction, room)? >= count {
            return Ok(true);
        }
        let event = self.next.wrapping_add(count);
        direction.event.store(event, Ordering::Relaxed);
        W::full_barrier();
        Ok(self.look(direction, room)? >= count)
    }
}
