//! The task that owns a connection.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Context, Poll};

use parapet_xen_sys::io::xs_wire::{Operation, RING_SIZE};

use super::watch::Queue;
use crate::mailbox::Mailbox;
use crate::transport::{Broken, Transport};
use crate::wire::{Decoder, Message, strings};

/// What a handle wants of the pump.
pub(super) enum Order {
    /// Send this, and give the answer to whoever waits for it.
    Send {
        req_id: u32,
        bytes: Vec<u8>,
        reply: Option<Arc<Mailbox<Message>>>,
    },
    /// Events with this token go there.
    Listen { token: String, queue: Arc<Queue> },
    /// Events with this token go nowhere any more.
    Ignore { token: String },
}

/// Nothing of this will be done any more.
pub(super) fn refuse(orders: &Mailbox<Order>) {
    while let Some(order) = orders.take() {
        match order {
            Order::Send {
                reply: Some(reply), ..
            } => reply.close(),
            Order::Listen { queue, .. } => queue.close(),
            Order::Send { .. } | Order::Ignore { .. } => {}
        }
    }
}

pub(super) struct Pump<T> {
    transport: T,
    orders: Arc<Mailbox<Order>>,
    /// Bytes to send.
    out: Vec<u8>,
    decoder: Decoder,
    waiting: BTreeMap<u32, Arc<Mailbox<Message>>>,
    watches: BTreeMap<Vec<u8>, Arc<Queue>>,
}

impl<T: Transport> Pump<T> {
    pub(super) fn new(transport: T, orders: Arc<Mailbox<Order>>) -> Self {
        Pump {
            transport,
            orders,
            out: Vec::new(),
            decoder: Decoder::default(),
            waiting: BTreeMap::new(),
            watches: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let ended = poll_fn(|cx| self.poll(cx)).await;
        if let Err(broken) = ended {
            log::warn!("xenstore: {broken}");
        }
    }

    /// Ready when the connection is of no use any more, to us or to our users.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.orders.register(cx.waker());
        loop {
            // Closed first: what was ordered before the closing is then seen below.
            let closed = self.orders.is_closed();
            while let Some(order) = self.orders.take() {
                self.obey(order);
            }
            if closed && self.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.exchange() {
                Ok(true) => {}
                Ok(false) if self.transport.poll_ready(cx).is_ready() => {}
                Ok(false) => return Poll::Pending,
                Err(broken) => return Poll::Ready(Err(broken)),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Send {
                req_id,
                bytes,
                reply,
            } => {
                self.out.extend_from_slice(&bytes);
                self.waiting.extend(reply.map(|reply| (req_id, reply)));
            }
            Order::Listen { token, queue } => {
                self.watches.insert(token.into_bytes(), queue);
            }
            Order::Ignore { token } => {
                self.watches.remove(token.as_bytes());
            }
        }
    }

    /// Whether anything moved.
    fn exchange(&mut self) -> Result<bool, Broken> {
        let mut moved = false;
        if !self.out.is_empty() {
            let sent = self.transport.write(&self.out)?;
            self.out.drain(..sent.min(self.out.len()));
            moved |= sent > 0;
        }
        let mut bytes = [0; RING_SIZE];
        let got = self.transport.read(&mut bytes)?;
        self.decoder.push(bytes.get(..got).unwrap_or(&[]));
        loop {
            match self.decoder.message() {
                Ok(Some(message)) => self.take_in(message),
                Ok(None) => return Ok(moved | (got > 0)),
                Err(error) => {
                    log::warn!("xenstored's fault: {error}");
                    return Err(Broken::Closed);
                }
            }
        }
    }

    fn take_in(&mut self, message: Message) {
        if message.operation == u32::from(Operation::WatchEvent) {
            let mut parts = strings(&message.payload);
            let (path, token) = (parts.next(), parts.next());
            let queue = token.and_then(|token| self.watches.get(token));
            if let (Some(path), Some(queue)) = (path, queue) {
                queue.put(String::from_utf8_lossy(path).into());
            }
        } else if let Some(reply) = self.waiting.remove(&message.req_id) {
            reply.put(message);
        }
    }
}

impl<T> Drop for Pump<T> {
    fn drop(&mut self) {
        self.orders.close();
        refuse(&self.orders);
        self.waiting.values().for_each(|reply| reply.close());
        self.watches.values().for_each(|queue| queue.close());
    }
}
