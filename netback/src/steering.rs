//! Which queue of a vif a frame goes to: as the guest says, or wherever.
//!
//! A guest that sets a hash algorithm over its control ring has the frames that it receives spread
//! by their hash: over a table of queues that it has set, or over all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use parapet_packet::hash::{LONGEST_KEY, Toeplitz};
use parapet_packet::headers::Headers;
use parapet_xen_sys::io::netif::{HashAlgorithm, HashTypes};

use crate::frame::Hash;

/// Entries that the table of queues may have.
pub const LONGEST_MAPPING: usize = 128;

/// The hashes that can be had.
pub const TYPES: HashTypes = HashTypes::IPV4
    .union(HashTypes::IPV4_TCP)
    .union(HashTypes::IPV6)
    .union(HashTypes::IPV6_TCP);

/// What a guest has set. Whoever delivers to it reads it, its control ring's task alone changes it.
#[derive(Debug, Default)]
pub struct Steering {
    on: AtomicBool,
    table: RwLock<Arc<Table>>,
}

#[derive(Debug, Clone)]
struct Table {
    algorithm: HashAlgorithm,
    types: HashTypes,
    key: Toeplitz,
    mapping: Vec<u32>,
}

impl Default for Table {
    fn default() -> Self {
        Table {
            algorithm: HashAlgorithm::None,
            types: HashTypes::empty(),
            key: Toeplitz::new(&[]),
            mapping: Vec::new(),
        }
    }
}

/// What was set makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There are no such hashes.
    #[error("hash types {0:#x} are not known")]
    Types(u32),
    /// It is too long.
    #[error("a key of {0} bytes is longer than {LONGEST_KEY}")]
    Key(usize),
    /// It is too long.
    #[error("a table of {0} entries is longer than {LONGEST_MAPPING}")]
    Size(usize),
    /// These entries are not within the table.
    #[error("{count} entries from {from} on are not within the table")]
    Entries {
        /// The first.
        from: usize,
        /// How many.
        count: usize,
    },
    /// There is no such queue.
    #[error("there is no queue {0}")]
    Queue(u32),
}

