//! A queue whose jobs are done on threads, for disks that are reached by code that waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parapet_hypervisor::host::{self, Disk, Lease, Refused, Workers};

use super::{Completion, ImageQueue, Job, Limits, Submitted};

/// How many threads an image has at most for all of its queues. Each queue has one, whatever the
/// others have.
#[derive(Debug)]
pub(super) struct Threads {
    most: usize,
    taken: AtomicUsize,
}

impl Threads {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Threads {
            most,
            taken: AtomicUsize::new(0),
        })
    }

    /// Takes some, for a queue.
    fn take(self: Arc<Self>) -> Share {
        let wanted = self.most.div_ceil(2);
        let before = self.taken.fetch_add(wanted, Ordering::Relaxed);
        let count = self.most.saturating_sub(before).clamp(1, wanted);
        self.taken.fetch_sub(wanted - count, Ordering::Relaxed);
        Share {
            threads: self,
            count,
        }
    }
}

/// Some of an image's threads.
struct Share {
    threads: Arc<Threads>,
    count: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.threads.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// An engine on `disk`.
pub(super) struct Threaded<L: Lease> {
    workers: Workers<L>,
    /// Given back after they have ended: fields are dropped in this order.
    _share: Share,
}

impl<L: Lease> Threaded<L> {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        threads: &Arc<Threads>,
        limits: Limits,
    ) -> io::Result<Self> {
        let share = Arc::clone(threads).take();
        Ok(Threaded {
            workers: Workers::new(disk, share.count, limits.depth)?,
            _share: share,
        })
    }
}

impl<L: Lease> ImageQueue<L> for Threaded<L> {
    fn submit(&mut self, job: Job<L>) -> Submitted<L> {
        let Job {
            tag,
            operation,
            lease,
        } = job;
        match self
            .workers
            .start(tag, host::Operation::from(operation), lease)
        {
            Ok(()) => Submitted::Started,
            Err(Refused::Full(lease) | Refused::NoMemory(lease)) => Submitted::Full(Job {
                tag,
                operation,
                lease,
            }),
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        self.workers.submit();
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion<L>> {
        let host::Completion { tag, result, lease } = self.workers.complete()?;
        Some(Completion {
            tag,
            result: result.map(drop),
            lease,
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.workers.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_a_thread_and_all_together_not_many_more_than_may_be() {
        let threads = Threads::new(4);
        let mut shares: Vec<_> = (0..5).map(|_| Arc::clone(&threads).take()).collect();
        let counts: Vec<_> = shares.iter().map(|share| share.count).collect();
        assert_eq!(counts, [2, 2, 1, 1, 1]);
        shares.clear();
        assert_eq!(Arc::clone(&threads).take().count, 2);
    }
}
