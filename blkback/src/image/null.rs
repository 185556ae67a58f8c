//! A disk with no data behind it.

use std::io;

use parapet_hypervisor::host::Lease;

use super::{Completion, Image, ImageQueue, Job, Limits, SECTOR_SIZE, Submitted};

/// A disk to measure everything else with: reads are done at once and leave the memory as it was
/// (as QEMU's null-co does with `read-zeroes=off`), writes are dropped.
#[derive(Debug, Clone, Copy)]
pub struct NullImage {
    sectors: u64,
}

impl NullImage {
    /// One of `sectors` sectors.
    pub fn new(sectors: u64) -> Self {
        NullImage { sectors }
    }
}

impl<L: Lease> Image<L> for NullImage {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_only(&self) -> bool {
        false
    }

    fn physical_sector_size(&self) -> u32 {
        SECTOR_SIZE as u32
    }

    fn open_queue(&self, _limits: Limits) -> io::Result<Box<dyn ImageQueue<L>>> {
        Ok(Box::new(*self))
    }
}

impl<L: Lease> ImageQueue<L> for NullImage {
    fn submit(&mut self, job: Job<L>) -> Submitted<L> {
        Submitted::Done(Completion {
            tag: job.tag,
            result: Ok(()),
            lease: job.lease,
        })
    }
}
