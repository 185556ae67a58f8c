//! Counting anew who uses each cluster of an image that nobody else has open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{Header, MAX_L1};
use super::tables::{COMPRESSED, OFFSET, damaged, words};

/// The most clusters that are counted: a counter has four bytes.
const MOST: u64 = 64 << 20;

/// In L1 and L2 tables: nobody else uses it.
const COPIED: u64 = 1 << 63;

/// A table of L2 tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct L1 {
    pub(super) offset: u64,
    pub(super) entries: u32,
}

/// How often each cluster is used.
pub(super) struct Counts<'a> {
    file: &'a File,
    bits: u32,
    counts: Vec<u32>,
}

impl<'a> Counts<'a> {
    /// None is, up to `end`, which is where the file ends.
    pub(super) fn new(file: &'a File, header: &Header, end: u64) -> io::Result<Self> {
        let clusters = end.div_ceil(header.cluster());
        if clusters > MOST {
            return Err(io::Error::other("it has too many clusters for snapshots"));
        }
        Ok(Counts {
            file,
            bits: header.cluster_bits,
            counts: vec![0; clusters as usize],
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.bits
    }

    /// How often the cluster at `offset` is used.
    pub(super) fn get(&self, offset: u64) -> u32 {
        let count = self.counts.get((offset >> self.bits) as usize);
        count.copied().unwrap_or(0)
    }

    /// Counts a range.
    pub(super) fn add(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let first = offset >> self.bits;
        let end = offset
            .checked_add(len)
            .map(|end| end.div_ceil(self.cluster()))
            .and_then(|end| usize::try_from(end).ok());
        let range = end.and_then(|end| self.counts.get_mut(first as usize..end));
        for count in range.ok_or_else(|| damaged("it names what is not in its file"))? {
            let more = count.checked_add(1);
            *count = more.ok_or_else(|| damaged("too much names the same cluster"))?;
        }
        Ok(())
    }

    /// Counts a tree: its root, the tables below, and what they name.
    pub(super) fn add_tree(&mut self, l1: L1) -> io::Result<()> {
        if u64::from(l1.entries) * 8 > MAX_L1 {
            return Err(damaged("one of its L1 tables has an impossible size"));
        }
        self.add(l1.offset, u64::from(l1.entries) * 8)?;
        for l2 in self.table(l1.offset, l1.entries as usize)? {
            let offset = l2 & OFFSET;
            if offset == 0 {
                continue;
            }
            self.add(offset, self.cluster())?;
            for entry in self.table(offset, self.cluster() as usize / 8)? {
                if entry & COMPRESSED != 0 {
                    let (start, len) = compressed(entry, self.bits);
                    self.add(start, len)?;
                } else if entry & OFFSET != 0 {
                    self.add(entry & OFFSET, self.cluster())?;
                }
            }
        }
        Ok(())
    }

    /// Reads a table of words.
    pub(super) fn table(&self, offset: u64, entries: usize) -> io::Result<Vec<u64>> {
        if !offset.is_multiple_of(self.cluster()) {
            return Err(damaged("one of its tables has an impossible place"));
        }
        words(self.file, offset, entries as u64 * 8)
    }

    /// Sees to it that the entries of a tree say of clusters that somebody else uses them too; and
    /// if `also_own`, that nobody does where that is so. To say the former in vain costs a copy; to
    /// say the latter wrongly would let a write change what another sees.
    pub(super) fn mark(&self, l1: L1, also_own: bool) -> io::Result<()> {
        let marked = |entry: u64| match entry & OFFSET {
            0 => entry & !COPIED,
            _ if entry & COMPRESSED != 0 => entry & !COPIED,
            offset if self.get(offset) != 1 => entry & !COPIED,
            _ if also_own => entry | COPIED,
            _ => entry,
        };
        let remark = |offset, mut table: Vec<u64>| -> io::Result<Vec<u64>> {
            let mut changed = false;
            for entry in &mut table {
                let now = marked(*entry);
                changed |= now != *entry;
                *entry = now;
            }
            if changed {
                self.file.write_all_at(&bytes(&table), offset)?;
            }
            Ok(table)
        };
        let root = self.table(l1.offset, l1.entries as usize)?;
        for entry in remark(l1.offset, root)? {
            if entry & OFFSET != 0 {
                let table = self.table(entry & OFFSET, self.cluster() as usize / 8)?;
                remark(entry & OFFSET, table)?;
            }
        }
        Ok(())
    }

    /// Writes all that was counted, and itself, behind the end. Where the table begins, and how
    /// many clusters it has.
    pub(super) fn write(&mut self, header: &Header) -> io::Result<(u64, u32)> {
        let order = header.refcount_order;
        let most = match order {
            6 | 5 => u32::MAX,
            order => (1u32 << (1u32 << order)) - 1,
        };
        if self.counts.iter().any(|&count| count > most) {
            return Err(io::Error::other(
                "its refcounts are too narrow for another snapshot",
            ));
        }
        let cluster = self.cluster() as usize;
        // How many refcounts fit a block.
        let fit = (cluster * 8) >> order;
        let used = self.counts.len();
        let (mut blocks, mut table) = (0, 0);
        loop {
            let all = used + blocks + table;
            let wanted = (all.div_ceil(fit), all.div_ceil(fit).div_ceil(cluster / 8));
            if wanted == (blocks, table) {
                break;
            }
            (blocks, table) = wanted;
        }
        self.counts.resize(used + blocks + table, 1);
        let start = (used as u64) << self.bits;
        let table_start = start + ((blocks as u64) << self.bits);
        let mut words = vec![0; table * cluster / 8];
        for (index, (counts, word)) in self.counts.chunks(fit).zip(&mut words).enumerate() {
            let mut block = vec![0; cluster];
            for (at, &count) in counts.iter().enumerate() {
                put(&mut block, at, count, order);
            }
            *word = start + ((index as u64) << self.bits);
            self.file.write_all_at(&block, *word)?;
        }
        self.file.write_all_at(&bytes(&words), table_start)?;
        Ok((table_start, table as u32))
    }

    /// Runs of clusters that nobody uses: where, and how long.
    pub(super) fn unused(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (index, &count) in self.counts.iter().enumerate() {
            let at = (index as u64) << self.bits;
            match runs.last_mut() {
                _ if count > 0 => {}
                Some((start, len)) if *start + *len == at => *len += self.cluster(),
                _ => runs.push((at, self.cluster())),
            }
        }
        runs
    }
}

/// Where a compressed cluster's bytes are: some number of whole sectors from that of the first.
fn compressed(entry: u64, bits: u32) -> (u64, u64) {
    let shift = 62 - (bits - 8);
    let offset = entry & ((1 << shift) - 1);
    let sectors = ((entry & !(COMPRESSED | COPIED)) >> shift) + 1;
    let start = offset / 512 * 512;
    (start, sectors * 512)
}

/// Puts a count into a block of counts of 2^`order` bits.
fn put(block: &mut [u8], at: usize, count: u32, order: u32) {
    let Some(shift) = order.checked_sub(3) else {
        let per_byte = 8 >> order;
        if let Some(byte) = block.get_mut(at / per_byte) {
            *byte |= (count as u8) << ((at % per_byte) << order);
        }
        return;
    };
    let width = 1 << shift;
    let wide = u64::from(count).to_be_bytes();
    let count = wide.get(8 - width..).unwrap_or_default();
    if let Some(place) = block.get_mut(at * width..(at + 1) * width) {
        place.copy_from_slice(count);
    }
}

pub(super) fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
