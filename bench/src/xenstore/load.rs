//! What is asked of a xenstored, and what is measured of it.

use super::client::{Client, Message};
use crate::measure::{CpuMeter, CpuScope, Figures, Metric, Sample, Stopwatch};
use crate::peers::xenstored::Running;
use anyhow::{Context, Result, bail};
use parapet_xen_sys::io::xs_wire::Operation;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What each client does again and again, as soon as it has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cycle {
    /// READ of a device's state.
    Read,
    /// WRITE of the same.
    Write,
    /// TRANSACTION_START, READ, two WRITEs, TRANSACTION_END.
    Transaction,
}

/// For how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// A client in the middle of its cycle.
struct Worker {
    client: Client,
    cycle: Cycle,
    step: usize,
    tx: u32,
    begun: Instant,
    state: String,
    ring: String,
}

impl Worker {
    fn new(daemon: &Running, cycle: Cycle, number: usize) -> Result<Self> {
        let device = format!("/local/domain/{number}/device/vbd/51712");
        let mut worker = Worker {
            client: Client::connect(daemon.socket())?,
            cycle,
            step: 0,
            tx: 0,
            begun: Instant::now(),
            state: format!("{device}/state"),
            ring: format!("{device}/ring-ref"),
        };
        for path in [&worker.state, &worker.ring] {
            worker.client.write(0, path, b"1")?;
        }
        Ok(worker)
    }

    /// Sends the request of this step.
    fn send(&mut self) -> Result<()> {
        let operation = match (self.cycle, self.step) {
            (Cycle::Read, _) | (Cycle::Transaction, 1) => Operation::Read,
            (Cycle::Transaction, 0) => Operation::TransactionStart,
            (Cycle::Write, _) | (Cycle::Transaction, 2 | 3) => Operation::Write,
            (Cycle::Transaction, _) => Operation::TransactionEnd,
        };
        let path = if self.step == 3 {
            &self.ring
        } else {
            &self.state
        };
        let (path, zero): (&[u8], &[u8]) = (path.as_bytes(), b"\0");
        match operation {
            Operation::Read => self.client.send(operation, self.tx, &[path, zero]),
            Operation::Write => self.client.send(operation, self.tx, &[path, zero, b"4"]),
            Operation::TransactionStart => self.client.send(operation, 0, &[zero]),
            _ => self.client.send(operation, self.tx, &[b"T\0"]),
        }
    }

    /// Waits for the answer. Whether the cycle is done.
    fn receive(&mut self) -> Result<bool> {
        let answer = self.client.answer()?;
        if answer.is(Operation::Error) {
            return self.refused(&answer).map(|()| false);
        }
        if self.cycle != Cycle::Transaction {
            return Ok(true);
        }
        if self.step == 0 {
            self.tx = self.client.transaction(&answer)?;
        }
        self.step += 1;
        if self.step < 5 {
            return Ok(false);
        }
        (self.step, self.tx) = (0, 0);
        Ok(true)
    }

    /// A commit that met another is done anew.
    fn refused(&mut self, answer: &Message) -> Result<()> {
        let why = self.client.payload(answer);
        if self.step != 4 || why != b"EAGAIN\0" {
            bail!("refused: {}", why.escape_ascii());
        }
        (self.step, self.tx) = (0, 0);
        Ok(())
    }
}

/// So many clients, each in a closed loop of its own.
pub(crate) fn cycles(
    daemon: &Running,
    cycle: Cycle,
    clients: usize,
    times: Times,
) -> Result<Figures> {
    let mut workers = (0..clients)
        .map(|number| Worker::new(daemon, cycle, number))
        .collect::<Result<Vec<_>>>()?;
    let before = daemon.resident_mib()?;
    let scope = CpuScope::new().process(daemon.pid());
    let mut stopwatch = Stopwatch::start(times.warm_up, times.duration, &scope);
    for worker in &mut workers {
        worker.begun = Instant::now();
        worker.send()?;
    }
    loop {
        for worker in &mut workers {
            let done = worker.receive()?;
            if done {
                let now = Instant::now();
                stopwatch.completed(worker.begun, now);
                worker.begun = now;
            }
            worker.send()?;
        }
        if let Some(counted) = stopwatch.tick(Instant::now(), || None)? {
            return figures(&counted.sample(0), before, daemon);
        }
    }
}

fn figures(sample: &Sample, before: f64, daemon: &Running) -> Result<Figures> {
    let mut figures = Figures::from([
        (Metric::OpsPerS, sample.iops),
        (Metric::MeanNs, sample.mean_ns),
        (Metric::P50Ns, sample.p50_ns),
        (Metric::P99Ns, sample.p99_ns),
        (Metric::ResidentBeforeMib, before),
        (Metric::ResidentMib, daemon.resident_mib()?),
    ]);
    let cpu = sample.cpu_ns_per_io;
    figures.extend(cpu.map(|cpu| (Metric::ServerCpuNsPerOp, cpu)));
    Ok(figures)
}

