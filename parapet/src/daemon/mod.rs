//! What daemons on a Xen host have in common.
//!
//! ```text
//!   systemd ◄── notify ───┐            ┌── lock ──────► only one of a kind
//!   journal ◄── logging ──┤  a daemon  ├── stop ◄────── SIGTERM, SIGINT
//!   its user ◄─ command ──┤            ├── status ◄──── `parapet-blkback status`
//!                         └────────────┘── listen ◄──── clients of `parapet-xenstored`
//! ```

pub mod blkback;
mod command;
mod limits;
mod listen;
mod lock;
mod logging;
mod notify;
mod status;
mod stop;

pub use command::{Failure, completions, exit, level, tell};
pub use limits::raise_open_files;
pub use listen::{ListenError, Listening};
pub use lock::{Lock, LockError};
pub use logging::start_log;
pub use notify::notify;
pub use status::{AskError, StatusSocket, ask};
pub use stop::{End, Ending, Work, ending};
