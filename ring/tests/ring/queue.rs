//! A ring is a queue: whatever the two ends do in whatever order, what one pushes the other takes,
//! in order, once, and each is notified exactly when it asked to be.

use std::collections::VecDeque;

use crate::common::{self, TestBack, TestFront, pair, peek, request, response};
use parapet_hypervisor::memory::{PAGE_SIZE, ReadOnly, Scratch, View};
use parapet_hypervisor::seam::{Access, Mapping};
use parapet_ring::{AttachError, Back, Front, Full, Own, Peer};
use proptest::prelude::*;

/// One direction of the ring as it is thought of: indices that never wrap.
struct Model {
    slots: VecDeque<u32>,
    pushed: u64,
    published: u64,
    taken: u64,
    event: u64,
}

impl Model {
    fn starting_at(start: u32) -> Self {
        let start = u64::from(start);
        Model {
            slots: VecDeque::new(),
            pushed: start,
            published: start,
            taken: start,
            event: start + 1,
        }
    }

    fn push(&mut self, number: u32) {
        self.slots.push_back(number);
        self.pushed += 1;
    }

    /// Whether the consumer is to be notified.
    fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.pushed);
        old < self.event && self.event <= self.published
    }

    fn take(&mut self) -> Option<u32> {
        if self.taken == self.published {
            return None;
        }
        self.taken += 1;
        self.slots.pop_front()
    }

    /// Whether the consumer is to stay awake.
    fn arm(&mut self, count: u64) -> bool {
        if self.published - self.taken >= count {
            return true;
        }
        self.event = self.taken + count;
        false
    }
}

/// Something that one of the ends does.
#[derive(Debug, Clone, Copy)]
enum Step {
    FrontPush,
    FrontPublish,
    FrontTake,
    FrontArm,
    FrontArmAfter(u32),
    BackTake,
    BackPush,
    BackPublish,
    BackArm,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u32)>> {
    use Step::*;
    let step = prop_oneof![
        4 => Just(FrontPush),
        2 => Just(FrontPublish),
        2 => Just(FrontTake),
        1 => Just(FrontArm),
        1 => (0u32..70).prop_map(FrontArmAfter),
        2 => Just(BackTake),
        2 => Just(BackPush),
        2 => Just(BackPublish),
        1 => Just(BackArm),
    ];
    // Each is done some times over, so that rings of many slots fill up as well.
    proptest::collection::vec((step, prop_oneof![3 => 1u32..3, 1 => 1u32..70]), 1..300)
}

/// Indices that wrap within the test, and others.
fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), u32::MAX - 200..=u32::MAX, any::<u32>()]
}

proptest! {
    #[test]
    fn any_interleaving_is_a_queue_each_way_and_notifies_who_asked(
        pages in 1usize..4, start in starts(), steps in steps(),
    ) {
        let (mut front, mut back, _memory) = pair(pages, start);
        let slots = front.slots();
        prop_assert_eq!(back.slots(), slots);
        let (mut requests, mut responses) = (Model::starting_at(start), Model::starting_at(start));
        let mut number = 0;
        for (step, times) in steps {
            for _ in 0..times {
                number += 1;
                match step {
                    Step::FrontPush => {
                        let free = u64::from(slots) - (requests.pushed - responses.taken);
                        prop_assert_eq!(u64::from(front.free()), free);
                        if free == 0 {
                            prop_assert_eq!(front.push(&request(number)), Err(Full));
                        } else {
                            prop_assert_eq!(front.push(&request(number)), Ok(()));
                            requests.push(number);
                        }
                    }
                    Step::FrontPublish => prop_assert_eq!(front.publish(), requests.publish()),
                    Step::FrontTake => {
                        prop_assert_eq!(front.take(), Ok(responses.take().map(response)));
                    }
                    Step::FrontArm => prop_assert_eq!(front.arm(), Ok(responses.arm(1))),
                    Step::FrontArmAfter(count) => {
                        let outstanding = requests.published - responses.taken;
                        let count_meant = u64::from(count).min(outstanding).max(1);
                        prop_assert_eq!(front.arm_after(count), Ok(responses.arm(count_meant)));
                    }
                    Step::BackTake => {
                        prop_assert_eq!(back.take(), Ok(requests.take().map(request)));
                    }
                    Step::BackPush => {
                        let unanswered = requests.taken - responses.pushed;
                        prop_assert_eq!(u64::from(back.unanswered()), unanswered);
                        if unanswered == 0 {
                            prop_assert_eq!(back.push(&response(number)), Err(Full));
                        } else {
                            prop_assert_eq!(back.push(&response(number)), Ok(()));
                            responses.push(number);
                        }
                    }
                    Step::BackPublish => prop_assert_eq!(back.publish(), responses.publish()),
                    Step::BackArm => prop_assert_eq!(back.arm(), Ok(requests.arm(1))),
                }
            }
        }
    }
}

