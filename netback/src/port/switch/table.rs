//! Who is where: the stations that a switch knows.
//!
//! Pure: it is told the time, and holds no lock. What it hands out are [`Station`]s, whose ports
//! go on to say that they have been heard, and others to see whether they are still to be believed,
//! without asking the table again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parapet_hypervisor::seam::Instant;
use parapet_packet::Mac;

/// A port of the switch, by number.
pub type Slot = u16;

/// How much a switch remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Stations that were learned, of all ports together.
    pub stations: usize,
    /// Stations that a vif may have behind it, beside its own address.
    pub of_a_vif: usize,
    /// How long a station is believed that says nothing.
    pub age: Duration,
    /// How long a station stays where it is, before it may have moved elsewhere.
    pub settled: Duration,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            stations: 8192,
            of_a_vif: 64,
            age: Duration::from_secs(300),
            settled: Duration::from_secs(1),
        }
    }
}

/// An address, in a VLAN (0 is that of frames without a tag).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// The address.
    pub mac: Mac,
    /// The VLAN.
    pub vlan: u16,
}

/// A station that was heard.
#[derive(Debug)]
pub struct Station {
    /// Behind which port it is.
    pub slot: Slot,
    /// Since when.
    since: Instant,
    /// When it was last heard, in nanoseconds.
    heard: AtomicU64,
}

impl Station {
    /// It was heard just now.
    pub fn hear(&self, now: Instant) {
        self.heard.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// How long it has said nothing.
    #[inline]
    pub fn silence(&self, now: Instant) -> Duration {
        now.since(Instant::from_nanos(self.heard.load(Ordering::Relaxed)))
    }
}

/// Whether a port may have a station behind it.
#[derive(Debug, Clone)]
pub enum Learned {
    /// It was known to be there, or is from now on.
    Here(Arc<Station>),
    /// It is the port's own address.
    Own,
    /// Somebody else has that address.
    Taken,
    /// The port or the table has as many as it may, or the station has only just moved.
    Refused,
}

/// Who is behind an address.
#[derive(Debug, Clone)]
pub enum Found {
    /// A vif, whose own address it is.
    Own(Slot),
    /// Somebody behind a port.
    Station(Arc<Station>),
}

/// An address is another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another vif on the network has the address {0}")]
pub struct MacInUse(pub Mac);

/// The stations. Ports are numbered from zero, and told apart only by that, and by whether they are
/// uplinks.
#[derive(Debug)]
pub struct Table {
    memory: Memory,
    own: HashMap<Mac, Slot>,
    learned: HashMap<Place, Arc<Station>>,
    ports: Vec<Behind>,
    swept: Instant,
    changes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Behind {
    stations: usize,
    uplink: bool,
}

impl Table {
    /// A table of nobody.
    pub fn new(memory: Memory) -> Self {
        Table {
            memory,
            own: HashMap::new(),
            learned: HashMap::new(),
            ports: Vec::new(),
            swept: Instant::default(),
            changes: 0,
        }
    }

    /// Changes whenever what was found before may be wrong, or more may be found.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many stations were learned, and not forgotten yet.
    pub fn len(&self) -> usize {
        self.learned.len()
    }

    /// Whether it has learned of none.
    pub fn is_empty(&self) -> bool {
        self.learned.is_empty()
    }

    /// A port comes into being. An uplink leads to others' networks: as many stations are behind it
    /// as the table has room for, and what is behind it is not behind a vif at the same time.
    /// `own` is the address of the guest that a vif belongs to, which nobody else may use.
    ///
    /// # Errors
    /// Another has that address.
    pub fn add(&mut self, slot: Slot, uplink: bool, own: Option<Mac>) -> Result<(), MacInUse> {
        if let Some(mac) = own {
            if self.own.contains_key(&mac) {
                return Err(MacInUse(mac));
            }
            self.own.insert(mac, slot);
            // It may have been elsewhere before, as a guest that was migrated here was.
            self.forget(|place, _| place.mac == mac);
        }
        let slot = usize::from(slot);
        if self.ports.len() <= slot {
            self.ports.resize(slot + 1, Behind::default());
        }
        self.ports[slot] = Behind {
            stations: 0,
            uplink,
        };
        self.changes += 1;
        Ok(())
    }

    /// A port goes away, and with it who is behind it.
    pub fn remove(&mut self, slot: Slot) {
        self.own.retain(|_, own| *own != slot);
        self.forget(|_, station| station.slot == slot);
        self.changes += 1;
    }

    /// Forgets who was behind a port, but for its own address: its cable was pulled out.
    pub fn clear(&mut self, slot: Slot) {
        self.forget(|_, station| station.slot == slot);
        self.changes += 1;
    }

