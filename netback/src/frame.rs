//! Frames on their way from one vif to another, or to and from the host.
//!
//! ```text
//!            Pool ── take ──▶ Frame ──▶ port ──▶ … ──▶ whoever has it last
//!             ▲                                              │ drop
//!             └──────────── collect ◀── Home ◀───────────────┘
//! ```
//!
//! A frame is a *head*, its first bytes, copied out of the guest's memory once, so that what was
//! checked is what is sent; and *parts*, the rest, which stay where they are: in pages of the
//! pool's own, or in a guest's pages that are mapped for as long as the guest says. Short frames
//! are all head.
//!
//! Whoever drops a frame sends it home, from whichever task; its owner then answers the guest's
//! requests and uses its memory again. Nothing is allocated for a frame.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use parapet_hypervisor::memory::{OutOfView, PAGE_SIZE, ReadOnly, View};
use parapet_hypervisor::seam::{CopyEnd, Grants, Mapping, OutOfMemory, Pages};
use parapet_packet::headers::ether_type;
use parapet_packet::{Mac, Offloads};
use parapet_xen_sys::DomId;
use parapet_xen_sys::grant_table::GrantRef;

use crate::bell::Bell;

/// The longest head, in bytes: more than all headers that we look at.
pub const HEAD: usize = 256;

/// Bytes of both addresses, after which a tag would be.
const ADDRESSES: usize = 12;

/// Bytes of a VLAN tag, for which a head has room beside [`HEAD`].
const TAG: usize = 4;

/// The longest head that a frame has, when a tag was pushed into one of [`HEAD`] bytes.
pub const TAGGED_HEAD: usize = HEAD + TAG;

/// Parts that a frame may have: eighteen slots, of which the first is split by the head, and one
/// to spare.
pub const PARTS: usize = 19;

/// The longest frame.
pub const LONGEST: usize = 0xFFFF;

/// A hash that a frame came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash {
    /// What it was made of: `HashType` of `netif.h`.
    pub kind: u8,
    /// Its value.
    pub value: u32,
}

/// Pages that a guest keeps granted, and we keep mapped.
pub struct Static<P: Grants> {
    /// All of them, in this order.
    pub mapping: P::Mapping,
    /// Their references.
    pub refs: Box<[GrantRef]>,
}

/// The memory that the parts of frames are in.
pub struct Memory<P: Grants> {
    /// Pages of our own.
    local: P::Pages,
    /// Whose the others are.
    peer: DomId,
    statics: Vec<Arc<Static<P>>>,
}

/// A page of a [`Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// One of our own.
    Local(u16),
    /// One of a guest's.
    Static {
        /// Which mapping.
        mapping: u16,
        /// Which page of it.
        page: u16,
    },
}

/// A run of bytes in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The page.
    pub page: Page,
    /// The first byte.
    pub offset: u16,
    /// How many; the run is within the page.
    pub len: u16,
}

const NO_PART: Part = Part {
    page: Page::Local(0),
    offset: 0,
    len: 0,
};

impl<P: Grants> Memory<P> {
    /// The bytes of a part, if there are such.
    #[inline]
    pub fn view(&self, part: Part) -> Result<View<'_, ReadOnly>, OutOfView> {
        let (offset, len) = (usize::from(part.offset), usize::from(part.len));
        let at = |page: u16| usize::from(page) * PAGE_SIZE + offset;
        match part.page {
            Page::Local(page) => self.local.view().read_only().slice(at(page), len),
            Page::Static { mapping, page } => match self.statics.get(usize::from(mapping)) {
                Some(pages) => pages.mapping.view().slice(at(page), len),
                None => Err(OutOfView {
                    offset,
                    len,
                    size: 0,
                }),
            },
        }
    }

    /// Our own pages, to write.
    pub fn local(&self) -> &P::Pages {
        &self.local
    }

    /// The guest's pages that are mapped.
    pub fn statics(&self) -> &[Arc<Static<P>>] {
        &self.statics
    }

    /// A part as an end of a grant copy, if there is such.
    pub fn copy_end(&self, part: Part) -> Option<CopyEnd<'_, P::Pages>> {
        match part.page {
            Page::Local(page) => Some(CopyEnd::Local {
                pages: &self.local,
                offset: usize::from(page) * PAGE_SIZE + usize::from(part.offset),
            }),
            Page::Static { mapping, page } => {
                let pages = self.statics.get(usize::from(mapping))?;
                Some(CopyEnd::Granted {
                    domid: self.peer,
                    gref: *pages.refs.get(usize::from(page))?,
                    offset: part.offset,
                })
            }
        }
    }
}

