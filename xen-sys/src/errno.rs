//! Xen's error numbers (`errno.h`): Linux's on x86, on every architecture.

use crate::abi::{Header, Target, codes};

codes! {
    /// An error of a hypercall, which returns it negated.
    pub struct Errno(i32) {
        /// Not permitted.
        EPERM = 1 => "XEN_EPERM",
        /// No such thing.
        ENOENT = 2 => "XEN_ENOENT",
        /// No such domain.
        ESRCH = 3 => "XEN_ESRCH",
        /// Input or output failed.
        EIO = 5 => "XEN_EIO",
        /// No such device or port.
        ENXIO = 6 => "XEN_ENXIO",
        /// Too many arguments, or too long an answer.
        E2BIG = 7 => "XEN_E2BIG",
        /// Not executable.
        ENOEXEC = 8 => "XEN_ENOEXEC",
        /// Bad descriptor.
        EBADF = 9 => "XEN_EBADF",
        /// No child.
        ECHILD = 10 => "XEN_ECHILD",
        /// Try again (`EWOULDBLOCK` is the same number).
        EAGAIN = 11 => "XEN_EAGAIN",
        /// Out of memory.
        ENOMEM = 12 => "XEN_ENOMEM",
        /// Permission denied.
        EACCES = 13 => "XEN_EACCES",
        /// Bad address.
        EFAULT = 14 => "XEN_EFAULT",
        /// In use.
        EBUSY = 16 => "XEN_EBUSY",
        /// Exists already.
        EEXIST = 17 => "XEN_EEXIST",
        /// Across devices.
        EXDEV = 18 => "XEN_EXDEV",
        /// No such device.
        ENODEV = 19 => "XEN_ENODEV",
        /// Not a directory.
        ENOTDIR = 20 => "XEN_ENOTDIR",
        /// Is a directory.
        EISDIR = 21 => "XEN_EISDIR",
        /// Invalid argument.
        EINVAL = 22 => "XEN_EINVAL",
        /// Too many open files in the system.
        ENFILE = 23 => "XEN_ENFILE",
        /// Too many open files.
        EMFILE = 24 => "XEN_EMFILE",
        /// No space left.
        ENOSPC = 28 => "XEN_ENOSPC",
        /// Read-only.
        EROFS = 30 => "XEN_EROFS",
        /// Too many links.
        EMLINK = 31 => "XEN_EMLINK",
        /// Outside the domain of the function.
        EDOM = 33 => "XEN_EDOM",
        /// Result out of range.
        ERANGE = 34 => "XEN_ERANGE",
        /// Would wait for itself (`EDEADLOCK` is the same number).
        EDEADLK = 35 => "XEN_EDEADLK",
        /// Name too long.
        ENAMETOOLONG = 36 => "XEN_ENAMETOOLONG",
        /// No locks.
        ENOLCK = 37 => "XEN_ENOLCK",
        /// No such function.
        ENOSYS = 38 => "XEN_ENOSYS",
        /// Directory not empty.
        ENOTEMPTY = 39 => "XEN_ENOTEMPTY",
        /// No data.
        ENODATA = 61 => "XEN_ENODATA",
        /// The time is over.
        ETIME = 62 => "XEN_ETIME",
        /// Bad message.
        EBADMSG = 74 => "XEN_EBADMSG",
        /// Value too large for its type.
        EOVERFLOW = 75 => "XEN_EOVERFLOW",
        /// Illegal byte sequence.
        EILSEQ = 84 => "XEN_EILSEQ",
        /// Not a socket.
        ENOTSOCK = 88 => "XEN_ENOTSOCK",
        /// Message too long.
        EMSGSIZE = 90 => "XEN_EMSGSIZE",
        /// Operation not supported.
        EOPNOTSUPP = 95 => "XEN_EOPNOTSUPP",
        /// Address in use.
        EADDRINUSE = 98 => "XEN_EADDRINUSE",
        /// Address not available.
        EADDRNOTAVAIL = 99 => "XEN_EADDRNOTAVAIL",
        /// No room in buffers.
        ENOBUFS = 105 => "XEN_ENOBUFS",
        /// Connected already.
        EISCONN = 106 => "XEN_EISCONN",
        /// Not connected.
        ENOTCONN = 107 => "XEN_ENOTCONN",
        /// Timed out.
        ETIMEDOUT = 110 => "XEN_ETIMEDOUT",
        /// Connection refused.
        ECONNREFUSED = 111 => "XEN_ECONNREFUSED",
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/errno.h",
    target: Target::X86_64,
    claims: &[Errno::CLAIMS],
};
