//! What answers say.

use alloc::string::String;
use alloc::vec::Vec;
use core::str::FromStr;

use parapet_xen_sys::io::xs_wire::Operation;

use super::Error;
use crate::Permission;
use crate::wire::{self, Message, Request};

/// The payload of the answer to `request`, or the error that it tells.
pub(super) fn payload(request: &Request<'_>, answer: Message) -> Result<Vec<u8>, Error> {
    let operation = request.operation();
    if answer.operation == u32::from(operation) {
        Ok(answer.payload)
    } else if answer.operation == u32::from(Operation::Error) {
        Err(Error::Refused {
            operation,
            path: String::from_utf8_lossy(request.path().unwrap_or(&[])).into(),
            error: wire::error_of_name(&answer.payload),
        })
    } else {
        Err(Error::Garbled(operation))
    }
}

fn text(operation: Operation, string: &[u8]) -> Result<String, Error> {
    String::from_utf8(string.to_vec()).map_err(|_| Error::Garbled(operation))
}

/// Zero-terminated names.
pub(super) fn names(operation: Operation, payload: &[u8]) -> Result<Vec<String>, Error> {
    wire::strings(payload)
        .map(|name| text(operation, name))
        .collect()
}

pub(super) fn permissions(payload: &[u8]) -> Result<Vec<Permission>, Error> {
    let garbled = || Error::Garbled(Operation::GetPerms);
    names(Operation::GetPerms, payload)?
        .iter()
        .map(|entry| entry.parse().map_err(|_| garbled()))
        .collect()
}

/// The one string that an answer consists of, with or without a final zero.
pub(super) fn string(operation: Operation, payload: &[u8]) -> Result<String, Error> {
    text(operation, payload.strip_suffix(b"\0").unwrap_or(payload))
}

/// `T` or `F`.
pub(super) fn truth(payload: &[u8]) -> Result<bool, Error> {
    match payload {
        b"T\0" => Ok(true),
        b"F\0" => Ok(false),
        _ => Err(Error::Garbled(Operation::IsDomainIntroduced)),
    }
}

/// A number, or whatever else is one string.
pub(super) fn parsed<T: FromStr>(operation: Operation, payload: &[u8]) -> Result<T, Error> {
    let text = string(operation, payload)?;
    text.parse().map_err(|_| Error::Garbled(operation))
}

/// A transaction's number.
pub(super) fn number(payload: &[u8]) -> Result<u32, Error> {
    let operation = Operation::TransactionStart;
    match parsed(operation, payload)? {
        0 => Err(Error::Garbled(operation)),
        number => Ok(number),
    }
}

/// A list that comes in parts.
#[derive(Default)]
pub(super) struct Parts {
    generation: Vec<u8>,
    list: Vec<u8>,
}

impl Parts {
    /// Where the next part begins.
    pub(super) fn offset(&self) -> usize {
        self.list.len()
    }

    /// Takes a part in; the names, once that was the last. If the list has changed since the first
    /// part, it all begins anew.
    pub(super) fn add(&mut self, payload: &[u8]) -> Result<Option<Vec<String>>, Error> {
        let operation = Operation::DirectoryPart;
        let garbled = Error::Garbled(operation);
        let Some(generation) = wire::strings(payload).next() else {
            return Err(garbled);
        };
        let part = payload.get(generation.len() + 1..).unwrap_or(&[]);
        if self.offset() > 0 && self.generation != generation {
            *self = Parts::default();
            return Ok(None);
        }
        self.generation = generation.to_vec();
        let last = part == b"\0" || part.ends_with(b"\0\0");
        let part = part.strip_suffix(b"\0").filter(|_| last).unwrap_or(part);
        if part.is_empty() && !last {
            return Err(garbled);
        }
        self.list.extend_from_slice(part);
        if last {
            names(operation, &self.list).map(Some)
        } else {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_in_parts_is_whole_after_the_last() {
        let mut parts = Parts::default();
        assert_eq!(parts.add(b"7\0a\0b\0"), Ok(None));
        assert_eq!(parts.offset(), 4);
        let names = parts.add(b"7\0c\0\0").unwrap().unwrap();
        assert_eq!(names, ["a", "b", "c"]);
        let empty = Parts::default().add(b"7\0\0").unwrap().unwrap();
        assert!(empty.is_empty());
    }

    #[test]
    fn a_list_that_changes_while_it_comes_begins_anew() {
        let mut parts = Parts::default();
        assert_eq!(parts.add(b"7\0a\0b\0"), Ok(None));
        assert_eq!(parts.add(b"8\0c\0\0"), Ok(None));
        assert_eq!(parts.offset(), 0);
        let names = parts.add(b"8\0b\0c\0\0").unwrap().unwrap();
        assert_eq!(names, ["b", "c"]);
    }

    #[test]
    fn answers_that_make_no_sense_are_errors() {
        let part = Err(Error::Garbled(Operation::DirectoryPart));
        assert_eq!(Parts::default().add(b""), part);
        assert_eq!(Parts::default().add(b"7\0"), part);
        assert!(truth(b"X\0").is_err() && truth(b"").is_err());
        assert!(number(b"0\0").is_err() && number(b"x\0").is_err());
        assert!(permissions(b"q1\0").is_err());
        assert!(string(Operation::Control, b"\xff\0").is_err());
    }
}
