//! The life of a vif: the service, its toolstack and a frontend, in a loopback host.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod crashes;
mod front;
mod hostile;
mod life;
mod toolstack;
mod world;
