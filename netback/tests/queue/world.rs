//! Queues in a loopback world, with frontends that are no more than rings and granted pages.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot;
use parapet_backend::limit::Limit;
use parapet_backend::rate::Bucket;
use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Config, Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Access, Channel};
use parapet_netback::bell::Bell;
use parapet_netback::control::{Control, ControlError, ControlSetup};
use parapet_netback::drops::{Drop as Why, Drops};
use parapet_netback::endpoint::Endpoint;
use parapet_netback::frame::{Frame, Hash, Page, Part, Pool};
use parapet_netback::multicast::Multicast;
use parapet_netback::port::Port;
use parapet_netback::queue::{Channels, Patience, Queue, QueueError, QueueSetup};
use parapet_netback::rx::{GsoForm, Receives};
use parapet_netback::statics::Orders;
use parapet_netback::stats::QueueStats;
use parapet_netback::steering::Steering;
use parapet_packet::Offloads;
use parapet_ring::{Front, Own, Peer};
use parapet_xen_sys::io::netif::{
    ControlRequest, ControlResponse, ControlStatus, ControlType, GrefFlags, GrefMapping, RxFlags,
    RxRequest, RxResponse, RxSlot, Status, TxFlags, TxRequest, TxResponse, TxSlot,
};
use parapet_xen_sys::{DomId, GrantRef};
use zerocopy::IntoBytes;

/// All that a modern frontend takes.
pub(crate) const ALL: Receives = Receives {
    scatter: true,
    gso_v4: GsoForm::Extra,
    gso_v6: GsoForm::Extra,
    blank_v4: true,
    blank_v6: true,
};

/// A frame as the network saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) bytes: Vec<u8>,
    pub(crate) offloads: Offloads,
    pub(crate) hash: Option<Hash>,
}

impl Seen {
    fn of(frame: &Frame<Domain>) -> Self {
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.copy_out(0, &mut bytes), bytes.len());
        Seen {
            bytes,
            offloads: frame.offloads(),
            hash: frame.hash(),
        }
    }
}

/// What is at the other end of a vif's port.
#[derive(Clone)]
pub(crate) enum Net {
    /// Somebody who looks at the frames and lets them be.
    Sink(Arc<Mutex<Vec<Seen>>>),
    /// Somebody who keeps them.
    Keep(Arc<Mutex<Vec<Frame<Domain>>>>),
    /// The endpoint of another vif.
    Cable(Arc<Endpoint<Domain>>),
    /// Somebody who has frames for the guest, and lets it have more to send whenever it sends.
    Busy(Arc<Mutex<Busy>>),
}

/// A guest's transmit ring.
pub(crate) type TxRing = Front<Own<loopback::Pages>, TxSlot, TxResponse>;

/// See [`Net::Busy`].
#[derive(Default)]
pub(crate) struct Busy {
    pub(crate) frames: Vec<Frame<Domain>>,
    /// The guest's transmit ring, and the slot that goes into it for each answer.
    pub(crate) ring: Option<(TxRing, TxSlot)>,
}

impl Port<Domain> for Net {
    fn send(&mut self, frames: &mut Vec<Frame<Domain>>, drops: &Drops) {
        match self {
            Net::Sink(seen) => seen.lock().unwrap().extend(frames.iter().map(Seen::of)),
            Net::Keep(kept) => kept.lock().unwrap().append(frames),
            Net::Busy(busy) => {
                if let Some((ring, slot)) = &mut busy.lock().unwrap().ring {
                    while ring.take().unwrap().is_some() {
                        ring.push(slot).unwrap();
                    }
                    let _: bool = ring.publish();
                }
            }
            Net::Cable(endpoint) => {
                for frame in frames.drain(..) {
                    match endpoint.deliver(0, frame) {
                        Ok(queue) => endpoint.ring(queue),
                        Err(_) => drops.count(Why::ReceiverFull, 1),
                    }
                }
            }
        }
    }

    fn poll_receive(
        &mut self,
        _: &mut Context<'_>,
        into: &mut Vec<Frame<Domain>>,
        _: usize,
    ) -> Poll<io::Result<()>> {
        match self {
            Net::Busy(busy) => match busy.lock().unwrap().frames.pop() {
                Some(frame) => {
                    into.push(frame);
                    Poll::Ready(Ok(()))
                }
                None => Poll::Pending,
            },
            _ => Poll::Pending,
        }
    }

