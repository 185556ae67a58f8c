//! Bytes to records.

use alloc::vec::Vec;
use core::fmt;

use parapet_xen_sys::{DomId, Port};

use super::{
    ALIGNMENT, ALL_LEVELS, BIG_ENDIAN, ByteOrder, Connection, Domain, End, Entry, Global,
    GlobalQuotas, HAS_UNIQUE_ID, Header, IDENT, Kind, Node, Pending, Quota, RING, Record, SOCKET,
    STALE, Transaction, Version, Watch, padding,
};
use crate::{Access, Permission};

/// A stream that is none. Nothing of it is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct Malformed {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub fault: Fault,
}

/// A place in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the record, from 1 on; zero for the header.
    pub record: usize,
    /// Its type, as far as that is known.
    pub kind: Option<Kind>,
    /// Where it begins, in bytes from the beginning of the stream.
    pub offset: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.record, self.kind) {
            (0, _) => f.write_str("the header"),
            (record, None) => write!(f, "record {record} at byte {}", self.offset),
            (record, Some(kind)) => write!(f, "record {record} ({kind}) at byte {}", self.offset),
        }
    }
}

/// What can be wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It does not begin as every stream does.
    #[error("this is no migration stream")]
    NoStream,
    /// A version that is not known here.
    #[error("version {0} of the stream is not known")]
    Version(u32),
    /// Flags that nothing is known of.
    #[error("flags {0:#x} are not known")]
    Flags(u32),
    /// A record that nothing is known of.
    #[error("records of type {0:#x} are not known")]
    Type(u32),
    /// One that is not in streams of this version.
    #[error("there is none in a stream of version 1")]
    NotYet,
    /// The stream ends within it.
    #[error("the stream ends in it")]
    CutOff,
    /// Its own lengths say more than it has, or its length more than they say.
    #[error("its fields are not as long as it is")]
    Length,
    /// A text without a final zero, with one within, or none at all.
    #[error("its {0} is not one text")]
    Text(&'static str),
    /// A field that says what it cannot.
    #[error("its {0} cannot be {1:#x}")]
    Value(&'static str, u32),
    /// Something comes after the last record.
    #[error("there are bytes after it")]
    NotTheEnd,
}

/// A stream that is read.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    stream: &'a [u8],
    header: Header,
    /// Where the next record begins; none after the last, and after a fault.
    next: Option<usize>,
    /// Records so far.
    records: usize,
}

impl<'a> Reader<'a> {
    /// Looks at the header.
    ///
    /// # Errors
    /// It is none, or of a version that is not known.
    pub fn new(stream: &'a [u8]) -> Result<Self, Malformed> {
        let place = Place {
            record: 0,
            kind: None,
            offset: 0,
        };
        let at = |fault| Malformed { place, fault };
        let mut fields = Fields {
            // Until the flags say otherwise, and of no matter to what comes before them.
            order: ByteOrder::Big,
            body: stream,
            at: 0,
        };
        if fields.bytes(IDENT.len()) != Ok(IDENT) {
            return Err(at(Fault::NoStream));
        }
        let version = fields.u32().map_err(|_| at(Fault::CutOff))?;
        let flags: [u8; 4] = fields.array().map_err(|_| at(Fault::CutOff))?;
        let version = Version::try_from(version).map_err(|other| at(Fault::Version(other)))?;
        // The bit that says which order it is, is itself in that order.
        let order = match (u32::from_le_bytes(flags), u32::from_be_bytes(flags)) {
            (0, _) => ByteOrder::Little,
            (_, BIG_ENDIAN) => ByteOrder::Big,
            (flags, _) => return Err(at(Fault::Flags(flags))),
        };
        Ok(Reader {
            stream,
            header: Header { version, order },
            next: Some(fields.at),
            records: 0,
        })
    }

