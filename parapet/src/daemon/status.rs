//! The status socket: who connects to it is told, in one piece of JSON, how the daemon fares.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long an answer may take to be sent or to come.
const TIME: Duration = Duration::from_secs(5);

fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.socket"))
}

/// A status socket. It is gone when this is dropped.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
}

impl StatusSocket {
    /// Opens the socket of the daemon `name`, whose lock in `folder` the caller has; `status` is
    /// asked anew for everyone who connects.
    ///
    /// # Errors
    /// The host's.
    pub fn open<T: Serialize>(
        folder: &Path,
        name: &str,
        status: impl Fn() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let path = path_of(folder, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            // That of one that was killed.
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        thread::Builder::new()
            .name("status".into())
            .spawn(move || {
                for stream in listener.incoming() {
                    if let Err(error) = stream.and_then(|stream| answer(stream, &status())) {
                        log::debug!("somebody was not told the status: {error}");
                    }
                }
            })?;
        Ok(StatusSocket { path })
    }
}

fn answer(mut stream: UnixStream, status: &impl Serialize) -> io::Result<()> {
    stream.set_write_timeout(Some(TIME))?;
    let mut text = serde_json::to_vec(status)?;
    text.push(b'\n');
    stream.write_all(&text)
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // If it is gone already, all the better.
        let _ = fs::remove_file(&self.path);
    }
}

/// Why a daemon did not tell its status.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It does not run, or elsewhere.
    #[error(
        "no {name} runs here: nobody listens at {}. Start it (systemctl start {name}), or give \
         its folder by --run-dir", .path.display()
    )]
    NotRunning {
        /// The daemon.
        name: String,
        /// Its socket.
        path: PathBuf,
    },
    /// It may not be asked.
    #[error("no permission to ask {name} at {}: run as root", .path.display())]
    NoPermission {
        /// The daemon.
        name: String,
        /// Its socket.
        path: PathBuf,
    },
    /// It did not answer as it should.
    #[error("{name} does not answer at {}: {source}", .path.display())]
    Host {
        /// The daemon.
        name: String,
        /// Its socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Asks the daemon `name` whose folder is `folder`.
///
/// # Errors
/// See [`AskError`].
pub fn ask<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, AskError> {
    let path = path_of(folder, name);
    let asked = || {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(TIME))?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    asked().map_err(|source: io::Error| {
        let (name, path) = (name.to_owned(), path.clone());
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                AskError::NotRunning { name, path }
            }
            ErrorKind::PermissionDenied => AskError::NoPermission { name, path },
            _ => AskError::Host { name, path, source },
        }
    })
}
