//! The byte rings of xenstore and the console: a page with a stream of bytes each way.
//!
//! ```text
//!             ┌──────────────────────────────┐
//!   guest ──> │ bytes to the host            │ ──> host        one stream, and the other:
//!   guest <── │ bytes to the guest           │ <── host
//!             ├──────────────────────────────┤       ┌ produced by the writer ───┐
//!             │ consumed, produced  to host  │       v                           │
//!             │ consumed, produced  to guest │     ..xxxxxxxxxxxx................
//!             │ words of the page's own      │       ^            free
//!             └──────────────────────────────┘       └ consumed by the reader
//! ```
//!
//! The counts run freely and wrap at 2^32; the byte at count *n* lies at *n* modulo the size of its
//! ring. The two sides use one event channel, and nothing is suppressed: **after each
//! [`ByteRing::read`] and each [`ByteRing::write`] of more than zero bytes the caller notifies**,
//! in the one case because there is room, in the other because there are bytes.
//!
//! Sources: `docs/misc/xenstore-ring.txt`, `xen/include/public/io/xs_wire.h` and `console.h`.

use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use parapet_xen_sys::UnknownValue;
use parapet_xen_sys::io::console::{self, ConsoleInterface};
use parapet_xen_sys::io::xs_wire::{
    self, ConnectionState, DomainInterface, RingError, ServerFeatures,
};

use crate::{RingMemory, TooSmall, Violation};

/// Which end of a byte ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The domain that has the page.
    Guest,
    /// The daemon that serves it: xenstored, the console daemon.
    Host,
}

