//! The control ring: what a frontend tells its backend in bulk.
//!
//! One request at a time is outstanding, with what it names in a page of our own. Source:
//! `io/netif.h`, "Control messages".

use alloc::vec::Vec;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Channel, Grant, Guest, Pages};
use parapet_ring::{Front, FrontLink, Own};
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlResponse, ControlStatus, ControlType, GrefFlags, GrefMapping,
    HashAlgorithm, HashTypes,
};
use parapet_xen_sys::{DomId, GrantRef, Port};
use zerocopy::IntoBytes;

use crate::error::{ControlError, Gone, QueueError, Violation};

/// How the backend is to spread what it has for us over the queues: by a hash (Toeplitz's) of
/// addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashing {
    /// What is hashed.
    pub types: HashTypes,
    /// The key; shorter ones count as filled up with zeroes. 40 bytes are usual.
    pub key: Vec<u8>,
    /// Which queue a hash goes to: the entry whose number is the hash modulo their count. With no
    /// entry it is the queue whose number is the hash modulo the queues.
    pub mapping: Vec<u32>,
}

pub(crate) struct Control<G: Guest> {
    link: FrontLink<Own<G::Pages>, ControlRequest, ControlResponse, G::Channel>,
    ring_grant: G::Grant,
    /// A page for what requests name.
    page: G::Pages,
    grant: G::Grant,
    given: u16,
    /// What was asked and not answered: more than for a moment only if nobody waited for it.
    asked: Option<(u16, u16)>,
}

/// Why a control request came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    Refused(ControlStatus),
    TooMany(usize),
    Violation(Violation),
}

impl From<Violation> for Failed {
    fn from(violation: Violation) -> Self {
        Failed::Violation(violation)
    }
}

impl From<Failed> for ControlError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(status) => ControlError::Refused(status),
            Failed::TooMany(entries) => ControlError::TooMany { entries },
            Failed::Violation(violation) => Gone::Violation(violation).into(),
        }
    }
}

impl<G: Guest> Control<G> {
    pub(crate) fn new(guest: &G, backend: DomId) -> Result<Self, QueueError> {
        let memory = guest.allocate(1)?;
        let ring = Front::new(Own(memory.clone()))?;
        let ring_grant = guest.grant(&memory, backend, Access::ReadWrite)?;
        let page = guest.allocate(1)?;
        let grant = guest.grant(&page, backend, Access::ReadWrite)?;
        let channel = guest.alloc_unbound(backend)?;
        Ok(Control {
            link: FrontLink::new(ring, channel),
            ring_grant,
            page,
            grant,
            given: 0,
            asked: None,
        })
    }

    pub(crate) fn ring_ref(&self) -> Option<GrantRef> {
        self.ring_grant.refs().first().copied()
    }

    pub(crate) fn port(&self) -> Port {
        self.link.channel.port()
    }

    /// Asks, and waits for the answer's data.
    async fn ask(&mut self, control: ControlType, data: [u32; 3]) -> Result<u32, Failed> {
        self.answer().await?;
        let (id, control) = (self.given, control as u16);
        self.given = self.given.wrapping_add(1);
        let request = ControlRequest { id, control, data };
        let pushed = self.link.ring.push(&request);
        debug_assert!(pushed.is_ok(), "one at a time");
        self.asked = Some((id, control));
        self.link.publish();
        match self.answer().await? {
            Some((ControlStatus::SUCCESS, data)) => Ok(data),
            Some((other, _)) => Err(Failed::Refused(other)),
            None => unreachable!("something was asked"),
        }
    }

    /// The answer to what was asked, if something was.
    async fn answer(&mut self) -> Result<Option<(ControlStatus, u32)>, Violation> {
        let Some(asked) = self.asked else {
            return Ok(None);
        };
        let response = self.link.next().await?;
        let ControlResponse {
            id,
            control,
            status,
            data,
        } = response;
        if (id, control) != asked {
            return Err(Violation::Control { id, control });
        }
        self.asked = None;
        Ok(Some((status, data)))
    }

    /// Writes `bytes` into the page that is then named by the reference returned.
    async fn name(&mut self, bytes: &[u8]) -> Result<u32, Failed> {
        // Of a request that nobody waited for, whose page it still is.
        self.answer().await?;
        let written = self.page.view().write_bytes(0, bytes);
        written.map_err(|_| Failed::TooMany(bytes.len()))?;
        Ok(self.grant.refs().first().map_or(0, |gref| gref.0))
    }

    /// Has the backend hash as it is told.
    pub(crate) async fn hash(&mut self, hashing: &Hashing) -> Result<(), Failed> {
        use ControlType as Type;
        let Hashing {
            types,
            key,
            mapping,
        } = hashing;
        let toeplitz = HashAlgorithm::Toeplitz as u32;
        self.ask(Type::SetHashAlgorithm, [toeplitz, 0, 0]).await?;
        let key_ref = self.name(key).await?;
        // It fits a page.
        self.ask(Type::SetHashKey, [key_ref, key.len() as u32, 0])
            .await?;
        let entries = u32::try_from(mapping.len()).map_err(|_| Failed::TooMany(mapping.len()))?;
        self.ask(Type::SetHashMappingSize, [entries, 0, 0]).await?;
        let mut first = 0;
        for some in mapping.chunks(PAGE_SIZE / size_of::<u32>()) {
            let named = self.name(some.as_bytes()).await?;
            // At most a page.
            let count = some.len() as u32;
            self.ask(Type::SetHashMapping, [named, count, first])
                .await?;
            first += count;
        }
        self.ask(Type::SetHashFlags, [types.bits(), 0, 0]).await?;
        Ok(())
    }

    /// Has the backend hash no more.
    pub(crate) async fn hash_no_more(&mut self) -> Result<(), Failed> {
        let none = HashAlgorithm::None as u32;
        let asked = self.ask(ControlType::SetHashAlgorithm, [none, 0, 0]).await;
        asked.map(drop)
    }

    /// How many pages of a queue the backend would keep mapped.
    pub(crate) async fn statics(&mut self, queue: u32) -> Result<u32, Failed> {
        let asked = self.ask(ControlType::GetGrefMappingSize, [queue, 0, 0]);
        match asked.await {
            Err(Failed::Refused(_)) => Ok(0),
            other => other,
        }
    }

    /// Has the backend keep pages of a queue mapped.
    pub(crate) async fn keep_mapped(
        &mut self,
        queue: u32,
        refs: &[GrantRef],
        access: Access,
    ) -> Result<(), Failed> {
        let flags = match access {
            Access::ReadOnly => GrefFlags::READONLY,
            Access::ReadWrite => GrefFlags::empty(),
        };
        let entry = |&gref: &GrantRef| GrefMapping {
            gref,
            flags,
            status: 0,
        };
        for some in refs.chunks(PAGE_SIZE / size_of::<GrefMapping>()) {
            let list: Vec<GrefMapping> = some.iter().map(entry).collect();
            let named = self.name(list.as_slice().as_bytes()).await?;
            // At most a page.
            let count = list.len() as u32;
            self.ask(ControlType::AddGrefMapping, [queue, named, count])
                .await?;
        }
        Ok(())
    }

    /// Ends the grants. How many pages the backend has kept, if that can be told.
    pub(crate) fn end(self) -> usize {
        let held = [self.ring_grant, self.grant].map(|grant| match grant.end() {
            Ok(()) => 0,
            Err(still) => still.0,
        });
        held.iter().sum()
    }
}
