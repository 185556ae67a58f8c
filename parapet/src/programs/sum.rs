//! `sum`: the SHA-256 of a whole disk.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::pass::{PIECE, Piece, bytes, pass};
use super::{Named, OfDisk, Outcome};
use crate::guest::Guest;

/// A disk's sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// The disk.
    pub vdev: String,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of all of it, in hexadecimal.
    pub sha256: String,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has SHA-256 {}", self.vdev, self.sha256)
    }
}

pub(super) async fn sum(guest: &Guest, disks: &[Named]) -> Result<Outcome> {
    let total = disks.iter().map(|(_, disk)| bytes(disk)).sum();
    guest.progress().set_total(total);
    let mut sums = Vec::new();
    for (vdev, disk) in disks {
        let mut hasher = Sha256::new();
        let mut scratch = vec![0; PIECE];
        let add = |piece: &Piece| {
            scratch.resize(piece.len, 0);
            piece.buffer.view().read_bytes(0, &mut scratch)?;
            hasher.update(&scratch);
            guest.progress().add(piece.len as u64);
            Ok(())
        };
        pass(disk, bytes(disk), |piece| piece.read(disk), add)
            .await
            .of_disk(*vdev)?;
        sums.push(Sum {
            vdev: vdev.to_string(),
            bytes: bytes(disk),
            sha256: format!("{:x}", hasher.finalize()),
        });
    }
    Ok(Outcome::Sum { sums })
}
