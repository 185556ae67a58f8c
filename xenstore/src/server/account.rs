//! What a guest may have of others, and that it waits when that is used up.
//!
//! ```text
//!   its requests ──▶ taken in ──▶ answer  ── waits for itself ──┐
//!                        └──────▶ events  ── wait for domain 0 ─┴─ outstanding, until they go
//!                        └──────▶ nodes, watches, transactions, bytes to send: memory
//!                        └──────▶ others' transactions fail: lost time
//! ```
//!
//! A guest is *held*: its requests wait where they are, nothing of it is lost, and no other client
//! notices. It is held
//!
//! * while as many of its requests as its quota allows are **outstanding**: their answers were not
//!   sent, or events that they caused wait for domain 0 or a local client (XSA-326). Events for
//!   other guests do not count: no guest can hold another by not reading. There is a bound on the
//!   bytes of these events, too, since one request can cause many;
//! * while the **memory** that it uses reaches its hard quota;
//! * while it has made others **lose time**. Who makes a transaction fail is charged twice the time
//!   for which that was open: for what was lost, and for trying again. It is held once that is more
//!   than a little, until as much time has passed. So whoever tries again finishes: in what takes
//!   no longer than the first attempt, that guest is not in the way. C xenstored limits every guest's rate of writes while any other has a
//!   transaction, conflicting or not; oxenstored blames conflicts, at a fixed price.
//!
//! Domain 0 and local clients are never held for any of this. Events for a guest that it does not
//! read are dropped once they are too old, as by C xenstored (`--timeout watch-event`), or when it
//! has no memory left for them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use parapet_hypervisor::seam::Instant;
use parapet_xen_sys::DomId;

use super::output::Debt;
use super::trace::Switch;
use super::{ANSWERS_WAITING, Peer, Server};
use crate::store::{ClientId, Level, Limit, Quota};

/// A guest is held while this many bytes of events that it caused wait for privileged clients.
pub(super) const EVENTS_OWED: usize = 64 << 10;
/// So much lost time of others is forgiven.
pub(super) const FORGIVEN: Duration = Duration::from_millis(100);
/// The most that one failed transaction of a privileged client costs.
const LOST_BY_PRIVILEGED: Duration = Duration::from_secs(5);
/// The same for a guest: it may itself have made its transaction fail, to harm another.
const LOST_BY_GUEST: Duration = Duration::from_millis(50);
/// For how long an event waits for a guest, unless that is set.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is told that a guest uses much memory.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What a guest's connection has of others.
#[derive(Default)]
pub(super) struct Account {
    /// Whether its requests wait; kept by [`Server::settle`].
    pub(super) held: bool,
    /// The number of the request that is served, or was last.
    request: u64,
    /// The requests of which something waits to be sent, and how much.
    outstanding: BTreeMap<u64, usize>,
    /// Bytes of events that it caused and privileged clients were not sent yet.
    owed: usize,
    /// Until when it waits for what it cost others; how long ago that was is its credit.
    waits: Instant,
    /// What of this was told the store: requests outstanding, and bytes to be sent.
    told: [usize; 2],
    /// When the server will look at it by itself.
    due: Option<Instant>,
    /// The memory that it used, when that was last logged, and when that was.
    warned: Option<(Use, Instant)>,
}

/// How much memory a guest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Little,
    Much,
    TooMuch,
}

/// Whom to look at by themselves, and when.
pub(super) struct Agenda {
    due: BTreeSet<(Instant, ClientId)>,
    /// Those that wait for memory, which others may give back.
    pub(super) no_memory: BTreeSet<ClientId>,
    event_timeout: Option<Duration>,
}

impl Default for Agenda {
    fn default() -> Self {
        Agenda {
            due: BTreeSet::new(),
            no_memory: BTreeSet::new(),
            event_timeout: Some(EVENT_TIMEOUT),
        }
    }
}

impl Server {
    // ---- requests

