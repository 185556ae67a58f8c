//! A guest that is nothing but a wire, from its vif to a TAP device of the machine: behind that is
//! an unmodified Linux stack, which is the guest for all that the vif's network can tell.
//!
//! ```text
//!   ip netns exec red curl ...                     one process
//!   ┌───────────────────────────┐   ┌─────────────────────────────────────────────┐
//!   │ Linux's stack ─ TAP device├───┤ wire ─ netfront ══ netback ─ switch ─ ... │
//!   └───────────────────────────┘   └─────────────────────────────────────────────┘
//! ```
//!
//! Frames are copied by the machine's kernel only, between its own memory and the pages that the
//! two halves share, with one system call each. What is left to be done to them goes along, both
//! ways, as far as the vif's two halves take it.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_channel::mpsc;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use parapet_hypervisor::host::{Tap, Unfinished};
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::memory::View;
use parapet_hypervisor::seam::prelude::*;
use parapet_hypervisor::seam::yield_now;
use parapet_netfront::{Checksum, Config, Offloads, Queue, Receiver, SendError, Sender};
use parapet_packet::headers::{ETHERNET, Headers};
use parapet_packet::vnet::VnetHeader;
use zerocopy::IntoBytes;

use crate::guest::Guest;

/// The first bytes of a frame, which are copied to be looked at: more than all headers.
const HEAD: usize = 256;

/// Bytes of VLAN tags that a frame may have beside its Ethernet header.
const TAGS: usize = 8;

/// Frames after which the other direction has its turn.
const TURN: usize = 64;

/// A TAP device, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub device: String,
    /// The file that stands for its network namespace, if it is not our own.
    pub namespace: Option<PathBuf>,
}

/// `DEVICE`, or `DEVICE@NAMESPACE`: a name that `ip netns` has given it, or a path.
impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, namespace) = match text.split_once('@') {
            Some((device, namespace)) => (device, Some(namespace)),
            None => (text, None),
        };
        if device.is_empty() || device.len() > 15 || namespace == Some("") {
            return Err("it should be DEVICE or DEVICE@NAMESPACE".into());
        }
        let path = |name: &str| match name.contains('/') {
            true => PathBuf::from(name),
            false => PathBuf::from("/run/netns").join(name),
        };
        Ok(Place {
            device: device.into(),
            namespace: namespace.map(path),
        })
    }
}

impl Place {
    /// Opens the device, which is made if there is none.
    ///
    /// # Errors
    /// The host's: it takes root, or `CAP_NET_ADMIN`.
    pub fn open(&self) -> io::Result<Tap> {
        match &self.namespace {
            Some(namespace) => Tap::open_in(namespace, &self.device),
            None => Tap::open(&self.device),
        }
    }
}

/// Joins the guest's first vif with a device, connected as `config` has it, until one of them is no
/// more. The device gets the vif's Ethernet address and MTU, and its cable is plugged in while the
/// vif has a backend that has a network. `unfinished` is whether its stack leaves to the vif what the
/// vif's backend would do for it.
///
/// # Errors
/// The vif cannot be connected, or the device not be used.
pub async fn wire(guest: Guest, tap: Tap, config: Config, unfinished: bool) -> Result<()> {
    let (interface, queues) = guest.interface_as(0, config).await?;
    let name = tap.name();
    let (ended, mut ends) = mpsc::unbounded::<anyhow::Error>();
    let mut taps = vec![tap];
    while taps.len() < queues.len() && taps[0].is_multi_queue() {
        taps.push(taps[0].another_queue()?);
    }
    let taps: Vec<Arc<Tap>> = taps.into_iter().map(Arc::new).collect();
    let first = Arc::clone(&taps[0]);
    let mtu = interface.mtu();
    first.set_mac(interface.mac().0)?;
    first.set_mtu(mtu)?;
    for (at, queue) in queues.into_iter().enumerate() {
        let Queue {
            mut sender,
            receiver,
        } = queue;
        if at == 0 {
            let takes = takes(&mut sender);
            first.set_takes(if unfinished {
                takes
            } else {
                Unfinished::default()
            })?;
        }
        // A device with fewer queues than the vif still gets what comes on each.
        let tap = Arc::clone(&taps[at % taps.len()]);
        if at < taps.len() {
            let (domain, tap, ended) = (guest.domain().clone(), Arc::clone(&tap), ended.clone());
            guest.domain().spawn(async move {
                if let Err(error) = outward(domain, &tap, sender, mtu).await {
                    // Who listens no more knows.
                    let _ = ended.unbounded_send(error);
                }
            });
        }
        let ended = ended.clone();
        guest.domain().spawn(async move {
            if let Err(error) = inward(&tap, receiver).await {
                let _ = ended.unbounded_send(error);
            }
        });
    }
    first.set_up(true)?;
    let mut status = interface.status()?;
    loop {
        // Before Linux 5.0 it is always plugged in.
        if let Err(error) = first.set_carrier(status.connected && status.carrier) {
            log::debug!("{name}: its cable cannot be pulled: {error}");
        }
        let changed = Box::pin(interface.changed(status));
        match select(changed, ends.next()).await {
            Either::Left((now, _)) => status = now?,
            Either::Right((Some(error), _)) => return Err(error).context(name),
            Either::Right((None, _)) => unreachable!("one end is held here"),
        }
    }
}

