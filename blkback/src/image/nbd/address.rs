//! Where an NBD server is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::wire::MAX_NAME;

/// The port of NBD.
const PORT: u16 = 10809;

/// A disk behind an NBD server.
///
/// | text | meaning |
/// |---|---|
/// | `nbd:unix:PATH`, `nbd:unix:PATH:EXPORT` | at a socket; as QEMU says it, `:exportname=EXPORT` |
/// | `nbd+unix:///EXPORT?socket=PATH` | the same, as a URI |
/// | `nbd://HOST[:PORT][/EXPORT]` | by TCP, at port 10809 unless another is given |
///
/// In a URI, bytes are written as `%XX` where they would have a meaning. An IPv6 address stands in
/// brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdAddress {
    pub(super) server: Server,
    pub(super) export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Unix(PathBuf),
    Tcp(String, u16),
}

impl NbdAddress {
    /// Whether a text is meant to be one.
    pub(in crate::image) fn is_meant(text: &str) -> bool {
        ["nbd:", "nbd+"].iter().any(|start| text.starts_with(start))
    }
}

/// A text that is no address of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no NBD server: give nbd:unix:PATH, nbd:unix:PATH:EXPORT, nbd://HOST:PORT/EXPORT or \
     nbd+unix:///EXPORT?socket=PATH"
)]
pub struct AddressError(String);

impl FromStr for NbdAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError(text.into()))
    }
}

fn parse(text: &str) -> Option<NbdAddress> {
    let (server, export) = if let Some(rest) = text.strip_prefix("nbd:unix:") {
        let (path, export) = rest.split_once(':').unwrap_or((rest, ""));
        let export = export.strip_prefix("exportname=").unwrap_or(export);
        (unix(path)?, export.to_owned())
    } else if let Some(rest) = text.strip_prefix("nbd+unix://") {
        let (export, query) = rest.split_once('?')?;
        let socket = query.strip_prefix("socket=")?;
        // The place of a host, which there is none of.
        let export = export
            .strip_prefix('/')
            .or(export.is_empty().then_some(""))?;
        (unix(&decode(socket)?)?, decode(export)?)
    } else {
        let rest = text.strip_prefix("nbd://")?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match host.strip_prefix('[') {
            Some(six) => six.split_once(']')?,
            None => host.split_at(host.find(':').unwrap_or(host.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
            None if port.is_empty() => PORT,
            _ => return None,
        };
        if host.is_empty() || port == 0 {
            return None;
        }
        (Server::Tcp(host.into(), port), decode(export)?)
    };
    (export.len() <= MAX_NAME && !export.contains('\0')).then_some(NbdAddress { server, export })
}

fn unix(path: &str) -> Option<Server> {
    let fits = !path.is_empty() && !path.contains('\0');
    fits.then(|| Server::Unix(path.into()))
}

/// `%XX` to bytes.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = digits.iter().map(|&digit| char::from(digit).to_digit(16));
        let value = digits
            .into_iter()
            .try_fold(0, |sum, digit| Some(sum * 16 + digit?))?;
        bytes.push(u8::try_from(value).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(&self.export);
        match &self.server {
            Server::Unix(path) => {
                let path = encode(&path.to_string_lossy());
                write!(f, "nbd+unix:///{export}?socket={path}")
            }
            Server::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Server::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spelling_is_understood_and_prints_as_one_that_is() {
        let unix = |path: &str| Server::Unix(path.into());
        let tcp = |host: &str, port| Server::Tcp(host.into(), port);
        for (text, server, export) in [
            ("nbd:unix:/run/a", unix("/run/a"), ""),
            ("nbd:unix:/run/a:disk", unix("/run/a"), "disk"),
            ("nbd:unix:/run/a:exportname=a:b", unix("/run/a"), "a:b"),
            ("nbd+unix:///?socket=/run/a", unix("/run/a"), ""),
            ("nbd+unix://?socket=/run/a", unix("/run/a"), ""),
            (
                "nbd+unix:///a%20b/c?socket=%2Frun%2fa%25",
                unix("/run/a%"),
                "a b/c",
            ),
            ("nbd://host", tcp("host", 10809), ""),
            ("nbd://host/", tcp("host", 10809), ""),
            ("nbd://host:7/disk", tcp("host", 7), "disk"),
            ("nbd://[::1]:7/disk/a", tcp("::1", 7), "disk/a"),
        ] {
            let address: NbdAddress = text.parse().unwrap();
            assert_eq!(
                (&address.server, &*address.export),
                (&server, export),
                "{text}"
            );
            assert_eq!(address.to_string().parse(), Ok(address));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "nbd:",
            "nbd:unix:",
            "nbd:host:7",
            "nbd://",
            "nbd://host:x",
            "nbd://host:0",
            "nbd://host:70000",
            "nbd://host:+7",
            "nbd://[::1",
            "nbd://[::1]7",
            "nbd://host/%zz",
            "nbd://host/%f",
            "nbd://host/%00",
            "nbd+unix:///disk",
            "nbd+unix:///disk?path=/run/a",
            "nbd+unix://host/disk?socket=/run/a",
        ] {
            assert!(text.parse::<NbdAddress>().is_err(), "{text}");
        }
    }
}
