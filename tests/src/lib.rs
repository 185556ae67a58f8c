//! What the tests of several crates share.
//!
//! * [`conformance`]: what every implementation of the seam must do, as functions of two handles.
//!   `tests/seam.rs` runs it on the loopback hypervisor.
//! * [`fuzz`]: what the fuzz targets in `fuzz/` do.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a check that panics is a check that failed"
)]

pub mod conformance;
pub mod fuzz;
