//! Images against a model, and what opening one refuses.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod disk;
mod nbd;
mod qcow2;
mod raw;
