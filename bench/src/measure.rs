//! How everybody is measured: one closed loop, one stopwatch, one account of CPU time.

use crate::workload::Workload;
use anyhow::Result;
use hdrhistogram::Histogram;
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// One measurement of a closed loop of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Requests completed per second.
    pub(crate) iops: f64,
    /// Payload moved, in units of 10^6 bytes per second; `None` if requests carry none.
    pub(crate) mb_per_s: Option<f64>,
    /// From submission to the moment the client saw the completion, in nanoseconds.
    pub(crate) mean_ns: f64,
    /// The median of the same.
    pub(crate) p50_ns: f64,
    /// What 99 of 100 stay below.
    pub(crate) p99_ns: f64,
    /// CPU time of both halves together per request, in nanoseconds.
    pub(crate) cpu_ns_per_io: Option<f64>,
    /// Notifications in both directions together per request.
    pub(crate) notifications_per_io: Option<f64>,
    /// Jain's index over the guests' rates, where there are several: 1 if all got the same, 1/n if
    /// one of n got everything.
    pub(crate) fairness: Option<f64>,
}

/// A figure that is summarised, compared and printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Iops,
    MbPerS,
    MeanNs,
    P50Ns,
    P99Ns,
    CpuNsPerIo,
    NotificationsPerIo,
    Fairness,
    /// Packets that came out at the other end.
    PacketsPerS,
    /// Bits of them, Ethernet headers included, in units of 10^9.
    GbitPerS,
    /// Of both sides together.
    CpuNsPerPacket,
    /// Of a store: requests, transactions or events.
    OpsPerS,
    /// The server's alone.
    ServerCpuNsPerOp,
    /// How long the whole took.
    Seconds,
    /// What the server has in memory, before and after.
    ResidentBeforeMib,
    ResidentMib,
    /// How long it took to remove everything.
    RemovalMs,
    /// How long somebody else's request waited for that at most.
    HeldUpMs,
}

impl Metric {
    /// Whether more of it is better.
    pub(crate) fn higher_is_better(self) -> bool {
        matches!(
            self,
            Metric::Iops
                | Metric::MbPerS
                | Metric::OpsPerS
                | Metric::Fairness
                | Metric::PacketsPerS
                | Metric::GbitPerS
        )
    }
}

/// What one measurement of one contender gives: what it does not know is not there.
pub(crate) type Figures = BTreeMap<Metric, f64>;

impl Sample {
    /// All that is known.
    pub(crate) fn figures(&self) -> Figures {
        let known = [
            (Metric::Iops, Some(self.iops)),
            (Metric::MbPerS, self.mb_per_s),
            (Metric::MeanNs, Some(self.mean_ns)),
            (Metric::P50Ns, Some(self.p50_ns)),
            (Metric::P99Ns, Some(self.p99_ns)),
            (Metric::CpuNsPerIo, self.cpu_ns_per_io),
            (Metric::NotificationsPerIo, self.notifications_per_io),
            (Metric::Fairness, self.fairness),
        ];
        let known = known.into_iter();
        known
            .filter_map(|(metric, value)| Some((metric, value?)))
            .collect()
    }
}

/// The middle and the extremes of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The figure that is quoted.
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of at least one value; `None` if there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let upper = values.get(values.len() / 2)?;
        let lower = values.get((values.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(*lower, *upper),
            min,
            max,
        })
    }
}

/// The threads whose CPU time a measurement is charged with.
#[derive(Clone, Debug, Default)]
pub(crate) struct CpuScope {
    processes: Vec<Pid>,
    threads: Vec<Pid>,
}

impl CpuScope {
    /// Nobody, to be extended.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds all threads of a process, present and to come, kernel workers of its io_uring too.
    pub(crate) fn process(mut self, pid: Pid) -> Self {
        self.processes.push(pid);
        self
    }

    /// Adds one thread of this process.
    pub(crate) fn thread(mut self, tid: Pid) -> Self {
        self.threads.push(tid);
        self
    }