    fn is_quiet(&self) -> bool {
        true
    }
}

/// The machine, with the host's domain and what guests there are.
pub(crate) struct World {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) dom0: Domain,
}

/// How a vif is made.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) receives: Receives,
    pub(crate) split: bool,
    pub(crate) patience: Patience,
    pub(crate) poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            receives: ALL,
            split: true,
            patience: Patience::default(),
            poll: Duration::ZERO,
        }
    }
}

/// The host's half of a vif before it is connected: others can be wired to its endpoint.
pub(crate) struct Plug {
    pub(crate) bell: Arc<Bell>,
    pub(crate) steering: Arc<Steering>,
    pub(crate) endpoint: Arc<Endpoint<Domain>>,
}

impl Plug {
    pub(crate) fn new() -> Self {
        let bell = Arc::<Bell>::default();
        let steering = Arc::<Steering>::default();
        let bells = [Arc::clone(&bell)];
        Plug {
            endpoint: Arc::new(Endpoint::new(bells, Arc::clone(&steering))),
            bell,
            steering,
        }
    }
}

/// Pages that a guest has for its packets.
pub(crate) const PAGES: usize = 64;

/// A guest with one queue of a vif.
pub(crate) struct Guest {
    pub(crate) tx: TxRing,
    pub(crate) tx_memory: loopback::Pages,
    pub(crate) rx: Front<Own<loopback::Pages>, RxSlot, RxSlot>,
    pub(crate) rx_memory: loopback::Pages,
    pub(crate) control: Front<Own<loopback::Pages>, ControlRequest, ControlResponse>,
    pub(crate) control_memory: loopback::Pages,
    pub(crate) tx_channel: loopback::Channel,
    pub(crate) rx_channel: Option<loopback::Channel>,
    pub(crate) control_channel: loopback::Channel,
    pub(crate) pages: loopback::Pages,
    pub(crate) grant: Option<loopback::Grant>,
    pub(crate) refs: Vec<GrantRef>,
    pub(crate) stats: Arc<QueueStats>,
    pub(crate) endpoint: Arc<Endpoint<Domain>>,
    pub(crate) steering: Arc<Steering>,
    pub(crate) multicast: Arc<Multicast>,
    pub(crate) rate: Arc<Bucket>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) outcome: oneshot::Receiver<Result<(), QueueError>>,
    pub(crate) control_outcome: oneshot::Receiver<Result<(), ControlError>>,
    pub(crate) _stop_control: oneshot::Sender<()>,
    pub(crate) domain: Domain,
    _ring_grants: Vec<loopback::Grant>,
}

impl World {
    pub(crate) fn new() -> Self {
        let hypervisor = Hypervisor::new(Config::default()).unwrap();
        let dom0 = hypervisor.create(DomainConfig::default()).unwrap();
        World { hypervisor, dom0 }
    }

    /// A guest whose port leads to `net`.
    pub(crate) fn guest(&self, net: Net, options: &Options) -> Guest {
        self.plugged(Plug::new(), net, options)
    }

    /// A guest whose frames are seen.
    pub(crate) fn seen(&self, options: &Options) -> (Guest, Arc<Mutex<Vec<Seen>>>) {
        let seen = Arc::default();
        (self.guest(Net::Sink(Arc::clone(&seen)), options), seen)
    }

