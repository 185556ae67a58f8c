//! `verify`: writes a whole disk, and reads it back.

use anyhow::{Result, ensure};
use parapet_blkfront::Disk;
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::Clock;
use parapet_xen_sys::io::blkif::SECTOR_SIZE;

use super::pass::{PIECE, Piece, bytes, flush, pass};
use super::{Named, OfDisk, Outcome, content};
use crate::guest::Guest;

pub(super) async fn verify(guest: &Guest, disks: &[Named], seed: u64) -> Result<Outcome> {
    // Before anything is written.
    for (vdev, disk) in disks {
        ensure!(
            !disk.info().read_only,
            "disk {vdev} is read-only, and would be written: attach it with access=rw, or use \
             kernel=sum"
        );
    }
    let total = disks.iter().map(|(_, disk)| bytes(disk)).sum();
    guest.progress().set_total(2 * total);
    let begin = guest.domain().now();
    for (vdev, disk) in disks {
        fill(guest, disk, seed).await.of_disk(*vdev)?;
        flush(disk).await.of_disk(*vdev)?;
    }
    let written = guest.domain().now();
    for (vdev, disk) in disks {
        compare(guest, disk, seed).await.of_disk(*vdev)?;
    }
    let compared = guest.domain().now();
    Ok(Outcome::Verify {
        disks: disks.len(),
        bytes: total,
        write_seconds: written.since(begin).as_secs_f64(),
        read_seconds: compared.since(written).as_secs_f64(),
    })
}

async fn fill(guest: &Guest, disk: &Disk<Domain>, seed: u64) -> Result<()> {
    let write = |piece: Piece| {
        let mut content = vec![0; piece.len];
        content::fill(seed, offset(piece.sector), &mut content);
        let filled = piece.buffer.view().write_bytes(0, &content);
        async move {
            match filled {
                Ok(()) => piece.write(disk).await,
                Err(error) => (Err(error.into()), piece),
            }
        }
    };
    let count = |piece: &Piece| {
        guest.progress().add(piece.len as u64);
        Ok(())
    };
    pass(disk, bytes(disk), write, count).await
}

async fn compare(guest: &Guest, disk: &Disk<Domain>, seed: u64) -> Result<()> {
    let (mut expected, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    let compare = |piece: &Piece| {
        expected.resize(piece.len, 0);
        found.resize(piece.len, 0);
        content::fill(seed, offset(piece.sector), &mut expected);
        piece.buffer.view().read_bytes(0, &mut found)?;
        if found != expected {
            let sectors = found.chunks(SECTOR_SIZE).zip(expected.chunks(SECTOR_SIZE));
            let good = sectors.take_while(|(found, expected)| found == expected);
            let bad = piece.sector.saturating_add(good.count() as u64);
            anyhow::bail!("sector {bad} does not have what was written to it");
        }
        guest.progress().add(piece.len as u64);
        Ok(())
    };
    pass(disk, bytes(disk), |piece| piece.read(disk), compare).await
}

fn offset(sector: u64) -> u64 {
    sector.saturating_mul(SECTOR_SIZE as u64)
}
