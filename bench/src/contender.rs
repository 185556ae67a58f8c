//! The one thing the harness knows about whoever is measured.

use crate::measure::Sample;
use crate::placement::{Cores, Placement};
use crate::workload::Workload;
use anyhow::Result;
use serde::Serialize;

/// What a contender is to us; a contender is compared with all those after it in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Standing {
    /// Our own halves.
    Ours,
    /// Somebody else's two halves that do the same work.
    Peer,
    /// The bare thing underneath (a file without a device, a notification without a request):
    /// no pair of halves can be better by much.
    Floor,
}

/// Somebody who can serve a workload and be measured at it.
///
/// A call measures once, from nothing: it starts what it needs (threads, a daemon), pins it to
/// `cores`, runs the workload's warm-up and duration, and ends what it started, also when it
/// fails. The harness calls the contenders of a row in turn, round by round, so that what drifts
/// in the machine drifts for all of them.
///
/// The calling thread may be pinned anywhere on entry and left pinned anywhere; an implementation
/// pins it to `cores.front` if it is the one that drives. Our halves are expected to drive their
/// frontend with [`closed_loop`](crate::measure::closed_loop), or, from async tasks, to report to
/// a [`Stopwatch`](crate::measure::Stopwatch): both count alike for everybody.
pub(crate) trait Contender {
    /// The name in tables and JSON, for example `qemu-storage-daemon`.
    fn name(&self) -> &'static str;

    /// What it is to us.
    fn standing(&self) -> Standing;

    /// Whether it takes part in such a row at all.
    fn serves(&self, workload: &Workload, placement: Placement) -> bool;

    /// Measures once.
    ///
    /// # Errors
    /// It could not be started, a request failed, or nothing completed for a long time.
    fn run(&mut self, workload: &Workload, placement: Placement, cores: Cores) -> Result<Sample>;
}
