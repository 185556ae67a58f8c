//! TAP devices: Ethernet devices of the host whose wire is a file.
//!
//! What the host's stack sends comes out of [`Tap::receive`], what is put into [`Tap::send`]
//! arrives in the host's stack. Before each frame stands a header that says what is left to be done
//! to it (`struct virtio_net_hdr_mrg_rxbuf` of Linux's `linux/virtio_net.h`), so that neither
//! checksums nor segments have to be made on the way.
//!
//! Source: Linux's `Documentation/networking/tuntap.rst`, `linux/if_tun.h`.

#![allow(unsafe_code, reason = "the kernel is handed addresses")]

use core::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::string::String;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::lease::{NOWHERE, gather};
use crate::memory::{ReadOnly, View};

/// Bytes of the header before each frame.
pub const HEADER: usize = 12;

/// Pieces of memory that a frame may be in: its header, its head and what follows.
const VECTORS: usize = 32;

/// Puts a device on a bridge (`linux/sockios.h`).
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// Which frames that are not finished a reader of the device takes. A writer may always write such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unfinished {
    /// Such whose TCP or UDP checksum is left to be made; the others need that.
    pub checksum: bool,
    /// Such that are to be cut into TCP segments over IPv4.
    pub tso_v4: bool,
    /// Such that are to be cut into TCP segments over IPv6.
    pub tso_v6: bool,
}

impl Unfinished {
    /// All there are.
    pub const ALL: Unfinished = Unfinished {
        checksum: true,
        tso_v4: true,
        tso_v6: true,
    };
}

/// One queue of a TAP device. Reading and writing never wait.
///
/// The device is made when its first queue is opened, and gone with its last one, unless it was
/// there before (`ip tuntap add`).
pub struct Tap {
    file: File,
    device: Arc<Device>,
}

/// What all queues of a device share.
struct Device {
    name: [u8; libc::IFNAMSIZ],
    /// A socket in the device's network namespace, for what is asked of the device by its name.
    socket: OwnedFd,
    /// The namespace that it was opened in, if that is not the process's own.
    namespace: Option<File>,
    multi_queue: bool,
}

/// `struct ifreq` of `linux/if.h`.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl Request {
    fn new(name: [u8; libc::IFNAMSIZ]) -> Self {
        Request {
            name,
            value: [0; 24],
        }
    }

    fn with<const N: usize>(mut self, value: [u8; N]) -> Self {
        self.value[..N].copy_from_slice(&value);
        self
    }

    /// Has the kernel look at it, and change it.
    fn make(&mut self, of: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: all requests here take a `struct ifreq`, which this is, with room to spare where
        // the kernel's is shorter.
        let done = unsafe { libc::ioctl(of.as_raw_fd(), request, &raw mut *self) };
        outcome(done)
    }
}

