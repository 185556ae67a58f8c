//! What a queue did, readable while it runs.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
pub use parapet_backend::counter::Counter;

/// Latencies, in buckets at most 1/16 wide of what they hold.
#[derive(Debug)]
pub struct Latencies(Box<[Counter]>);

/// Buckets for each power of two.
const STEPS: u64 = 16;
/// Bits in which the bucket's number within a power of two is told.
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Powers of two: up to 2^40 ns, eighteen minutes.
const POWERS: usize = 37;

impl Default for Latencies {
    fn default() -> Self {
        let count = POWERS * STEPS as usize;
        Latencies((0..count).map(|_| Counter::default()).collect())
    }
}

impl Latencies {
    #[inline]
    fn bucket(nanos: u64) -> usize {
        // Below STEPS a bucket a nanosecond; above, the leading bit and STEP_BITS more.
        let shift = (63 - (nanos | STEPS).leading_zeros()) - STEP_BITS;
        (u64::from(shift) * STEPS + (nanos >> shift)) as usize
    }

    /// The middle of a bucket.
    fn middle(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < STEPS {
            return bucket;
        }
        let shift = bucket / STEPS - 1;
        ((bucket % STEPS + STEPS) << shift) + (1 << shift) / 2
    }

    #[inline]
    pub(crate) fn record(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let bucket = Self::bucket(nanos).min(self.0.len() - 1);
        if let Some(counter) = self.0.get(bucket) {
            counter.add(1);
        }
    }

    /// Adds what was recorded to a histogram of nanoseconds; what it cannot hold counts as the
    /// longest that it can.
    pub fn add_to(&self, histogram: &mut Histogram<u64>) {
        for (bucket, counter) in self.0.iter().enumerate() {
            let count = counter.get();
            let nanos = Self::middle(bucket);
            if count > 0 && histogram.record_n(nanos, count).is_err() {
                histogram.saturating_record_n(nanos, count);
            }
        }
    }
}

/// One kind of operation.
#[derive(Debug, Default)]
pub struct Kind {
    /// How many succeeded.
    pub operations: Counter,
    /// Bytes in these.
    pub bytes: Counter,
    /// How many failed, by the host's fault or because memory could not be mapped.
    pub errors: Counter,
    /// From when a request was taken off the ring until its response was made.
    pub latencies: Latencies,
}

/// What one queue did since its device was made.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Reads.
    pub reads: Kind,
    /// Writes.
    pub writes: Kind,
    /// Flushes.
    pub flushes: Kind,
    /// Discards.
    pub discards: Kind,
    /// Requests that asked for what cannot be.
    pub refused: Counter,
    /// Notifications sent to the frontend.
    pub notifications: Counter,
    /// How often the queue went to sleep.
    pub sleeps: Counter,
    /// How often it had to wait because the disk's rate was used up.
    pub throttled: Counter,
    /// Events that brought no request.
    pub spurious: Counter,
    /// Grants that had to be mapped.
    pub maps: Counter,
    /// Pages of the frontend that stay mapped between requests, as of now.
    pub persistent_pages: Counter,
    /// The errno of the host's latest failure, and zero if there was none.
    pub(crate) host_error: AtomicI32,
}

impl Kind {
    /// Adds what `other` counted.
    fn add(&self, other: &Kind) {
        let Kind {
            operations,
            bytes,
            errors,
            latencies,
        } = other;
        self.operations.add(operations.get());
        self.bytes.add(bytes.get());
        self.errors.add(errors.get());
        for (sum, counter) in self.latencies.0.iter().zip(&latencies.0) {
            sum.add(counter.get());
        }
    }
}

/// What the queues of one disk did since it was made. Clones look at the same numbers.
#[derive(Debug, Clone)]
pub struct DiskStats(Arc<[Arc<QueueStats>]>);

impl DiskStats {
    /// Of as many queues as there may be.
    pub fn new(queues: u32) -> Self {
        DiskStats((0..queues.max(1)).map(|_| Arc::default()).collect())
    }

    /// Each queue, whether it was ever used or not.
    pub fn queues(&self) -> &[Arc<QueueStats>] {
        &self.0
    }

