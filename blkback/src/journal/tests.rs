//! A frontend, a backend with a log, and a crash after any store.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;

use super::log::{DONE, ENTRY, HEAD, INTENT};
use super::*;

/// Slots of the ring.
const SLOTS: u32 = 4;

/// What outlives the backend: the journal's file and the ring. After so many stores there are no
/// more, as for one that is no more.
#[derive(Debug)]
struct World {
    left: Cell<usize>,
    file: RefCell<Vec<u8>>,
    slots: RefCell<[Content; SLOTS as usize]>,
    shared: Cell<u32>,
}

/// What a slot of the ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Nothing,
    Request(u64),
    Response(u64),
}

impl World {
    /// Whether there is another store.
    fn store(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    fn crashed(&self) -> bool {
        self.left.get() == 0
    }
}

impl Memory for Rc<World> {
    fn set(&self, at: usize, word: u64) {
        self.fill(at, &word.to_le_bytes());
    }

    fn fill(&self, at: usize, bytes: &[u8]) {
        for (index, word) in bytes.chunks(8).enumerate() {
            if self.store() {
                let at = at + 8 * index;
                self.file.borrow_mut()[at..at + word.len()].copy_from_slice(word);
            }
        }
    }

    fn word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        self.copy(at, &mut word);
        u64::from_le_bytes(word)
    }

    fn copy(&self, at: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.file.borrow()[at..at + to.len()]);
    }
}

/// An honest frontend, who sees all that it is promised.
struct Front {
    world: Rc<World>,
    produced: u32,
    consumed: u32,
    next: u64,
    outstanding: BTreeSet<u64>,
    answered: BTreeSet<u64>,
}

impl Front {
    fn new(world: &Rc<World>, index: u32) -> Self {
        world.shared.set(index);
        Front {
            world: Rc::clone(world),
            produced: index,
            consumed: index,
            next: 1,
            outstanding: BTreeSet::new(),
            answered: BTreeSet::new(),
        }
    }

    fn send(&mut self) {
        if self.produced.wrapping_sub(self.consumed) < SLOTS {
            let place = (self.produced % SLOTS) as usize;
            self.world.slots.borrow_mut()[place] = Content::Request(self.next);
            self.outstanding.insert(self.next);
            self.next += 1;
            self.produced = self.produced.wrapping_add(1);
        }
    }

    fn consume(&mut self) {
        let shared = self.world.shared.get();
        assert!(shared.wrapping_sub(self.consumed) <= SLOTS);
        while self.consumed != shared {
            let place = (self.consumed % SLOTS) as usize;
            let Content::Response(id) = self.world.slots.borrow()[place] else {
                panic!("no response where there should be one");
            };
            assert!(
                self.outstanding.remove(&id),
                "answered without having been asked, or twice"
            );
            self.answered.insert(id);
            self.consumed = self.consumed.wrapping_add(1);
        }
    }
}

/// One life of the backend, as a queue does it.
struct Back {
    world: Rc<World>,
    log: Log<Rc<World>>,
    tags: Tags,
    /// By tag.
    doing: BTreeMap<u32, u64>,
    taken: u32,
    made: u32,
}

fn bytes_of(id: u64) -> [u8; SLOT] {
    std::array::from_fn(|at| (id as u8).wrapping_mul(37).wrapping_add(at as u8))
}

fn id_of(slot: &[u8; SLOT], known: &BTreeSet<u64>) -> u64 {
    let found = known.iter().find(|id| bytes_of(**id) == *slot);
    *found.expect("a request of the frontend's, whole, and not answered yet")
}

impl Back {
    fn first(world: &Rc<World>) -> Self {
        let index = world.shared.get();
        Back {
            world: Rc::clone(world),
            log: Log::begin(Rc::clone(world), SLOTS, index),
            tags: Tags::new(SLOTS, |_| false),
            doing: BTreeMap::new(),
            taken: index,
            made: index,
        }
    }