fn outcome(returned: libc::c_int) -> io::Result<()> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Does `work` in another network namespace, on a thread of its own; `namespace` is the file that
/// stands for it (`/run/netns/NAME`, `/proc/PID/ns/net`). Sockets and TAP devices that are opened
/// there stay there.
///
/// # Errors
/// The host's: entering a namespace needs `CAP_SYS_ADMIN`.
pub fn in_network_namespace<T: Send>(
    namespace: impl AsFd,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let namespace = namespace.as_fd();
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl Tap {
    /// Opens a queue of the device with that name, which may have a `%d` for the kernel to put a
    /// number in. The device is made if there is none.
    ///
    /// # Errors
    /// The host's: `EPERM` without `CAP_NET_ADMIN`, `EBUSY` if somebody else has all the queues
    /// that the device has, `EINVAL` if that name is a device's which is no TAP.
    /// [`io::ErrorKind::InvalidInput`] if no device can have such a name.
    pub fn open(name: &str) -> io::Result<Tap> {
        Self::open_with(name, None)
    }

    /// As [`Tap::open`], in the network namespace that a file stands for, see
    /// [`in_network_namespace`].
    ///
    /// # Errors
    /// As there, too.
    pub fn open_in(namespace: &Path, name: &str) -> io::Result<Tap> {
        let namespace = File::open(namespace)?;
        let within = namespace.try_clone()?;
        in_network_namespace(&namespace, move || Self::open_with(name, Some(within)))?
    }

    fn open_with(name: &str, namespace: Option<File>) -> io::Result<Tap> {
        let mut text = [0; libc::IFNAMSIZ];
        // The last byte stays zero.
        match text[..libc::IFNAMSIZ - 1].get_mut(..name.len()) {
            Some(room) if !name.is_empty() => room.copy_from_slice(name.as_bytes()),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        // SAFETY: takes no addresses; what it returns is a descriptor of our own, or an error.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        outcome(socket)?;
        // SAFETY: new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let (file, name, multi_queue) = match attach(text, true) {
            Ok((file, name)) => (file, name, true),
            // One that was made to have one queue only.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let (file, name) = attach(text, false)?;
                (file, name, false)
            }
            Err(error) => return Err(error),
        };
        Ok(Tap {
            file,
            device: Arc::new(Device {
                name,
                socket,
                namespace,
                multi_queue,
            }),
        })
    }

    /// Opens another queue of the same device. The host's stack spreads flows over all that are
    /// attached, and answers a flow on the queue that its frames came from.
    ///
    /// # Errors
    /// The host's; [`io::ErrorKind::Unsupported`] if the device was made to have one queue only.
    pub fn another_queue(&self) -> io::Result<Tap> {
        if !self.device.multi_queue {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Somebody may have given it another name.
        let mut request = Request::new(self.device.name);
        request.make(self.file.as_fd(), libc::TUNGETIFF)?;
        let name = request.name;
        let (file, _) = match &self.device.namespace {
            Some(namespace) => in_network_namespace(namespace, move || attach(name, true))??,
            None => attach(name, true)?,
        };
        Ok(Tap {
            file,
            device: Arc::clone(&self.device),
        })
    }

    /// Another handle of the same queue.
    ///
    /// # Errors
    /// The host's, when it has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Tap> {
        Ok(Tap {
            file: self.file.try_clone()?,
            device: Arc::clone(&self.device),
        })
    }

    /// What the device is called.
    pub fn name(&self) -> String {
        self.device.name()
    }

    /// Whether it may have more queues than one.
    pub fn is_multi_queue(&self) -> bool {
        self.device.multi_queue
    }

    /// Takes the queue away from the device, so that the host's stack sends nothing there, or gives
    /// it back.
    ///
    /// # Errors
    /// The host's: `EINVAL` if it is so already.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        let flag = match attached {
            true => libc::IFF_ATTACH_QUEUE,
            false => libc::IFF_DETACH_QUEUE,
        };
        // The flags are 16 bits.
        let mut request = Request::new(self.device.name).with((flag as u16).to_ne_bytes());
        request.make(self.file.as_fd(), libc::TUNSETQUEUE)
    }

    /// Says which unfinished frames whoever reads the device's queues takes: none, if nothing is
    /// said.
    ///
    /// # Errors
    /// The host's.
    pub fn set_takes(&self, takes: Unfinished) -> io::Result<()> {
        let mut flags = 0;
        for (taken, flag) in [
            (takes.checksum, libc::TUN_F_CSUM),
            (takes.tso_v4, libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN),
            (takes.tso_v6, libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN),
        ] {
            if taken {
                flags |= flag;
            }
        }
        // SAFETY: its argument is a number.
        outcome(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
    }

    /// Plugs the device's cable in, or pulls it out.
    ///
    /// # Errors
    /// The host's: before Linux 5.0 there is no such thing.
    pub fn set_carrier(&self, carrier: bool) -> io::Result<()> {
        let carrier = libc::c_int::from(carrier);
        // SAFETY: its argument is the address of an `int`.
        outcome(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETCARRIER,
                &raw const carrier,
            )
        })
    }

    /// Switches the device on or off.
    ///
    /// # Errors
    /// The host's.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        let mut request = Request::new(self.device.name);
        request.make(self.device.socket.as_fd(), libc::SIOCGIFFLAGS)?;
        let [low, high, ..] = request.value;
        // The flags are 16 bits.
        let flag = libc::IFF_UP as u16;
        let flags = u16::from_ne_bytes([low, high]);
        let flags = if up { flags | flag } else { flags & !flag };
        let mut request = request.with(flags.to_ne_bytes());
        request.make(self.device.socket.as_fd(), libc::SIOCSIFFLAGS)
    }

    /// Sets the longest packet, without its Ethernet header, in bytes.
    ///
    /// # Errors
    /// The host's: `EINVAL` if it does not do for a device.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let mut request = Request::new(self.device.name).with(libc::c_int::from(mtu).to_ne_bytes());
        request.make(self.device.socket.as_fd(), libc::SIOCSIFMTU)
    }

    /// Sets the host's own Ethernet address on the device.
    ///
    /// # Errors
    /// The host's: `EADDRNOTAVAIL` if that is no station's.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        // `struct sockaddr`: the family, then the address.
        let mut address = [0; 8];
        address[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        address[2..].copy_from_slice(&mac);
        let mut request = Request::new(self.device.name).with(address);
        request.make(self.device.socket.as_fd(), libc::SIOCSIFHWADDR)
    }

    /// Puts the device on a bridge of the host's, in the same network namespace.
    ///
    /// # Errors
    /// The host's: `ENODEV` if there is no such bridge, `EOPNOTSUPP` if that is no bridge,
    /// `EBUSY` if the device is on one already.
    pub fn join_bridge(&self, bridge: &str) -> io::Result<()> {
        let mut name = [0; libc::IFNAMSIZ];
        match name[..libc::IFNAMSIZ - 1].get_mut(..bridge.len()) {
            Some(room) => room.copy_from_slice(bridge.as_bytes()),
            None => return Err(io::ErrorKind::InvalidInput.into()),
        }
        let mut own = Request::new(self.device.name);
        own.make(self.device.socket.as_fd(), libc::SIOCGIFINDEX)?;
        let mut request = Request::new(name).with(own.value);
        request.make(self.device.socket.as_fd(), SIOCBRADDIF)
    }

    /// Gives the host's stack a frame: its header, which is [`HEADER`] bytes, and its bytes, first
    /// those of `head` and then those of `parts`, with one system call.
    ///
    /// # Errors
    /// The host's: `EINVAL` if header and frame do not fit each other, `EIO` while the device is
    /// off. [`io::ErrorKind::InvalidInput`] if there are too many parts.
    pub fn send<'a>(
        &self,
        header: &[u8],
        head: &[u8],
        parts: impl IntoIterator<Item = View<'a, ReadOnly>>,
    ) -> io::Result<()> {
        let mut vectors = [NOWHERE; VECTORS];
        for (vector, bytes) in vectors.iter_mut().zip([header, head]) {
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
        }
        let mut len = 0;
        let parts = parts.into_iter().inspect(|part| len += part.len());
        let (used, gathered) = gather(parts, 0, usize::MAX, &mut vectors[2..]);
        if gathered != len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // At most `VECTORS`.
        let count = 2 + used as libc::c_int;
        loop {
            // SAFETY: `header` and `head` are borrowed, and the views valid, until after the call,
            // which only reads them.
            let sent = unsafe { libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), count) };
            // The device takes a frame as a whole or not at all.
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Takes the next frame that the host's stack has sent: its header, its first bytes into
    /// `head`, and those that follow into `parts`, with one system call. Returns how long the frame
    /// is, without the header.
    ///
    /// What does not fit is lost without a word: give room for one byte more than the longest frame
    /// that is of use.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none; the host's, `EBADFD` for one if the device
    /// is gone.
    pub fn receive<'a>(
        &self,
        header: &mut [u8],
        head: &mut [u8],
        parts: impl IntoIterator<Item = View<'a>>,
    ) -> io::Result<usize> {
        let before = header.len();
        let mut vectors = [NOWHERE; VECTORS];
        for (vector, bytes) in vectors.iter_mut().zip([header, head]) {
            vector.iov_base = bytes.as_mut_ptr().cast();
            vector.iov_len = bytes.len();
        }
        let (used, _) = gather(parts.into_iter(), 0, usize::MAX, &mut vectors[2..]);
        // At most `VECTORS`.
        let count = 2 + used as libc::c_int;
        loop {
            // SAFETY: `header` and `head` are borrowed for writing, and the views valid for it,
            // until after the call.
            let got = unsafe { libc::readv(self.file.as_raw_fd(), vectors.as_ptr(), count) };
            match usize::try_from(got) {
                Ok(got) => return Ok(got.saturating_sub(before)),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// Readable while a frame waits.
impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tap").field(&self.name()).finish()
    }
}

impl Device {
    fn name(&self) -> String {
        let text = self.name.split(|&byte| byte == 0).next();
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }
}

/// Opens a queue of the device, and tells what that is called.
fn attach(
    name: [u8; libc::IFNAMSIZ],
    multi_queue: bool,
) -> io::Result<(File, [u8; libc::IFNAMSIZ])> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // The flags are 16 bits.
    let mut request = Request::new(name).with((flags as u16).to_ne_bytes());
    request.make(file.as_fd(), libc::TUNSETIFF)?;
    for (what, value) in [
        (libc::TUNSETVNETHDRSZ, HEADER as libc::c_int),
        (libc::TUNSETVNETLE, 1),
    ] {
        // SAFETY: its argument is the address of an `int`.
        outcome(unsafe { libc::ioctl(file.as_raw_fd(), what, &raw const value) })?;
    }
    Ok((file, request.name))
}
