//! A guest with a vif, and a host that serves it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread;

use futures_channel::oneshot;
use parapet_backend::limit::Limit;
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::Access;
use parapet_hypervisor::seam::prelude::*;
use parapet_netback::bell::Bell;
use parapet_netback::control::{Control, ControlSetup};
use parapet_netback::drops::{Drop as Why, Drops};
use parapet_netback::endpoint::Endpoint;
use parapet_netback::frame::{Frame, Page, Part, Pool};
use parapet_netback::port;
use parapet_netback::queue::{Channels, Patience, Queue, QueueSetup};
use parapet_netback::rx::Receives;
use parapet_netback::statics::Orders;
use parapet_netback::stats::QueueStats;
use parapet_packet::Offloads;
use parapet_ring::{Front, Own, Peer};
use parapet_xen_sys::GrantRef;
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlResponse, ControlType, GrefMapping, RxRequest, RxSlot, Status,
    TxRequest, TxResponse, TxSlot,
};
use zerocopy::IntoBytes;

/// What is in every page at first, so that it can be told which were written to.
pub(super) const PATTERN: u8 = 0xa7;

/// What is at the other end of the vif's port.
pub(super) enum Port {
    /// Nobody.
    Null,
    /// The vif itself.
    Bounce,
}

/// A port to an endpoint, or to nobody.
struct Loop(Option<Arc<Endpoint<Domain>>>);

impl port::Port<Domain> for Loop {
    fn send(&mut self, frames: &mut Vec<Frame<Domain>>, drops: &Drops) {
        if let Some(endpoint) = &self.0 {
            for frame in frames.drain(..) {
                match endpoint.deliver(0, frame) {
                    Ok(queue) => endpoint.ring(queue),
                    Err(_) => drops.count(Why::ReceiverFull, 1),
                }
            }
        }
    }

    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        _: &mut Vec<Frame<Domain>>,
        _: usize,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn is_quiet(&self) -> bool {
        true
    }
}

type Ring<Req, Rsp> = Front<Own<loopback::Pages>, Req, Rsp>;

/// The guest's half of the world, and what there is to see of the other.
pub(super) struct Vif {
    tx: Ring<TxSlot, TxResponse>,
    rx: Ring<RxSlot, RxSlot>,
    control: Ring<ControlRequest, ControlResponse>,
    /// The rings' pages.
    rings: [loopback::Pages; 3],
    channels: [loopback::Channel; 3],
    /// Pages granted to be written; a page granted to be read; a page not granted at all.
    pages: [loopback::Pages; 3],
    /// How many may be written.
    writable: usize,
    /// What a request may name: good and bad, the former first.
    refs: Vec<GrantRef>,
    /// Ids of transmit slots without an answer.
    asked: Vec<u16>,
    next_id: u16,
    posted: VecDeque<RxRequest>,
    endpoint: Arc<Endpoint<Domain>>,
    stats: Arc<QueueStats>,
    stop: Vec<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
    back: Domain,
    _front: Domain,
    _grants: Vec<loopback::Grant>,
    _hypervisor: Hypervisor,
}

