//! A ring with its event channel: waiting for entries.

use core::task::{Context, Poll};
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use parapet_hypervisor::seam::Channel;
use parapet_ring::Link;
use parapet_xen_sys::Port;

use crate::common::{REQ_PROD, pair, request, response, scribble};

/// A port of ours and one of the peer's, and who waits there: an event channel without a
/// hypervisor.
#[derive(Clone, Default)]
struct Wire {
    ours: Arc<Mutex<Pending>>,
    peers: Arc<Mutex<Pending>>,
}

#[derive(Default)]
struct Pending {
    event: bool,
    waiter: Option<Waker>,
}

impl Wire {
    fn crossed(&self) -> Wire {
        Wire {
            ours: self.peers.clone(),
            peers: self.ours.clone(),
        }
    }
}

impl Channel for Wire {
    fn port(&self) -> Port {
        Port(1)
    }

    fn notify(&self) {
        let mut peers = self.peers.lock().unwrap();
        peers.event = true;
        if let Some(waiter) = peers.waiter.take() {
            waiter.wake();
        }
    }

    fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.take() {
            return Poll::Ready(());
        }
        self.ours.lock().unwrap().waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    fn take(&self) -> bool {
        std::mem::take(&mut self.ours.lock().unwrap().event)
    }

    fn mask(&self) {
        unreachable!("a link does not mask");
    }

    fn unmask(&self) {
        unreachable!("a link does not unmask");
    }
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_waiting_end_is_woken_by_the_entry_it_waits_for_and_takes_it() {
    let (front, back, _) = pair(1, 0);
    let wire = Wire::default();
    let mut front = Link::new(front, wire.crossed());
    let mut back = Link::new(back, wire);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut cx = Context::from_waker(&waker);

    {
        let mut next = pin!(back.next());
        assert!(next.as_mut().poll(&mut cx).is_pending());
        front.ring.push(&request(1)).unwrap();
        assert!(front.publish());
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert_eq!(next.as_mut().poll(&mut cx), Poll::Ready(Ok(request(1))));
    }
    let mut next = pin!(front.next());
    assert!(next.as_mut().poll(&mut cx).is_pending());
    back.ring.push(&response(1)).unwrap();
    assert!(back.publish());
    assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
    assert_eq!(next.as_mut().poll(&mut cx), Poll::Ready(Ok(response(1))));
}

#[test]
fn an_entry_that_is_there_already_is_not_waited_for() {
    let (front, back, _) = pair(1, 0);
    let wire = Wire::default();
    let mut front = Link::new(front, wire.crossed());
    let mut back = Link::new(back, wire);
    front.ring.push(&request(1)).unwrap();
    front.publish();
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(back.poll_ready(&mut cx), Poll::Ready(Ok(())));
}

#[test]
fn an_event_without_an_entry_wakes_nobody_for_good() {
    let (front, back, _) = pair(1, 0);
    let wire = Wire::default();
    let mut back = Link::new(back, wire.clone());
    let mut front = Link::new(front, wire.crossed());
    wire.crossed().notify();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(back.poll_ready(&mut cx).is_pending());
    assert_eq!(
        wakes.0.load(Ordering::SeqCst),
        0,
        "asleep, the event is gone"
    );
    front.ring.push(&request(1)).unwrap();
    assert!(front.publish());
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    assert_eq!(back.poll_ready(&mut cx), Poll::Ready(Ok(())));
}

/// A peer that notifies faster than we can look; it counts how often we do.
#[derive(Default)]
struct Storm(AtomicUsize);

impl Channel for Storm {
    fn port(&self) -> Port {
        Port(1)
    }

    fn notify(&self) {}

    fn poll_wait(&self, _: &mut Context<'_>) -> Poll<()> {
        let polls = self.0.fetch_add(1, Ordering::SeqCst);
        assert!(polls < 10, "still at it within one poll");
        Poll::Ready(())
    }

    fn take(&self) -> bool {
        true
    }

    fn mask(&self) {}

    fn unmask(&self) {}
}

#[test]
fn a_storm_of_events_does_not_keep_a_task_from_yielding() {
    let (_, back, _) = pair(1, 0);
    let mut back = Link::new(back, Storm::default());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    assert!(
        back.poll_ready(&mut Context::from_waker(&waker))
            .is_pending()
    );
    assert_eq!(wakes.0.load(Ordering::SeqCst), 1, "queued again by itself");
}

#[test]
fn a_violation_ends_the_waiting() {
    let (_, back, memory) = pair(1, 0);
    let mut back = Link::new(back, Wire::default());
    let mut cx = Context::from_waker(Waker::noop());
    let mut next = pin!(back.next());
    assert!(next.as_mut().poll(&mut cx).is_pending());
    scribble(&memory, REQ_PROD, 1 << 31);
    assert!(matches!(next.as_mut().poll(&mut cx), Poll::Ready(Err(_))));
}
