//! What the back halves of all paravirtual devices have in common.
#![forbid(unsafe_code)]

pub mod counter;
pub mod keys;
pub mod limit;
pub mod polling;
pub mod rate;
pub mod turns;
