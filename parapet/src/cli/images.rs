//! Image files that a command names or makes.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use parapet::config::DiskConfig;
use parapet_blkback::image::{Spec, SpecError};

/// The disk of a guest that has the file `path`, whatever its name is like, as its image.
pub(super) fn disk(vdev: &str, access: &str, path: &Path) -> Result<DiskConfig> {
    let name = path
        .to_str()
        .with_context(|| format!("{}: its name is not UTF-8: rename it", path.display()))?;
    let file = match name.parse::<Spec>() {
        Ok(Spec::File(_)) | Err(SpecError::Empty) => name.to_owned(),
        // What would be an image without a file is one with a folder before it.
        Ok(_) | Err(_) => format!("./{name}"),
    };
    Ok(format!("vdev={vdev}, access={access}, target={file}").parse()?)
}

/// Makes `file` `size` bytes long, with room on its file system for all of them where that can
/// keep a promise: better to fail now than in the middle.
pub(super) fn reserve(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(size),
        other => Ok(other?),
    }
}
