//! The back half of Xen's paravirtual network device: it joins a guest's vif to a network.
//!
//! ```text
//!   xenstore                                                  the guest
//!      │ states, keys                                            │ rings · grants · event channels
//!  ┌───▼─────────────────────────────────────────────────────────▼──────────────┐
//!  │ parapet_backend's service: every vif in the backend's directory            │
//!  │   device    one vif: its place on the network, its connections             │
//!  │     negotiation   what the two ends tell each other, as data      (pure)   │
//!  │     queue         one pair of rings = one task, which shares nothing       │
//!  │       tx, rx        slots become a packet, a frame becomes slots  (pure)   │
//!  │       statics       the guest's pages that stay mapped, if it says so      │
//!  │     control       the control ring: steering by hashes, static grants      │
//!  │     report, stats how each fares, for others to look at                    │
//!  └────────┬───────────────────────────────────────────────────────────────────┘
//!           │ frames, with what is left to be done to them
//!        port: TAP of the host · switch · cable · null, generator · capture of any of these
//! ```
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
