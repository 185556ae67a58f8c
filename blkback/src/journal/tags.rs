//! Which tags are free.

/// The tags of a queue. A tag that was answered is free only when the frontend has been told: until
/// then its entry in the journal is all that there is of the request, if we crash.
#[derive(Debug)]
pub struct Tags {
    free: Vec<u32>,
    answered: Vec<u32>,
}

impl Tags {
    /// The tags below `count`, but for those that `used` names.
    pub fn new(count: u32, used: impl Fn(u32) -> bool) -> Self {
        Tags {
            free: (0..count).rev().filter(|tag| !used(*tag)).collect(),
            answered: Vec::with_capacity(count as usize),
        }
    }

    /// Whether there is one to take.
    #[inline]
    pub fn any(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes one that is free.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// The request of this one was answered.
    #[inline]
    pub fn answer(&mut self, tag: u32) {
        self.answered.push(tag);
    }

    /// The frontend was told of all answers.
    #[inline]
    pub fn publish(&mut self) {
        self.free.append(&mut self.answered);
    }

    /// How many are of requests that were not answered, of `count` in all.
    pub fn in_flight(&self, count: usize) -> usize {
        count - self.free.len() - self.answered.len()
    }
}
