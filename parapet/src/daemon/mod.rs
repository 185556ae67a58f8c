//! What daemons on a Xen host have in common.
//!
//! ```text
//!   systemd ◄── notify ───┐            ┌── lock ──────► only one of a kind
//!   journal ◄── logging ──┤  a daemon  ├── stop ◄────── SIGTERM, SIGINT
//!                         └────────────┘── status ◄──── `parapet-blkback status`
//! ```

pub mod blkback;
mod lock;
mod logging;
mod notify;
mod status;
mod stop;

pub use lock::{Lock, LockError};
pub use logging::start_log;
pub use notify::notify;
pub use status::{AskError, StatusSocket, ask};
pub use stop::signals;
