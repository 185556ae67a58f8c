//! A learning switch in this process: frames go from guest to guest without a system call, and
//! without a copy of the switch's own.
//!
//! ```text
//!   vif ─ queue ─▶ Lane ── guard: may it say this?  ── cache: who is that? ──▶ Endpoint of
//!                            (locked vifs)                │ not known           the other vif
//!                                                         ▼
//!                                                   Table, locked ── nobody: a copy for each
//! ```
//!
//! Each queue of a vif has a lane of its own, which decides by what it remembers of the table: one
//! number, read once a batch, says whether that still holds. The table is locked to look up who is
//! not remembered, and for frames to all.
//!
//! * Stations are learned by address and VLAN, and forgotten when they say nothing ([`Table`]). A
//!   vif's own address is never learned elsewhere, and a vif has no more than its share of the
//!   table, whatever addresses it makes up.
//! * A vif on a bridge `NAME.VLAN` (as Xen's Open vSwitch script has it) is in that VLAN, and sends
//!   and gets frames without a tag; one with no VLAN sends and gets what tags it likes.
//! * Isolated vifs do not reach each other, locked ones send from their own addresses only
//!   ([`Guard`]).
//! * An uplink ([`Switch::uplink`]) leads to other networks, by a [`cable`](super::cable).

mod lane;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use parapet_hypervisor::seam::{Clock, Grants, Identity};
use parapet_packet::Mac;

use super::guard::Guard;
use super::{Network, Port, Socket, Vif};
use crate::drops::{self, Drops};
use crate::endpoint::Endpoint;

pub use table::{Found, Learned, MacInUse, Memory, Place, Slot, Station, Table};

use lane::Lane;

/// What a switch asks of the place that it runs in.
pub trait Seam: Grants + Clock + Identity + Clone + Send + Sync + Unpin + 'static {}

impl<T: Grants + Clock + Identity + Clone + Send + Sync + Unpin + 'static> Seam for T {}

/// The switch. Clones are the same.
pub struct Switch<P: Seam>(Arc<Shared<P>>);

impl<P: Seam> Clone for Switch<P> {
    fn clone(&self) -> Self {
        Switch(Arc::clone(&self.0))
    }
}

struct Shared<P: Seam> {
    place: P,
    /// How long a station is believed that says nothing.
    age: Duration,
    core: Mutex<Core<P>>,
    /// The core's, to be read without its lock.
    changes: AtomicU64,
    stats: Stats,
}

struct Core<P: Seam> {
    table: Table,
    /// By slot. Lanes keep the one that they know, so it is replaced and never changed.
    members: Arc<[Option<Member<P>>]>,
}

/// What a lane needs to know of a port.
struct Member<P: Seam> {
    name: Arc<str>,
    /// None while its frontend is not connected.
    endpoint: Option<Arc<Endpoint<P>>>,
    isolated: bool,
    /// The VLAN that it is in; none if it has frames of all.
    vlan: Option<u16>,
}

impl<P: Seam> Clone for Member<P> {
    fn clone(&self) -> Self {
        Member {
            name: Arc::clone(&self.name),
            endpoint: self.endpoint.clone(),
            isolated: self.isolated,
            vlan: self.vlan,
        }
    }
}

/// What a switch has done that no vif's own numbers show.
#[derive(Debug, Default)]
pub struct Stats {
    /// Frames whose source was not learned, since too many were: somebody floods the table.
    pub unlearned: AtomicU64,
    /// Frames that went to all, be it that they are for all, or that nobody knows whom they are
    /// for.
    pub flooded: AtomicU64,
    /// Copies that were made of those.
    pub copies: AtomicU64,
    /// Copies of those that did not get to one of the receivers, and why. Of each such frame at
    /// least one got somewhere.
    pub lost: Drops,
}

/// A station, in a list for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its address.
    pub mac: Mac,
    /// The VLAN that it was heard in; none for a vif's own address, which is the same in all.
    pub vlan: Option<u16>,
    /// The port that it is behind: a vif's name, or the uplink's.
    pub port: Arc<str>,
}

impl<P: Seam> Switch<P> {
    /// A switch without ports, which takes what copies it makes from `place`.
    pub fn new(place: P) -> Self {
        Self::with_memory(place, Memory::default())
    }

    /// One that remembers as many stations as is said.
    pub fn with_memory(place: P, memory: Memory) -> Self {
        Switch(Arc::new(Shared {
            place,
            age: memory.age,
            core: Mutex::new(Core {
                table: Table::new(memory),
                members: Arc::new([]),
            }),
            changes: AtomicU64::new(0),
            stats: Stats::default(),
        }))
    }

    /// What it has done.
    pub fn stats(&self) -> &Stats {
        &self.0.stats
    }

    /// The stations that it knows, in the order of their addresses.
    pub fn stations(&self) -> Vec<Heard> {
        let core = self.0.lock();
        let mut all: Vec<Heard> = core
            .table
            .stations()
            .filter_map(|(mac, vlan, slot)| {
                let member = core.members.get(usize::from(slot))?.as_ref()?;
                Some(Heard {
                    mac,
                    vlan,
                    port: Arc::clone(&member.name),
                })
            })
            .collect();
        all.sort_by_key(|heard| (heard.mac, heard.vlan));
        all
    }

