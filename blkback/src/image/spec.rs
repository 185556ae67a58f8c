//! Naming an image, as a disk's `target` and the xenstore key `params` do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use parapet_hypervisor::host::{Lease, aside};

use super::nbd::{AddressError, NbdAddress, NbdImage};
use super::qcow2::{Qcow2Image, Trust};
use super::{Access, FileImage, Image, MemoryImage, NullImage, SECTOR_SIZE};

/// Which image is meant.
///
/// | text | meaning |
/// |---|---|
/// | `qcow2:PATH` | a qcow2 image that stands alone: it is refused if it names a backing file |
/// | `overlay:PATH` | a qcow2 image, with the backing files that it names if they are in its folder, or in one below that |
/// | `overlay=FOLDER:PATH` | the same, with backing files in FOLDER or below it; there is no colon in FOLDER |
/// | `nbd:unix:PATH` and other addresses ([`NbdAddress`]) | a disk behind an NBD server |
/// | `null:SIZE` | no data: writes are dropped, reads leave memory as it was |
/// | `memory:SIZE` | a RAM disk, zero at first |
/// | anything else | the path of a raw file or block device |
///
/// A size is a number of bytes, or one with `K`, `M`, `G` or `T` (powers of 1024). A file whose
/// name begins like one of the former is reached as `./null:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// See [`NullImage`].
    Null {
        /// Its size.
        sectors: u64,
    },
    /// See [`MemoryImage`].
    Memory {
        /// Its size.
        sectors: u64,
    },
    /// See [`FileImage`].
    File(PathBuf),
    /// See [`Qcow2Image`].
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// Which backing files may be opened.
        trust: Trust,
    },
    /// See [`NbdImage`].
    Nbd(NbdAddress),
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// There is none.
    #[error("the disk has no image: give the path of one, or null:SIZE or memory:SIZE")]
    Empty,
    /// No size after the colon.
    #[error("{text:?} has no size such as 512M or 1G after the colon")]
    Size {
        /// What was given.
        text: String,
    },
    /// No NBD server.
    #[error(transparent)]
    Nbd(#[from] AddressError),
    /// No path after the colon.
    #[error("{text:?} names no file: give qcow2:PATH, overlay:PATH or overlay=FOLDER:PATH")]
    Path {
        /// What was given.
        text: String,
    },
    /// A size that no disk has.
    #[error("{text:?} is not a size for a disk: it must be a multiple of 512 bytes, and not zero")]
    Sectors {
        /// What was given.
        text: String,
    },
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() {
            Err(SpecError::Empty)
        } else if let Some(size) = text.strip_prefix("null:") {
            sectors(text, size).map(|sectors| Spec::Null { sectors })
        } else if let Some(size) = text.strip_prefix("memory:") {
            sectors(text, size).map(|sectors| Spec::Memory { sectors })
        } else if let Some(path) = text.strip_prefix("qcow2:") {
            qcow2(text, path, Trust::Nothing)
        } else if let Some(path) = text.strip_prefix("overlay:") {
            qcow2(text, path, Trust::Beside)
        } else if let Some(rest) = text.strip_prefix("overlay=") {
            match rest.split_once(':') {
                Some((folder, path)) if !folder.is_empty() => {
                    qcow2(text, path, Trust::Below(folder.into()))
                }
                _ => Err(SpecError::Path { text: text.into() }),
            }
        } else if NbdAddress::is_meant(text) {
            Ok(Spec::Nbd(text.parse()?))
        } else {
            Ok(Spec::File(text.into()))
        }
    }
}

