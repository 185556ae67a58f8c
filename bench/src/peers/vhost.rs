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
    EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

/// Descriptors of a read: its header, its buffer, its status.
const DESCRIPTORS: usize = 3;

/// One queue of a connected device, with a buffer for each of its slots.
///
/// The fields are dropped in this order, which matters for the first four: the queue points into
/// memory of the transport, although its type does not say so, and the transport has told the
/// device of the buffers.
pub(super) struct VhostQueue {
    queue: VirtioBlkQueue<'static, usize>,
    _transport: Box<VirtioBlkTransport>,
    buffers: MmapRaw,
    _memfd: File,
    kick: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    block: usize,
    polls: bool,
    notifications: u64,
}

impl VhostQueue {
    /// Connects to the device's socket and sets up one queue and the buffers for a workload.
    pub(super) fn connect(socket: &str, workload: &Workload, polls: bool) -> Result<Self> {
        // With the event index the daemon is notified ten times less on the same core, and takes
        // half the CPU time; without it, it does better only when split and evented, deep queue.
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let mut transport: Box<VirtioBlkTransport> = Box::new(
            VhostUser::new(socket, features.bits()).context("the vhost-user handshake failed")?,
        );
        let size = u16::try_from((workload.depth * DESCRIPTORS).next_power_of_two())?;
        let mut queue = VirtioBlkQueue::setup_queues(&mut *transport, 1, size)
            .context("setting up the virtqueue failed")?
            .pop()
            .context("no queue was set up")?;

        let block = usize::try_from(workload.block)?;
        let length = block * workload.depth;
        let memfd = File::from(memfd_create("bench-buffers", MFdFlags::MFD_CLOEXEC)?);
        memfd.set_len(u64::try_from(length)?)?;
        let buffers = MmapRaw::map_raw(&memfd).context("mapping the buffers")?;
        transport
            .map_mem_region(buffers.as_mut_ptr() as usize, length, memfd.as_raw_fd(), 0)
            .context("sharing the buffers with the device failed")?;

        queue.set_used_notif_enabled(false);
        Ok(Self {
            queue,
            kick: transport.get_submission_notifier(0),
            call: transport.get_completion_fd(0),
            _transport: transport,
            buffers,
            _memfd: memfd,
            block,
            polls,
            notifications: 0,
        })
    }

    /// Takes the device's notifications, if there are any; the device has made the eventfd
    /// non-blocking for both sides.
    fn take_calls(&mut self) -> Result<()> {
        match self.call.read() {
            Ok(count) => self.notifications += count,
            Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {}
            Err(error) => return Err(error).context("reading the completion eventfd"),
        }
        Ok(())
    }

    /// Sleeps until the device notifies, unless it completed something while we asked it to.
    fn sleep(&mut self) -> Result<()> {
        self.queue.set_used_notif_enabled(true);
        if !self.queue.completions().has_next() {
            let patience = PollTimeout::try_from(STALL)?;
            let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, patience) {
                Ok(0) => bail!("no completion for {} s", STALL.as_secs()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.take_calls()?;
        }
        self.queue.set_used_notif_enabled(false);
        Ok(())
    }

    /// Reads the ring until the device has completed something.
    fn spin(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            for _ in 0..1 << 16 {
                if self.queue.completions().has_next() {
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
        // SAFETY: `buffer` and the `block` bytes after it lie in the mapping `buffers`, as just
        // checked; it stays mapped for as long as `queue` lives (both are fields of `self`), and
        // nobody in this process makes a reference to it, so the device may write it at any time.
        unsafe { self.queue.read_raw(offset, buffer, self.block, slot) }
            .context("queueing a read failed")
    }

    fn kick(&mut self) -> Result<()> {
        if self.queue.avail_notif_needed() {
            self.kick.notify().context("notifying the device failed")?;
            self.notifications += 1;
        }
        Ok(())
    }

    async fn reap(&mut self, done: &mut Vec<usize>) -> Result<()> {
        loop {
            for completion in self.queue.completions() {
                if completion.ret != 0 {
                    bail!("a read failed: {}", Errno::from_raw(-completion.ret));
                }
                done.push(completion.context);
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
