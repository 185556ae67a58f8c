//! The wire: messages as bytes, and what they say.
//!
//! ```text
//!   ┌──────┬────────┬───────┬─────┬──────────────────────┐
//!   │ type │ req_id │ tx_id │ len │ payload, len bytes   │   words little-endian on x86
//!   └──────┴────────┴───────┴─────┴──────────────────────┘
//!    READ    17       0       9     d o m i d / 0 x \0
//! ```
//!
//! A [`Decoder`] makes messages of a stream of bytes, however it is cut; a [`Request`] is what the
//! payload of one means, and goes both ways. Source: `io/xs_wire.h`, `docs/misc/xenstore.txt`.

mod message;
mod request;

pub use message::{Decoder, Message, TooLong, encode};
pub(crate) use request::number;
pub use request::{Request, strings};

use parapet_xen_sys::Errno;
use parapet_xen_sys::io::xs_wire::ERRORS;

/// The payload of an answer that says no more than that it was done.
pub const OK: &[u8] = b"OK\0";

/// The name by which an error goes over the wire. What has none is told as `EINVAL`.
pub fn error_name(error: Errno) -> &'static str {
    ERRORS
        .iter()
        .find(|(known, _)| *known == error)
        .map_or("EINVAL", |(_, name)| name)
}

/// The error of that name, with or without a final zero; `EINVAL` for a name that is not in the
/// protocol.
pub fn error_of_name(name: &[u8]) -> Errno {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    ERRORS
        .iter()
        .find(|(_, known)| known.as_bytes() == name)
        .map_or(Errno::EINVAL, |(error, _)| *error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_protocol_survives_the_wire() {
        for &(error, _) in ERRORS {
            assert_eq!(error_of_name(error_name(error).as_bytes()), error);
        }
        assert_eq!(error_of_name(b"ENOENT\0"), Errno::ENOENT);
        assert_eq!(error_of_name(b"EWHAT\0"), Errno::EINVAL);
        assert_eq!(error_name(Errno::ENODEV), "EINVAL");
    }
}
