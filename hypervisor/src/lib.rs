//! The seam between a paravirtual driver and the world it runs in, and two such worlds: a minimal
//! hypervisor inside this very process, and a real Xen host.
//!
//! ```text
//!      blkback   netback   blkfront   netfront   xenstore        drivers: generic over the seam
//!  ───────────────────────────────────────────────────────
//!      seam      Memory · Grants · Events · Clock · Tasks        traits, no_std
//!      memory    View: the only way to touch shared bytes        no_std
//!      guest     a guest's own grant table and event bits        no_std
//!  ───────────────────────────────────────────────────────
//!      loopback  domains, grants, events, vCPUs on threads       feature "loopback"
//!      xen       the same on a real host, by /dev/xen            feature "xen"
//!      host      io_uring into granted pages                     feature "std"
//! ```
//!
//! * [`seam`] says what a driver may ask: pages, grants, event channels, time, tasks.
//! * [`memory`] has the [`memory::View`], through which all shared memory is read and written.
//! * [`guest`] is what a guest kernel does with its own pages: it lays out the grant table as
//!   Xen's `grant_table.h` says, and finds out which events are pending.
//! * [`loopback`] is a hypervisor in a process: a memfd a domain, grant entries in the granting
//!   domain's pages, event bits in its shared-info page, vCPUs scheduled on threads. It needs
//!   neither Xen nor root, and takes both halves of a driver as they are.
//! * `xen` (feature `xen`) is a real Xen host: the same traits on the devices under `/dev/xen`.
//! * [`host`] is where a backend meets Linux: io_uring on pages that a guest granted.
//!
//! With `default-features = false` the crate is `no_std` and has the seam, the views and the
//! guest's side: what a frontend in a unikernel links.

#![cfg_attr(not(feature = "std"), no_std)]
// Allowed by the few modules that cannot do without, which say why.
#![deny(unsafe_code)]

extern crate alloc;

#[cfg(feature = "std")]
mod block_on;
pub mod guest;
#[cfg(feature = "std")]
pub mod host;
#[cfg(feature = "loopback")]
pub mod loopback;
pub mod memory;
pub mod seam;
#[cfg(any(feature = "loopback", feature = "xen"))]
mod wait;
#[cfg(feature = "xen")]
pub mod xen;

#[cfg(feature = "std")]
pub use block_on::block_on;
