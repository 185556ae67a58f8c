//! The migration stream: what a xenstored knows, as bytes that another can go on from.
//!
//! ```text
//!   ┌──────────┬─────────┬───────┐   header: "xenstore", version (big-endian), byte order
//!   │ xenstore │ version │ flags │
//!   ├──────┬───┴──┬──────┴───────┴──────────┐
//!   │ type │ len  │ body, len bytes │ 0 to 7 │  GLOBAL_DATA          the listening socket
//!   ├──────┼──────┼─────────────────┴───────┤  GLOBAL_QUOTA_DATA
//!   │ type │ len  │ body …                  │  CONNECTION_DATA      who, unread and unsent bytes
//!   ├──────┼──────┼─────────────────────────┤    WATCH_DATA          … its watches
//!   ┆      ┆      ┆                         ┆    TRANSACTION_DATA    … its transactions
//!   ├──────┼──────┤                         ┆  NODE_DATA            parents before children
//!   │ END  │  0   │                         ┆  DOMAIN_DATA          features, quotas
//!   └──────┴──────┘
//! ```
//!
//! A [`Reader`] makes [`Record`]s of bytes, a [`Writer`] bytes of records. Both know the layout and
//! nothing of what the records are about: that a watch is of a connection that was named before,
//! or a node below another, is for who restores a store to see ([`crate::server::restore`]).
//!
//! Both byte orders are read and written: the header says which it is. Version 2 adds the depth of
//! watches, and the features of domains. What a stream has that these versions do not is refused:
//! it could be something that must not be lost.
//!
//! Source: `docs/designs/xenstore-migration.md`. Where C xenstored's own code
//! (`tools/xenstored/lu.c`, `xenstore_state.h`) leaves room to the document, this follows it: it
//! counts the padding into `len`, and does not always write it as zero.

mod read;
#[cfg(test)]
mod tests;
mod write;

use alloc::vec::Vec;
use core::fmt;

use parapet_xen_sys::{DomId, Port};

pub use crate::permission::Entry;
pub use read::{Fault, Malformed, Place, Reader};
pub use write::{Unwritable, Writer};

/// `ident` of the header.
const IDENT: &[u8; 8] = b"xenstore";
/// Records begin at multiples of so many bytes.
const ALIGNMENT: usize = 8;
/// A watch's `depth` that says that it has none.
const ALL_LEVELS: u16 = 0xffff;
/// The bit of the header's `flags` that says big-endian.
const BIG_ENDIAN: u32 = 1;
/// `conn-type` of a ring and of a socket.
const RING: u16 = 0;
const SOCKET: u16 = 1;
/// The bit of a connection's `fields` that says that there is a `unique-id`.
const HAS_UNIQUE_ID: u16 = 1;
/// The bit of a permission's `flags` that says that it counts for nothing.
const STALE: u8 = 1;

/// The version of the document that a stream follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// What Xen up to 4.19 knows.
    V1 = 1,
    /// With the depth of watches and the features of domains.
    V2 = 2,
}

impl TryFrom<u32> for Version {
    type Error = u32;

    fn try_from(number: u32) -> Result<Self, u32> {
        match number {
            1 => Ok(Version::V1),
            2 => Ok(Version::V2),
            other => Err(other),
        }
    }
}

/// In which order the bytes of a number come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// The lowest first.
    Little,
    /// The highest first.
    Big,
}

impl ByteOrder {
    /// This machine's.
    pub const NATIVE: Self = if cfg!(target_endian = "big") {
        ByteOrder::Big
    } else {
        ByteOrder::Little
    };
}

/// What a stream says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which records and fields there may be.
    pub version: Version,
    /// Of all numbers but `version`.
    pub order: ByteOrder,
}

/// The type of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Nothing comes after it.
    End = 0,
    /// [`Global`].
    Global = 1,
    /// [`Connection`].
    Connection = 2,
    /// [`Watch`], of all levels.
    Watch = 3,
    /// [`Transaction`].
    Transaction = 4,
    /// [`Node`].
    Node = 5,
    /// [`GlobalQuotas`].
    GlobalQuotas = 6,
    /// [`Domain`].
    Domain = 7,
    /// [`Watch`], with its depth.
    WatchExtended = 8,
}

impl Kind {
    const ALL: [Self; 9] = [
        Kind::End,
        Kind::Global,
        Kind::Connection,
        Kind::Watch,
        Kind::Transaction,
        Kind::Node,
        Kind::GlobalQuotas,
        Kind::Domain,
        Kind::WatchExtended,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::End => "END",
            Kind::Global => "GLOBAL_DATA",
            Kind::Connection => "CONNECTION_DATA",
            Kind::Watch => "WATCH_DATA",
            Kind::Transaction => "TRANSACTION_DATA",
            Kind::Node => "NODE_DATA",
            Kind::GlobalQuotas => "GLOBAL_QUOTA_DATA",
            Kind::Domain => "DOMAIN_DATA",
            Kind::WatchExtended => "WATCH_DATA_EXTENDED",
        })
    }
}

