//! Our own halves, in one process on the loopback hypervisor: netfront in guests, netback in domain
//! 0, each on the core of its half.

use super::namespace::Namespace;
use super::{Contender, Load, Row, Task, figures, tap};
use crate::contender::Standing;
use crate::measure::{Figures, Metric};
use crate::placement::{Cores, Placement};
use anyhow::{Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use parapet::host::{Host, HostBuilder};
use parapet::load::net;
use parapet::load::vifs::{Plan, To, run};
use parapet_blkback::device::POLL;
use parapet_hypervisor::loopback::Idle;
use std::time::Duration;

/// How long a polling backend looks before it sleeps: longer than any run.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// netfront and netback.
#[derive(Debug)]
pub(super) struct Halves;

impl Contender for Halves {
    fn name(&self) -> &'static str {
        "parapet"
    }

    fn standing(&self) -> Standing {
        Standing::Ours
    }

    fn serves(&self, row: &Row) -> bool {
        !matches!(row.load, Load::Iperf { .. })
    }

    fn run(&mut self, task: &Task) -> Result<Figures> {
        // Before the host, so that it outlives its TAP device.
        let namespace = match task.load {
            Load::FrontToTap { .. } => Some(Namespace::new()?),
            _ => None,
        };
        let (to, guests, frame) = match task.load {
            Load::FrontToBack { frame } => (To::Back, 1, frame),
            Load::FrontToTap { frame } => {
                let namespace = namespace.as_ref().map(Namespace::path);
                let name = tap::DEVICE.to_owned();
                (To::Tap { name, namespace }, 1, frame)
            }
            Load::GuestToGuest { frame } => (To::Guests, 2, frame),
            Load::Neighbours { guests, frame } => (To::Guests, guests, frame),
            Load::Iperf { .. } => bail!("stacks of Linux are measured through `parapet net tap`"),
        };
        let polls = task.placement.polls();
        let plan = Plan {
            to,
            guests,
            both_ways: guests > 2,
            queues: 1,
            poll: match task.placement {
                Placement::SplitPolling => FOR_EVER,
                Placement::SplitEvented => POLL,
                Placement::SameCore => Duration::ZERO,
            },
            load: net::Load {
                sizes: vec![frame],
                touch: false,
                // Two guests that never sleep would take turns on their core, not on each frame.
                poll: polls && guests == 1,
                warm_up: task.warm_up,
                time: task.duration,
            },
        };
        let before = on_cpu()?;
        let outcome = run(host(task.cores, polls), &plan)?;
        let total = outcome.total()?;
        // All of the run's, for the frames of all of it.
        let whole = task.warm_up + task.duration;
        let share = task.duration.as_secs_f64() / whole.as_secs_f64();
        let cpu_ns = (on_cpu()?.saturating_sub(before)) as f64 * share;
        let mut figures = figures(total.frames, frame, total.time, Some(cpu_ns as u64));
        if !total.latency.is_empty() {
            let latency = |quantile| total.latency.value_at_quantile(quantile) as f64;
            figures.insert(Metric::P50Ns, latency(0.5));
            figures.insert(Metric::P99Ns, latency(0.99));
        }
        if outcome.guests.len() > 1 {
            figures.insert(Metric::Fairness, outcome.fairness());
        }
        Ok(figures)
    }
}

/// Nanoseconds that this process was on a CPU: by now the threads of its hosts are gone, which are
/// counted all the same.
fn on_cpu() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(u64::try_from(time)? * 1000)
}

fn host(cores: Cores, polls: bool) -> HostBuilder {
    let builder = Host::builder().idle(if polls { Idle::Poll } else { Idle::Sleep });
    match cores.front == cores.back {
        true => builder.pcpus(1).cores(vec![cores.front]),
        false => builder
            .pcpus(2)
            .cores(vec![cores.front, cores.back])
            .apart(),
    }
}
