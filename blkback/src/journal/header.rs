//! What stands at the beginning of a journal: which connection it is of.

use std::ops::Range;

/// What a journal begins with, its version included.
const MAGIC: &[u8; 8] = b"PPTBLK\x00\x01";

/// Logs begin at multiples of this.
const ALIGN: usize = 128;

/// More than this is no header of ours: a queue has some twenty keys.
const LONGEST: usize = 1 << 20;

/// Which connection a journal is of, and what its queues are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The connection's own name, which is in the backend's directory too.
    pub name: String,
    /// The slots of each queue's ring.
    pub slots: Vec<u32>,
    /// The keys by which the frontend connected.
    pub keys: Vec<(String, String)>,
}

/// A header that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// It begins with something else.
    #[error("it is no journal, or one of another version")]
    Magic,
    /// It was changed, or ends too early.
    #[error("its beginning is damaged")]
    Damaged,
}

impl Header {
    /// Its bytes, up to where the first log begins.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put(&mut body, self.name.as_bytes());
        put_len(&mut body, self.slots.len());
        for slots in &self.slots {
            body.extend(slots.to_le_bytes());
        }
        put_len(&mut body, self.keys.len());
        for (key, value) in &self.keys {
            put(&mut body, key.as_bytes());
            put(&mut body, value.as_bytes());
        }
        let mut all = MAGIC.to_vec();
        put_len(&mut all, body.len());
        all.extend(digest(&body).to_le_bytes());
        all.extend(body);
        all.resize(all.len().next_multiple_of(ALIGN), 0);
        all
    }

    /// Understands the beginning of a journal; `read` copies out of it, if it has so much.
    ///
    /// Returns where the first log begins, too.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn decode(
        read: impl Fn(Range<usize>) -> Option<Vec<u8>>,
    ) -> Result<(Self, usize), BadHeader> {
        const LEN: usize = MAGIC.len();
        const DIGEST: usize = LEN + 4;
        const BODY: usize = DIGEST + 8;
        if read(0..LEN).as_deref() != Some(MAGIC) {
            return Err(BadHeader::Magic);
        }
        let parse = || {
            let len = u32::from_le_bytes(read(LEN..DIGEST)?.try_into().ok()?) as usize;
            let sum = u64::from_le_bytes(read(DIGEST..BODY)?.try_into().ok()?);
            let end = BODY + Some(len).filter(|len| *len <= LONGEST)?;
            let body = read(BODY..end)?;
            if digest(&body) != sum {
                return None;
            }
            let mut rest = body.as_slice();
            let name = get_text(&mut rest)?;
            let slots = (0..get_u32(&mut rest)?).map(|_| get_u32(&mut rest));
            let slots = slots.collect::<Option<_>>()?;
            let keys = (0..get_u32(&mut rest)?)
                .map(|_| Some((get_text(&mut rest)?, get_text(&mut rest)?)));
            let keys = keys.collect::<Option<_>>()?;
            let header = Header { name, slots, keys };
            rest.is_empty()
                .then_some((header, end.next_multiple_of(ALIGN)))
        };
        parse().ok_or(BadHeader::Damaged)
    }
}

fn put_len(to: &mut Vec<u8>, len: usize) {
    // Counts and lengths of nodes, of which each has a page at the most.
    to.extend((len as u32).to_le_bytes());
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    put_len(to, bytes.len());
    to.extend(bytes);
}

fn get_u32(from: &mut &[u8]) -> Option<u32> {
    let (word, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_le_bytes(*word))
}

fn get_text(from: &mut &[u8]) -> Option<String> {
    let len = get_u32(from)? as usize;
    let (text, rest) = from.split_at_checked(len)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// FNV-1a: tells damage, not malice, of which a file in our own folder has nothing to fear.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<(Header, usize), BadHeader> {
        Header::decode(|range| bytes.get(range).map(<[u8]>::to_vec))
    }

    fn header() -> Header {
        Header {
            name: "a name".into(),
            slots: vec![32, 512],
            keys: vec![
                ("queue-0/ring-ref".into(), "8".into()),
                ("protocol".into(), "what\0ever\n".into()),
            ],
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes = header().encode();
        assert_eq!(decode(&bytes), Ok((header(), bytes.len())));
        assert!(bytes.len().is_multiple_of(ALIGN));
    }

    #[test]
    fn any_changed_bit_and_any_end_before_its_own_is_noticed() {
        let bytes = header().encode();
        let content = 20 + header().name.len() + 12 + 12;
        for bit in 0..8 * content {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
        for len in 0..content {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(mut bytes in proptest::collection::vec(any::<u8>(), 20..200)) {
            bytes[..8].copy_from_slice(MAGIC);
            bytes[10..12].fill(0);
            let len = bytes.len() - 20;
            bytes[8] = len as u8;
            bytes[9] = 0;
            let sum = digest(&bytes[20..]);
            bytes[12..20].copy_from_slice(&sum.to_le_bytes());
            let _ = decode(&bytes);
        }
    }
}
