//! What a frontend wants of its disks.

use parapet_hypervisor::seam::Guest;
use parapet_xenstore::client::Client;

use crate::connect::ConnectError;
use crate::disk::Disk;
use crate::queue::MAX_SEGMENTS;

/// What a frontend does when its backend goes away, and the toolstack has not taken the disk away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Away {
    /// Waits for it to come back, and asks again for what was not answered: the disk's users see
    /// a pause. As Linux's frontend does.
    #[default]
    Reconnect,
    /// Fails what was not answered, and the disk with it.
    Fail,
}

/// How a disk is to be connected. Whatever is asked for, there is no more of it than the backend
/// offers.
///
/// ```
/// use parapet_blkfront::Config;
///
/// let config = Config::new().queues(4).ring_order(3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub(crate) queues: u32,
    pub(crate) ring_order: u32,
    pub(crate) indirect_segments: usize,
    pub(crate) away: Away,
}

impl Default for Config {
    fn default() -> Self {
        Config::new()
    }
}

impl Config {
    /// One queue of 128 requests, of up to a mebibyte each, that survives its backend.
    pub const fn new() -> Self {
        Config {
            queues: 1,
            ring_order: 2,
            indirect_segments: MAX_SEGMENTS,
            away: Away::Reconnect,
        }
    }

    /// How many queues, each a task of its own: as many as there are processors to use the disk,
    /// and not more than a few. At least one is had.
    pub const fn queues(mut self, queues: u32) -> Self {
        self.queues = if queues == 0 { 1 } else { queues };
        self
    }

    /// The pages of each queue's ring as a power of two: 32 requests are under way in one page, 64
    /// in two and so on, up to 256 pages.
    pub const fn ring_order(mut self, order: u32) -> Self {
        self.ring_order = if order > 8 { 8 } else { order };
        self
    }

    /// The most segments, and so pages, of a request; with 11 or less there are no requests with
    /// their segments in pages of their own, which are a page for each slot of the ring.
    pub const fn indirect_segments(mut self, segments: usize) -> Self {
        self.indirect_segments = segments;
        self
    }

    /// What is done when the backend goes away.
    pub const fn when_backend_leaves(mut self, away: Away) -> Self {
        self.away = away;
        self
    }

    /// Connects the disk whose frontend directory is `path`: see [`Disk::connect`].
    ///
    /// # Errors
    /// As there.
    pub async fn connect<G: Guest>(
        &self,
        guest: &G,
        client: &Client,
        path: &str,
    ) -> Result<Disk<G>, ConnectError> {
        Disk::connect_with(guest, client, path, *self).await
    }
}
