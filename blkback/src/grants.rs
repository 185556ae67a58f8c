//! The guest's pages, as this queue has them mapped.
//!
//! ```text
//!  request ── grefs ──► Pool: gref ─► page        hit: nothing is mapped, nothing is allocated
//!                         │    miss: map_each, one batch
//!                         ▼
//!  Buffer = pieces of pages, each keeping its page mapped ──► the image ──► back to the pool
//! ```
//!
//! A mapping costs as much as copying forty pages, so with a frontend that has `feature-persistent`
//! a page that was mapped once stays mapped, and is found by its grant reference. The number of
//! such pages is bounded ([`PERSISTENT_PAGES`]): when a new one comes, the one that was not used for
//! longest (roughly: a clock with one hand) goes, unless it is in use just then; if all are, the
//! new page is mapped for its request alone.
//!
//! A page that was not used for a minute goes too, whether others come or not.
//!
//! Each page that stays is a mapping of its own, and a process may have only so many. A queue is
//! told how many it may keep; should the host run out all the same, it gives up all that is not in
//! use, tries again, and keeps half as many from then on.
//!
//! Without `feature-persistent` every page is mapped for its request alone, many in one batch, and
//! unmapped before the response is published: the frontend may end its grants as soon as it sees
//! that.
//!
//! A page is unmapped when nobody uses it any more and not before (XSA-350, XSA-371): requests in
//! flight and the table of registered buffers hold it as the pool does.

use std::fmt;
use std::sync::Arc;

use parapet_hypervisor::host::{self, Lease};
use parapet_hypervisor::memory::{PAGE_SIZE, ReadOnly, View};
use parapet_hypervisor::seam::{Access, Grants, MapError, Mapping};
use parapet_xen_sys::io::blkif::Segment;
use parapet_xen_sys::{DomId, GrantRef};

use crate::image::ImageQueue;
use crate::request::place;

/// Pages that one queue keeps mapped for a frontend with persistent grants, as in Linux: a ring of
/// 32 requests of 32 segments and their indirect pages.
pub const PERSISTENT_PAGES: u16 = 1056;

/// No page.
const NONE: u16 = u16::MAX;

/// Grant references beyond this are not found again: their pages are never persistent. A guest
/// would need a grant table of 2048 frames to have one.
const INDEXED: usize = 1 << 20;

/// So many times a pool ages before a page goes that was not used meanwhile: with a queue that
/// looks every ten seconds, after a minute, as in Linux.
const AGES: u8 = 7;

/// A page of the guest's.
pub struct Page<M>(M);

/// A page in the table of registered buffers. It was mapped to be written.
pub struct Registered<M>(Arc<Page<M>>);

impl<M: Mapping> host::Page for Registered<M> {
    fn view(&self) -> View<'_> {
        let Registered(page) = self;
        page.0.view_mut().expect("only such pages are registered")
    }
}

/// Part of a page.
struct Piece<M> {
    page: Arc<Page<M>>,
    offset: usize,
    len: usize,
}

/// The guest's memory for one request: as long as it exists, that memory is mapped.
pub struct Buffer<M> {
    pieces: Vec<Piece<M>>,
    /// Where in the table of registered buffers all of it lies.
    registered: Option<u16>,
    /// Whether some pages are mapped for this request alone.
    transient: bool,
}

impl<M> Buffer<M> {
    fn new() -> Self {
        Buffer {
            pieces: Vec::new(),
            registered: None,
            transient: false,
        }
    }
}

impl<M> fmt::Debug for Buffer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = self.pieces.iter().map(|piece| (piece.offset, piece.len));
        f.debug_list().entries(pieces).finish()
    }
}

impl<M: Mapping> Lease for Buffer<M> {
    type Page = Registered<M>;

    fn targets(&self) -> impl Iterator<Item = View<'_>> {
        self.pieces
            .iter()
            .filter_map(|piece| piece.page.0.view_mut()?.slice(piece.offset, piece.len).ok())
    }

    fn sources(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
        self.pieces
            .iter()
            .filter_map(|piece| piece.page.0.view().slice(piece.offset, piece.len).ok())
    }

    fn registered(&self) -> Option<u16> {
        self.registered
    }
}

