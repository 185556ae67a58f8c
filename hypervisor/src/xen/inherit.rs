//! Descriptors that stay open when this program becomes another, and those that it found open.
//!
//! Everything that Rust's library opens is closed by an exec. What is to stay open is marked by
//! [`leave`]; and what the next program finds without that mark's opposite was left to it, and is
//! nobody's yet: [`take`] makes it somebody's.

#![allow(unsafe_code, reason = "descriptors are told by their numbers")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that the program before this one has left open. From then on an exec closes
/// it, and it cannot be taken again.
///
/// # Errors
/// `EBADF`: it is not open, or was not left open by another program.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if closes_on_exec(number)? {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    leave(number, false)?;
    // SAFETY: it is open, and an exec would not have closed it: so it came by one, as whatever is
    // opened in this process by an owner of its own would be closed. It is taken once: now an exec
    // would close it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has a descriptor left open by an exec, or closed again.
///
/// # Errors
/// `EBADF`: there is none of this number.
pub fn leave(number: RawFd, open: bool) -> io::Result<()> {
    let flags = if open { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: this changes what an exec does with the descriptor, and touches no memory.
    let done = unsafe { libc::fcntl(number, libc::F_SETFD, flags) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has reads and writes of a descriptor wait for what is not there yet, or not. Whoever shares it
/// shares this, too.
///
/// # Errors
/// `EBADF`: there is none of this number.
pub fn block(number: RawFd, block: bool) -> io::Result<()> {
    // SAFETY: this asks for a number, and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
    if flags == -1 {
        return Err(io::Error::last_os_error());
    }
    let flags = match block {
        true => flags & !libc::O_NONBLOCK,
        false => flags | libc::O_NONBLOCK,
    };
    // SAFETY: this changes what reads and writes do, and touches no memory.
    let done = unsafe { libc::fcntl(number, libc::F_SETFL, flags) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn closes_on_exec(number: RawFd) -> io::Result<bool> {
    // SAFETY: this asks for a number, and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    match flags {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags & libc::FD_CLOEXEC != 0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn what_an_exec_would_close_is_somebodys_and_cannot_be_taken() {
        let file = File::open("/dev/null").unwrap();
        assert!(take(file.as_raw_fd()).is_err());
        assert!(take(-1).is_err());
        let number = file.into_raw_fd();
        leave(number, true).unwrap();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(take(number).is_err());
    }
}
