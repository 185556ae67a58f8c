//! TCP by smoltcp, over a wire that joins two queues.

use std::pin::pin;
use std::sync::mpsc;

use futures_util::future::{Either, select};
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::prelude::*;
use parapet_netfront::smoltcp::Ethernet;
use parapet_netfront::{Config, Interface, Queue};
use parapet_xen_sys::io::netif::{RxFlags, TxFlags};
use smoltcp::iface::{self, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpCidr};

use crate::stage::{FULL, Keys, Served, Stage};

const BYTES: usize = 300_000;

/// What is sent: which byte is where.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// A stack with one socket.
struct Node {
    guest: Domain,
    device: Ethernet<Domain>,
    stack: iface::Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl Node {
    fn new(guest: &Domain, interface: &Interface<Domain>, queue: Queue<Domain>, ip: &str) -> Self {
        let mut device = Ethernet::new(interface, queue);
        let ip: IpCidr = ip.parse().unwrap();
        // Both are one interface: the addresses have to differ.
        let mut mac = device.address();
        mac.0[5] = match ip.address() {
            IpAddress::Ipv4(v4) => v4.octets()[3],
            IpAddress::Ipv6(v6) => v6.octets()[15],
        };
        let config = iface::Config::new(mac.into());
        let mut stack = iface::Interface::new(config, &mut device, Instant::ZERO);
        stack.update_ip_addrs(|ips| ips.push(ip).unwrap());
        let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
        let mut sockets = SocketSet::new(vec![]);
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        let guest = guest.clone();
        Node {
            guest,
            device,
            stack,
            sockets,
            socket,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// One turn, and a rest.
    async fn turn(&mut self, mut work: impl FnMut(&mut tcp::Socket<'_>)) {
        let now = Instant::from_micros((self.guest.now().as_nanos() / 1000) as i64);
        self.stack.poll(now, &mut self.device, &mut self.sockets);
        work(self.sockets.get_mut(self.socket));
        self.stack.poll(now, &mut self.device, &mut self.sockets);
        let delay = self.stack.poll_delay(now, &self.sockets).map(Into::into);
        self.device.wait(&self.guest, delay).await.unwrap();
    }
}

/// Sends back what comes.
async fn echo(mut node: Node) {
    node.socket().listen(7).unwrap();
    loop {
        node.turn(|socket| {
            while socket.can_recv() && socket.can_send() {
                let space = socket.send_capacity() - socket.send_queue();
                let some = socket.recv(|bytes| {
                    let len = bytes.len().min(space);
                    (len, bytes[..len].to_vec())
                });
                let sent = socket.send_slice(&some.unwrap()).unwrap();
                assert!(sent > 0);
            }
        })
        .await;
    }
}

/// Sends, and tells when all of it has come back.
async fn ask(mut node: Node, server: IpAddress, done: mpsc::Sender<()>) {
    let context = node.stack.context();
    let socket = node.sockets.get_mut::<tcp::Socket>(node.socket);
    socket.connect(context, (server, 7), 40000).unwrap();
    let (mut sent, mut received) = (0, 0);
    while received < BYTES {
        node.turn(|socket| {
            while socket.can_send() && sent < BYTES {
                let fill = |to: &mut [u8]| {
                    let len = to.len().min(BYTES - sent);
                    for (at, to) in to[..len].iter_mut().enumerate() {
                        *to = byte(sent + at);
                    }
                    (len, len)
                };
                sent += socket.send(fill).unwrap();
            }
            while socket.can_recv() {
                let check = |bytes: &mut [u8]| {
                    for (at, &got) in bytes.iter().enumerate() {
                        assert_eq!(got, byte(received + at));
                    }
                    (bytes.len(), bytes.len())
                };
                received += socket.recv(check).unwrap();
            }
        })
        .await;
    }
    done.send(()).unwrap();
    // The other is not to wait for an end that does not come.
    std::future::pending().await
}

/// A TCP connection over a backend that offers `keys`. How many frames were left blank.
fn talk(keys: Keys, ips: [&'static str; 2]) -> usize {
    let stage = Stage::new();
    let (blank, blanks) = mpsc::channel();
    stage.offering(keys, async move |served: Served| {
        let (_back, queues, _) = served.accept().await;
        let queues: [_; 2] = queues.try_into().ok().unwrap();
        let [mut one, mut other] = queues;
        loop {
            let (got, from_one) = match select(pin!(one.next()), pin!(other.next())).await {
                Either::Left((got, _)) => (got, true),
                Either::Right((got, _)) => (got, false),
            };
            let (from, to) = match from_one {
                true => (&mut one, &mut other),
                false => (&mut other, &mut one),
            };
            let mut flags = RxFlags::empty();
            if got.flags.contains(TxFlags::CSUM_BLANK) {
                flags |= RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED;
                blank.send(()).unwrap();
            }
            from.done(&got);
            to.deliver(&got.bytes, flags, &[]).await;
        }
    });
    let config = Config::new().queues(2);
    let (interface, queues) = stage.connect_as(config).unwrap();
    let queues: [_; 2] = queues.try_into().ok().unwrap();
    let [one, other] = queues;
    let server = Node::new(&stage.guest, &interface, one, ips[0]);
    let address = server.stack.ip_addrs()[0].address();
    let client = Node::new(&stage.guest, &interface, other, ips[1]);
    let (done, was_done) = mpsc::channel();
    stage.guest.spawn(echo(server));
    stage.guest.spawn(ask(client, address, done));
    was_done.recv().unwrap();
    blanks.try_iter().count()
}

#[test]
fn tcp_comes_back_whole_with_its_checksums_made_by_nobody() {
    let v4 = talk(FULL, ["10.0.0.1/24", "10.0.0.2/24"]);
    assert!(v4 > BYTES / 9000, "{v4}");
    let v6 = talk(FULL, ["fd00::1/64", "fd00::2/64"]);
    assert!(v6 > BYTES / 9000, "{v6}");
}

#[test]
fn tcp_has_checksums_where_the_backend_makes_none() {
    const POOR: Keys = &[
        ("feature-rx-copy", "1"),
        ("feature-sg", "1"),
        ("feature-no-csum-offload", "1"),
        ("feature-split-event-channels", "1"),
        ("multi-queue-max-queues", "2"),
    ];
    assert_eq!(talk(POOR, ["10.0.0.1/24", "10.0.0.2/24"]), 0);
}
