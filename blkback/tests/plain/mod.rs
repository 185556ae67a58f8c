//! A frontend that is no more than a ring and some granted pages.
#![allow(dead_code, reason = "each test uses its part")]

use parapet_blkback::request::{Layout, X86_32, X86_64};
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::{Access, Channel, Events, Grant, Grants, Memory, Pages};
use parapet_ring::{Front, Own};
use parapet_xen_sys::io::blkif::{self, DiscardFlags, Operation, Segment, Status, x86_32, x86_64};
use parapet_xen_sys::{DomId, GrantRef};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A frontend's view of a layout.
pub(crate) trait Wire: Layout {
    type Request: IntoBytes + Immutable + Copy;
    type Reply: FromBytes;
    fn request(operation: u8, id: u64, sector: u64, segments: &[Segment]) -> Self::Request;
    fn discard(flag: DiscardFlags, id: u64, sector: u64, nr_sectors: u64) -> Self::Request;
    fn indirect(
        operation: u8,
        id: u64,
        sector: u64,
        nr_segments: u16,
        pages: &[GrantRef],
    ) -> Self::Request;
    fn reply(reply: Self::Reply) -> (u64, Status);
}

macro_rules! wire {
    ($layout:ident, $module:ident) => {
        impl Wire for $layout {
            type Request = $module::Request;
            type Reply = $module::Response;

            fn request(operation: u8, id: u64, sector: u64, segments: &[Segment]) -> Self::Request {
                let mut seg = [Segment::default(); blkif::MAX_SEGMENTS_PER_REQUEST];
                seg[..segments.len()].copy_from_slice(segments);
                $module::Request {
                    operation,
                    nr_segments: segments.len() as u8,
                    id,
                    sector_number: sector,
                    seg,
                    ..Default::default()
                }
            }

            fn discard(flag: DiscardFlags, id: u64, sector: u64, nr_sectors: u64) -> Self::Request {
                zerocopy::transmute!($module::Discard {
                    operation: Operation::Discard as u8,
                    flag,
                    id,
                    sector_number: sector,
                    nr_sectors,
                    ..Default::default()
                })
            }

            fn indirect(
                operation: u8,
                id: u64,
                sector: u64,
                nr_segments: u16,
                pages: &[GrantRef],
            ) -> Self::Request {
                let mut indirect_grefs = [GrantRef(0); blkif::MAX_INDIRECT_PAGES_PER_REQUEST];
                indirect_grefs[..pages.len()].copy_from_slice(pages);
                zerocopy::transmute!($module::Indirect {
                    operation: Operation::Indirect as u8,
                    indirect_op: operation,
                    nr_segments,
                    id,
                    sector_number: sector,
                    indirect_grefs,
                    ..Default::default()
                })
            }

            fn reply(reply: Self::Reply) -> (u64, Status) {
                (reply.id, reply.status)
            }
        }
    };
}

wire!(X86_64, x86_64);
wire!(X86_32, x86_32);

pub(crate) const PAGES: usize = 64;

/// The frontend.
pub(crate) struct Plain<W: Wire> {
    pub(crate) ring: Front<Own<loopback::Pages>, W::Request, W::Reply>,
    pub(crate) ring_memory: loopback::Pages,
    pub(crate) ring_grant: loopback::Grant,
    pub(crate) channel: loopback::Channel,
    pub(crate) pages: loopback::Pages,
    pub(crate) grant: loopback::Grant,
}

impl<W: Wire> Plain<W> {
    /// One with `PAGES` pages granted to `backend`.
    pub(crate) fn new(guest: &Domain, backend: DomId) -> Self {
        let granted = |count| {
            let pages = guest.allocate(count).unwrap();
            let grant = guest.grant(&pages, backend, Access::ReadWrite).unwrap();
            (pages, grant)
        };
        let (ring_memory, ring_grant) = granted(1);
        let (pages, grant) = granted(PAGES);
        Plain {
            ring: Front::new(Own(ring_memory.clone())).unwrap(),
            ring_memory,
            ring_grant,
            channel: guest.alloc_unbound(backend).unwrap(),
            pages,
            grant,
        }
    }

    pub(crate) fn gref(&self, page: usize) -> GrantRef {
        self.grant.refs()[page]
    }

    /// Sectors `first` to `last` of each page.
    pub(crate) fn segments(
        &self,
        pages: std::ops::Range<usize>,
        first: u8,
        last: u8,
    ) -> Vec<Segment> {
        pages
            .map(|page| Segment {
                gref: self.gref(page),
                first_sect: first,
                last_sect: last,
                ..Default::default()
            })
            .collect()
    }

    pub(crate) fn push(
        &mut self,
        operation: Operation,
        id: u64,
        sector: u64,
        segments: &[Segment],
    ) {
        let request = W::request(operation as u8, id, sector, segments);
        self.ring.push(&request).unwrap();
    }

    /// Sends a request as it is, and waits for the answer to it.
    pub(crate) fn run_raw(&mut self, request: W::Request) -> (u64, Status) {
        self.ring.push(&request).unwrap();
        self.publish();
        self.reply()
    }

    /// Discards sectors.
    pub(crate) fn discard(&mut self, flag: DiscardFlags, sector: u64, nr_sectors: u64) -> Status {
        self.run_raw(W::discard(flag, 42, sector, nr_sectors)).1
    }

    /// Puts segments into a page, for an indirect request.
    pub(crate) fn put_segments(&self, page: usize, segments: &[Segment]) {
        let bytes = segments.as_bytes();
        let view = self.pages.view();
        view.write_bytes(page * PAGE_SIZE, bytes).unwrap();
    }

    /// Reads or writes with the segments in a page of their own.
    pub(crate) fn run_indirect(
        &mut self,
        operation: Operation,
        sector: u64,
        segments: &[Segment],
        page: usize,
    ) -> Status {
        self.put_segments(page, segments);
        let (count, pages) = (segments.len() as u16, [self.gref(page)]);
        let request = W::indirect(operation as u8, 42, sector, count, &pages);
        self.run_raw(request).1
    }

    pub(crate) fn publish(&mut self) {
        if self.ring.publish() {
            self.channel.notify();
        }
    }

    pub(crate) fn reply(&mut self) -> (u64, Status) {
        loop {
            if let Some(reply) = self.ring.take().unwrap() {
                return W::reply(reply);
            }
            if !self.ring.arm().unwrap() {
                block_on(self.channel.wait());
            }
        }
    }

    pub(crate) fn run(
        &mut self,
        operation: Operation,
        sector: u64,
        segments: &[Segment],
    ) -> Status {
        self.push(operation, 42, sector, segments);
        self.publish();
        let (id, status) = self.reply();
        assert_eq!(id, 42);
        status
    }

    pub(crate) fn fill(&self, page: usize, byte: u8) {
        let bytes = [byte; PAGE_SIZE];
        self.pages
            .view()
            .write_bytes(page * PAGE_SIZE, &bytes)
            .unwrap();
    }

    pub(crate) fn page(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        self.pages
            .view()
            .read_bytes(page * PAGE_SIZE, &mut bytes)
            .unwrap();
        bytes
    }
}
