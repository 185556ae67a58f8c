//! Xen's shared rings: how a frontend and a backend talk over memory that both may write.
//!
//! # The ring
//!
//! A ring is a header of 64 bytes and a power of two of slots, in one page or in several that
//! follow each other without a gap. A slot holds now a request, now a response, and is as long as
//! the longer of the two:
//!
//! ```text
//!             ┌───────────┬───────────┬───────────┬───────────┬──────────────────┐
//!   header    │ req_prod  │ req_event │ rsp_prod  │ rsp_event │ 48 bytes of zero │
//!             └───────────┴───────────┴───────────┴───────────┴──────────────────┘
//!   written by  frontend     backend     backend     frontend
//!
//!             ┌─────┬─────┬─────┬─────┬─────┬─────┬─────┬─────┐
//!   slots     │     │ rsp │ rsp │ rsp │ req │ req │ req │     │
//!             └─────┴─────┴─────┴─────┴─────┴─────┴─────┴─────┘
//!                   ^                 ^           ^     ^
//!                   1 rsp_cons        4 rsp_prod  │     7 req_prod
//!                     (frontend's)      (shared)  │       (shared)
//!                                                 6 req_cons (backend's)
//!
//!     1 to 3   answered, and not yet taken by the frontend
//!     4 and 5  taken by the backend, and not yet answered
//!     6        requested, and not yet taken by the backend
//!     7 and 0  free for the next requests, with the indices 7 and 8
//! ```
//!
//! Four indices run after one another and never overtake: `rsp_cons <= rsp_prod <= req_cons <=
//! req_prod <= rsp_cons + slots`. They count from the beginning of the ring and wrap at 2^32; an
//! index modulo the number of slots is a slot. The two *producer* indices are shared: they say how
//! much there is. The two *consumer* indices are nobody's business but their owner's and are not
//! in the page. A response goes into the next slot whose request was taken, which need not be the
//! slot of the request that it answers: an id in the entries tells which one that is, and ids are
//! the drivers' business.
//!
//! | | [`Front`] | [`Back`] |
//! |---|---|---|
//! | [`push`](Ring::push) | writes a request into the slot of its own next index | a response |
//! | [`publish`](Ring::publish) | moves `req_prod`; says whether to notify | `rsp_prod` |
//! | [`take`](Ring::take) | copies the next response out, once | the next request |
//! | [`arm`](Ring::arm) | moves `rsp_event`; says whether to stay awake | `req_event` |
//!
//! # Notification
//!
//! The two ends have an event channel, and use it as little as they can. Who is about to sleep
//! *arms*: it writes into its event index at which count of the other's producer index it wants to
//! be woken, usually one more than it has taken. Who publishes notifies only if that moves its
//! producer index onto or past the other's event index. So a side that is awake is not disturbed,
//! and of a hundred entries one makes a notification. Both write before they read, with a full
//! barrier in between, so that no wake-up is lost when they do it at the same moment; [`notify`]
//! has the argument, and the code that a model checker has been through.
//!
//! [`Link`] puts a ring and its channel together, to be awaited.
//!
//! # Whom to trust
//!
//! The peer may be malicious and may write anything into any byte of the ring at any moment. An
//! end therefore believes only itself: its own indices live in its own memory and are never read
//! back, an entry is copied out before anybody looks at it, and the two words that are read from
//! the peer are harmless or checked:
//!
//! * its *producer index* can be no less than it was, and no more than there can be entries: for a
//!   frontend the requests it has published, for a backend the slots that do not hold a request it
//!   is working on. Anything else is a [`Violation`]: an error value, never a panic, and the last
//!   word: from then on the ring returns nothing else, and the driver closes the device. The index
//!   is read only when all that was seen before is taken, and so cannot keep an end busy for more
//!   than one turn of the ring.
//! * its *event index* decides whether it is notified, and it hurts only itself with a wrong one.
//!
//! What is *in* the entries is for the driver to check.
//!
//! # The byte rings
//!
//! xenstore and the console use something simpler, a page with a stream of bytes each way:
//! [`bytes`].
//!
//! # Example
//!
//! ```
//! use parapet_hypervisor::memory::{PAGE_SIZE, Scratch};
//! use parapet_ring::{Back, Front, Own};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let page = Scratch::new(PAGE_SIZE);
//! let mut front = Front::<_, [u8; 12], u64>::new(Own(page.clone()))?;
//! let mut back = Back::<_, [u8; 12], u64>::attach(Own(page))?;
//!
//! front.push(b"how are you?")?;
//! assert!(front.publish(), "nobody has looked yet: the backend is to be notified");
//!
//! let question = back.take()?.expect("it was published");
//! assert!(!back.arm()?, "there is no other: the backend may sleep");
//! back.push(&(question.len() as u64))?;
//! assert!(back.publish(), "the frontend is to be notified");
//!
//! assert_eq!(front.take()?, Some(12));
//! assert_eq!(front.take()?, None);
//! # Ok(())
//! # }
//! ```
//!
//! Sources: `xen/include/public/io/ring.h`; XSA-155 (a backend that read entries twice) and XSA-376
//! (frontends that believed their backends).

#![no_std]
#![forbid(unsafe_code)]

mod back;
pub mod bytes;
mod error;
mod front;
mod header;
mod link;
mod memory;
pub mod notify;
mod ring;

pub use back::{Back, Backend};
pub use bytes::{ByteRing, ConsoleRing, End, XenstoreRing};
pub use error::{AttachError, Full, TooSmall, Violation};
pub use front::{Front, Frontend};
pub use link::{BackLink, FrontLink, Link};
pub use memory::{Own, Peer, RingMemory};
pub use ring::{Ring, Side};
