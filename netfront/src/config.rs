//! What a frontend wants of its interfaces, and what the two halves can do for each other.

use parapet_hypervisor::seam::Guest;
use parapet_packet::{Checksum, GsoKind, Offloads};
use parapet_xenstore::client::{self, Client};
use parapet_xenstore::xenbus::{self, Keys};

use crate::connect::ConnectError;
use crate::error::{LONGEST, Unfit};
use crate::interface::Interface;
use crate::queue::Queue;

/// What a frontend does when its backend goes away, and the toolstack has not taken the interface
/// away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Away {
    /// Waits for it to come back; what was under way is lost, as frames may be.
    #[default]
    Reconnect,
    /// Ends the interface.
    Fail,
}

/// What one half can take of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Frames of more than one page.
    pub scatter: bool,
    /// TCP over IPv4 to be cut into segments.
    pub gso_v4: bool,
    /// TCP over IPv6 to be cut into segments.
    pub gso_v6: bool,
    /// TCP and UDP over IPv4 with the checksum left to be made.
    pub checksum_v4: bool,
    /// TCP and UDP over IPv6 with the checksum left to be made.
    pub checksum_v6: bool,
}

impl Features {
    /// All of them.
    pub const ALL: Features = Features {
        scatter: true,
        gso_v4: true,
        gso_v6: true,
        checksum_v4: true,
        checksum_v6: true,
    };

    /// None of them: short frames, as they are on the wire.
    pub const NONE: Features = Features {
        scatter: false,
        gso_v4: false,
        gso_v6: false,
        checksum_v4: false,
        checksum_v6: false,
    };

    /// What an end says in its directory, by the keys of `io/netif.h`.
    pub(crate) async fn read(keys: &Keys) -> Result<Self, xenbus::Error> {
        Ok(Features {
            scatter: keys.get_or("feature-sg", false).await?,
            gso_v4: keys.get_or("feature-gso-tcpv4", false).await?,
            gso_v6: keys.get_or("feature-gso-tcpv6", false).await?,
            checksum_v4: !keys.get_or("feature-no-csum-offload", false).await?,
            checksum_v6: keys.get_or("feature-ipv6-csum-offload", false).await?,
        }
        .consistent())
    }

    pub(crate) async fn write(&self, keys: &Keys) -> Result<(), client::Error> {
        let features = [
            ("feature-sg", self.scatter),
            ("feature-gso-tcpv4", self.gso_v4),
            ("feature-gso-tcpv6", self.gso_v6),
            ("feature-no-csum-offload", !self.checksum_v4),
            ("feature-ipv6-csum-offload", self.checksum_v6),
        ];
        for (key, value) in features {
            keys.set(key, u8::from(value)).await?;
        }
        Ok(())
    }

    /// Segments need checksums of their own, and to be long enough to be worth it.
    pub(crate) const fn consistent(self) -> Self {
        Features {
            gso_v4: self.gso_v4 && self.scatter && self.checksum_v4,
            gso_v6: self.gso_v6 && self.scatter && self.checksum_v6,
            ..self
        }
    }

    /// The longest frame, in bytes.
    pub const fn longest(&self) -> usize {
        if self.scatter {
            LONGEST
        } else {
            parapet_hypervisor::memory::PAGE_SIZE
        }
    }

    /// Whether a frame can be sent with that left to be done to it.
    #[inline]
    pub(crate) fn take(&self, offloads: Offloads) -> Result<(), Unfit> {
        let segments = match offloads.gso {
            None => true,
            Some(gso) => match gso.kind {
                GsoKind::TcpV4 => self.gso_v4,
                GsoKind::TcpV6 => self.gso_v6,
            },
        };
        // Of which protocol it is we do not look.
        let sums = offloads.checksum != Checksum::Blank || self.checksum_v4 || self.checksum_v6;
        if segments && sums {
            Ok(())
        } else {
            Err(Unfit::Offload)
        }
    }
}

/// How an interface is to be connected. Whatever is asked for, there is no more of it than the
/// backend offers.
///
/// ```
/// use parapet_netfront::{Config, Features};
///
/// let config = Config::new().queues(4).takes(Features { gso_v6: false, ..Features::ALL });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub(crate) queues: u32,
    pub(crate) split_channels: bool,
    pub(crate) static_grants: bool,
    pub(crate) takes: Features,
    pub(crate) multicast_control: bool,
    pub(crate) mtu: Option<u16>,
    pub(crate) away: Away,
}

impl Default for Config {
    fn default() -> Self {
        Config::new()
    }
}

impl Config {
    /// One queue, with all that the two halves can do for each other.
    pub const fn new() -> Self {
        Config {
            queues: 1,
            split_channels: true,
            static_grants: true,
            takes: Features::ALL,
            multicast_control: false,
            mtu: None,
            away: Away::Reconnect,
        }
    }

    /// How many queues, each to be used by tasks of its own. At least one is had.
    pub const fn queues(mut self, queues: u32) -> Self {
        self.queues = if queues == 0 { 1 } else { queues };
        self
    }

    /// Whether each queue has two event channels, one for each direction, or one for both.
    pub const fn split_channels(mut self, split: bool) -> Self {
        self.split_channels = split;
        self
    }

    /// Whether the backend is asked to keep all our pages mapped, instead of mapping and copying
    /// them by their grants, frame by frame.
    pub const fn static_grants(mut self, statics: bool) -> Self {
        self.static_grants = statics;
        self
    }

    /// What we take of the backend.
    pub const fn takes(mut self, features: Features) -> Self {
        self.takes = features.consistent();
        self
    }

    /// Whether multicast frames come only to groups that were joined (`Sender::join`), if the
    /// backend can tell; otherwise all of them come.
    pub const fn multicast_control(mut self, control: bool) -> Self {
        self.multicast_control = control;
        self
    }

    /// The longest packet without its Ethernet header, in bytes, whatever the toolstack says.
    pub const fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// What is done when the backend goes away.
    pub const fn when_backend_leaves(mut self, away: Away) -> Self {
        self.away = away;
        self
    }

    /// Connects the interface whose frontend directory is `path`, as `device/vif/0`. It waits as
    /// long as the backend takes to come, and before that for an earlier connection to end.
    ///
    /// What comes back is the interface as a whole, and its queues: at least one.
    ///
    /// # Errors
    /// [`ConnectError`]. The frontend is closed then, with the reason under `error` in the
    /// domain's directory.
    pub async fn connect<G: Guest>(
        &self,
        guest: &G,
        client: &Client,
        path: &str,
    ) -> Result<(Interface<G>, alloc::vec::Vec<Queue<G>>), ConnectError> {
        Interface::connect_with(guest, client, path, *self).await
    }
}
