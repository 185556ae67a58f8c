//! iperf3 between two stacks of Linux, over whatever lies between them.

use super::namespace::{Namespace, run};
use super::{Contender, Load, Row, Task};
use crate::contender::Standing;
use crate::measure::{Figures, Metric};
use crate::peers::{Program, Reaped};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parapet_hypervisor::host::{TAP_HEADER, Tap, Unfinished};
use parapet_hypervisor::memory::Scratch;
use serde_json::Value;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The name of the contender that is the same idea as ours without any halves.
pub(super) const BRIDGE: &str = "TAP to TAP bridge";

/// The devices' names, each in its own namespace.
const DEVICE: &str = "eth0";

/// The server's address.
const SERVER: &str = "192.0.2.2";

/// How long a program may take to be there.
const START: Duration = Duration::from_secs(20);

/// Whether it is installed.
pub(super) fn program() -> Program {
    Program::find("iperf3", "iperf3 ethtool iproute2")
}

/// Everybody who can lie between two stacks.
///
/// # Errors
/// The `parapet` command is not beside this one.
pub(super) fn all() -> Result<Vec<Box<dyn Contender>>> {
    let own = std::env::current_exe()?;
    let parapet = own.with_file_name("parapet");
    Ok(vec![
        Box::new(Iperf(Between::Parapet(parapet))),
        Box::new(Iperf(Between::Bridge)),
        Box::new(Iperf(Between::Veth)),
        Box::new(Iperf(Between::Nothing)),
    ])
}

/// What lies between the two stacks.
#[derive(Debug)]
enum Between {
    /// Front half, back half, switch, back half, front half: `parapet net tap`.
    Parapet(PathBuf),
    /// Two threads that read one TAP device and write the other.
    Bridge,
    /// The kernel's own cable.
    Veth,
    /// One stack talks to itself.
    Nothing,
}

#[derive(Debug)]
struct Iperf(Between);

/// The two ends, and what lies between them for as long as this lives.
struct Ends {
    client: Namespace,
    /// None: the client's.
    server: Option<Namespace>,
    _between: Box<dyn std::any::Any>,
}

impl Contender for Iperf {
    fn name(&self) -> &'static str {
        match self.0 {
            Between::Parapet(_) => "parapet",
            Between::Bridge => BRIDGE,
            Between::Veth => "veth",
            Between::Nothing => "loopback",
        }
    }

    fn standing(&self) -> Standing {
        match self.0 {
            Between::Parapet(_) => Standing::Ours,
            Between::Bridge => Standing::Peer,
            Between::Veth | Between::Nothing => Standing::Floor,
        }
    }

    fn serves(&self, row: &Row) -> bool {
        match row.load {
            Load::Iperf { offloads } => offloads || !matches!(self.0, Between::Nothing),
            _ => false,
        }
    }

    fn run(&mut self, task: &Task) -> Result<Figures> {
        let Load::Iperf { offloads } = task.load else {
            bail!("iperf3 measures TCP only");
        };
        let ends = self.ends(offloads)?;
        let server = ends.server.as_ref().unwrap_or(&ends.client);
        let mut server_command = server.command("iperf3");
        server_command.args(["--server", "--one-off"]);
        let _server = Reaped::spawn(quiet(&mut server_command))?;
        let to = match ends.server {
            Some(_) => SERVER,
            None => "127.0.0.1",
        };
        // Whole seconds only.
        let seconds = task.duration.as_secs_f64().ceil().max(1.0).to_string();
        let deadline = Instant::now() + START;
        loop {
            let mut client = ends.client.command("iperf3");
            client.args(["--client", to, "--json", "--time", &seconds]);
            let output = client.stdin(Stdio::null()).output()?;
            let report: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("iperf3 said {:?}", output.status))?;
            let rate = &report["end"]["sum_received"]["bits_per_second"];
            if let Some(rate) = rate.as_f64() {
                return Ok(Figures::from([(Metric::GbitPerS, rate / 1e9)]));
            }
            // The server may not be listening yet, nor what lies between be connected.
            if Instant::now() > deadline {
                bail!("iperf3: {}", report["error"]);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
}

impl Iperf {
    fn ends(&self, offloads: bool) -> Result<Ends> {
        let client = Namespace::new()?;
        if matches!(self.0, Between::Nothing) {
            return Ok(Ends {
                client,
                server: None,
                _between: Box::new(()),
            });
        }
        let server = Namespace::new()?;
        let between: Box<dyn std::any::Any> = match &self.0 {
            Between::Parapet(parapet) => {
                let mut command = Command::new(parapet);
                command.args(["net", "tap"]);
                for end in [&client, &server] {
                    let tap = format!("{DEVICE}@{}", end.path().display());
                    command.args(["--tap", &tap]);
                }
                let child = Reaped::spawn(quiet(&mut command))
                    .with_context(|| format!("{}: build it too", parapet.display()))?;
                let deadline = Instant::now() + START;
                while [&client, &server]
                    .iter()
                    .any(|end| end.ip(&format!("link show {DEVICE}")).is_err())
                {
                    if Instant::now() > deadline {
                        bail!("parapet made no TAP devices in {START:?}");
                    }
                    thread::sleep(Duration::from_millis(50));
                }
                Box::new(child)
            }
            Between::Bridge => Box::new(Bridge::new(&client, &server)?),
            Between::Veth => {
                run(Command::new("ip")
                    .args(["link", "add", DEVICE, "netns", client.name()])
                    .args(["type", "veth", "peer", "name", DEVICE])
                    .args(["netns", server.name()]))?;
                Box::new(())
            }
            Between::Nothing => Box::new(()),
        };
        for (end, address) in [(&client, "192.0.2.1"), (&server, SERVER)] {
            end.ip(&format!("address add {address}/24 dev {DEVICE}"))?;
            end.ip(&format!("link set {DEVICE} up"))?;
            if !offloads {
                end.without_offloads(DEVICE)?;
            }
        }
        Ok(Ends {
            client,
            server: Some(server),
            _between: between,
        })
    }
}

/// Two threads between two TAP devices.
struct Bridge {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Bridge {
    fn new(a: &Namespace, b: &Namespace) -> Result<Self> {
        let taps = [a, b].map(|end| -> io::Result<Tap> {
            let tap = Tap::open_in(&end.path(), DEVICE)?;
            tap.set_takes(Unfinished::ALL)?;
            Ok(tap)
        });
        let [a, b] = taps;
        let (a, b) = (a?, b?);
        let stop = Arc::new(AtomicBool::new(false));
        let ways = [(a.try_clone()?, b.try_clone()?), (b, a)];
        let threads = ways.map(|(from, to)| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || forward(&from, &to, &stop))
        });
        Ok(Bridge {
            stop,
            threads: threads.into(),
        })
    }
}

fn forward(from: &Tap, to: &Tap, stop: &AtomicBool) -> io::Result<()> {
    let memory = Scratch::new(1 << 16);
    let mut header = [0; TAP_HEADER];
    while !stop.load(Ordering::Relaxed) {
        match from.receive(&mut header, &mut [], [memory.view()]) {
            Ok(len) => {
                let frame = memory.view().read_only().slice(0, len);
                // A device that is not up yet, or full, loses frames, as any does.
                let _ = to.send(&header, &[], frame);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(50u8))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What went wrong shows as a rate of nothing.
            let _ = thread.join();
        }
    }
}
