//! File I/O that is done when the call returns.

#![allow(unsafe_code, reason = "the kernel is handed addresses")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::FallocateFlags;

use super::lease::{NOWHERE, gather};
use super::{Extent, Lease, Operation};

/// Vectors that one system call is given.
const VECTORS: usize = 32;

/// Does all of `operation` on `file` before it returns.
///
/// # Errors
/// The host's; [`io::ErrorKind::UnexpectedEof`] when a read meets the end of the file, and
/// [`io::ErrorKind::InvalidInput`] when the lease has fewer bytes than the operation names. Part of
/// the transfer may then be done.
pub fn transfer<L: Lease>(file: impl AsFd, operation: Operation, lease: &L) -> io::Result<()> {
    let (mut extent, read) = match operation {
        Operation::Read(extent) => (extent, true),
        Operation::Write(extent) => (extent, false),
        Operation::Sync => return Ok(nix::unistd::fdatasync(file)?),
        Operation::Discard { offset, len } => {
            let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            return Ok(nix::fcntl::fallocate(file, hole, offset, len)?);
        }
    };
    while extent.len > 0 {
        let done = some(file.as_fd().as_raw_fd(), extent, read, lease)?;
        extent = Extent {
            offset: extent.offset + done as u64,
            skip: extent.skip + done,
            len: extent.len - done,
        };
    }
    Ok(())
}

/// One system call's worth of it: at least one byte.
fn some<L: Lease>(file: i32, extent: Extent, read: bool, lease: &L) -> io::Result<usize> {
    let mut vectors = [NOWHERE; VECTORS];
    let (used, bytes) = if read {
        gather(lease.targets(), extent.skip, extent.len, &mut vectors)
    } else {
        gather(lease.sources(), extent.skip, extent.len, &mut vectors)
    };
    if bytes == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let offset = i64::try_from(extent.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // `used` is at most `VECTORS`.
        let count = used as i32;
        // SAFETY: the lease is borrowed until after the call, so the views that the addresses were
        // taken from are valid, for writing in case of a read.
        let done = unsafe {
            if read {
                libc::preadv(file, vectors.as_ptr(), count, offset)
            } else {
                libc::pwritev(file, vectors.as_ptr(), count, offset)
            }
        };
        match usize::try_from(done) {
            Ok(0) if read => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => return Ok(done),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::host::lease::tests::Pieces;
    use crate::memory::Scratch;

    fn file() -> File {
        let flags = nix::sys::memfd::MFdFlags::empty();
        File::from(nix::sys::memfd::memfd_create(c"transfer", flags).unwrap())
    }

    fn all(len: usize) -> Extent {
        Extent {
            offset: 0,
            skip: 0,
            len,
        }
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_transferred_whole() {
        let file = file();
        let count = VECTORS * 2 + 3;
        // Every other 16 bytes, so that no two pieces are neighbours.
        let lease = Pieces {
            memory: Scratch::new(count * 32),
            pieces: (0..count).map(|i| (i * 32, 16)).collect(),
            slot: None,
        };
        let bytes: Vec<u8> = (0..count * 32).map(|i| i as u8).collect();
        lease.memory.view().write_bytes(0, &bytes).unwrap();
        transfer(&file, Operation::Write(all(count * 16)), &lease).unwrap();
        transfer(&file, Operation::Sync, &lease).unwrap();
        let mut back = vec![0; count * 16];
        file.read_exact_at(&mut back, 0).unwrap();
        let expected: Vec<u8> = bytes
            .chunks(32)
            .flat_map(|chunk| &chunk[..16])
            .copied()
            .collect();
        assert_eq!(back, expected);

        let target = Pieces {
            memory: Scratch::new(count * 32),
            pieces: lease.pieces.clone(),
            slot: None,
        };
        transfer(&file, Operation::Read(all(count * 16)), &target).unwrap();
        for (read, written) in target.bytes().chunks(32).zip(bytes.chunks(32)) {
            assert_eq!(read[..16], written[..16]);
            assert_eq!(read[16..], [0; 16]);
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error() {
        let file = file();
        file.write_all_at(&[1; 100], 0).unwrap();
        let error = transfer(&file, Operation::Read(all(101)), &Pieces::whole(101)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_lease_that_is_too_small_is_an_error() {
        let error = transfer(file(), Operation::Write(all(101)), &Pieces::whole(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