    /// A guest at this endpoint.
    pub(crate) fn plugged(&self, plug: Plug, net: Net, options: &Options) -> Guest {
        let dom0 = &self.dom0;
        let guest = self.hypervisor.create(DomainConfig::default()).unwrap();
        let granted = |count| {
            let pages = guest.allocate(count).unwrap();
            let grant = guest.grant(&pages, dom0.domid(), Access::ReadWrite);
            (pages, grant.unwrap())
        };
        let (tx_memory, tx_grant) = granted(1);
        let (rx_memory, rx_grant) = granted(1);
        let (control_memory, control_grant) = granted(1);
        let (pages, grant) = granted(PAGES);
        let port = || {
            let ours = guest.alloc_unbound(dom0.domid()).unwrap();
            let theirs = dom0.bind(guest.domid(), ours.port()).unwrap();
            (ours, theirs)
        };
        let (tx_channel, tx_theirs) = port();
        let (rx_channel, channels) = match options.split {
            true => {
                let (rx_channel, rx) = port();
                (Some(rx_channel), Channels::Split { tx: tx_theirs, rx })
            }
            false => (None, Channels::Joint(tx_theirs)),
        };
        let (control_channel, control_theirs) = port();
        let mapped = |grant: &loopback::Grant| {
            let mapped = dom0.map(guest.domid(), grant.refs(), Access::ReadWrite);
            Peer::new(mapped.unwrap()).ok().unwrap()
        };
        let tx = Front::new(Own(tx_memory.clone())).unwrap();
        let rx = Front::new(Own(rx_memory.clone())).unwrap();
        let control = Front::new(Own(control_memory.clone())).unwrap();
        let Plug {
            bell,
            steering,
            endpoint,
        } = plug;
        let orders = Arc::new(Orders::new(Arc::clone(&bell)));
        let stats = Arc::<QueueStats>::default();
        let multicast = Arc::<Multicast>::default();
        let rate = Arc::<Bucket>::default();
        let queue = Queue::new(QueueSetup {
            place: dom0.clone(),
            peer: guest.domid(),
            index: 0,
            tx: mapped(&tx_grant),
            rx: mapped(&rx_grant),
            channels,
            receives: options.receives,
            port: Box::new(net),
            endpoint: Arc::clone(&endpoint),
            bell,
            orders: Arc::clone(&orders),
            multicast: Arc::clone(&multicast),
            rate: Arc::clone(&rate),
            poll: options.poll,
            patience: options.patience,
            stats: Arc::clone(&stats),
            complaints: Limit::new("the guest"),
        });
        let control_task = Control::new(ControlSetup {
            place: dom0.clone(),
            peer: guest.domid(),
            ring: mapped(&control_grant),
            channel: control_theirs,
            orders: vec![orders],
            steering: Arc::clone(&steering),
            complaints: Limit::new("the guest"),
        });
        let (stop, outcome) = run(dom0, |stop| queue.unwrap().run(stop));
        let (stop_control, control_outcome) = run(dom0, |stop| control_task.unwrap().run(stop));
        Guest {
            tx,
            tx_memory,
            rx,
            rx_memory,
            control,
            control_memory,
            tx_channel,
            rx_channel,
            control_channel,
            pages,
            refs: grant.refs().to_vec(),
            grant: Some(grant),
            stats,
            endpoint,
            steering,
            multicast,
            rate,
            stop: Some(stop),
            outcome,
            control_outcome,
            _stop_control: stop_control,
            domain: guest,
            _ring_grants: vec![tx_grant, rx_grant, control_grant],
        }
    }

    /// A pool of the host's own, for frames to guests.
    pub(crate) fn pool(&self) -> Pool<Domain> {
        Pool::new(&self.dom0, DomId(0), 300, 300, Arc::default()).unwrap()
    }
}

type Ended<T> = oneshot::Receiver<T>;

/// Runs a task of the host's, until it is told to stop.
fn run<T, F>(dom0: &Domain, task: impl FnOnce(Stop) -> F) -> (oneshot::Sender<()>, Ended<T>)
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let (done, outcome) = oneshot::channel();
    let task = task(Stop(stopped));
    dom0.spawn(async move {
        let _ = done.send(task.await);
    });
    (stop, outcome)
}

/// Ready when the other end is dropped.
pub(crate) struct Stop(oneshot::Receiver<()>);

