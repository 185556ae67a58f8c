//! The back half of Xen's paravirtual block device.
#![forbid(unsafe_code)]

pub mod image;
