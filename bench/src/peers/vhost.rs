//! The driver's end of a vhost-user-blk device, on the crate `virtio-driver`: a [`Queue`] as good
//! as that crate allows, so that the peer is measured and not its client.
//!
//! The only file of this crate with `unsafe` in it: the buffers are shared with another process,
//! so they exist as addresses only and never as a slice.
#![allow(unsafe_code)]

use crate::measure::{Queue, STALL};
use crate::workload::Workload;
use anyhow::{Context, Result, bail};
use memmap2::MmapRaw;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

/// Descriptors of a read: its header, its buffer, its status.
const DESCRIPTORS: usize = 3;

/// The queues of a connected device, with a buffer for each of their slots.
///
/// The fields are dropped in this order, which matters for the first four: the queues point into
/// memory of the transport, although their type does not say so, and the transport has told the
/// device of the buffers.
pub(super) struct VhostQueue {
    /// A slot is served by the queue that is its number modulo theirs.
    lanes: Vec<Lane>,
    _transport: Box<VirtioBlkTransport>,
    buffers: MmapRaw,
    _memfd: File,
    block: usize,
    polls: bool,
    notifications: u64,
}

struct Lane {
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
}

impl VhostQueue {
    /// Connects to the device's socket and sets up the queues and the buffers for a workload.
    pub(super) fn connect(socket: &str, workload: &Workload, polls: bool) -> Result<Self> {
        // With the event index the daemon is notified ten times less on the same core, and takes
        // half the CPU time; without it, it does better only when split and evented, deep queue.
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let several = match workload.queues {
            1 => VirtioBlkFeatureFlags::empty(),
            _ => VirtioBlkFeatureFlags::MQ,
        };
        let mut transport: Box<VirtioBlkTransport> = Box::new(
            VhostUser::new(socket, features.bits() | several.bits())
                .context("the vhost-user handshake failed")?,
        );
        let size = u16::try_from((workload.depth * DESCRIPTORS).next_power_of_two())?;
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, workload.queues, size)
            .context("setting up the virtqueues failed")?;

        let block = usize::try_from(workload.block)?;
        let length = block * workload.depth * workload.queues;
        let memfd = File::from(memfd_create("bench-buffers", MFdFlags::MFD_CLOEXEC)?);
        memfd.set_len(u64::try_from(length)?)?;
        let buffers = MmapRaw::map_raw(&memfd).context("mapping the buffers")?;
        transport
            .map_mem_region(buffers.as_mut_ptr() as usize, length, memfd.as_raw_fd(), 0)
            .context("sharing the buffers with the device failed")?;

        let lanes = queues.into_iter().enumerate().map(|(index, mut queue)| {
            queue.set_used_notif_enabled(false);
            Lane {
                queue,
                kick: transport.get_submission_notifier(index),
                call: transport.get_completion_fd(index),
            }
        });
        Ok(Self {
            lanes: lanes.collect(),
            _transport: transport,
            buffers,
            _memfd: memfd,
            block,
            polls,
            notifications: 0,
        })
    }

    /// Takes the device's notifications, if there are any; the device has made the eventfds
    /// non-blocking for both sides.
    fn take_calls(&mut self) -> Result<()> {
        for lane in &self.lanes {
            match lane.call.read() {
                Ok(count) => self.notifications += count,
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {}
                Err(error) => return Err(error).context("reading the completion eventfd"),
            }
        }
        Ok(())
    }

    fn want_calls(&mut self, wanted: bool) {
        for lane in &mut self.lanes {
            lane.queue.set_used_notif_enabled(wanted);
        }
    }

    fn has_completions(&mut self) -> bool {
        let mut lanes = self.lanes.iter_mut();
        lanes.any(|lane| lane.queue.completions().has_next())
    }

    /// Sleeps until the device notifies, unless it completed something while we asked it to.
    fn sleep(&mut self) -> Result<()> {
        self.want_calls(true);
        if !self.has_completions() {
            let patience = PollTimeout::try_from(STALL)?;
            let mut fds: Vec<_> = self
                .lanes
                .iter()
                .map(|lane| PollFd::new(lane.call.as_fd(), PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, patience) {
                Ok(0) => bail!("no completion for {} s", STALL.as_secs()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.take_calls()?;
        }
        self.want_calls(false);
        Ok(())
    }

    /// Reads the rings until the device has completed something.
    fn spin(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            for _ in 0..1 << 16 {
                if self.has_completions() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if begin.elapsed() > STALL {
                bail!("no completion for {} s", STALL.as_secs());
            }
        }
    }
}

impl Queue for VhostQueue {
    fn submit(&mut self, slot: usize, offset: u64) -> Result<()> {
        let start = slot * self.block;
        anyhow::ensure!(
            start + self.block <= self.buffers.len(),
            "slot {slot} has no buffer"
        );
        let buffer = self.buffers.as_mut_ptr().wrapping_add(start);
        let lane = slot % self.lanes.len();
        // SAFETY: `buffer` and the `block` bytes after it lie in the mapping `buffers`, as just
        // checked; it stays mapped for as long as the queues live (both are fields of `self`), and
        // nobody in this process makes a reference to it, so the device may write it at any time.
        unsafe {
            self.lanes[lane]
                .queue
                .read_raw(offset, buffer, self.block, slot)
        }
        .context("queueing a read failed")
    }

    fn kick(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            if lane.queue.avail_notif_needed() {
                lane.kick.notify().context("notifying the device failed")?;
                self.notifications += 1;
            }
        }
        Ok(())
    }

    async fn reap(&mut self, done: &mut Vec<usize>) -> Result<()> {
        loop {
            for lane in &mut self.lanes {
                for completion in lane.queue.completions() {
                    if completion.ret != 0 {
                        bail!("a read failed: {}", Errno::from_raw(-completion.ret));
                    }
                    done.push(completion.context);
                }
            }
            if !done.is_empty() {
                return Ok(());
            }
            if self.polls {
                self.spin()?
            } else {
                self.sleep()?
            }
        }
    }

    fn notifications(&mut self) -> Option<u64> {
        self.take_calls().ok()?;
        Some(self.notifications)
    }
}
