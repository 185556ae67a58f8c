//! Random operations from eight clients at full speed: does the memory stay as it is?

use super::client::{Client, Message};
use crate::peers::xenstored::{self, Running};
use crate::placement::{Cpus, Placement, pin};
use anyhow::{Context, Result, bail, ensure};
use parapet_xen_sys::io::xs_wire::Operation;
use std::io::{Write, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const CLIENTS: u64 = 8;
/// Requests that a client sends before it reads the answers.
const BURST: usize = 16;
/// After so many operations (or half of all, if they are few) there are about as many nodes, watches
/// and transactions as there will ever be.
const SETTLED: u64 = 1_000_000;
/// Memory may grow by so much from then on: the pages of a heap whose content changes all the time.
const SLACK_MIB: f64 = 2.0;

/// Does so many operations, and tells of the memory every million.
///
/// # Errors
/// Our xenstored is not built, or fails; its memory grows; `interrupted` was set.
pub(crate) fn run(operations: u64, interrupted: &AtomicBool) -> Result<()> {
    let cpus = Cpus::discover()?;
    let cores = cpus.cores(Placement::SplitEvented);
    let cores = cores.or(cpus.cores(Placement::SameCore));
    let cores = cores.context("no CPU")?;
    let (contenders, _) = xenstored::all(None)?;
    let ours = contenders.first().context("no xenstored")?;
    let daemon = ours.start(None, cores.back)?;
    pin(cores.front)?;

    let mut clients = (0..CLIENTS)
        .map(|seed| Soaker::new(&daemon, seed))
        .collect::<Result<Vec<_>>>()?;
    let every = (operations / 10).clamp(1, 1_000_000);
    let (begun, mut done, mut next) = (Instant::now(), 0, every);
    let mut settled = None;
    let mut errors = 0;
    while done < operations {
        for client in &mut clients {
            client.send()?;
        }
        for client in &mut clients {
            errors += client.receive()?;
            done += BURST as u64;
        }
        if done >= next {
            next += every;
            let resident = daemon.resident_mib()?;
            let rate = done as f64 / begun.elapsed().as_secs_f64();
            writeln!(
                stdout(),
                "{:>6.2} M operations, {:.0} k/s, {resident:.2} MiB resident",
                done as f64 / 1e6,
                rate / 1e3
            )?;
            if done >= SETTLED.min(operations / 2) {
                let early = *settled.get_or_insert(resident);
                ensure!(
                    resident <= early + SLACK_MIB,
                    "its memory has grown by {:.2} MiB",
                    resident - early
                );
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
        }
    }
    let events: u64 = clients.iter().map(|client| client.events).sum();
    writeln!(
        stdout(),
        "{done} operations, {errors} of them refused, and {events} events in {:.1} s",
        begun.elapsed().as_secs_f64()
    )?;
    Ok(())
}

/// One client, with what it remembers of its transaction.
struct Soaker {
    client: Client,
    random: Random,
    /// Open, unless zero.
    tx: u32,
    /// What was sent and not answered, in order.
    sent: Vec<Operation>,
    events: u64,
}

impl Soaker {
    fn new(daemon: &Running, seed: u64) -> Result<Self> {
        Ok(Soaker {
            client: Client::connect(daemon.socket())?,
            random: Random(seed << 32),
            tx: 0,
            sent: Vec::new(),
            events: 0,
        })
    }

    /// Sends a burst. A transaction begins with a burst's last request, since its number is not
    /// known before the answer; and ends with that of some later one.
    fn send(&mut self) -> Result<()> {
        for _ in 1..BURST {
            self.queue_any();
        }
        let ends = self.tx != 0 && self.random.below(4) == 0;
        match self.tx {
            0 if self.random.below(2) == 0 => {
                self.queue(Operation::TransactionStart, 0, &[b"\0"]);
            }
            tx if ends => {
                let commit = self.random.below(4) > 0;
                let how: &[u8] = if commit { b"T\0" } else { b"F\0" };
                self.queue(Operation::TransactionEnd, tx, &[how]);
                self.tx = 0;
            }
            _ => self.queue_any(),
        }
        self.client.flush()
    }

    fn queue(&mut self, operation: Operation, tx: u32, payload: &[&[u8]]) {
        self.client.queue(operation, tx, payload);
        self.sent.push(operation);
    }

    /// Some operation on some node of a tree of some thousand.
    fn queue_any(&mut self) {
        let random = &mut self.random;
        let mut path = format!("/soak/{}", random.below(CLIENTS));
        for fan in [12, 24] {
            if random.below(8) > 0 {
                path.push_str(&format!("/{}", random.below(fan)));
            }
        }
        let value = [b'x'; 96];
        let value = &value[..random.below(96) as usize];
        let access = [b"n", b"r", b"w", b"b"][random.below(4) as usize];
        let tx = if random.below(2) == 0 { self.tx } else { 0 };
        let kind = random.below(100);
        if kind >= 92 {
            // Few enough that there soon are as many as there will be.
            path = format!(
                "/soak/{}/{}/{}",
                random.below(CLIENTS),
                random.below(12),
                random.below(4)
            );
        }
        let (path, token, zero): (&[u8], &[u8], &[u8]) = (path.as_bytes(), b"token", b"\0");
        match kind {
            0..35 => self.queue(Operation::Read, tx, &[path, zero]),
            35..65 => self.queue(Operation::Write, tx, &[path, zero, value]),
            65..70 => self.queue(Operation::Mkdir, tx, &[path, zero]),
            70..76 => self.queue(Operation::Rm, tx, &[path, zero]),
            76..84 => self.queue(Operation::Directory, tx, &[path, zero]),
            84..88 => self.queue(Operation::GetPerms, tx, &[path, zero]),
            88..92 => self.queue(Operation::SetPerms, tx, &[path, b"\0n0\0", access, b"0\0"]),
            92..96 => self.queue(Operation::Watch, 0, &[path, zero, token, zero]),
            _ => self.queue(Operation::Unwatch, 0, &[path, zero, token, zero]),
        }
    }

    /// Waits for all answers. How many requests were refused.
    fn receive(&mut self) -> Result<u64> {
        let mut errors = 0;
        for operation in std::mem::take(&mut self.sent) {
            let answer = self.answer()?;
            if answer.is(Operation::Error) {
                errors += 1;
            } else if !answer.is(operation) {
                bail!(
                    "{operation:?} is answered by operation {}",
                    answer.operation
                );
            } else if operation == Operation::TransactionStart {
                self.tx = self.client.transaction(&answer)?;
            }
        }
        Ok(errors)
    }

    fn answer(&mut self) -> Result<Message> {
        loop {
            let message = self.client.receive()?;
            if !message.is(Operation::WatchEvent) {
                return Ok(message);
            }
            self.events += 1;
        }
    }
}

/// SplitMix64: the same operations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        z % end
    }
}
