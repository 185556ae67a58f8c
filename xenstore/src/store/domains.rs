//! The domains that the store has heard of: when, what they may, and what they use.

use alloc::collections::BTreeMap;

use parapet_xen_sys::io::xs_wire::ServerFeatures;
use parapet_xen_sys::{DomId, Errno};

use super::ground::Owned;
use super::quota::{Quota, Quotas, Usage};

/// What this xenstored can do for a domain, unless less was chosen for it.
pub const FEATURES: ServerFeatures = ServerFeatures::RECONNECTION
    .union(ServerFeatures::ERROR)
    .union(ServerFeatures::WATCHDEPTH)
    .union(ServerFeatures::DOMID_ANY);

#[derive(Debug)]
struct Domain {
    born: u64,
    quotas: Quotas,
    features: ServerFeatures,
    used: Usage,
    /// The most that it used at a time, or asked for at once.
    most: Usage,
}

/// By id. A record begins when a domain is first named, and ends with the domain: nothing in it
/// reaches the next one that gets the id.
#[derive(Debug, Default)]
pub(super) struct Domains {
    known: BTreeMap<DomId, Domain>,
    /// What the next domain may use.
    pub(super) defaults: Quotas,
    /// The most that any guest used.
    most: Usage,
}

impl Domains {
    pub(super) fn new(defaults: Quotas) -> Self {
        Domains {
            defaults,
            ..Domains::default()
        }
    }

    /// Notes a domain, unless it is known, as born in generation `born`.
    pub(super) fn know(&mut self, domid: DomId, born: u64) {
        self.known.entry(domid).or_insert_with(|| Domain {
            born,
            quotas: self.defaults.clone(),
            features: FEATURES,
            used: Usage::default(),
            most: Usage::default(),
        });
    }

    pub(super) fn forget(&mut self, domid: DomId) {
        self.known.remove(&domid);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = DomId> {
        self.known.keys().copied()
    }

    pub(super) fn is_known(&self, domid: DomId) -> bool {
        self.known.contains_key(&domid)
    }

    /// Whether the domain lives, and did in generation `when` already.
    pub(super) fn is_since(&self, domid: DomId, when: u64) -> bool {
        self.known
            .get(&domid)
            .is_some_and(|domain| domain.born <= when)
    }

    // ---- what it may

    pub(super) fn quotas(&self, domid: DomId) -> Option<&Quotas> {
        self.known.get(&domid).map(|domain| &domain.quotas)
    }

    pub(super) fn quotas_mut(&mut self, domid: DomId) -> Option<&mut Quotas> {
        self.known.get_mut(&domid).map(|domain| &mut domain.quotas)
    }

    pub(super) fn features(&self, domid: DomId) -> Option<ServerFeatures> {
        self.known.get(&domid).map(|domain| domain.features)
    }

    pub(super) fn set_features(&mut self, domid: DomId, features: ServerFeatures) {
        if let Some(domain) = self.known.get_mut(&domid) {
            domain.features = features;
        }
    }

    /// Whether the domain may have `value` of something; if so, that counts as used once.
    ///
    /// # Errors
    /// `ENOSPC`, the protocol's word for a quota.
    pub(super) fn check(&mut self, domid: DomId, quota: Quota, value: usize) -> Result<(), Errno> {
        if domid == DomId::ZERO {
            return Ok(());
        }
        let domain = self.known.get_mut(&domid);
        let quotas = domain.as_ref().map_or(&self.defaults, |it| &it.quotas);
        if !quotas.allow(quota, value) {
            return Err(Errno::ENOSPC);
        }
        let most = domain.map(|it| &mut it.most);
        for most in most.into_iter().chain([&mut self.most]) {
            most[quota] = most[quota].max(value);
        }
        Ok(())
    }

    /// Whether so many bytes more leave a domain below its quota on memory.
    pub(super) fn has_memory(&self, domid: DomId, growth: usize) -> bool {
        let domain = self.known.get(&domid);
        domid == DomId::ZERO
            || domain.is_none_or(|domain| {
                let used = domain.used[Quota::Memory].saturating_add(growth);
                domain.quotas.allow(Quota::Memory, used.saturating_add(1))
            })
    }

    // ---- what it uses

    pub(super) fn used(&self, domid: DomId) -> Usage {
        self.known
            .get(&domid)
            .map_or(Usage::default(), |domain| domain.used)
    }

    /// The most that the domain used, or any guest if none is given.
    pub(super) fn most(&self, domid: Option<DomId>) -> Usage {
        match domid {
            Some(domid) => self
                .known
                .get(&domid)
                .map_or(Usage::default(), |domain| domain.most),
            None => self.most,
        }
    }

    /// Counts the most that was used from now on.
    pub(super) fn reset_most(&mut self) {
        self.most = Usage::default();
        for domain in self.known.values_mut() {
            domain.most = domain.used;
        }
    }

    /// Adds to the nodes that a domain owns.
    pub(super) fn own(&mut self, domid: DomId, more: Owned) {
        self.account(domid, Quota::Nodes, more.nodes);
        self.account(domid, Quota::Memory, more.bytes);
    }

    /// The same, if the domain was born by generation `when`.
    pub(super) fn own_since(&mut self, domid: DomId, when: u64, more: Owned) {
        if self.is_since(domid, when) {
            self.own(domid, more);
        }
    }

    /// Adds to (or takes from) what a domain uses. What an unknown domain uses is nobody's.
    pub(super) fn account(&mut self, domid: DomId, quota: Quota, change: isize) {
        let Some(domain) = self.known.get_mut(&domid) else {
            return;
        };
        let used = domain.used[quota].saturating_add_signed(change);
        domain.used[quota] = used;
        domain.most[quota] = domain.most[quota].max(used);
        if domid != DomId::ZERO {
            self.most[quota] = self.most[quota].max(used);
        }
    }
}
