//! Going over a whole disk with many requests under way.

use anyhow::{Context, Result};
use futures_util::stream::{FuturesOrdered, StreamExt};
use parapet_blkfront::{Buffer, Disk};
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_xen_sys::io::blkif::SECTOR_SIZE;

/// Bytes in all pieces but the last: a few requests, which the disk makes of it.
pub(super) const PIECE: usize = 64 * PAGE_SIZE;
/// Pieces under way: enough requests to keep a ring full.
const WINDOW: usize = 8;

/// A part of a disk, and the memory that it passes through: both disks of a copy may use it.
pub(super) struct Piece {
    /// Its first sector.
    pub(super) sector: u64,
    /// Its bytes: they are at the start of the buffer.
    pub(super) len: usize,
    /// The memory.
    pub(super) buffer: Buffer<Domain>,
}

impl Piece {
    /// Reads it from `disk`.
    pub(super) async fn read(self, disk: &Disk<Domain>) -> (Result<()>, Piece) {
        let Piece {
            sector,
            len,
            buffer,
        } = self;
        let (result, buffer) = disk.read(sector, buffer, ..len).await;
        let piece = Piece {
            sector,
            len,
            buffer,
        };
        (result.with_context(|| piece.name("reading")), piece)
    }

    /// Writes it to `disk`.
    pub(super) async fn write(self, disk: &Disk<Domain>) -> (Result<()>, Piece) {
        let Piece {
            sector,
            len,
            buffer,
        } = self;
        let (result, buffer) = disk.write(sector, buffer, ..len).await;
        let piece = Piece {
            sector,
            len,
            buffer,
        };
        (result.with_context(|| piece.name("writing")), piece)
    }

    fn name(&self, what: &str) -> String {
        let end = self.sector.saturating_add((self.len / SECTOR_SIZE) as u64);
        format!("{what} sectors {} to {end}", self.sector)
    }
}

/// Does `work` with each piece of the first `bytes` of a disk, many at the same time, and hands
/// them to `done` in the order of the disk. Ends at the first error.
pub(super) async fn pass<F>(
    disk: &Disk<Domain>,
    bytes: u64,
    work: impl Fn(Piece) -> F,
    mut done: impl FnMut(&Piece) -> Result<()>,
) -> Result<()>
where
    F: Future<Output = (Result<()>, Piece)>,
{
    let mut at = 0;
    let mut next = |buffer| {
        let len = bytes.saturating_sub(at).min(PIECE as u64);
        let sector = at / SECTOR_SIZE as u64;
        at += len;
        // At most PIECE.
        let len = len as usize;
        let piece = Piece {
            sector,
            len,
            buffer,
        };
        (len > 0).then_some(piece)
    };
    let mut window = FuturesOrdered::new();
    for _ in 0..bytes.div_ceil(PIECE as u64).min(WINDOW as u64) {
        let buffer = disk
            .buffer(PIECE / PAGE_SIZE)
            .context("no memory for buffers: give the guest more")?;
        window.extend(next(buffer).map(&work));
    }
    while let Some((result, piece)) = window.next().await {
        result?;
        done(&piece)?;
        window.extend(next(piece.buffer).map(&work));
    }
    Ok(())
}

/// Makes durable what was written to `disk`.
pub(super) async fn flush(disk: &Disk<Domain>) -> Result<()> {
    // Without a cache, what was written is as durable as it will be.
    if disk.info().flush {
        disk.flush().await.context("flushing")?;
    }
    Ok(())
}

/// A disk's size.
pub(super) fn bytes(disk: &Disk<Domain>) -> u64 {
    disk.info().sectors.saturating_mul(SECTOR_SIZE as u64)
}