impl Vif {
    /// A vif whose guest has so many pages to be written.
    pub(super) fn new(receives: Receives, port: Port, split: bool, writable: usize) -> Self {
        let config = Config {
            pcpus: 1,
            ..Config::default()
        };
        let hypervisor = Hypervisor::new(config).expect("the host has a thread");
        let domain = || {
            let created = hypervisor.create(DomainConfig::default());
            created.expect("the host has memory")
        };
        let (back, front) = (domain(), domain());
        let pages = [writable, 1, 1].map(|count| {
            let pages = front.allocate(count).expect("a few pages");
            let fill = vec![PATTERN; count * PAGE_SIZE];
            pages.view().write_bytes(0, &fill).expect("all of them");
            pages
        });
        let grant = |pages, access| {
            let granted = front.grant(pages, back.domid(), access);
            granted.expect("the grant table has room")
        };
        let [written, read, _] = &pages;
        let mut grants = vec![
            grant(written, Access::ReadWrite),
            grant(read, Access::ReadOnly),
        ];
        let good = grants.iter().flat_map(|grant| grant.refs()).copied();
        let bad = [GrantRef(9999), GrantRef(u32::MAX)];
        let refs = good.chain(bad).collect();
        let rings = [(); 3].map(|()| front.allocate(1).expect("a page"));
        let mut ring = |at: usize| {
            let granted = grant(&rings[at], Access::ReadWrite);
            let mapped = back.map(front.domid(), granted.refs(), Access::ReadWrite);
            grants.push(granted);
            let mapped = mapped.expect("a page that is granted");
            Peer::new(mapped).ok().expect("to be written")
        };
        let [tx_memory, rx_memory, control_memory] = [0, 1, 2].map(&mut ring);
        let channels = [(); 3].map(|()| front.alloc_unbound(back.domid()).expect("a port"));
        let bound = |at: usize| {
            let port = back.bind(front.domid(), channels[at].port());
            port.expect("our port")
        };
        // Before it is bound, its header has to be there.
        let made = "a page is a ring";
        let tx = Front::new(Own(rings[0].clone())).expect(made);
        let rx = Front::new(Own(rings[1].clone())).expect(made);
        let control = Front::new(Own(rings[2].clone())).expect(made);

        let bell = Arc::<Bell>::default();
        let steering = Arc::default();
        let endpoint = Endpoint::new([Arc::clone(&bell)], Arc::clone(&steering));
        let endpoint = Arc::new(endpoint);
        let orders = Arc::new(Orders::new(Arc::clone(&bell)));
        let stats = Arc::<QueueStats>::default();
        let queue = Queue::new(QueueSetup {
            place: back.clone(),
            peer: front.domid(),
            index: 0,
            tx: tx_memory,
            rx: rx_memory,
            channels: match split {
                true => Channels::Split {
                    tx: bound(0),
                    rx: bound(1),
                },
                false => Channels::Joint(bound(0)),
            },
            receives,
            port: Box::new(Loop(match port {
                Port::Null => None,
                Port::Bounce => Some(Arc::clone(&endpoint)),
            })),
            endpoint: Arc::clone(&endpoint),
            bell,
            orders: Arc::clone(&orders),
            multicast: Arc::default(),
            rate: Arc::default(),
            poll: Default::default(),
            patience: Patience::default(),
            stats: Arc::clone(&stats),
            complaints: Limit::new("a fuzzer"),
        });
        let queue = queue.expect("the rings have slots");
        let served = Control::new(ControlSetup {
            place: back.clone(),
            peer: front.domid(),
            ring: control_memory,
            channel: bound(2),
            orders: vec![orders],
            steering,
            complaints: Limit::new("a fuzzer"),
        });
        let served = served.expect("the ring has slots");
        let (ended, outcome) = mpsc::channel();
        let [first, second] = [(); 2].map(|()| oneshot::channel::<()>());
        let done = ended.clone();
        back.spawn(async move {
            drop(queue.run(async { _ = first.1.await }).await);
            // The fuzzer may have panicked.
            let _ = done.send(());
        });
        back.spawn(async move {
            drop(served.run(async { _ = second.1.await }).await);
            let _ = ended.send(());
        });
        Vif {
            tx,
            rx,
            control,
            rings,
            channels,
            pages,
            writable,
            refs,
            asked: Vec::new(),
            next_id: 0,
            posted: VecDeque::new(),
            endpoint,
            stats,
            stop: vec![first.0, second.0],
            ended: outcome,
            back,
            _front: front,
            _grants: grants,
            _hypervisor: hypervisor,
        }
    }

    /// One of the references that there are, good or bad.
    pub(super) fn gref(&self, byte: u8) -> GrantRef {
        let at = usize::from(byte) % self.refs.len();
        self.refs.get(at).copied().unwrap_or_default()
    }

    /// A pool of the host's own.
    pub(super) fn pool(&self) -> Pool<Domain> {
        let pool = Pool::new(&self.back, self.back.domid(), 8, 32, Arc::default());
        pool.expect("the host has memory")
    }

    /// Writes to the beginning of a page.
    pub(super) fn write(&self, page: usize, bytes: &[u8]) {
        self.write_at(page, 0, bytes);
    }

    /// Writes into a page.
    pub(super) fn write_at(&self, page: usize, at: usize, bytes: &[u8]) {
        let view = self.pages[0].view();
        let written = view.write_bytes(page * PAGE_SIZE + at, bytes);
        written.expect("within the page");
    }

