//! A peer that writes whatever it likes wherever it can: all that comes of it is a violation, or
//! entries that are for the driver to check, and never more of them than there can be.

use parapet_hypervisor::memory::Scratch;
use parapet_ring::{AttachError, Own, Violation};
use proptest::prelude::*;

use crate::common::{
    REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, TestBack, TestFront, pair, peek, request, response,
    scribble,
};

/// What the peer writes between two of our operations.
#[derive(Debug, Clone, Copy)]
enum Scribble {
    /// Any word of the header or of the slots.
    Anywhere { word: usize, value: u32 },
    /// One of the four indices, a little off from what it is.
    Near { index: usize, by: i32 },
    /// Nothing.
    Rest,
}

fn scribbles() -> impl Strategy<Value = Scribble> {
    prop_oneof![
        (0usize..1024, any::<u32>()).prop_map(|(word, value)| Scribble::Anywhere { word, value }),
        (0usize..4, -40i32..40).prop_map(|(index, by)| Scribble::Near { index, by }),
        Just(Scribble::Rest),
    ]
}

fn apply(scribble_: Scribble, memory: &Scratch) {
    match scribble_ {
        Scribble::Anywhere { word, value } => scribble(memory, word * 4, value),
        Scribble::Near { index, by } => {
            let offset = [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT][index];
            let value = peek(memory, offset).wrapping_add_signed(by);
            scribble(memory, offset, value);
        }
        Scribble::Rest => {}
    }
}

/// Holds an end to it: once it has reported a violation it reports nothing else.
#[derive(Default)]
struct Sticky(Option<Violation>);

impl Sticky {
    fn check<T>(&mut self, outcome: Result<T, Violation>) -> Result<Option<T>, TestCaseError> {
        match (outcome, self.0) {
            (Ok(value), None) => Ok(Some(value)),
            (Ok(_), Some(violation)) => Err(TestCaseError::fail(format!(
                "forgot the violation: {violation}"
            ))),
            (Err(violation), known) => {
                prop_assert_eq!(known.unwrap_or(violation), violation);
                self.0 = Some(violation);
                Ok(None)
            }
        }
    }
}

proptest! {
    #[test]
    fn a_backend_survives_whatever_is_in_the_ring(
        start in any::<u32>(),
        steps in proptest::collection::vec((0u8..5, scribbles()), 1..400),
    ) {
        let (_, mut back, memory) = pair(1, start);
        let mut sticky = Sticky::default();
        for (step, scribble) in steps {
            apply(scribble, &memory);
            let before = back.unanswered();
            match step {
                0 | 1 => {
                    let taken = sticky.check(back.take())?.flatten().is_some();
                    prop_assert_eq!(back.unanswered(), before + u32::from(taken));
                }
                2 => prop_assert_eq!(back.push(&response(1)).is_ok(), before > 0),
                3 => _ = back.publish(),
                _ => _ = sticky.check(back.arm())?,
            }
            prop_assert!(back.unanswered() <= back.slots());
        }
    }

    #[test]
    fn a_frontend_survives_whatever_is_in_the_ring(
        start in any::<u32>(),
        steps in proptest::collection::vec((0u8..6, scribbles()), 1..400),
    ) {
        let (mut front, _, memory) = pair(1, start);
        let mut sticky = Sticky::default();
        for (step, scribble) in steps {
            apply(scribble, &memory);
            let before = front.free();
            match step {
                0 | 1 => {
                    let taken = sticky.check(front.take())?.flatten().is_some();
                    prop_assert_eq!(front.free(), before + u32::from(taken));
                }
                2 => prop_assert_eq!(front.push(&request(1)).is_ok(), before > 0),
                3 => _ = front.publish(),
                4 => _ = sticky.check(front.arm())?,
                _ => _ = sticky.check(front.arm_after(7))?,
            }
            prop_assert!(front.free() <= front.slots());
        }
    }

    #[test]
    fn attaching_to_any_page_at_all_gives_a_ring_or_an_error(
        words in proptest::collection::vec(any::<u32>(), 16),
    ) {
        let memory = Scratch::new(4096);
        for (i, &word) in words.iter().enumerate() {
            scribble(&memory, i * 4, word);
        }
        if let Ok(mut front) = TestFront::attach(Own(memory.clone())) {
            prop_assert!(front.free() <= front.slots());
            _ = front.take();
        }
        let mut back = TestBack::resume(Own(memory)).unwrap();
        _ = back.take();
        prop_assert!(back.unanswered() <= 1);
    }
}

