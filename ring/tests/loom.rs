//! The notification protocol under loom, which runs each of these models in every order that the
//! memory model allows. A wake-up that is lost is a deadlock, and loom reports it.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p parapet-ring --release --test loom
//! ```
//!
//! The code under test is that of `parapet_ring::notify`, as drivers run it; only the words are
//! loom's. The last models do without a barrier or an ordering, and must fail: they show that the
//! others can.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::marker::PhantomData;
// Not loom's: when a model fails, as some must, that one panics once more on the way out.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, fence};
use loom::thread;
use parapet_ring::notify::{Consumer, Direction, Producer, Word};

/// How a word orders things: as it should, or with a part missing.
trait Orders: 'static {
    fn of_an_access(asked: Ordering) -> Ordering {
        asked
    }

    fn full_barrier() {
        fence(Ordering::SeqCst);
    }
}

/// As drivers do it.
struct Right;

impl Orders for Right {}

/// Broken: what should be a full barrier lets a later read overtake an earlier write.
struct WeakBarrier;

impl Orders for WeakBarrier {
    fn full_barrier() {
        fence(Ordering::AcqRel);
    }
}

/// Broken: an index does not bring its entries along.
struct Unordered;

impl Orders for Unordered {
    fn of_an_access(_: Ordering) -> Ordering {
        Ordering::Relaxed
    }
}

/// A word of loom's.
struct LoomWord<O>(AtomicU32, PhantomData<fn(O)>);

impl<O: Orders> LoomWord<O> {
    fn new(value: u32) -> Self {
        LoomWord(AtomicU32::new(value), PhantomData)
    }
}

impl<O: Orders> Word for LoomWord<O> {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(O::of_an_access(order))
    }

    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, O::of_an_access(order));
    }

    fn full_barrier() {
        O::full_barrier();
    }
}

/// One direction of a ring of `SLOTS` slots, and the event channel to its consumer.
struct Lane<O> {
    producer: LoomWord<O>,
    event: LoomWord<O>,
    slots: [AtomicU32; SLOTS as usize],
    /// One bit and one waiter, as an event channel is.
    channel: Notify,
}

const SLOTS: u32 = 2;

/// So that the indices wrap within a model.
const START: u32 = u32::MAX;

impl<O: Orders> Lane<O> {
    fn new() -> Self {
        Lane {
            producer: LoomWord::new(START),
            // As it is while the consumer is awake: behind. (In a ring just made it is one ahead,
            // and the first arming changes nothing: no model of a race.)
            event: LoomWord::new(START),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
            channel: Notify::new(),
        }
    }

    fn direction(&self) -> Direction<'_, LoomWord<O>> {
        Direction {
            name: "producer",
            producer: &self.producer,
            event: &self.event,
        }
    }

    fn slot(&self, index: u32) -> &AtomicU32 {
        &self.slots[(index % SLOTS) as usize]
    }

    fn push(&self, half: &mut Producer, value: u32) {
        self.slot(half.next()).store(value, Ordering::Relaxed);
        half.advance();
    }

    fn publish(&self, half: &mut Producer) {
        if half.publish(&self.direction()) {
            self.channel.notify();
        }
    }

    fn take(&self, half: &mut Consumer, room: u32) -> Option<u32> {
        if half.unread() == 0 {
            half.look(&self.direction(), room).unwrap();
        }
        let index = half.advance()?;
        Some(self.slot(index).load(Ordering::Relaxed))
    }

    /// Sleeps unless `count` entries are there.
    fn sleep(&self, half: &mut Consumer, room: u32, count: u32) {
        if !half.arm(&self.direction(), room, count).unwrap() {
            self.channel.wait();
        }
    }
}

/// One publishes `batches`, one batch at a time; the other takes all, and sleeps for `at_once`
/// entries whenever there are none.
fn one_direction<O: Orders>(batches: &'static [u32], at_once: u32) {
    loom::model(move || {
        let lane = Arc::new(Lane::<O>::new());
        let producer = thread::spawn({
            let lane = lane.clone();
            move || {
                let mut half = Producer::starting_at(START);
                let mut value = 0;
                for &batch in batches {
                    for _ in 0..batch {
                        value += 1;
                        lane.push(&mut half, value);
                    }
                    lane.publish(&mut half);
                }
            }
        });
        let mut half = Consumer::starting_at(START);
        let all = batches.iter().sum::<u32>();
        let mut taken = 0;
        while taken < all {
            match lane.take(&mut half, SLOTS) {
                Some(value) => {
                    taken += 1;
                    assert_eq!(value, taken, "an entry that is not there yet");
                }
                None => lane.sleep(&mut half, SLOTS, at_once.min(all - taken)),
            }
        }
        producer.join().unwrap();
    });
}

/// A frontend that has `requests` requests answered, with at most `SLOTS` outstanding, and a
/// backend; each sleeps whenever it finds nothing to do.
fn both_directions<O: Orders>(requests: u32, preemptions: Option<usize>) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        let there = Arc::new(Lane::<O>::new());
        let back_again = Arc::new(Lane::<O>::new());
        let backend = thread::spawn({
            let (there, back_again) = (there.clone(), back_again.clone());
            move || {
                let mut incoming = Consumer::starting_at(START);
                let mut outgoing = Producer::starting_at(START);
                let mut answered = 0;
                loop {
                    while let Some(value) = there.take(&mut incoming, SLOTS) {
                        back_again.push(&mut outgoing, value * 10);
                        answered += 1;
                    }
                    back_again.publish(&mut outgoing);
                    if answered == requests {
                        break;
                    }
                    there.sleep(&mut incoming, SLOTS, 1);
                }
            }
        });
        let mut outgoing = Producer::starting_at(START);
        let mut incoming = Consumer::starting_at(START);
        let (mut asked, mut answered) = (0, 0);
        while answered < requests {
            while asked < requests && asked - answered < SLOTS {
                asked += 1;
                there.push(&mut outgoing, asked);
            }
            there.publish(&mut outgoing);
            let outstanding = asked - answered;
            match back_again.take(&mut incoming, outstanding) {
                Some(value) => {
                    answered += 1;
                    assert_eq!(value, answered * 10, "a response that is not there yet");
                }
                None => back_again.sleep(&mut incoming, outstanding, 1),
            }
        }
        backend.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost_between_one_publication_and_one_arming() {
    one_direction::<Right>(&[1], 1);
}

#[test]
fn no_wake_up_is_lost_between_entries_published_one_by_one() {
    one_direction::<Right>(&[1, 1], 1);
}

#[test]
fn no_wake_up_is_lost_when_a_batch_jumps_over_the_event_index() {
    one_direction::<Right>(&[2], 1);
}

#[test]
fn no_wake_up_is_lost_when_it_is_asked_for_after_two_entries() {
    one_direction::<Right>(&[1, 1], 2);
}

#[test]
fn a_request_and_its_response_lose_no_wake_up() {
    both_directions::<Right>(1, None);
}

#[test]
fn requests_and_responses_crossing_each_other_lose_no_wake_up() {
    both_directions::<Right>(2, Some(3));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_full_barrier_a_wake_up_is_lost() {
    one_direction::<WeakBarrier>(&[1], 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_full_barrier_a_ring_comes_to_a_halt() {
    both_directions::<WeakBarrier>(1, None);
}

#[test]
#[should_panic(expected = "an entry that is not there yet")]
fn without_release_and_acquire_an_entry_is_taken_before_it_is_there() {
    one_direction::<Unordered>(&[1], 1);
}
