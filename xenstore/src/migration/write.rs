//! Records to bytes.

use alloc::vec::Vec;

use parapet_xen_sys::DomId;

use super::{
    ALL_LEVELS, BIG_ENDIAN, ByteOrder, Connection, End, Entry, HAS_UNIQUE_ID, Header, IDENT, Kind,
    Node, Quota, RING, Record, SOCKET, STALE, Transaction, Version, Watch, padding,
};
use crate::Access;

/// A record that does not fit a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {kind} record has no room for a {field} of {len}")]
pub struct Unwritable {
    /// Its type.
    pub kind: Kind,
    /// The field that is too large, or is not in streams of the version.
    pub field: &'static str,
    /// How large it is.
    pub len: usize,
}

/// A stream that is written.
#[derive(Debug, Clone)]
pub struct Writer {
    header: Header,
    out: Vec<u8>,
}

impl Writer {
    /// Begins one.
    pub fn new(header: Header) -> Self {
        let mut out = Vec::from(IDENT);
        out.extend((header.version as u32).to_be_bytes());
        out.extend(match header.order {
            ByteOrder::Little => 0u32.to_le_bytes(),
            ByteOrder::Big => BIG_ENDIAN.to_be_bytes(),
        });
        Writer { header, out }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// It does not fit; nothing is added.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), Unwritable> {
        let kind = record.kind();
        if kind == Kind::WatchExtended && self.header.version < Version::V2 {
            let (field, len) = ("depth", 0);
            return Err(Unwritable { kind, field, len });
        }
        let start = self.out.len();
        self.u32(kind as u32);
        self.u32(0);
        let body = self.out.len();
        let written = self.body(record).and_then(|()| {
            // Counted in, as C xenstored looks for the next record right after so many bytes.
            self.out.resize(self.out.len() + self.padding(body), 0);
            let len = self.out.len() - body;
            u32::try_from(len).map_err(|_| ("body", len))
        });
        match written {
            Ok(len) => {
                let len = self.in_order(len.to_le_bytes());
                if let Some(place) = self.out.get_mut(body - len.len()..body) {
                    place.copy_from_slice(&len);
                }
                Ok(())
            }
            Err((field, len)) => {
                self.out.truncate(start);
                Err(Unwritable { kind, field, len })
            }
        }
    }

    /// Ends it: the whole stream.
    pub fn finish(mut self) -> Vec<u8> {
        self.u32(Kind::End as u32);
        self.u32(0);
        self.out
    }

    fn padding(&self, body: usize) -> usize {
        padding(self.out.len() - body)
    }

    /// Turns the bytes of a little-endian number into the stream's order.
    fn in_order<const N: usize>(&self, mut little: [u8; N]) -> [u8; N] {
        if self.header.order == ByteOrder::Big {
            little.reverse();
        }
        little
    }

    fn u16(&mut self, value: u16) {
        let bytes = self.in_order(value.to_le_bytes());
        self.out.extend(bytes);
    }

    fn u32(&mut self, value: u32) {
        let bytes = self.in_order(value.to_le_bytes());
        self.out.extend(bytes);
    }

    fn u64(&mut self, value: u64) {
        let bytes = self.in_order(value.to_le_bytes());
        self.out.extend(bytes);
    }

    fn len(&mut self, field: &'static str, len: usize) -> Result<(), (&'static str, usize)> {
        let len = u16::try_from(len).map_err(|_| (field, len))?;
        self.u16(len);
        Ok(())
    }

    fn text(&mut self, text: &[u8]) {
        self.out.extend(text);
        self.out.push(0);
    }

