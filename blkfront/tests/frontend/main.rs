//! The frontend against backends written by hand: honest ones, and those that lie, storm, stall
//! and die.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connect;
mod disk;
mod hostile;
mod life;
mod queue;
mod stage;
mod world;
