//! Bytes that tell where they belong: a function of a seed and a place on the disk.
//!
//! A sector that ends up in another's place, or keeps what an earlier fill with another seed left
//! there, is seen to be wrong.

/// Fills `bytes` with what belongs from byte `offset` of the disk on, which is a multiple of 8.
pub(super) fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let mut index = offset / 8;
    for chunk in bytes.chunks_mut(8) {
        let word = mix(seed.wrapping_add(index.wrapping_mul(GOLDEN))).to_le_bytes();
        for (byte, value) in chunk.iter_mut().zip(word) {
            *byte = value;
        }
        index = index.wrapping_add(1);
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014): every bit of the result depends on every bit of `z`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_matter_in_which_parts_a_disk_is_filled() {
        let mut whole = [0; 4096];
        fill(7, 512, &mut whole);
        let mut part = [0; 1024];
        fill(7, 512 + 2048, &mut part);
        assert_eq!(part, whole[2048..3072]);
    }

    #[test]
    fn another_place_and_another_seed_have_other_bytes() {
        let sector = |seed, sector: u64| {
            let mut bytes = [0; 512];
            fill(seed, sector * 512, &mut bytes);
            bytes
        };
        let mut seen = std::collections::HashSet::new();
        for seed in 0..8 {
            for place in 0..64 {
                assert!(seen.insert(sector(seed, place)), "{seed} {place}");
            }
        }
    }
}
