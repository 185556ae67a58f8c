//! `/dev/xen/xenbus_backend`: the ring between the kernel's own xenstore client and a xenstored that
//! runs in the same domain. (`/dev/xen/xenbus`, for clients, has no ioctls: messages are written to
//! it and read from it.)

use super::ioctl;
use crate::abi::{Header, Target, constants};

constants! { IOCTLS:
    /// Ask for the kernel's port, which is returned.
    pub const BACKEND_EVTCHN: u32 = ioctl(b'B', 0, 0) => "IOCTL_XENBUS_BACKEND_EVTCHN";
    /// Tell the kernel that xenstored is ready (its domain is the argument); returns the port. The
    /// ring's page is then mapped by `mmap` at offset zero.
    pub const BACKEND_SETUP: u32 = ioctl(b'B', 1, 0) => "IOCTL_XENBUS_BACKEND_SETUP";
}

pub(crate) const HEADER: Header = Header {
    include: "xen/sys/xenbus_dev.h",
    target: Target::X86_64,
    claims: &[IOCTLS],
};
