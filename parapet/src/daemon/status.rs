//! The status socket: who connects to it is told, in one piece of JSON, how the daemon fares.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long an answer may take to be sent or to come.
const TIME: Duration = Duration::from_secs(5);

/// How long nobody is answered after the host could not let somebody in: it has, say, no
/// descriptor left.
const PAUSE: Duration = Duration::from_secs(1);

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
                    let told = match stream {
                        Ok(stream) => answer(stream, &status()),
                        Err(error) => {
                            thread::sleep(PAUSE);
                            Err(error)
                        }
                    };
                    if let Err(error) = told {
                        log::debug!("somebody was not told the status: {error}");
                    }
                }
            })?;
        Ok(StatusSocket { path })
    }
}

fn answer(stream: UnixStream, status: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(status)?;
    text.push(b'\n');
    send(stream, &text, TIME)
}

/// Sends all of `text` within `time`, however slowly it is read.
fn send(mut stream: UnixStream, mut text: &[u8], time: Duration) -> io::Result<()> {
    let end = Instant::now() + time;
    while !text.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(text) {
            Ok(sent) => text = text.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
    asked().map_err(|source| AskError::new(name, &path, source))
}

impl AskError {
    /// For what came of asking the daemon `name` at `path`.
    pub(super) fn new(name: &str, path: &Path, source: io::Error) -> Self {
        let (name, path) = (name.to_owned(), path.to_owned());
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                AskError::NotRunning { name, path }
            }
            ErrorKind::PermissionDenied => AskError::NoPermission { name, path },
            _ => AskError::Host { name, path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_who_takes_his_time_does_not_get_more_of_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // It never stops reading, and would take many minutes for all of it.
        let reader = thread::spawn(move || {
            let mut some = [0; 1024];
            while theirs.read(&mut some).is_ok_and(|read| read > 0) {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let text = vec![0; 64 << 20];
        let error = send(ours, &text, Duration::from_millis(200)).unwrap_err();
        let kinds = [ErrorKind::TimedOut, ErrorKind::WouldBlock];
        assert!(kinds.contains(&error.kind()), "{error}");
        drop(reader);
    }
}
