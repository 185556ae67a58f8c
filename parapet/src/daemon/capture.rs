//! The capture socket: who connects to it says which vifs to capture, and is sent a pcapng file for
//! as long as it listens.
//!
//! ```text
//!   client                               daemon
//!     ── {"vifs":["vif5.0"],"longest":65535}\n ──▶
//!     ◀── {}\n, or {"error":"..."}\n and the end ──
//!     ◀── pcapng ... ──
//!     ── no more to say (shutdown) ──▶           ends the capture
//!     ◀── the rest of the file, the end ──
//! ```

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use parapet_hypervisor::seam::Instant;
use parapet_netback::capture::{self, Interface};
use parapet_netback::report::{Reports, Stage};
use serde::{Deserialize, Serialize};

use super::AskError;

/// How long a client may take to say what it wants.
const TIME: Duration = Duration::from_secs(5);
/// Captures at once.
const MOST: usize = 8;
/// Bytes that a wish may have.
const LONGEST_WISH: u64 = 1 << 16;

fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-capture.socket"))
}

/// What is to be captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The vifs, by name (`vif5.0`): all that there are, if none is said.
    pub vifs: Vec<String>,
    /// Bytes of a frame that are kept.
    pub longest: usize,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A capture socket. It is gone when this is dropped; captures that go on then end with the
/// process.
#[derive(Debug)]
pub struct CaptureSocket {
    path: PathBuf,
}

/// What the socket's threads share.
struct Host<F> {
    reports: Reports,
    now: F,
    captures: AtomicUsize,
}

impl CaptureSocket {
    /// Opens the socket of the daemon `name`, whose lock in `folder` the caller has, for the vifs
    /// of `reports`. `now` is the time at their place.
    ///
    /// # Errors
    /// The host's.
    pub fn open(
        folder: &Path,
        name: &str,
        reports: Reports,
        now: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let path = path_of(folder, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            // That of one that was killed.
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let host = Arc::new(Host {
            reports,
            now,
            captures: AtomicUsize::new(0),
        });
        thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                for stream in listener.incoming() {
                    let host = Arc::clone(&host);
                    let served = stream.and_then(|stream| {
                        let one = thread::Builder::new().name("capture".into());
                        one.spawn(move || host.serve(&stream))
                    });
                    if let Err(error) = served {
                        log::warn!("nobody can capture: {error}");
                        thread::sleep(TIME);
                    }
                }
            })?;
        Ok(CaptureSocket { path })
    }
}

impl Drop for CaptureSocket {
    fn drop(&mut self) {
        // If it is gone already, all the better.
        let _ = fs::remove_file(&self.path);
    }
}

impl<F: Fn() -> Instant> Host<F> {
    fn serve(&self, stream: &UnixStream) {
        let others = self.captures.fetch_add(1, Ordering::Relaxed);
        let served = match others {
            0..MOST => self.capture(stream),
            _ => answer(stream, Some("too many capture already".into())),
        };
        self.captures.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = served {
            log::debug!("a capture has ended: {error}");
        }
    }

    fn capture(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(TIME))?;
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST_WISH)).read_line(&mut line)?;
        let wish: Wish = serde_json::from_str(&line)?;
        let begun = self.interfaces(&wish.vifs).and_then(|interfaces| {
            let (now, today) = ((self.now)(), SystemTime::now());
            capture::start(interfaces, wish.longest, now, today).map_err(|error| error.to_string())
        });
        let (recording, recorder) = match begun {
            Ok(begun) => begun,
            Err(error) => return answer(stream, Some(error)),
        };
        answer(stream, None)?;
        stream.set_read_timeout(None)?;
        let mut listening = stream.try_clone()?;
        thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                // Ends when the client does, or says that it has had enough.
                while listening.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
                drop(recording);
            })?;
        let written = recorder.write(BufWriter::new(stream));
        // Has the other thread end, too, if this is what failed.
        let _ = stream.shutdown(Shutdown::Both);
        let written = written?;
        log::info!(
            "captured {} frames, and had no time for {}",
            written.frames,
            written.lost
        );
        Ok(())
    }

    /// The vifs of these names.
    fn interfaces(&self, names: &[String]) -> Result<Vec<Interface>, String> {
        let reports = self.reports.all().into_iter();
        let live = reports.filter(|report| report.stage != Stage::Ended);
        let mut all: Vec<Interface> = live
            .filter_map(|report| {
                let vif = report.about.vif?;
                Some(Interface {
                    name: vif.name,
                    mac: vif.mac,
                    queues: report.about.stats.queues().to_vec(),
                })
            })
            .collect();
        let missing = |name: &&String| all.iter().all(|interface| interface.name != **name);
        if let Some(missing) = names.iter().find(missing) {
            let there: Vec<&str> = all.iter().map(|vif| vif.name.as_str()).collect();
            return Err(match there[..] {
                [] => format!("there is no vif {missing}, nor any other"),
                _ => format!("there is no vif {missing}: there are {}", there.join(", ")),
            });
        }
        if !names.is_empty() {
            all.retain(|interface| names.contains(&interface.name));
        }
        match all.is_empty() {
            true => Err("there is no vif".into()),
            false => Ok(all),
        }
    }
}

fn answer(mut stream: &UnixStream, error: Option<String>) -> io::Result<()> {
    let mut text = serde_json::to_vec(&Answer { error })?;
    text.push(b'\n');
    stream.write_all(&text)
}

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The daemon cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It does not capture that, and says why.
    #[error("{0}")]
    Refused(String),
}

/// A capture that goes on: read the file from it until its end.
#[derive(Debug)]
pub struct Capturing(BufReader<UnixStream>);

/// Ends a capture, from whichever thread: the rest of the file is still to be read.
#[derive(Debug)]
pub struct Stop(UnixStream);

impl Stop {
    /// Has had enough.
    pub fn stop(&self) {
        // If it has ended already, all the better.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl Read for Capturing {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

/// Has the daemon `name`, whose folder is `folder`, capture vifs.
///
/// # Errors
/// See [`CaptureError`].
pub fn capture(folder: &Path, name: &str, wish: &Wish) -> Result<(Capturing, Stop), CaptureError> {
    let path = path_of(folder, name);
    let asked = || {
        let mut stream = UnixStream::connect(&path)?;
        let mut text = serde_json::to_vec(wish)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        stream.set_read_timeout(Some(TIME))?;
        let stop = Stop(stream.try_clone()?);
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let answer: Answer = serde_json::from_str(&line)?;
        stream.get_ref().set_read_timeout(None)?;
        Ok((answer, Capturing(stream), stop))
    };
    let (answer, capturing, stop) = asked().map_err(|source| AskError::new(name, &path, source))?;
    match answer.error {
        Some(error) => Err(CaptureError::Refused(error)),
        None => Ok((capturing, stop)),
    }
}
