//! The xenstore of the host that this process runs on: where it is, and how to talk to it.
//!
//! In domain 0 xenstored listens on a unix socket. Anywhere else, and in a domain 0 whose
//! xenstored is a domain of its own, the kernel has the domain's connection, and lets processes
//! share it by `/dev/xen/xenbus`. Either way the connection is a socket here.

mod kernel;

use std::env;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::string::String;
use std::task::{Context, Poll};
use std::vec::Vec;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use parapet_hypervisor::seam::{Channel, HostDescriptors};

use crate::transport::{Broken, Legacy, Transport};

/// Where xenstored listens, and its clients look: `$XENSTORED_PATH`, or `socket` in
/// `$XENSTORED_RUNDIR`, or in `/run/xenstored`.
pub fn default_path() -> PathBuf {
    let rundir = || env::var_os("XENSTORED_RUNDIR").unwrap_or_else(|| "/run/xenstored".into());
    match env::var_os("XENSTORED_PATH") {
        Some(path) => path.into(),
        None => PathBuf::from(rundir()).join("socket"),
    }
}

/// Where the kernel offers its own connection, now and in the past.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// There is no way to a xenstored from here.
#[derive(Debug, thiserror::Error)]
#[error("no xenstore can be reached: {}. Is xenstored running?", .tried.join("; "))]
pub struct Unreachable {
    /// What was tried, and what came of it.
    pub tried: Vec<String>,
    /// Whether one was there, but not for us.
    pub denied: bool,
}

/// Connects to the host's xenstored: by its socket ([`default_path`]), or else by the kernel's
/// connection.
///
/// # Errors
/// Neither leads anywhere.
pub fn connect() -> Result<UnixStream, Unreachable> {
    let mut missed = Unreachable {
        tried: Vec::new(),
        denied: false,
    };
    let socket = default_path();
    match UnixStream::connect(&socket) {
        Ok(socket) => return Ok(socket),
        Err(error) => missed.add(&socket, &error),
    }
    for device in DEVICES {
        let open = OpenOptions::new().read(true).write(true).open(device);
        match open.and_then(kernel::relay) {
            Ok(socket) => return Ok(socket),
            Err(error) => missed.add(Path::new(device), &error),
        }
    }
    Err(missed)
}

impl Unreachable {
    fn add(&mut self, path: &Path, error: &io::Error) {
        self.denied |= error.kind() == ErrorKind::PermissionDenied;
        self.tried.push(std::format!("{}: {error}", path.display()));
    }
}

/// A connected socket as a transport.
///
/// A place tells only when a descriptor becomes readable. That a socket becomes writable again is
/// waited for only after it was not, by an epoll set that becomes readable then.
pub struct SocketTransport<P: HostDescriptors> {
    place: P,
    stream: UnixStream,
    readable: P::Channel,
    /// Tells when there is room for what was not written.
    room: Option<P::Channel>,
}

impl<P: HostDescriptors + Clone> SocketTransport<P> {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn new(place: &P, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let readable = place.bind_descriptor(stream.as_fd())?;
        Ok(SocketTransport {
            place: place.clone(),
            stream,
            readable,
            room: None,
        })
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        set.add(&self.stream, EpollEvent::new(EpollFlags::EPOLLOUT, 0))?;
        self.room = Some(self.place.bind_descriptor(set.0.as_fd())?);
        Ok(())
    }

    /// Does `io` until it is not interrupted; zero if it would block.
    fn done(
        &mut self,
        mut io: impl FnMut(&mut UnixStream) -> io::Result<usize>,
    ) -> Result<usize, Broken> {
        loop {
            let error = match io(&mut self.stream) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Ok(0),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return Err(Broken::Closed),
                _ => return Err(host_fault(&error)),
            }
        }
    }
}

fn host_fault(error: &io::Error) -> Broken {
    Broken::Host(error.raw_os_error().unwrap_or(0))
}

impl<P> Transport for SocketTransport<P>
where
    P: HostDescriptors + Clone + Send,
    P::Channel: Send,
{
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        let mut ended = false;
        let bytes = self.done(|stream| {
            let bytes = stream.read(to)?;
            ended = bytes == 0;
            Ok(bytes)
        })?;
        if ended {
            Err(Broken::Closed)
        } else {
            Ok(bytes)
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        self.room = None;
        let written = self.done(|stream| stream.write(bytes))?;
        if written < bytes.len() {
            self.wait_for_room().map_err(|error| host_fault(&error))?;
        }
        Ok(written)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(room) = &self.room
            && room.poll_wait(cx).is_ready()
        {
            return Poll::Ready(());
        }
        self.readable.poll_wait(cx)
    }

    fn legacy(&self) -> Option<Legacy> {
        Some(Legacy::Socket(self.stream.as_raw_fd()))
    }
}