    fn forget(&mut self, which: impl Fn(&Place, &Station) -> bool) {
        let ports = &mut self.ports;
        self.learned.retain(|place, station| {
            let stays = !which(place, station);
            if !stays && let Some(behind) = ports.get_mut(usize::from(station.slot)) {
                behind.stations -= 1;
            }
            stays
        });
    }

    fn is_uplink(&self, slot: Slot) -> bool {
        self.ports
            .get(usize::from(slot))
            .is_some_and(|behind| behind.uplink)
    }

    /// A frame came from `place`, by a port.
    pub fn learn(&mut self, place: Place, slot: Slot, now: Instant) -> Learned {
        match self.own.get(&place.mac) {
            Some(&own) if own == slot => return Learned::Own,
            Some(_) => return Learned::Taken,
            None => {}
        }
        if let Some(station) = self.learned.get(&place) {
            let fresh = station.silence(now) < self.memory.age;
            if station.slot == slot {
                station.hear(now);
                // Others may have looked for it in vain.
                self.changes += u64::from(!fresh);
                return Learned::Here(Arc::clone(station));
            }
            if fresh && self.is_uplink(station.slot) && !self.is_uplink(slot) {
                return Learned::Taken;
            }
            if fresh && now.since(station.since) < self.memory.settled {
                return Learned::Refused;
            }
        }
        let most = match self.is_uplink(slot) {
            true => self.memory.stations,
            false => self.memory.of_a_vif,
        };
        let is_full = |table: &Table| {
            let behind = table.ports.get(usize::from(slot));
            behind.is_none_or(|behind| behind.stations >= most)
                || table.learned.len() >= table.memory.stations
        };
        if is_full(self) {
            self.sweep(now);
            if is_full(self) {
                return Learned::Refused;
            }
        }
        let station = Arc::new(Station {
            slot,
            since: now,
            heard: AtomicU64::new(now.as_nanos()),
        });
        if let Some(before) = self.learned.insert(place, Arc::clone(&station))
            && let Some(behind) = self.ports.get_mut(usize::from(before.slot))
        {
            behind.stations -= 1;
        }
        if let Some(behind) = self.ports.get_mut(usize::from(slot)) {
            behind.stations += 1;
        }
        self.changes += 1;
        Learned::Here(station)
    }

    /// Forgets who has said nothing for too long; looks no more than once a second, since somebody
    /// who makes up addresses has it look for each of them.
    fn sweep(&mut self, now: Instant) {
        if now.since(self.swept) < Duration::from_secs(1) {
            return;
        }
        self.swept = now;
        let age = self.memory.age;
        self.forget(|_, station| station.silence(now) >= age);
    }

    /// Who is behind an address.
    pub fn find(&self, place: Place, now: Instant) -> Option<Found> {
        if let Some(&slot) = self.own.get(&place.mac) {
            return Some(Found::Own(slot));
        }
        let station = self.learned.get(&place)?;
        (station.silence(now) < self.memory.age).then(|| Found::Station(Arc::clone(station)))
    }

