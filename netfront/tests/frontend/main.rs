//! The front half against a backend of a hundred lines that is not ours, over the loopback
//! hypervisor.

#![allow(clippy::unwrap_used)]

mod connect;
mod hostile;
mod life;
mod queue;
mod stage;
#[cfg(feature = "smoltcp")]
mod tcp;