/// A frame. Dropping it sends it home.
pub struct Frame<P: Grants>(Option<Box<Inner<P>>>);

struct Inner<P: Grants> {
    head: [u8; TAGGED_HEAD],
    head_len: u16,
    part_count: u16,
    len: u32,
    tag: u32,
    offloads: Offloads,
    hash: Option<Hash>,
    parts: [Part; PARTS],
    memory: Arc<Memory<P>>,
    home: Arc<Home<P>>,
}

/// A frame has no room for another part, or would be too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame has at most {PARTS} parts and {LONGEST} bytes")]
pub struct FrameFull;

impl<P: Grants> Frame<P> {
    #[inline]
    fn inner(&self) -> &Inner<P> {
        self.0.as_ref().expect("taken only by drop and recycle")
    }

    #[inline]
    fn inner_mut(&mut self) -> &mut Inner<P> {
        self.0.as_mut().expect("taken only by drop and recycle")
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no frame is empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.inner().len as usize
    }

    /// Its first bytes: ours, no guest can change them.
    #[inline]
    pub fn head(&self) -> &[u8] {
        let inner = self.inner();
        &inner.head[..usize::from(inner.head_len)]
    }

    /// Its first bytes, to be changed.
    pub fn head_mut(&mut self) -> &mut [u8] {
        let inner = self.inner_mut();
        &mut inner.head[..usize::from(inner.head_len)]
    }

    /// What follows the head.
    #[inline]
    pub fn parts(&self) -> &[Part] {
        let inner = self.inner();
        &inner.parts[..usize::from(inner.part_count)]
    }

    /// The memory that its parts are in.
    #[inline]
    pub fn memory(&self) -> &Memory<P> {
        &self.inner().memory
    }

    /// The bytes of its parts, in order. The guest may change them at any time.
    pub fn views(&self) -> impl Iterator<Item = View<'_, ReadOnly>> {
        let memory = self.memory();
        // Parts were checked when they were added.
        self.parts()
            .iter()
            .filter_map(move |&part| memory.view(part).ok())
    }

    /// What is left to be done to it.
    #[inline]
    pub fn offloads(&self) -> Offloads {
        self.inner().offloads
    }

    /// Says what is left to be done to it.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.inner_mut().offloads = offloads;
    }

    /// The hash that its sender gave it.
    pub fn hash(&self) -> Option<Hash> {
        self.inner().hash
    }

    /// Gives it a hash.
    pub fn set_hash(&mut self, hash: Option<Hash>) {
        self.inner_mut().hash = hash;
    }

    /// The owner's own number for it.
    pub fn tag(&self) -> u32 {
        self.inner().tag
    }

    /// Sets the owner's own number for it.
    pub fn set_tag(&mut self, tag: u32) {
        self.inner_mut().tag = tag;
    }

    /// For whom it is; nobody if it is too short to be a frame.
    #[inline]
    pub fn destination(&self) -> Option<Mac> {
        self.head().first_chunk().copied().map(Mac)
    }

    /// Whom it is from.
    #[inline]
    pub fn source(&self) -> Option<Mac> {
        self.head().get(6..)?.first_chunk().copied().map(Mac)
    }

    /// Makes `len` bytes of head, for the caller to fill.
    ///
    /// # Errors
    /// It is longer than [`HEAD`] and a VLAN tag, or there are parts already.
    pub fn make_head(&mut self, len: usize) -> Result<&mut [u8], FrameFull> {
        let inner = self.inner_mut();
        if len > inner.head.len() || inner.part_count != 0 {
            return Err(FrameFull);
        }
        // At most `TAGGED_HEAD`.
        inner.head_len = len as u16;
        inner.len = len as u32;
        Ok(&mut inner.head[..len])
    }

    /// Puts a VLAN tag before whatever the frame carries: it is then of that VLAN.
    ///
    /// # Errors
    /// There is no room, as in a frame that got one already, or no Ethernet header.
    pub fn push_tag(&mut self, vlan: u16) -> Result<(), FrameFull> {
        let inner = self.inner_mut();
        let old = usize::from(inner.head_len);
        let fits = old + TAG <= inner.head.len() && inner.len as usize + TAG <= LONGEST;
        if !fits || old < ADDRESSES {
            return Err(FrameFull);
        }
        inner.head.copy_within(ADDRESSES..old, ADDRESSES + TAG);
        let tag = &mut inner.head[ADDRESSES..ADDRESSES + TAG];
        tag[..2].copy_from_slice(&ether_type::VLAN.to_be_bytes());
        tag[2..].copy_from_slice(&vlan.to_be_bytes());
        inner.head_len += TAG as u16;
        inner.len += TAG as u32;
        Ok(())
    }

    /// Takes the outermost VLAN tag away, if its head has one.
    pub fn pop_tag(&mut self) {
        let inner = self.inner_mut();
        let old = usize::from(inner.head_len);
        let kind = inner.head[..old].get(ADDRESSES..ADDRESSES + 2);
        let tagged = [ether_type::VLAN, ether_type::SERVICE_VLAN]
            .map(u16::to_be_bytes)
            .iter()
            .any(|tag| kind == Some(tag));
        if tagged && old >= ADDRESSES + TAG {
            inner.head.copy_within(ADDRESSES + TAG..old, ADDRESSES);
            inner.head_len -= TAG as u16;
            inner.len -= TAG as u32;
        }
    }

    /// Adds a part at the end.
    ///
    /// # Errors
    /// It is full, or the memory has no such part.
    pub fn push(&mut self, part: Part) -> Result<(), FrameFull> {
        let inner = self.inner_mut();
        let len = inner.len + u32::from(part.len);
        if len as usize > LONGEST || inner.memory.view(part).is_err() {
            return Err(FrameFull);
        }
        let slot = inner.parts.get_mut(usize::from(inner.part_count));
        *slot.ok_or(FrameFull)? = part;
        inner.part_count += 1;
        inner.len = len;
        Ok(())
    }

    /// Copies bytes out, from `offset` on, wherever they are; how many there were.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        let head = self.head();
        let mut done = 0;
        if let Some(from) = head.get(offset..) {
            done = from.len().min(to.len());
            to[..done].copy_from_slice(&from[..done]);
        }
        let mut skip = offset.saturating_sub(head.len());
        for view in self.views() {
            if done == to.len() {
                break;
            }
            let skipped = skip.min(view.len());
            skip -= skipped;
            let len = (view.len() - skipped).min(to.len() - done);
            if len > 0 && view.read_bytes(skipped, &mut to[done..done + len]).is_ok() {
                done += len;
            }
        }
        done
    }
}

