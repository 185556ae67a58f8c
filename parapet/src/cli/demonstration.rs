//! What `parapet run` shows without a file.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use parapet::config::GuestConfig;
use tempfile::TempDir;

use super::images;

const SIZE: u64 = 256 << 20;

/// An image in a folder of its own, which vanishes with this.
pub(super) struct Demonstration {
    image: PathBuf,
    /// The image in it, as the guest has it.
    guest: GuestConfig,
    _folder: TempDir,
}

impl Demonstration {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("parapet-")
            .tempdir()
            .context("no folder for temporary files: name one in TMPDIR")?;
        let image = folder.path().join("disk.img");
        let file = File::create(&image).with_context(|| format!("{}", image.display()))?;
        images::reserve(&file, SIZE)
            .with_context(|| format!("{}: name another folder in TMPDIR", image.display()))?;
        let guest = GuestConfig {
            disks: vec![images::disk("xvda", "rw", &image)?],
            kernel: Some("verify".into()),
            ..GuestConfig::new("demonstration")
        };
        Ok(Demonstration {
            image,
            guest,
            _folder: folder,
        })
    }

    pub(super) fn guest(&self) -> GuestConfig {
        self.guest.clone()
    }
}

impl fmt::Display for Demonstration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "A guest fills its disk of {} MiB ({}), flushes it, reads it back and verifies it.",
            SIZE >> 20,
            self.image.display()
        )
    }
}
