//! The bare notification: two threads that wake each other through a pair of eventfds and do
//! nothing else. A pair of halves at queue depth 1, evented, cannot be faster than this by more
//! than what it saves in system calls.

use crate::contender::{Contender, Standing};
use crate::measure::{CpuScope, Queue, Sample, closed_loop};
use crate::placement::{Cores, Placement, pin};
use crate::workload::{Disk, Workload};
use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Pid, gettid};
use parapet_hypervisor::block_on;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

/// The contender `eventfd round trip`. A "request" is one round trip.
#[derive(Debug)]
pub(crate) struct RoundTrip;

impl Contender for RoundTrip {
    fn name(&self) -> &'static str {
        "eventfd round trip"
    }

    fn standing(&self) -> Standing {
        Standing::Floor
    }

    fn serves(&self, workload: &Workload, _: Placement) -> bool {
        matches!(workload.disk, Disk::Null { .. }) && workload.depth == 1
    }

    fn run(&mut self, workload: &Workload, placement: Placement, cores: Cores) -> Result<Sample> {
        // A round trip carries no payload.
        let workload = Workload {
            block: 0,
            ..workload.clone()
        };
        let polls = placement.polls();
        let flags = if polls {
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK
        } else {
            EfdFlags::EFD_CLOEXEC
        };
        let there = EventFd::from_value_and_flags(0, flags)?;
        let back = EventFd::from_value_and_flags(0, flags)?;
        let over = AtomicBool::new(false);
        let (tell_tid, echo_tid) = mpsc::channel::<Result<Pid>>();

        pin(cores.front)?;
        thread::scope(|scope| {
            let echo = scope.spawn(|| -> Result<()> {
                // A new thread inherits the front's CPU.
                let pinned = pin(cores.back);
                let ready = pinned.is_ok();
                tell_tid.send(pinned.map(|()| gettid()))?;
                if ready {
                    loop {
                        wait(&there, polls)?;
                        if over.load(Ordering::Acquire) {
                            break;
                        }
                        back.write(1)?;
                    }
                }
                Ok(())
            });
            let echo_tid = echo_tid.recv()??;
            let cpu = CpuScope::new().thread(gettid()).thread(echo_tid);
            let mut queue = PingPong {
                there: &there,
                back: &back,
                polls,
                notifications: 0,
            };
            let sample = block_on(closed_loop(&mut queue, &workload, &cpu));
            let sample = sample.map(|counted| counted.sample(workload.block));
            over.store(true, Ordering::Release);
            there.write(1)?;
            match echo.join() {
                Ok(ended) => ended?,
                Err(_) => bail!("the echoing thread panicked"),
            }
            sample
        })
    }
}

/// Takes the count off an eventfd: sleeps for it, or reads until it is there.
fn wait(fd: &EventFd, polls: bool) -> Result<u64> {
    loop {
        match fd.read() {
            Ok(count) => return Ok(count),
            Err(Errno::EAGAIN) if polls => std::hint::spin_loop(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

struct PingPong<'a> {
    there: &'a EventFd,
    back: &'a EventFd,
    polls: bool,
    notifications: u64,
}

impl Queue for PingPong<'_> {
    fn submit(&mut self, _slot: usize, _offset: u64) -> Result<()> {
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        self.there.write(1)?;
        self.notifications += 1;
        Ok(())
    }

    async fn reap(&mut self, done: &mut Vec<usize>) -> Result<()> {
        self.notifications += wait(self.back, self.polls)?;
        done.push(0);
        Ok(())
    }

    fn notifications(&mut self) -> Option<u64> {
        Some(self.notifications)
    }
}
