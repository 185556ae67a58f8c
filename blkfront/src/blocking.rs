//! A disk for a plain thread, as the standard library reads and writes.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Guest;

use crate::disk::Disk;
use crate::error::Error;

/// A disk as a stream of bytes with a position, for a thread that may sleep. A task would block its
/// processor: it uses the [`Disk`] itself.
///
/// Positions and lengths must be multiples of the disk's sector size. Reading and writing stop at
/// the end of the disk; [`Write::flush`] makes durable what was written.
///
/// Each call sends all its requests at once and waits for them, so large ones are fast: copy with a
/// buffer of a megabyte rather than with `io::copy`.
#[derive(Debug)]
pub struct BlockingDisk<G: Guest> {
    disk: Disk<G>,
    position: u64,
}

impl<G: Guest> BlockingDisk<G> {
    /// From its first byte on.
    pub fn new(disk: Disk<G>) -> Self {
        BlockingDisk { disk, position: 0 }
    }

    /// How much of `len` bytes there is from the position to the end of the disk.
    fn within(&self, len: usize) -> usize {
        let left = size(&self.disk).saturating_sub(self.position);
        usize::try_from(left).map_or(len, |left| len.min(left))
    }
}

fn size<G: Guest>(disk: &Disk<G>) -> u64 {
    disk.info().bytes().unwrap_or(u64::MAX)
}

impl<G: Guest> Read for BlockingDisk<G> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.within(to.len());
        let to = to.get_mut(..len).unwrap_or_default();
        block_on(self.disk.read_at(self.position, to))?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<G: Guest> Write for BlockingDisk<G> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let len = self.within(from.len());
        let from = from.get(..len).unwrap_or_default();
        block_on(self.disk.write_at(self.position, from))?;
        self.position += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A disk without a cache has nothing to flush.
        if self.disk.info().flush {
            block_on(self.disk.flush())?;
        }
        Ok(())
    }
}

impl<G: Guest> Seek for BlockingDisk<G> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => size(&self.disk).checked_add_signed(by),
        };
        self.position = position.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Io(_) => ErrorKind::Other,
            Error::Unsupported => ErrorKind::Unsupported,
            Error::OutOfRange { .. } | Error::Misaligned { .. } | Error::Unfit(_) => {
                ErrorKind::InvalidInput
            }
            Error::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            Error::Buffer(_) => ErrorKind::OutOfMemory,
            Error::Gone(_) => ErrorKind::NotConnected,
        };
        io::Error::new(kind, error)
    }
}
