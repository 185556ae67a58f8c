//! What is known of every vif, live or ended, for others to look at.

use std::fmt;
use std::sync::Arc;

use parapet_backend::rate::Rate;
use parapet_backend::report;
pub use parapet_backend::report::{DeviceId, Stage};

use crate::drops::Drop;
use crate::negotiation::Agreed;
use crate::port::Vif;
use crate::stats::{QueueStats, Way};

/// What is known of a vif.
pub type Report = report::Report<About>;

/// Every vif that a [`Service`](crate::service::Service) has met. Clones are the same list.
pub type Reports = report::Reports<About>;

/// What is known of a vif beside what is known of every device.
#[derive(Debug, Clone)]
pub struct About {
    /// What the toolstack wants of it, as soon as it has its place on the network.
    pub vif: Option<Vif>,
    /// What was agreed on with the frontend that is, or was last, connected.
    pub connection: Option<Agreed>,
    /// How fast its guest may transmit, in bytes; nothing if there is no limit.
    pub rate: Option<Rate>,
    /// What its queues did, over all connections.
    pub stats: VifStats,
}

/// What the queues of one vif did since it was made. Clones look at the same numbers.
#[derive(Debug, Clone)]
pub struct VifStats(Arc<[Arc<QueueStats>]>);

impl VifStats {
    /// Of as many queues as there may be.
    pub(crate) fn new(queues: u32) -> Self {
        VifStats((0..queues.max(1)).map(|_| Arc::default()).collect())
    }

    /// Each queue, whether it was ever used or not.
    pub fn queues(&self) -> &[Arc<QueueStats>] {
        &self.0
    }

    /// A number of all queues together, as of now.
    pub fn sum(&self, of: impl Fn(&QueueStats) -> u64) -> u64 {
        self.0.iter().map(|queue| of(queue)).sum()
    }

    /// How many frames were dropped for this reason.
    pub fn dropped(&self, why: Drop) -> u64 {
        self.sum(|queue| queue.drops.of(why))
    }
}

/// The sum of it, for a line in a log.
impl fmt::Display for VifStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, way) in [
            ("sent", (|queue| &queue.tx) as fn(&QueueStats) -> &Way),
            ("received", |queue| &queue.rx),
        ] {
            let frames = self.sum(|queue| way(queue).packets.get());
            let bytes = self.sum(|queue| way(queue).bytes.get());
            write!(f, "{name} {frames} frames ({bytes} bytes), ")?;
        }
        write!(f, "{} dropped", self.sum(|queue| queue.drops.total()))?;
        for why in Drop::ALL {
            match self.dropped(why) {
                0 => {}
                frames => write!(f, ", {frames} {}", why.name())?,
            }
        }
        Ok(())
    }
}
