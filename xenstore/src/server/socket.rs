//! The unix socket: a task that accepts, and a transport for each that it accepted.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use parapet_hypervisor::seam::{Channel, Clock, HostDescriptors};

use super::daemon::Handle;
use crate::host::SocketTransport;

/// How long to wait before accepting again when the host is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// Accepts local clients for xenstored, for ever: a task to spawn.
///
/// # Errors
/// The listener cannot be waited for.
pub fn accept<P>(
    place: P,
    listener: UnixListener,
    xenstored: Handle,
) -> io::Result<impl Future<Output = ()> + Send + 'static>
where
    P: HostDescriptors + Clock + Clone + Send + Sync + 'static,
    P::Channel: 'static,
{
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
