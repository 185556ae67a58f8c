//! Load on an interface, to measure it: frames as fast as they go, and whoever takes them.
//!
//! ```text
//!   Load ── transmit ──> netfront ──> its backend ──> switch ──> … ──> netfront ──> receive
//!             │ frames made where they lie                                    │
//!             └── a stamp in every 64th ───────────────────────────── latency ┘ ──> Counted
//! ```
//!
//! Sender and receiver share one clock, since they share one process; a frame's latency is from when
//! its sender made it to when its receiver saw it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use parapet_hypervisor::seam::{Guest, Instant, yield_now};
use parapet_netfront::{Receiver, SendError, Sender};
use parapet_packet::Mac;

use super::SLICES;
use super::frames::{self, HEADERS};

/// Frames between two stamps.
const STAMPED: u64 = 64;

/// Frames between two looks at the clock.
const BATCH: u64 = 64;

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// The lengths of the frames, taken in turn; at least one.
    pub sizes: Vec<usize>,
    /// Whether every byte is written by the sender and read by the receiver, as a stack does; else
    /// only the headers are.
    pub touch: bool,
    /// Whether who has nothing to do goes on looking, and never sleeps.
    pub poll: bool,
    /// How long before anything counts.
    pub warm_up: Duration,
    /// How long it counts.
    pub time: Duration,
}

/// What was counted at one end.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Frames.
    pub frames: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
    /// How long it counted.
    pub time: Duration,
    /// Of frames received: how long they were on their way, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Frames in each slice of the time.
    pub slices: Vec<u64>,
}

impl Counted {
    fn new() -> Result<Self> {
        Ok(Counted {
            frames: 0,
            bytes: 0,
            time: Duration::ZERO,
            // 1 ns to 100 s, to three digits.
            latency: Histogram::new_with_bounds(1, 100_000_000_000, 3)?,
            slices: vec![0; SLICES],
        })
    }

    /// Frames a second.
    pub fn frames_per_second(&self) -> f64 {
        self.frames as f64 / self.time.as_secs_f64()
    }

    /// Bits a second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.time.as_secs_f64()
    }

    /// Adds what was counted elsewhere in the same time.
    ///
    /// # Errors
    /// None: latencies are counted alike.
    pub fn add(&mut self, other: &Counted) -> Result<()> {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.time = self.time.max(other.time);
        self.latency.add(&other.latency)?;
        for (ours, more) in self.slices.iter_mut().zip(&other.slices) {
            *ours += more;
        }
        Ok(())
    }
}

/// Nothing, to add to.
///
/// # Errors
/// None, as long as its bounds are right.
pub fn nothing() -> Result<Counted> {
    Counted::new()
}

/// Counts from the end of the warm-up until the time is over.
struct Stopwatch {
    opens: Instant,
    closes: Instant,
    time: Duration,
    /// When the last batch was counted.
    last: Instant,
    counted: Counted,
}

impl Stopwatch {
    fn start(now: Instant, load: &Load) -> Result<Self> {
        let opens = now.after(load.warm_up);
        Ok(Stopwatch {
            opens,
            closes: opens.after(load.time),
            time: load.time,
            last: now,
            counted: Counted::new()?,
        })
    }

    /// Counts what came about since it was asked last. Whether the time is over.
    fn count(&mut self, now: Instant, frames: u64, bytes: u64) -> bool {
        let began_within = self.last >= self.opens;
        self.last = now;
        if now >= self.closes {
            return true;
        }
        if began_within {
            self.counted.frames += frames;
            self.counted.bytes += bytes;
            let at =
                now.since(self.opens).as_nanos() * SLICES as u128 / self.time.as_nanos().max(1);
            if let Some(slice) = self.counted.slices.get_mut(at as usize) {
                *slice += frames;
            }
        }
        false
    }

    fn is_open(&self) -> bool {
        self.last >= self.opens
    }

    fn finish(mut self) -> Counted {
        self.counted.time = self.time;
        self.counted
    }
}

