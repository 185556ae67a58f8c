//! The network as a vif sees it.
//!
//! ```text
//!   Network ── plug, when the toolstack makes a vif ──▶ Socket
//!                   Socket ── connect, when its frontend does ──▶ a Port for each queue
//! ```
//!
//! A [`Network`] is shared by all vifs on it. A [`Socket`] is one vif's place on it, for as long as
//! the toolstack wants the vif. A [`Port`] is owned by the task of one queue, and lives as long as
//! the frontend is connected.

pub mod cable;
pub mod generator;
pub mod guard;
pub mod null;
pub mod switch;
pub mod tap;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use parapet_hypervisor::seam::Grants;
use parapet_packet::Mac;
use parapet_xen_sys::DomId;

use crate::drops::Drops;
use crate::endpoint::Endpoint;
use crate::frame::Frame;

/// Which vif it is, and what the toolstack wants of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vif {
    /// The guest that has it.
    pub frontend: DomId,
    /// Which of the guest's.
    pub handle: u32,
    /// What it is called on the host: `vif5.0`.
    pub name: String,
    /// Its guest's Ethernet address.
    pub mac: Mac,
    /// The addresses that it may use, as texts; any if there are none.
    pub addresses: Vec<String>,
    /// The bridge that it is to be on, if it names one.
    pub bridge: Option<String>,
    /// The longest packet without its Ethernet header that the network takes, in bytes.
    pub mtu: u16,
    /// It may use no Ethernet address but its own, and no IP address but those above.
    pub locked: bool,
    /// It may not talk to other vifs that may not either.
    pub isolated: bool,
}

/// A network to plug vifs into.
pub trait Network<P: Grants>: Send + Sync + 'static {
    /// Gives a vif its place, when the toolstack has made it.
    ///
    /// # Errors
    /// The host does not give what it takes.
    fn plug(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>>;

    /// The same for a vif that a toolstack's script is going to name, to switch on and to join to
    /// what it is to be on, as far as that is done on the host.
    ///
    /// # Errors
    /// The same.
    fn plug_for_script(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        self.plug(vif)
    }
}

/// A vif's place on a network. Dropping it unplugs the vif.
pub trait Socket<P: Grants>: Send + 'static {
    /// Joins a connected frontend to the network: a port for each of its queues, in order. From
    /// now until the ports are dropped the network delivers to `endpoint`.
    ///
    /// # Errors
    /// The host does not give what it takes.
    fn connect(&mut self, endpoint: Arc<Endpoint<P>>) -> io::Result<Vec<Box<dyn Port<P>>>>;
}

/// One queue's way into the network, and out of it.
pub trait Port<P: Grants>: Send + 'static {
    /// Sends the guest's frames. It takes those out that somebody else gets; the ones that it
    /// leaves are done with, be it that the host has them or that they are dropped, which it counts
    /// in `drops`.
    fn send(&mut self, frames: &mut Vec<Frame<P>>, drops: &Drops);

    /// Gets up to `most` frames from outside the process that are for this queue, and puts them
    /// behind `into`. A network whose frames all come by the endpoint is always pending.
    ///
    /// Pending means that `cx` is woken when there may be some.
    ///
    /// # Errors
    /// The host took away what it had given.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Vec<Frame<P>>,
        most: usize,
    ) -> Poll<io::Result<()>>;

    /// Whether asking costs so much (a system call), or brings so little (never anything), that
    /// who looks busily should wait to be woken by it instead.
    fn is_quiet(&self) -> bool;
}
