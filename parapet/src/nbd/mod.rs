//! An NBD server in a guest: its disk, for any NBD client of the machine.
//!
//! ```text
//!   fio, qemu-img, nbdcopy, a kernel          the guest
//!        │ unix socket                 ┌─────────────────────────┐
//!        └──────────────────────────── │ connection ── jobs ──>  │ Disk ── ring ──> its backend
//!          ... several at once ...     │   handshake, wire: pure │
//!                                      └─────────────────────────┘
//! ```
//!
//! * `wire`: requests and replies as bytes, and nothing else.
//! * `handshake`: the fixed newstyle negotiation, as a function from bytes to bytes.
//! * `connection`: a socket, what it asks for, and what is under way.
//! * [`serve`]: the listening socket.
//!
//! A client that writes nonsense loses its connection; one that asks for much waits, and one that
//! does not take its replies is asked nothing more: a connection holds at most two requests' worth
//! of [`MAX_LENGTH`], and there are at most [`MAX_CONNECTIONS`].
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod connection;
mod handshake;
mod wire;

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parapet_blkfront::Disk;
use parapet_hypervisor::seam::{Backend, Channel};
use parapet_xenstore::host::SocketTransport;

pub use handshake::Export;
pub use wire::MAX_LENGTH;

/// The most clients that are served at once; others wait to be accepted.
pub const MAX_CONNECTIONS: usize = 16;

/// How long to wait before accepting again when the host is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Serves `disk` as the export `name` (and as the default one) to whoever connects to `listener`,
/// for as long as the future is polled.
///
/// # Errors
/// The listener cannot be waited for.
pub fn serve<G: Backend>(
    place: &G,
    listener: UnixListener,
    disk: Disk<G>,
    name: &str,
) -> io::Result<impl Future<Output = ()> + Send + use<G>> {
    listener.set_nonblocking(true)?;
    let incoming = place.bind_descriptor(listener.as_fd())?;
    let (place, name) = (place.clone(), name.to_owned());
    Ok(async move {
        let mut clients = FuturesUnordered::new();
        loop {
            if clients.len() == MAX_CONNECTIONS {
                clients.next().await;
            }
            match listener.accept() {
                Ok((stream, _)) => match SocketTransport::new(&place, stream) {
                    Ok(transport) => {
                        // As the disk is now: one that is resized is so for the next client.
                        let export = Arc::new(Export::new(&name, &disk.info()));
                        clients.push(connection::serve(transport, export, disk.clone()));
                    }
                    Err(error) => log::warn!("an NBD client is refused: {error}"),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll_fn(|cx| {
                        while clients.poll_next_unpin(cx) == Poll::Ready(Some(())) {}
                        incoming.poll_wait(cx)
                    })
                    .await;
                }
                Err(error) => {
                    log::warn!("an NBD client did not get in: {error}");
                    place.sleep(OUT_OF_DESCRIPTORS).await;
                }
            }
        }
    })
}