/// Why a request's memory is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Some of it was not mapped yet: see [`Pool::map`].
    Unmapped,
    /// It cannot be mapped.
    Refused(MapError),
}

/// What a queue has mapped.
pub(crate) struct Pool<G: Grants> {
    grants: G,
    peer: DomId,
    /// How many persistent pages there may be; none with a frontend that does not have them.
    limit: usize,
    /// The place in `pages` of each grant reference, or `NONE`. It grows only for references that
    /// could be mapped, so it is as bounded as the guest's own grant table.
    index: Vec<u16>,
    pages: Vec<Option<Persistent<G::Mapping>>>,
    /// Those places in `pages` where there is none.
    vacant: Vec<u16>,
    /// Where the search for a page to give up goes on.
    hand: usize,
    /// Pages mapped for the requests of this batch alone, in the order of their keys.
    batch: Vec<(Key, Outcome<G::Mapping>)>,
    /// Pages to unmap before the next response is published.
    retired: Vec<G::Mapping>,
    /// Buffers to use again.
    spare: Vec<Buffer<G::Mapping>>,
    /// Pages that the batch's requests will use, so that none gives way to another of them.
    held: Vec<Arc<Page<G::Mapping>>>,
}

struct Persistent<M> {
    gref: GrantRef,
    page: Arc<Page<M>>,
    registered: bool,
    /// Since the hand was here last.
    used: bool,
    /// How often the pool has aged since it was used last.
    age: u8,
}

impl<M> Persistent<M> {
    /// Whether somebody has it but the pool and the table of registered buffers.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.page) > 1 + usize::from(self.registered)
    }
}

/// A page that is mapped, with what a request wants to know of it.
struct Found<M> {
    page: Arc<Page<M>>,
    registered: Option<u16>,
    transient: bool,
}

/// What a page is wanted for, when it is mapped for that alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    gref: GrantRef,
    writable: bool,
}

type Outcome<M> = Result<Arc<Page<M>>, MapError>;

impl<G: Grants> Pool<G> {
    /// A pool for grants of `peer`, that keeps up to `persistent` pages mapped.
    pub(crate) fn new(grants: G, peer: DomId, persistent: u16) -> Self {
        Pool {
            grants,
            peer,
            limit: persistent.min(NONE - 1).into(),
            index: Vec::new(),
            pages: Vec::new(),
            vacant: Vec::new(),
            hand: 0,
            batch: Vec::new(),
            retired: Vec::new(),
            spare: Vec::new(),
            held: Vec::new(),
        }
    }

    /// The memory of a request whose segments were checked, to be written to if `access` says so.
    /// Nothing is mapped for it.
    pub(crate) fn buffer(
        &mut self,
        segments: &[Segment],
        access: Access,
    ) -> Result<Buffer<G::Mapping>, Missing> {
        let mut buffer = self.empty();
        for segment in segments {
            let (offset, len) = place(segment);
            match self.page(segment.gref, access) {
                Ok(found) => {
                    buffer.registered = found.registered;
                    buffer.transient |= found.transient;
                    buffer.pieces.push(Piece {
                        page: found.page,
                        offset,
                        len,
                    });
                }
                Err(missing) => {
                    self.recycle(buffer);
                    return Err(missing);
                }
            }
        }
        if segments.len() != 1 {
            buffer.registered = None;
        }
        Ok(buffer)
    }

    /// Copies the beginnings of pages out, one after the other, as many bytes as `to` has: each page
    /// but the last as a whole. Nothing is mapped for it.
    pub(crate) fn copy_out(&mut self, pages: &[GrantRef], to: &mut [u8]) -> Result<(), Missing> {
        for (gref, to) in pages.iter().zip(to.chunks_mut(PAGE_SIZE)) {
            let found = self.page(*gref, Access::ReadOnly)?;
            let view = found.page.0.view();
            view.read_bytes(0, to)
                .expect("a mapping of one grant is a page");
        }
        Ok(())
    }

