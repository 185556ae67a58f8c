//! Xen's public ABI: layouts, constants, numbers; no behaviour.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
mod domain;
pub mod errno;
pub mod event_channel;
pub mod grant_table;
pub mod hypercall;
pub mod io;
pub mod shared_info;
pub mod start_info;

pub use abi::UnknownValue;
pub use domain::DomId;
pub use errno::Errno;
pub use event_channel::Port;
pub use grant_table::{GrantHandle, GrantRef, GrantStatus};

/// The size of a page, and of what one grant covers.
pub const PAGE_SIZE: usize = 4096;

/// Everything that this crate claims of Xen's headers.
pub const CLAIMS: &[abi::Header] = &[
    hypercall::HEADER,
    errno::HEADER,
    shared_info::HEADER,
    start_info::HEADER,
    event_channel::HEADER,
    grant_table::HEADER,
    io::ring::HEADER,
    io::blkif::HEADER,
    io::blkif::HEADER_X86_32,
    io::xs_wire::HEADER,
    io::console::HEADER,
    io::xenbus::HEADER,
    io::protocols::HEADER,
];
