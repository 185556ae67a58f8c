//! What the payload of a request says.

use alloc::string::ToString;
use alloc::vec::Vec;

use parapet_xen_sys::io::xs_wire::{Operation, ServerFeatures};
use parapet_xen_sys::{DomId, Errno, Port};

use super::message::{TooLong, encode};
use crate::Permission;

/// A request. Paths are as they were sent: checking one is the store's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Talk to the daemon itself.
    Control {
        /// What to do.
        command: &'a [u8],
        /// With what.
        arguments: Vec<&'a [u8]>,
    },
    /// List the children of the node at this path.
    Directory(&'a [u8]),
    /// The value of the node.
    Read(&'a [u8]),
    /// The permissions of the node.
    GetPerms(&'a [u8]),
    /// Tell me of changes.
    Watch {
        /// At and below this path.
        path: &'a [u8],
        /// What to call the watch in its events.
        token: &'a [u8],
        /// How many levels below; none for all.
        depth: Option<u32>,
    },
    /// Tell me no more.
    Unwatch {
        /// As given to [`Request::Watch`].
        path: &'a [u8],
        /// As given to [`Request::Watch`].
        token: &'a [u8],
    },
    /// Begin a transaction.
    TransactionStart,
    /// Commit, or drop, the transaction that the message's header names.
    TransactionEnd {
        /// Commit it.
        commit: bool,
    },
    /// Talk to this domain.
    Introduce {
        /// The domain.
        domid: DomId,
        /// The frame of its xenstore page. Grant 1 names the same page.
        gfn: u64,
        /// The port that it has for xenstored.
        port: Port,
    },
    /// This domain is gone.
    Release(DomId),
    /// Where this domain's nodes are.
    GetDomainPath(DomId),
    /// Set a value.
    Write {
        /// Of the node at this path.
        path: &'a [u8],
        /// Any bytes.
        value: &'a [u8],
    },
    /// Make sure that the node exists.
    Mkdir(&'a [u8]),
    /// Remove the node and all below it.
    Rm(&'a [u8]),
    /// Set permissions.
    SetPerms {
        /// Of the node at this path.
        path: &'a [u8],
        /// The owner's entry first.
        permissions: Vec<Permission>,
    },
    /// Whether this domain was introduced and not released.
    IsDomainIntroduced(DomId),
    /// This domain runs again.
    Resume(DomId),
    /// Give one domain the rights of another.
    SetTarget {
        /// Who gets them.
        domid: DomId,
        /// Whose they are.
        target: DomId,
    },
    /// Drop my watches and transactions.
    ResetWatches,
    /// List some of the children.
    DirectoryPart {
        /// Of the node at this path.
        path: &'a [u8],
        /// From this byte of the whole list on.
        offset: usize,
    },
    /// What xenstored can do for this domain, or for who asks.
    GetFeature(Option<DomId>),
    /// Choose what xenstored is to do for a domain that is not introduced yet.
    SetFeature {
        /// The domain.
        domid: DomId,
        /// What, and nothing else.
        features: ServerFeatures,
    },
    /// The names of all quotas.
    ListQuotas,
    /// The value of a quota.
    GetQuota {
        /// For this domain, or for those that are yet to come.
        domid: Option<DomId>,
        /// Its name.
        name: &'a [u8],
    },
    /// Set the value of a quota.
    SetQuota {
        /// For this domain, or for those that are yet to come.
        domid: Option<DomId>,
        /// Its name.
        name: &'a [u8],
        /// Zero for none.
        value: u32,
    },
}

/// The zero-terminated strings in `payload`. Bytes after the last zero belong to none.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = payload;
    core::iter::from_fn(move || {
        let end = rest.iter().position(|&byte| byte == 0)?;
        let string = rest.get(..end)?;
        rest = rest.get(end + 1..)?;
        Some(string)
    })
}

/// The payload as exactly one zero-terminated string.
fn one(payload: &[u8]) -> Result<&[u8], Errno> {
    match payload.split_last() {
        Some((0, string)) if !string.contains(&0) => Ok(string),
        _ => Err(Errno::EINVAL),
    }
}

/// The first `N` strings, of at least or exactly that many.
fn several<const N: usize>(payload: &[u8], exactly: bool) -> Result<[&[u8]; N], Errno> {
    let mut all = strings(payload);
    let mut found = [&[][..]; N];
    for place in &mut found {
        *place = all.next().ok_or(Errno::EINVAL)?;
    }
    if exactly && all.next().is_some() {
        return Err(Errno::EINVAL);
    }
    Ok(found)
}

/// A number as C's `atoi` finds it: digits up to whatever follows, zero if there are none.
pub(crate) fn number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (sign, digits) = match text.split_first() {
        Some((b'-', rest)) => (-1, rest),
        Some((b'+', rest)) => (1, rest),
        _ => (1, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let magnitude = digits.fold(0i64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    sign * magnitude
}

/// The same as an `unsigned int`.
fn unsigned(text: &[u8]) -> u32 {
    number(text) as u32
}

/// A domain's id. Like C xenstored this takes nothing at all for domain 0, and nothing else that
/// is not a number to its end.
fn domid(text: &[u8]) -> Result<DomId, Errno> {
    let digits = text.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let whole = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if text.is_empty() {
        return Ok(DomId::ZERO);
    }
    let domid = u16::try_from(number(digits)).ok().filter(|_| whole);
    domid.map(DomId).ok_or(Errno::EINVAL)
}

impl<'a> Request<'a> {
    /// What `payload` says as a request of this type.
    ///
    /// # Errors
    /// `EINVAL` if it does not have the form that C xenstored expects; `ENOSYS` for a type that is
    /// no request.
    pub fn parse(operation: Operation, payload: &'a [u8]) -> Result<Self, Errno> {
        Ok(match operation {
            Operation::Control => {
                let mut all = strings(payload);
                Request::Control {
                    command: all.next().ok_or(Errno::EINVAL)?,
                    arguments: all.collect(),
                }
            }
            Operation::Directory => Request::Directory(one(payload)?),
            Operation::Read => Request::Read(one(payload)?),
            Operation::GetPerms => Request::GetPerms(one(payload)?),
            Operation::Watch => {
                let [path, token] = several(payload, false)?;
                let mut more = strings(payload).skip(2);
                let depth = more.next().map(|text| u32::try_from(number(text)));
                if more.next().is_some() {
                    return Err(Errno::EINVAL);
                }
                Request::Watch {
                    path,
                    token,
                    depth: depth.transpose().map_err(|_| Errno::EINVAL)?,
                }
            }
            Operation::Unwatch => {
                let [path, token] = several(payload, true)?;
                Request::Unwatch { path, token }
            }
            Operation::TransactionStart => Request::TransactionStart,
            Operation::TransactionEnd => Request::TransactionEnd {
                commit: match one(payload)? {
                    b"T" => true,
                    b"F" => false,
                    _ => return Err(Errno::EINVAL),
                },
            },
            Operation::Introduce => {
                let [id, gfn, port] = several(payload, false)?;
                let id = domid(id)?;
                let port = u32::try_from(number(port)).map_err(|_| Errno::EINVAL)?;
                if port == 0 {
                    return Err(Errno::EINVAL);
                }
                Request::Introduce {
                    domid: id,
                    gfn: u64::try_from(number(gfn)).unwrap_or(0),
                    port: Port(port),
                }
            }
            Operation::Release => Request::Release(domid(one(payload)?)?),
            Operation::GetDomainPath => Request::GetDomainPath(domid(one(payload)?)?),
            Operation::Write => {
                let [path] = several(payload, false)?;
                let value = payload.get(path.len() + 1..).ok_or(Errno::EINVAL)?;
                Request::Write { path, value }
            }
            Operation::Mkdir => Request::Mkdir(one(payload)?),
            Operation::Rm => Request::Rm(one(payload)?),
            Operation::SetPerms => {
                let [path, _] = several(payload, false)?;
                let entry = |text| {
                    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
                    text.parse()
                };
                Request::SetPerms {
                    path,
                    permissions: strings(payload)
                        .skip(1)
                        .map(entry)
                        .collect::<Result<_, _>>()?,
                }
            }
            Operation::IsDomainIntroduced => Request::IsDomainIntroduced(domid(one(payload)?)?),
            Operation::Resume => Request::Resume(domid(one(payload)?)?),
            Operation::SetTarget => {
                let [id, target] = several(payload, false)?;
                Request::SetTarget {
                    domid: domid(id)?,
                    target: domid(target)?,
                }
            }
            Operation::ResetWatches => Request::ResetWatches,
            Operation::DirectoryPart => {
                let [path, offset] = several(payload, true)?;
                Request::DirectoryPart {
                    path,
                    offset: usize::try_from(unsigned(offset)).unwrap_or(usize::MAX),
                }
            }
            Operation::GetFeature => match strings(payload).count() {
                0 => Request::GetFeature(None),
                _ => {
                    let [id] = several(payload, true)?;
                    Request::GetFeature(Some(domid(id)?))
                }
            },
            Operation::SetFeature => {
                let [id, features] = several(payload, true)?;
                Request::SetFeature {
                    domid: domid(id)?,
                    features: ServerFeatures::from_bits_retain(unsigned(features)),
                }
            }
            Operation::GetQuota => match strings(payload).count() {
                0 => Request::ListQuotas,
                1 => {
                    let [name] = several(payload, true)?;
                    Request::GetQuota { domid: None, name }
                }
                _ => {
                    let [id, name] = several(payload, true)?;
                    Request::GetQuota {
                        domid: Some(domid(id)?),
                        name,
                    }
                }
            },
            Operation::SetQuota => {
                let global = strings(payload).count() == 2;
                let (id, [name, value]) = if global {
                    (None, several(payload, true)?)
                } else {
                    let [id, name, value] = several(payload, true)?;
                    (Some(domid(id)?), [name, value])
                };
                Request::SetQuota {
                    domid: id,
                    name,
                    value: unsigned(value),
                }
            }
            Operation::WatchEvent | Operation::Error => return Err(Errno::ENOSYS),
        })
    }

    /// The path of the node that it is about, where it is about one.
    pub fn path(&self) -> Option<&'a [u8]> {
        match *self {
            Request::Directory(path)
            | Request::Read(path)
            | Request::GetPerms(path)
            | Request::Mkdir(path)
            | Request::Rm(path)
            | Request::Watch { path, .. }
            | Request::Unwatch { path, .. }
            | Request::Write { path, .. }
            | Request::SetPerms { path, .. }
            | Request::DirectoryPart { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Its type.
    pub fn operation(&self) -> Operation {
        match self {
            Request::Control { .. } => Operation::Control,
            Request::Directory(_) => Operation::Directory,
            Request::Read(_) => Operation::Read,
            Request::GetPerms(_) => Operation::GetPerms,
            Request::Watch { .. } => Operation::Watch,
            Request::Unwatch { .. } => Operation::Unwatch,
            Request::TransactionStart => Operation::TransactionStart,
            Request::TransactionEnd { .. } => Operation::TransactionEnd,
            Request::Introduce { .. } => Operation::Introduce,
            Request::Release(_) => Operation::Release,
            Request::GetDomainPath(_) => Operation::GetDomainPath,
            Request::Write { .. } => Operation::Write,
            Request::Mkdir(_) => Operation::Mkdir,
            Request::Rm(_) => Operation::Rm,
            Request::SetPerms { .. } => Operation::SetPerms,
            Request::IsDomainIntroduced(_) => Operation::IsDomainIntroduced,
            Request::Resume(_) => Operation::Resume,
            Request::SetTarget { .. } => Operation::SetTarget,
            Request::ResetWatches => Operation::ResetWatches,
            Request::DirectoryPart { .. } => Operation::DirectoryPart,
            Request::GetFeature(_) => Operation::GetFeature,
            Request::SetFeature { .. } => Operation::SetFeature,
            Request::ListQuotas | Request::GetQuota { .. } => Operation::GetQuota,
            Request::SetQuota { .. } => Operation::SetQuota,
        }
    }

    /// Appends it to `out` as a message.
    ///
    /// # Errors
    /// It is longer than a message may be.
    pub fn encode(&self, req_id: u32, tx_id: u32, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let operation = self.operation();
        let mut message = |payload: &[&[u8]]| encode(out, operation, req_id, tx_id, payload);
        let decimal = |number: u64| number.to_string().into_bytes();
        let id = |domid: &DomId| decimal(domid.0.into());
        let zero: &[u8] = b"\0";
        match self {
            Request::Control { command, arguments } => {
                let mut payload = Vec::from([*command, zero]);
                payload.extend(arguments.iter().flat_map(|argument| [*argument, zero]));
                message(&payload)
            }
            Request::Directory(path)
            | Request::Read(path)
            | Request::GetPerms(path)
            | Request::Mkdir(path)
            | Request::Rm(path) => message(&[path, zero]),
            Request::Watch {
                path,
                token,
                depth: None,
            } => message(&[path, zero, token, zero]),
            Request::Watch {
                path,
                token,
                depth: Some(depth),
            } => message(&[path, zero, token, zero, &decimal((*depth).into()), zero]),
            Request::Unwatch { path, token } => message(&[path, zero, token, zero]),
            // C xenstored finds a payload of no bytes at all wrong in some operations.
            Request::TransactionStart | Request::ResetWatches => message(&[zero]),
            Request::TransactionEnd { commit } => message(&[if *commit { b"T\0" } else { b"F\0" }]),
            Request::Introduce { domid, gfn, port } => message(&[
                &id(domid),
                zero,
                &decimal(*gfn),
                zero,
                &decimal(port.0.into()),
                zero,
            ]),
            Request::Release(domid)
            | Request::GetDomainPath(domid)
            | Request::IsDomainIntroduced(domid)
            | Request::Resume(domid) => message(&[&id(domid), zero]),
            Request::Write { path, value } => message(&[path, zero, value]),
            Request::SetPerms { path, permissions } => {
                let texts: Vec<_> = permissions.iter().map(|entry| entry.to_string()).collect();
                let mut payload = Vec::from([*path, zero]);
                payload.extend(texts.iter().flat_map(|text| [text.as_bytes(), zero]));
                message(&payload)
            }
            Request::SetTarget { domid, target } => message(&[&id(domid), zero, &id(target), zero]),
            Request::DirectoryPart { path, offset } => {
                message(&[path, zero, offset.to_string().as_bytes(), zero])
            }
            Request::GetFeature(None) | Request::ListQuotas => message(&[]),
            Request::GetFeature(Some(domid)) => message(&[&id(domid), zero]),
            Request::SetFeature { domid, features } => {
                message(&[&id(domid), zero, &decimal(features.bits().into()), zero])
            }
            Request::GetQuota { domid, name } => {
                let id = domid.as_ref().map(id);
                let mut payload = Vec::new();
                payload.extend(id.iter().flat_map(|id| [id, zero]));
                payload.extend([*name, zero]);
                message(&payload)
            }
            Request::SetQuota { domid, name, value } => {
                let (id, value) = (domid.as_ref().map(id), decimal((*value).into()));
                let mut payload = Vec::new();
                payload.extend(id.iter().flat_map(|id| [id, zero]));
                payload.extend([*name, zero, &value, zero]);
                message(&payload)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::super::Decoder;
    use super::*;

    fn round_trip(request: &Request<'_>) {
        let mut bytes = vec![];
        request.encode(5, 9, &mut bytes).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let message = decoder.message().unwrap().unwrap();
        let operation = Operation::try_from(message.operation).unwrap();
        assert_eq!(
            Request::parse(operation, &message.payload).as_ref(),
            Ok(request)
        );
        assert_eq!((message.req_id, message.tx_id), (5, 9));
    }

    #[test]
    fn every_request_survives_the_wire() {
        let path = &b"/a/b"[..];
        let domid = DomId(12);
        for request in [
            Request::Control {
                command: b"log",
                arguments: vec![b"on"],
            },
            Request::Directory(path),
            Request::Read(path),
            Request::GetPerms(path),
            Request::Watch {
                path,
                token: b"t",
                depth: None,
            },
            Request::Watch {
                path,
                token: b"",
                depth: Some(3),
            },
            Request::Unwatch { path, token: b"t" },
            Request::TransactionStart,
            Request::TransactionEnd { commit: true },
            Request::TransactionEnd { commit: false },
            Request::Introduce {
                domid,
                gfn: 77,
                port: Port(4),
            },
            Request::Release(domid),
            Request::GetDomainPath(domid),
            Request::Write {
                path,
                value: b"a\0b",
            },
            Request::Mkdir(path),
            Request::Rm(path),
            Request::SetPerms {
                path,
                permissions: vec![Permission::none(domid), Permission::read(DomId::ZERO)],
            },
            Request::IsDomainIntroduced(domid),
            Request::Resume(domid),
            Request::SetTarget {
                domid,
                target: DomId(1),
            },
            Request::ResetWatches,
            Request::DirectoryPart { path, offset: 4000 },
            Request::GetFeature(None),
            Request::GetFeature(Some(domid)),
            Request::SetFeature {
                domid,
                features: ServerFeatures::ERROR,
            },
            Request::ListQuotas,
            Request::GetQuota {
                domid: None,
                name: b"nodes",
            },
            Request::GetQuota {
                domid: Some(domid),
                name: b"nodes",
            },
            Request::SetQuota {
                domid: None,
                name: b"soft-memory",
                value: 5,
            },
            Request::SetQuota {
                domid: Some(domid),
                name: b"nodes",
                value: 0,
            },
        ] {
            round_trip(&request);
        }
    }

    #[test]
    fn a_payload_of_another_form_is_refused() {
        // With | for zero.
        let bad: [(Operation, &str); 28] = [
            (Operation::Read, ""),
            (Operation::Read, "/a"),
            (Operation::Read, "/a|/b|"),
            (Operation::Write, "/a"),
            (Operation::Watch, "/a|"),
            (Operation::Watch, "/a|t|-1|"),
            (Operation::Watch, "/a|t|1|x|"),
            (Operation::Unwatch, "/a|t|x|"),
            (Operation::TransactionEnd, "X|"),
            (Operation::TransactionEnd, "T"),
            (Operation::Introduce, "1|2|"),
            (Operation::Introduce, "1|2|0|"),
            (Operation::Introduce, "1|2|-5|"),
            (Operation::Release, "65536|"),
            (Operation::Release, "1x|"),
            (Operation::SetPerms, "/a|"),
            (Operation::SetPerms, "/a|q1|"),
            (Operation::DirectoryPart, "/a|"),
            (Operation::Control, ""),
            (Operation::GetFeature, "1x|"),
            (Operation::GetFeature, "1|2|"),
            (Operation::SetFeature, "1|"),
            (Operation::SetFeature, "1|2|3|"),
            (Operation::GetQuota, "x|nodes|"),
            (Operation::GetQuota, "1|nodes|x|"),
            (Operation::SetQuota, "nodes|"),
            (Operation::SetQuota, "x|nodes|5|"),
            (Operation::SetQuota, "1|nodes|5|x|"),
        ];
        for (operation, payload) in bad {
            let payload = payload.replace('|', "\0");
            assert_eq!(
                Request::parse(operation, payload.as_bytes()),
                Err(Errno::EINVAL),
                "{operation:?}"
            );
        }
    }

    #[test]
    fn numbers_are_read_as_c_xenstored_reads_them() {
        assert_eq!(domid(b""), Ok(DomId::ZERO));
        assert_eq!(domid(b" +7"), Ok(DomId(7)));
        assert_eq!(domid(b" "), Err(Errno::EINVAL));
        assert_eq!(number(b"12abc"), 12);
        assert_eq!(number(b"-3"), -3);
        assert_eq!(number(b"x"), 0);
        assert_eq!(number(&[b'9'; 40]), i64::MAX);
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(
            operation in 0u32..27,
            payload in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..60),
        ) {
            if let Ok(operation) = Operation::try_from(operation) {
                let _ = Request::parse(operation, &payload);
            }
        }

        #[test]
        fn any_write_survives_the_wire(path in "[a-z/]{0,40}", value in proptest::collection::vec(any::<u8>(), 0..80)) {
            round_trip(&Request::Write { path: path.as_bytes(), value: &value });
        }
    }
}