impl<P: Grants> Drop for Frame<P> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            let home = Arc::clone(&inner.home);
            home.take_in(inner);
        }
    }
}

impl<P: Grants> fmt::Debug for Frame<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.len())
    }
}

/// Where the frames of a pool go when they are dropped.
struct Home<P: Grants> {
    returned: ArrayQueue<Box<Inner<P>>>,
    bell: Arc<Bell>,
    /// The pool is gone: nobody collects.
    closed: AtomicBool,
}

impl<P: Grants> Home<P> {
    fn take_in(&self, inner: Box<Inner<P>>) {
        // There is room for all that there are.
        drop(self.returned.push(inner));
        self.bell.ring();
        // A box in there holds the home itself.
        if self.closed.load(Ordering::SeqCst) {
            while self.returned.pop().is_some() {}
        }
    }
}

/// Frames, and the memory that they are in, of one owner.
pub struct Pool<P: Grants> {
    memory: Arc<Memory<P>>,
    home: Arc<Home<P>>,
    #[expect(clippy::vec_box, reason = "they are lent as they are")]
    idle: Vec<Box<Inner<P>>>,
    free: Vec<u16>,
    frames: usize,
    pages: usize,
}

impl<P: Grants> Pool<P> {
    /// A pool of so many frames, with so many pages of our own. `bell` is rung for each that comes
    /// home. `peer` is whose pages [`Pool::set_statics`] will give it.
    ///
    /// # Errors
    /// The place has no memory left.
    pub fn new(
        place: &P,
        peer: DomId,
        frames: u16,
        pages: u16,
        bell: Arc<Bell>,
    ) -> Result<Self, OutOfMemory> {
        let memory = Arc::new(Memory {
            local: place.allocate(usize::from(pages.max(1)))?,
            peer,
            statics: Vec::new(),
        });
        let home = Arc::new(Home {
            returned: ArrayQueue::new(usize::from(frames.max(1))),
            bell,
            closed: AtomicBool::new(false),
        });
        let idle = (0..frames)
            .map(|_| {
                Box::new(Inner {
                    head: [0; TAGGED_HEAD],
                    head_len: 0,
                    part_count: 0,
                    len: 0,
                    tag: 0,
                    offloads: Offloads::default(),
                    hash: None,
                    parts: [NO_PART; PARTS],
                    memory: Arc::clone(&memory),
                    home: Arc::clone(&home),
                })
            })
            .collect();
        Ok(Pool {
            memory,
            home,
            idle,
            free: (0..pages).rev().collect(),
            frames: usize::from(frames),
            pages: usize::from(pages),
        })
    }

