//! A disk in the host's memory.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use parapet_hypervisor::host::{Lease, Ram};
use parapet_hypervisor::memory::OutOfView;

use super::{
    Access, Completion, Discard, Image, ImageQueue, Job, Limits, Operation, SECTOR_SIZE, Sectors,
    Submitted,
};

/// A RAM disk: zero at first, gone when the last user drops it. All queues see the same bytes.
#[derive(Debug, Clone)]
pub struct MemoryImage {
    ram: Arc<Ram>,
    access: Access,
}

impl MemoryImage {
    /// One of `sectors` sectors.
    ///
    /// # Errors
    /// The host's, when it has no such amount of memory.
    pub fn new(sectors: u64, access: Access) -> io::Result<Self> {
        let len = usize::try_from(sectors)
            .ok()
            .and_then(|sectors| sectors.checked_mul(SECTOR_SIZE))
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(MemoryImage {
            ram: Arc::new(Ram::new(len)?),
            access,
        })
    }

    fn run<L: Lease>(&self, operation: Operation, lease: &L) -> Result<(), OutOfView> {
        match operation {
            Operation::Read(sectors) => {
                let mut from = start(sectors);
                for target in lease.targets() {
                    self.ram.view().copy_to(from, target, 0, target.len())?;
                    from += target.len();
                }
                Ok(())
            }
            Operation::Write(sectors) => {
                let mut to = start(sectors);
                for source in lease.sources() {
                    source.copy_to(0, self.ram.view(), to, source.len())?;
                    to += source.len();
                }
                Ok(())
            }
            Operation::Flush => Ok(()),
            Operation::Discard { sectors, .. } => {
                let len = usize::try_from(sectors.bytes()).unwrap_or(usize::MAX);
                self.ram.view().slice(start(sectors), len)?.zero();
                Ok(())
            }
        }
    }
}

/// Within the disk, which is within memory; what is not would be refused by the view.
fn start(sectors: Sectors) -> usize {
    usize::try_from(sectors.offset()).unwrap_or(usize::MAX)
}

impl<L: Lease> Image<L> for MemoryImage {
    fn sectors(&self) -> u64 {
        (self.ram.view().len() / SECTOR_SIZE) as u64
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn physical_sector_size(&self) -> u32 {
        SECTOR_SIZE as u32
    }

    fn discard(&self) -> Option<Discard> {
        Some(Discard {
            granularity: SECTOR_SIZE as u32,
            alignment: 0,
            secure: false,
        })
    }

    fn open_queue(&self, _limits: Limits) -> io::Result<Box<dyn ImageQueue<L>>> {
        Ok(Box::new(self.clone()))
    }
}

impl<L: Lease> ImageQueue<L> for MemoryImage {
    fn submit(&mut self, job: Job<L>) -> Submitted<L> {
        let result = self.run(job.operation, &job.lease);
        Submitted::Done(Completion {
            tag: job.tag,
            result: result.map_err(io::Error::other),
            lease: job.lease,
        })
    }
}
