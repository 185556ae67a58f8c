//! Where the requests of a load go.

use serde::Serialize;

/// The order in which blocks are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Uniformly at random, aligned to the block.
    Random,
    /// From the start to the end, and again.
    Sequential,
}

/// The offset of every request, the same in each run.
#[derive(Debug, Clone, Copy)]
pub struct Offsets {
    pattern: Pattern,
    blocks: u64,
    block: u64,
}

impl Offsets {
    /// For blocks of `block` bytes of a disk of `bytes`; of one that has no size, only the first.
    pub fn new(pattern: Pattern, bytes: Option<u64>, block: u32) -> Self {
        let blocks = bytes.unwrap_or(0).checked_div(block.into()).unwrap_or(0);
        Offsets {
            pattern,
            blocks: blocks.max(1),
            block: block.into(),
        }
    }

    /// Where the request of that number goes, in bytes.
    pub fn of(&self, number: u64) -> u64 {
        let index = match self.pattern {
            Pattern::Sequential => number % self.blocks,
            // Maps 64 random bits onto 0..blocks without a division.
            Pattern::Random => {
                ((u128::from(scrambled(number)) * u128::from(self.blocks)) >> 64) as u64
            }
        };
        index * self.block
    }
}

/// Whether the request of that number is among the `percent` that read.
pub(super) fn is_read(number: u64, percent: u8) -> bool {
    scrambled(!number) % 100 < percent.into()
}

/// The finaliser of SplitMix64 over a counter: cheap enough not to show in what is measured.
fn scrambled(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_offsets_are_aligned_inside_the_disk_and_reach_every_block() {
        let offsets = Offsets::new(Pattern::Random, Some(64 * 4096 + 512), 4096);
        let mut seen = [false; 64];
        for number in 0..4096 {
            let offset = offsets.of(number);
            assert_eq!(offset % 4096, 0);
            seen[(offset / 4096) as usize] = true;
        }
        assert!(seen.iter().all(|&block| block));
    }

    #[test]
    fn sequential_offsets_start_again_after_the_last_block() {
        let offsets = Offsets::new(Pattern::Sequential, Some(64 * 4096), 4096);
        assert_eq!(offsets.of(1), 4096);
        assert_eq!(offsets.of(63), 63 * 4096);
        assert_eq!(offsets.of(64), 0);
    }

    #[test]
    fn as_many_of_a_hundred_read_as_is_said() {
        for percent in [0, 30, 100] {
            let reads = (0..10_000).filter(|number| is_read(*number, percent));
            let share = reads.count() as f64 / 100.0;
            assert!((share - f64::from(percent)).abs() < 2.0, "{share}");
        }
    }
}