    /// A buffer of no memory.
    pub(crate) fn empty(&mut self) -> Buffer<G::Mapping> {
        self.spare.pop().unwrap_or_else(Buffer::new)
    }

    /// What the pages of a batch are found by.
    fn key(&self, gref: GrantRef, access: Access) -> Key {
        Key {
            gref,
            // A page that may become persistent has to serve any request.
            writable: self.limit > 0 || access == Access::ReadWrite,
        }
    }

    #[inline]
    fn page(&mut self, gref: GrantRef, access: Access) -> Result<Found<G::Mapping>, Missing> {
        let place = self.index.get(gref.0 as usize).copied().unwrap_or(NONE);
        if let Some(Some(known)) = self.pages.get_mut(usize::from(place)) {
            known.used = true;
            known.age = 0;
            return Ok(Found {
                page: Arc::clone(&known.page),
                registered: known.registered.then_some(place),
                transient: false,
            });
        }
        let key = self.key(gref, access);
        let found = self.batch.binary_search_by_key(&key, |(key, _)| *key);
        match found.ok().and_then(|at| self.batch.get(at)) {
            Some((_, Ok(page))) => Ok(Found {
                page: Arc::clone(page),
                registered: None,
                transient: true,
            }),
            Some((_, Err(error))) => Err(Missing::Refused(*error)),
            None => Err(Missing::Unmapped),
        }
    }

    /// Maps what is missing for requests with these references, in one batch. The pages that do
    /// not become persistent can be had with [`Pool::buffer`] until [`Pool::settle`].
    ///
    /// Returns how many were mapped, or tried.
    pub(crate) fn map(
        &mut self,
        wanted: impl Iterator<Item = (GrantRef, Access)>,
        image: &mut dyn ImageQueue<Buffer<G::Mapping>>,
    ) -> usize {
        let mut missing = Vec::new();
        for (gref, access) in wanted {
            match self.page(gref, access) {
                Ok(found) => self.held.push(found.page),
                Err(Missing::Unmapped) => missing.push(self.key(gref, access)),
                Err(Missing::Refused(_)) => {}
            }
        }
        missing.sort_unstable();
        missing.dedup();
        for (writable, access) in [(false, Access::ReadOnly), (true, Access::ReadWrite)] {
            let keys = missing.iter().filter(|key| key.writable == writable);
            let refs: Vec<GrantRef> = keys.map(|key| key.gref).collect();
            if refs.is_empty() {
                continue;
            }
            let mut mapped = Vec::with_capacity(refs.len());
            // What was mapped by one call may be unmapped only when the last of it goes: pages
            // that are to stay, each for its own time, are mapped one by one.
            let together = if self.limit > 0 { 1 } else { refs.len() };
            for refs in refs.chunks(together) {
                self.grants.map_each(self.peer, refs, access, &mut mapped);
            }
            let enough = !mapped
                .iter()
                .any(|mapping| matches!(mapping, Err(MapError::Host(libc::ENOMEM))));
            if !enough {
                mapped.clear();
                self.shed(image);
                self.grants.map_each(self.peer, &refs, access, &mut mapped);
            }
            for (gref, mapping) in refs.into_iter().zip(mapped) {
                let page = match mapping.map(|mapping| Arc::new(Page(mapping))) {
                    Ok(page) if enough => match self.keep(gref, page, image) {
                        Some(page) => Ok(page),
                        None => continue,
                    },
                    // All together: they go when the last of them does.
                    page => page,
                };
                self.batch.push((Key { gref, writable }, page));
            }
        }
        self.batch.sort_unstable_by_key(|(key, _)| *key);
        missing.len()
    }

    /// How many pages stay mapped.
    pub(crate) fn persistent(&self) -> usize {
        self.pages.len() - self.vacant.len()
    }

