//! The Internet checksum (RFC 1071): sixteen-bit words in ones' complement.

/// A sum that grows as bytes are added, in pieces of any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Of words as they lie in memory: which byte comes first does not matter to such a sum, as
    /// long as it is the same for all.
    native: u64,
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const fn new() -> Self {
        Sum {
            native: 0,
            odd: false,
        }
    }

    /// Adds the bytes that come next.
    #[must_use]
    pub fn and(mut self, bytes: &[u8]) -> Self {
        let words = bytes.chunks_exact(4);
        let rest = words.remainder();
        let mut sum: u64 = words
            .map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
            .sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        let folded = fold(sum);
        // What begins at an odd place has its bytes in each other's.
        let folded = if self.odd {
            folded.swap_bytes()
        } else {
            folded
        };
        self.native += u64::from(folded);
        self.odd ^= bytes.len() % 2 == 1;
        self
    }

    /// Adds a word of sixteen bits, at an even place.
    #[must_use]
    pub fn and_word(mut self, word: u16) -> Self {
        self.native += u64::from(word.to_be());
        self
    }

    /// The sum itself, as a pseudo header's is left in the field of a packet whose checksum is
    /// blank.
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.native))
    }

    /// What to write into the field, which counted as zero: the sum's complement.
    pub fn finish(self) -> u16 {
        !self.folded()
    }

    /// Whether these bytes, the field included, are intact.
    pub fn is_intact(self) -> bool {
        self.folded() == 0xFFFF
    }
}

fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    // No more than sixteen bits are left.
    sum as u16
}

/// The pseudo header's sum: of both addresses, the protocol, and the length of the transport
/// header and its payload.
pub fn pseudo(addresses: &[u8], protocol: u8, len: u32) -> Sum {
    Sum::new()
        .and(addresses)
        .and_word(u16::from(protocol))
        .and_word((len >> 16) as u16)
        .and_word(len as u16)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;

    /// As the RFC has it, a word at a time.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let sum = Sum::new().and(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.finish(), 0x220d);
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(0usize..400, 0..5),
        ) {
            let mut cuts: std::vec::Vec<usize> =
                cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut sum, mut from) = (Sum::new(), 0);
            for cut in cuts {
                sum = sum.and(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(sum.folded(), naive(&bytes));
        }

        #[test]
        fn what_was_finished_is_intact_until_a_bit_is_changed(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..100),
            bit in 0usize..800,
        ) {
            bytes[..2].fill(0);
            let field = Sum::new().and(&bytes).finish();
            bytes[..2].copy_from_slice(&field.to_be_bytes());
            prop_assert!(Sum::new().and(&bytes).is_intact());
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!Sum::new().and(&bytes).is_intact());
        }
    }
}
