//! One copy of each frame's bytes, and nothing else: no way from guest to guest takes less.

use super::{Contender, Load, Row, Task, figures};
use crate::contender::Standing;
use crate::measure::{CpuMeter, CpuScope, Figures};
use crate::placement::{Placement, pin};
use anyhow::{Result, bail};
use std::hint::black_box;
use std::time::Instant;

/// How much memory the frames are in: the pages of a ring's worth of them.
const RING: usize = 256 * 4096;

/// The contender `one copy`.
#[derive(Debug)]
pub(super) struct Copying;

impl Contender for Copying {
    fn name(&self) -> &'static str {
        "one copy"
    }

    fn standing(&self) -> Standing {
        Standing::Floor
    }

    fn serves(&self, row: &Row) -> bool {
        matches!(row.load, Load::GuestToGuest { .. }) && row.placement == Placement::SameCore
    }

    fn run(&mut self, task: &Task) -> Result<Figures> {
        let Load::GuestToGuest { frame } = task.load else {
            bail!("a copy is from guest to guest");
        };
        pin(task.cores.front)?;
        let from = vec![1u8; RING];
        let mut to = vec![0u8; RING];
        let step = frame.next_multiple_of(4096);
        let scope = CpuScope::new().thread(nix::unistd::gettid());
        let mut copy_for = |time| {
            let begin = Instant::now();
            let mut packets = 0;
            while begin.elapsed() < time {
                for at in (0..RING - step + 1).step_by(step) {
                    to[at..at + frame].copy_from_slice(black_box(&from[at..at + frame]));
                    packets += 1;
                }
                black_box(&mut to);
            }
            (packets, begin.elapsed())
        };
        copy_for(task.warm_up);
        let cpu = CpuMeter::start(&scope);
        let (packets, elapsed) = copy_for(task.duration);
        Ok(figures(packets, frame, elapsed, cpu.elapsed_ns()))
    }
}
