//! A frontend that is no more than rings and granted pages.

use std::future::poll_fn;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{self, Domain};
use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::{Access, Channel};
use parapet_packet::Mac;
use parapet_ring::{Front, Own};
use parapet_xen_sys::DomId;
use parapet_xen_sys::io::netif::{
    RxRequest, RxResponse, RxSlot, Status, TxFlags, TxRequest, TxResponse, TxSlot,
};

/// Pages to receive into, and as many to transmit from.
pub(crate) const BUFFERS: u16 = 16;

/// One queue of a frontend.
pub(crate) struct Queue {
    pub(crate) tx: Front<Own<loopback::Pages>, TxSlot, TxResponse>,
    pub(crate) rx: Front<Own<loopback::Pages>, RxSlot, RxSlot>,
    tx_memory: loopback::Pages,
    pub(crate) tx_grant: loopback::Grant,
    pub(crate) rx_grant: loopback::Grant,
    /// For the transmit ring, and for the receive ring unless there is another.
    pub(crate) channels: Vec<loopback::Channel>,
    pages: loopback::Pages,
    pub(crate) grant: loopback::Grant,
    next: u16,
}

impl Queue {
    /// A queue with its buffers posted; `split` says whether each ring has an event channel.
    pub(crate) fn new(guest: &Domain, backend: DomId, split: bool) -> Self {
        let granted = |count| {
            let pages = guest.allocate(count).unwrap();
            let grant = guest.grant(&pages, backend, Access::ReadWrite);
            (pages, grant.unwrap())
        };
        let (tx, tx_grant) = granted(1);
        let (rx, rx_grant) = granted(1);
        let (pages, grant) = granted(2 * usize::from(BUFFERS));
        let channel = |_| guest.alloc_unbound(backend).unwrap();
        let mut queue = Queue {
            tx: Front::new(Own(tx.clone())).unwrap(),
            tx_memory: tx,
            rx: Front::new(Own(rx)).unwrap(),
            tx_grant,
            rx_grant,
            channels: (0..1 + usize::from(split)).map(channel).collect(),
            pages,
            grant,
            next: 0,
        };
        for id in 0..BUFFERS {
            queue.post(id);
        }
        let _ = queue.rx.publish();
        queue
    }

    fn post(&mut self, id: u16) {
        let request = RxRequest {
            id,
            gref: self.grant.refs()[usize::from(id)],
            ..Default::default()
        };
        self.rx.push(&zerocopy::transmute!(request)).unwrap();
    }

    /// Says what is in the ring.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        let id = self.next % BUFFERS;
        self.next += 1;
        let page = usize::from(BUFFERS + id);
        self.pages
            .view()
            .write_bytes(page * PAGE_SIZE, frame)
            .unwrap();
        let request = TxRequest {
            gref: self.grant.refs()[page],
            offset: 0,
            flags: TxFlags::empty(),
            id,
            size: frame.len() as u16,
        };
        self.tx.push(&zerocopy::transmute!(request)).unwrap();
        let _ = self.tx.publish();
    }

    /// Transmits a frame, and says how it fared.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Status {
        self.push(frame);
        self.channels[0].notify();
        self.answer().1
    }

    /// The next answer: to which request, and how it fared.
    pub(crate) fn answer(&mut self) -> (u16, Status) {
        let (ring, channel) = (&mut self.tx, &self.channels[0]);
        block_on(poll_fn(|cx| {
            loop {
                if let Some(response) = ring.take().unwrap() {
                    return std::task::Poll::Ready((response.id, response.status));
                }
                let event = channel.poll_wait(cx).is_ready();
                if !ring.arm().unwrap() && !event {
                    return std::task::Poll::Pending;
                }
            }
        }))
    }

    /// Says that there are more requests than there are slots.
    pub(crate) fn jump(&mut self) {
        let producer = self.tx_memory.view();
        producer
            .write_bytes(0, &u32::to_ne_bytes(0x1_0000))
            .unwrap();
        self.channels[0].notify();
    }

    /// Waits for a frame, and posts its buffer again.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let (ring, channel) = (&mut self.rx, self.channels.last().unwrap());
        let slot = block_on(poll_fn(|cx| {
            loop {
                if let Some(slot) = ring.take().unwrap() {
                    return std::task::Poll::Ready(slot);
                }
                let event = channel.poll_wait(cx).is_ready();
                if !ring.arm().unwrap() && !event {
                    return std::task::Poll::Pending;
                }
            }
        }));
        let response: RxResponse = zerocopy::transmute!(slot);
        let len = usize::try_from(response.status).expect("a frame, and no error");
        let mut frame = vec![0; len];
        let at = usize::from(response.id) * PAGE_SIZE + usize::from(response.offset);
        self.pages.view().read_bytes(at, &mut frame).unwrap();
        self.post(response.id);
        let _ = self.rx.publish();
        self.channels.last().unwrap().notify();
        frame
    }
}

/// A short frame.
pub(crate) fn frame(from: Mac, to: Mac, filler: u8) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    frame.resize(100, filler);
    frame
}