#[test]
fn taking_ends_though_the_frontend_never_stops_publishing() {
    let (_, mut back, memory) = pair(1, 0);
    let mut taken = 0;
    loop {
        // Always a little ahead of the backend, so that there is always one more.
        scribble(&memory, REQ_PROD, taken + 1);
        match back.take() {
            Ok(Some(_)) => taken += 1,
            Ok(None) => panic!("a request was published"),
            Err(_) => break,
        }
        assert!(taken <= back.slots());
    }
    assert_eq!(taken, back.slots());
}

#[test]
fn taking_ends_though_the_backend_never_stops_publishing() {
    let (mut front, _, memory) = pair(1, 0);
    for number in 0..5 {
        front.push(&request(number)).unwrap();
    }
    assert!(front.publish());
    // Written into its slot, but the backend has not been told of it.
    front.push(&request(5)).unwrap();
    for taken in 0..5 {
        scribble(&memory, RSP_PROD, taken + 1);
        assert!(front.take().unwrap().is_some());
    }
    scribble(&memory, RSP_PROD, 6);
    let violation = Violation::Index {
        name: "rsp_prod",
        value: 6,
        least: 5,
        most: 5,
    };
    assert_eq!(front.take(), Err(violation));
    assert_eq!(
        violation.to_string(),
        "the peer set rsp_prod to 0x6; it can only be 0x5 to 0x5"
    );
}

#[test]
fn a_request_in_a_slot_whose_request_is_not_answered_is_a_violation() {
    let (mut front, mut back, memory) = pair(1, 0);
    let slots = front.slots();
    for number in 0..slots {
        front.push(&request(number)).unwrap();
    }
    assert!(front.publish());
    for _ in 0..slots {
        assert!(back.take().unwrap().is_some());
    }
    // One more than the backend has taken, which is far from one ring more than that; but every
    // slot is waiting for its response.
    scribble(&memory, REQ_PROD, slots + 1);
    assert!(back.take().is_err());
}

#[test]
fn an_index_that_goes_back_is_a_violation() {
    let (mut front, mut back, memory) = pair(1, 10);
    front.push(&request(1)).unwrap();
    front.push(&request(2)).unwrap();
    assert!(front.publish());
    assert!(back.take().unwrap().is_some());
    assert!(back.take().unwrap().is_some());
    scribble(&memory, REQ_PROD, 11);
    assert!(back.arm().is_err());

    for _ in 0..2 {
        back.push(&response(1)).unwrap();
    }
    assert!(back.publish());
    assert_eq!(front.arm_after(9), Ok(true), "both that can come are there");
    front.push(&request(3)).unwrap();
    assert!(!front.publish(), "the backend was not waiting");
    // Seen, but not yet taken: what was there cannot be taken back either.
    scribble(&memory, RSP_PROD, 11);
    assert!(front.arm_after(9).is_err());
    assert!(front.take().is_err());
}

#[test]
fn a_violation_is_not_forgotten_when_the_index_is_put_right() {
    let (mut front, mut back, memory) = pair(1, 0);
    front.push(&request(1)).unwrap();
    assert!(front.publish());
    scribble(&memory, REQ_PROD, 1000);
    let violation = back.take().unwrap_err();
    scribble(&memory, REQ_PROD, 1);
    assert_eq!(back.take(), Err(violation));
    assert_eq!(back.arm(), Err(violation));
}

#[test]
fn a_frontend_does_not_attach_to_a_ring_with_more_outstanding_than_it_has_slots() {
    let (front, _, memory) = pair(1, 0);
    scribble(&memory, REQ_PROD, front.slots() + 1);
    assert!(matches!(
        TestFront::attach(Own(memory)),
        Err(AttachError::Violation(_))
    ));
}

#[test]
fn what_the_peer_writes_into_our_own_indices_is_not_believed() {
    let (mut front, mut back, memory) = pair(1, 0);
    for number in 0..3 {
        assert_eq!(back.arm(), Ok(false));
        front.push(&request(number)).unwrap();
        // As if it were published already, and nobody had to be notified.
        scribble(&memory, REQ_PROD, number + 1);
        assert!(front.publish());
        assert_eq!(back.take(), Ok(Some(request(number))));

        assert_eq!(front.arm(), Ok(false));
        back.push(&response(number)).unwrap();
        scribble(&memory, RSP_PROD, 77);
        assert!(back.publish());
        assert_eq!(peek(&memory, RSP_PROD), number + 1);
        assert_eq!(front.take(), Ok(Some(response(number))));
    }
}
