//! How a daemon ends: by a signal, or with its work.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, tell};

/// What ends a daemon.
#[derive(Debug, PartialEq, Eq)]
pub enum End<T> {
    /// It was asked to, by the signal of this name.
    Signal(&'static str),
    /// Its work is done, with this outcome.
    Done(T),
    /// Its work was lost, by a panic.
    Lost,
}

/// Waits for a daemon's end.
#[derive(Debug)]
pub struct Ending<T>(Receiver<End<T>>);

/// Tells of the end of the work: by [`Work::done`], or else when it is dropped.
#[derive(Debug)]
pub struct Work<T>(Option<Sender<End<T>>>);

/// Catches the signals that ask a daemon to end, from now on; and what is to go with its work.
///
/// # Errors
/// The signals cannot be caught.
pub fn ending<T: Send + 'static>() -> Result<(Ending<T>, Work<T>), Failure> {
    let (ends, ended) = mpsc::channel();
    let work = Work(Some(ends.clone()));
    let caught = Signals::new([SIGINT, SIGTERM]).and_then(|mut signals| {
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    let name = if signal == SIGINT {
                        "SIGINT"
                    } else {
                        "SIGTERM"
                    };
                    // Who does not listen any more is ending already.
                    drop(ends.send(End::Signal(name)));
                }
            })
    });
    caught
        .context("signals cannot be caught")
        .map_err(Failure::Failed)?;
    Ok((Ending(ended), work))
}

impl<T> Ending<T> {
    /// Says to systemd that the daemon is ready, and when it ends no more; in between waits for
    /// the end.
    pub fn wait(self) -> End<T> {
        tell("READY=1");
        let end = self.0.recv().unwrap_or(End::Lost);
        tell("STOPPING=1");
        end
    }
}

impl<T> Work<T> {
    /// It is done.
    pub fn done(mut self, outcome: T) {
        self.send(End::Done(outcome));
    }

    fn send(&mut self, end: End<T>) {
        if let Some(ends) = self.0.take() {
            // Who does not listen any more is ending already.
            drop(ends.send(end));
        }
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.send(End::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_done_says_so_and_work_that_panics_is_lost() {
        let (end, work) = ending().unwrap();
        work.done(7);
        assert_eq!(end.wait(), End::Done(7));

        let (end, work) = ending::<()>().unwrap();
        let panicked = thread::spawn(move || {
            let _work = work;
            panic!("as the test wants it");
        });
        assert!(panicked.join().is_err());
        assert_eq!(end.wait(), End::Lost);
    }
}