    /// What is in a page.
    pub(super) fn page(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_SIZE];
        let view = self.pages[0].view();
        let read = view.read_bytes(page % self.writable * PAGE_SIZE, &mut bytes);
        read.expect("a page that there is");
        bytes
    }

    /// Has the pages that may be written kept mapped.
    pub(super) fn keep_mapped(&mut self) {
        let list: Vec<_> = self
            .refs
            .iter()
            .take(self.writable)
            .map(|&gref| GrefMapping {
                gref,
                ..Default::default()
            })
            .collect();
        self.write(0, list.as_bytes());
        let response = self.ask(ControlRequest {
            id: 0,
            control: ControlType::AddGrefMapping as u16,
            data: [0, self.gref(0).0, self.writable as u32],
        });
        assert_eq!(response.status.0, 0);
    }

    /// Sends a control request, and waits for its answer.
    pub(super) fn ask(&mut self, request: ControlRequest) -> ControlResponse {
        self.control.push(&request).expect("one at a time");
        if self.control.publish() {
            self.channels[2].notify();
        }
        loop {
            if let Some(response) = self.control.take().expect("the backend breaks no ring") {
                return response;
            }
            if !self.control.arm().expect("the backend breaks no ring") {
                block_on(self.channels[2].wait());
            }
        }
    }

    /// Posts all pages that are not posted, filled with the pattern.
    pub(super) fn post_all(&mut self) {
        for page in 0..self.writable as u16 {
            if self.posted.iter().all(|posted| posted.id != page) {
                self.write(page.into(), &[PATTERN; PAGE_SIZE]);
                self.post(page);
            }
        }
        self.publish();
    }

    /// Posts a buffer.
    pub(super) fn post(&mut self, id: u16) {
        let at = usize::from(id) % self.refs.len();
        let request = RxRequest {
            id,
            gref: self.refs.get(at).copied().unwrap_or_default(),
            ..Default::default()
        };
        if self.rx.push(&zerocopy::transmute!(request)).is_ok() {
            self.posted.push_back(request);
        }
    }

    /// The next slot of what was received, and the request that was there before.
    pub(super) fn take_received(&mut self) -> Option<(RxSlot, RxRequest)> {
        let slot = self.rx.take().expect("the backend breaks no ring")?;
        let request = self.posted.pop_front();
        Some((slot, request.expect("no more answers than requests")))
    }

    /// Gives the guest a frame, if there is room in its inbox. Whether there was.
    pub(super) fn deliver(
        &self,
        pool: &mut Pool<Domain>,
        bytes: &[u8],
        head: usize,
        offloads: Offloads,
    ) -> bool {
        let mut frame = pool.take().expect("all are home");
        let (own, rest) = bytes.split_at(head.min(bytes.len()));
        let to = frame.make_head(own.len()).expect("no longer than a head");
        to.copy_from_slice(own);
        for chunk in rest.chunks(PAGE_SIZE) {
            let page = pool.take_page().expect("all are home");
            let at = usize::from(page) * PAGE_SIZE;
            let written = pool.memory().local().view().write_bytes(at, chunk);
            written.expect("a page of the pool's");
            let part = Part {
                page: Page::Local(page),
                offset: 0,
                len: chunk.len() as u16,
            };
            frame.push(part).expect("no longer than a frame");
        }
        frame.set_offloads(offloads);
        match self.endpoint.deliver(0, frame) {
            Ok(queue) => {
                self.endpoint.ring(queue);
                true
            }
            Err(_) => false,
        }
    }

    /// Waits until the host has done something, posting buffers while it waits for them.
    pub(super) fn wait(&mut self, what: &str, is_so: impl Fn(&QueueStats) -> bool) {
        for round in 0..1_000_000 {
            if is_so(&self.stats) {
                return;
            }
            if round == 0 {
                self.post_all();
            }
            thread::yield_now();
        }
        panic!("it did not come about that {what}");
    }

    /// Puts a slot into the transmit ring, with an id of its own.
    pub(super) fn transmit(&mut self, request: TxRequest) {
        let request = TxRequest {
            id: self.next_id,
            ..request
        };
        if self.tx.push(&zerocopy::transmute!(request)).is_ok() {
            self.asked.push(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
        }
    }

    /// Puts a slot into the transmit ring that may or may not be extra information.
    pub(super) fn transmit_raw(&mut self, slot: TxSlot) {
        let mut slot = slot;
        slot[8..10].copy_from_slice(&self.next_id.to_le_bytes());
        if self.tx.push(&slot).is_ok() {
            self.asked.push(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
        }
    }

    /// Shows the host all that was pushed.
    pub(super) fn publish(&mut self) {
        if self.tx.publish() {
            self.channels[0].notify();
        }
        if self.rx.publish() {
            self.channels[1].notify();
            self.channels[0].notify();
        }
    }

    /// Writes a byte into one of the rings.
    pub(super) fn scribble(&self, ring: u8, at: usize, byte: u8) {
        let ring = &self.rings[usize::from(ring) % 2];
        let written = ring.view().write_bytes(at % PAGE_SIZE, &[byte]);
        written.expect("within the page");
        self.channels[0].notify();
    }

    /// Lets the host work for a moment.
    pub(super) fn let_work(&self) {
        let before = self.stats.sleeps.get();
        for _ in 0..200 {
            if self.stats.sleeps.get() != before {
                return;
            }
            thread::yield_now();
        }
    }

    /// Takes the answers that there are: to slots that were asked, each once, but for a frontend
    /// that wrote anything anywhere, which may find anything anywhere.
    pub(super) fn answers(&mut self, wild: bool) {
        while let Ok(Some(TxResponse { id, status })) = self.tx.take() {
            if status != Status::NULL {
                let at = self.asked.iter().position(|asked| *asked == id);
                assert!(
                    wild || at.is_some(),
                    "an answer to {id}, which was not asked"
                );
                if let Some(at) = at {
                    self.asked.swap_remove(at);
                }
            }
        }
        while let Ok(Some(_)) = self.rx.take() {
            self.posted.pop_front();
        }
    }

    /// Ends the vif, and sees that nothing is left of it.
    pub(super) fn end(self) {
        drop(self.stop);
        for _ in 0..2 {
            self.ended.recv().expect("neither task panicked");
        }
        let [_, read, ungranted] = &self.pages;
        for pages in [read, ungranted] {
            let mut bytes = vec![0; pages.view().len()];
            pages.view().read_bytes(0, &mut bytes).expect("all of them");
            assert!(bytes.iter().all(|byte| *byte == PATTERN));
        }
        assert_eq!(self.back.mappings(), 0);
    }
}
