//! The snapshots that an image keeps of itself.
//!
//! A snapshot is an L1 table of its own, whose clusters the image then shares until it writes
//! others in their place. Who uses which cluster is counted anew for each change, and written
//! behind the end of the file beside the new tables; then one write of the header's first sector
//! makes all of it hold at once. Whatever happens meanwhile, the image is as it was before or as it
//! is to be. Nobody else may have it open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::file::size;
use super::super::lock::Locked;
use super::super::opening::Opening;
use super::super::{Access, OpenError};
use super::chain::read_header;
use super::header::Header;
use super::punch;
use super::refcounts::{Counts, L1, bytes};

/// The most bytes in the table of snapshots: QEMU's limit.
const MAX_TABLE: u64 = 64 << 20;

/// What every entry begins with.
const FIXED: usize = 40;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The number that it is known by.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub seconds: u32,
    /// The disk's bytes then.
    pub bytes: u64,
    /// Where its L1 table is.
    l1_offset: u64,
    /// How many entries that has.
    l1_entries: u32,
    /// What else its entry says, as it is there: times, and what other programs have added.
    rest: Rest,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rest {
    /// Id and name as they are, which need not be text.
    id: Vec<u8>,
    name: Vec<u8>,
    nanoseconds: u32,
    vm_clock: u64,
    vm_state: u32,
    extra: Vec<u8>,
}

/// Reads the table of snapshots.
///
/// # Errors
/// It makes no sense, or cannot be read.
pub(super) fn read(path: &Path, file: &File, header: &Header) -> Result<Vec<Snapshot>, OpenError> {
    if header.snapshots == 0 {
        return Ok(Vec::new());
    }
    let failed = |source| OpenError::Host {
        path: path.into(),
        what: "searched for its snapshots",
        source,
    };
    let end = size(file).map_err(failed)?;
    let len = end
        .saturating_sub(header.snapshots_offset)
        .min(MAX_TABLE)
        // With names as long as they may be, and as much besides as anybody adds.
        .min(u64::from(header.snapshots) * (FIXED as u64 + 2 * 65536 + 1024));
    let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut table, header.snapshots_offset)
        .map_err(failed)?;
    parse(&table, header).ok_or_else(|| OpenError::Format {
        path: path.into(),
        format: "qcow2",
        why: "its table of snapshots makes no sense".into(),
    })
}

/// Takes `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn take_some<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn parse(mut table: &[u8], header: &Header) -> Option<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    for _ in 0..header.snapshots {
        let whole = table.len();
        let l1_offset = take(&mut table).map(u64::from_be_bytes)?;
        let l1_entries = take(&mut table).map(u32::from_be_bytes)?;
        let id = take(&mut table).map(u16::from_be_bytes)?;
        let name = take(&mut table).map(u16::from_be_bytes)?;
        let seconds = take(&mut table).map(u32::from_be_bytes)?;
        let nanoseconds = take(&mut table).map(u32::from_be_bytes)?;
        let vm_clock = take(&mut table).map(u64::from_be_bytes)?;
        let vm_state = take(&mut table).map(u32::from_be_bytes)?;
        let extra = take(&mut table).map(u32::from_be_bytes)?;
        let extra = take_some(&mut table, usize::try_from(extra).ok()?)?;
        let bytes = extra.get(8..16).and_then(|bytes| bytes.try_into().ok());
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let id = take_some(&mut table, id.into())?;
        let name = take_some(&mut table, name.into())?;
        snapshots.push(Snapshot {
            id: text(id),
            name: text(name),
            seconds,
            bytes: bytes.map_or(header.bytes, u64::from_be_bytes),
            l1_offset,
            l1_entries,
            rest: Rest {
                id: id.into(),
                name: name.into(),
                nanoseconds,
                vm_clock,
                vm_state,
                extra: extra.into(),
            },
        });
        // Each begins at a multiple of eight; the last one's padding may be behind the end.
        let used = whole - table.len();
        let padding = used.next_multiple_of(8) - used;
        table = table.get(padding..).unwrap_or_default();
    }
    Some(snapshots)
}

