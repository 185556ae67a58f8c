//! Where journals are kept.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parapet_hypervisor::host::{FileMemory, nonce};

use super::header::{BadHeader, Header};
use super::log::{Part, log_len};
use crate::report::Vbd;

/// The folder of a service's journals. Clones are the same folder.
#[derive(Debug, Clone)]
pub struct Journals(Arc<Path>);

/// Why there is no journal to go on with.
#[derive(Debug, thiserror::Error)]
pub enum NotThere {
    /// None was kept, or not of this connection.
    #[error("there is no journal of this connection")]
    None,
    /// It cannot be used.
    #[error("the journal {path}: {why}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: BadHeader,
    },
    /// It cannot be read.
    #[error("the journal {path}: {error}")]
    Host {
        /// The file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
}

impl Journals {
    /// Keeps journals in `folder`, which is made if need be, for nobody else to look into.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::PermissionDenied`] if it is somebody else's, who could make a
    /// guest's requests of what is in it.
    pub fn in_folder(folder: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let folder = folder.canonicalize()?;
        let metadata = fs::metadata(&folder)?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        }
        Ok(Journals(folder.into()))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    fn path(&self, vbd: Vbd) -> PathBuf {
        self.0
            .join(format!("{}-{}.journal", vbd.frontend, vbd.number))
    }

    /// Makes the journal of a new connection of `vbd`, whose frontend has said `keys`, and whose
    /// rings have so many slots. One of an earlier connection gives way.
    ///
    /// # Errors
    /// The host's.
    pub fn create(
        &self,
        vbd: Vbd,
        keys: Vec<(String, String)>,
        slots: Vec<u32>,
    ) -> io::Result<Journal> {
        let name = format!("{:032x}", nonce()?);
        let header = Header { name, slots, keys };
        let bytes = header.encode();
        let logs: usize = header.slots.iter().map(|slots| log_len(*slots)).sum();
        let Some(len) = NonZeroUsize::new(bytes.len() + logs) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let path = self.path(vbd);
        let new = path.with_extension("new");
        remove(&new)?;
        let file = FileMemory::create(&new, len).inspect_err(|_| {
            // Half made, when there is no room.
            let _ = remove(&new);
        })?;
        // Inside, since it was made as long.
        let _ = file.view().write_bytes(0, &bytes);
        fs::rename(&new, &path)?;
        Ok(Journal {
            first: bytes.len(),
            file: Arc::new(file),
            header,
        })
    }

