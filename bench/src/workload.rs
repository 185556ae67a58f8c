//! What a contender is asked to do: which disk, which requests, how many at once, for how long.

use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// What stands behind the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// Nothing: a read completes at once, and its buffer is left as it was.
    Null {
        /// Bytes.
        size: u64,
    },
    /// A raw image, fully allocated, read past the page cache where its file system can do that.
    File {
        /// Where it is.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// A qcow2 overlay for each guest, with nothing in it yet, on one raw image that is as a file.
    Overlays {
        /// One a guest.
        paths: Vec<PathBuf>,
        /// Bytes.
        size: u64,
    },
}

impl Disk {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Disk::Null { size } | Disk::File { size, .. } | Disk::Overlays { size, .. } => *size,
        }
    }
}

/// The order in which blocks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    /// Uniformly at random, aligned to the block.
    Random,
    /// From the start to the end, and again.
    Sequential,
}

/// Closed loops of reads: in each queue of each guest `depth` are in flight at all times.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) disk: Disk,
    /// Bytes of a request; 0 if it has no payload.
    pub(crate) block: u32,
    pub(crate) pattern: Pattern,
    /// Requests in flight in each queue.
    pub(crate) depth: usize,
    /// Queues of each guest's disk.
    pub(crate) queues: usize,
    /// Guests, each with a disk like this.
    pub(crate) guests: usize,
    /// Which of the loops of a workload it is: each reads elsewhere.
    pub(crate) stream: u64,
    /// Time before the clock starts, in which caches, maps and persistent grants fill.
    pub(crate) warm_up: Duration,
    /// Time that counts.
    pub(crate) duration: Duration,
}

impl Workload {
    /// The offsets to read, in bytes, without end; the same for every contender.
    pub(crate) fn offsets(&self) -> Offsets {
        // A request without payload (a bare notification) has a block of 0.
        let blocks = self
            .disk
            .size()
            .checked_div(self.block.into())
            .unwrap_or(1)
            .max(1);
        Offsets {
            blocks,
            block: self.block.into(),
            pattern: self.pattern,
            // Far enough from the next stream's.
            state: self.stream << 40,
        }
    }
}

/// See [`Workload::offsets`].
#[derive(Clone, Debug)]
pub(crate) struct Offsets {
    blocks: u64,
    block: u64,
    pattern: Pattern,
    state: u64,
}

impl Offsets {
    /// The next offset, in bytes.
    pub(crate) fn next(&mut self) -> u64 {
        let index = match self.pattern {
            Pattern::Sequential => self.state % self.blocks,
            // The finaliser of SplitMix64 over a counter: two multiplications, so that drawing
            // the number does not show in a measurement of some two hundred nanoseconds.
            Pattern::Random => {
                let mut z = self.state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^= z >> 31;
                // Maps 64 random bits onto 0..blocks without a division.
                ((u128::from(z) * u128::from(self.blocks)) >> 64) as u64
            }
        };
        self.state = self.state.wrapping_add(1);
        index * self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pattern: Pattern) -> Workload {
        Workload {
            disk: Disk::Null { size: 64 * 4096 },
            block: 4096,
            pattern,
            depth: 1,
            queues: 1,
            guests: 1,
            stream: 0,
            warm_up: Duration::ZERO,
            duration: Duration::ZERO,
        }
    }

    #[test]
    fn random_offsets_are_aligned_inside_the_disk_and_reach_every_block() {
        let mut offsets = workload(Pattern::Random).offsets();
        let mut seen = [false; 64];
        for _ in 0..4096 {
            let offset = offsets.next();
            assert_eq!(offset % 4096, 0);
            seen[(offset / 4096) as usize] = true;
        }
        assert!(seen.iter().all(|&block| block));
    }

    #[test]
    fn sequential_offsets_start_again_after_the_last_block() {
        let mut offsets = workload(Pattern::Sequential).offsets();
        let read: Vec<u64> = (0..65).map(|_| offsets.next()).collect();
        assert_eq!(read[1], 4096);
        assert_eq!(read[63], 63 * 4096);
        assert_eq!(read[64], 0);
    }
}
