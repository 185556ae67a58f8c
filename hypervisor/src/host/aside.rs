//! Work that may keep whoever does it for ever.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::task::Poll;
use std::thread;

use atomic_waker::AtomicWaker;

/// Wakes the one who waits, when all else that the thread held is gone, also after a panic.
struct Over(Arc<AtomicWaker>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// Does `work` on a thread of its own, for what has no way to be waited for: a file server that
/// does not answer, a volume that is suspended, keep a thread that looks at their files.
///
/// The future yields what came of it, and nothing if it panicked. If the future is dropped the
/// work goes on, and what comes of it is dropped.
///
/// # Errors
/// The host's, when it has no thread to give.
pub fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<impl Future<Output = Option<T>> + Send + 'static> {
    let (outcome, result) = mpsc::channel();
    let waiter = Arc::new(AtomicWaker::new());
    let over = Over(Arc::clone(&waiter));
    thread::Builder::new().name("aside".into()).spawn(move || {
        // Dropped last, so that a panic too is noticed by who is woken.
        let _over = over;
        let outcome = outcome;
        // Nobody may wait any more.
        let _ = outcome.send(work());
    })?;
    Ok(poll_fn(move |cx| {
        waiter.register(cx.waker());
        match result.try_recv() {
            Ok(outcome) => Poll::Ready(Some(outcome)),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::block_on;

    #[test]
    fn the_outcome_comes_back() {
        assert_eq!(block_on(aside(|| 7).unwrap()), Some(7));
    }

    #[test]
    fn a_panic_is_no_outcome() {
        let work = || -> u8 { panic!("as it is meant to") };
        assert_eq!(block_on(aside(work).unwrap()), None);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_when_it_is_there() {
        let (go, gone) = mpsc::channel::<()>();
        let (held, dropped) = mpsc::channel::<()>();
        let work = aside(move || {
            gone.recv().unwrap();
            held
        });
        drop(work);
        go.send(()).unwrap();
        assert!(dropped.recv().is_err(), "its end of the channel is gone");
    }
}