fn encode(snapshots: &[Snapshot]) -> Vec<u8> {
    let mut table = Vec::new();
    for snapshot in snapshots {
        let Rest {
            id,
            name,
            nanoseconds,
            vm_clock,
            vm_state,
            extra,
        } = &snapshot.rest;
        table.resize(table.len().next_multiple_of(8), 0);
        table.extend(snapshot.l1_offset.to_be_bytes());
        table.extend(snapshot.l1_entries.to_be_bytes());
        // As long as they were, or checked when they were made.
        table.extend((id.len() as u16).to_be_bytes());
        table.extend((name.len() as u16).to_be_bytes());
        table.extend(snapshot.seconds.to_be_bytes());
        table.extend(nanoseconds.to_be_bytes());
        table.extend(vm_clock.to_be_bytes());
        table.extend(vm_state.to_be_bytes());
        table.extend((extra.len() as u32).to_be_bytes());
        table.extend(extra);
        table.extend(id);
        table.extend(name);
    }
    table.resize(table.len().next_multiple_of(8), 0);
    table
}

/// Makes a snapshot of the image at `path`.
///
/// # Errors
/// One line that says why not; the image is as it was.
pub fn create(path: &Path, name: &str) -> Result<(), OpenError> {
    let mut image = Editor::open(path)?;
    image.change(|image| {
        if image.snapshots.iter().any(|other| other.name == name) {
            return Err(io::Error::other(format!(
                "there is a snapshot {name:?} already"
            )));
        }
        if name.is_empty() || name.len() > 255 {
            return Err(io::Error::other("a snapshot's name has 1 to 255 bytes"));
        }
        let ids = image
            .snapshots
            .iter()
            .filter_map(|other| other.id.parse().ok());
        let id = ids.max().unwrap_or(0u64).saturating_add(1);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let l1 = image.copy(image.active)?;
        let mut extra = vec![0; 8];
        extra.extend(image.header.bytes.to_be_bytes());
        image.snapshots.push(Snapshot {
            id: id.to_string(),
            name: name.into(),
            seconds: now.as_secs().try_into().unwrap_or(u32::MAX),
            bytes: image.header.bytes,
            l1_offset: l1.offset,
            l1_entries: l1.entries,
            rest: Rest {
                id: id.to_string().into(),
                name: name.into(),
                nanoseconds: now.subsec_nanos(),
                extra,
                ..Rest::default()
            },
        });
        Ok(())
    })
}

/// Makes the image at `path` what it was when the snapshot was made.
///
/// # Errors
/// One line that says why not; the image is as it was.
pub fn apply(path: &Path, name: &str) -> Result<(), OpenError> {
    let mut image = Editor::open(path)?;
    image.change(|image| {
        let snapshot = image.find(name)?;
        let snapshot = image.snapshots.get(snapshot).cloned();
        let snapshot = snapshot.ok_or(io::ErrorKind::NotFound)?;
        if snapshot.bytes == 0 || !snapshot.bytes.is_multiple_of(512) {
            return Err(io::Error::other("it was no disk of whole sectors then"));
        }
        image.active = image.copy(L1 {
            offset: snapshot.l1_offset,
            entries: snapshot.l1_entries,
        })?;
        let needed = snapshot.bytes.div_ceil(image.header.l2_reach());
        if needed > u64::from(image.active.entries) {
            return Err(io::Error::other("its L1 table is too small for its disk"));
        }
        image.header.bytes = snapshot.bytes;
        Ok(())
    })
}

/// Forgets a snapshot of the image at `path`, and gives back the room that only it took up.
///
/// # Errors
/// One line that says why not; the image is as it was.
pub fn delete(path: &Path, name: &str) -> Result<(), OpenError> {
    let mut image = Editor::open(path)?;
    image.change(|image| {
        let index = image.find(name)?;
        image.snapshots.remove(index);
        Ok(())
    })
}

/// An image that is being changed.
struct Editor<'a> {
    path: &'a Path,
    file: Locked,
    header: Header,
    snapshots: Vec<Snapshot>,
    active: L1,
    /// Where the file ends: a whole number of clusters.
    end: u64,
}

