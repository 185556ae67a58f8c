//! Opening the file that an image is in.

use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::lock::{Locked, Refusal};
use super::{Access, OpenError, SECTOR_SIZE};

/// An image that is being opened.
pub(super) struct Opening<'a> {
    pub(super) path: &'a Path,
    pub(super) access: Access,
}

impl Opening<'_> {
    /// The error for what the host could not do.
    pub(super) fn failed(&self, what: &'static str, source: io::Error) -> OpenError {
        let path = self.path.into();
        match source.kind() {
            io::ErrorKind::NotFound => OpenError::Missing(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let what = match self.access {
                    Access::ReadOnly => "read",
                    Access::ReadWrite => "written",
                };
                OpenError::Permission { path, what }
            }
            io::ErrorKind::ResourceBusy => self.busy(),
            _ => OpenError::Host { path, what, source },
        }
    }

    fn busy(&self) -> OpenError {
        OpenError::Busy {
            path: self.path.into(),
            writing: self.access == Access::ReadWrite,
        }
    }

    fn check_type(&self, kind: FileType) -> Result<(), OpenError> {
        let what = if kind.is_file() || kind.is_block_device() {
            return Ok(());
        } else if kind.is_dir() {
            "a directory"
        } else if kind.is_char_device() {
            "a character device"
        } else if kind.is_fifo() {
            "a named pipe"
        } else {
            "no file"
        };
        Err(OpenError::NotADisk {
            path: self.path.into(),
            what,
        })
    }

    /// Opens the file, past the page cache if that is wanted and a sector can be read like that.
    ///
    /// A device is opened to be written only if the kernel has it for nobody else: the locks that
    /// keep images from other programs say nothing of one that is mounted.
    ///
    /// # Errors
    /// It cannot be opened, or is neither a file nor a block device.
    pub(super) fn file(&self, direct: bool) -> Result<(File, Metadata), OpenError> {
        // Looked at before it is opened: a FIFO would block.
        let metadata = std::fs::metadata(self.path).map_err(|error| self.failed("found", error))?;
        self.check_type(metadata.file_type())?;
        let exclusive = match self.access {
            Access::ReadWrite if metadata.file_type().is_block_device() => libc::O_EXCL,
            _ => 0,
        };
        let open = |flags| {
            File::options()
                .read(true)
                .write(self.access == Access::ReadWrite)
                .custom_flags(flags | exclusive)
                .open(self.path)
        };
        let opened = if direct {
            let file = open(libc::O_DIRECT).and_then(|file| {
                read_a_sector(&file)?;
                Ok(file)
            });
            match file {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    log::info!(
                        "the disk image {} has no direct I/O in sectors of 512 bytes, \
                         and goes through the page cache",
                        self.path.display()
                    );
                    open(0)
                }
                file => file,
            }
        } else {
            open(0)
        };
        let file = opened.map_err(|error| self.failed("opened", error))?;
        // Looked at again: the path may by now name another file.
        let metadata = file
            .metadata()
            .map_err(|error| self.failed("examined", error))?;
        self.check_type(metadata.file_type())?;
        Ok((file, metadata))
    }

    /// Keeps the file from others, until the last user drops it.
    ///
    /// # Errors
    /// Somebody else uses it.
    pub(super) fn lock(&self, file: File) -> Result<Locked, OpenError> {
        Locked::new(file, self.access).map_err(|refusal| match refusal {
            Refusal::Contradicted => self.busy(),
            Refusal::Host(error) => self.failed("locked", error),
        })
    }
}

/// Reads into memory that is aligned as badly as a guest's may be.
fn read_a_sector(file: &File) -> io::Result<()> {
    let mut memory = [0; 4 * SECTOR_SIZE];
    let mut start = memory.as_ptr().align_offset(SECTOR_SIZE);
    if (memory.as_ptr() as usize + start).is_multiple_of(2 * SECTOR_SIZE) {
        start += SECTOR_SIZE;
    }
    match memory.get_mut(start..start + SECTOR_SIZE) {
        Some(sector) => file.read_at(sector, 0).map(drop),
        None => Ok(()),
    }
}