/// One direction of a page: where its bytes are, how many (a power of two), where its counts are,
/// and what these are called.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    bytes: usize,
    size: u32,
    consumed: (usize, &'static str),
    produced: (usize, &'static str),
}

/// How a page with two streams is laid out: [`Xenstore`] or [`Console`].
pub trait Layout {
    /// How much of the page is used.
    const LEN: usize;
    /// From the guest to the host.
    const TO_HOST: Stream;
    /// From the host to the guest.
    const TO_GUEST: Stream;
}

/// The page shared with xenstored.
#[derive(Debug, Clone, Copy)]
pub enum Xenstore {}

impl Layout for Xenstore {
    const LEN: usize = size_of::<DomainInterface>();
    const TO_HOST: Stream = Stream {
        bytes: offset_of!(DomainInterface, req),
        size: xs_wire::RING_SIZE as u32,
        consumed: (offset_of!(DomainInterface, req_cons), "req_cons"),
        produced: (offset_of!(DomainInterface, req_prod), "req_prod"),
    };
    const TO_GUEST: Stream = Stream {
        bytes: offset_of!(DomainInterface, rsp),
        size: xs_wire::RING_SIZE as u32,
        consumed: (offset_of!(DomainInterface, rsp_cons), "rsp_cons"),
        produced: (offset_of!(DomainInterface, rsp_prod), "rsp_prod"),
    };
}

/// The page shared with the console daemon.
#[derive(Debug, Clone, Copy)]
pub enum Console {}

impl Layout for Console {
    const LEN: usize = size_of::<ConsoleInterface>();
    const TO_HOST: Stream = Stream {
        bytes: offset_of!(ConsoleInterface, output),
        size: console::OUT_SIZE as u32,
        consumed: (offset_of!(ConsoleInterface, out_cons), "out_cons"),
        produced: (offset_of!(ConsoleInterface, out_prod), "out_prod"),
    };
    const TO_GUEST: Stream = Stream {
        bytes: offset_of!(ConsoleInterface, input),
        size: console::IN_SIZE as u32,
        consumed: (offset_of!(ConsoleInterface, in_cons), "in_cons"),
        produced: (offset_of!(ConsoleInterface, in_prod), "in_prod"),
    };
}

/// One end of the page shared with xenstored.
pub type XenstoreRing<M> = ByteRing<M, Xenstore>;

/// One end of the page shared with the console daemon.
pub type ConsoleRing<M> = ByteRing<M, Console>;

/// One end of a page with two byte rings, laid out as `L`: a [`XenstoreRing`] or a
/// [`ConsoleRing`].
///
/// Once the peer has broken a count, every call returns that same violation.
pub struct ByteRing<M, L> {
    memory: M,
    end: End,
    /// Our own counts. The page has copies, for the peer to read; we do not read them back.
    written: u32,
    read: u32,
    violation: Option<Violation>,
    layout: PhantomData<fn() -> L>,
}

impl<M: RingMemory, L: Layout> ByteRing<M, L> {
    /// Takes one end of the page, at the counts that it finds there: neither end may assume that
    /// they begin at zero. Should they contradict each other, the first use of the ring tells.
    ///
    /// # Errors
    /// The memory is too short for the page.
    pub fn attach(memory: M, end: End) -> Result<Self, TooSmall> {
        let len = memory.view().len();
        if len < L::LEN {
            return Err(TooSmall {
                len,
                needed: L::LEN,
            });
        }
        let mut ring = ByteRing {
            memory,
            end,
            written: 0,
            read: 0,
            violation: None,
            layout: PhantomData,
        };
        ring.reload();
        Ok(ring)
    }

    /// Takes the counts from the page anew and forgets a violation: for a guest whose
    /// [`XenstoreRing::request_reconnect`] was granted.
    pub fn reload(&mut self) {
        self.written = self.load(self.outgoing().produced.0);
        self.read = self.load(self.incoming().consumed.0);
        self.violation = None;
    }

    const fn outgoing(&self) -> Stream {
        match self.end {
            End::Guest => L::TO_HOST,
            End::Host => L::TO_GUEST,
        }
    }

    const fn incoming(&self) -> Stream {
        match self.end {
            End::Guest => L::TO_GUEST,
            End::Host => L::TO_HOST,
        }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        self.memory
            .view()
            .atomic_u32(offset)
            .expect("ring memory is aligned and as long as the layout")
    }

    fn load(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// Reads a count of the peer's, which lies from `least` to `least + size`: how far.
    fn peers(
        &mut self,
        word: (usize, &'static str),
        least: u32,
        size: u32,
    ) -> Result<u32, Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        let (offset, name) = word;
        let value = self.load(offset);
        let ahead = value.wrapping_sub(least);
        if ahead > size {
            let violation = Violation::Index {
                name,
                value,
                least,
                most: least.wrapping_add(size),
            };
            self.violation = Some(violation);
            return Err(violation);
        }
        Ok(ahead)
    }

    /// How many bytes there are to read.
    ///
    /// # Errors
    /// The peer claims to have written more than fits.
    pub fn readable(&mut self) -> Result<usize, Violation> {
        let stream = self.incoming();
        let ahead = self.peers(stream.produced, self.read, stream.size)?;
        Ok(ahead as usize)
    }

    /// How many bytes there is room for.
    ///
    /// # Errors
    /// The peer claims to have read what was not written, or to have unread what it had read.
    pub fn writable(&mut self) -> Result<usize, Violation> {
        let stream = self.outgoing();
        let oldest = self.written.wrapping_sub(stream.size);
        let room = self.peers(stream.consumed, oldest, stream.size)?;
        Ok(room as usize)
    }

    /// Writes as many of `bytes` as there is room for, and says how many. If any, notify the peer.
    ///
    /// # Errors
    /// As [`ByteRing::writable`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let stream = self.outgoing();
        let len = self.writable()?.min(bytes.len());
        let (at, before_wrap) = stream.place(self.written, len);
        let (first, rest) = bytes[..len].split_at(before_wrap);
        let view = self.memory.view();
        view.write_bytes(at, first)
            .and_then(|()| view.write_bytes(stream.bytes, rest))
            .expect("a masked count lies inside the ring");
        self.written = self.written.wrapping_add(len as u32);
        self.store(stream.produced.0, self.written);
        Ok(len)
    }

    /// Reads as many bytes into `to` as there are, and says how many. If any, notify the peer.
    ///
    /// # Errors
    /// As [`ByteRing::readable`].
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, Violation> {
        let stream = self.incoming();
        let len = self.readable()?.min(to.len());
        let (at, before_wrap) = stream.place(self.read, len);
        let (first, rest) = to[..len].split_at_mut(before_wrap);
        let view = self.memory.view();
        view.read_bytes(at, first)
            .and_then(|()| view.read_bytes(stream.bytes, rest))
            .expect("a masked count lies inside the ring");
        self.read = self.read.wrapping_add(len as u32);
        self.store(stream.consumed.0, self.read);
        Ok(len)
    }

    /// Gives the memory back, as it is.
    pub fn into_memory(self) -> M {
        self.memory
    }
}

impl Stream {
    /// Where the byte at `count` lies in the page, and how many of the `len` bytes from there on
    /// lie before the ring begins again.
    const fn place(&self, count: u32, len: usize) -> (usize, usize) {
        let start = count & (self.size - 1);
        let to_end = (self.size - start) as usize;
        let before_wrap = if len < to_end { len } else { to_end };
        (self.bytes + start as usize, before_wrap)
    }
}

impl<M: RingMemory> XenstoreRing<M> {
    /// What the server can do. It writes this, and before all else; bits never go away.
    pub fn features(&self) -> ServerFeatures {
        ServerFeatures::from_bits_retain(self.load(offset_of!(DomainInterface, server_features)))
    }

    /// Says what we, the server, can do.
    pub fn advertise(&mut self, features: ServerFeatures) {
        let offset = offset_of!(DomainInterface, server_features);
        self.store(offset, features.bits());
    }

    /// Whether the guest wants a fresh start; valid where [`ServerFeatures::RECONNECTION`] is
    /// among the features.
    ///
    /// # Errors
    /// The word has a value that means nothing.
    pub fn connection(&self) -> Result<ConnectionState, UnknownValue> {
        self.load(offset_of!(DomainInterface, connection))
            .try_into()
    }

    fn set_connection(&mut self, state: ConnectionState) {
        self.store(offset_of!(DomainInterface, connection), state.into());
    }

    /// Asks, as the guest, for a fresh start. Notify the server, leave the rings alone until
    /// [`XenstoreRing::connection`] is [`ConnectionState::Connected`], then
    /// [`ByteRing::reload`].
    pub fn request_reconnect(&mut self) {
        self.set_connection(ConnectionState::Reconnect);
    }

    /// Grants, as the server, a fresh start: empties both rings, which ends a violation, and says
    /// that the guest is connected. Notify it then.
    pub fn reset(&mut self) {
        for stream in [Xenstore::TO_HOST, Xenstore::TO_GUEST] {
            self.store(stream.consumed.0, 0);
            self.store(stream.produced.0, 0);
        }
        self.written = 0;
        self.read = 0;
        self.violation = None;
        self.set_error(RingError::None);
        self.set_connection(ConnectionState::Connected);
    }

    /// Why the server gave up on the ring: the value of a [`RingError`], or of one that is newer
    /// than this code. Valid where [`ServerFeatures::ERROR`] is among the features.
    pub fn error(&self) -> u32 {
        self.load(offset_of!(DomainInterface, error))
    }

    /// Says, as the server, why it gave up on the ring.
    pub fn set_error(&mut self, error: RingError) {
        self.store(offset_of!(DomainInterface, error), error.into());
    }
}

impl<M: RingMemory> ConsoleRing<M> {
    /// Whether somebody serves the console.
    ///
    /// # Errors
    /// The byte has a value that means nothing.
    pub fn connection(&self) -> Result<console::ConnectionState, UnknownValue> {
        self.connection_byte().load(Ordering::Acquire).try_into()
    }

    /// Says, as the daemon (or the toolstack before it), whether somebody serves the console.
    pub fn set_connection(&mut self, state: console::ConnectionState) {
        self.connection_byte()
            .store(state.into(), Ordering::Release);
    }

    fn connection_byte(&self) -> &core::sync::atomic::AtomicU8 {
        self.memory
            .view()
            .atomic_u8(offset_of!(ConsoleInterface, connection))
            .expect("ring memory is as long as the layout")
    }
}

impl<M, L> fmt::Debug for ByteRing<M, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteRing")
            .field("end", &self.end)
            .field("written", &self.written)
            .field("read", &self.read)
            .field("violation", &self.violation)
            .finish()
    }
}
