//! Counts that a process which was killed did not write.
//!
//! imago hooks up a new L2 table before its count is in the file, and while others write an L2
//! table may be ahead of the counts as well. Whoever opens the image then would take a cluster
//! that is in use for a free one, and give it away a second time. So before an image is written to,
//! all that its disk has in use counts at least once. What counts too often is only room.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::Header;
use super::tables::{COMPRESSED, OFFSET, damaged, words};

/// Counts what is in use and does not count. How many clusters that were.
///
/// # Errors
/// The image is beyond that, or its file cannot be read or written.
pub(super) fn recount(file: &File, header: &Header) -> io::Result<u64> {
    let cluster = header.cluster();
    let mut counts = Counts {
        table: words(file, header.refcount_offset, {
            u64::from(header.refcount_clusters) << header.cluster_bits
        })?,
        blocks: HashMap::new(),
        file,
        header,
        counted: 0,
    };
    let l1_bytes = u64::from(header.l1_entries) * 8;
    for at in 0..l1_bytes.div_ceil(cluster) {
        counts.count(header.l1_offset + at * cluster)?;
    }
    let mut seen = HashSet::new();
    for l2 in words(file, header.l1_offset, l1_bytes)? {
        let l2 = l2 & OFFSET;
        if l2 == 0 {
            continue;
        }
        if !seen.insert(l2) {
            return Err(damaged("a table of its clusters is there twice"));
        }
        counts.count(l2)?;
        for entry in words(file, l2, cluster)? {
            if entry & COMPRESSED == 0 && entry & OFFSET != 0 {
                counts.count(entry & OFFSET)?;
            }
        }
    }
    counts.write()
}

struct Counts<'a> {
    file: &'a File,
    header: &'a Header,
    /// Where the blocks are.
    table: Vec<u64>,
    /// Those that were looked at, and whether they were changed.
    blocks: HashMap<usize, (Vec<u8>, bool)>,
    counted: u64,
}

impl Counts<'_> {
    /// Sees to it that the cluster at `offset` counts.
    fn count(&mut self, offset: u64) -> io::Result<()> {
        let Header {
            cluster_bits,
            refcount_order: order,
            ..
        } = *self.header;
        let cluster = offset >> cluster_bits;
        // How many counts fit a block, as a power of two.
        let fit = cluster_bits + 3 - order;
        let index = usize::try_from(cluster >> fit).unwrap_or(usize::MAX);
        let place = match self.table.get(index) {
            Some(&place) if place & OFFSET != 0 => place & OFFSET,
            _ => return Err(damaged("it has no count of clusters that are in use")),
        };
        let (block, changed) = match self.blocks.entry(index) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut block = vec![0; 1 << cluster_bits];
                self.file.read_exact_at(&mut block, place)?;
                entry.insert((block, false))
            }
        };
        let at = cluster & ((1 << fit) - 1);
        let (first, last, mask, one) = match order {
            0..3 => {
                let bit = (at << order) % 8;
                let byte = (at << order) / 8;
                (byte, byte, ((1u8 << (1 << order)) - 1) << bit, 1 << bit)
            }
            _ => {
                let width = 1 << (order - 3);
                (at * width, at * width + width - 1, u8::MAX, 1)
            }
        };
        let Some(count) = block.get_mut(first as usize..=last as usize) else {
            return Err(damaged("its counts make no sense"));
        };
        if count.iter().all(|byte| byte & mask == 0)
            && let Some(least) = count.last_mut()
        {
            *least |= one;
            *changed = true;
            self.counted += 1;
        }
        Ok(())
    }

    fn write(self) -> io::Result<u64> {
        for (index, (block, changed)) in &self.blocks {
            if let (true, Some(place)) = (*changed, self.table.get(*index)) {
                self.file.write_all_at(block, place & OFFSET)?;
            }
        }
        if self.counted > 0 {
            self.file.sync_data()?;
        }
        Ok(self.counted)
    }
}
