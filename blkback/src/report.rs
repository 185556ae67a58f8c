//! What is known of every vbd, live or ended, for others to look at.

use std::fmt;

use parapet_backend::report;
pub use parapet_backend::report::Stage;

use crate::image::Access;
use crate::negotiation::{Protocol, Rates};
use crate::stats::DiskStats;

/// A vbd: whose it is, and the number that the toolstack gave it (202 << 8 for `xvda`).
pub type Vbd = report::DeviceId;

/// What is known of a vbd.
pub type Report = report::Report<About>;

/// Every vbd that a [`Service`](crate::service::Service) has met. Clones are the same list.
pub type Reports = report::Reports<About>;

/// What is known of a vbd beside what is known of every device.
#[derive(Debug, Clone)]
pub struct About {
    /// What it is kept in, as soon as that is open.
    pub disk: Option<Disk>,
    /// What was agreed on with the frontend that is, or was last, connected.
    pub connection: Option<Connection>,
    /// How fast it may be used.
    pub rates: Rates,
    /// What its queues did, over all connections.
    pub stats: DiskStats,
}

impl About {
    /// A disk that may have so many queues, of which nothing else is known.
    pub(crate) fn new(queues: u32) -> Self {
        About {
            disk: None,
            connection: None,
            rates: Rates::default(),
            stats: DiskStats::new(queues),
        }
    }
}

/// What a disk is kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image, as the toolstack named it.
    pub image: String,
    /// What may be done with it.
    pub access: Access,
    /// Its size in units of 512 bytes.
    pub sectors: u64,
}

/// What a frontend and its backend agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// How slots are laid out.
    pub protocol: Protocol,
    /// How many queues there are.
    pub queues: usize,
    /// Pages in the ring of each.
    pub ring_pages: usize,
    /// Whether pages stay mapped between requests.
    pub persistent: bool,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.ring_pages;
        let (s, stay) = (if pages == 1 { "" } else { "s" }, self.persistent);
        let grants = if stay { "persistent" } else { "transient" };
        match self.queues {
            1 => write!(f, "{}, a ring", self.protocol)?,
            queues => write!(f, "{}, {queues} queues, each a ring", self.protocol)?,
        }
        write!(f, " of {pages} page{s}, {grants} grants")
    }
}