    /// Nanoseconds on a CPU so far, by thread. `None` if this kernel does not account for them.
    ///
    /// The kernel brings the figure of a thread that is running elsewhere up to date at its next
    /// tick, so a difference of two readings is exact to a few milliseconds.
    fn read(&self) -> Option<BTreeMap<i32, u64>> {
        let mut by_thread = BTreeMap::new();
        for tid in &self.threads {
            by_thread.insert(tid.as_raw(), on_cpu(&format!("/proc/self/task/{tid}"))?);
        }
        for pid in &self.processes {
            for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
                let tid = task.file_name().to_str()?.parse().ok()?;
                // A thread may end between the listing and the reading; it then counts nothing.
                if let Some(time) = on_cpu(task.path().to_str()?) {
                    by_thread.insert(tid, time);
                }
            }
        }
        Some(by_thread)
    }
}

/// The first field of schedstat: nanoseconds on a CPU.
fn on_cpu(task: &str) -> Option<u64> {
    fs::read_to_string(format!("{task}/schedstat"))
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// A reading of a [`CpuScope`], from which CPU time is counted.
#[derive(Debug)]
pub(crate) struct CpuMeter<'a> {
    scope: &'a CpuScope,
    start: Option<BTreeMap<i32, u64>>,
}

impl<'a> CpuMeter<'a> {
    pub(crate) fn start(scope: &'a CpuScope) -> Self {
        Self {
            scope,
            start: scope.read(),
        }
    }

    /// Nanoseconds on a CPU since the start, of all threads together.
    pub(crate) fn elapsed_ns(&self) -> Option<u64> {
        let start = self.start.as_ref()?;
        let now = self.scope.read()?;
        Some(
            now.iter()
                .map(|(tid, ns)| ns.saturating_sub(*start.get(tid).unwrap_or(&0)))
                .sum(),
        )
    }
}

/// Counts completions between the end of the warm-up and the end of the run.
#[derive(Debug)]
pub(crate) struct Stopwatch<'a> {
    scope: &'a CpuScope,
    duration: Duration,
    opens: Instant,
    window: Option<Window<'a>>,
}

#[derive(Debug)]
struct Window<'a> {
    opened: Instant,
    cpu: CpuMeter<'a>,
    notifications: Option<u64>,
    latency: Histogram<u64>,
    latency_sum_ns: u128,
}

impl<'a> Stopwatch<'a> {
    /// Starts the warm-up, after which it counts for `duration`.
    pub(crate) fn start(warm_up: Duration, duration: Duration, scope: &'a CpuScope) -> Self {
        Self {
            scope,
            duration,
            opens: Instant::now() + warm_up,
            window: None,
        }
    }

    /// Counts one completed request. One `now` may serve all completions of a batch: reading the
    /// clock once a request would be a tenth of what is measured.
    pub(crate) fn completed(&mut self, submitted: Instant, now: Instant) {
        if let Some(window) = &mut self.window {
            let latency = u64::try_from((now - submitted).as_nanos()).unwrap_or(u64::MAX);
            window.latency.saturating_record(latency);
            window.latency_sum_ns += u128::from(latency);
        }
    }

    /// To be asked after each batch; gives the result when the time is over. `notifications` is
    /// how many there were so far, in both directions, where the contender can tell.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        notifications: impl FnOnce() -> Option<u64>,
    ) -> Result<Option<Counted>> {
        match &mut self.window {
            None if now >= self.opens => {
                self.window = Some(Window {
                    // 1 ns to 10 s, to three digits.
                    latency: Histogram::new_with_bounds(1, 10_000_000_000, 3)?,
                    latency_sum_ns: 0,
                    notifications: notifications(),
                    cpu: CpuMeter::start(self.scope),
                    opened: Instant::now(),
                });
                Ok(None)
            }
            Some(window) if now.saturating_duration_since(window.opened) >= self.duration => {
                let cpu_ns = window.cpu.elapsed_ns();
                let notified = window
                    .notifications
                    .zip(notifications())
                    .map(|(from, to)| to - from);
                Ok(Some(Counted {
                    elapsed: now - window.opened,
                    cpu_ns,
                    notified,
                    latency_sum_ns: window.latency_sum_ns,
                    latency: window.latency.clone(),
                }))
            }
            _ => Ok(None),
        }
    }
}

/// What one closed loop counted while its stopwatch ran.
#[derive(Debug)]
pub(crate) struct Counted {
    elapsed: Duration,
    /// Of the whole scope, which loops beside this one share.
    cpu_ns: Option<u64>,
    notified: Option<u64>,
    latency: Histogram<u64>,
    latency_sum_ns: u128,
}

