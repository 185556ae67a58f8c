//! fio with io_uring straight on the file: what the disk and the kernel give without any device
//! in between.

use super::{Program, Reaped};
use crate::contender::{Contender, Standing};
use crate::measure::{CpuMeter, CpuScope, Sample};
use crate::placement::{Cores, Placement};
use crate::workload::{Disk, Pattern, Workload};
use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The contender `raw fio`.
#[derive(Debug)]
pub(crate) struct Fio;

impl Fio {
    /// Whether it is installed.
    pub(crate) fn program() -> Program {
        Program::find("fio", "fio")
    }
}

impl Contender for Fio {
    fn name(&self) -> &'static str {
        "raw fio"
    }

    fn standing(&self) -> Standing {
        Standing::Floor
    }

    fn serves(&self, workload: &Workload, placement: Placement) -> bool {
        // Without a device between client and file there is nothing to split.
        let alone = (workload.guests, workload.queues) == (1, 1);
        matches!(workload.disk, Disk::File { .. }) && alone && placement == Placement::SameCore
    }

    fn run(&mut self, workload: &Workload, _: Placement, cores: Cores) -> Result<Sample> {
        let Disk::File { path, size } = &workload.disk else {
            bail!("fio reads files only");
        };
        let mut command = Command::new("fio");
        command
            .args(arguments(workload, path, *size, cores.front))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut fio = Reaped::spawn(&mut command)?;
        let cpu_per_second = cpu_of_the_job(&mut fio, workload)?;

        let (mut report, mut errors) = (String::new(), String::new());
        fio.0
            .stdout
            .take()
            .context("no output")?
            .read_to_string(&mut report)?;
        fio.0
            .stderr
            .take()
            .context("no output")?
            .read_to_string(&mut errors)?;
        if !fio.0.wait()?.success() {
            bail!(
                "fio: {}",
                errors.lines().next().unwrap_or("failed without a word")
            );
        }
        let mut sample = parse(&report).context("reading fio's report")?;
        sample.cpu_ns_per_io = cpu_per_second
            .filter(|_| sample.iops > 0.0)
            .map(|ns| ns / sample.iops);
        Ok(sample)
    }
}

fn arguments(workload: &Workload, path: &Path, size: u64, cpu: usize) -> Vec<String> {
    let rw = match workload.pattern {
        Pattern::Random => "randread",
        Pattern::Sequential => "read",
    };
    vec![
        "--name=raw".into(),
        // A colon separates files unless it is escaped.
        format!(
            "--filename={}",
            path.display().to_string().replace(':', "\\:")
        ),
        format!("--size={size}"),
        "--ioengine=io_uring".into(),
        "--direct=1".into(),
        format!("--bs={}", workload.block),
        format!("--rw={rw}"),
        format!("--iodepth={}", workload.depth),
        "--norandommap".into(),
        format!("--cpus_allowed={cpu}"),
        format!("--ramp_time={}ms", workload.warm_up.as_millis()),
        format!("--runtime={}ms", workload.duration.as_millis()),
        "--time_based".into(),
        "--lat_percentiles=1".into(),
        "--output-format=json".into(),
    ]
}

/// CPU time that only a job at work uses: making itself ready takes it less than half of this.
const LET_GO_NS: u64 = 1_000_000;

/// Nanoseconds of CPU per second of the measured time. fio itself reports only its submitting
/// thread and not the kernel's io_uring workers, which do half of the work on a tmpfs.
fn cpu_of_the_job(fio: &mut Reaped, workload: &Workload) -> Result<Option<f64>> {
    let pid = fio.0.id();
    // The job is a child process of fio's, started when all is set up.
    let children = format!("/proc/{pid}/task/{pid}/children");
    let job = loop {
        let Ok(listed) = fs::read_to_string(&children) else {
            return Ok(None);
        };
        if let Some(job) = listed.split_whitespace().next() {
            break job.parse()?;
        }
        if fio.0.try_wait()?.is_some() {
            return Ok(None);
        }
        sleep(Duration::from_millis(2));
    };
    let scope = CpuScope::new().process(Pid::from_raw(job));
    // It sleeps until fio lets it go, some hundred milliseconds later.
    let asleep = CpuMeter::start(&scope);
    while asleep.elapsed_ns().is_some_and(|ns| ns < LET_GO_NS) {
        if fio.0.try_wait()?.is_some() {
            return Ok(None);
        }
        sleep(Duration::from_millis(2));
    }
    // Two readings well inside the measured time; it is a closed loop, so its rate is steady.
    sleep(workload.warm_up + workload.duration / 20);
    let meter = CpuMeter::start(&scope);
    let begin = Instant::now();
    sleep(workload.duration * 8 / 10);
    Ok(meter
        .elapsed_ns()
        .map(|ns| ns as f64 / begin.elapsed().as_secs_f64()))
}

/// The part of fio's JSON that we read.
#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i32,
    read: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    bw_bytes: f64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

fn parse(report: &str) -> Result<Sample> {
    // Some versions print notes before the JSON.
    let json = report
        .find('{')
        .and_then(|start| report.get(start..))
        .context("it has no JSON")?;
    let report: Report = serde_json::from_str(json)?;
    let job = report.jobs.into_iter().next().context("it has no job")?;
    if job.error != 0 {
        bail!("the job failed: {}", nix::errno::Errno::from_raw(job.error));
    }
    let percentile = |key: &str| {
        job.read
            .lat_ns
            .percentile
            .get(key)
            .copied()
            .with_context(|| format!("no {key} percentile"))
    };
    Ok(Sample {
        iops: job.read.iops,
        mb_per_s: Some(job.read.bw_bytes / 1e6),
        mean_ns: job.read.lat_ns.mean,
        p50_ns: percentile("50.000000")?,
        p99_ns: percentile("99.000000")?,
        cpu_ns_per_io: None,
        notifications_per_io: None,
        fairness: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_rates_and_percentiles() {
        let sample = parse(
            r#"fio: a note
            {"jobs": [{"error": 0, "read": {"iops": 9400.5, "bw_bytes": 38504448,
              "lat_ns": {"mean": 105000.5,
                         "percentile": {"50.000000": 99000, "99.000000": 201000}}}}]}"#,
        )
        .unwrap();
        assert_eq!(sample.iops, 9400.5);
        assert_eq!(sample.mb_per_s, Some(38.504448));
        assert_eq!((sample.p50_ns, sample.p99_ns), (99000.0, 201000.0));
    }

    #[test]
    fn a_failed_job_is_an_error_and_not_a_figure() {
        let report = r#"{"jobs": [{"error": 5, "read": {"iops": 0, "bw_bytes": 0,
                        "lat_ns": {"mean": 0}}}]}"#;
        assert!(parse(report).unwrap_err().to_string().contains("EIO"));
    }

    #[test]
    fn a_colon_in_a_file_name_is_escaped() {
        let workload = Workload {
            disk: Disk::File {
                path: "/tmp/a:b".into(),
                size: 4096,
            },
            block: 4096,
            pattern: Pattern::Sequential,
            depth: 8,
            queues: 1,
            guests: 1,
            stream: 0,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(500),
        };
        let arguments = arguments(&workload, Path::new("/tmp/a:b"), 4096, 0);
        assert!(arguments.contains(&"--filename=/tmp/a\\:b".to_owned()));
        assert!(arguments.contains(&"--runtime=500ms".to_owned()));
    }
}