/// One record. END is none: a [`Reader`] ends with it, and a [`Writer`] ends by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// What the process has besides connections.
    Global(Global),
    /// A connection.
    Connection(Connection<'a>),
    /// One of its watches.
    Watch(Watch<'a>),
    /// One of its transactions.
    Transaction(Transaction),
    /// A node.
    Node(Node<'a>),
    /// What every domain may use.
    GlobalQuotas(GlobalQuotas<'a>),
    /// What is particular to a domain.
    Domain(Domain<'a>),
}

/// GLOBAL_DATA: descriptors that the next program finds open under the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Global {
    /// The listening socket, if there is one.
    pub socket: Option<i32>,
    /// `/dev/xen/evtchn`, with the ports of all rings bound.
    pub event_channels: Option<i32>,
}

/// CONNECTION_DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'a> {
    /// What the records of its watches and transactions call it; not zero.
    pub id: u32,
    /// Who it is.
    pub end: End,
    /// What has been read from it and not been served, at most 65535 bytes.
    pub input: &'a [u8],
    /// What it is still to be sent.
    pub output: &'a [u8],
    /// How many bytes at the beginning of `output` are the rest of a message that is sent in part,
    /// at most 65535.
    pub partial: usize,
    /// A number by which Xen tells this domain from others that had its id before.
    pub unique_id: Option<u64>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A domain with its ring, which it granted as grant 1.
    Ring {
        /// The domain.
        domid: DomId,
        /// Whose rights it has besides its own.
        target: Option<DomId>,
        /// Our port for it.
        port: Port,
    },
    /// A process, with the number that its socket has in this process.
    Socket(i32),
}

impl End {
    /// The domain, if it is one.
    pub fn domid(self) -> Option<DomId> {
        match self {
            End::Ring { domid, .. } => Some(domid),
            End::Socket(_) => None,
        }
    }
}

/// WATCH_DATA, or WATCH_DATA_EXTENDED if it has a depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch<'a> {
    /// The connection.
    pub connection: u32,
    /// As it was given: relative if it was.
    pub path: &'a [u8],
    /// As it was given.
    pub token: &'a [u8],
    /// How many levels below the path count, less than 65535; none for all. Version 2 only.
    pub depth: Option<u16>,
}

/// TRANSACTION_DATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// The connection.
    pub connection: u32,
    /// Its number, of that connection.
    pub transaction: u32,
}

/// NODE_DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<'a> {
    /// The transaction that it is as seen in; none for the store's own.
    pub pending: Option<Pending>,
    /// The absolute path, or a special name.
    pub path: &'a [u8],
    /// Any bytes.
    pub value: &'a [u8],
    /// The owner's first. Empty only for a node that a transaction has removed.
    pub permissions: Vec<Entry>,
}

/// The transaction that a node is as seen in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Whose and which.
    pub of: Transaction,
    /// It read the node.
    pub read: bool,
    /// It wrote the node.
    pub written: bool,
}

/// GLOBAL_QUOTA_DATA.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GlobalQuotas<'a> {
    /// What every domain may use, unless its own record says otherwise.
    pub domains: Vec<Quota<'a>>,
    /// What is allowed in all.
    pub global: Vec<Quota<'a>>,
}

/// DOMAIN_DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain<'a> {
    /// The domain.
    pub domid: DomId,
    /// What its ring says that the server can do; zero in version 1.
    pub features: u32,
    /// What it may use.
    pub quotas: Vec<Quota<'a>>,
}

/// A quota and its value; zero is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota<'a> {
    /// As GET_QUOTA has it.
    pub name: &'a str,
    /// The limit.
    pub value: u32,
}

impl Record<'_> {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Record::Global(_) => Kind::Global,
            Record::Connection(_) => Kind::Connection,
            Record::Watch(Watch { depth: None, .. }) => Kind::Watch,
            Record::Watch(_) => Kind::WatchExtended,
            Record::Transaction(_) => Kind::Transaction,
            Record::Node(_) => Kind::Node,
            Record::GlobalQuotas(_) => Kind::GlobalQuotas,
            Record::Domain(_) => Kind::Domain,
        }
    }
}

/// How many bytes are missing to the next multiple of [`ALIGNMENT`].
fn padding(len: usize) -> usize {
    len.wrapping_neg() % ALIGNMENT
}
