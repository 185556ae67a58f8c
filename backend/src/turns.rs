//! Taking turns at what there is only so much of.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

/// So many may have a turn at once, the others wait in line. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Mutex<Line>>);

#[derive(Debug)]
struct Line {
    free: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
struct Turn(Turns);

impl Turns {
    /// Turns for `most` at once.
    pub fn new(most: usize) -> Self {
        Turns(Arc::new(Mutex::new(Line {
            free: most,
            waiting: VecDeque::new(),
        })))
    }

    /// Does something when it has its turn.
    pub async fn take<R>(&self, what: impl Future<Output = R>) -> R {
        let turn = self.wait().await;
        let outcome = what.await;
        drop(turn);
        outcome
    }

    async fn wait(&self) -> Turn {
        loop {
            let called = {
                let mut line = self.line();
                if line.free > 0 {
                    line.free -= 1;
                    return Turn(self.clone());
                }
                let (call, called) = oneshot::channel();
                line.waiting.push_back(call);
                called
            };
            if let Ok(turn) = called.await {
                return turn;
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut line = self.0.line();
            let next = line.waiting.pop_front();
            if next.is_none() {
                line.free += 1;
            }
            next
        };
        // One who does not wait any more gives it on by dropping it.
        if let Some(next) = next {
            drop(next.send(Turn(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn who_comes_too_late_waits_and_who_leaves_the_line_holds_nobody_up() {
        let turns = Turns::new(1);
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(turns.take(std::future::pending::<()>()));
        let mut second = Box::pin(turns.take(std::future::pending::<()>()));
        let mut third = pin!(turns.take(std::future::ready(3)));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(third.as_mut().poll(&mut cx).is_pending());
        drop(second);
        assert!(third.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert_eq!(third.as_mut().poll(&mut cx), Poll::Ready(3));
        assert_eq!(turns.line().free, 1);
    }
}