    fn body(&mut self, record: &Record<'_>) -> Result<(), (&'static str, usize)> {
        match record {
            Record::Global(global) => {
                for descriptor in [global.socket, global.event_channels] {
                    self.u32(descriptor.unwrap_or(-1).cast_unsigned());
                }
                Ok(())
            }
            Record::Connection(connection) => self.connection(connection),
            Record::Watch(watch) => self.watch(watch),
            Record::Transaction(transaction) => {
                self.transaction(*transaction);
                Ok(())
            }
            Record::Node(node) => self.node(node),
            Record::GlobalQuotas(quotas) => {
                self.len("n-dom-quota", quotas.domains.len())?;
                self.len("n-glob-quota", quotas.global.len())?;
                self.quotas(quotas.domains.iter().chain(&quotas.global));
                Ok(())
            }
            Record::Domain(domain) => {
                self.u16(domain.domid.0);
                self.len("n-quota", domain.quotas.len())?;
                self.u32(match self.header.version {
                    Version::V1 => 0,
                    Version::V2 => domain.features,
                });
                self.quotas(domain.quotas.iter());
                Ok(())
            }
        }
    }

    fn connection(&mut self, connection: &Connection<'_>) -> Result<(), (&'static str, usize)> {
        let body = self.out.len();
        self.u32(connection.id);
        let of = match connection.end {
            End::Ring { .. } => RING,
            End::Socket(_) => SOCKET,
        };
        self.u16(of);
        self.u16(connection.unique_id.map_or(0, |_| HAS_UNIQUE_ID));
        match connection.end {
            End::Ring {
                domid,
                target,
                port,
            } => {
                self.u16(domid.0);
                self.u16(target.unwrap_or(DomId::INVALID).0);
                self.u32(port.0);
            }
            End::Socket(descriptor) => {
                self.u32(descriptor.cast_unsigned());
                self.u32(0);
            }
        }
        self.len("in-data-len", connection.input.len())?;
        self.len("out-resp-len", connection.partial)?;
        let output = connection.output.len();
        let output = u32::try_from(output).map_err(|_| ("out-data-len", output))?;
        self.u32(output);
        self.out.extend(connection.input);
        self.out.extend(connection.output);
        if let Some(unique_id) = connection.unique_id {
            self.out.resize(self.out.len() + self.padding(body), 0);
            self.u64(unique_id);
        }
        Ok(())
    }

    fn watch(&mut self, watch: &Watch<'_>) -> Result<(), (&'static str, usize)> {
        self.u32(watch.connection);
        self.len("wpath", watch.path.len() + 1)?;
        self.len("token", watch.token.len() + 1)?;
        match watch.depth {
            None => {}
            Some(ALL_LEVELS) => return Err(("depth", ALL_LEVELS.into())),
            Some(depth) => {
                self.u16(depth);
                self.u16(0);
            }
        }
        self.text(watch.path);
        self.text(watch.token);
        Ok(())
    }

    fn transaction(&mut self, transaction: Transaction) {
        self.u32(transaction.connection);
        self.u32(transaction.transaction);
    }

    fn node(&mut self, node: &Node<'_>) -> Result<(), (&'static str, usize)> {
        let of = node.pending.map(|pending| pending.of);
        self.transaction(of.unwrap_or(Transaction {
            connection: 0,
            transaction: 0,
        }));
        self.len("path", node.path.len() + 1)?;
        self.len("value", node.value.len())?;
        let access = node.pending.map_or(0, |pending| {
            u16::from(pending.read) | u16::from(pending.written) << 1
        });
        self.u16(access);
        self.len("perm-count", node.permissions.len())?;
        for Entry { permission, stale } in &node.permissions {
            self.out.push(match permission.access {
                Access::None => b'n',
                Access::Read => b'r',
                Access::Write => b'w',
                Access::Both => b'b',
            });
            self.out.push(if *stale { STALE } else { 0 });
            self.u16(permission.domid.0);
        }
        self.text(node.path);
        self.out.extend(node.value);
        Ok(())
    }

    fn quotas<'q>(&mut self, quotas: impl Iterator<Item = &'q Quota<'q>> + Clone) {
        for quota in quotas.clone() {
            self.u32(quota.value);
        }
        for quota in quotas {
            self.text(quota.name.as_bytes());
        }
    }
}