    /// A port that leads to other networks, to be connected to one by a
    /// [`Cable`](super::cable::Cable). Whatever may be behind a vif may be behind it, in numbers.
    ///
    /// # Errors
    /// It has as many ports as can be counted.
    pub fn uplink(&self, name: &str) -> io::Result<Box<dyn Socket<P>>> {
        let member = Member {
            name: name.into(),
            endpoint: None,
            isolated: false,
            vlan: None,
        };
        Ok(Box::new(self.add(member, true, None, None)?))
    }

    fn add(
        &self,
        member: Member<P>,
        uplink: bool,
        own: Option<Mac>,
        guard: Option<Guard>,
    ) -> io::Result<Plugged<P>> {
        let mut core = self.0.lock();
        let free = core.members.iter().position(Option::is_none);
        let slot = Slot::try_from(free.unwrap_or(core.members.len()))
            .map_err(|_| io::ErrorKind::QuotaExceeded)?;
        core.table
            .add(slot, uplink, own)
            .map_err(|error| io::Error::new(io::ErrorKind::AddrInUse, error))?;
        core.set(slot, Some(member));
        self.0.publish(&core);
        Ok(Plugged {
            shared: Arc::clone(&self.0),
            slot,
            guard,
        })
    }
}

impl<P: Seam> Core<P> {
    fn set(&mut self, slot: Slot, member: Option<Member<P>>) {
        let slot = usize::from(slot);
        let mut members = self.members.to_vec();
        if members.len() <= slot {
            members.resize_with(slot + 1, || None);
        }
        members[slot] = member;
        self.members = members.into();
    }
}

impl<P: Seam> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, Core<P>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all lanes look anew.
    fn publish(&self, core: &Core<P>) {
        self.changes.store(core.table.changes(), Ordering::Release);
    }
}

impl<P: Seam> Network<P> for Switch<P> {
    fn plug(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
        if !vif.mac.is_station() {
            return Err(invalid(format!("no vif can have the address {}", vif.mac)));
        }
        let guard = Guard::of(vif).map_err(|error| invalid(error.to_string()))?;
        let member = Member {
            name: vif.name.as_str().into(),
            endpoint: None,
            isolated: vif.isolated,
            vlan: vlan_of(vif.bridge.as_deref()).map_err(invalid)?,
        };
        Ok(Box::new(self.add(member, false, Some(vif.mac), guard)?))
    }
}

/// The VLAN behind a bridge's name.
fn vlan_of(bridge: Option<&str>) -> Result<Option<u16>, String> {
    let Some((_, vlan)) = bridge.and_then(|bridge| bridge.rsplit_once('.')) else {
        return Ok(None);
    };
    match vlan.parse() {
        Ok(vlan @ 1..4095) => Ok(Some(vlan)),
        _ => Err(format!("{vlan:?} is no VLAN: they are 1 to 4094")),
    }
}

/// A place on the switch.
struct Plugged<P: Seam> {
    shared: Arc<Shared<P>>,
    slot: Slot,
    guard: Option<Guard>,
}

impl<P: Seam> Socket<P> for Plugged<P> {
    fn connect(&mut self, endpoint: Arc<Endpoint<P>>) -> io::Result<Vec<Box<dyn Port<P>>>> {
        let connection = Arc::new(Connection {
            shared: Arc::clone(&self.shared),
            slot: self.slot,
            endpoint: Arc::clone(&endpoint),
        });
        self.shared.connect(self.slot, Some(Arc::clone(&endpoint)));
        Ok((0..endpoint.queues())
            .map(|queue| {
                let lane = Lane::new(Arc::clone(&connection), queue, self.guard.clone());
                Box::new(lane) as Box<dyn Port<P>>
            })
            .collect())
    }
}

impl<P: Seam> Shared<P> {
    fn connect(&self, slot: Slot, endpoint: Option<Arc<Endpoint<P>>>) {
        let mut core = self.lock();
        if let Some(Some(member)) = core.members.get(usize::from(slot)) {
            let member = Member {
                endpoint,
                ..member.clone()
            };
            core.set(slot, Some(member));
            core.table.clear(slot);
            self.publish(&core);
        }
    }
}

impl<P: Seam> Drop for Plugged<P> {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.set(self.slot, None);
        core.table.remove(self.slot);
        self.shared.publish(&core);
    }
}

/// The time that a frontend is connected: until the last lane is gone.
struct Connection<P: Seam> {
    shared: Arc<Shared<P>>,
    slot: Slot,
    endpoint: Arc<Endpoint<P>>,
}

impl<P: Seam> Drop for Connection<P> {
    fn drop(&mut self) {
        // Usually its queues have closed it. Lanes that have not looked anew know it still, and
        // frames in it would be there for as long.
        for queue in 0..self.endpoint.queues() {
            let left = self.endpoint.close(queue);
            self.shared.stats.lost.count(drops::Drop::Gone, left);
        }
        let is_ours = {
            let core = self.shared.lock();
            let member = core.members.get(usize::from(self.slot));
            let endpoint = member.and_then(|member| member.as_ref()?.endpoint.as_ref());
            // The frontend may have connected again already, or the slot be another vif's.
            endpoint.is_some_and(|endpoint| Arc::ptr_eq(endpoint, &self.endpoint))
        };
        if is_ours {
            self.shared.connect(self.slot, None);
        }
    }
}
