//! Who else was on our CPUs: a figure taken beside a compiler is not a figure.

use crate::placement::Cores;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::time::{Duration, Instant};

/// A reading, from which the time taken by others is counted.
#[derive(Debug)]
pub(crate) struct Neighbours {
    cores: Cores,
    begin: Instant,
    busy: Option<Duration>,
    ours: Option<Duration>,
}

impl Neighbours {
    /// Starts to watch the cores of a row.
    pub(crate) fn watch(cores: Cores) -> Self {
        Self {
            cores,
            begin: Instant::now(),
            busy: busy(cores),
            ours: ours(),
        }
    }

    /// The share of the cores' time since then, 0 to 1, that neither we nor the child processes
    /// that have ended meanwhile were charged with: other processes, and the hypervisor's other
    /// guests. `None` if the kernel does not tell.
    ///
    /// Exact to some ticks of the kernel's clock, so over a second at least.
    pub(crate) fn share(&self) -> Option<f64> {
        let busy = busy(self.cores)?.saturating_sub(self.busy?);
        let ours = ours()?.saturating_sub(self.ours?);
        let count = if self.cores.front == self.cores.back {
            1.0
        } else {
            2.0
        };
        let available = self.begin.elapsed().as_secs_f64() * count;
        Some((busy.saturating_sub(ours).as_secs_f64() / available).clamp(0.0, 1.0))
    }
}

/// CPU time of this process and its children that have ended.
fn ours() -> Option<Duration> {
    let mut total = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who).ok()?;
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        total += Duration::from_micros(micros.try_into().ok()?);
    }
    Some(total)
}

/// Time in which the cores were not idle.
fn busy(cores: Cores) -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let mut ticks = busy_ticks(&stat, cores.front)?;
    if cores.back != cores.front {
        ticks += busy_ticks(&stat, cores.back)?;
    }
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Duration::from_millis(
        ticks.saturating_mul(1000).checked_div(per_second)?,
    ))
}

/// All but idle and waiting for a disk: user, nice, system, irq, softirq, and stolen.
fn busy_ticks(stat: &str, cpu: usize) -> Option<u64> {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq + steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_a_disk_are_not_busy() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 4 1000 1000 8 16 32 0 0\ncpu10 1";
        assert_eq!(busy_ticks(stat, 0), Some(63));
        assert_eq!(busy_ticks(stat, 1), None);
        assert_eq!(busy_ticks(stat, 10), None);
    }

    #[test]
    fn our_own_work_grows_what_is_ours() {
        let before = ours().unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(ours().unwrap() > before);
    }
}
