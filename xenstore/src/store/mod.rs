//! The store: nodes, permissions, watches, transactions, quotas. A pure data structure.
//!
//! ```text
//!                     live tree ── root ─┬─ tool
//!   transaction 1                        └─ local ─ domain ─┬─ 0
//!     base ─── shares every node ───────▶                   └─ 7 ─ device
//!     tree ─── shares what it did not change
//!     log  ─── what it saw and changed ──▶ commit: does what it saw still hold, node by node?
//! ```
//!
//! A tree is immutable where it is shared: to begin a transaction is to clone two pointers, and
//! the two trees drift apart as either is changed. A commit compares, for every node that the
//! transaction looked at, the live tree with the one it began with; if all hold, its changes are
//! made in the live tree, and its events are computed from them. So transactions that have nothing
//! to do with each other never collide, and two that add siblings to one directory both succeed.
//!
//! Whatever changes a node goes through one place (`ground`), where it is counted what each domain
//! owns. Nothing is done for ever at a time: what is removed is taken apart in slices, and the end
//! of a domain looks at the nodes that name it only.
//!
//! The store knows its users as [`ClientId`]s, each with a [`Caller`]: on whose behalf it acts.
//! Whatever an operation makes known to others is collected as [`Event`]s.
//!
//! Semantics follow C xenstored; the error of each operation is an [`Errno`] that the protocol can
//! carry. The sources are `docs/misc/xenstore.txt` and `tools/xenstored/` of Xen.

#[cfg(test)]
mod accounts;
mod authors;
mod children;
mod domains;
mod dump;
mod ground;
#[cfg(test)]
mod model;
mod named;
mod node;
mod path;
mod permissions;
mod quota;
mod remains;
#[cfg(test)]
mod tests;
mod transaction;
mod tree;
mod watches;
mod workspace;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use parapet_hypervisor::seam::Instant;
use parapet_xen_sys::io::xs_wire::ServerFeatures;
use parapet_xen_sys::{DomId, Errno};

pub use domains::FEATURES;
pub use dump::{Misfit, Rebuilt, Watching};
pub use node::Node;
pub use path::{Path, Special};
pub use permissions::{Caller, Permissions};
pub use quota::{Level, Limit, Quota, Quotas, Usage};
pub use watches::Event;

use authors::Authors;
use domains::Domains;
use ground::{Books, Ground, Owned};
use named::Named;
use permissions::Rights;
use remains::Remains;
use transaction::{Change, Log, Transaction};
use tree::Tree;
use watches::{Reach, Watches};
use workspace::Workspace;

use crate::{Permission, TransactionId};

/// A user of the store: one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// xenstored's own events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialEvent {
    /// `@introduceDomain`: a domain may now be talked to.
    Introduce,
    /// `@releaseDomain`: a domain has shut down, crashed, or is gone.
    Release,
}

impl SpecialEvent {
    /// The name that is watched.
    pub const fn name(self) -> &'static str {
        match self {
            SpecialEvent::Introduce => "@introduceDomain",
            SpecialEvent::Release => "@releaseDomain",
        }
    }
}

struct Client {
    caller: Caller,
    watches: BTreeSet<(Path, Arc<[u8]>)>,
    transactions: BTreeMap<TransactionId, Transaction>,
    next_transaction: u32,
}

/// The store.
pub struct Store {
    tree: Tree,
    /// Grows with every change, and with every birth of a domain.
    generation: u64,
    domains: Domains,
    named: Named,
    remains: Remains,
    clients: BTreeMap<ClientId, Client>,
    watches: Watches,
    events: Vec<Event>,
    now: Instant,
    authors: Authors,
    /// Whose changes made the last commit that failed fail, and for how long its transaction had
    /// been open.
    blamed: Option<Blamed>,
}

/// The guests whose changes made a transaction fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blamed {
    /// Who they are.
    pub guests: Vec<DomId>,
    /// For how long the transaction had been open.
    pub lost: Duration,
}

impl Default for Store {
    fn default() -> Self {
        Store::new(Quotas::default())
    }
}

