//! What the back halves of all paravirtual devices have in common: everything but the device.
//!
//! ```text
//!   xenstore: /local/domain/0/backend/KIND/5/51712            a kind of device says
//!      │ watch                                                  ┌──────────────────┐
//!   ┌──▼──────┐  a task each   ┌────────────┐     asks it to    │ kind::Kind       │
//!   │ service ├───────────────►│ device     ├──────────────────►│  open, offer,    │
//!   └────┬────┘                │  its life: │                   │  connect, tend   │
//!        │ what each does      │  announce, │                   └────────┬─────────┘
//!   ┌────▼────┐                │  connect,  │   stop ┌────────┐ makes    │
//!   │ report  │◄───────────────┤  close ... ├───────►│ queues │◄─────────┘
//!   └─────────┘                └────────────┘ ◄ ended└────────┘
//!
//!   keys · values    what the xenstore says, as data        turns    transactions at once
//!   limit            the log's rate, and new beginnings'    polling  how long to look
//!   rate             a device's own rate                    counter  what a queue counts
//! ```
//!
//! A [`Service`](service::Service) watches one directory, and serves every device that a toolstack
//! makes there in a task of its own. The life of a [`Device`](device::Device) is the same for all
//! kinds; what is behind it, and how its rings are served, is its [`Kind`](kind::Kind)'s.
#![forbid(unsafe_code)]

pub mod counter;
pub mod device;
mod error;
pub mod keys;
pub mod kind;
pub mod limit;
pub mod polling;
pub mod queues;
pub mod rate;
pub mod report;
pub mod service;
pub mod turns;
pub mod values;

pub use error::Error;