    /// The journal of the connection that `name` is the name of.
    ///
    /// # Errors
    /// There is none, or it is no good.
    pub fn open(&self, vbd: Vbd, name: &str) -> Result<Journal, NotThere> {
        let path = self.path(vbd);
        let file = match FileMemory::open(&path) {
            Ok(file) => Arc::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NotThere::None),
            Err(error) => return Err(NotThere::Host { path, error }),
        };
        let read = |range: std::ops::Range<usize>| {
            let mut bytes = vec![0; range.len()];
            let read = file.view().read_bytes(range.start, &mut bytes);
            read.is_ok().then_some(bytes)
        };
        let (header, first) = match Header::decode(read) {
            Ok(decoded) => decoded,
            Err(why) => return Err(NotThere::Bad { path, why }),
        };
        if header.name != name {
            return Err(NotThere::None);
        }
        let journal = Journal {
            file,
            header,
            first,
        };
        let whole = (0..journal.header.slots.len()).all(|queue| journal.log(queue).is_some());
        match whole {
            true => Ok(journal),
            false => Err(NotThere::Bad {
                path,
                why: BadHeader::Damaged,
            }),
        }
    }

    /// Removes the journal of `vbd`, if there is one.
    ///
    /// # Errors
    /// The host's.
    pub fn remove(&self, vbd: Vbd) -> io::Result<()> {
        remove(&self.path(vbd))
    }

    /// Removes the journals of all vbds that `keep` does not want.
    ///
    /// # Errors
    /// The host's.
    pub fn retain(&self, keep: impl Fn(Vbd) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let of = path.file_name().and_then(|name| vbd_of(name.to_str()?));
            if of.is_some_and(|vbd| !keep(vbd)) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Whose a file is, if it is a journal, also one that was not finished.
fn vbd_of(name: &str) -> Option<Vbd> {
    let stem = name
        .strip_suffix(".journal")
        .or_else(|| name.strip_suffix(".new"))?;
    let (frontend, number) = stem.split_once('-')?;
    Some(Vbd {
        frontend: parapet_xen_sys::DomId(frontend.parse().ok()?),
        number: number.parse().ok()?,
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The journal of a connection. Dropping it leaves the file as it is.
#[derive(Debug)]
pub struct Journal {
    file: Arc<FileMemory>,
    header: Header,
    /// Where the first log begins.
    first: usize,
}

impl Journal {
    /// What it begins with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the frontend said when it connected.
    pub fn get(&self, wanted: &str) -> Option<String> {
        let found = self.header.keys.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| value.clone())
    }

    /// The place for the log of a queue.
    pub fn log(&self, queue: usize) -> Option<Part> {
        let slots = *self.header.slots.get(queue)?;
        let before = self.header.slots.get(..queue)?;
        let before: usize = before.iter().map(|slots| log_len(*slots)).sum();
        Part::new(&self.file, self.first + before, slots)
    }
}

#[cfg(test)]
mod tests {
    use parapet_xen_sys::DomId;

    use super::*;

    fn vbd(frontend: u16) -> Vbd {
        Vbd {
            frontend: DomId(frontend),
            number: 51712,
        }
    }

    fn journals() -> (Journals, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let journals = Journals::in_folder(&folder.path().join("a/b")).unwrap();
        (journals, folder)
    }

    fn keys() -> Vec<(String, String)> {
        vec![("ring-ref".into(), "8".into())]
    }

    #[test]
    fn a_journal_is_found_by_the_name_of_its_connection_and_by_no_other() {
        let (journals, _folder) = journals();
        let made = journals.create(vbd(5), keys(), vec![32, 64]).unwrap();
        let name = made.header().name.clone();
        let found = journals.open(vbd(5), &name).unwrap();
        assert_eq!(found.header(), made.header());
        assert_eq!(found.get("ring-ref").as_deref(), Some("8"));
        assert_eq!(found.get("ring"), None);
        // Another guest that was given the same domain id, and another of the same name.
        assert!(matches!(journals.open(vbd(5), "x"), Err(NotThere::None)));
        assert!(matches!(journals.open(vbd(6), &name), Err(NotThere::None)));
        let next = journals.create(vbd(5), keys(), vec![32]).unwrap();
        assert!(matches!(journals.open(vbd(5), &name), Err(NotThere::None)));
        journals.open(vbd(5), &next.header().name).unwrap();
    }

    #[test]
    fn logs_lie_side_by_side_and_within_the_file() {
        let (journals, _folder) = journals();
        let made = journals.create(vbd(5), keys(), vec![1, 2]).unwrap();
        let ends: Vec<_> = (0..2).map(|queue| made.log(queue).unwrap()).collect();
        assert_eq!((ends[0].slots(), ends[1].slots()), (1, 2));
        assert!(made.log(2).is_none());
        use super::super::Memory;
        ends[0].set(log_len(1) - 8, 1);
        ends[1].set(0, 2);
        assert_eq!(ends[0].word(log_len(1) - 8), 1);
        assert_eq!(ends[1].word(0), 2);
    }

    #[test]
    fn a_file_that_is_cut_off_or_is_something_else_is_no_journal() {
        let (journals, _folder) = journals();
        let made = journals.create(vbd(5), keys(), vec![32]).unwrap();
        let name = made.header().name.clone();
        let path = journals.path(vbd(5));
        let bytes = fs::read(&path).unwrap();
        for len in [1, 8, 30, 100, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            let opened = journals.open(vbd(5), &name);
            assert!(matches!(opened, Err(NotThere::Bad { .. })), "{len}");
        }
        fs::write(&path, "").unwrap();
        let opened = journals.open(vbd(5), &name);
        assert!(matches!(opened, Err(NotThere::Host { .. })));
    }

    #[test]
    fn the_folder_is_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let journals = Journals::in_folder(folder.path()).unwrap();
        let mode = fs::metadata(journals.folder()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        journals.create(vbd(5), keys(), vec![1]).unwrap();
        let mode = fs::metadata(journals.path(vbd(5))).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn journals_that_nobody_wants_are_removed_and_other_files_are_not() {
        let (journals, _folder) = journals();
        for frontend in [5, 6] {
            journals.create(vbd(frontend), keys(), vec![1]).unwrap();
        }
        fs::write(journals.folder().join("README"), "").unwrap();
        journals.retain(|vbd| vbd.frontend == DomId(6)).unwrap();
        let mut left: Vec<_> = fs::read_dir(journals.folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["6-51712.journal", "README"]);
        journals.remove(vbd(6)).unwrap();
        journals.remove(vbd(6)).unwrap();
    }
}
