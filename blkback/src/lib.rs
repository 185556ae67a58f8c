//! The back half of Xen's paravirtual block device.
#![forbid(unsafe_code)]

pub mod grants;
pub mod image;
mod limit;
pub mod negotiation;
pub mod queue;
pub mod request;
pub mod stats;
