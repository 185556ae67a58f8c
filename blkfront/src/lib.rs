//! blkfront: the front half of Xen's paravirtual block device.
//!
//! ```text
//!   task   task   task   thread                      a unikernel, a benchmark
//!     │      │      │      │                                    │
//!   ┌─┴──────┴──────┴──────┴─┐ Disk    checks every request     │
//!   │ read write discard ... │         against the disk and     │
//!   └─┬──────────────────────┘         cuts it to fit           │
//!     │ messages, no lock      Mailbox                          │
//!   ┌─┴──────────────────────┐                                  │
//!   │ one task a queue       │ Server  owns its Queue alone     │
//!   └─┬──────────────────────┘                                  │
//!   ┌─┴─────────────────────────────────────────────────────────┴──┐
//!   │ Queue      submit · publish · wait · complete                │
//!   │            remembers what is outstanding, by id              │
//!   └─┬────────────────┬──────────────────────┬────────────────────┘
//!     │ slots          │ "look!"              │ data, in place
//!   ring (granted)   event channel          Buffers (granted)
//!  ═══╪════════════════╪══════════════════════╪═════════════════════ another domain
//!                    the backend
//! ```
//!
//! * [`Queue`] is one ring and its event channel: the polling interface, with nothing between the
//!   caller and the slots.
//! * [`Disk`] is a handle that any number of tasks share: `read`, `write` and `flush` on granted
//!   [`Buffer`]s without a copy, `read_at` and `write_at` on any memory with one. A plain thread
//!   uses the same through `parapet_hypervisor::block_on`, or a `BlockingDisk` (feature `std`) as a
//!   stream.
//! * [`Buffer`] is memory that the backend may reach for as long as the buffer lives, so that
//!   nothing is granted on the way of a request.
//! * [`Disk::connect`] is the handshake over xenstore, for as much as a [`Config`] wants and the
//!   backend offers; after that [`Info`] is what the backend says of its disk. A disk survives its
//!   backend ([`Away`]) and says when it changes its size ([`Resizes`]). [`vdev`] has the names of
//!   disks.
//!
//! # Whom to trust
//!
//! Nobody at the other end. An id that is not outstanding, an answer given twice or to another
//! operation, a ring index that jumps, a key in xenstore that makes no sense: each is a value of an
//! error type ([`Violation`], [`ConnectError`]) that ends the device, and everything that waits for it
//! gets an error with the reason. Nothing is read from shared memory but responses, each once, and
//! data, which is as the backend wants it to be in any case.
//!
//! Sources: `xen/include/public/io/blkif.h`; XSA-376 and XSA-405 (responses), XSA-396 (ending
//! grants).

#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(feature = "std")]
mod blocking;
pub mod buffer;
mod config;
mod connect;
mod disk;
mod error;
mod info;
mod life;
mod mailbox;
mod places;
pub mod queue;
mod request;
mod resizes;
mod server;
pub mod vdev;

#[cfg(feature = "std")]
pub use blocking::BlockingDisk;
pub use buffer::{Buffer, BufferError, Pool};
pub use config::{Away, Config};
pub use connect::ConnectError;
pub use disk::Disk;
pub use error::{Change, Error, Gone};
pub use info::{Discard, Info};
pub use queue::{Completion, Failure, MAX_SEGMENTS, Queue, QueueError, SubmitError, Violation};
pub use request::{Direction, Erase, MAX_REQUEST, Unfit};
pub use resizes::Resizes;