/// What the backend takes unfinished, and so we do.
fn takes(sender: &mut Sender<Domain>) -> Unfinished {
    let features = sender.features();
    let checksum = features.checksum_v4 && features.checksum_v6;
    Unfinished {
        checksum,
        tso_v4: checksum && features.gso_v4,
        tso_v6: checksum && features.gso_v6,
    }
}

/// What follows the first bytes.
fn after<'a, A: 'a>(
    views: impl Iterator<Item = View<'a, A>>,
    first: usize,
) -> impl Iterator<Item = View<'a, A>> {
    let mut skip = first;
    views.filter_map(move |view| {
        let skipped = skip.min(view.len());
        skip -= skipped;
        let rest = view.len() - skipped;
        view.slice(skipped, rest).ok().filter(|_| rest > 0)
    })
}

/// What became of an attempt to move a frame.
enum Moved {
    /// There was one: it is on its way, or lost.
    Frame,
    /// There was none.
    Nothing,
    /// There was no room for one.
    NoRoom,
}

/// From the device to the vif.
async fn outward(domain: Domain, tap: &Tap, mut sender: Sender<Domain>, mtu: u16) -> Result<()> {
    let readable = domain.bind_descriptor(tap.as_fd())?;
    let mut turn = 0;
    loop {
        let features = sender.features();
        let longest = match features.gso_v4 || features.gso_v6 {
            true => features.longest(),
            false => (usize::from(mtu) + ETHERNET + TAGS).min(features.longest()),
        };
        match take(tap, &mut sender, longest)? {
            Moved::Frame => turn += 1,
            Moved::Nothing => {
                sender.flush();
                readable.wait().await;
            }
            Moved::NoRoom => sender.room(longest).await?,
        }
        if turn == TURN {
            turn = 0;
            sender.flush();
            yield_now().await;
        }
    }
}

/// Sends the next frame of the device's, if there is one. One that the vif cannot take is lost, as
/// on any wire.
fn take(tap: &Tap, sender: &mut Sender<Domain>, longest: usize) -> Result<Moved> {
    let mut draft = match sender.reserve(longest) {
        Ok(draft) => draft,
        Err(SendError::NoRoom) => return Ok(Moved::NoRoom),
        Err(error) => return Err(error.into()),
    };
    let (mut vnet, mut head) = (VnetHeader::default(), [0; HEAD]);
    let parts = after(draft.views(), HEAD);
    let len = match tap.receive(vnet.as_mut_bytes(), &mut head, parts) {
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::Nothing),
        Err(error) => return Err(error.into()),
    };
    let head = &head[..len.min(HEAD)];
    let headers = Headers::parse(head, len).ok();
    let offloads = headers.and_then(|headers| vnet.offloads(&headers).ok());
    if let Some(offloads) = offloads
        && draft.shorten(len).is_ok()
        && draft.write(0, head).is_ok()
        && let Err(unfit) = draft.send(offloads)
    {
        log::debug!("{}: a frame was lost: {unfit}", tap.name());
    }
    Ok(Moved::Frame)
}

/// From the vif to the device.
async fn inward(tap: &Tap, mut receiver: Receiver<Domain>) -> Result<()> {
    let mut head = [0; HEAD];
    let mut turn = 0;
    loop {
        let frame = receiver.receive().await?;
        let seen = frame.copy_to(0, &mut head);
        let head = &head[..seen];
        let vnet = Headers::parse(head, frame.len())
            .ok()
            .and_then(|headers| header(frame.offloads(), &headers));
        if let Some(vnet) = vnet
            && let Err(error) = tap.send(vnet.as_bytes(), head, after(frame.views(), seen))
        {
            match error.raw_os_error() {
                // The device itself is gone.
                Some(EBADFD) => return Err(error.into()),
                _ => log::debug!("{}: a frame was lost: {error}", tap.name()),
            }
        }
        drop(frame);
        turn += 1;
        if turn % TURN == 0 {
            yield_now().await;
        }
    }
}

/// Linux's number for a device that is not there any more.
const EBADFD: i32 = 77;

/// The device's header for a frame.
fn header(offloads: Offloads, headers: &Headers) -> Option<VnetHeader> {
    match VnetHeader::new(offloads, headers) {
        Ok(vnet) => Some(vnet),
        // Of what is intact it is no matter whether somebody can tell where the checksum is.
        Err(_) if offloads.checksum != Checksum::Blank => Some(VnetHeader::default()),
        Err(disagreement) => {
            log::debug!("a frame was lost: {disagreement}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_with_its_namespace_or_without() {
        let place = |text: &str| text.parse::<Place>();
        let here = Place {
            device: "tap0".into(),
            namespace: None,
        };
        assert_eq!(place("tap0"), Ok(here.clone()));
        let named = Place {
            namespace: Some("/run/netns/red".into()),
            ..here.clone()
        };
        assert_eq!(place("tap0@red"), Ok(named));
        let path = Place {
            namespace: Some("/proc/7/ns/net".into()),
            ..here
        };
        assert_eq!(place("tap0@/proc/7/ns/net"), Ok(path));
        for text in ["", "@red", "tap0@", "a-name-of-a-device"] {
            assert!(place(text).is_err(), "{text:?}");
        }
    }
}