    /// All together, as of now.
    pub fn sum(&self) -> QueueStats {
        let sum = QueueStats::default();
        for queue in self.0.iter() {
            sum.count(queue);
        }
        sum
    }
}

impl QueueStats {
    /// Adds what `other` counted.
    fn count(&self, other: &QueueStats) {
        let QueueStats {
            reads,
            writes,
            flushes,
            discards,
            refused,
            notifications,
            sleeps,
            throttled,
            spurious,
            maps,
            persistent_pages,
            host_error,
        } = other;
        self.reads.add(reads);
        self.writes.add(writes);
        self.flushes.add(flushes);
        self.discards.add(discards);
        self.refused.add(refused.get());
        self.notifications.add(notifications.get());
        self.sleeps.add(sleeps.get());
        self.throttled.add(throttled.get());
        self.spurious.add(spurious.get());
        self.maps.add(maps.get());
        self.persistent_pages.add(persistent_pages.get());
        let errno = host_error.load(Ordering::Relaxed);
        if errno != 0 {
            self.host_error.store(errno, Ordering::Relaxed);
        }
    }

    /// Why the host failed a request most recently, if it ever did.
    pub fn host_error(&self) -> Option<io::Error> {
        let errno = self.host_error.load(Ordering::Relaxed);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }
}

/// The sum of it, for a line in a log.
impl fmt::Display for QueueStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [&self.reads, &self.writes, &self.flushes, &self.discards];
        let errors: u64 = kinds.iter().map(|kind| kind.errors.get()).sum();
        write!(
            f,
            "{} reads ({} bytes), {} writes ({} bytes), {} flushes, {} discards ({} bytes), \
             {errors} errors, {} refused",
            self.reads.operations.get(),
            self.reads.bytes.get(),
            self.writes.operations.get(),
            self.writes.bytes.get(),
            self.flushes.operations.get(),
            self.discards.operations.get(),
            self.discards.bytes.get(),
            self.refused.get(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_come_out_as_they_went_in() {
        let latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }
        let mut histogram = Histogram::new(3).unwrap();
        latencies.add_to(&mut histogram);
        assert_eq!(histogram.len(), 1000);
        for (percentile, nanos) in [(50.0, 500_000), (99.0, 990_000)] {
            let seen = histogram.value_at_percentile(percentile);
            assert!(seen.abs_diff(nanos) <= nanos / 16, "{percentile}: {seen}");
        }
    }

    #[test]
    fn the_longest_latency_has_a_bucket() {
        let latencies = Latencies::default();
        latencies.record(Duration::MAX);
        latencies.record(Duration::ZERO);
        let mut histogram = Histogram::new(3).unwrap();
        latencies.add_to(&mut histogram);
        assert_eq!(histogram.len(), 2);
    }

    #[test]
    fn a_disks_numbers_are_those_of_its_queues_together() {
        let disk = DiskStats::new(3);
        for (number, queue) in disk.queues().iter().enumerate() {
            let number = number as u64;
            queue.reads.operations.add(number);
            queue.reads.latencies.record(Duration::from_micros(number));
            queue.discards.bytes.add(512 * number);
            queue.persistent_pages.set(7);
        }
        disk.queues()[1].host_error.store(5, Ordering::Relaxed);
        let sum = disk.sum();
        assert_eq!(sum.reads.operations.get(), 3);
        assert_eq!(sum.discards.bytes.get(), 3 * 512);
        assert_eq!(sum.persistent_pages.get(), 21);
        let mut histogram = Histogram::new(3).unwrap();
        sum.reads.latencies.add_to(&mut histogram);
        assert_eq!(histogram.len(), 3);
        assert_eq!(sum.host_error().and_then(|e| e.raw_os_error()), Some(5));
    }

    proptest! {
        #[test]
        fn a_bucket_is_near_what_it_holds(nanos in 0u64..1 << 40) {
            let bucket = Latencies::bucket(nanos);
            prop_assert!(bucket < POWERS * STEPS as usize);
            let middle = Latencies::middle(bucket);
            prop_assert!(middle.abs_diff(nanos) <= nanos / STEPS, "{} {}", bucket, middle);
        }
    }
}