    /// Takes up what another has left, of which the frontend knows the truth.
    fn after_a_crash(front: &Front) -> Self {
        let world = &front.world;
        let shared = world.shared.get();
        let found = recover(Rc::clone(world), SLOTS, shared).unwrap();
        assert_eq!(found.answered, shared);
        let doing: BTreeMap<_, _> = found
            .live
            .iter()
            // Which also says that it was not published.
            .map(|live| (live.tag, id_of(&live.slot, &front.unseen())))
            .collect();
        // In the order in which the frontend made them, which is that of their ids.
        let ids: Vec<_> = found.live.iter().map(|live| doing[&live.tag]).collect();
        assert!(ids.is_sorted());
        Back {
            world: Rc::clone(world),
            log: found.log,
            tags: Tags::new(SLOTS, |tag| doing.contains_key(&tag)),
            doing,
            taken: found.taken,
            made: found.answered,
        }
    }

    fn take(&mut self, produced: u32) {
        if self.taken == produced || !self.tags.any() {
            return;
        }
        let place = (self.taken % SLOTS) as usize;
        let Content::Request(id) = self.world.slots.borrow()[place] else {
            panic!("no request where there should be one");
        };
        let tag = self.tags.take().unwrap();
        self.taken = self.taken.wrapping_add(1);
        self.log.take(tag, &bytes_of(id));
        self.doing.insert(tag, id);
    }

    fn answer(&mut self, which: usize) {
        let Some((&tag, &id)) = self.doing.iter().nth(which % self.doing.len().max(1)) else {
            return;
        };
        self.doing.remove(&tag);
        self.log.answer(tag);
        if self.world.store() {
            let place = (self.made % SLOTS) as usize;
            self.world.slots.borrow_mut()[place] = Content::Response(id);
        }
        self.made = self.made.wrapping_add(1);
        self.tags.answer(tag);
    }

    fn publish(&mut self) {
        let (world, made) = (Rc::clone(&self.world), self.made);
        self.log.publish(|| {
            if world.store() {
                world.shared.set(made);
            }
        });
        self.tags.publish();
    }
}

impl Front {
    /// What it has asked for and has no answer to, also none that it has not yet looked at.
    fn unseen(&self) -> BTreeSet<u64> {
        let mut unseen = self.outstanding.clone();
        let mut index = self.consumed;
        while index != self.world.shared.get() {
            if let Content::Response(id) = self.world.slots.borrow()[(index % SLOTS) as usize] {
                unseen.remove(&id);
            }
            index = index.wrapping_add(1);
        }
        unseen
    }
}

/// What happens next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send,
    Take,
    Answer(usize),
    Publish,
    Consume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Send),
        3 => Just(Step::Take),
        3 => (0usize..8).prop_map(Step::Answer),
        2 => Just(Step::Publish),
        2 => Just(Step::Consume),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Runs `steps` with a crash after each number of stores in `lives`, and at the end finishes
/// everything. Returns how many stores the last life made.
fn run(steps: &[Step], index: u32, lives: &[usize]) -> usize {
    const PLENTY: usize = 1 << 40;
    let world = Rc::new(World {
        left: Cell::new(PLENTY),
        file: RefCell::new(vec![0; log_len(SLOTS)]),
        slots: RefCell::new([Content::Nothing; SLOTS as usize]),
        shared: Cell::new(0),
    });
    let mut lives = lives.iter().copied();
    let mut front = Front::new(&world, index);
    let mut back = Back::first(&world);
    world.left.set(lives.next().unwrap_or(PLENTY));
    let mut before = PLENTY;
    let mut revive = |front: &Front, back: &mut Back| {
        while world.crashed() {
            before = lives.next().unwrap_or(PLENTY);
            world.left.set(before);
            // A crash in the middle of this is followed by another of these.
            *back = Back::after_a_crash(front);
        }
    };
    revive(&front, &mut back);
    for step in steps {
        match *step {
            Step::Send => front.send(),
            Step::Take => back.take(front.produced),
            Step::Answer(which) => back.answer(which),
            Step::Publish => back.publish(),
            Step::Consume => front.consume(),
        }
        revive(&front, &mut back);
    }
    while !front.outstanding.is_empty() {
        for _ in 0..SLOTS {
            back.take(front.produced);
            revive(&front, &mut back);
        }
        back.answer(0);
        revive(&front, &mut back);
        back.publish();
        revive(&front, &mut back);
        front.consume();
    }
    assert_eq!(front.answered, (1..front.next).collect());
    assert_eq!(back.taken, front.produced);
    before - world.left.get()
}

/// A ring at its beginning, and one whose indices wrap.
const INDICES: [u32; 2] = [0, u32::MAX - 5];

