//! The image files that are read, made anew for a run and gone after it.

use crate::workload::Disk;
use anyhow::{Context, Result, bail};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use parapet_blkback::image::qcow2::{self, Backed};
use std::env;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A fully written image in a folder of its own, removed when dropped.
#[derive(Debug)]
pub(crate) struct Image {
    _folder: TempDir,
    path: PathBuf,
    size: u64,
}

impl Image {
    /// Writes an image of `size` bytes below `dir` and waits until it is on the disk.
    ///
    /// # Errors
    /// The folder is missing, not writable, or has no room.
    pub(crate) fn create(dir: &Path, size: u64) -> Result<Self> {
        let room = statvfs(dir).with_context(|| format!("{}: not usable", dir.display()))?;
        let free = room.blocks_available().saturating_mul(room.fragment_size());
        if free < size {
            bail!(
                "{}: {size} bytes needed, {free} free; choose another with --dir",
                dir.display()
            );
        }
        let folder = tempfile::Builder::new()
            .prefix("parapet-bench-")
            .tempdir_in(dir)
            .with_context(|| format!("{}: cannot make a folder", dir.display()))?;
        let path = folder.path().join("disk.img");
        fill(&path, size).with_context(|| format!("{}: cannot write", path.display()))?;
        Ok(Self {
            _folder: folder,
            path,
            size,
        })
    }

    /// Makes so many overlays of it, beside it: again if there were some.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn overlays(&self, count: usize) -> Result<Disk> {
        let mut paths = Vec::new();
        for number in 0..count {
            let path = self.path.with_file_name(format!("overlay-{number}.qcow2"));
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)?;
            let backed = Backed {
                name: "disk.img".into(),
                format: "raw".into(),
            };
            qcow2::create(&file, self.size, Some(backed))?;
            paths.push(path);
        }
        Ok(Disk::Overlays {
            paths,
            size: self.size,
        })
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk::File {
            path: self.path.clone(),
            size: self.size,
        }
    }
}

/// Every block is written, and with something: a hole, or zeroes that the storage below folds
/// away, would be read faster than data.
fn fill(path: &Path, size: u64) -> Result<()> {
    const CHUNK: u64 = 1 << 20;
    let mut file = File::create(path)?;
    let mut chunk = vec![0u8; usize::try_from(CHUNK)?];
    let mut word = 0x2545_f491_4f6c_dd1d_u64;
    let mut left = size;
    while left > 0 {
        for bytes in chunk.chunks_exact_mut(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let length = left.min(CHUNK);
        file.write_all(chunk.get(..usize::try_from(length)?).unwrap_or_default())?;
        left -= length;
    }
    file.sync_all()?;
    Ok(())
}

/// Whether a folder lies on a tmpfs.
pub(crate) fn is_tmpfs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == FsType(TMPFS_MAGIC.0))
}

/// A folder for temporary files that is on a real file system, where there is one.
pub(crate) fn real_file_system() -> Option<PathBuf> {
    [
        env::temp_dir(),
        "/var/tmp".into(),
        env::current_dir().unwrap_or_default(),
    ]
    .into_iter()
    .find(|dir| dir.is_dir() && !is_tmpfs(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_written_in_full_and_gone_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::create(dir.path(), (1 << 20) + 512).unwrap();
        let bytes = std::fs::read(&image.path).unwrap();
        assert_eq!(bytes.len(), (1 << 20) + 512);
        assert!(
            bytes
                .chunks(512)
                .all(|sector| sector.iter().any(|&byte| byte != 0))
        );
        drop(image);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_image_larger_than_its_file_system_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let error = Image::create(dir.path(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("--dir"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
