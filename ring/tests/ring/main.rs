//! The rings, from outside.

mod common;
mod queue;