impl Counted {
    fn rate(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The sample of this loop alone; a request carries `block` bytes.
    pub(crate) fn sample(self, block: u32) -> Sample {
        together(vec![vec![self]], block)
    }
}

/// The sample of several guests, each with several loops, that ran at the same time.
pub(crate) fn together(guests: Vec<Vec<Counted>>, block: u32) -> Sample {
    let rates: Vec<f64> = guests
        .iter()
        .map(|loops| loops.iter().map(Counted::rate).sum())
        .collect();
    let loops: Vec<Counted> = guests.into_iter().flatten().collect();
    let count = loops.len().max(1) as f64;
    let sum = |of: fn(&Counted) -> Option<u64>| loops.iter().map(of).sum::<Option<u64>>();
    // Every loop saw the CPU time of all of them.
    let cpu_ns = sum(|it| it.cpu_ns).map(|ns| ns as f64 / count);
    let notified = sum(|it| it.notified).map(|n| n as f64);
    let latency_sum_ns: u128 = loops.iter().map(|it| it.latency_sum_ns).sum();
    let latency = loops
        .into_iter()
        .map(|it| it.latency)
        .reduce(|mut all, more| {
            // Of the same bounds, so that it fits.
            let added = all.add(&more);
            debug_assert!(added.is_ok());
            all
        });
    let (ios, quantile) = latency.map_or((0, [0; 2]), |all| {
        (all.len(), [0.50, 0.99].map(|q| all.value_at_quantile(q)))
    });
    // A window without a completion gives rates of 0 and costs of 0, not of infinity.
    let per_io = |total: f64| if ios == 0 { 0.0 } else { total / ios as f64 };
    let iops = rates.iter().sum();
    Sample {
        iops,
        mb_per_s: (block > 0).then_some(iops * f64::from(block) / 1e6),
        mean_ns: per_io(latency_sum_ns as f64),
        p50_ns: quantile[0] as f64,
        p99_ns: quantile[1] as f64,
        cpu_ns_per_io: cpu_ns.map(per_io),
        notifications_per_io: notified.map(per_io),
        fairness: (rates.len() > 1).then(|| jain(&rates)),
    }
}

/// Jain's index of fairness.
fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    if squares == 0.0 {
        return 0.0;
    }
    sum * sum / (rates.len() as f64 * squares)
}

/// The client's end of a device queue, driven from one thread or one guest's task.
pub(crate) trait Queue {
    /// Queues a read of the workload's block at `offset` (bytes) into the buffer of `slot`,
    /// `0..depth`, which is free. It need not be visible to the device before [`Queue::kick`].
    fn submit(&mut self, slot: usize, offset: u64) -> Result<()>;

    /// Publishes what was submitted and notifies the device if it asked for that.
    fn kick(&mut self) -> Result<()>;

    /// Appends the slots of all completed reads to `done`; waits, by the placement's rule, until
    /// there is at least one.
    ///
    /// # Errors
    /// A read failed, the device died, or nothing came for [`STALL`].
    fn reap(&mut self, done: &mut Vec<usize>) -> impl Future<Output = Result<()>>;

    /// Notifications so far, in both directions.
    fn notifications(&mut self) -> Option<u64>;
}

/// The time before the clock starts, for so much that counts.
pub(crate) fn warm_up(duration: Duration) -> Duration {
    (duration / 5).clamp(Duration::from_millis(20), Duration::from_millis(500))
}

/// How long a client waits for any completion at all before it reports the device as dead.
pub(crate) const STALL: Duration = Duration::from_secs(10);