    /// An empty frame, unless all are lent.
    #[inline]
    pub fn take(&mut self) -> Option<Frame<P>> {
        let mut inner = self.idle.pop()?;
        if !Arc::ptr_eq(&inner.memory, &self.memory) {
            inner.memory = Arc::clone(&self.memory);
        }
        inner.head_len = 0;
        inner.part_count = 0;
        inner.len = 0;
        inner.offloads = Offloads::default();
        inner.hash = None;
        Some(Frame(Some(inner)))
    }

    /// A page of our own, to be a part of a frame of this pool; it comes back with that, or by
    /// [`Pool::give_back`].
    #[inline]
    pub fn take_page(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Gives back a page that became no part of a frame.
    pub fn give_back(&mut self, page: u16) {
        self.free.push(page);
    }

    /// How many frames and pages it has, lent or not.
    pub fn size(&self) -> (usize, usize) {
        (self.frames, self.pages)
    }

    /// A copy of another pool's frame, with whatever is left to be done to it, in pages of this
    /// one; none if there are too few.
    pub fn copy_of(&mut self, other: &Frame<P>) -> Option<Frame<P>> {
        let rest = other.len() - other.head().len();
        if self.free.len() < rest.div_ceil(PAGE_SIZE) {
            return None;
        }
        let mut frame = self.take()?;
        // Whatever becomes of it, it is nobody's request.
        frame.set_tag(u32::MAX);
        let head = other.head();
        frame.make_head(head.len()).ok()?.copy_from_slice(head);
        let (mut page, mut at) = (0, PAGE_SIZE);
        let mut left = rest;
        for view in other.views() {
            let mut from = 0;
            while from < view.len() {
                if at == PAGE_SIZE {
                    (page, at) = (self.take_page()?, 0);
                    let part = Part {
                        page: Page::Local(page),
                        offset: 0,
                        // At most a page.
                        len: left.min(PAGE_SIZE) as u16,
                    };
                    frame.push(part).ok()?;
                    left -= usize::from(part.len);
                }
                let len = (view.len() - from).min(PAGE_SIZE - at);
                let to = usize::from(page) * PAGE_SIZE + at;
                view.copy_to(from, self.memory.local.view(), to, len).ok()?;
                from += len;
                at += len;
            }
        }
        frame.set_offloads(other.offloads());
        frame.set_hash(other.hash());
        Some(frame)
    }

    /// Pages of our own that are free.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Frames that are idle.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The memory of the frames that are taken from now on.
    pub fn memory(&self) -> &Memory<P> {
        &self.memory
    }

    /// Has other pages of the guest mapped for frames that are taken from now on. The ones before
    /// stay mapped until the last frame that may use them is home.
    pub fn set_statics(&mut self, statics: Vec<Arc<Static<P>>>) {
        self.memory = Arc::new(Memory {
            local: self.memory.local.clone(),
            peer: self.memory.peer,
            statics,
        });
        for inner in &mut self.idle {
            inner.memory = Arc::clone(&self.memory);
        }
    }

    /// Takes back a frame of this pool that never left its owner's hands.
    #[inline]
    pub fn recycle(&mut self, mut frame: Frame<P>) {
        if let Some(inner) = frame.0.take() {
            debug_assert!(Arc::ptr_eq(&inner.home, &self.home), "of another pool");
            self.put_back(inner);
        }
    }

    #[inline]
    fn put_back(&mut self, inner: Box<Inner<P>>) {
        for part in &inner.parts[..usize::from(inner.part_count)] {
            if let Page::Local(page) = part.page {
                self.free.push(page);
            }
        }
        let mut inner = inner;
        if !Arc::ptr_eq(&inner.memory, &self.memory) {
            inner.memory = Arc::clone(&self.memory);
        }
        self.idle.push(inner);
    }

    /// Takes back what has come home, and tells the tag of each. Whether there was any.
    pub fn collect(&mut self, mut each: impl FnMut(u32)) -> bool {
        let mut any = false;
        while let Some(inner) = self.home.returned.pop() {
            each(inner.tag);
            self.put_back(inner);
            any = true;
        }
        any
    }

    /// Whether something has come home that was not collected.
    #[inline]
    pub fn has_returned(&self) -> bool {
        !self.home.returned.is_empty()
    }

    /// Frames that are not home.
    pub fn lent(&self) -> usize {
        self.frames - self.idle.len()
    }
}

impl<P: Grants> Drop for Pool<P> {
    fn drop(&mut self) {
        self.home.closed.store(true, Ordering::SeqCst);
        while self.home.returned.pop().is_some() {}
    }
}

impl<P: Grants> fmt::Debug for Pool<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pool({} frames idle, {} pages free)",
            self.idle(),
            self.free_pages()
        )
    }
}
