//! What daemons on a Xen host have in common.
//!
//! ```text
//!   systemd ◄── notify ───┐            ┌── lock ──────► only one of a kind
//!   journal ◄── logging ──┤            ├── stop ◄────── SIGTERM, SIGINT
//!   its user ◄─ command ──┤  a daemon  ├── status ◄──── `parapet-blkback status`
//!   Prometheus ◄ metrics ─┤            ├── listen ◄──── clients of `parapet-xenstored`
//!                         │            ├── capture ◄─── `parapet net capture`
//!                         └────────────┴── privileges ► given up once it has begun
//! ```

pub mod blkback;
pub mod capture;
mod command;
mod limits;
mod listen;
mod lock;
mod logging;
mod metrics;
pub mod netback;
mod notify;
mod privileges;
mod ready;
mod state;
mod status;
mod stop;
pub mod xenstored;

pub use command::{Failure, completions, exit, level, manual, tell};
pub use limits::raise_open_files;
pub use listen::{ListenError, Listening};
pub use lock::{Lock, LockError};
pub use logging::start_log;
pub use metrics::{MetricsFile, metrics};
pub use notify::notify;
pub use privileges::{Unprivileged, UserError, no_new_privileges};
pub use ready::{KernelBackend, NotReady, place, store};
pub use state::State;
pub use status::{AskError, StatusSocket, ask};
pub use stop::{End, Ending, Work, ending};
