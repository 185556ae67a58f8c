//! What is in flight, written down so that a crash is invisible to guests.
//!
//! A ring alone does not tell who takes it up after a crash which requests are outstanding: a
//! response goes into the slot of whichever request comes next in turn, and overwrites it though
//! that may not be answered yet. So each connection of a frontend has a journal: a small file, in
//! a file system that is memory, with a log a queue. A log has an entry for each of the ring's
//! slots, with a whole copy of a request.
//!
//! ```text
//!   file:   header │ log of queue 0 │ log of queue 1 │ ...
//!   header: the connection's name │ slots of each ring │ the frontend's keys
//!   log:    intent, done │ entry │ entry │ ...             as many as the ring has slots
//!   entry:  which response it got │ the request's number │ its slot
//! ```
//!
//! A crash ends us between any two stores. So each step is one store, and what leads up to it is
//! not looked at before:
//!
//! | step | stores, in this order |
//! |---|---|
//! | a request is taken | its number and slot; **its entry has no response** |
//! | it is answered | **its entry has response n**; the response, into its slot in the ring |
//! | responses are published | `intent` = how many; **the ring's `rsp_prod`**; `done` = how many |
//!
//! Of a request that was published nothing need be stored: its response is one of the first
//! `done`, and its entry is free. [`recover`] has the other direction: what to do again. Requests
//! that were answered and not published are among it; the guest has not seen an answer, and keeps
//! their pages as they are.
//!
//! A journal is taken up only by who finds its name in the backend's directory of the xenstore,
//! where guests cannot write: it is of no other connection, and of no other guest that got the
//! same domain id. What the frontend said of its rings is taken from the journal too, as it was
//! when it connected; what it writes into its nodes later changes nothing, as ever.
//!
//! What was in flight in the kernel when the process died may still be carried out. It was done by
//! descriptors of the image on which the image's lock is held until the last of them is over, and
//! nothing is done again before we have that lock. So no old write comes after a new one.
//!
//! The cost of a request are 16 stores into two cache lines when it is taken, and one when it is
//! answered.

mod files;
mod header;
mod keep;
mod log;
mod recovery;
mod tags;
#[cfg(test)]
mod tests;

pub use files::{Journal, Journals, NotThere};
pub use header::{BadHeader, Header};
pub use keep::{Keep, Unfit};
pub use log::{Log, Memory, Part, SLOT, log_len};
pub use recovery::{Corrupt, Live, Recovered, recover};
pub use tags::Tags;
