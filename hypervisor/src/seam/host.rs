//! Descriptors of the host.

use std::io;
use std::os::fd::BorrowedFd;

use super::Events;

/// A host descriptor that raises events: an io_uring, a TAP device, a socket.
pub trait HostDescriptors: Events {
    /// Binds `descriptor` as a physical interrupt: an event comes whenever it *becomes* readable.
    /// Read until it has no more before waiting again; what was readable before the binding
    /// counts as becoming so.
    ///
    /// The descriptor is duplicated and may be closed by the caller; the interrupt goes on until
    /// the channel is dropped. [`super::Channel::notify`] on it does nothing.
    ///
    /// # Errors
    /// The host's, when no port or no descriptor is left, or the descriptor cannot be waited for.
    fn bind_descriptor(&self, descriptor: BorrowedFd<'_>) -> io::Result<Self::Channel>;
}
