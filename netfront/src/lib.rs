//! netfront: the front half of Xen's paravirtual network device.
//!
//! ```text
//!     task           task        thread, loop      smoltcp
//!   ┌──┴─────────┐ ┌──┴────────────┐
//!   │ Sender     │ │ Receiver      │   one of each a queue: outlive their backend
//!   │ reserve    │ │ try_receive   │
//!   │ try_send   │ │ receive       │               Interface   mac, mtu, carrier, hash
//!   │ send flush │ │ poll_ready    │                   │
//!   └──┬─────────┘ └──┬────────────┘                   │
//!      │ fresh rings when a backend comes: Shared ─────┤ Life    the handshake, away and back
//!   ┌──┴─────────┐ ┌──┴────────────┐ ┌─────────────────┴┐
//!   │ TxRing     │ │ RxRing        │ │ Control          │  hash, static grants
//!   │ 256 pages  │ │ 256 pages     │ │                  │
//!   └──┬─────────┘ └──┬────────────┘ └──┬───────────────┘
//!      │ slots        │ slots           │
//!  ════╪══════════════╪═════════════════╪══════════════════════════════ another domain
//!                      the backend
//! ```
//!
//! * [`Config::connect`] is the handshake over xenstore, for as much as the [`Config`] wants and
//!   the backend offers. Of it come an [`Interface`] and its [`Queue`]s.
//! * A [`Queue`] has two ends that know nothing of each other: a [`Sender`] and a [`Receiver`].
//!   Each can be used by a task (`send`, `receive`), by a loop that polls (`try_send`,
//!   `try_receive`, `flush`, `arm`), or by a plain thread (feature `std`: `send_blocking`,
//!   `receive_blocking`). With the feature `smoltcp` it is a device for a TCP/IP stack.
//! * Nothing is copied but by who wants it: [`Sender::reserve`] gives pages to be filled in place, a
//!   [`RxFrame`] is the pages that the backend has filled. What is left to be done to a frame, its
//!   checksum or its segments, travels beside it as [`Offloads`].
//! * All pages are granted once, and where the backend can it keeps them mapped (static grants of
//!   the control ring); on the way of a frame there is no allocation, no lock and no system call
//!   but the notification, if the backend wants one.
//!
//! A frame out of a loop that sends what it received:
//!
//! ```
//! # use parapet_hypervisor::seam::Guest;
//! # use parapet_netfront::{Gone, Queue};
//! fn turn<G: Guest>(queue: &mut Queue<G>) -> Result<(), Gone> {
//!     let Queue { sender, receiver } = queue;
//!     while let Some(frame) = receiver.try_receive()? {
//!         // No room: the frame is dropped, as networks do.
//!         if let Ok(draft) = sender.reserve(frame.len()) {
//!             let mut bytes = vec![0; frame.len()];
//!             frame.copy_to(0, &mut bytes);
//!             let _ = draft.write(0, &bytes);
//!             let _ = draft.send(frame.offloads());
//!         }
//!     }
//!     sender.flush();
//!     Ok(())
//! }
//! ```
//!
//! # Whom to trust
//!
//! Nobody at the other end. An answer to what was not asked, a frame that reaches past its page or
//! has no end, a ring index that jumps: each is a [`Violation`] that closes the interface, and
//! everybody who uses it gets an error with the reason. Nothing is read from shared memory but
//! slots, each once, and the bytes of frames, which are as the backend wants them to be in any case:
//! who checks them copies them first.
//!
//! Sources: `xen/include/public/io/netif.h`; XSA-155 (double fetches), XSA-376 and XSA-405
//! (responses), XSA-396 (ending grants), XSA-423, XSA-424 and XSA-432 (shapes of packets).

#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod assembly;
#[cfg(feature = "std")]
mod blocking;
mod config;
mod connect;
mod control;
mod error;
mod interface;
mod life;
mod queue;
mod receive;
mod shared;
mod signal;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
mod transmit;

pub use assembly::Hash;
pub use config::{Away, Config, Features};
pub use connect::ConnectError;
pub use control::Hashing;
pub use error::{Change, ControlError, Gone, LONGEST, QueueError, SendError, Unfit, Violation};
pub use interface::{Interface, Status};
pub use parapet_packet::{Checksum, Gso, GsoKind, Mac, Offloads};
pub use queue::{Queue, Receiver, Sender};
pub use receive::{Received, RxFrame};
pub use transmit::{Draft, Sent};
