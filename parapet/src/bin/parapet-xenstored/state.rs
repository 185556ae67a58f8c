//! Where the state is while one program follows another.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use parapet_xenstore::server::{Restored, restore};
use parapet_xenstore::store::Quotas;

/// Where C xenstored looks: since Xen 4.18 in its run directory, before that where it keeps its
/// database. Ours is in the former.
fn places() -> [PathBuf; 2] {
    let folder = |variable, usual: &str| {
        let folder = std::env::var_os(variable).unwrap_or_else(|| usual.into());
        PathBuf::from(folder).join("state_dump")
    };
    [
        folder("XENSTORED_RUNDIR", "/run/xenstored"),
        folder("XENSTORED_ROOTDIR", "/var/lib/xenstored"),
    ]
}

/// A stream on its way from one program to the next, in files. The one that writes them takes them
/// away when this is dropped: then there was no way. The one that reads them does it when it is done:
/// what it cannot go on from, somebody else may have to look at.
#[derive(Debug)]
pub(crate) struct StateFiles {
    places: Vec<PathBuf>,
    go: bool,
}

impl StateFiles {
    /// Writes it: for one of our kind to the one place, for any other to both, as there is no
    /// telling which it looks at.
    pub(crate) fn write(stream: &[u8], ours: bool) -> io::Result<Self> {
        let mut files = StateFiles {
            places: Vec::new(),
            go: true,
        };
        let count = if ours { 1 } else { 2 };
        for place in places().into_iter().take(count) {
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder)?;
            }
            // Made anew: nobody else has it open, or has made it a link to another.
            gone(&place)?;
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&place)?;
            files.places.push(place);
            file.write_all(stream)?;
        }
        Ok(files)
    }

    /// The first of them.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.places.first().map(PathBuf::as_path)
    }

    /// The stream that the program before this one has left.
    pub(crate) fn found() -> Result<(Self, Vec<u8>)> {
        let files = StateFiles {
            places: places().into(),
            go: false,
        };
        let there = files.places.iter().filter_map(|place| {
            let written = fs::metadata(place).and_then(|file| file.modified());
            Some((written.ok()?, place))
        });
        let latest = there.max_by_key(|(written, _)| *written);
        let (_, place) = latest.ok_or_else(|| {
            let [run, root] = places();
            anyhow!(
                "there is no state to go on from, neither {} nor {}",
                run.display(),
                root.display()
            )
        })?;
        let stream = fs::read(place).with_context(|| place.display().to_string())?;
        Ok((files, stream))
    }

    /// They have been read, and are needed no more.
    pub(crate) fn done(mut self) {
        self.go = true;
    }
}

impl Drop for StateFiles {
    fn drop(&mut self) {
        for place in self.places.iter().filter(|_| self.go) {
            if let Err(error) = gone(place) {
                log::warn!("{} is left behind: {error}", place.display());
            }
        }
    }
}

fn gone(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A server of a stream. Its generations begin at the time of day in nanoseconds, which is more
/// than any server before it can have counted to.
pub(crate) fn restored(stream: &[u8], quotas: Quotas) -> Result<Restored> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    let generation = u64::try_from(now).unwrap_or(u64::MAX / 2);
    Ok(restore(stream, quotas, generation)?)
}

/// What is said of a state from which a server can go on: neither help nor a version is.
pub(crate) const CHECKED: &str = "a xenstored can go on from this state\n";

/// Whether a server can be made of the stream in `file`: what an update asks the new program
/// before it becomes it.
pub(crate) fn check(file: &Path, quotas: Quotas) -> Result<()> {
    let stream = fs::read(file).with_context(|| file.display().to_string())?;
    restored(&stream, quotas).with_context(|| file.display().to_string())?;
    io::stdout().write_all(CHECKED.as_bytes())?;
    Ok(())
}