/// Keeps `workload.depth` reads in flight, each completion replaced by a new read, until the
/// time is over; then lets those in flight finish.
pub(crate) async fn closed_loop(
    queue: &mut impl Queue,
    workload: &Workload,
    scope: &CpuScope,
) -> Result<Counted> {
    let mut offsets = workload.offsets();
    let mut stopwatch = Stopwatch::start(workload.warm_up, workload.duration, scope);
    let mut submitted = vec![Instant::now(); workload.depth];
    for slot in 0..workload.depth {
        queue.submit(slot, offsets.next())?;
    }
    queue.kick()?;

    let mut done = Vec::with_capacity(workload.depth);
    let mut in_flight = workload.depth;
    let mut counted = None;
    while in_flight > 0 {
        done.clear();
        queue.reap(&mut done).await?;
        let now = Instant::now();
        if counted.is_some() {
            in_flight -= done.len();
            continue;
        }
        for &slot in &done {
            stopwatch.completed(submitted[slot], now);
            submitted[slot] = now;
            queue.submit(slot, offsets.next())?;
        }
        queue.kick()?;
        counted = stopwatch.tick(now, || queue.notifications())?;
    }
    counted.ok_or_else(|| anyhow::anyhow!("no request was in flight"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Disk, Pattern};
    use parapet_hypervisor::block_on;
    use std::collections::VecDeque;

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(
            summary,
            Summary {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
        assert_eq!(Summary::of([7.0, 1.0, 9.0]).unwrap().median, 7.0);
        assert_eq!(Summary::of([]), None);
    }

    /// Completes in order, half of what is in flight at a time; a notification per kick.
    struct HalfAtATime {
        submitted: VecDeque<usize>,
        free: Vec<bool>,
        kicks: u64,
    }

    impl Queue for HalfAtATime {
        fn submit(&mut self, slot: usize, offset: u64) -> Result<()> {
            assert!(
                std::mem::replace(&mut self.free[slot], false),
                "slot {slot} is in flight"
            );
            assert!(offset < 1 << 20);
            self.submitted.push_back(slot);
            Ok(())
        }

        fn kick(&mut self) -> Result<()> {
            self.kicks += 1;
            Ok(())
        }

        async fn reap(&mut self, done: &mut Vec<usize>) -> Result<()> {
            done.extend(self.submitted.drain(..self.submitted.len().div_ceil(2)));
            done.iter().for_each(|&slot| self.free[slot] = true);
            Ok(())
        }

        fn notifications(&mut self) -> Option<u64> {
            Some(self.kicks)
        }
    }

    #[test]
    fn a_closed_loop_keeps_every_slot_busy_and_drains_at_the_end() {
        let workload = Workload {
            disk: Disk::Null { size: 1 << 20 },
            block: 4096,
            pattern: Pattern::Random,
            depth: 8,
            queues: 1,
            guests: 1,
            stream: 0,
            warm_up: Duration::from_millis(2),
            duration: Duration::from_millis(10),
        };
        let mut queue = HalfAtATime {
            submitted: VecDeque::new(),
            free: vec![true; 8],
            kicks: 0,
        };
        let scope = CpuScope::new().thread(nix::unistd::gettid());
        let counted = block_on(closed_loop(&mut queue, &workload, &scope)).unwrap();
        let sample = counted.sample(4096);
        assert!(queue.free.iter().all(|&free| free));
        assert!(sample.iops > 0.0);
        assert!(sample.p50_ns <= sample.p99_ns);
        assert_eq!(sample.mb_per_s, Some(sample.iops * 4096.0 / 1e6));
        // Four completions, one kick.
        let notified = sample.notifications_per_io.unwrap();
        assert!((notified - 0.25).abs() < 0.01, "{notified}");
    }

    #[test]
    fn fairness_is_1_among_equals_and_1_of_n_if_one_takes_all() {
        assert_eq!(jain(&[5.0; 7]), 1.0);
        assert_eq!(jain(&[8.0, 0.0, 0.0, 0.0]), 0.25);
        assert_eq!(jain(&[0.0, 0.0]), 0.0);
    }

    fn spin(time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_cpu_meter_charges_the_threads_of_its_scope_and_no_others() {
        let scope = CpuScope::new().thread(nix::unistd::gettid());
        let meter = CpuMeter::start(&scope);
        spin(Duration::from_millis(40));
        let Some(busy) = meter.elapsed_ns() else {
            return;
        }; // a kernel without schedstat
        let waiting = std::thread::scope(|threads| {
            let other = threads.spawn(|| {
                let meter = CpuMeter::start(&scope);
                spin(Duration::from_millis(40));
                meter.elapsed_ns().unwrap()
            });
            other.join().unwrap()
        });
        assert!(
            waiting < busy,
            "{waiting} of a thread that waits, {busy} of one that spins"
        );
    }
}
