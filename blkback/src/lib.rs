//! The back half of Xen's paravirtual block device: it serves a guest's disk out of an image.
//!
//! ```text
//!   xenstore                                                  the guest
//!      │ states, keys                                            │ ring · grants · event channel
//!  ┌───▼─────────────────────────────────────────────────────────▼──────────────┐
//!  │ parapet_backend's service: every vbd in the backend's directory            │
//!  │   report      how each fares, for others to look at                        │
//!  │   device    one vbd: opens its image, connects its queues, recovers them   │
//!  │     negotiation   what the two ends tell each other, as data      (pure)   │
//!  │     queue         one ring = one task, which shares nothing                │
//!  │       request       a slot, copied once, becomes a request        (pure)   │
//!  │       grants        the guest's pages, mapped once and kept                │
//!  │       terms         how large the disk is, how fast it may be used   (pure)   │
//!  │       journal       what is in flight, for who comes after a crash         │
//!  │       stats         counted by the queue, read by anybody                  │
//!  └────────┬───────────────────────────────────────────────────────────────────┘
//!           │ jobs: sectors, and leases of the guest's memory
//!        image: raw file or block device (io_uring) · qcow2, NBD (threads) · memory · null
//! ```
//!
//! A read walks down like this: the queue copies a slot out of the ring, checks the copy, finds
//! the pages under the request's grant references among those that it keeps mapped, and hands the
//! image a job that owns them. The image puts it into io_uring, straight into the guest's pages;
//! all jobs of a batch go to the kernel with one system call. Completions become responses, all
//! responses of a batch one publication, and at most one notification.
//!
//! What the frontend does wrong costs the frontend: a request that makes no sense is answered
//! with an error, a ring that makes no sense closes the device. What the host does wrong is an
//! error to the request that met it, and a line in the log.
#![forbid(unsafe_code)]

mod budget;
pub mod device;
pub mod grants;
pub mod image;
pub mod journal;
pub mod negotiation;
pub mod queue;
pub mod report;
pub mod request;
pub mod service;
pub mod stats;
pub mod terms;

pub use parapet_backend::limit;
