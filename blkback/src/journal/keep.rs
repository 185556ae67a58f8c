//! A ring with its log.

use parapet_ring::{Back, RingMemory, TooSmall};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Corrupt, Live, Log, Part, recover};

/// How the log of a queue is kept.
#[derive(Debug, Default)]
pub enum Keep {
    /// Not at all.
    #[default]
    No,
    /// Here, from the beginning of the connection on.
    Anew(Part),
    /// Here, where another has left it together with the ring.
    On(Part),
}

/// Why a ring cannot be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has no slot.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// It has other slots than its log has entries.
    #[error("a ring of {ring} slots, and a journal of {log}")]
    Slots {
        /// Those of the ring.
        ring: u32,
        /// Those of the log.
        log: u32,
    },
    /// The log makes no sense.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A ring as its queue takes it up, with its log, and what to do again, the last first.
pub(crate) type TakenUp<M, Req, Rsp> = (Back<M, Req, Rsp>, Option<Log<Part>>, Vec<Live>);

impl Keep {
    /// Takes up the ring in `memory`: where its own page says that another has left it, or where
    /// the log says so.
    pub(crate) fn take_up<M, Req, Rsp>(self, memory: M) -> Result<TakenUp<M, Req, Rsp>, Unfit>
    where
        M: RingMemory,
        Req: FromBytes,
        Rsp: IntoBytes + Immutable,
    {
        let published = Back::<M, Req, Rsp>::published_in(&memory)?;
        let fits = |ring: Back<M, Req, Rsp>, log: u32| match ring.slots() {
            slots if slots == log => Ok(ring),
            ring => Err(Unfit::Slots { ring, log }),
        };
        match self {
            Keep::No => Ok((Back::attach_at(memory, published)?, None, Vec::new())),
            Keep::Anew(part) => {
                let slots = part.slots();
                let ring = fits(Back::attach_at(memory, published)?, slots)?;
                Ok((ring, Some(Log::begin(part, slots, published)), Vec::new()))
            }
            Keep::On(part) => {
                let slots = part.slots();
                let mut found = recover(part, slots, published)?;
                found.live.reverse();
                let ring = Back::attach_between(memory, found.answered, found.taken)?;
                Ok((fits(ring, slots)?, Some(found.log), found.live))
            }
        }
    }
}