#[test]
fn a_ring_has_as_many_slots_as_fit_rounded_down_to_a_power_of_two() {
    fn slots<Req, Rsp>(len: usize) -> u32
    where
        Req: zerocopy::IntoBytes + zerocopy::Immutable,
        Rsp: zerocopy::FromBytes,
    {
        Front::<_, Req, Rsp>::new(Own(Scratch::new(len)))
            .unwrap()
            .slots()
    }
    // Xen's own: blkif on one page and on sixteen, netif's transmit and receive rings.
    assert_eq!(slots::<[u8; 112], [u8; 16]>(PAGE_SIZE), 32);
    assert_eq!(slots::<[u8; 112], [u8; 16]>(16 * PAGE_SIZE), 512);
    assert_eq!(slots::<[u8; 12], [u8; 4]>(PAGE_SIZE), 256);
    assert_eq!(slots::<[u8; 8], [u8; 8]>(PAGE_SIZE), 256);
    // A response may be the longer one, and a slot is a multiple of what either is aligned to.
    assert_eq!(slots::<[u8; 4], [u8; 128]>(PAGE_SIZE), 16);
    assert_eq!(slots::<[u8; 12], u64>(64 + 4 * 16), 4);
    assert_eq!(slots::<[u8; 12], u64>(64 + 4 * 16 - 1), 2);
}

#[test]
fn memory_without_room_for_a_slot_is_refused_by_both_ends() {
    let too_small = |len| {
        let memory = Scratch::new(len);
        assert!(TestFront::new(Own(memory.clone())).is_err());
        assert!(TestBack::attach(Own(memory.clone())).is_err());
        assert!(TestBack::resume(Own(memory.clone())).is_err());
        assert!(matches!(
            TestFront::attach(Own(memory)),
            Err(AttachError::TooSmall(_))
        ));
    };
    too_small(1);
    too_small(64);
    too_small(64 + 111);
    let memory = Scratch::new(64 + 112);
    assert_eq!(TestFront::new(Own(memory.clone())).unwrap().slots(), 1);
    assert_eq!(TestBack::attach(Own(memory)).unwrap().slots(), 1);
}

#[test]
fn a_new_ring_has_the_header_that_xen_gives_it() {
    let memory = Scratch::new(PAGE_SIZE);
    memory.view().write_bytes(0, &[0xa5; 64]).unwrap();
    TestFront::new(Own(memory.clone())).unwrap();
    assert_eq!(peek(&memory, common::REQ_PROD), 0);
    assert_eq!(peek(&memory, common::REQ_EVENT), 1);
    assert_eq!(peek(&memory, common::RSP_PROD), 0);
    assert_eq!(peek(&memory, common::RSP_EVENT), 1);
    for offset in (16..64).step_by(4) {
        assert_eq!(peek(&memory, offset), 0);
    }
}

#[test]
fn a_slot_lies_where_xen_puts_it() {
    let (mut front, _back, memory) = pair(2, u32::MAX);
    let slots = front.slots() as usize;
    front.push(&request(1)).unwrap();
    front.push(&request(2)).unwrap();
    let at = |slot: usize| {
        memory
            .view()
            .read::<common::Request>(64 + slot * 112)
            .unwrap()
    };
    assert_eq!(at(slots - 1), request(1));
    assert_eq!(at(0), request(2));
}

#[test]
fn what_is_pushed_is_not_seen_before_it_is_published() {
    let (mut front, mut back, _memory) = pair(1, 0);
    front.push(&request(1)).unwrap();
    assert_eq!(back.take(), Ok(None));
    assert!(front.publish());
    assert_eq!(back.take(), Ok(Some(request(1))));
    back.push(&response(1)).unwrap();
    assert_eq!(front.take(), Ok(None));
    assert!(back.publish());
    assert_eq!(front.take(), Ok(Some(response(1))));
}

