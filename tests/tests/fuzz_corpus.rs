//! The fuzz targets over everything that is kept in `fuzz/corpus`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics is a test that failed"
)]

use std::fs;
use std::path::Path;

use parapet_tests::fuzz::TARGETS;

#[test]
fn every_target_keeps_its_promise_on_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for file in fs::read_dir(corpus.join(name)).unwrap() {
            target(&fs::read(file.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}

/// The same on what nobody chose: the same bytes every time.
#[test]
fn every_target_keeps_its_promise_on_arbitrary_bytes() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    for (_, target) in TARGETS {
        for round in 0..300 {
            let bytes: Vec<u8> = (0..round * 3).map(|_| byte()).collect();
            target(&bytes);
        }
    }
}
