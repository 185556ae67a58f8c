//! Both halves of vifs, with the switch between them: guests that talk to each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crashes;
mod frames;
mod host;
