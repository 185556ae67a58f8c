//! Memory that outlives the process: a file that is mapped.

#![allow(unsafe_code, reason = "pages of a file become views")]

use core::fmt;
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::memory::View;

/// A file as memory. What is stored in it is there for whoever opens the file next, however this
/// process ends; a crash of the machine may lose it. In a file system that is memory (tmpfs) a
/// store costs what any other store does.
///
/// The file has to be nobody else's: should somebody make it shorter meanwhile, the kernel ends
/// this process (SIGBUS).
pub struct FileMemory {
    start: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the memory is only ever accessed through views.
unsafe impl Send for FileMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for FileMemory {}

impl FileMemory {
    /// Makes a file of `len` bytes, all zero, which only its owner may use. There must be none of
    /// that name.
    ///
    /// # Errors
    /// The host's: also when there is no room for the file, which is seen to here and not when the
    /// memory is used.
    pub fn create(path: &Path, len: NonZeroUsize) -> io::Result<Self> {
        let file = Self::options().create_new(true).mode(0o600).open(path)?;
        let size = i64::try_from(len.get()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        fallocate(&file, FallocateFlags::empty(), 0, size)?;
        Self::map(&file, len)
    }

    /// Maps a file as it is.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::InvalidData`] if it is empty, or no file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = Self::options().open(path)?;
        let metadata = file.metadata()?;
        let len = usize::try_from(metadata.len()).ok();
        match len.and_then(NonZeroUsize::new) {
            Some(len) if metadata.is_file() => Self::map(&file, len),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// A link would be somebody else's idea of where the file is; a FIFO would be waited for.
    fn options() -> OpenOptions {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        options
    }

    fn map(file: &File, len: NonZeroUsize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice touches nobody else's memory.
        let start = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                file,
                0,
            )
        }?;
        Ok(FileMemory {
            start: start.cast(),
            len,
        })
    }

    /// All of it.
    pub fn view(&self) -> View<'_> {
        // SAFETY: mapped for reading and writing as long as `self` lives; this process has no
        // other way to it, and other processes count as a peer.
        unsafe { View::from_raw(self.start, self.len.get()) }
    }
}

impl Drop for FileMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and no view outlives `self`.
        let unmapped = unsafe { munmap(self.start.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be undone");
    }
}

impl fmt::Debug for FileMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileMemory({:#x})", self.len)
    }
}

/// A number that nobody has had before, and nobody can guess.
///
/// # Errors
/// The host's, which has none to give for some moments after it was switched on.
pub fn nonce() -> io::Result<u128> {
    let mut bytes = [0; 16];
    // SAFETY: `bytes` is ours, and as long as is said.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == bytes.len() => Ok(u128::from_ne_bytes(bytes)),
        Ok(_) => Err(io::ErrorKind::Interrupted.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A path in the folder for temporary files, removed at the end.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new() -> Self {
            let name = std::format!("parapet-file-memory-{:x}", nonce().unwrap());
            Temporary(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const LEN: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

    #[test]
    fn what_is_stored_is_there_for_who_opens_the_file_next() {
        let path = Temporary::new();
        let memory = FileMemory::create(&path.0, LEN).unwrap();
        assert_eq!(memory.view().read::<u64>(9_992).unwrap(), 0);
        memory.view().write(9_992, &7u64).unwrap();
        drop(memory);
        let memory = FileMemory::open(&path.0).unwrap();
        assert_eq!(memory.view().len(), 10_000);
        assert_eq!(memory.view().read::<u64>(9_992).unwrap(), 7);
    }

    #[test]
    fn a_file_that_is_there_is_not_made_and_one_that_is_not_is_not_opened() {
        let path = Temporary::new();
        let missing = FileMemory::open(&path.0).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        drop(FileMemory::create(&path.0, LEN).unwrap());
        let there = FileMemory::create(&path.0, LEN).unwrap_err();
        assert_eq!(there.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn what_is_no_file_or_is_empty_or_a_link_is_refused() {
        let (path, link) = (Temporary::new(), Temporary::new());
        File::create(&path.0).unwrap();
        let empty = FileMemory::open(&path.0).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::InvalidData);
        std::os::unix::fs::symlink(&path.0, &link.0).unwrap();
        assert!(FileMemory::open(&link.0).is_err());
        assert!(FileMemory::open(&std::env::temp_dir()).is_err());
    }

    #[test]
    fn there_is_room_or_it_is_not_made() {
        let path = Temporary::new();
        assert!(FileMemory::create(&path.0, NonZeroUsize::new(1 << 60).unwrap()).is_err());
    }

    #[test]
    fn no_two_are_the_same() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