proptest! {
    #[test]
    fn a_crash_after_any_store_loses_nothing_and_does_nothing_again_that_was_published(
        steps in steps()
    ) {
        for index in INDICES {
            let stores = run(&steps, index, &[]);
            for cut in 0..stores {
                run(&steps, index, &[cut]);
            }
        }
    }

    #[test]
    fn crashes_upon_crashes_are_the_same(
        steps in steps(), lives in proptest::collection::vec(0usize..80, 1..20)
    ) {
        for index in INDICES {
            run(&steps, index, &lives);
        }
    }

    #[test]
    fn no_bytes_in_a_log_bring_recovery_down(
        words in proptest::collection::vec((0..log_len(SLOTS) / 8, any::<u64>(), 0u64..8), 0..20),
        shared in 0u32..4,
    ) {
        let file = vec![0; log_len(SLOTS)];
        let world = Rc::new(World {
            left: Cell::new(usize::MAX),
            file: RefCell::new(file),
            slots: RefCell::new([Content::Nothing; SLOTS as usize]),
            shared: Cell::new(shared),
        });
        Log::begin(Rc::clone(&world), SLOTS, 0);
        for (at, wild, tame) in words {
            world.set(8 * at, if tame == 0 { wild } else { (1 << 32) + tame - 1 });
        }
        if let Ok(found) = recover(Rc::clone(&world), SLOTS, shared) {
            let taken = found.taken.wrapping_sub(found.answered);
            prop_assert_eq!(taken as usize, found.live.len());
            prop_assert!(taken <= SLOTS);
            let tags: BTreeSet<_> = found.live.iter().map(|live| live.tag).collect();
            prop_assert_eq!(tags.len(), found.live.len());
        }
    }
}

/// A world with a log, in which `taken` requests were taken and nothing more.
fn some_taken(taken: u64) -> Rc<World> {
    let world = Rc::new(World {
        left: Cell::new(usize::MAX),
        file: RefCell::new(vec![0; log_len(SLOTS)]),
        slots: RefCell::new([Content::Nothing; SLOTS as usize]),
        shared: Cell::new(0),
    });
    let mut log = Log::begin(Rc::clone(&world), SLOTS, 0);
    for id in 0..taken {
        log.take(id as u32, &bytes_of(id));
    }
    world
}

#[test]
fn an_index_that_the_guest_changed_is_told_from_ours() {
    let found = recover(some_taken(2), SLOTS, 1).unwrap_err();
    let expected = Corrupt::Index {
        found: 1,
        done: 0,
        intent: 0,
    };
    assert_eq!(found, expected);
    assert!(recover(some_taken(2), SLOTS, u32::MAX).is_err());
    assert!(recover(some_taken(2), SLOTS, 0).is_ok());
}

#[test]
fn counts_and_entries_that_cannot_be_are_refused() {
    let changed = |at: usize, word: u64| {
        let world = some_taken(2);
        world.set(at, word);
        recover(world, SLOTS, 0).map(|found| found.live.len())
    };
    assert_eq!(changed(INTENT, 1 << 32), Ok(2));
    for (at, word) in [
        (INTENT, (1 << 32) + 5),
        (INTENT, (1 << 32) - 1),
        (INTENT, u64::MAX),
        (DONE, 0),
        (DONE, (1 << 32) + 1),
    ] {
        let counts = changed(at, word);
        assert!(matches!(counts, Err(Corrupt::Counts { .. })), "{counts:?}");
    }
    let number = |tag: usize| HEAD + tag * ENTRY + 8;
    for word in [(1 << 32) + 2, u64::MAX, 0] {
        let entry = changed(number(0), word);
        assert!(matches!(entry, Err(Corrupt::Entry { tag: 0, .. })));
    }
    let entry = changed(HEAD, (1 << 32) + 2);
    assert!(matches!(entry, Err(Corrupt::Entry { tag: 0, .. })));
    assert_eq!(
        changed(number(0), (1 << 32) + 1),
        Err(Corrupt::Twice((1 << 32) + 1))
    );
}

#[test]
fn an_answer_of_long_ago_is_not_one_of_today() {
    // An entry that was used once, and then not for more requests than 32 bits can count.
    let world = some_taken(0);
    world.set(HEAD, 1 << 32);
    for word in [INTENT, DONE] {
        world.set(word, (1 << 32) + (1 << 31) + 7);
    }
    let found = recover(world, SLOTS, (1 << 31) + 7).unwrap();
    assert!(found.live.is_empty());
}