impl Store {
    /// A store as a fresh xenstored has it: `/tool/xenstored`, and the special names.
    ///
    /// Each guest may use what `quotas` says, until that is changed.
    pub fn new(quotas: Quotas) -> Self {
        let mut domains = Domains::new(quotas);
        domains.know(DomId::ZERO, 0);
        let tree = Tree::new();
        tree.walk(|path, node| {
            domains.own(node.permissions().owner(), Owned::node(path.len(), node));
            true
        });
        Store {
            tree,
            generation: 0,
            domains,
            named: Named::default(),
            remains: Remains::default(),
            clients: BTreeMap::new(),
            watches: Watches::default(),
            events: Vec::new(),
            now: Instant::default(),
            authors: Authors::default(),
            blamed: None,
        }
    }

    /// It is so late: time is for those to tell who have a clock.
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// What [`Store::set_now`] was told.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Takes the events that are due, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        core::mem::take(&mut self.events)
    }

    // ---- clients

    /// Takes a client in.
    pub fn attach(&mut self, client: ClientId, caller: Caller) {
        let fresh = Client {
            caller,
            watches: BTreeSet::new(),
            transactions: BTreeMap::new(),
            next_transaction: 1,
        };
        self.detach(client);
        self.clients.insert(client, fresh);
    }

    /// Forgets a client, its watches and its transactions.
    pub fn detach(&mut self, client: ClientId) {
        self.reset(client);
        self.clients.remove(&client);
    }

    /// Drops a client's watches and transactions: RESET_WATCHES.
    pub fn reset(&mut self, client: ClientId) {
        let Some(known) = self.clients.get_mut(&client) else {
            return;
        };
        let watches = core::mem::take(&mut known.watches);
        let transactions = core::mem::take(&mut known.transactions);
        let domid = known.caller.domid;
        let mut bytes = 0;
        for (path, token) in &watches {
            self.watches.remove(client, path, token);
            bytes += watch_bytes(path, token);
        }
        for (quota, ended) in [(Quota::Watches, watches.len()), (Quota::Memory, bytes)] {
            self.domains.account(domid, quota, -ended.cast_signed());
        }
        for transaction in transactions.into_values() {
            self.retire(domid, transaction);
        }
    }

    /// A transaction is over: its client uses no more for it.
    fn retire(&mut self, domid: DomId, transaction: Transaction) {
        let bytes = transaction.counted.cast_signed();
        self.domains.account(domid, Quota::Transactions, -1);
        self.domains.account(domid, Quota::Memory, -bytes);
        transaction.retire(&mut self.remains, self.generation);
        self.authors.ended();
    }

    /// On whose behalf the client acts.
    ///
    /// # Errors
    /// `EINVAL` if there is no such client.
    pub fn caller(&self, client: ClientId) -> Result<Caller, Errno> {
        let client = self.clients.get(&client).ok_or(Errno::EINVAL)?;
        Ok(client.caller)
    }

    /// Lends the rights of `target` to the client: SET_TARGET.
    pub fn set_target(&mut self, client: ClientId, target: DomId) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.caller.target = Some(target);
        }
    }

    /// Checks a path that the client sent, with its quota.
    ///
    /// # Errors
    /// `EINVAL`, whatever is wrong with it.
    pub fn path(&mut self, client: ClientId, raw: &[u8], special: Special) -> Result<Path, Errno> {
        let caller = self.caller(client)?;
        let path = Path::parse(raw, caller.domid, special)?;
        let allowed = self
            .domains
            .check(caller.domid, Quota::PathMax, path.counted_len());
        allowed.map_err(|_| Errno::EINVAL)?;
        Ok(path)
    }

    // ---- domains

    /// Notes that a domain exists, which permissions may then name. Noting it again changes
    /// nothing.
    pub fn know(&mut self, domid: DomId) {
        if !self.domains.is_known(domid) {
            self.generation += 1;
            self.domains.know(domid, self.generation);
        }
    }

    /// Whether the domain was noted and is not gone.
    pub fn knows(&self, domid: DomId) -> bool {
        self.domains.is_known(domid)
    }

    /// The domains that were noted and are not gone.
    pub fn known(&self) -> Vec<DomId> {
        self.domains.all().collect()
    }

    /// What a domain may use, if it is known; or, if none is given, what the next one may.
    pub fn quotas(&self, domid: Option<DomId>) -> Option<&Quotas> {
        match domid {
            Some(domid) => self.domains.quotas(domid),
            None => Some(&self.domains.defaults),
        }
    }

    /// The same, to change.
    pub fn quotas_mut(&mut self, domid: Option<DomId>) -> Option<&mut Quotas> {
        match domid {
            Some(domid) => self.domains.quotas_mut(domid),
            None => Some(&mut self.domains.defaults),
        }
    }

    /// What a domain uses of its quotas.
    pub fn used(&self, domid: DomId) -> Usage {
        self.domains.used(domid)
    }

    /// The most that a domain used at a time, or any guest if none is given, since this was last
    /// reset.
    pub fn most(&self, domid: Option<DomId>) -> Usage {
        self.domains.most(domid)
    }

    /// What a domain uses, counted anew by looking at everything. What waits to be sent to it is
    /// not the store's to count.
    pub fn recount(&mut self, domid: DomId) -> Usage {
        while self.tidy() {}
        let mut used = Usage::default();
        self.tree.walk(|path, node| {
            if node.permissions().owner() == domid {
                used[Quota::Nodes] += 1;
                used[Quota::Memory] += path.len() + node.size();
            }
            true
        });
        let clients = self.clients.values();
        for client in clients.filter(|client| client.caller.domid == domid) {
            used[Quota::Watches] += client.watches.len();
            used[Quota::Transactions] += client.transactions.len();
            let watches = client.watches.iter();
            let bytes = watches.map(|(path, token)| watch_bytes(path, token));
            let counted = client.transactions.values().map(|it| it.counted);
            used[Quota::Memory] += bytes.sum::<usize>() + counted.sum::<usize>();
        }
        used
    }

    /// Adds to (or takes from) what a domain uses beside what is in the store.
    pub(crate) fn account(&mut self, domid: DomId, quota: Quota, change: isize) {
        self.domains.account(domid, quota, change);
    }

    /// Whether so many bytes more leave a domain below its quota on memory.
    pub(crate) fn has_memory(&self, domid: DomId, bytes: usize) -> bool {
        self.domains.has_memory(domid, bytes)
    }

    /// Lets [`Store::most`] begin with what is used now.
    pub fn reset_most(&mut self) {
        self.domains.reset_most();
    }

    /// What this xenstored does for a domain, if it is known.
    pub fn features(&self, domid: DomId) -> Option<ServerFeatures> {
        self.domains.features(domid)
    }

    /// Chooses what this xenstored does for a domain, of [`FEATURES`].
    pub fn set_features(&mut self, domid: DomId, features: ServerFeatures) {
        self.domains.set_features(domid, features & FEATURES);
    }

    /// A domain is gone: its nodes are removed, with all below them, and its name is taken out of
    /// the permissions of the others. The next domain with its id inherits nothing.
    pub fn forget(&mut self, domid: DomId) {
        let places = self.named.take(domid, &self.tree);
        let mut log = Log::default();
        let mut workspace = self.workspace(Caller::PRIVILEGED, &mut log);
        for (path, owned) in places {
            if owned {
                workspace.uproot(&path);
            } else {
                workspace.erase(&path, domid);
            }
        }
        self.done(log);
        self.domains.forget(domid);
        self.authors.forget(domid);
        for client in self.clients.values_mut() {
            client.caller.target.take_if(|target| *target == domid);
        }
    }

    /// Fires `@introduceDomain` or `@releaseDomain`, for those who may read that name.
    pub fn announce(&mut self, event: SpecialEvent, domid: DomId) {
        let name = event.name();
        let permissions = self
            .tree
            .get_str(name)
            .map(|node| node.permissions().clone());
        let with_domain = alloc::format!("{name}/{domid}");
        for (name, reach) in [(name, Reach::Plain), (&*with_domain, Reach::WithDomain)] {
            let Ok(path) = Path::new(name) else { continue };
            for watch in self.watches.met_by(&path, reach) {
                if self.may_read(watch.client, permissions.as_ref()) {
                    self.events.push(Event::new(&watch, path.clone()));
                }
            }
        }
    }

    // ---- nodes

    /// READ: the node, whose value and generation the caller then may have.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, and `ENOENT` for an unknown transaction.
    pub fn read(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
    ) -> Result<&Node, Errno> {
        let mut log = Log::default();
        self.enter(client, tx, &mut log)?.read(path)
    }

    /// DIRECTORY: the node, whose children's names the caller then may have.
    ///
    /// # Errors
    /// As for [`Store::read`].
    pub fn list(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
    ) -> Result<&Node, Errno> {
        let mut log = Log::default();
        self.enter(client, tx, &mut log)?.list(path)
    }

    /// DIRECTORY_PART: generation, names from byte `offset` of the list on, and an empty name at
    /// the end of the list, as one payload of at most `room` bytes.
    ///
    /// # Errors
    /// As for [`Store::read`].
    pub fn list_part(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
        offset: usize,
        room: usize,
    ) -> Result<Vec<u8>, Errno> {
        let node = self.list(client, tx, path)?;
        Ok(workspace::list_part(node, offset, room))
    }

    /// GET_PERMS.
    ///
    /// # Errors
    /// As for [`Store::read`].
    pub fn permissions(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
    ) -> Result<Permissions, Errno> {
        let mut log = Log::default();
        self.enter(client, tx, &mut log)?.permissions(path)
    }

    /// WRITE: sets a value, and creates the node and those above it where they are missing.
    ///
    /// # Errors
    /// `EACCES`; `ENOSPC` for a quota; `ENOENT` for an unknown transaction.
    pub fn write(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
        value: &[u8],
    ) -> Result<(), Errno> {
        self.apply(client, tx, |workspace| workspace.write(path, value))
    }

    /// MKDIR: creates the node where it is missing.
    ///
    /// # Errors
    /// As for [`Store::write`].
    pub fn mkdir(&mut self, client: ClientId, tx: TransactionId, path: &Path) -> Result<(), Errno> {
        self.apply(client, tx, |workspace| workspace.mkdir(path))
    }

    /// RM: removes a node and all below it.
    ///
    /// # Errors
    /// `EINVAL` for the root; `ENOENT` if not even the parent is there; `EACCES`.
    pub fn remove(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
    ) -> Result<(), Errno> {
        self.apply(client, tx, |workspace| workspace.remove(path))
    }

    /// Whether the client may give a node so many permission entries.
    ///
    /// # Errors
    /// `ENOSPC` for the quota.
    pub fn check_entries(&mut self, client: ClientId, entries: usize) -> Result<(), Errno> {
        let domid = self.caller(client)?.domid;
        self.domains.check(domid, Quota::NodePermissions, entries)
    }

    /// SET_PERMS. The first entry is the owner's.
    ///
    /// # Errors
    /// `ENOENT` if the owner does not exist; `EPERM` if a guest gives a node away; `EACCES`;
    /// `ENOSPC` for too many entries.
    pub fn set_permissions(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
        entries: &[Permission],
    ) -> Result<(), Errno> {
        self.apply(client, tx, |workspace| {
            workspace.set_permissions(path, entries)
        })
    }

    // ---- transactions

    /// TRANSACTION_START.
    ///
    /// # Errors
    /// `ENOSPC` for the quota.
    pub fn begin(&mut self, client: ClientId) -> Result<TransactionId, Errno> {
        let known = self.clients.get_mut(&client).ok_or(Errno::EINVAL)?;
        let domid = known.caller.domid;
        let open = known.transactions.len();
        self.domains.check(domid, Quota::Transactions, open + 1)?;
        let id = loop {
            let id = TransactionId(known.next_transaction);
            known.next_transaction = known.next_transaction.wrapping_add(1);
            if id != TransactionId::NONE && !known.transactions.contains_key(&id) {
                break id;
            }
        };
        let transaction = Transaction::new(&self.tree, self.generation, self.now);
        known.transactions.insert(id, transaction);
        self.authors.begun();
        self.domains.account(domid, Quota::Transactions, 1);
        Ok(id)
    }

    /// Whether the client has this transaction; to have none is fine.
    pub fn has(&self, client: ClientId, tx: TransactionId) -> bool {
        let client = self.clients.get(&client);
        tx == TransactionId::NONE
            || client.is_some_and(|client| client.transactions.contains_key(&tx))
    }

    /// TRANSACTION_END: commits or drops it. It is over, whatever comes of it.
    ///
    /// # Errors
    /// `EAGAIN` if something that it depends on has changed; `ENOSPC` if it would make a domain
    /// exceed its quota of nodes; `ENOMEM` if a quota was exceeded in the course of it; `ENOENT`
    /// if there is no such transaction.
    pub fn end(&mut self, client: ClientId, tx: TransactionId, commit: bool) -> Result<(), Errno> {
        let known = self.clients.get_mut(&client).ok_or(Errno::EINVAL)?;
        let mut transaction = known.transactions.remove(&tx).ok_or(Errno::ENOENT)?;
        let caller = known.caller;
        let result = if commit {
            self.commit(caller, &mut transaction)
        } else {
            Ok(Vec::new())
        };
        self.retire(caller.domid, transaction);
        self.publish(result?);
        Ok(())
    }

    fn commit(
        &mut self,
        caller: Caller,
        transaction: &mut Transaction,
    ) -> Result<Vec<Change>, Errno> {
        if transaction.log.failed {
            return Err(Errno::ENOMEM);
        }
        if !caller.privileged {
            for (domid, nodes) in transaction.growth.grown() {
                let owned = self.domains.used(domid)[Quota::Nodes];
                self.domains.check(domid, Quota::Nodes, owned + nodes)?;
            }
        }
        let now = self.generation + 1;
        let changes = transaction.commit(self.live(now)).inspect_err(|_| {
            let changes = transaction.disturbances(&self.tree);
            self.blamed = Some(Blamed {
                guests: self.authors.blame(changes, caller.domid),
                lost: self.now.since(transaction.since),
            });
        })?;
        self.generation = now;
        self.authors.note(now, &caller);
        Ok(changes)
    }

    /// Takes those to blame for it, if the last commit failed because of others' changes.
    pub fn take_blamed(&mut self) -> Option<Blamed> {
        self.blamed.take()
    }

    // ---- watches

    /// WATCH: from now on the client hears of changes at and below `raw`, `depth` levels deep or
    /// without end. The event that every new watch starts with is returned.
    ///
    /// # Errors
    /// `EINVAL` for the path; `EEXIST`; `ENOSPC` for the quota.
    pub fn watch(
        &mut self,
        client: ClientId,
        raw: &[u8],
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<Event, Errno> {
        let path = self.path(client, raw, Special::Allowed)?;
        let known = self.clients.get_mut(&client).ok_or(Errno::EINVAL)?;
        let entry = (path.clone(), Arc::from(token));
        if known.watches.contains(&entry) {
            return Err(Errno::EEXIST);
        }
        let domid = known.caller.domid;
        let watches = known.watches.len();
        self.domains.check(domid, Quota::Watches, watches + 1)?;
        let bytes = watch_bytes(&path, token);
        if !self.domains.has_memory(domid, bytes) {
            return Err(Errno::ENOMEM);
        }
        self.add_watch(client, raw, path, token, depth)
    }

    /// [`Store::watch`] whatever the quota says, for a path that was checked.
    fn add_watch(
        &mut self,
        client: ClientId,
        raw: &[u8],
        path: Path,
        token: &[u8],
        depth: Option<u32>,
    ) -> Result<Event, Errno> {
        let known = self.clients.get_mut(&client).ok_or(Errno::EINVAL)?;
        let domid = known.caller.domid;
        let bytes = watch_bytes(&path, token);
        let token: Arc<[u8]> = Arc::from(token);
        let entry = (path.clone(), token.clone());
        let skip = if path::is_relative(raw) {
            path.as_str().len() - raw.len()
        } else {
            0
        };
        let watch = self.watches.add(client, &path, token, depth, skip)?;
        let first = Event::new(watch, path);
        known.watches.insert(entry);
        self.domains.account(domid, Quota::Watches, 1);
        self.domains
            .account(domid, Quota::Memory, bytes.cast_signed());
        Ok(first)
    }

    /// UNWATCH.
    ///
    /// # Errors
    /// `EINVAL` for the path; `ENOENT` if there is no such watch.
    pub fn unwatch(&mut self, client: ClientId, raw: &[u8], token: &[u8]) -> Result<(), Errno> {
        let path = self.path(client, raw, Special::Allowed)?;
        let known = self.clients.get_mut(&client).ok_or(Errno::EINVAL)?;
        if !known.watches.remove(&(path.clone(), Arc::from(token))) {
            return Err(Errno::ENOENT);
        }
        self.watches.remove(client, &path, token);
        let (domid, bytes) = (known.caller.domid, watch_bytes(&path, token));
        self.domains.account(domid, Quota::Watches, -1);
        self.domains
            .account(domid, Quota::Memory, -bytes.cast_signed());
        Ok(())
    }

    // ---- inside

    /// The live tree, to be changed in generation `now`.
    fn live(&mut self, now: u64) -> Ground<'_> {
        Ground {
            tree: &mut self.tree,
            domains: &mut self.domains,
            books: Books::Live {
                named: &mut self.named,
                remains: &mut self.remains,
            },
            now,
        }
    }

    fn workspace<'a, 'l>(&'a mut self, caller: Caller, log: &'l mut Log) -> Workspace<'a, 'l> {
        self.generation += 1;
        let ground = self.live(self.generation);
        Workspace {
            caller,
            ground,
            log,
        }
    }

    /// The client's hands on the live tree, leaving a trace in `log`, or on its transaction's.
    fn enter<'a: 'l, 'l>(
        &'a mut self,
        client: ClientId,
        tx: TransactionId,
        log: &'l mut Log,
    ) -> Result<Workspace<'a, 'l>, Errno> {
        if tx == TransactionId::NONE {
            let caller = self.caller(client)?;
            return Ok(self.workspace(caller, log));
        }
        let known = self.clients.get_mut(&client).ok_or(Errno::EINVAL)?;
        let caller = known.caller;
        let transaction = known.transactions.get_mut(&tx).ok_or(Errno::ENOENT)?;
        // As it was left by the last request in it.
        let bytes = transaction.bytes();
        let more = bytes.cast_signed() - transaction.counted.cast_signed();
        self.domains.account(caller.domid, Quota::Memory, more);
        transaction.counted = bytes;
        self.generation += 1;
        let ground = Ground {
            tree: &mut transaction.tree,
            domains: &mut self.domains,
            books: Books::Draft(&mut transaction.growth),
            now: self.generation,
        };
        Ok(Workspace {
            caller,
            ground,
            log: &mut transaction.log,
        })
    }

    fn apply(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        change: impl FnOnce(&mut Workspace<'_, '_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut log = Log::default();
        let mut workspace = self.enter(client, tx, &mut log)?;
        let caller = workspace.caller;
        change(&mut workspace)?;
        self.authors.note(self.generation, &caller);
        self.done(log);
        Ok(())
    }

    /// What was done is now in the live tree.
    fn done(&mut self, log: Log) {
        self.publish(log.into_changes());
    }

    /// Computes the events of what was changed, and lets go what was removed.
    fn publish(&mut self, changes: Vec<Change>) {
        for change in &changes {
            self.tell(change, &changes);
        }
        drop(changes);
        self.tidy();
    }

    /// Goes on with taking apart what was removed, for as long as others can wait. Whether there
    /// is more to do.
    pub fn tidy(&mut self) -> bool {
        self.remains.step(&mut self.domains, self.generation)
    }

    fn tell(&mut self, change: &Change, all: &[Change]) {
        let mut events = Vec::new();
        if let Some(gone) = &change.gone {
            for (path, watches, node, parent) in self.watches.inside(&change.path, gone) {
                let told_itself = all.len() > 1 && all.iter().any(|other| other.path == *path);
                let seen = [Some(node.permissions()), Some(parent.permissions())];
                for watch in watches.iter().filter(|_| !told_itself) {
                    if self.may_read_any(watch.client, seen) {
                        events.push(Event::new(watch, path.clone()));
                    }
                }
            }
        }
        let met = self.watches.met_by(&change.path, Reach::Below);
        let permissions = |path: &str| self.tree.get_str(path).map(|node| node.permissions());
        let after = || permissions(change.path.as_str());
        if !met.is_empty() && (change.before.is_some() || after().is_some()) {
            let parent = change.path.parent().and_then(permissions);
            let seen = [change.before.as_ref(), after(), parent];
            for watch in met {
                if self.may_read_any(watch.client, seen) {
                    events.push(Event::new(&watch, change.path.clone()));
                }
            }
        }
        self.events.append(&mut events);
    }

    /// Whether the client may read a node with any of these permissions: those that it had before
    /// and has now, and those of its parent, which would list it.
    fn may_read_any<const N: usize>(
        &self,
        client: ClientId,
        any: [Option<&Permissions>; N],
    ) -> bool {
        any.into_iter()
            .any(|permissions| self.may_read(client, permissions))
    }

    fn may_read(&self, client: ClientId, permissions: Option<&Permissions>) -> bool {
        let (Some(client), Some(permissions)) = (self.clients.get(&client), permissions) else {
            return false;
        };
        let rights = permissions.rights(&client.caller, &self.domains);
        rights.include(Rights::READ)
    }
}

/// What a watch costs of the quota on memory.
fn watch_bytes(path: &Path, token: &[u8]) -> usize {
    path.as_str().len() + token.len()
}
