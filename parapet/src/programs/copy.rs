//! `copy`: one disk to another.

use anyhow::{Result, ensure};
use parapet_blkfront::vdev::Vdev;

use super::pass::{Piece, bytes, flush, pass};
use super::{OfDisk, Outcome};
use crate::guest::Guest;

pub(super) async fn copy(guest: &Guest, from: Vdev, to: Vdev) -> Result<Outcome> {
    let source = guest.disk(&from.to_string()).await?;
    let target = guest.disk(&to.to_string()).await?;
    ensure!(
        !target.info().read_only,
        "disk {to} is read-only, and would be written: attach it with access=rw"
    );
    let (size, room) = (bytes(&source), bytes(&target));
    ensure!(
        size <= room,
        "disk {from} has {size} bytes, and disk {to} only {room}: make that one larger"
    );
    guest.progress().set_total(size);
    // The memory that was read into is written from: one backend serves both disks.
    let copy = async |piece: Piece| {
        let (read, piece) = piece.read(&source).await;
        if read.is_err() {
            return (read.of_disk(from), piece);
        }
        let (written, piece) = piece.write(&target).await;
        (written.of_disk(to), piece)
    };
    let count = |piece: &Piece| {
        guest.progress().add(piece.len as u64);
        Ok(())
    };
    pass(&source, size, copy, count).await?;
    flush(&target).await.of_disk(to)?;
    Ok(Outcome::Copy { bytes: size })
}
