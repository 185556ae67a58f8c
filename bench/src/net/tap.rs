//! Writes to a TAP device, and nothing before them: no backend can give a host frames faster.

use super::namespace::Namespace;
use super::{Contender, Load, Row, Task, figures};
use crate::contender::Standing;
use crate::measure::{CpuMeter, CpuScope, Figures};
use crate::placement::{Placement, pin};
use anyhow::{Result, bail};
use parapet::load::frames;
use parapet_hypervisor::host::{TAP_HEADER, Tap};
use parapet_hypervisor::memory::Scratch;
use parapet_packet::Mac;
use std::time::Instant;

/// The name of the contender.
pub(super) const BARE: &str = "bare TAP write";

/// The device in a namespace of its own.
pub(super) const DEVICE: &str = "tap0";

/// The contender [`BARE`].
#[derive(Debug)]
pub(super) struct Bare;

/// How often it is written to between looks at the clock.
const BATCH: u64 = 64;

impl Contender for Bare {
    fn name(&self) -> &'static str {
        BARE
    }

    fn standing(&self) -> Standing {
        Standing::Floor
    }

    fn serves(&self, row: &Row) -> bool {
        matches!(row.load, Load::FrontToTap { .. }) && row.placement == Placement::SameCore
    }

    fn run(&mut self, task: &Task) -> Result<Figures> {
        let Load::FrontToTap { frame } = task.load else {
            bail!("a TAP device is written to only");
        };
        pin(task.cores.front)?;
        let namespace = Namespace::new()?;
        let tap = Tap::open_in(&namespace.path(), DEVICE)?;
        namespace.ip(&format!("link set {DEVICE} up"))?;
        let stations = [1, 2].map(|last| Mac([2, 0, 0, 0, 0, last]));
        let mut bytes = frames::frame(frame, stations[0], stations[1]);
        let vnet = frames::vnet(&bytes)?;
        let header: [u8; TAP_HEADER] = zerocopy::transmute!(vnet);
        let rest = bytes.split_off(bytes.len().min(256));
        let memory = Scratch::new(rest.len().max(1));
        memory.view().write_bytes(0, &rest)?;
        let rest = memory.view().read_only().slice(0, rest.len())?;
        let scope = CpuScope::new().thread(nix::unistd::gettid());
        let write_for = |time| -> Result<_> {
            let begin = Instant::now();
            let mut packets = 0;
            while begin.elapsed() < time {
                for _ in 0..BATCH {
                    tap.send(&header, &bytes, [rest])?;
                }
                packets += BATCH;
            }
            Ok((packets, begin.elapsed()))
        };
        write_for(task.warm_up)?;
        let cpu = CpuMeter::start(&scope);
        let (packets, elapsed) = write_for(task.duration)?;
        Ok(figures(packets, frame, elapsed, cpu.elapsed_ns()))
    }
}
