//! Boot guests with paravirtual devices in one process, without Xen and without root.
//!
//! ```text
//!                             one process
//!   ┌─ domain 0 ─────────────────────┐     ┌─ guest ──────────────────────┐
//!   │ toolstack     nodes of devices │     │ your async function,         │
//!   │ xenstored  <──── byte rings ───┼─────┼─> or a built-in program      │
//!   │ blkback    <──── shared ring, ─┼─────┼─> blkfront: Disk             │
//!   │   │              grants,       │     │     read, write, flush       │
//!   │   v              events        │     └──────────────────────────────┘
//!   │ image: file, null, memory      │         ... more guests ...
//!   └────────────────────────────────┘
//!    loopback hypervisor: domains, vCPUs on threads, grant tables, event channels
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`host`] | a host to boot, and guests to start on it |
//! | [`guest`] | a guest from the inside: what a program is given |
//! | [`config`] | what a host and its guests are made of, read from TOML in xl's words |
//! | [`network`] | the networks of a host: isolated, bridged, NAT |
//! | [`wire`] | a guest that is a Linux stack of this machine, behind a TAP device |
//! | [`programs`] | what a guest runs that brings no program of its own |
//! | [`report`] | what each disk and each vif did |
//! | [`load`] | requests on a disk to measure it |
//! | [`nbd`] | a guest's disk for the NBD clients of the machine |
//! | [`daemon`] | what daemons on a real Xen host share, `parapet-blkback` first |
//!
//! A driver author boots a host, a backend and a guest within a test:
//!
//! ```
//! use parapet::config::GuestConfig;
//! use parapet::host::Host;
//!
//! # fn main() -> anyhow::Result<()> {
//! let host = Host::builder().pcpus(1).build()?;
//! let mut config = GuestConfig::new("tester");
//! config.disks.push("memory:1M,raw,xvda,rw".parse()?);
//!
//! let running = host.start(&config, async |guest| {
//!     let disk = guest.disk("xvda").await?;
//!     disk.write_at(512, &[7; 512]).await?;
//!     let mut back = [0; 512];
//!     disk.read_at(512, &mut back).await?;
//!     Ok(back)
//! })?;
//! assert_eq!(running.wait()?, [7; 512]);
//! # Ok(())
//! # }
//! ```
//!
//! The same from the command line is `parapet run FILE.toml`.

#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
pub mod guest;
pub mod host;
pub mod load;
pub mod nbd;
pub mod network;
pub mod programs;
pub mod report;
mod toolstack;
pub mod wire;