impl<'a> Editor<'a> {
    fn open(path: &'a Path) -> Result<Self, OpenError> {
        let opening = Opening {
            path,
            access: Access::ReadWrite,
        };
        let (file, _) = opening.file(false)?;
        let file = opening.lock(file)?;
        let header = read_header(path, file.file())?;
        let snapshots = read(path, file.file(), &header)?;
        let end = size(file.file()).map_err(|error| opening.failed("measured", error))?;
        Ok(Editor {
            path,
            active: L1 {
                offset: header.l1_offset,
                entries: header.l1_entries,
            },
            end: end.next_multiple_of(header.cluster()),
            file,
            header,
            snapshots,
        })
    }

    /// Of a name, or else of an id.
    fn find(&self, name: &str) -> io::Result<usize> {
        let by_name = self.snapshots.iter().position(|one| one.name == name);
        by_name
            .or_else(|| self.snapshots.iter().position(|one| one.id == name))
            .ok_or_else(|| io::Error::other(format!("there is no snapshot {name:?}")))
    }

    /// Takes room behind the end.
    fn place(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.end;
        self.file.file().write_all_at(bytes, at)?;
        self.end = (at + bytes.len() as u64).next_multiple_of(self.header.cluster());
        self.file.file().set_len(self.end)?;
        Ok(at)
    }

    fn copy(&mut self, l1: L1) -> io::Result<L1> {
        let counts = Counts::new(self.file.file(), &self.header, self.end)?;
        let table = counts.table(l1.offset, l1.entries as usize)?;
        Ok(L1 {
            offset: self.place(&bytes(&table))?,
            ..l1
        })
    }

    /// Decides on other tables, and puts them in place of those that hold.
    fn change(&mut self, edit: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), OpenError> {
        let changed = self.try_to_change(edit);
        changed.map_err(|source| OpenError::Host {
            path: self.path.into(),
            what: "changed",
            source,
        })
    }

    fn try_to_change(&mut self, edit: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let mut sector = [0; 512];
        self.file.file().read_exact_at(&mut sector, 0)?;
        // Bitmaps have clusters of their own, which would not be counted.
        if self.header.version >= 3 && sector.get(88..96) != Some(&[0; 8]) {
            return Err(io::Error::other(
                "it has persistent bitmaps, with which its snapshots cannot be changed",
            ));
        }
        edit(self)?;
        let table = encode(&self.snapshots);
        let place = match self.snapshots.is_empty() {
            true => 0,
            false => self.place(&table)?,
        };
        let file = self.file.file();
        let mut counts = Counts::new(file, &self.header, self.end)?;
        counts.add(0, self.header.cluster())?;
        counts.add_tree(self.active)?;
        counts.add(place, if place == 0 { 0 } else { table.len() as u64 })?;
        for snapshot in &self.snapshots {
            counts.add_tree(L1 {
                offset: snapshot.l1_offset,
                entries: snapshot.l1_entries,
            })?;
        }
        let (refcounts, clusters) = counts.write(&self.header)?;
        // What will be shared is not to be taken for our own from now on.
        counts.mark(self.active, false)?;
        file.sync_all()?;
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = sector.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(24, &self.header.bytes.to_be_bytes());
        put(36, &self.active.entries.to_be_bytes());
        put(40, &self.active.offset.to_be_bytes());
        put(48, &refcounts.to_be_bytes());
        put(56, &clusters.to_be_bytes());
        put(60, &(self.snapshots.len() as u32).to_be_bytes());
        put(64, &place.to_be_bytes());
        file.write_all_at(&sector, 0)?;
        file.sync_all()?;
        // It holds. What was shared before may be our own now.
        counts.mark(self.active, true)?;
        punch(file, counts.unused());
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_kept_as_it_is() {
        let mut header = Header::parse(&super::super::header::tests::cluster(), 1 << 20).unwrap();
        header.snapshots = 1;
        let mut table = vec![0; 40];
        table[12..16].copy_from_slice(&[0, 1, 0xff, 0xff]);
        table.push(b'1');
        // In no encoding that anybody knows.
        table.extend([0xe4; 0xffff]);
        let snapshots = parse(&table, &header).unwrap();
        table.resize(table.len().next_multiple_of(8), 0);
        assert_eq!(encode(&snapshots), table);
    }
}
