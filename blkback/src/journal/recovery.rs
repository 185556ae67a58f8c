//! What a log says after its writer has died.

use super::log::{ANSWER, CONTENT, DONE, FIRST, INTENT, Log, Memory, NONE, NUMBER, SLOT, entry};

/// A log that makes no sense, or not with its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The ring's index of responses is neither what we made it nor what we were about to: the
    /// guest has written it.
    #[error(
        "the guest has changed rsp_prod to {found:#x}, which was {done:#x}, or {intent:#x} by now"
    )]
    Index {
        /// What is in the ring.
        found: u32,
        /// What was published.
        done: u32,
        /// What was about to be.
        intent: u32,
    },
    /// Its counts.
    #[error("the journal says that {done:#x} responses were published and {intent:#x} were to be")]
    Counts {
        /// What was published.
        done: u64,
        /// What was about to be.
        intent: u64,
    },
    /// An entry.
    #[error(
        "the journal's entry {tag} is of the request {number:#x} and the response {answer:#x}, \
             with {first:#x} to {end:#x} outstanding"
    )]
    Entry {
        /// Which.
        tag: u32,
        /// Its request.
        number: u64,
        /// Its response.
        answer: u64,
        /// The first response that is not published.
        first: u64,
        /// The first request that was not taken.
        end: u64,
    },
    /// Two of the same request.
    #[error("the journal has the request {0:#x} twice")]
    Twice(u64),
}

/// A request that was taken and whose answer the frontend does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// Its tag.
    pub tag: u32,
    /// The request's number, of which the lower half is its index.
    pub number: u64,
    /// Its slot, as the frontend wrote it.
    pub slot: [u8; SLOT],
}

/// What to go on with.
#[derive(Debug)]
pub struct Recovered<M> {
    /// The log, of which nothing is answered.
    pub log: Log<M>,
    /// The requests to do again, in the order in which they were made.
    pub live: Vec<Live>,
    /// How many responses were published: the ring's index.
    pub answered: u32,
    /// How many requests were taken: the ring's index.
    pub taken: u32,
}

/// Finds out from the log of a ring of `slots` slots how far its writer had come, when the ring's
/// own index of responses is `shared`.
///
/// A request is outstanding if it has no response, or one that was not published; who has died in
/// the middle of publishing has or has not done so, and the ring tells. (A guest may lie there:
/// it then misses responses of its own, or has its own requests done twice.) What is outstanding
/// and what was published are all that was taken, so no index of requests needs to be kept.
///
/// It may itself be cut short after any store: doing it again comes to the same.
///
/// # Errors
/// What makes no sense. Nothing was changed then.
pub fn recover<M: Memory>(memory: M, slots: u32, shared: u32) -> Result<Recovered<M>, Corrupt> {
    let (intent, done) = (memory.word(INTENT), memory.word(DONE));
    let begun = intent.checked_sub(done);
    if done < FIRST || intent > NONE / 2 || begun.is_none_or(|begun| begun > u64::from(slots)) {
        return Err(Corrupt::Counts { done, intent });
    }
    // These are less than 2^32 apart: no two of them look the same.
    let published = match shared {
        index if index == done as u32 => done,
        index if index == intent as u32 => intent,
        found => {
            return Err(Corrupt::Index {
                found,
                done: done as u32,
                intent: intent as u32,
            });
        }
    };
    let mut live = Vec::new();
    for tag in 0..slots {
        if memory.word(entry(tag) + ANSWER) < published {
            continue;
        }
        let mut slot = [0; SLOT];
        memory.copy(entry(tag) + CONTENT, &mut slot);
        live.push(Live {
            tag,
            number: memory.word(entry(tag) + NUMBER),
            slot,
        });
    }
    let taken = published + live.len() as u64;
    for request in &live {
        let answer = memory.word(entry(request.tag) + ANSWER);
        let made = (published..taken).contains(&answer);
        if !(made || answer == NONE) || !(FIRST..taken).contains(&request.number) {
            return Err(Corrupt::Entry {
                tag: request.tag,
                number: request.number,
                answer,
                first: published,
                end: taken,
            });
        }
    }
    live.sort_unstable_by_key(|request| request.number);
    for two in live.windows(2) {
        if let [one, other] = two
            && one.number == other.number
        {
            return Err(Corrupt::Twice(one.number));
        }
    }
    // Or else the next responses, which get the same numbers, would seem to be theirs.
    for request in &live {
        memory.set(entry(request.tag) + ANSWER, NONE);
    }
    if published == done {
        memory.set(INTENT, published);
    } else {
        memory.set(DONE, published);
    }
    Ok(Recovered {
        log: Log::go_on(memory, slots, taken, published),
        live,
        answered: published as u32,
        taken: taken as u32,
    })
}
