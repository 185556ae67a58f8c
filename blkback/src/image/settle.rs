//! Doing once what several ask for at a time.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

/// Sees to it that whoever asks gets a run that began after they asked, and that there is only one
/// at a time: those who come while one runs share the next.
#[derive(Debug, Default)]
pub(super) struct Settler {
    runs: Mutex<Runs>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Runs {
    /// How many have begun.
    begun: u64,
    /// The last one that succeeded, by number.
    succeeded: u64,
    running: bool,
}

impl Settler {
    /// Returns after a run of `work`, or of what somebody else gave for it, that began after this
    /// was called.
    pub(super) fn settle(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = runs.begun + 1;
        loop {
            if runs.succeeded >= wanted {
                return Ok(());
            }
            if !runs.running {
                break;
            }
            runs = self
                .ended
                .wait(runs)
                .unwrap_or_else(PoisonError::into_inner);
        }
        runs.begun += 1;
        runs.running = true;
        let number = runs.begun;
        drop(runs);
        // Also after a panic, so that others do not wait for ever.
        let mut over = Over {
            settler: self,
            succeeded: None,
        };
        let outcome = work();
        if outcome.is_ok() {
            over.succeeded = Some(number);
        }
        outcome
    }
}

struct Over<'a> {
    settler: &'a Settler,
    succeeded: Option<u64>,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let runs = self.settler.runs.lock();
        let mut runs = runs.unwrap_or_else(PoisonError::into_inner);
        runs.running = false;
        if let Some(number) = self.succeeded {
            runs.succeeded = number;
        }
        self.settler.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn everybody_gets_a_run_that_began_after_they_asked() {
        let settler = Settler::default();
        let (made, settled, runs) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mine = made.fetch_add(1, Ordering::SeqCst) + 1;
                        let work = || {
                            runs.fetch_add(1, Ordering::SeqCst);
                            let seen = made.load(Ordering::SeqCst);
                            thread::yield_now();
                            settled.store(seen, Ordering::SeqCst);
                            Ok(())
                        };
                        settler.settle(work).unwrap();
                        assert!(settled.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(runs.into_inner() <= 2000);
    }

    #[test]
    fn a_failure_is_of_who_ran_and_others_try_again() {
        let settler = Settler::default();
        settler
            .settle(|| Err(io::ErrorKind::StorageFull.into()))
            .unwrap_err();
        settler.settle(|| Ok(())).unwrap();
    }
}
