//! Who else uses the image: locks that QEMU's tools understand.
//!
//! QEMU (`block/file-posix.c`) marks the use of an image with read locks on single bytes, held by
//! the open file: byte 100 + *p* says "I do *p*", byte 200 + *p* says "nobody else may do *p*",
//! where *p* is 0 for consistent reads, 1 for writes and 3 for resizing. Each party sets its own
//! marks and then looks for contradicting ones of others, so of two that come at once both may
//! lose, and never both win. Marks vanish with the last reference to the open file, also when the
//! process is killed.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

use super::Access;

const DONE: i64 = 100;
const EXCLUDED: i64 = 200;

const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// A file that is marked as in use until this is dropped.
#[derive(Debug)]
pub(super) struct Locked(File);

/// Why a file could not be marked.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Somebody else uses it in a way that does not go with ours.
    Contradicted,
    /// The host's reason.
    Host(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Host(error)
    }
}

impl Locked {
    /// Marks `file` as used with `access`: many may read, or one may write.
    pub(super) fn new(file: File, access: Access) -> Result<Self, Refusal> {
        let (done, excluded): (&[i64], &[i64]) = match access {
            Access::ReadOnly => (&[READ], &[WRITE, RESIZE]),
            Access::ReadWrite => (&[READ, WRITE], &[WRITE, RESIZE]),
        };
        let locked = Locked(file);
        for at in marks(done, DONE).chain(marks(excluded, EXCLUDED)) {
            set(&locked.0, at, 1, libc::F_RDLCK)?;
        }
        for at in marks(done, EXCLUDED).chain(marks(excluded, DONE)) {
            if marked_by_another(&locked.0, at)? {
                return Err(Refusal::Contradicted);
            }
        }
        Ok(locked)
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing would do, but for an io_uring that had the file: the kernel takes that apart in
        // the background, and keeps the file open until then.
        let _ = set(&self.0, DONE, 2 * (EXCLUDED - DONE), libc::F_UNLCK);
    }
}

fn marks(actions: &[i64], base: i64) -> impl Iterator<Item = i64> {
    actions.iter().map(move |action| base + action)
}

fn range(at: i64, len: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: at,
        l_len: len,
        l_pid: 0,
    }
}

fn set(file: &File, at: i64, len: i64, kind: i32) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(at, len, kind)))?;
    Ok(())
}

fn marked_by_another(file: &File, at: i64) -> io::Result<bool> {
    let mut found = range(at, 1, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(image: &tempfile::NamedTempFile, access: Access) -> Option<Locked> {
        let file = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            .open(image.path())
            .unwrap();
        match Locked::new(file, access) {
            Ok(locked) => Some(locked),
            Err(Refusal::Contradicted) => None,
            Err(Refusal::Host(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn many_may_read_or_one_may_write() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let reader = lock(&image, Access::ReadOnly).unwrap();
        let another = lock(&image, Access::ReadOnly).unwrap();
        assert!(lock(&image, Access::ReadWrite).is_none());
        drop((reader, another));
        let writer = lock(&image, Access::ReadWrite).unwrap();
        assert!(lock(&image, Access::ReadWrite).is_none());
        assert!(lock(&image, Access::ReadOnly).is_none());
        drop(writer);
        assert!(lock(&image, Access::ReadWrite).is_some());
    }

    #[test]
    fn the_lock_ends_when_it_is_dropped_though_the_file_stays_open() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let writer = lock(&image, Access::ReadWrite).unwrap();
        let _duplicate = writer.file().try_clone().unwrap();
        drop(writer);
        assert!(lock(&image, Access::ReadWrite).is_some());
    }
}
