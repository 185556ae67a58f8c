//! Requests and replies as bytes.

/// The most bytes that one request reads or writes: what the protocol lets a client rely on.
pub const MAX_LENGTH: u32 = 32 << 20;

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
/// A request's head; a reply's is shorter.
const HEAD: usize = 28;
/// How long a reply is before its data.
pub(super) const REPLY: usize = 16;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    /// Something that was not offered.
    Other(u16),
}

impl Kind {
    fn of(number: u16) -> Self {
        match number {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            4 => Kind::Trim,
            6 => Kind::WriteZeroes,
            other => Kind::Other(other),
        }
    }
}

/// What a client asks for, without the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// It is to be durable when it is answered.
    pub(super) durable: bool,
    /// The client's name for it.
    pub(super) cookie: u64,
    /// In bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u32,
}

/// The flag of a request that is to be durable.
const FUA: u16 = 1;

/// Why a client loses its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// What should be a request is none.
    #[error("it sent {0:#x} where a request should begin")]
    NoRequest(u32),
    /// More data than it was told that there may be.
    #[error("it writes {0} bytes at once")]
    TooLong(u32),
    /// What should be an option is none.
    #[error("it sent {0:#x} where an option should begin")]
    NoOption(u64),
    /// An option with more in it than any has.
    #[error("it sent an option of {0} bytes")]
    LongOption(u32),
    /// It has flags that nobody knows.
    #[error("it has the unknown flags {0:#x}")]
    Flags(u32),
    /// The old way of choosing an export has no way to say no.
    #[error("it asked for an export that there is not")]
    NoSuchExport,
}

/// Integers of a message, in order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes, if there are so many.
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

impl Request {
    /// The request at the beginning of `input`, if all of its head is there.
    fn parse(input: &[u8]) -> Result<Option<Self>, Fault> {
        let mut fields = Fields(input);
        let parsed = (|| {
            let magic = fields.u32()?;
            let flags = fields.u16()?;
            let request = Request {
                kind: Kind::of(fields.u16()?),
                durable: flags & FUA != 0,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                length: fields.u32()?,
            };
            Some((magic, request))
        })();
        match parsed {
            None => Ok(None),
            Some((REQUEST, request)) => {
                if request.kind == Kind::Write && request.length > MAX_LENGTH {
                    return Err(Fault::TooLong(request.length));
                }
                Ok(Some(request))
            }
            Some((other, _)) => Err(Fault::NoRequest(other)),
        }
    }
}

/// A stream of bytes as requests.
#[derive(Default)]
pub(super) struct Requests {
    head: Vec<u8>,
    /// One whose data is on its way.
    arriving: Option<(Request, Vec<u8>)>,
}

impl Requests {
    /// Takes from the front of `input` what makes up the next request, and gives that with its
    /// data if all of it is there. Memory is taken for what has arrived, and not for what was
    /// announced.
    ///
    /// # Errors
    /// What is there is no request. Nothing after it makes sense.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<(Request, Vec<u8>)>, Fault> {
        if self.arriving.is_none() {
            take(input, &mut self.head, HEAD);
            let Some(request) = Request::parse(&self.head)? else {
                return Ok(None);
            };
            self.head.clear();
            self.arriving = Some((request, Vec::new()));
        }
        let Some((request, data)) = &mut self.arriving else {
            return Ok(None);
        };
        let whole = match request.kind {
            Kind::Write => request.length as usize,
            _ => 0,
        };
        take(input, data, whole);
        if data.len() < whole {
            return Ok(None);
        }
        Ok(self.arriving.take())
    }
}

/// Moves bytes from `input` to `to`, until that has `whole` of them.
fn take(input: &mut &[u8], to: &mut Vec<u8>, whole: usize) {
    let count = whole.saturating_sub(to.len()).min(input.len());
    if let Some((bytes, rest)) = input.split_at_checked(count) {
        to.extend_from_slice(bytes);
        *input = rest;
    }
}

/// How a request failed, in the numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Errno(pub(super) u32);

impl Errno {
    pub(super) const PERM: Errno = Errno(1);
    pub(super) const IO: Errno = Errno(5);
    pub(super) const NO_MEMORY: Errno = Errno(12);
    pub(super) const INVALID: Errno = Errno(22);
    pub(super) const NO_SPACE: Errno = Errno(28);
    pub(super) const NOT_SUPPORTED: Errno = Errno(95);
    pub(super) const SHUTDOWN: Errno = Errno(108);
}

/// The head of a reply.
pub(super) fn reply(cookie: u64, result: Result<(), Errno>) -> [u8; REPLY] {
    let error = result.err().map_or(0, |Errno(number)| number);
    let mut reply = [0; REPLY];
    let fields = [SIMPLE_REPLY.to_be_bytes(), error.to_be_bytes()];
    let fields = fields.into_iter().flatten().chain(cookie.to_be_bytes());
    for (to, byte) in reply.iter_mut().zip(fields) {
        *to = byte;
    }
    reply
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(kind: u16, length: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend([0, 1]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(4096u64.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn requests_come_out_of_a_stream_however_it_is_cut() {
        let stream = [bytes(1, 5, b"hello"), bytes(0, 512, b""), bytes(1, 0, b"")].concat();
        for step in 1..stream.len() {
            let mut requests = Requests::default();
            let mut seen = Vec::new();
            for mut input in stream.chunks(step) {
                while let Some(request) = requests.next(&mut input).unwrap() {
                    seen.push(request);
                }
                assert!(input.is_empty());
            }
            let kinds: Vec<_> = seen.iter().map(|(request, _)| request.kind).collect();
            assert_eq!(kinds, [Kind::Write, Kind::Read, Kind::Write]);
            assert_eq!(seen[0].1, b"hello");
            assert!(seen[0].0.durable);
            assert_eq!((seen[1].0.cookie, seen[1].0.offset), (7, 4096));
        }
    }

    #[test]
    fn what_is_no_request_and_too_much_data_end_the_stream() {
        let mut requests = Requests::default();
        let nonsense = [0xff; HEAD];
        let fault = requests.next(&mut &nonsense[..]).unwrap_err();
        assert_eq!(fault, Fault::NoRequest(u32::MAX));
        let long = bytes(1, MAX_LENGTH + 1, b"");
        let fault = Requests::default().next(&mut &long[..]).unwrap_err();
        assert_eq!(fault, Fault::TooLong(MAX_LENGTH + 1));
    }

    proptest! {
        #[test]
        fn no_bytes_bring_the_parser_down_or_make_it_hold_more_than_came(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..20),
            kind in 0u16..9,
            length: u32,
        ) {
            let mut requests = Requests::default();
            let mut given = 0;
            let begin = bytes(kind, length, b"");
            for chunk in std::iter::once(&begin).chain(&chunks) {
                let mut input = &chunk[..];
                given += input.len();
                while let Ok(Some((_, data))) = requests.next(&mut input) {
                    prop_assert!(data.len() <= given);
                }
            }
        }
    }
}