    /// A request of this client is to be served now.
    pub(super) fn take_in(&mut self, client: ClientId) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.account.request += 1;
        }
    }

    /// The request that is being served, if a guest asked it.
    pub(super) fn request_of_guest(&self, client: ClientId) -> Option<(ClientId, u64)> {
        let connection = self.connections.get(&client)?;
        let guest = !connection.peer.is_privileged();
        guest.then_some((client, connection.account.request))
    }

    /// Something waits because of the request that is being served.
    pub(super) fn owe(&mut self, debt: Debt) {
        if let Some(connection) = self.connections.get_mut(&debt.causer) {
            let account = &mut connection.account;
            *account.outstanding.entry(debt.request).or_default() += 1;
            account.owed += debt.bytes;
        }
    }

    /// Debts have ended. Who is held no more by that is stirred.
    pub(super) fn forgive(&mut self, debts: Vec<Debt>) {
        for debt in debts {
            // It may be gone.
            let Some(connection) = self.connections.get_mut(&debt.causer) else {
                continue;
            };
            let account = &mut connection.account;
            account.owed = account.owed.saturating_sub(debt.bytes);
            if let Some(waiting) = account.outstanding.get_mut(&debt.request) {
                *waiting -= 1;
                if *waiting == 0 {
                    account.outstanding.remove(&debt.request);
                }
            }
            self.settle(debt.causer);
        }
    }

    /// Looks at what a guest uses now, tells the store, and holds it or lets it go on.
    pub(super) fn settle(&mut self, client: ClientId) {
        let Some(connection) = self.connections.get_mut(&client) else {
            self.agenda.no_memory.remove(&client);
            return;
        };
        let domid = match connection.peer {
            Peer::Domain(domid) if domid != DomId::ZERO => domid,
            _ => return,
        };
        let account = &mut connection.account;
        let told = [account.outstanding.len(), connection.output.len()];
        let before = core::mem::replace(&mut account.told, told);
        for (at, quota) in [Quota::Outstanding, Quota::Memory].into_iter().enumerate() {
            let change = told[at].cast_signed() - before[at].cast_signed();
            if change != 0 {
                self.store.account(domid, quota, change);
            }
        }
        let used = self.store.used(domid);
        let Some(quotas) = self.store.quotas(Some(domid)) else {
            return;
        };
        let reaches = |limit: Limit| {
            let value = usize::try_from(quotas[limit]).unwrap_or(usize::MAX);
            value != 0 && used[limit.quota()] >= value
        };
        let no_memory = reaches(Limit::hard(Quota::Memory));
        let warn = Limit::of(Quota::Memory, Level::Soft).is_some_and(reaches);
        let held = no_memory
            || reaches(Limit::hard(Quota::Outstanding))
            || told[1] >= ANSWERS_WAITING
            || account.owed >= EVENTS_OWED
            || account.waits > self.store.now();
        if core::mem::replace(&mut account.held, held) && !held {
            self.stirred.insert(client);
        }
        if no_memory {
            self.agenda.no_memory.insert(client);
        } else {
            self.agenda.no_memory.remove(&client);
        }
        let now = self.store.now();
        account.warn(
            domid,
            now,
            match (no_memory, warn) {
                (true, _) => Use::TooMuch,
                (_, true) => Use::Much,
                _ => Use::Little,
            },
        );
    }

    /// Somebody's request may have given others their memory back.
    pub(super) fn look_after_held(&mut self) {
        if !self.agenda.no_memory.is_empty() {
            for client in self.agenda.no_memory.clone() {
                self.settle(client);
            }
        }
    }

    // ---- time

    /// Charges those who made the last commit fail, that of `victim`, if it did.
    pub(super) fn charge_blamed(&mut self, victim: ClientId) {
        let Some(blamed) = self.store.take_blamed() else {
            return;
        };
        let privileged = self.request_of_guest(victim).is_none();
        let most = if privileged {
            LOST_BY_PRIVILEGED
        } else {
            LOST_BY_GUEST
        };
        let lost = blamed.lost.min(most);
        let forgiven = u64::try_from(FORGIVEN.as_nanos()).unwrap_or(u64::MAX);
        let now = self.store.now().as_nanos();
        let from = Instant::from_nanos(now.saturating_sub(forgiven));
        for domid in blamed.guests {
            let client = self.domains.get(&domid).map(|domain| domain.client);
            let Some(client) = client else { continue };
            if let Some(connection) = self.connections.get_mut(&client) {
                let account = &mut connection.account;
                account.waits = account.waits.max(from).after(2 * lost);
            }
            let line = format_args!("domain {domid} made a transaction of {lost:?} fail");
            self.trace.line(Switch::Credit, line);
            self.settle(client);
            self.remind(client);
        }
    }

    /// It is so late now: whoever was held for a time, and that is over, goes on, and events that
    /// are too old are dropped.
    pub fn tick(&mut self, now: Instant) {
        self.store.set_now(now);
        while let Some(&(when, client)) = self.agenda.due.first() {
            if when > now {
                return;
            }
            self.agenda.due.pop_first();
            let Some(connection) = self.connections.get_mut(&client) else {
                continue;
            };
            connection.account.due = None;
            if let Some(timeout) = self.agenda.event_timeout {
                let old = |since: Instant| since.after(timeout) <= now;
                let (lost, debts) = connection.output.expire(old);
                self.counters.events_lost += lost;
                self.forgive(debts);
            }
            self.settle(client);
            self.remind(client);
        }
    }

    /// When [`Server::tick`] is to be called again, if nothing else happens.
    pub fn due(&mut self) -> Option<Instant> {
        while let Some(&(when, client)) = self.agenda.due.first() {
            let needed = self.needs_look(client);
            if needed.is_some_and(|needed| needed <= when) {
                return Some(when);
            }
            // What it was for has happened meanwhile.
            self.agenda.due.pop_first();
            if let Some(connection) = self.connections.get_mut(&client) {
                connection.account.due = None;
            }
            self.remind(client);
        }
        None
    }

    /// For how long an event waits for a guest that does not read it; none for ever.
    pub fn set_event_timeout(&mut self, timeout: Option<Duration>) {
        self.agenda.event_timeout = timeout;
    }

    /// When this client is to be looked at, if it is.
    fn needs_look(&self, client: ClientId) -> Option<Instant> {
        let connection = self.connections.get(&client)?;
        if connection.peer.is_privileged() {
            return None;
        }
        let waits = connection.account.waits;
        let goes_on = (waits > self.store.now()).then_some(waits);
        let oldest = connection.output.oldest().zip(self.agenda.event_timeout);
        let drops = oldest.map(|(since, timeout)| since.after(timeout));
        goes_on.into_iter().chain(drops).min()
    }

    /// Has a client looked at when that is needed, and not later than was said before.
    pub(super) fn remind(&mut self, client: ClientId) {
        let Some(when) = self.needs_look(client) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        let due = &mut connection.account.due;
        if due.is_some_and(|due| due <= when) {
            return;
        }
        if let Some(later) = due.replace(when) {
            self.agenda.due.remove(&(later, client));
        }
        self.agenda.due.insert((when, client));
    }
}

impl Account {
    /// Says in the log that a guest uses more than it should, or no more so, and not too often.
    fn warn(&mut self, domid: DomId, now: Instant, uses: Use) {
        let told = self.warned.map_or(Use::Little, |(told, _)| told);
        let recent = self
            .warned
            .is_some_and(|(_, when)| now.since(when) < WARN_EVERY);
        if uses == told || recent && uses != Use::TooMuch {
            return;
        }
        self.warned = Some((uses, now));
        match uses {
            Use::Little => log::info!("domain {domid} is below its quotas on memory again"),
            Use::Much => log::warn!("domain {domid} exceeds its soft quota on memory"),
            Use::TooMuch => {
                log::error!("domain {domid} reaches its hard quota on memory: it is not served");
            }
        }
    }
}
