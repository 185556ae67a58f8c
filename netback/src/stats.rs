//! What a queue did, readable while it runs.

use parapet_backend::counter::Counter;

use crate::capture::Capture;
use crate::drops::Drops;

/// Frames one way.
#[derive(Debug, Default)]
pub struct Way {
    /// Frames.
    pub packets: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Slots of the ring that they took, those of extra information included.
    pub slots: Counter,
    /// Frames that came to be cut into segments.
    pub gso: Counter,
    /// Frames whose slots were answered with an error.
    pub errors: Counter,
    /// Batches.
    pub batches: Counter,
    /// Notifications sent to the frontend.
    pub notifications: Counter,
}

/// What one queue did since its vif was made.
#[derive(Debug, Default)]
pub struct QueueStats {
    /// Frames from the guest that went to the network.
    pub tx: Way,
    /// Frames that the guest was given.
    pub rx: Way,
    /// Frames that were dropped.
    pub drops: Drops,
    /// Pages that were copied by grant, either way.
    pub copies: Counter,
    /// Checksums that were made here, since the guest does not take a frame without.
    pub sums: Counter,
    /// Segments that were cut here, since the guest does not take longer ones.
    pub segments: Counter,
    /// Frames of others that were copied aside, since the guest had no room for them.
    pub set_aside: Counter,
    /// How often the guest took nothing for so long that it counted as stalled.
    pub stalls: Counter,
    /// One while the guest is stalled.
    pub stalled: Counter,
    /// How often the queue went to sleep.
    pub sleeps: Counter,
    /// How often it had to wait because the vif's rate was used up.
    pub throttled: Counter,
    /// Events that brought nothing.
    pub spurious: Counter,
    /// Pages of the guest that are mapped because it asked for that, as of now.
    pub statics: Counter,
    /// Whether somebody captures its frames.
    pub capture: Capture,
}