#[test]
fn a_backend_that_is_awake_is_not_notified_again() {
    let (mut front, mut back, _memory) = pair(1, 0);
    front.push(&request(1)).unwrap();
    assert!(front.publish());
    front.push(&request(2)).unwrap();
    assert!(!front.publish());
    assert!(back.take().unwrap().is_some());
    assert!(back.take().unwrap().is_some());
    assert!(!back.arm().unwrap());
    front.push(&request(3)).unwrap();
    assert!(front.publish());
    assert!(!front.publish(), "nothing new, nobody to notify");
}

#[test]
fn a_backend_that_resumes_goes_on_where_the_last_one_left() {
    let (mut front, mut back, memory) = pair(1, u32::MAX - 1);
    for number in 0..5 {
        front.push(&request(number)).unwrap();
    }
    assert!(front.publish());
    for number in 0..2 {
        assert_eq!(back.take(), Ok(Some(request(number))));
        back.push(&response(number)).unwrap();
    }
    assert!(back.publish());
    drop(back);

    let mut back = TestBack::resume(Own(memory)).unwrap();
    assert_eq!(back.unanswered(), 0);
    for number in 2..5 {
        assert_eq!(back.take(), Ok(Some(request(number))));
        back.push(&response(number)).unwrap();
    }
    assert_eq!(back.take(), Ok(None));
    assert!(!back.publish(), "it is awake");
    for number in 0..5 {
        assert_eq!(front.take(), Ok(Some(response(number))));
    }
}

#[test]
fn a_backend_that_knows_what_another_had_taken_answers_that_and_takes_the_next() {
    let (mut front, mut back, memory) = pair(1, u32::MAX - 1);
    for number in 0..5 {
        front.push(&request(number)).unwrap();
    }
    assert!(front.publish());
    for number in 0..4 {
        assert_eq!(back.take(), Ok(Some(request(number))));
    }
    back.push(&response(3)).unwrap();
    assert!(back.publish());
    // Over the second request, and not published.
    back.push(&response(2)).unwrap();
    drop(back);

    let memory = Own(memory);
    let answered = TestBack::published_in(&memory).unwrap();
    assert_eq!(answered, u32::MAX);
    let mut back = TestBack::attach_between(memory, answered, 2).unwrap();
    assert_eq!(back.unanswered(), 3);
    assert_eq!(back.take(), Ok(Some(request(4))));
    for number in [2, 0, 1, 4] {
        back.push(&response(number)).unwrap();
    }
    assert!(!back.publish(), "it is awake");
    for number in [3, 2, 0, 1, 4] {
        assert_eq!(front.take(), Ok(Some(response(number))));
    }
    assert_eq!(back.take(), Ok(None));
}

#[test]
fn a_frontend_that_attaches_gets_the_responses_still_to_come() {
    let (mut front, mut back, memory) = pair(1, u32::MAX - 1);
    for number in 0..4 {
        front.push(&request(number)).unwrap();
    }
    assert!(front.publish());
    assert_eq!(back.take(), Ok(Some(request(0))));
    back.push(&response(0)).unwrap();
    assert!(back.publish());
    drop(front);

    let mut front = TestFront::attach(Own(memory)).unwrap();
    assert_eq!(front.free(), front.slots() - 3);
    assert_eq!(front.take(), Ok(None));
    for number in 1..4 {
        assert_eq!(back.take(), Ok(Some(request(number))));
        back.push(&response(number)).unwrap();
    }
    assert!(!back.publish(), "it is awake");
    for number in 1..4 {
        assert_eq!(front.take(), Ok(Some(response(number))));
    }
    assert_eq!(front.free(), front.slots());
}

/// A peer's page, mapped.
struct Mapped {
    page: Scratch,
    access: Access,
}

impl Mapping for Mapped {
    fn view(&self) -> View<'_, ReadOnly> {
        self.page.view().read_only()
    }

    fn view_mut(&self) -> Option<View<'_>> {
        (self.access == Access::ReadWrite).then(|| self.page.view())
    }
}

#[test]
fn a_backend_finds_its_ring_in_a_mapping_that_may_be_written() {
    let page = Scratch::new(PAGE_SIZE);
    let mut front = TestFront::new(Own(page.clone())).unwrap();
    let map = |access| Mapped {
        page: page.clone(),
        access,
    };
    assert!(Peer::new(map(Access::ReadOnly)).is_err());
    let memory = Peer::new(map(Access::ReadWrite)).ok().unwrap();
    let mut back = Back::<_, common::Request, common::Response>::attach(memory).unwrap();
    front.push(&request(1)).unwrap();
    assert!(front.publish());
    assert_eq!(back.take(), Ok(Some(request(1))));
}
