//! DPDK's testpmd on both ends of a vhost-user device: the fastest pair of halves that there is.

use super::{Contender, Load, Row, Task, figures};
use crate::contender::Standing;
use crate::measure::Figures;
use crate::peers::{Program, Reaped};
use crate::placement::Placement;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The packages of the command and of the drivers that it loads.
const PACKAGES: &str = "dpdk-dev librte-net-virtio23 librte-net-vhost23 librte-net-memif23 \
                        librte-mempool-ring23";

/// Whether it is installed. It tells its version only once it is up, which it is not by itself.
pub(super) fn program() -> Program {
    let started = Command::new(COMMAND)
        .args(["-v", "--no-huge", "-m", "64", "--no-pci", "--no-telemetry"])
        .args(["--", "--help"])
        .stdin(Stdio::null())
        .output();
    let version = started.ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .find_map(|line| line.split_once("RTE Version: "));
        line.map(|(_, version)| format!("testpmd of {}", version.trim_matches('\'')))
    });
    Program {
        name: COMMAND,
        package: PACKAGES,
        version,
    }
}

const COMMAND: &str = "dpdk-testpmd";

/// The contender `testpmd vhost-user`.
#[derive(Debug)]
pub(super) struct Testpmd;

/// How long it may take to get going.
const START: Duration = Duration::from_secs(20);

impl Contender for Testpmd {
    fn name(&self) -> &'static str {
        "testpmd vhost-user"
    }

    fn standing(&self) -> Standing {
        Standing::Peer
    }

    fn serves(&self, row: &Row) -> bool {
        // It does nothing but poll.
        matches!(row.load, Load::FrontToBack { .. }) && row.placement == Placement::SplitPolling
    }

    fn run(&mut self, task: &Task) -> Result<Figures> {
        let Load::FrontToBack { frame } = task.load else {
            bail!("testpmd moves frames from front to back only");
        };
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("vhost");
        let (front, back) = (task.cores.front, task.cores.back);
        // The device is the one that listens, so it is first; it takes what the driver sends.
        let mut device = start(
            &format!("0@{front},1@{back}"),
            &format!("net_vhost0,iface={}", path(&socket)?),
            "rxonly",
            frame,
        )?;
        let received = device.0.stdout.take().context("its output is piped")?;
        let deadline = Instant::now() + START;
        while !socket.exists() {
            if Instant::now() > deadline {
                bail!("testpmd made no socket in {START:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _driver = start(
            &format!("0@{back},1@{front}"),
            &format!("net_virtio_user0,path={},queue_size=1024", path(&socket)?),
            "txonly",
            frame,
        )?;
        let rate = rate(received, task.duration)?;
        let packets = rate * task.duration.as_secs_f64();
        Ok(figures(packets as u64, frame, task.duration, None))
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a folder's name is not UTF-8")
}

fn start(lcores: &str, device: &str, mode: &str, frame: usize) -> Result<Reaped> {
    // The address that DPDK's files go by: of this process and this device.
    let prefix = format!("parapet-bench-{}-{mode}", std::process::id());
    Reaped::spawn(
        Command::new(COMMAND)
            .args(["--lcores", lcores, "--no-huge", "-m", "512", "--no-pci"])
            .args(["--file-prefix", &prefix, "--vdev", device, "--"])
            .args([
                &format!("--forward-mode={mode}"),
                &format!("--txpkts={frame}"),
            ])
            .args(["--auto-start", "--stats-period=1", "--burst=64"])
            .args(["--txd=1024", "--rxd=1024", "--total-num-mbufs=16384"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    )
}

/// The packets a second that it says it received: the mean over at least `duration`, from the
/// second second on in which there were some.
fn rate(output: ChildStdout, duration: Duration) -> Result<f64> {
    let wanted = duration.as_secs_f64().ceil().max(1.0) as usize;
    let deadline = Instant::now() + START + duration;
    let mut rates = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(rate) = received_per_second(&line)
            && rate > 0.0
        {
            rates.push(rate);
        }
        if rates.len() > wanted {
            let measured = &rates[1..];
            return Ok(measured.iter().sum::<f64>() / measured.len() as f64);
        }
        if Instant::now() > deadline {
            break;
        }
    }
    bail!("testpmd received nothing")
}

fn received_per_second(line: &str) -> Option<f64> {
    let mut words = line.split_whitespace();
    words.find(|&word| word == "Rx-pps:")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_rate_is_found_in_what_it_prints() {
        let line = "  Rx-pps:      7846092          Rx-bps:   4017199240";
        assert_eq!(received_per_second(line), Some(7_846_092.0));
        assert_eq!(received_per_second("  Tx-pps:   1   Tx-bps:  2"), None);
    }
}
