//! The unix socket: a task that accepts, and a transport for each that it accepted.

use std::env;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use parapet_hypervisor::seam::{Backend, Channel, HostDescriptors};

use super::daemon::Handle;
use crate::transport::{Broken, Transport};

/// Where xenstored listens, and its clients look: `$XENSTORED_PATH`, or `socket` in
/// `$XENSTORED_RUNDIR`, or in `/run/xenstored`.
pub fn default_path() -> PathBuf {
    let rundir = || env::var_os("XENSTORED_RUNDIR").unwrap_or_else(|| "/run/xenstored".into());
    match env::var_os("XENSTORED_PATH") {
        Some(path) => path.into(),
        None => PathBuf::from(rundir()).join("socket"),
    }
}

/// How long to wait before accepting again when the host is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Accepts local clients for xenstored, for ever: a task to spawn.
///
/// # Errors
/// The listener cannot be waited for.
pub fn accept<B: Backend>(
    place: B,
    listener: UnixListener,
    xenstored: Handle,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let incoming = place.bind_descriptor(listener.as_fd())?;
    Ok(async move {
        loop {
            match listener.accept() {
                Ok((stream, _)) => match SocketTransport::new(&place, stream) {
                    Ok(transport) => xenstored.serve(transport),
                    Err(error) => log::warn!("a local client is refused: {error}"),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => incoming.wait().await,
                Err(error) => {
                    log::warn!("a local client did not get in: {error}");
                    place.sleep(OUT_OF_DESCRIPTORS).await;
                }
            }
        }
    })
}

/// A connected socket.
///
/// A place tells only when a descriptor becomes readable, and a socket must also be waited for to
/// become writable: so it is put into an epoll set of its own, which becomes readable by either.
pub struct SocketTransport<C> {
    stream: UnixStream,
    ready: Epoll,
    channel: C,
}

impl<C> SocketTransport<C> {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn new(place: &impl HostDescriptors<Channel = C>, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let either = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        ready.add(&stream, EpollEvent::new(either, 0))?;
        let channel = place.bind_descriptor(ready.0.as_fd())?;
        Ok(SocketTransport {
            stream,
            ready,
            channel,
        })
    }
}

impl<C> SocketTransport<C> {
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
                _ => return Err(Broken::Host(error.raw_os_error().unwrap_or(0))),
            }
        }
    }
}

impl<C: Channel> Transport for SocketTransport<C> {
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
        self.done(|stream| stream.write(bytes))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ready = self.channel.poll_wait(cx);
        if ready.is_ready() {
            // Taken, so that the next change makes the set readable again.
            let mut events = [EpollEvent::empty()];
            let taken = self.ready.wait(&mut events, EpollTimeout::ZERO);
            if let Err(error) = taken {
                log::debug!("an epoll set was not read: {error}");
            }
        }
        ready
    }
}
