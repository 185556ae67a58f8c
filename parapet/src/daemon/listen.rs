//! A daemon's own unix socket, made by itself or handed over by systemd.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;

/// A socket that clients of a daemon connect to. One that was made here is gone when this is
/// dropped.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    path: Option<PathBuf>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("somebody listens at {} already: stop that daemon first", .0.display())]
    Taken(PathBuf),
    /// There is something else.
    #[error("{} is there, and is not a socket: take it away", .0.display())]
    NoSocket(PathBuf),
    /// What systemd handed over is of no use.
    #[error("systemd handed over {0}, and not one listening unix socket")]
    HandedOver(String),
    /// The host failed.
    #[error("nobody can listen at {}: {source}", .path.display())]
    Host {
        /// Where.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

impl Listening {
    /// The socket that systemd has handed over (see `sd_listen_fds(3)`), or else a new one at
    /// `path`, for nobody but this user. The folder is made if need be; a socket at which nobody
    /// listens any more is replaced.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        let handed_over = |error: io::Error| ListenError::HandedOver(error.to_string());
        let mut from_systemd = ListenFd::from_env();
        match from_systemd.len() {
            0 => Listening::make(path),
            1 => {
                let listener = from_systemd.take_unix_listener(0).map_err(handed_over)?;
                let listener =
                    listener.ok_or_else(|| ListenError::HandedOver("something taken".into()))?;
                Ok(Listening {
                    listener,
                    path: None,
                })
            }
            several => Err(ListenError::HandedOver(format!("{several} descriptors"))),
        }
    }

    /// The socket that the program before this one, in the same process, listened at and left.
    /// That at `path`, unless it was systemd's.
    pub fn inherit(descriptor: OwnedFd, path: &Path) -> Self {
        let ours = ListenFd::from_env().len() == 0;
        Listening {
            listener: descriptor.into(),
            path: ours.then(|| path.to_owned()),
        }
    }

    fn make(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Host {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(ListenError::NoSocket(path.to_owned()));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        match UnixStream::connect(path) {
            Err(error) if is_nobody(&error) => {}
            Err(error) => return Err(failed(error)),
            Ok(_) => return Err(ListenError::Taken(path.to_owned())),
        }
        // Made beside its place and moved there: it is never there with other permissions.
        let fresh = path.with_extension(format!("{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&fresh, path))
            .map_err(failed)?;
        Ok(Listening {
            listener,
            path: Some(path.to_owned()),
        })
    }

    /// Whether it is systemd's, and stays when this is dropped.
    pub fn is_lent(&self) -> bool {
        self.path.is_none()
    }

    /// The socket itself.
    ///
    /// # Errors
    /// The host's.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

/// Whether an attempt to connect says that nobody listens.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused
    )
}

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // If it is gone already, all the better.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_the_users_alone_and_gone_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/xenstored/socket");
        let listening = Listening::make(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listening);
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_socket_is_replaced_when_nobody_listens_and_else_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Left behind by one that was killed.
        drop(UnixListener::bind(&path).unwrap());
        let first = Listening::make(&path).unwrap();
        let second = Listening::make(&path).unwrap_err();
        assert!(matches!(second, ListenError::Taken(_)), "{second}");
        UnixStream::connect(&path).unwrap();
        drop(first);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        fs::write(&path, "precious").unwrap();
        let error = Listening::make(&path).unwrap_err();
        assert!(matches!(error, ListenError::NoSocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
