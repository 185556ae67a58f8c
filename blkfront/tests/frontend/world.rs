//! Two domains on a loopback machine, and a backend of a hundred lines that is not ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use parapet_blkfront::{Buffer, Disk, Info, Queue};
use parapet_hypervisor::loopback::{Channel, Config, Domain, DomainConfig, Hypervisor, Mapping};
use parapet_hypervisor::memory::{PAGE_SIZE, View};
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_ring::{Back, BackLink, Peer};
use parapet_xen_sys::io::blkif::native::{Indirect, Request, Response, Slot};
use parapet_xen_sys::io::blkif::{
    Operation, SECTOR_SIZE, SEGMENTS_PER_INDIRECT_PAGE, Segment, Status,
};
use parapet_xen_sys::{DomId, GrantRef, Port};

pub(crate) struct World {
    // Dropped last, and with it whatever runs still.
    pub(crate) back: Domain,
    pub(crate) guest: Domain,
    _hypervisor: Hypervisor,
}

impl World {
    pub(crate) fn new(pcpus: usize) -> Self {
        let hypervisor = Hypervisor::new(Config {
            pcpus,
            ..Config::default()
        })
        .unwrap();
        let named = |name: &str| DomainConfig {
            name: name.into(),
            vcpus: pcpus,
            ..DomainConfig::default()
        };
        let _dom0 = hypervisor.create(named("dom0")).unwrap();
        World {
            back: hypervisor.create(named("back")).unwrap(),
            guest: hypervisor.create(named("guest")).unwrap(),
            _hypervisor: hypervisor,
        }
    }

    /// A queue, and a backend connected to it.
    pub(crate) fn queue(&self) -> (Queue<Domain>, TestBack) {
        let queue = Queue::new(&self.guest, self.back.domid(), 1).unwrap();
        let backend = TestBack::new(
            &self.back,
            self.guest.domid(),
            queue.ring_refs(),
            queue.port(),
        );
        (queue, backend)
    }

    /// A disk, and a backend connected to it that does nothing yet.
    pub(crate) fn disk(&self, info: Info) -> (Disk<Domain>, TestBack) {
        let (queue, backend) = self.queue();
        (Disk::start(&self.guest, queue, info), backend)
    }

    pub(crate) fn buffer(&self, pages: usize) -> Buffer<Domain> {
        Buffer::new(&self.guest, self.back.domid(), pages).unwrap()
    }

    /// After everything was dropped: nothing of the guest is left with anybody.
    pub(crate) fn assert_nothing_is_left(&self) {
        assert_eq!(self.guest.grants_in_use(), 0);
        assert_eq!(self.guest.quarantined(), 0);
        assert_eq!(self.back.mappings(), 0);
    }
}

pub(crate) type Image = Arc<Mutex<Vec<u8>>>;

pub(crate) fn image(sectors: u64) -> Image {
    Arc::new(Mutex::new(vec![0; sectors as usize * SECTOR_SIZE]))
}

/// The back end of a queue, with its pages mapped as they come.
pub(crate) struct TestBack {
    pub(crate) link: BackLink<Peer<Mapping>, Slot, Response, Channel>,
    pub(crate) domain: Domain,
    frontend: DomId,
    /// The ring once more, to be scribbled on.
    ring: Mapping,
    pages: HashMap<GrantRef, Mapping>,
}

pub(crate) fn answer(request: &Request, status: Status) -> Response {
    Response {
        id: request.id,
        operation: request.operation,
        status,
        ..Default::default()
    }
}

impl TestBack {
    /// Maps the ring of `frontend` and binds its port.
    pub(crate) fn new(domain: &Domain, frontend: DomId, refs: &[GrantRef], port: Port) -> Self {
        let map = || domain.map(frontend, refs, Access::ReadWrite).unwrap();
        let Ok(ring) = Peer::new(map()) else {
            panic!("it was mapped to be written");
        };
        let channel = domain.bind(frontend, port).unwrap();
        TestBack {
            link: BackLink::new(Back::attach(ring).unwrap(), channel),
            domain: domain.clone(),
            frontend,
            ring: map(),
            pages: HashMap::new(),
        }
    }

    /// The bytes of the ring, for a backend that does not use it as it should.
    pub(crate) fn ring_view(&self) -> View<'_> {
        self.ring.view_mut().unwrap()
    }

    pub(crate) fn take(&mut self) -> Option<Request> {
        let slot = self.link.ring.take().unwrap();
        slot.map(|slot| zerocopy::transmute!(slot))
    }

    pub(crate) async fn next(&mut self) -> Request {
        zerocopy::transmute!(self.link.next().await.unwrap())
    }

    pub(crate) fn respond(&mut self, response: Response) {
        self.link.ring.push(&response).unwrap();
        self.link.publish();
    }

    /// Does what the request asks for on `image`, and says how that went.
    pub(crate) fn carry_out(&mut self, request: &Request, image: &Image) -> Response {
        let (operation, segments) = self.parse(request);
        let mut image = image.lock().unwrap();
        let mut at = request.sector_number as usize * SECTOR_SIZE;
        for segment in segments {
            let view = self.page(segment.gref);
            let start = usize::from(segment.first_sect) * SECTOR_SIZE;
            let len = (usize::from(segment.last_sect) + 1) * SECTOR_SIZE - start;
            assert!(len > 0 && start + len <= PAGE_SIZE);
            let bytes = &mut image[at..at + len];
            match operation {
                Operation::Read => view.write_bytes(start, bytes).unwrap(),
                Operation::Write | Operation::WriteBarrier => {
                    view.read_bytes(start, bytes).unwrap();
                }
                other => panic!("{other:?} with segments"),
            }
            at += len;
        }
        let operation = operation as u8;
        answer(
            &Request {
                operation,
                ..*request
            },
            Status::OKAY,
        )
    }

    /// What a request asks for, and with which segments, wherever they are.
    pub(crate) fn parse(&mut self, request: &Request) -> (Operation, Vec<Segment>) {
        if request.operation != Operation::Indirect as u8 {
            let segments = request.seg[..usize::from(request.nr_segments)].to_vec();
            return (request.operation.try_into().unwrap(), segments);
        }
        let indirect: Indirect = zerocopy::transmute!(*request);
        let count = usize::from(indirect.nr_segments);
        let segments = (0..count).map(|at| {
            let gref = indirect.indirect_grefs[at / SEGMENTS_PER_INDIRECT_PAGE];
            let at = at % SEGMENTS_PER_INDIRECT_PAGE * size_of::<Segment>();
            self.page(gref).read(at).unwrap()
        });
        let segments = segments.collect();
        (indirect.indirect_op.try_into().unwrap(), segments)
    }

    fn page(&mut self, gref: GrantRef) -> View<'_> {
        let map = || {
            let mapped = self.domain.map(self.frontend, &[gref], Access::ReadWrite);
            mapped.unwrap()
        };
        self.pages
            .entry(gref)
            .or_insert_with(map)
            .view_mut()
            .unwrap()
    }

    /// Serves `image` until the domain goes. What comes together is answered in the wrong order.
    pub(crate) async fn serve(mut self, image: Image) {
        let mut batch = Vec::new();
        loop {
            self.link.wait().await.unwrap();
            while let Some(request) = self.take() {
                batch.push(self.carry_out(&request, &image));
            }
            while let Some(response) = batch.pop() {
                self.link.ring.push(&response).unwrap();
            }
            self.link.publish();
        }
    }
}

/// Waits until something holds that other threads bring about. It fails the test only by hanging
/// for a minute.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}
