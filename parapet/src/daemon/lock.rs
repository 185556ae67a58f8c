//! One daemon of a kind: a lock on a file, which goes with the process however that ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// A daemon's folder under `/run`, locked for as long as this exists.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Why a daemon is not to run.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// There is one already.
    #[error("{name} runs already{process}, and has {} locked: stop it first", .path.display())]
    Taken {
        /// The daemon.
        name: String,
        /// Its process, if it says so.
        process: String,
        /// The lock.
        path: PathBuf,
    },
    /// The host failed.
    #[error("{} cannot be used: {source}; run as root, or choose another by --run-dir", .path.display())]
    Host {
        /// The folder or file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

impl Lock {
    /// Makes `folder` if need be, and takes the lock of the daemon `name` in it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(folder: &Path, name: &str) -> Result<Self, LockError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            |source| LockError::Host { path, source }
        };
        fs::create_dir_all(folder).map_err(at(folder))?;
        let path = folder.join(format!("{name}.lock"));
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // It may not have come to writing it yet.
                let _ = file.take(16).read_to_string(&mut holder);
                let process = match holder.trim() {
                    "" => String::new(),
                    holder => format!(" (process {holder})"),
                };
                let name = name.into();
                return Err(LockError::Taken {
                    name,
                    process,
                    path,
                });
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(at(&path))?;
        Ok(Lock { file })
    }

    /// A lock that the program before this one, in the same process, had taken and left.
    pub fn inherit(descriptor: OwnedFd) -> Self {
        let file = descriptor.into();
        Lock { file }
    }
}

impl AsRawFd for Lock {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run/parapet");
        let first = Lock::take(&run, "parapet-blkback").unwrap();
        let error = Lock::take(&run, "parapet-blkback").unwrap_err().to_string();
        let own = format!("(process {})", std::process::id());
        assert!(error.contains(&own), "{error}");
        Lock::take(&run, "parapet-netback").unwrap();
        drop(first);
        Lock::take(&run, "parapet-blkback").unwrap();
    }
}
