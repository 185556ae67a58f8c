//! The snapshots that an image keeps of itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::OpenError;
use super::super::file::size;
use super::header::Header;

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
        snapshots.push(Snapshot {
            id: text(take_some(&mut table, id.into())?),
            name: text(take_some(&mut table, name.into())?),
            seconds,
            bytes: bytes.map_or(header.bytes, u64::from_be_bytes),
            l1_offset,
            l1_entries,
            rest: Rest {
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