    /// Makes a page persistent, or gives it back.
    fn keep(
        &mut self,
        gref: GrantRef,
        page: Arc<Page<G::Mapping>>,
        image: &mut dyn ImageQueue<Buffer<G::Mapping>>,
    ) -> Option<Arc<Page<G::Mapping>>> {
        let number = gref.0 as usize;
        if self.limit == 0 || number >= INDEXED {
            return Some(page);
        }
        let place = if self.persistent() < self.limit {
            self.vacant.pop().map_or(self.pages.len(), usize::from)
        } else {
            match self.give_up_one(image) {
                Some(place) => place,
                None => return Some(page),
            }
        };
        self.held.push(Arc::clone(&page));
        // At most what `limit` was at first, which is less than `NONE`.
        let entry = place as u16;
        let registered = image.register(entry, Registered(Arc::clone(&page))).is_ok();
        let known = Persistent {
            gref,
            page,
            registered,
            used: true,
            age: 0,
        };
        match self.pages.get_mut(place) {
            Some(free) => {
                let before = free.replace(known);
                self.retired
                    .extend(before.and_then(|known| unused(known.page)));
            }
            None => self.pages.push(Some(known)),
        }
        if self.index.len() <= number {
            self.index.resize(number + 1, NONE);
        }
        if let Some(at) = self.index.get_mut(number) {
            *at = entry;
        }
        None
    }

    /// Finds a page that was not used lately and is not in use now, and forgets its reference.
    fn give_up_one(&mut self, image: &mut dyn ImageQueue<Buffer<G::Mapping>>) -> Option<usize> {
        // Once around to find them all used, once more to find one that is still free.
        for _ in 0..2 * self.pages.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.pages.len();
            let Some(Some(known)) = self.pages.get_mut(place) else {
                continue;
            };
            if std::mem::take(&mut known.used) || known.is_in_use() {
                continue;
            }
            self.forget(place, image);
            return Some(place);
        }
        None
    }

    /// Forgets the reference of the page at `place`, which is not in use.
    fn forget(&mut self, place: usize, image: &mut dyn ImageQueue<Buffer<G::Mapping>>) {
        let Some(Some(known)) = self.pages.get_mut(place) else {
            return;
        };
        if std::mem::take(&mut known.registered) {
            drop(image.unregister(place as u16));
        }
        if let Some(at) = self.index.get_mut(known.gref.0 as usize) {
            *at = NONE;
        }
    }

    /// Unmaps every page that is not in use, since the host has no room for more, and will keep
    /// fewer.
    fn shed(&mut self, image: &mut dyn ImageQueue<Buffer<G::Mapping>>) {
        for place in 0..self.pages.len() {
            self.forget_idle(place, image);
        }
        if !self.retired.is_empty() {
            self.grants.unmap_each(std::mem::take(&mut self.retired));
        }
        // Never none: that would be another kind of pool.
        if self.limit > 1 {
            self.limit /= 2;
        }
    }

    /// Unmaps the pages that were not used since this was called [`AGES`] times: a guest that once
    /// was busy does not keep its pages mapped for ever. Those in use stay.
    pub(crate) fn age(&mut self, image: &mut dyn ImageQueue<Buffer<G::Mapping>>) {
        for place in 0..self.pages.len() {
            let Some(Some(known)) = self.pages.get_mut(place) else {
                continue;
            };
            known.age = known.age.saturating_add(1);
            if known.age >= AGES {
                self.forget_idle(place, image);
            }
        }
        if !self.retired.is_empty() {
            self.grants.unmap_each(std::mem::take(&mut self.retired));
        }
    }

    /// Retires the page at `place`, unless it is in use.
    fn forget_idle(&mut self, place: usize, image: &mut dyn ImageQueue<Buffer<G::Mapping>>) {
        let entry = self.pages.get(place).and_then(Option::as_ref);
        if entry.is_none_or(Persistent::is_in_use) {
            return;
        }
        self.forget(place, image);
        if let Some(known) = self.pages.get_mut(place).and_then(Option::take) {
            self.retired.extend(unused(known.page));
            self.vacant.push(place as u16);
        }
    }

    /// Takes back a buffer that nobody works on any more.
    pub(crate) fn recycle(&mut self, mut buffer: Buffer<G::Mapping>) {
        if buffer.transient {
            let pages = buffer.pieces.drain(..).map(|piece| piece.page);
            self.retired.extend(pages.filter_map(unused));
        } else {
            buffer.pieces.clear();
        }
        buffer.registered = None;
        buffer.transient = false;
        self.spare.push(buffer);
    }

    /// The requests that [`Pool::map`] was called for have their buffers.
    pub(crate) fn started(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.retired.extend(held.into_iter().filter_map(unused));
    }

    /// Ends the batch: unmaps, in one go, the pages that were mapped for requests that are over.
    pub(crate) fn settle(&mut self) {
        let batch = self.batch.drain(..).filter_map(|(_, page)| page.ok());
        self.retired.extend(batch.filter_map(unused));
        if !self.retired.is_empty() {
            self.grants.unmap_each(std::mem::take(&mut self.retired));
        }
    }
}

