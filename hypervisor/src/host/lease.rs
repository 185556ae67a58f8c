//! What keeps the memory of an operation mapped, and the addresses in it.

use crate::memory::{ReadOnly, View};

/// Memory that an operation works on, kept mapped by the very value that describes it.
///
/// As long as a lease exists its views are valid, so whoever holds the lease may use them. Parts
/// are given in the order in which bytes are to be transferred.
pub trait Lease: Send + 'static {
    /// What can be put into the table of registered buffers: one page, or a run.
    type Page: Page;

    /// Memory that a read from a file fills.
    fn targets(&self) -> impl Iterator<Item = View<'_>>;

    /// Memory that a write to a file takes its bytes from.
    fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>>;

    /// The place in the table of registered buffers that has all of the lease's memory, if one
    /// has. A hint: memory that lies outside of the buffer makes the operation fail, no more.
    fn registered(&self) -> Option<u16>;
}

/// Memory that a table of registered buffers keeps mapped.
pub trait Page: Send + 'static {
    /// All of it.
    fn view(&self) -> View<'_>;
}

/// One end of a transfer, as the kernel wants to hear of it.
pub(super) const NOWHERE: libc::iovec = libc::iovec {
    iov_base: core::ptr::null_mut(),
    iov_len: 0,
};

/// Writes the addresses of up to `len` bytes of `parts`, after the first `skip`, into `to`;
/// neighbours in memory become one vector. Returns how many vectors and how many bytes those are:
/// fewer bytes than asked for when `parts` or `to` end first.
pub(super) fn gather<'a, A: 'a>(
    parts: impl Iterator<Item = View<'a, A>>,
    mut skip: usize,
    len: usize,
    to: &mut [libc::iovec],
) -> (usize, usize) {
    let (mut used, mut bytes) = (0, 0);
    for part in parts {
        if bytes == len {
            break;
        }
        let skipped = skip.min(part.len());
        skip -= skipped;
        let wanted = (part.len() - skipped).min(len - bytes);
        if wanted == 0 {
            continue;
        }
        let start = part.as_ptr().wrapping_add(skipped).cast::<libc::c_void>();
        let (before, room) = to.split_at_mut(used);
        match (before.last_mut(), room.first_mut()) {
            (Some(last), _) if last.iov_base.wrapping_byte_add(last.iov_len) == start => {
                last.iov_len += wanted;
            }
            (_, None) => break,
            (_, Some(next)) => {
                *next = libc::iovec {
                    iov_base: start,
                    iov_len: wanted,
                };
                used += 1;
            }
        }
        bytes += wanted;
    }
    (used, bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::memory::Scratch;

    /// Pieces (offset and length) of one run of scratch memory.
    #[derive(Debug)]
    pub(in crate::host) struct Pieces {
        pub(in crate::host) memory: Scratch,
        pub(in crate::host) pieces: Vec<(usize, usize)>,
        pub(in crate::host) slot: Option<u16>,
    }

    impl Pieces {
        /// All of `len` fresh bytes as one piece.
        pub(in crate::host) fn whole(len: usize) -> Self {
            Pieces {
                memory: Scratch::new(len),
                pieces: vec![(0, len)],
                slot: None,
            }
        }

        /// All of `bytes`, as one piece.
        pub(in crate::host) fn holding(bytes: &[u8]) -> Self {
            let lease = Self::whole(bytes.len());
            lease.memory.view().write_bytes(0, bytes).unwrap();
            lease
        }

        /// The memory's content.
        pub(in crate::host) fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; self.memory.view().len()];
            self.memory.view().read_bytes(0, &mut bytes).unwrap();
            bytes
        }
    }

    impl Page for Scratch {
        fn view(&self) -> View<'_> {
            Scratch::view(self)
        }
    }

    impl Lease for Pieces {
        type Page = Scratch;

        fn targets(&self) -> impl Iterator<Item = View<'_>> {
            let view = self.memory.view();
            self.pieces
                .iter()
                .map(move |&(offset, len)| view.slice(offset, len).unwrap())
        }

        fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
            self.targets().map(View::read_only)
        }

        fn registered(&self) -> Option<u16> {
            self.slot
        }
    }

    fn lens(lease: &Pieces, skip: usize, len: usize, room: usize) -> (Vec<usize>, usize) {
        let mut to = vec![NOWHERE; room];
        let (used, bytes) = gather(lease.targets(), skip, len, &mut to);
        (to[..used].iter().map(|v| v.iov_len).collect(), bytes)
    }

    #[test]
    fn neighbours_become_one_vector_and_strangers_do_not() {
        let lease = Pieces {
            memory: Scratch::new(8192),
            pieces: vec![(0, 512), (512, 1024), (4096, 512)],
            slot: None,
        };
        assert_eq!(lens(&lease, 0, 2048, 16), (vec![1536, 512], 2048));
    }

    #[test]
    fn what_is_skipped_may_end_inside_a_part() {
        let lease = Pieces {
            memory: Scratch::new(8192),
            pieces: vec![(0, 512), (1024, 1024), (4096, 512)],
            slot: None,
        };
        assert_eq!(lens(&lease, 1024, 1024, 16), (vec![512, 512], 1024));
        assert_eq!(lens(&lease, 2048, 10, 16), (vec![], 0));
    }

    #[test]
    fn too_little_room_gathers_a_beginning() {
        let lease = Pieces {
            memory: Scratch::new(8192),
            pieces: vec![(0, 512), (1024, 512), (1536, 512), (4096, 512)],
            slot: None,
        };
        assert_eq!(lens(&lease, 0, 2048, 2), (vec![512, 1024], 1536));
        assert_eq!(lens(&lease, 0, 700, 2), (vec![512, 188], 700));
    }
}
