//! Uses a vif by our netfront in the user space of a Linux domain, against whoever serves it: the
//! front half meets a backend that nobody here wrote.
//!
//! A file is fetched over HTTP, and as many bytes of our own are sent to a port that takes them, by
//! smoltcp's TCP. What the two ends agreed on and the sums of what crossed go to standard output, in
//! lines of `key value`.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parapet_hypervisor::block_on;
use parapet_hypervisor::seam::Clock;
use parapet_hypervisor::xen::Xen;
use parapet_netfront::Config;
use parapet_netfront::smoltcp::Ethernet;
use parapet_xenstore::client::{Client, blocking};
use parapet_xenstore::host::{self, SocketTransport};
use sha2::{Digest, Sha256};
use smoltcp::iface::{self, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{IpCidr, Ipv4Cidr};

const USAGE: &str = "\
Fetches a file and sends as many bytes, by Parapet's frontend in this Linux domain.

Usage: net-exercise VIF ADDRESS SERVER PATH PORT

  VIF      the interface's number, as 0; the kernel's own xen-netfront must not be loaded
  ADDRESS  its own IPv4 address, in a network of 24 bits
  SERVER   who has a web server on port 80, and takes bytes on PORT
  PATH     what to fetch, as /file
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        [vif, address, server, path, port] => exercise(vif, address, server, path, port),
        _ => Err(anyhow::anyhow!("five words are expected; see --help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("net-exercise: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How long xenstored has to tell which domain this is.
const PATIENCE: Duration = Duration::from_secs(20);

fn exercise(vif: &str, address: &str, server: &str, path: &str, port: &str) -> Result<()> {
    let (address, server) = (address.parse()?, server.parse()?);
    let port = port.parse()?;
    let mut client = blocking::Client::new(host::connect()?);
    client.set_patience(Some(PATIENCE));
    let domid = client.domid().context("asking which domain this is")?;
    drop(client);
    let place = Xen::open(domid)?;
    let transport = SocketTransport::new(&place, host::connect()?)?;
    let store = Client::start(&place, transport);
    block_on(async {
        let key = format!("device/vif/{vif}");
        let (interface, mut queues) = Config::new().connect(&place, &store, &key).await?;
        println!("mac {}", interface.mac());
        println!("mtu {}", interface.mtu());
        println!("features {:?}", interface.status()?);
        let queue = queues.pop().context("an interface has a queue")?;
        let mut node = Node::new(&place, Ethernet::new(&interface, queue), address);
        let fetched = node.fetch(server, path).await?;
        println!("fetched {} {}", fetched.len(), hex(&fetched));
        node.send(server, port, &fetched).await?;
        println!("sent {}", fetched.len());
        println!("corrupt {}", node.device.corrupt());
        drop(node);
        interface.close();
        closed(&store, &key).await
    })
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Into a string it never fails.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A TCP/IP stack on the interface.
struct Node {
    place: Xen,
    device: Ethernet<Xen>,
    stack: iface::Interface,
    sockets: SocketSet<'static>,
    port: u16,
}

impl Node {
    fn new(place: &Xen, mut device: Ethernet<Xen>, address: Ipv4Addr) -> Self {
        let config = iface::Config::new(device.address().into());
        let mut stack = iface::Interface::new(config, &mut device, Instant::ZERO);
        stack.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 24)));
        });
        Node {
            place: place.clone(),
            device,
            stack,
            sockets: SocketSet::new(vec![]),
            port: 40_000,
        }
    }

    fn connect(&mut self, server: Ipv4Addr, port: u16) -> Result<SocketHandle> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 17]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        self.port += 1;
        let outcome = socket.connect(self.stack.context(), (server, port), self.port);
        outcome.map_err(|error| anyhow::anyhow!("connecting: {error:?}"))?;
        Ok(self.sockets.add(socket))
    }

    /// Gives the stack and a socket their turns, until the latter is done.
    async fn until_done(
        &mut self,
        socket: SocketHandle,
        mut work: impl FnMut(&mut tcp::Socket<'_>) -> Result<bool>,
    ) -> Result<()> {
        loop {
            let now = Instant::from_micros((self.place.now().as_nanos() / 1000) as i64);
            self.stack.poll(now, &mut self.device, &mut self.sockets);
            let done = work(self.sockets.get_mut(socket))?;
            self.stack.poll(now, &mut self.device, &mut self.sockets);
            if done {
                return Ok(());
            }
            let delay = self.stack.poll_delay(now, &self.sockets).map(Into::into);
            self.device.wait(&self.place, delay).await?;
        }
    }

    /// The file at a path of a web server.
    async fn fetch(&mut self, server: Ipv4Addr, path: &str) -> Result<Vec<u8>> {
        let socket = self.connect(server, 80)?;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let (mut asked, mut answer) = (false, Vec::new());
        let fetch = |socket: &mut tcp::Socket<'_>| {
            if !asked && socket.may_send() {
                let sent = socket.send_slice(request.as_bytes());
                ensure!(sent == Ok(request.len()), "asking: {sent:?}");
                asked = true;
            }
            while socket.can_recv() {
                let take = |bytes: &mut [u8]| {
                    answer.extend_from_slice(bytes);
                    (bytes.len(), ())
                };
                let taken = socket.recv(take);
                ensure!(taken.is_ok(), "fetching: {taken:?}");
            }
            Ok(asked && !socket.may_recv())
        };
        self.until_done(socket, fetch).await?;
        self.close(socket).await?;
        let end = answer.windows(4).position(|it| it == b"\r\n\r\n");
        let end = end.context("the answer has no end of its head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        ensure!(head.contains(" 200 "), "the web server says {head:?}");
        Ok(answer.split_off(end + 4))
    }

    /// Sends bytes to whoever takes them there.
    async fn send(&mut self, server: Ipv4Addr, port: u16, bytes: &[u8]) -> Result<()> {
        let socket = self.connect(server, port)?;
        let mut sent = 0;
        let send = |socket: &mut tcp::Socket<'_>| {
            ensure!(socket.is_active(), "nobody takes what is sent");
            if socket.can_send() {
                match socket.send_slice(&bytes[sent..]) {
                    Ok(more) => sent += more,
                    Err(error) => bail!("sending: {error}"),
                }
            }
            Ok(sent == bytes.len())
        };
        self.until_done(socket, send).await?;
        self.close(socket).await
    }

    /// Closes a connection once all that was sent is acknowledged.
    async fn close(&mut self, socket: SocketHandle) -> Result<()> {
        let over = |socket: &mut tcp::Socket<'_>| {
            socket.close();
            let state = socket.state();
            Ok(matches!(
                state,
                tcp::State::Closed | tcp::State::TimeWait | tcp::State::FinWait2
            ))
        };
        self.until_done(socket, over).await
    }
}

/// Waits until the backend has let go too.
async fn closed(store: &Client, path: &str) -> Result<()> {
    let key = format!("{path}/state");
    let mut watch = store.watch(&key).await?;
    while store.read(&key).await? != b"6" {
        watch.next().await?;
    }
    Ok(())
}