/// From one client's WRITE to another's event, with so many watches of a third on other nodes.
pub(crate) fn watch(daemon: &Running, unrelated: usize, times: Times) -> Result<Figures> {
    let mut writer = Client::connect(daemon.socket())?;
    let mut watcher = Client::connect(daemon.socket())?;
    let mut other = Client::connect(daemon.socket())?;
    let path = "/local/domain/1/device/vbd/51712/state";
    writer.write(0, path, b"1")?;
    for number in 0..unrelated {
        let elsewhere = format!("/local/domain/2/device/vbd/{number}/state\0token\0");
        other.ask(Operation::Watch, 0, &[elsewhere.as_bytes()])?;
    }
    watcher.ask(Operation::Watch, 0, &[path.as_bytes(), b"\0token\0"])?;
    event(&mut watcher)?;
    let before = daemon.resident_mib()?;
    let scope = CpuScope::new().process(daemon.pid());
    let mut stopwatch = Stopwatch::start(times.warm_up, times.duration, &scope);
    loop {
        let begun = Instant::now();
        writer.send(Operation::Write, 0, &[path.as_bytes(), b"\0", b"4"])?;
        event(&mut watcher)?;
        let now = Instant::now();
        stopwatch.completed(begun, now);
        writer.done()?;
        if let Some(counted) = stopwatch.tick(now, || None)? {
            return figures(&counted.sample(0), before, daemon);
        }
    }
}

fn event(watcher: &mut Client) -> Result<()> {
    while !watcher.receive()?.is(Operation::WatchEvent) {}
    Ok(())
}

/// Nodes in a directory of the tree of [`nodes`].
const SIBLINGS: usize = 1000;

/// How long another client goes on reading after everything was removed: what is put off until
/// then may hold it up, too.
const AFTERWARDS: Duration = Duration::from_millis(50);

/// So many nodes, written one by one, a thousand to a directory; then removed all at once, while
/// another client reads.
pub(crate) fn nodes(daemon: &Running, count: usize) -> Result<Figures> {
    let mut client = Client::connect(daemon.socket())?;
    let mut reader = Client::connect(daemon.socket())?;
    client.write(0, "/elsewhere", b"1")?;
    let before = daemon.resident_mib()?;
    let scope = CpuScope::new().process(daemon.pid());
    let cpu = CpuMeter::start(&scope);
    let begun = Instant::now();
    for number in 0..count {
        let path = format!("/bench/{}/{}", number / SIBLINGS, number % SIBLINGS);
        client.write(0, &path, b"value")?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = cpu.elapsed_ns();
    let resident = daemon.resident_mib()?;

    let begun = Instant::now();
    let (mut asked, mut held_up, mut removal) = (begun, Duration::ZERO, None);
    client.send(Operation::Rm, 0, &[b"/bench\0"])?;
    while removal.is_none_or(|removal| begun.elapsed() < removal + AFTERWARDS) {
        reader.ask(Operation::Read, 0, &[b"/elsewhere\0"])?;
        held_up = held_up.max(asked.elapsed());
        if removal.is_none()
            && let Some(answer) = client.try_receive()?
        {
            removal = Some(begun.elapsed());
            if answer.is(Operation::Error) {
                bail!("removing: {}", client.payload(&answer).escape_ascii());
            }
        }
        asked = Instant::now();
    }
    let removal = removal.context("nothing was removed")?;
    let mut figures = Figures::from([
        (Metric::Seconds, seconds),
        (Metric::OpsPerS, count as f64 / seconds),
        (Metric::ResidentBeforeMib, before),
        (Metric::ResidentMib, resident),
        (Metric::RemovalMs, removal.as_secs_f64() * 1e3),
        (Metric::HeldUpMs, held_up.as_secs_f64() * 1e3),
    ]);
    figures.extend(cpu.map(|cpu| (Metric::ServerCpuNsPerOp, cpu as f64 / count as f64)));
    Ok(figures)
}

/// The devices of a domain of [`domains`]: with the home and three folders, forty nodes.
const DEVICES: [&str; 3] = ["vbd", "vif", "console"];
const KEYS: usize = 12;

/// So many domains, each written in a transaction of its own.
pub(crate) fn domains(daemon: &Running, count: usize) -> Result<Figures> {
    let mut client = Client::connect(daemon.socket())?;
    let before = daemon.resident_mib()?;
    let scope = CpuScope::new().process(daemon.pid());
    let cpu = CpuMeter::start(&scope);
    let begun = Instant::now();
    for domid in 1..=count {
        let started = client.ask(Operation::TransactionStart, 0, &[b"\0"])?;
        let tx = client.transaction(&started)?;
        for device in DEVICES {
            for key in 0..KEYS {
                let path = format!("/local/domain/{domid}/{device}/key-{key}");
                client.write(tx, &path, b"value")?;
            }
        }
        client.ask(Operation::TransactionEnd, tx, &[b"T\0"])?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut figures = Figures::from([
        (Metric::Seconds, seconds),
        (Metric::OpsPerS, count as f64 / seconds),
        (Metric::ResidentBeforeMib, before),
        (Metric::ResidentMib, daemon.resident_mib()?),
    ]);
    let cpu = cpu.elapsed_ns();
    figures.extend(cpu.map(|cpu| (Metric::ServerCpuNsPerOp, cpu as f64 / count as f64)));
    Ok(figures)
}
