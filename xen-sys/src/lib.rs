//! Xen's public ABI, as plain data: the layouts that a domain shares with Xen and with its peers, the
//! numbers of calls and results, and how Linux hands them to a process. No behaviour; `no_std`,
//! nothing unsafe.
//!
//! ```text
//!              frontend's domain                        backend's domain
//!   ┌───────────────────────────────────┐      ┌──────────────────────────────────┐
//!   │ io::ring, io::blkif, io::netif: the slots of a ring, in a page of the front │
//!   │      grant_table: the entry that lets the back map that page ◄──────────────┼─ map, copy
//!   │      event_channel, shared_info: the bits that say "look"  ◄──► its own     │
//!   │ io::xs_wire: one more ring, to xenstored, where each end says what it has   │
//!   │      and io::xenbus how far it has come                                     │
//!   └───────────────────────────────────┘      └──────────────────────────────────┘
//!      start_info: where a guest finds all this when it starts
//!      linux: how a process under Linux does the same, through /dev/xen
//! ```
//!
//! | module | Xen's header, in `xen/include/public/` |
//! |---|---|
//! | [`DomId`], [`hypercall`], [`shared_info`], [`start_info`] | `xen.h`, `arch-x86/xen.h`, `arch-x86/xen-x86_64.h`, `arch-x86/hvm/start_info.h` |
//! | [`errno`] | `errno.h` |
//! | [`grant_table`] | `grant_table.h` |
//! | [`event_channel`] | `event_channel.h`, and the virtual interrupts of `xen.h` |
//! | [`sched`], [`vcpu`], [`memory`] | `sched.h`, `vcpu.h`, `memory.h` |
//! | [`io`] | `io/ring.h`, `blkif.h`, `netif.h`, `xs_wire.h`, `xenbus.h`, `console.h`, `protocols.h` |
//! | [`linux`] | `gntdev.h`, `gntalloc.h`, `evtchn.h`, `privcmd.h`, `xenbus_dev.h` of `xen/sys/` |
//!
//! The architecture is x86_64, whatever this is compiled on: an `unsigned long` of C is a `u64`
//! here. It does compile for any architecture that aligns 64 bits to eight bytes and has its least
//! significant byte first; elsewhere the assertions stop it.
//!
//! # What kinds of items there are
//!
//! - A **structure** can be read from any bytes and written to bytes (by `zerocopy`), and has no
//!   hidden padding: bytes without a meaning are fields that begin with `_`, so that a structure
//!   written is written whole and leaks nothing (XSA-216). `Default` is all zeroes. What is a union in C
//!   is one structure for each member here.
//! - A number that comes from a closed set is a plain integer in a structure, and an **`enum`** by
//!   `TryFrom`: what a peer sent is either one of the set or an [`UnknownValue`].
//! - A **status** or error number is a newtype ([`GrantStatus`], [`Errno`]) with named values, which
//!   may carry a value unknown to us and is displayed by its name in C.
//! - **Flags** keep the bits that they do not know.
//!
//! # How it is known to be right
//!
//! Each size, offset and number stands once, beside its name in C. The macros of [`abi`] make of that
//! line the item, an assertion at compile time, and a claim in [`CLAIMS`]; the test `headers` has a C
//! compiler check every claim, and the size of every field, against the headers of Debian's
//! `libxen-dev`: x86_64's by a program that prints them, those of 32-bit frontends by static
//! assertions. What is newer than those headers (Xen 4.17) is marked `newer` where it is defined, and
//! the test lists it as unchecked, whenever it is run. To check it against other headers:
//!
//! ```text
//! XEN_INCLUDE=folder cargo test -p parapet-xen-sys --test headers
//! # where folder/xen is xen/include/public of Xen's sources, and
//! #       folder/xen/sys is tools/include/xen-sys/Linux
//! ```
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
mod domain;
pub mod domctl;
pub mod errno;
pub mod event_channel;
pub mod grant_table;
pub mod hypercall;
pub mod io;
pub mod linux;
pub mod memory;
pub mod sched;
pub mod shared_info;
pub mod start_info;
pub mod sysctl;
pub mod vcpu;

pub use abi::UnknownValue;
pub use domain::{DOMID_MASK, DomId};
pub use errno::Errno;
pub use event_channel::Port;
pub use grant_table::{GrantHandle, GrantRef, GrantStatus};

/// The size of a page, and of what one grant covers.
pub const PAGE_SIZE: usize = 4096;

/// Everything that this crate claims of Xen's headers.
pub const CLAIMS: &[abi::Header] = &[
    domain::HEADER,
    hypercall::HEADER,
    errno::HEADER,
    shared_info::HEADER,
    start_info::HEADER,
    start_info::HVM_HEADER,
    event_channel::HEADER,
    grant_table::HEADER,
    memory::HEADER,
    sched::HEADER,
    vcpu::HEADER,
    domctl::HEADER,
    sysctl::HEADER,
    io::ring::HEADER,
    io::blkif::HEADER,
    io::blkif::HEADER_X86_32,
    io::netif::HEADER,
    io::netif::HEADER_X86_32,
    io::xs_wire::HEADER,
    io::console::HEADER,
    io::xenbus::HEADER,
    io::protocols::HEADER,
    linux::evtchn::HEADER,
    linux::gntalloc::HEADER,
    linux::gntdev::HEADER,
    linux::privcmd::HEADER,
    linux::xenbus::HEADER,
];
