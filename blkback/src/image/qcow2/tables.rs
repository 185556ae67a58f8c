//! The words of an image's tables, and what is to be said of one that cannot be right.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// In L1 and L2 tables: the cluster is compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// In L1 and L2 tables: where the cluster is.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// The words in `len` bytes of the file.
///
/// # Errors
/// They cannot be read.
pub(super) fn words(file: &File, offset: u64, len: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, offset)?;
    let words = bytes.chunks_exact(8);
    Ok(words
        .map(|word| u64::from_be_bytes(word.try_into().unwrap_or_default()))
        .collect())
}

/// An image that is not as it should be.
pub(super) fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what}: look at it with `qemu-img check`, which can repair it (-r all)"),
    )
}