    /// What the stream says of itself.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The record at `offset`, or none if that is END; and where the next begins.
    fn record(
        &self,
        place: &mut Place,
        offset: usize,
    ) -> Result<(Option<Record<'a>>, usize), Fault> {
        let rest = self.stream.get(offset..).ok_or(Fault::CutOff)?;
        let mut head = Fields {
            order: self.header.order,
            body: rest,
            at: 0,
        };
        let cut_off = |_| Fault::CutOff;
        let number = head.u32().map_err(cut_off)?;
        let len = head.u32().map_err(cut_off)?;
        let known = Kind::ALL.into_iter().find(|kind| *kind as u32 == number);
        let kind = known.ok_or(Fault::Type(number))?;
        place.kind = Some(kind);
        let len = usize::try_from(len).map_err(|_| Fault::CutOff)?;
        let body = head.bytes(len).map_err(cut_off)?;
        head.bytes(padding(len)).map_err(cut_off)?;
        let mut fields = Fields {
            order: self.header.order,
            body,
            at: 0,
        };
        let version = self.header.version;
        let record = match kind {
            Kind::End => None,
            Kind::Global => Some(Record::Global(fields.global()?)),
            Kind::Connection => Some(Record::Connection(fields.connection()?)),
            Kind::Watch => Some(Record::Watch(fields.watch(false)?)),
            Kind::WatchExtended if version < Version::V2 => return Err(Fault::NotYet),
            Kind::WatchExtended => Some(Record::Watch(fields.watch(true)?)),
            Kind::Transaction => Some(Record::Transaction(fields.transaction()?)),
            Kind::Node => Some(Record::Node(fields.node()?)),
            Kind::GlobalQuotas => Some(Record::GlobalQuotas(fields.global_quotas()?)),
            Kind::Domain => Some(Record::Domain(fields.domain(version)?)),
        };
        // C xenstored counts the padding into the length.
        if body.len() - fields.at >= ALIGNMENT {
            return Err(Fault::Length);
        }
        Ok((record, offset + head.at))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(Place, Record<'a>), Malformed>;

    /// The next record, or why there is none. Nothing comes after either END or a fault.
    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.next.take()?;
        self.records += 1;
        let mut place = Place {
            record: self.records,
            kind: None,
            offset,
        };
        match self.record(&mut place, offset) {
            Ok((Some(record), next)) => {
                self.next = Some(next);
                Some(Ok((place, record)))
            }
            Ok((None, end)) if end == self.stream.len() => None,
            Ok((None, _)) => Some(Err(Fault::NotTheEnd)),
            Err(fault) => Some(Err(fault)),
        }
        .map(|result| result.map_err(|fault| Malformed { place, fault }))
    }
}

/// What is left of a body.
struct Fields<'a> {
    order: ByteOrder,
    body: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let rest = self.body.get(self.at..).unwrap_or(&[]);
        let bytes = rest.get(..len).ok_or(Fault::Length)?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.bytes(N)?.try_into().map_err(|_| Fault::Length)
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_ne_bytes)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u16::from_le_bytes(bytes),
            ByteOrder::Big => u16::from_be_bytes(bytes),
        })
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u32::from_le_bytes(bytes),
            ByteOrder::Big => u32::from_be_bytes(bytes),
        })
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u64::from_le_bytes(bytes),
            ByteOrder::Big => u64::from_be_bytes(bytes),
        })
    }

    fn len(&mut self) -> Result<usize, Fault> {
        self.u16().map(usize::from)
    }

    /// A descriptor, of which -1 says that there is none.
    fn descriptor(&mut self) -> Result<Option<i32>, Fault> {
        match self.u32()?.cast_signed() {
            -1 => Ok(None),
            number => Ok(Some(number)),
        }
    }

    /// A text of `len` bytes, its final zero among them.
    fn text(&mut self, name: &'static str, len: usize) -> Result<&'a [u8], Fault> {
        match self.bytes(len)?.split_last() {
            Some((0, text)) if !text.contains(&0) => Ok(text),
            _ => Err(Fault::Text(name)),
        }
    }

    /// The number of a connection.
    fn connection_id(&mut self) -> Result<u32, Fault> {
        match self.u32()? {
            0 => Err(Fault::Value("conn-id", 0)),
            id => Ok(id),
        }
    }

    fn domid(&mut self, name: &'static str) -> Result<DomId, Fault> {
        let domid = DomId(self.u16()?);
        if domid.is_domain() {
            Ok(domid)
        } else {
            Err(Fault::Value(name, domid.0.into()))
        }
    }

    fn global(&mut self) -> Result<Global, Fault> {
        Ok(Global {
            socket: self.descriptor()?,
            event_channels: self.descriptor()?,
        })
    }

    fn connection(&mut self) -> Result<Connection<'a>, Fault> {
        let id = self.connection_id()?;
        let of = self.u16()?;
        let fields = self.u16()?;
        if fields & !HAS_UNIQUE_ID != 0 {
            return Err(Fault::Flags(fields.into()));
        }
        let end = match of {
            RING => self.ring()?,
            SOCKET => {
                let number = self.descriptor()?;
                self.u32()?;
                End::Socket(number.ok_or(Fault::Value("socket-fd", u32::MAX))?)
            }
            other => return Err(Fault::Value("conn-type", other.into())),
        };
        let input = self.len()?;
        let partial = self.len()?;
        let output = self.u32()?;
        let output = usize::try_from(output).map_err(|_| Fault::Length)?;
        if partial > output {
            return Err(Fault::Length);
        }
        let (input, output) = (self.bytes(input)?, self.bytes(output)?);
        let mut unique_id = None;
        if fields & HAS_UNIQUE_ID != 0 {
            self.bytes(padding(self.at))?;
            unique_id = Some(self.u64()?);
        }
        Ok(Connection {
            id,
            end,
            input,
            output,
            partial,
            unique_id,
        })
    }

    fn ring(&mut self) -> Result<End, Fault> {
        let domid = self.domid("domid")?;
        let target = match DomId(self.u16()?) {
            DomId::INVALID => None,
            target if target.is_domain() => Some(target),
            other => return Err(Fault::Value("tdomid", other.0.into())),
        };
        let port = Port(self.u32()?);
        Ok(End::Ring {
            domid,
            target,
            port,
        })
    }

    fn watch(&mut self, extended: bool) -> Result<Watch<'a>, Fault> {
        let connection = self.connection_id()?;
        let (path, token) = (self.len()?, self.len()?);
        let mut depth = None;
        if extended {
            depth = Some(self.u16()?).filter(|depth| *depth != ALL_LEVELS);
            self.u16()?;
        }
        Ok(Watch {
            connection,
            path: self.text("wpath", path)?,
            token: self.text("token", token)?,
            depth,
        })
    }

    fn transaction(&mut self) -> Result<Transaction, Fault> {
        Ok(Transaction {
            connection: self.connection_id()?,
            transaction: self.u32()?,
        })
    }

    fn node(&mut self) -> Result<Node<'a>, Fault> {
        let (connection, transaction) = (self.u32()?, self.u32()?);
        let (path, value) = (self.len()?, self.len()?);
        let (access, permissions) = (self.u16()?, self.u16()?);
        let pending = match connection {
            0 => None,
            _ if access > 3 => return Err(Fault::Value("access", access.into())),
            connection => Some(Pending {
                of: Transaction {
                    connection,
                    transaction,
                },
                read: access & 1 != 0,
                written: access & 2 != 0,
            }),
        };
        if permissions == 0 && pending.is_none() {
            return Err(Fault::Value("perm-count", 0));
        }
        let permissions = (0..permissions).map(|_| self.entry());
        let permissions = permissions.collect::<Result<Vec<_>, _>>()?;
        Ok(Node {
            pending,
            path: self.text("path", path)?,
            value: self.bytes(value)?,
            permissions,
        })
    }

    fn entry(&mut self) -> Result<Entry, Fault> {
        let (letter, flags, domid) = (self.u8()?, self.u8()?, self.u16()?);
        let access = match letter {
            b'n' => Access::None,
            b'r' => Access::Read,
            b'w' => Access::Write,
            b'b' => Access::Both,
            other => return Err(Fault::Value("perm", other.into())),
        };
        if flags & !STALE != 0 {
            return Err(Fault::Flags(flags.into()));
        }
        Ok(Entry {
            permission: Permission {
                domid: DomId(domid),
                access,
            },
            stale: flags & STALE != 0,
        })
    }

    fn global_quotas(&mut self) -> Result<GlobalQuotas<'a>, Fault> {
        let (domains, global) = (self.len()?, self.len()?);
        let mut quotas = self.quotas(domains + global)?;
        let global = quotas.split_off(domains);
        Ok(GlobalQuotas {
            domains: quotas,
            global,
        })
    }

    fn domain(&mut self, version: Version) -> Result<Domain<'a>, Fault> {
        let domid = self.domid("domain-id")?;
        let quotas = self.len()?;
        let features = match (self.u32()?, version) {
            (_, Version::V1) => 0,
            (features, Version::V2) => features,
        };
        let quotas = self.quotas(quotas)?;
        Ok(Domain {
            domid,
            features,
            quotas,
        })
    }

    /// So many values, and as many names.
    fn quotas(&mut self, count: usize) -> Result<Vec<Quota<'a>>, Fault> {
        let values = (0..count).map(|_| self.u32());
        let values = values.collect::<Result<Vec<_>, _>>()?;
        let named = values.into_iter().map(|value| {
            let rest = self.body.get(self.at..).unwrap_or(&[]);
            let len = rest.iter().position(|byte| *byte == 0);
            let name = self.text("quota-names", len.ok_or(Fault::Length)? + 1)?;
            let name = core::str::from_utf8(name).ok();
            let name = name.filter(|name| !name.is_empty());
            Ok(Quota {
                name: name.ok_or(Fault::Text("quota-names"))?,
                value,
            })
        });
        named.collect()
    }
}