/// Sends frames from one station to another, until the time is over, and then on until `stop`.
///
/// # Errors
/// The interface's.
pub async fn transmit<G: Guest>(
    guest: &G,
    sender: &mut Sender<G>,
    load: &Load,
    (from, to): (Mac, Mac),
    stop: &AtomicBool,
) -> Result<Counted> {
    let templates: Vec<(Vec<u8>, _)> = load
        .sizes
        .iter()
        .map(|&len| (frames::frame(len, from, to), frames::offloads(len)))
        .collect();
    let Some(longest) = load.sizes.iter().copied().max() else {
        bail!("there is no length to send");
    };
    let mut stopwatch = Stopwatch::start(guest.now(), load)?;
    let mut sent = 0u64;
    let mut which = templates.iter().cycle();
    let mut next = which.next();
    while !stop.load(Ordering::Relaxed) {
        let (mut frames, mut bytes) = (0, 0);
        let mut is_full = false;
        while frames < BATCH
            && let Some((template, offloads)) = next
        {
            let draft = match sender.reserve(template.len()) {
                Ok(draft) => draft,
                Err(SendError::NoRoom) => {
                    is_full = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let written = if load.touch { template.len() } else { HEADERS };
            draft.write(0, &template[..written])?;
            let stamp = match sent % STAMPED {
                0 => guest.now().as_nanos(),
                _ => 0,
            };
            draft.write(HEADERS, &stamp.to_ne_bytes())?;
            draft.send(*offloads)?;
            sent += 1;
            frames += 1;
            bytes += template.len() as u64;
            next = which.next();
        }
        sender.flush();
        stopwatch.count(guest.now(), frames, bytes);
        if is_full && load.poll {
            std::hint::spin_loop();
            yield_now().await;
        } else if is_full {
            sender.room(longest).await?;
        } else {
            yield_now().await;
        }
    }
    Ok(stopwatch.finish())
}

/// Takes frames until the time is over.
///
/// # Errors
/// The interface's.
pub async fn receive<G: Guest>(
    guest: &G,
    receiver: &mut Receiver<G>,
    load: &Load,
) -> Result<Counted> {
    let mut stopwatch = Stopwatch::start(guest.now(), load)?;
    let mut buffer = vec![0; frames::LONGEST];
    loop {
        let (mut frames, mut bytes) = (0, 0);
        while frames < BATCH
            && let Some(frame) = receiver.try_receive()?
        {
            let mut stamp = [0; 8];
            frame.copy_to(HEADERS, &mut stamp);
            let stamp = u64::from_ne_bytes(stamp);
            if stamp != 0 && stopwatch.is_open() {
                let way = guest.now().since(Instant::from_nanos(stamp));
                let way = u64::try_from(way.as_nanos()).unwrap_or(u64::MAX);
                stopwatch.counted.latency.saturating_record(way);
            }
            if load.touch {
                frame.copy_to(0, &mut buffer);
            }
            frames += 1;
            bytes += frame.len() as u64;
        }
        receiver.flush();
        if stopwatch.count(guest.now(), frames, bytes) {
            return Ok(stopwatch.finish());
        }
        if frames == 0 && !load.poll {
            let mut ready = std::pin::pin!(std::future::poll_fn(|cx| receiver.poll_ready(cx)));
            // Should nothing come any more, the time is over some time all the same.
            let mut over = std::pin::pin!(guest.sleep_until(stopwatch.closes));
            std::future::poll_fn(|cx| match over.as_mut().poll(cx) {
                std::task::Poll::Ready(()) => std::task::Poll::Ready(Ok(())),
                std::task::Poll::Pending => ready.as_mut().poll(cx),
            })
            .await?;
        } else {
            yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_falls_into_the_time_counts_and_each_in_its_slice() {
        let load = Load {
            sizes: vec![64],
            touch: false,
            poll: false,
            warm_up: Duration::from_nanos(100),
            time: Duration::from_nanos(600),
        };
        let at = Instant::from_nanos;
        let mut stopwatch = Stopwatch::start(at(1000), &load).unwrap();
        // Begun before the warm-up was over.
        assert!(!stopwatch.count(at(1150), 5, 50));
        assert!(!stopwatch.count(at(1160), 7, 70));
        assert!(!stopwatch.count(at(1690), 1, 10));
        assert!(stopwatch.count(at(1700), 9, 90));
        let counted = stopwatch.finish();
        assert_eq!((counted.frames, counted.bytes), (8, 80));
        assert_eq!((counted.slices[6], counted.slices[59]), (7, 1));
        assert_eq!(counted.time, load.time);
    }
}
