//! The back half of Xen's paravirtual network device: it joins a guest's vif to a network.
//!
//! A guest's frames come out of its transmit ring as [`frame::Frame`]s, and go to a
//! [`port::Port`]; what the network has for it waits at the vif's [`endpoint::Endpoint`], one inbox
//! a queue, and is copied into the pages that the guest has posted in its receive ring.
#![forbid(unsafe_code)]

pub mod bell;
pub mod capture;
pub mod control;
pub mod device;
pub mod drops;
pub mod endpoint;
pub mod frame;
pub mod multicast;
pub mod negotiation;
pub mod port;
pub mod queue;
pub mod report;
pub mod rx;
pub mod service;
pub mod statics;
pub mod stats;
pub mod steering;
mod storm;
pub mod tx;
