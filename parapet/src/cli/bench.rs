//! What the commands that measure have in common.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use parapet::host::HostBuilder;
use serde::Serialize;

/// Where the two halves run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Placement {
    /// Both on one core.
    SameCore,
    /// A core each.
    Split,
    /// Wherever there is room.
    Free,
}

impl Placement {
    /// A host on which the halves run there.
    ///
    /// # Errors
    /// There are not so many cores.
    pub(super) fn apply(self, builder: HostBuilder) -> Result<HostBuilder> {
        Ok(match self {
            Placement::Free => builder,
            Placement::SameCore => builder.pcpus(1).cores(cores(1)?),
            Placement::Split => builder.pcpus(2).cores(cores(2)?).apart(),
        })
    }
}

/// The word for a value on the command line.
pub(super) fn word(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// So many cores that we may use.
fn cores(count: usize) -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for the allowed CPUs")?;
    let cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let cores: Vec<_> = cores.take(count).collect();
    ensure!(
        cores.len() == count,
        "this placement takes {count} cores, and there are {}",
        cores.len()
    );
    Ok(cores)
}

/// A time on the command line, in seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err("it should be more than 0, and no more than a day".into()),
    }
}

/// How long things took, in nanoseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) min: u64,
    pub(super) mean: f64,
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p999: u64,
    pub(super) max: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(latency: &Histogram<u64>) -> Self {
        Latency {
            min: latency.min(),
            mean: latency.mean(),
            p50: latency.value_at_quantile(0.5),
            p90: latency.value_at_quantile(0.9),
            p99: latency.value_at_quantile(0.99),
            p999: latency.value_at_quantile(0.999),
            max: latency.max(),
        }
    }
}

/// Does `work`, with a bar on a terminal for as long as it is expected to take.
pub(super) fn with_a_bar<T>(whole: Duration, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (working, over) = mpsc::channel::<()>();
        scope.spawn(move || follow(whole, &over));
        let outcome = work();
        drop(working);
        outcome
    })
}

fn follow(whole: Duration, over: &mpsc::Receiver<()>) {
    let begin = Instant::now();
    let length = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
    let bar = ProgressBar::new(length);
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {percent}%, {eta} left")
            .expect("the template is right"),
    );
    while over.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        bar.set_position(u64::try_from(begin.elapsed().as_millis()).unwrap_or(length));
    }
    bar.finish_and_clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_more_than_nothing_and_no_more_than_a_day() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "x", "inf", "NaN", "1e9"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