impl<G: Grants> Drop for Pool<G> {
    fn drop(&mut self) {
        let pages = self.pages.drain(..).flatten().map(|known| known.page);
        self.retired.extend(pages.filter_map(unused));
        self.settle();
    }
}

/// The mapping of a page that nobody else holds.
fn unused<M>(page: Arc<Page<M>>) -> Option<M> {
    Arc::into_inner(page).map(|Page(mapping)| mapping)
}

#[cfg(test)]
mod tests {
    use parapet_hypervisor::host::Page as _;
    use parapet_hypervisor::loopback::{self, Domain, DomainConfig, Hypervisor};
    use parapet_hypervisor::memory::PAGE_SIZE;
    use parapet_hypervisor::seam::{
        CopyOp, Grant, GrantError, Identity, Memory, OutOfMemory, Pages,
    };

    use super::*;
    use crate::image::{Job, Submitted};

    type Lent = Buffer<loopback::Mapping>;

    /// An image that only has a table of registered buffers.
    #[derive(Default)]
    struct Table {
        places: [Option<Registered<loopback::Mapping>>; 2],
    }

    impl ImageQueue<Lent> for Table {
        fn submit(&mut self, job: Job<Lent>) -> Submitted<Lent> {
            Submitted::Full(job)
        }

        fn register(
            &mut self,
            place: u16,
            page: Registered<loopback::Mapping>,
        ) -> Result<(), Registered<loopback::Mapping>> {
            match self.places.get_mut(usize::from(place)) {
                Some(free @ None) => {
                    *free = Some(page);
                    Ok(())
                }
                _ => Err(page),
            }
        }

        fn unregister(&mut self, place: u16) -> Option<Registered<loopback::Mapping>> {
            self.places.get_mut(usize::from(place))?.take()
        }
    }

    struct World {
        _hypervisor: Hypervisor,
        dom0: Domain,
        guest: Domain,
        pages: loopback::Pages,
        grant: loopback::Grant,
    }

    /// A guest that has granted `count` pages, each beginning with its number.
    fn world(count: usize, access: Access) -> World {
        let hypervisor = Hypervisor::new(loopback::Config::default()).unwrap();
        let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
        let guest = hypervisor.create(DomainConfig::default()).unwrap();
        let pages = guest.allocate(count).unwrap();
        for page in 0..count {
            pages
                .view()
                .write(page * PAGE_SIZE, &(page as u32))
                .unwrap();
        }
        let grant = guest.grant(&pages, dom0.domid(), access).unwrap();
        World {
            _hypervisor: hypervisor,
            dom0,
            guest,
            pages,
            grant,
        }
    }

    /// A place with room for so many mappings, where one call makes one.
    struct Scarce {
        domain: Domain,
        most: usize,
    }

    impl Memory for Scarce {
        type Pages = loopback::Pages;

        fn allocate(&self, count: usize) -> Result<Self::Pages, OutOfMemory> {
            self.domain.allocate(count)
        }
    }

    impl Grants for Scarce {
        type Grant = loopback::Grant;
        type Mapping = loopback::Mapping;