impl Future for Stop {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

/// A frame of the host's with these bytes, the head of which is as long as `head`.
pub(crate) fn frame(pool: &mut Pool<Domain>, bytes: &[u8], head: usize) -> Frame<Domain> {
    let mut frame = pool.take().unwrap();
    let (own, rest) = bytes.split_at(head.min(bytes.len()));
    frame.make_head(own.len()).unwrap().copy_from_slice(own);
    for chunk in rest.chunks(PAGE_SIZE) {
        let page = pool.take_page().unwrap();
        let at = usize::from(page) * PAGE_SIZE;
        pool.memory().local().view().write_bytes(at, chunk).unwrap();
        let part = Part {
            page: Page::Local(page),
            offset: 0,
            len: chunk.len() as u16,
        };
        frame.push(part).unwrap();
    }
    frame
}

impl Guest {
    /// Gives the guest a frame.
    pub(crate) fn deliver(&self, frame: Frame<Domain>) {
        let queue = self.endpoint.deliver(0, frame).unwrap();
        self.endpoint.ring(queue);
    }

    pub(crate) fn write(&self, page: usize, offset: usize, bytes: &[u8]) {
        let at = page * PAGE_SIZE + offset;
        self.pages.view().write_bytes(at, bytes).unwrap();
    }

    pub(crate) fn read(&self, page: usize, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = page * PAGE_SIZE + offset;
        self.pages.view().read_bytes(at, &mut bytes).unwrap();
        bytes
    }

    /// Puts a slot into the transmit ring.
    pub(crate) fn slot(&mut self, page: usize, id: u16, offset: u16, size: u16, flags: TxFlags) {
        let gref = self.refs[page];
        self.raw(zerocopy::transmute!(TxRequest {
            gref,
            offset,
            flags,
            id,
            size,
        }));
    }

    pub(crate) fn raw(&mut self, slot: TxSlot) {
        self.tx.push(&slot).unwrap();
    }

    pub(crate) fn publish_tx(&mut self) {
        if self.tx.publish() {
            self.tx_channel.notify();
        }
    }

    /// Transmits a packet of one slot, which begins with a page.
    pub(crate) fn send(&mut self, page: usize, bytes: &[u8], flags: TxFlags) {
        self.write(page, 0, bytes);
        self.slot(page, page as u16, 0, bytes.len() as u16, flags);
        self.publish_tx();
    }

    /// The next answer in the transmit ring.
    pub(crate) fn answer(&mut self) -> (u16, Status) {
        loop {
            if let Some(TxResponse { id, status }) = self.tx.take().unwrap() {
                return (id, status);
            }
            if !self.tx.arm().unwrap() {
                block_on(self.tx_channel.wait());
            }
        }
    }

    /// That many answers, by id.
    pub(crate) fn answers(&mut self, count: usize) -> Vec<(u16, Status)> {
        let mut answers: Vec<_> = (0..count).map(|_| self.answer()).collect();
        answers.sort_by_key(|(id, status)| (*id, status.0));
        answers
    }

    /// Posts a buffer; its id is its page's number.
    pub(crate) fn post(&mut self, page: usize) {
        let gref = self.refs[page];
        self.post_gref(page as u16, gref);
    }

    pub(crate) fn post_gref(&mut self, id: u16, gref: GrantRef) {
        let request = RxRequest {
            id,
            gref,
            ..Default::default()
        };
        self.rx.push(&zerocopy::transmute!(request)).unwrap();
    }

    pub(crate) fn rx_channel(&self) -> &loopback::Channel {
        self.rx_channel.as_ref().unwrap_or(&self.tx_channel)
    }

    pub(crate) fn publish_rx(&mut self) {
        if self.rx.publish() {
            self.rx_channel().notify();
        }
    }

    pub(crate) fn receive_slot(&mut self) -> RxSlot {
        loop {
            if let Some(slot) = self.rx.take().unwrap() {
                return slot;
            }
            if !self.rx.arm().unwrap() {
                block_on(self.rx_channel().wait());
            }
        }
    }

    /// The next packet: its bytes, the flags of its first slot, and its extra information.
    pub(crate) fn receive(&mut self) -> (Vec<u8>, RxFlags, Vec<RxSlot>) {
        let first: RxResponse = zerocopy::transmute!(self.receive_slot());
        let mut extras = Vec::new();
        if first.flags.contains(RxFlags::EXTRA_INFO) {
            loop {
                let extra = self.receive_slot();
                extras.push(extra);
                if extra[1] & 1 == 0 {
                    break;
                }
            }
        }
        let mut bytes = self.data(first);
        let mut more = first.flags.contains(RxFlags::MORE_DATA);
        while more {
            let next: RxResponse = zerocopy::transmute!(self.receive_slot());
            more = next.flags.contains(RxFlags::MORE_DATA);
            bytes.extend(self.data(next));
        }
        (bytes, first.flags, extras)
    }

