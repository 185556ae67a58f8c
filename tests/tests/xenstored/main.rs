//! Our xenstored against Debian's C xenstored 4.17: the same requests, at once, by local clients
//! and guests; every answer, every event, every lost connection is to be the same.
//!
//! ```text
//!   sequence of steps ─┬─▶ Session ─▶ Packaged: the daemon's own process, on a machine that
//!                      │                         preload.c makes up; socket and rings
//!                      └─▶ Session ─▶ Ours: the Server as a value
//!                              └── outcomes ──▶ the same? or a known difference?
//! ```
//!
//! Known differences are named in `differences.rs`, and argued in `docs/xenstore.md`. The packages
//! are those that `tests/system/run` unpacks; without them the tests say so and check nothing.
//!
//! And the two in one process, each taking the place of the other: `exchange.rs`.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that panics is a test that failed"
)]

mod control;
mod daemon;
mod differences;
mod exchange;
mod generated;
mod ours;
mod packaged;
mod session;
mod written;

use differences::Known;
use ours::Ours;
use packaged::Packaged;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use session::{Session, Step};

/// How many clients use the socket.
const LOCALS: usize = 2;
/// How many guests there are, with the ids from 1 on.
const GUESTS: u16 = 3;

/// Does all steps at both. What differed, told with all that led to it.
///
/// Ours is a value and does the same every time. The packaged daemon is a process, which now and
/// then ends at a request that it takes the next time: what does not differ again is its doing.
fn compare(steps: &[Step]) -> Result<(), String> {
    let Err(difference) = compare_once(steps) else {
        return Ok(());
    };
    compare_once(steps).inspect(|()| println!("seen once, and not again: {difference}"))
}

fn compare_once(steps: &[Step]) -> Result<(), String> {
    let mut theirs = Session::new(Packaged::start(LOCALS, GUESTS));
    let mut ours = Session::new(Ours::start(LOCALS, GUESTS));
    let mut story = String::new();
    for step in steps {
        if differences::is_hidden(step, &ours) {
            return Ok(());
        }
        let (their, our) = (theirs.step(step), ours.step(step));
        story += &format!("{step:?}\n    {their:?}\n");
        if their == our {
            continue;
        }
        match differences::known(step, &ours, &their, &our) {
            Some(Known::Passes(name)) => println!("known: {name}"),
            Some(Known::Stays(name)) => {
                println!("known, and no more to compare: {name}");
                return Ok(());
            }
            None => return Err(format!("{story}    ours: {our:?}")),
        }
    }
    Ok(())
}

#[test]
fn generated_sequences_have_the_same_outcome_as_with_c_xenstored() {
    if !packaged::is_there() {
        return;
    }
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let (seed, cases) = (number("PARAPET_SEED", 1), number("PARAPET_CASES", 200));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: cases.try_into().unwrap(),
        failure_persistence: None,
        max_shrink_iters: 500,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let found = runner.run(&generated::steps(), |steps| {
        compare(&steps).map_err(TestCaseError::fail)
    });
    match found {
        Ok(()) => {}
        Err(TestError::Fail(why, _)) => panic!("PARAPET_SEED={seed}:\n{why}"),
        Err(error) => panic!("PARAPET_SEED={seed}: {error}"),
    }
}