        fn grant(
            &self,
            pages: &Self::Pages,
            to: DomId,
            access: Access,
        ) -> Result<Self::Grant, GrantError> {
            self.domain.grant(pages, to, access)
        }

        fn map(
            &self,
            from: DomId,
            refs: &[GrantRef],
            access: Access,
        ) -> Result<Self::Mapping, MapError> {
            self.domain.map(from, refs, access)
        }

        fn map_each(
            &self,
            from: DomId,
            refs: &[GrantRef],
            access: Access,
            out: &mut Vec<Result<Self::Mapping, MapError>>,
        ) {
            if self.domain.mappings() < self.most {
                self.domain.map_each(from, refs, access, out);
            } else {
                out.extend(refs.iter().map(|_| Err(MapError::Host(libc::ENOMEM))));
            }
        }

        fn copy(&self, ops: &mut [CopyOp<'_, Self::Pages>]) -> Result<(), i32> {
            self.domain.copy(ops)
        }
    }

    impl World {
        fn pool(&self, persistent: u16) -> Pool<Domain> {
            Pool::new(self.dom0.clone(), self.guest.domid(), persistent)
        }

        fn segments(&self, pages: &[usize]) -> Vec<Segment> {
            let segment = |&page: &usize| Segment {
                gref: self.grant.refs()[page],
                first_sect: 0,
                last_sect: 7,
                ..Default::default()
            };
            pages.iter().map(segment).collect()
        }

        /// The memory of a request for these pages, mapped if need be. How many were mapped, too.
        fn lend<G: Grants<Mapping = loopback::Mapping>>(
            &self,
            pool: &mut Pool<G>,
            table: &mut Table,
            pages: &[usize],
            access: Access,
        ) -> (Lent, usize) {
            let segments = self.segments(pages);
            let mut mapped = 0;
            if pool.buffer(&segments, access).err() == Some(Missing::Unmapped) {
                let wanted = segments.iter().map(|segment| (segment.gref, access));
                mapped = pool.map(wanted, table);
            }
            let buffer = pool.buffer(&segments, access).unwrap();
            pool.started();
            (buffer, mapped)
        }
    }

    fn numbers(buffer: &Lent) -> Vec<u32> {
        buffer.sources().map(|part| part.read(0).unwrap()).collect()
    }

    #[test]
    fn a_persistent_page_is_mapped_once_and_serves_reads_and_writes() {
        let world = world(3, Access::ReadWrite);
        let (mut pool, mut table) = (world.pool(8), Table::default());
        let (buffer, mapped) = world.lend(&mut pool, &mut table, &[2, 0, 2], Access::ReadOnly);
        assert_eq!((numbers(&buffer), mapped), (vec![2, 0, 2], 2));
        pool.recycle(buffer);
        pool.settle();
        assert_eq!(world.dom0.mappings(), 2);
        let (buffer, mapped) = world.lend(&mut pool, &mut table, &[0, 1], Access::ReadWrite);
        assert_eq!((numbers(&buffer), mapped), (vec![0, 1], 1));
        assert_eq!(buffer.targets().count(), 2);
    }

    #[test]
    fn a_segment_is_its_part_of_the_page() {
        let world = world(1, Access::ReadWrite);
        let (mut pool, mut table) = (world.pool(8), Table::default());
        let mut segments = world.segments(&[0]);
        segments[0].first_sect = 3;
        segments[0].last_sect = 4;
        let wanted = [(segments[0].gref, Access::ReadWrite)];
        pool.map(wanted.into_iter(), &mut table);
        let buffer = pool.buffer(&segments, Access::ReadWrite).unwrap();
        for part in buffer.targets() {
            part.write_bytes(0, &[7; 1024]).unwrap();
        }
        let mut page = [0; PAGE_SIZE];
        world.pages.view().read_bytes(0, &mut page).unwrap();
        assert!(page[1536..2560].iter().all(|&byte| byte == 7));
        assert!(page[4..1536].iter().chain(&page[2560..]).all(|&b| b == 0));
    }

