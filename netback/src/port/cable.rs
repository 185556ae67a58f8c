//! A cable between two networks, such as a switch and the host's.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use parapet_hypervisor::seam::{Grants, Tasks};

use super::{Port, Socket};
use crate::bell::Bell;
use crate::drops::Drops;
use crate::endpoint::Endpoint;
use crate::frame::Frame;

/// Frames that are moved at once.
const BATCH: usize = 64;
/// Batches after which the place's other tasks have their turn.
const TURN: usize = 8;

/// A cable. Dropping it pulls it out.
pub struct Cable<P: Grants + 'static> {
    state: Arc<State>,
    /// Kept, and locked by nobody.
    _ends: Mutex<[Box<dyn Socket<P>>; 2]>,
}

struct State {
    /// One for each queue.
    bells: Vec<Arc<Bell>>,
    pulled: AtomicBool,
    drops: [Drops; 2],
}

impl<P: Grants + 'static> Cable<P> {
    /// Connects two places of networks with each other, by so many queues, each of which is a task.
    ///
    /// # Errors
    /// One of the networks does not give what it takes.
    pub fn new(
        place: &(impl Tasks + ?Sized),
        mut ends: [Box<dyn Socket<P>>; 2],
        queues: usize,
    ) -> io::Result<Self> {
        let bells: Vec<Arc<Bell>> = (0..queues).map(|_| Arc::default()).collect();
        let endpoint = || Arc::new(Endpoint::new(bells.iter().cloned(), Arc::default()));
        let endpoints = [endpoint(), endpoint()];
        let [a, b] = &mut ends;
        let left = a.connect(Arc::clone(&endpoints[0]))?;
        let right = b.connect(Arc::clone(&endpoints[1]))?;
        let state = Arc::new(State {
            bells,
            pulled: AtomicBool::new(false),
            drops: Default::default(),
        });
        for (queue, (a, b)) in left.into_iter().zip(right).enumerate() {
            let [from_a, from_b] = endpoints.clone();
            let mut wire = Wire {
                state: Arc::clone(&state),
                queue,
                ends: [
                    End {
                        port: a,
                        endpoint: from_a,
                    },
                    End {
                        port: b,
                        endpoint: from_b,
                    },
                ],
                frames: Vec::with_capacity(BATCH),
            };
            place.spawn(async move {
                if let Err(error) = poll_fn(|cx| wire.poll(cx)).await {
                    log::warn!("a cable between two networks is broken: {error}");
                }
            });
        }
        Ok(Cable {
            state,
            _ends: Mutex::new(ends),
        })
    }

    /// Frames that did not get into the one network or the other, and why.
    pub fn drops(&self) -> &[Drops; 2] {
        &self.state.drops
    }
}

impl<P: Grants + 'static> Drop for Cable<P> {
    fn drop(&mut self) {
        self.state.pulled.store(true, Ordering::SeqCst);
        for bell in &self.state.bells {
            bell.ring();
        }
    }
}

struct End<P: Grants + 'static> {
    port: Box<dyn Port<P>>,
    endpoint: Arc<Endpoint<P>>,
}

/// One queue.
struct Wire<P: Grants + 'static> {
    state: Arc<State>,
    queue: usize,
    ends: [End<P>; 2],
    frames: Vec<Frame<P>>,
}

impl<P: Grants + 'static> Wire<P> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = Arc::clone(&self.state);
        let bell = &state.bells[self.queue];
        bell.hush();
        for _ in 0..TURN {
            if state.pulled.load(Ordering::SeqCst) {
                return Poll::Ready(Ok(()));
            }
            let mut moved = false;
            for from in 0..2 {
                match self.carry(from, cx) {
                    Ok(any) => moved |= any,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            if moved {
                continue;
            }
            bell.listen(cx);
            let waits = |end: &End<P>| !end.endpoint.is_empty(self.queue);
            if !self.ends.iter().any(waits) && !state.pulled.load(Ordering::SeqCst) {
                return Poll::Pending;
            }
            bell.hush();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves a batch from one end to the other, if there is one.
    fn carry(&mut self, from: usize, cx: &mut Context<'_>) -> io::Result<bool> {
        let to = 1 - from;
        let End { port, endpoint } = &mut self.ends[from];
        while self.frames.len() < BATCH
            && let Some(frame) = endpoint.take(self.queue)
        {
            self.frames.push(frame);
        }
        let most = BATCH - self.frames.len();
        if most > 0
            && let Poll::Ready(received) = port.poll_receive(cx, &mut self.frames, most)
        {
            received?;
        }
        if self.frames.is_empty() {
            return Ok(false);
        }
        self.ends[to]
            .port
            .send(&mut self.frames, &self.state.drops[to]);
        self.frames.clear();
        Ok(true)
    }
}

impl<P: Grants + 'static> Drop for Wire<P> {
    fn drop(&mut self) {
        // Frames of others are not to wait here.
        for end in &self.ends {
            end.endpoint.close(self.queue);
        }
    }
}