fn qcow2(text: &str, path: &str, trust: Trust) -> Result<Spec, SpecError> {
    if path.is_empty() {
        return Err(SpecError::Path { text: text.into() });
    }
    Ok(Spec::Qcow2 {
        path: path.into(),
        trust,
    })
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Null { sectors } => write!(f, "null:{}", *sectors * SECTOR_SIZE as u64),
            Spec::Memory { sectors } => write!(f, "memory:{}", *sectors * SECTOR_SIZE as u64),
            Spec::File(path) => path.display().fmt(f),
            Spec::Nbd(address) => address.fmt(f),
            Spec::Qcow2 { path, trust } => match trust {
                Trust::Nothing => write!(f, "qcow2:{}", path.display()),
                Trust::Beside => write!(f, "overlay:{}", path.display()),
                Trust::Below(folder) => {
                    write!(f, "overlay={}:{}", folder.display(), path.display())
                }
            },
        }
    }
}

/// The sectors in `size`, which is part of `text`.
fn sectors(text: &str, size: &str) -> Result<u64, SpecError> {
    let bytes = bytes(size).ok_or_else(|| SpecError::Size { text: text.into() })?;
    match (bytes / SECTOR_SIZE as u64, bytes % SECTOR_SIZE as u64) {
        (0, _) | (_, 1..) => Err(SpecError::Sectors { text: text.into() }),
        (sectors, 0) => Ok(sectors),
    }
}