    #[test]
    fn without_persistent_grants_nothing_stays_mapped_after_the_batch() {
        let world = world(4, Access::ReadOnly);
        let (mut pool, mut table) = (world.pool(0), Table::default());
        let (first, mapped) = world.lend(&mut pool, &mut table, &[0, 1, 2], Access::ReadOnly);
        assert_eq!(mapped, 3);
        // A second request of the batch finds what the first had mapped.
        let (second, mapped) = world.lend(&mut pool, &mut table, &[2], Access::ReadOnly);
        assert_eq!((numbers(&second), mapped), (vec![2], 0));
        pool.settle();
        assert_eq!(
            world.dom0.mappings(),
            3,
            "requests in flight keep their pages"
        );
        pool.recycle(first);
        pool.settle();
        assert_eq!(world.dom0.mappings(), 1);
        pool.recycle(second);
        pool.settle();
        assert_eq!(world.dom0.mappings(), 0);
    }

    #[test]
    fn a_read_only_grant_cannot_be_read_into() {
        let world = world(1, Access::ReadOnly);
        let (mut pool, mut table) = (world.pool(0), Table::default());
        let segments = world.segments(&[0]);
        let wanted = [(segments[0].gref, Access::ReadWrite)];
        pool.map(wanted.into_iter(), &mut table);
        match pool.buffer(&segments, Access::ReadWrite) {
            Err(Missing::Refused(error)) => assert!(error.is_peers_fault(), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bad_reference_spoils_its_own_request_only() {
        let world = world(2, Access::ReadWrite);
        for persistent in [0, 8] {
            let (mut pool, mut table) = (world.pool(persistent), Table::default());
            let good = world.segments(&[0]);
            let mut bad = world.segments(&[1]);
            for gref in [1 << 14, 1 << 25, u32::MAX] {
                bad[0].gref = GrantRef(gref);
                let both = good.iter().chain(&bad);
                let wanted = both.map(|segment| (segment.gref, Access::ReadWrite));
                pool.map(wanted, &mut table);
                assert!(pool.buffer(&good, Access::ReadWrite).is_ok());
                let refused = pool.buffer(&bad, Access::ReadWrite);
                assert!(matches!(refused, Err(Missing::Refused(_))), "{refused:?}");
                pool.settle();
            }
        }
    }

    #[test]
    fn the_page_that_was_not_used_lately_goes_when_a_new_one_comes() {
        let world = world(4, Access::ReadWrite);
        let (mut pool, mut table) = (world.pool(2), Table::default());
        for page in [0, 1, 2] {
            let (buffer, mapped) = world.lend(&mut pool, &mut table, &[page], Access::ReadOnly);
            assert_eq!((numbers(&buffer), mapped), (vec![page as u32], 1));
            pool.recycle(buffer);
            pool.settle();
        }
        assert_eq!(world.dom0.mappings(), 2);
        let (buffer, mapped) = world.lend(&mut pool, &mut table, &[2, 1], Access::ReadOnly);
        assert_eq!((numbers(&buffer), mapped), (vec![2, 1], 0), "page 0 went");
        pool.recycle(buffer);
    }

    #[test]
    fn pages_that_were_not_used_for_long_go_and_those_in_use_stay() {
        let world = world(4, Access::ReadWrite);
        let (mut pool, mut table) = (world.pool(8), Table::default());
        let (in_flight, _) = world.lend(&mut pool, &mut table, &[0], Access::ReadOnly);
        let (idle, _) = world.lend(&mut pool, &mut table, &[1, 2], Access::ReadOnly);
        pool.recycle(idle);
        for _ in 1..AGES {
            pool.age(&mut table);
        }
        assert_eq!(world.dom0.mappings(), 3);
        let (used, mapped) = world.lend(&mut pool, &mut table, &[2], Access::ReadOnly);
        assert_eq!(mapped, 0);
        pool.recycle(used);
        pool.age(&mut table);
        assert_eq!((world.dom0.mappings(), pool.persistent()), (2, 2));
        assert_eq!(numbers(&in_flight), [0]);
        pool.recycle(in_flight);
        for _ in 0..AGES {
            pool.age(&mut table);
        }
        assert_eq!((world.dom0.mappings(), pool.persistent()), (0, 0));
        let (again, mapped) = world.lend(&mut pool, &mut table, &[1], Access::ReadOnly);
        assert_eq!((numbers(&again), mapped), (vec![1], 1));
    }

    #[test]
    fn a_page_in_flight_is_never_given_up() {
        let world = world(4, Access::ReadWrite);
        let (mut pool, mut table) = (world.pool(2), Table::default());
        let (in_flight, _) = world.lend(&mut pool, &mut table, &[0, 1], Access::ReadOnly);
        let (guest_of_the_batch, _) = world.lend(&mut pool, &mut table, &[3], Access::ReadOnly);
        assert_eq!(world.dom0.mappings(), 3);
        assert_eq!(numbers(&guest_of_the_batch), [3]);
        pool.recycle(guest_of_the_batch);
        pool.settle();
        assert_eq!(
            world.dom0.mappings(),
            2,
            "the third was mapped for its request alone"
        );
        assert_eq!(numbers(&in_flight), [0, 1]);
        drop(pool);
        assert_eq!(numbers(&in_flight), [0, 1], "also when the pool is gone");
        drop((in_flight, table));
        assert_eq!(world.dom0.mappings(), 0);
    }

    #[test]
    fn a_host_without_room_for_more_gets_back_what_is_not_in_use() {
        let world = world(8, Access::ReadWrite);
        let scarce = Scarce {
            domain: world.dom0.clone(),
            most: 3,
        };
        let mut pool = Pool::new(scarce, world.guest.domid(), 8);
        let mut table = Table::default();
        let (in_flight, _) = world.lend(&mut pool, &mut table, &[0], Access::ReadWrite);
        let (buffer, _) = world.lend(&mut pool, &mut table, &[1, 2], Access::ReadWrite);
        pool.recycle(buffer);
        pool.settle();
        assert_eq!((world.dom0.mappings(), pool.persistent()), (3, 3));

        let (buffer, _) = world.lend(&mut pool, &mut table, &[3, 4, 5], Access::ReadWrite);
        assert_eq!(numbers(&buffer), [3, 4, 5]);
        assert_eq!(numbers(&in_flight), [0]);
        pool.recycle(buffer);
        pool.settle();
        assert_eq!((world.dom0.mappings(), pool.persistent()), (1, 1));

        // In the places that became free, and fewer than before.
        for page in [7, 6, 5, 4, 3] {
            let (buffer, _) = world.lend(&mut pool, &mut table, &[page], Access::ReadWrite);
            assert_eq!(numbers(&buffer), [page as u32]);
            pool.recycle(buffer);
            pool.settle();
        }
        assert!(pool.persistent() <= 3);
        assert_eq!(numbers(&in_flight), [0]);
        drop((in_flight, pool, table));
        assert_eq!(world.dom0.mappings(), 0);
    }

    #[test]
    fn a_registered_page_is_known_by_its_place_until_it_is_given_up() {
        let world = world(3, Access::ReadWrite);
        let (mut pool, mut table) = (world.pool(2), Table::default());
        let (buffer, _) = world.lend(&mut pool, &mut table, &[0], Access::ReadWrite);
        assert_eq!(buffer.registered(), Some(0));
        pool.recycle(buffer);
        let (buffer, _) = world.lend(&mut pool, &mut table, &[1, 0], Access::ReadWrite);
        assert_eq!(buffer.registered(), None, "two pages are not in one place");
        pool.recycle(buffer);
        let (buffer, _) = world.lend(&mut pool, &mut table, &[2], Access::ReadWrite);
        let place = usize::from(buffer.registered().unwrap());
        let registered = table.places[place].as_ref().unwrap();
        assert_eq!(registered.view().read::<u32>(0), Ok(2));
        pool.recycle(buffer);
        drop((pool, table));
        assert_eq!(world.dom0.mappings(), 0);
    }
}