    fn data(&self, response: RxResponse) -> Vec<u8> {
        assert!(response.status >= 0, "{response:?}");
        let at = usize::from(response.offset);
        self.read(usize::from(response.id), at, response.status as usize)
    }

    /// Sends a control request, and waits for its answer.
    pub(crate) fn ask(&mut self, control: ControlType, data: [u32; 3]) -> (ControlStatus, u32) {
        let request = ControlRequest {
            id: 77,
            control: control as u16,
            data,
        };
        self.control.push(&request).unwrap();
        if self.control.publish() {
            self.control_channel.notify();
        }
        loop {
            if let Some(response) = self.control.take().unwrap() {
                assert_eq!((response.id, response.control), (77, control as u16));
                return (response.status, response.data);
            }
            if !self.control.arm().unwrap() {
                block_on(self.control_channel.wait());
            }
        }
    }

    /// Asks for pages to be kept mapped, or not any more, by a list in the last page.
    pub(crate) fn list(
        &mut self,
        control: ControlType,
        list: &[GrefMapping],
    ) -> (ControlStatus, u32) {
        self.write(PAGES - 1, 0, list.as_bytes());
        let page = self.refs[PAGES - 1].0;
        self.ask(control, [0, page, list.len() as u32])
    }

    /// Has these pages kept mapped.
    pub(crate) fn keep_mapped(&mut self, pages: std::ops::Range<usize>) {
        let list: Vec<_> = self.refs[pages].iter().copied().map(mapping).collect();
        let (status, _) = self.list(ControlType::AddGrefMapping, &list);
        assert_eq!(status, ControlStatus::SUCCESS);
    }

    /// Ends the queue, and waits until it has ended.
    pub(crate) fn stop(&mut self) -> Result<(), QueueError> {
        drop(self.stop.take());
        block_on(&mut self.outcome).unwrap()
    }
}

/// An entry of a list of pages.
pub(crate) fn mapping(gref: GrantRef) -> GrefMapping {
    GrefMapping {
        gref,
        flags: GrefFlags::empty(),
        status: 0xFFFF,
    }
}

/// Bytes that are not the same anywhere near each other, for an unknown protocol.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len)
        .map(|at| (at * 7 + at / 251) as u8 ^ seed)
        .collect();
    for (at, byte) in [0, 0x16, 0x3e, 0, 0, 2, 0, 0x16, 0x3e, 0, 0, 1, 0x88, 0xb5]
        .into_iter()
        .enumerate()
    {
        if let Some(own) = bytes.get_mut(at) {
            *own = byte;
        }
    }
    bytes
}

/// A packet of TCP over IPv4 (or IPv6) whose checksum is blank.
pub(crate) fn tcp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut bytes = vec![0, 0x16, 0x3e, 0, 0, 2, 0, 0x16, 0x3e, 0, 0, 1];
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([6, 64]);
        bytes.extend(1..33);
    } else {
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((len + 20).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = parapet_packet::checksum::Sum::new().and(&bytes[14..34]);
        let sum = sum.finish().to_be_bytes();
        bytes[24..26].copy_from_slice(&sum);
    }
    let at = bytes.len();
    bytes.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ]);
    bytes.extend(payload);
    let headers = parapet_packet::headers::Headers::parse(&bytes, bytes.len()).unwrap();
    let pseudo = headers.pseudo(&bytes, len.into()).unwrap().folded();
    bytes[at + 16..at + 18].copy_from_slice(&pseudo.to_be_bytes());
    bytes
}

/// Whether the transport checksum of a packet is right.
pub(crate) fn is_intact(packet: &[u8]) -> bool {
    let headers = parapet_packet::headers::Headers::parse(packet, packet.len()).unwrap();
    let place = headers.checksum().unwrap();
    let sum = headers.pseudo(packet, place.covers.len() as u32).unwrap();
    sum.and(&packet[place.covers]).is_intact()
}

/// Waits until something is so, which other tasks make so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it did not come about that {what}");
}