    /// Who is behind which port: addresses that are vifs' own with no VLAN.
    pub fn stations(&self) -> impl Iterator<Item = (Mac, Option<u16>, Slot)> {
        let own = self.own.iter().map(|(&mac, &slot)| (mac, None, slot));
        let learned = self.learned.iter();
        own.chain(learned.map(|(place, station)| (place.mac, Some(place.vlan), station.slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn place(last: u8) -> Place {
        Place {
            mac: Mac([2, 0, 0, 0, 1, last]),
            vlan: 0,
        }
    }

    /// Two vifs with addresses of their own, and an uplink.
    fn table(memory: Memory) -> Table {
        let mut table = Table::new(memory);
        table.add(0, false, Some(own(0))).unwrap();
        table.add(1, false, Some(own(1))).unwrap();
        table.add(2, true, None).unwrap();
        table
    }

    fn own(last: u8) -> Mac {
        Mac([0, 0x16, 0x3e, 0, 0, last])
    }

    fn slot(table: &Table, place: Place, seconds: u64) -> Option<Slot> {
        match table.find(place, at(seconds))? {
            Found::Own(slot) => Some(slot),
            Found::Station(station) => Some(station.slot),
        }
    }

    #[test]
    fn a_station_is_where_it_was_last_heard_in_its_vlan_only() {
        let mut table = table(Memory::default());
        let tagged = Place {
            vlan: 5,
            ..place(1)
        };
        table.learn(tagged, 0, at(0));
        assert_eq!(slot(&table, tagged, 1), Some(0));
        assert_eq!(slot(&table, place(1), 1), None);
        let before = table.changes();
        table.learn(tagged, 1, at(2));
        assert_eq!(slot(&table, tagged, 3), Some(1));
        assert_ne!(table.changes(), before);
    }

    #[test]
    fn a_station_that_says_nothing_is_forgotten() {
        let mut table = table(Memory::default());
        let Learned::Here(station) = table.learn(place(1), 0, at(0)) else {
            panic!("there is room");
        };
        assert_eq!(slot(&table, place(1), 299), Some(0));
        assert_eq!(slot(&table, place(1), 300), None);
        station.hear(at(200));
        assert_eq!(slot(&table, place(1), 300), Some(0));
    }

    #[test]
    fn one_that_was_forgotten_and_speaks_again_is_news() {
        let mut table = table(Memory::default());
        table.learn(place(1), 0, at(0));
        assert_eq!(slot(&table, place(1), 300), None);
        let before = table.changes();
        table.learn(place(1), 0, at(301));
        assert_eq!(slot(&table, place(1), 302), Some(0));
        // Who did not find it has to look once more.
        assert_ne!(table.changes(), before);
        let before = table.changes();
        table.learn(place(1), 0, at(303));
        assert_eq!(table.changes(), before);
    }

    #[test]
    fn a_station_does_not_move_twice_in_a_second() {
        let mut table = table(Memory::default());
        table.learn(place(1), 0, at(5));
        assert!(matches!(table.learn(place(1), 1, at(5)), Learned::Refused));
        assert_eq!(slot(&table, place(1), 5), Some(0));
        table.learn(place(1), 1, at(6));
        assert_eq!(slot(&table, place(1), 6), Some(1));
    }

    #[test]
    fn a_vifs_own_address_is_nobody_elses() {
        let mut table = table(Memory::default());
        let mine = Place {
            mac: own(0),
            vlan: 0,
        };
        assert!(matches!(table.learn(mine, 0, at(0)), Learned::Own));
        assert!(matches!(table.learn(mine, 1, at(0)), Learned::Taken));
        assert!(matches!(table.learn(mine, 2, at(0)), Learned::Taken));
        assert_eq!(slot(&table, mine, 9999), Some(0));
        assert_eq!(table.add(3, false, Some(own(0))), Err(MacInUse(own(0))));
        table.remove(0);
        assert_eq!(slot(&table, mine, 0), None);
        assert_eq!(table.add(3, false, Some(own(0))), Ok(()));
    }

    #[test]
    fn an_address_that_was_elsewhere_is_a_new_vifs_own() {
        let mut table = table(Memory::default());
        table.learn(place(1), 2, at(0));
        table.add(3, false, Some(place(1).mac)).unwrap();
        assert_eq!(slot(&table, place(1), 0), Some(3));
        assert!(table.is_empty());
    }

    #[test]
    fn a_vif_does_not_take_a_station_from_the_uplink_while_that_is_heard() {
        let mut table = table(Memory::default());
        table.learn(place(1), 2, at(0));
        assert!(matches!(table.learn(place(1), 0, at(9)), Learned::Taken));
        assert_eq!(slot(&table, place(1), 10), Some(2));
        assert!(matches!(
            table.learn(place(1), 0, at(300)),
            Learned::Here(_)
        ));
        table.learn(place(1), 2, at(302));
        assert_eq!(slot(&table, place(1), 302), Some(2));
    }

    #[test]
    fn a_flood_of_addresses_takes_a_vifs_own_share_and_nobody_elses() {
        let memory = Memory {
            stations: 20,
            of_a_vif: 4,
            ..Memory::default()
        };
        let mut table = table(memory);
        for last in 0..=255 {
            table.learn(place(last), 0, at(0));
        }
        assert_eq!(table.len(), 4);
        assert!(matches!(
            table.learn(
                Place {
                    vlan: 1,
                    ..place(0)
                },
                1,
                at(0)
            ),
            Learned::Here(_)
        ));
        for last in 0..=255 {
            table.learn(
                Place {
                    vlan: 2,
                    ..place(last)
                },
                2,
                at(0),
            );
        }
        assert_eq!(table.len(), 20);
        // When the first have grown old there is room again.
        assert!(matches!(
            table.learn(place(200), 0, at(400)),
            Learned::Here(_)
        ));
        assert_eq!(table.len(), 1);
        table.clear(0);
        assert!(table.is_empty());
        assert!(matches!(
            table.learn(place(200), 0, at(400)),
            Learned::Here(_)
        ));
    }
}
