//! The host's files: where a trace or a report goes that CONTROL asks for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use parapet_xen_sys::Errno;

use super::daemon::Files;

/// Where C xenstored puts a file whose name does not begin with a slash.
pub const FOLDER: &str = "/var/lib/xen/xenstore";

/// Files, with relative names in one folder. Only their owner can read them: they tell what is in
/// the store.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Relative names are in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Folder(folder.into())
    }

    fn write(&self, file: &OsStr, text: &[u8]) -> io::Result<()> {
        let mut options = File::options();
        let options = options.append(true).create(true).mode(0o600);
        options.open(self.0.join(file))?.write_all(text)
    }
}

impl Default for Folder {
    fn default() -> Self {
        Folder::new(FOLDER)
    }
}

impl Files for Folder {
    fn append(&mut self, file: &[u8], text: &[u8]) -> Result<(), Errno> {
        let file = OsStr::from_bytes(file);
        self.write(file, text).map_err(|error| {
            log::warn!("{}: {error}", self.0.join(file).display());
            Errno::EINVAL
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_added_to_a_file_named_by_a_path_or_within_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Folder::new(folder.path());
        files.append(b"log", b"one\n").unwrap();
        let whole = folder.path().join("log");
        let name = whole.as_os_str().as_bytes();
        files.append(name, b"two\n").unwrap();
        assert_eq!(std::fs::read(&whole).unwrap(), b"one\ntwo\n");
        assert_eq!(files.append(b"no/such/folder", b""), Err(Errno::EINVAL));
    }
}