/// The bytes in a size: a number, or one with `K`, `M`, `G` or `T` (powers of 1024).
pub fn bytes(size: &str) -> Option<u64> {
    let (digits, shift) = match size.char_indices().last()? {
        (at, 'k' | 'K') => (&size[..at], 10),
        (at, 'm' | 'M') => (&size[..at], 20),
        (at, 'g' | 'G') => (&size[..at], 30),
        (at, 't' | 'T') => (&size[..at], 40),
        _ => (size, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None; // a sign, which the parser would take
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Spec {
    /// The file that the image is in, if it is in one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Spec::File(path) | Spec::Qcow2 { path, .. } => Some(path),
            Spec::Null { .. } | Spec::Memory { .. } | Spec::Nbd(_) => None,
        }
    }

    /// The same with files below `folder`, where they are not absolute.
    pub fn below(mut self, folder: &Path) -> Self {
        match &mut self {
            Spec::File(path) => *path = folder.join(&*path),
            Spec::Qcow2 { path, trust } => {
                *path = folder.join(&*path);
                if let Trust::Below(bases) = trust {
                    *bases = folder.join(&*bases);
                }
            }
            Spec::Null { .. } | Spec::Memory { .. } | Spec::Nbd(_) => {}
        }
        self
    }

    /// Opens the image.
    ///
    /// # Errors
    /// One line that names the image and says what to do.
    pub fn open<L: Lease>(&self, access: Access) -> Result<Arc<dyn Image<L>>, OpenError> {
        Ok(match self {
            Spec::Null { sectors } => Arc::new(NullImage::new(*sectors)),
            Spec::Memory { sectors } => Arc::new(
                MemoryImage::new(*sectors, access)
                    .map_err(|error| OpenError::NoMemory(self.to_string(), error))?,
            ),
            Spec::File(path) => Arc::new(FileImage::open(path, access)?),
            Spec::Qcow2 { path, trust } => Arc::new(Qcow2Image::open(path, access, trust)?),
            Spec::Nbd(address) => Arc::new(NbdImage::open(address, access)?),
        })
    }

    /// Opens the image without keeping the caller's thread: a file server that does not answer, or
    /// a volume that is suspended, may keep whoever looks at its files for ever.
    ///
    /// # Errors
    /// As [`Spec::open`].
    pub async fn open_aside<L: Lease>(
        self,
        access: Access,
    ) -> Result<Arc<dyn Image<L>>, OpenError> {
        let path = match &self {
            Spec::Null { .. } | Spec::Memory { .. } => return self.open(access),
            Spec::File(path) | Spec::Qcow2 { path, .. } => path.clone(),
            Spec::Nbd(address) => address.to_string().into(),
        };
        let failed = |source| OpenError::Host {
            path,
            what: "opened",
            source,
        };
        // An image that nobody waits for any more is closed at once.
        match aside(move || self.open(access)) {
            Ok(opening) => match opening.await {
                Some(opened) => opened,
                None => Err(failed(io::ErrorKind::Other.into())),
            },
            Err(error) => Err(failed(error)),
        }
    }
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host has not enough memory.
    #[error("the disk {0} does not fit the host's memory ({1}): make it smaller")]
    NoMemory(String, #[source] io::Error),
    /// There is no such file.
    #[error("the disk image {} does not exist: correct its path, or make one with \
             `truncate -s 1G {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// It may not be opened like that.
    #[error("the disk image {} may not be {what}: change its permissions{}", .path.display(),
            if *.what == "written" { ", or attach it with access=ro" } else { "" })]
    Permission {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
    },
    /// It is not a file.
    #[error("the disk image {} is {what}: give a regular file or a block device", .path.display())]
    NotADisk {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It is empty.
    #[error("the disk image {} is empty: give it a size with `truncate -s 1G {}`",
            .0.display(), .0.display())]
    Empty(PathBuf),
    /// Its end is no sector's end.
    #[error("the disk image {} has {bytes} bytes, which is not a multiple of 512: round it up with \
             `truncate -s %512 {}`", .path.display(), .path.display())]
    Odd {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Somebody uses it.
    #[error("the disk image {} is in use by somebody else{}: stop that first", .path.display(),
            if *.writing { ", or mounted" } else { " who writes to it" })]
    Busy {
        /// The file.
        path: PathBuf,
        /// Whether it was to be written.
        writing: bool,
    },
    /// It is not what it should be.
    #[error("the disk image {} is no {format} image that can be used: {why}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it should be.
        format: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A server has no disk for us.
    #[error("the disk {address} cannot be used: {why}")]
    Nbd {
        /// Where it is.
        address: String,
        /// Why not.
        why: String,
    },
    /// What is behind it cannot be used.
    #[error("the disk image {} cannot be used with its backing file {backing:?}: {why}",
            .path.display())]
    Backing {
        /// The file.
        path: PathBuf,
        /// What it names as its backing file.
        backing: String,
        /// Why not.
        why: String,
    },
    /// The host failed.
    #[error("the disk image {} cannot be {what}: {source}", .path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_of_powers_of_1024() {
        for (text, sectors) in [
            ("null:512", 1),
            ("null:1K", 2),
            ("null:3m", 3 << 11),
            ("null:1G", 1 << 21),
            ("null:2T", 2 << 31),
        ] {
            assert_eq!(text.parse(), Ok(Spec::Null { sectors }), "{text}");
        }
        assert_eq!("memory:1M".parse(), Ok(Spec::Memory { sectors: 2048 }));
    }

    #[test]
    fn a_size_that_is_none_is_refused_with_the_text() {
        for text in [
            "null:",
            "null:G",
            "memory:-1",
            "memory:+1K",
            "null:1X",
            "null:1.5G",
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert_eq!(error, SpecError::Size { text: text.into() });
        }
        assert!(matches!(
            "null:20000000T".parse::<Spec>(),
            Err(SpecError::Size { .. })
        ));
        for text in ["null:0", "memory:1000"] {
            let error = text.parse::<Spec>().unwrap_err();
            assert_eq!(error, SpecError::Sectors { text: text.into() });
        }
        assert_eq!("".parse::<Spec>(), Err(SpecError::Empty));
        for text in [
            "qcow2:",
            "overlay:",
            "overlay=:a",
            "overlay=a",
            "overlay=a:",
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert_eq!(error, SpecError::Path { text: text.into() });
        }
    }

    #[test]
    fn anything_else_is_a_path() {
        for text in ["/a/b.img", "./null:1G", "null"] {
            assert_eq!(text.parse(), Ok(Spec::File(text.into())));
        }
    }

    #[test]
    fn a_spec_prints_as_it_is_parsed() {
        for text in [
            "null:1G",
            "memory:512K",
            "/some/file",
            "qcow2:/some/file",
            "overlay:a:b",
            "nbd:unix:/run/a:disk",
            "nbd://host/disk",
            "overlay=/srv/base images:/some/file",
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(spec.to_string().parse(), Ok(spec));
        }
    }
}