impl Steering {
    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut table));
        let on = table.algorithm == HashAlgorithm::Toeplitz && !table.types.is_empty();
        self.on.store(on, Ordering::Release);
    }

    /// Forgets all that was set.
    pub fn reset(&self) {
        self.change(|table| *table = Table::default());
    }

    /// Whether there is anything to steer by.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// By what it hashes.
    pub fn algorithm(&self) -> HashAlgorithm {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.algorithm
    }

    /// Hashes by this from now on.
    pub fn set_algorithm(&self, algorithm: HashAlgorithm) {
        self.change(|table| table.algorithm = algorithm);
    }

    /// Hashes these from now on.
    ///
    /// # Errors
    /// There are no such.
    pub fn set_types(&self, types: HashTypes) -> Result<(), Unfit> {
        if !TYPES.contains(types) {
            return Err(Unfit::Types(types.bits()));
        }
        self.change(|table| table.types = types);
        Ok(())
    }

    /// Hashes with this key from now on.
    ///
    /// # Errors
    /// It is too long.
    pub fn set_key(&self, key: &[u8]) -> Result<(), Unfit> {
        if key.len() > LONGEST_KEY {
            return Err(Unfit::Key(key.len()));
        }
        self.change(|table| table.key = Toeplitz::new(key));
        Ok(())
    }

    /// Has a table of so many entries from now on, all of them queue 0; of none, hashes are spread
    /// over all queues.
    ///
    /// # Errors
    /// These are too many.
    pub fn set_mapping_size(&self, entries: usize) -> Result<(), Unfit> {
        if entries > LONGEST_MAPPING {
            return Err(Unfit::Size(entries));
        }
        self.change(|table| table.mapping = vec![0; entries]);
        Ok(())
    }

    /// Sets some entries of the table; there are `queues`.
    ///
    /// # Errors
    /// They are not within it, or name a queue that there is not. Nothing is changed then.
    pub fn set_mapping(&self, from: usize, to: &[u32], queues: usize) -> Result<(), Unfit> {
        if let Some(&queue) = to.iter().find(|&&queue| queue as usize >= queues) {
            return Err(Unfit::Queue(queue));
        }
        let mut outcome = Err(Unfit::Entries {
            from,
            count: to.len(),
        });
        self.change(|table| {
            let end = from.saturating_add(to.len());
            if let Some(entries) = table.mapping.get_mut(from..end) {
                entries.copy_from_slice(to);
                outcome = Ok(());
            }
        });
        outcome
    }

    /// The queue, of so many, that a frame goes to, and its hash, if it has one that is wanted.
    /// `head` are its first bytes of `len`.
    pub fn steer(&self, head: &[u8], len: usize, queues: usize) -> Option<(usize, Hash)> {
        let table = Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner));
        let headers = Headers::parse(head, len).ok()?;
        let (kind, value) = table.key.of_packet(head, &headers, table.types)?;
        let hash = Hash {
            kind: kind as u8,
            value,
        };
        let value = value as usize;
        let entry = value.checked_rem(table.mapping.len());
        let queue = match entry.and_then(|entry| table.mapping.get(entry)) {
            Some(&queue) => queue as usize,
            None => value,
        };
        Some((queue.checked_rem(queues)?, hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP over IPv4, from 66.9.149.187 to 161.142.100.80.
    fn packet() -> Vec<u8> {
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
        bytes.extend([66, 9, 149, 187, 161, 142, 100, 80]);
        bytes.extend([0; 8]);
        bytes
    }

    /// The key of Microsoft's examples, and its hash of these addresses.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    const HASH: u32 = 0x323e_8fc2;

    fn steering() -> Steering {
        let steering = Steering::default();
        steering.set_key(&KEY).unwrap();
        steering.set_types(TYPES).unwrap();
        steering.set_algorithm(HashAlgorithm::Toeplitz);
        steering
    }

    #[test]
    fn without_a_table_a_hash_is_spread_over_all_queues() {
        let (queue, hash) = steering().steer(&packet(), 42, 7).unwrap();
        assert_eq!((hash.kind, hash.value), (0, HASH));
        assert_eq!(queue, HASH as usize % 7);
    }

    #[test]
    fn with_a_table_the_entry_of_the_hash_says_which_queue() {
        let steering = steering();
        steering.set_mapping_size(100).unwrap();
        let entry = HASH as usize % 100;
        steering.set_mapping(entry, &[3], 4).unwrap();
        assert_eq!(steering.steer(&packet(), 42, 4).unwrap().0, 3);
        // Another table is empty again.
        steering.set_mapping_size(50).unwrap();
        assert_eq!(steering.steer(&packet(), 42, 4).unwrap().0, 0);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let steering = steering();
        let too_large = LONGEST_MAPPING + 1;
        assert_eq!(
            steering.set_mapping_size(too_large),
            Err(Unfit::Size(too_large))
        );
        assert_eq!(steering.set_key(&[0; 41]), Err(Unfit::Key(41)));
        let types = HashTypes::from_bits_retain(0x10);
        assert_eq!(steering.set_types(types), Err(Unfit::Types(0x10)));
        steering.set_mapping_size(4).unwrap();
        assert_eq!(steering.set_mapping(0, &[0, 2], 2), Err(Unfit::Queue(2)));
        for from in [3, 5, usize::MAX] {
            let unfit = Unfit::Entries { from, count: 2 };
            assert_eq!(steering.set_mapping(from, &[1, 1], 2), Err(unfit));
        }
        assert_eq!(steering.steer(&packet(), 42, 2).unwrap().0, 0);
    }

    #[test]
    fn a_frame_that_has_no_such_hash_goes_wherever() {
        let steering = steering();
        steering.set_types(HashTypes::IPV6).unwrap();
        assert_eq!(steering.steer(&packet(), 42, 2), None);
        assert_eq!(steering.steer(&[0; 14], 14, 2), None);
        assert!(steering.is_on());
        steering.reset();
        assert!(!steering.is_on());
    }
}
