//! The rings, from outside.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bytes;
mod common;
mod hostile;
mod link;
mod queue;
mod threads;
