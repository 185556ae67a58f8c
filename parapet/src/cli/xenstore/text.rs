//! Values as text: as the tools escape them, and in JSON.

use std::fmt::Write;
use std::iter::Peekable;

use parapet_xenstore::Permission;
use serde::Serialize;

/// A value as the tools print it: what is not printable ASCII, and the backslash, escaped.
pub(super) fn escape(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value {
        // Writing to a String cannot fail.
        let _ = match byte {
            b'\t' => text.write_str("\\t"),
            b'\n' => text.write_str("\\n"),
            b'\r' => text.write_str("\\r"),
            b'\\' => text.write_str("\\\\"),
            b' '..=b'~' => text.write_char(char::from(*byte)),
            0..=7 => write!(text, "\\{byte:03o}"),
            _ => write!(text, "\\x{byte:02x}"),
        };
    }
    text
}

/// The other way. A backslash before any other character is left out; at the very end it stands
/// for a zero, as it happens to with the tools.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            value.push(byte);
        } else if let Some(byte) = number(&mut rest, 8, 3) {
            value.push(byte);
        } else {
            value.push(match rest.next() {
                Some(b't') => b'\t',
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'x') => number(&mut rest, 16, 2).unwrap_or(b'x'),
                Some(other) => other,
                None => 0,
            });
        }
    }
    value
}

/// The number that so many digits at the most begin with, if there is any. Three octal ones can
/// be more than a byte holds: the rest is cut off.
fn number(rest: &mut Peekable<impl Iterator<Item = u8>>, radix: u32, most: usize) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(radix);
    let digits = (0..most).map_while(|_| rest.next_if(|byte| digit(*byte).is_some()));
    digits
        .filter_map(digit)
        .reduce(|number, digit| number * radix + digit)
        .map(|number| number as u8)
}

/// A node in JSON. A value that is no text is told in hexadecimal digits instead.
#[derive(Debug, Serialize)]
pub(super) struct Node<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<Vec<String>>,
}

impl<'a> Node<'a> {
    pub(super) fn new(path: &'a str, value: &'a [u8]) -> Self {
        let text = str::from_utf8(value).ok();
        let hex = || value.iter().map(|byte| format!("{byte:02x}")).collect();
        Node {
            path,
            value: text,
            hex: text.is_none().then(hex),
            permissions: None,
        }
    }

    pub(super) fn with(self, permissions: Option<&[Permission]>) -> Self {
        let texts = |entries: &[Permission]| entries.iter().map(Permission::to_string).collect();
        Node {
            permissions: permissions.map(texts),
            ..self
        }
    }
}

/// A line of JSON.
pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain data without maps can be written");
    line.push(b'\n');
    line
}

/// A node's permissions as the tools print them: `n0,r5`.
pub(super) fn permissions(entries: &[Permission]) -> String {
    let texts: Vec<_> = entries.iter().map(Permission::to_string).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_escaping() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(escape(&all).as_bytes()), all);
        assert_eq!(
            escape(b"a\0\x07\x08\t\n\r\\\x7f\xff"),
            r"a\000\007\x08\t\n\r\\\x7f\xff"
        );
    }

    #[test]
    fn what_was_not_escaped_by_us_is_read_as_the_tools_read_it() {
        for (text, value) in [
            (r"\18", &b"\x018"[..]),
            (r"\777", b"\xff"),
            (r"\xg", b"xg"),
            (r"\x1", b"\x01"),
            (r"\q\8", b"q8"),
            (r"end\", b"end\0"),
        ] {
            assert_eq!(unescape(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn a_value_that_is_no_text_is_told_in_hexadecimal_digits() {
        let json = |node: Node<'_>| serde_json::to_string(&node).unwrap();
        assert_eq!(
            json(Node::new("/a", b"x\n")),
            r#"{"path":"/a","value":"x\n"}"#
        );
        let node = Node::new("/a", b"\xff\x01").with(Some(&[]));
        assert_eq!(json(node), r#"{"path":"/a","hex":"ff01","permissions":[]}"#);
    }
}
