//! What client and server of NBD say to each other, as bytes (pure).
//!
//! Followed: the NBD project's `doc/proto.md`: the fixed newstyle handshake with `NBD_OPT_GO`, and
//! simple replies.

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// The longest name of an export.
pub(super) const MAX_NAME: usize = 4096;
/// More than any reply to an option has.
const MAX_OPTION_REPLY: u32 = 64 << 10;

/// A server's greeting.
pub(super) const GREETING: usize = 18;
/// What a reply to an option begins with.
pub(super) const OPTION_HEADER: usize = 20;
/// A request, without its data.
pub(super) const REQUEST_HEADER: usize = 28;
/// A reply, without its data.
pub(super) const REPLY_HEADER: usize = 16;

/// What a server says that no server should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Nonsense {
    #[error("it is no NBD server")]
    Greeting,
    #[error("it speaks an NBD that is too old")]
    Old,
    #[error("it makes no sense ({0})")]
    Reply(&'static str),
    #[error("it refuses: {0}")]
    Refused(String),
}

/// What a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) bytes: u64,
    pub(super) flags: u16,
    /// What requests must be multiples of, and at most as long as.
    pub(super) least: u32,
    pub(super) most: u32,
}

impl Export {
    pub(super) fn read_only(&self) -> bool {
        self.flags & 1 << 1 != 0
    }

    pub(super) fn flushes(&self) -> bool {
        self.flags & 1 << 2 != 0
    }

    pub(super) fn writes_zeroes(&self) -> bool {
        self.flags & 1 << 6 != 0
    }
}

/// Takes `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes).map(u16::from_be_bytes)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_be_bytes)
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_be_bytes)
}

/// What to say to a greeting, and then: which export is wanted.
pub(super) fn answer(greeting: &[u8; GREETING], export: &str) -> Result<Vec<u8>, Nonsense> {
    let mut bytes = &greeting[..];
    if take_u64(&mut bytes) != Some(MAGIC) {
        return Err(Nonsense::Greeting);
    }
    if take_u64(&mut bytes) != Some(OPTION) {
        return Err(Nonsense::Old);
    }
    let flags = take_u16(&mut bytes).unwrap_or(0);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(Nonsense::Old);
    }
    let mut answer = Vec::new();
    let agreed = flags & (FIXED_NEWSTYLE | NO_ZEROES);
    answer.extend(u32::from(agreed).to_be_bytes());
    // The name, which is no longer than `MAX_NAME`, and one wish: the size of blocks.
    let name = export.as_bytes();
    answer.extend(OPTION.to_be_bytes());
    answer.extend(OPT_GO.to_be_bytes());
    answer.extend((name.len() as u32 + 8).to_be_bytes());
    answer.extend((name.len() as u32).to_be_bytes());
    answer.extend(name);
    answer.extend(1u16.to_be_bytes());
    answer.extend(INFO_BLOCK_SIZE.to_be_bytes());
    Ok(answer)
}

/// The replies to [`answer`], until the export is there.
#[derive(Debug, Default)]
pub(super) struct Going {
    export: Option<(u64, u16)>,
    blocks: Option<(u32, u32)>,
}

impl Going {
    /// How many bytes come after a reply's header, and of what kind it is.
    pub(super) fn header(header: &[u8; OPTION_HEADER]) -> Result<(u32, usize), Nonsense> {
        let mut bytes = &header[..];
        let magic = take_u64(&mut bytes);
        let option = take_u32(&mut bytes);
        let kind = take_u32(&mut bytes).unwrap_or(0);
        let len = take_u32(&mut bytes).unwrap_or(u32::MAX);
        if magic != Some(OPTION_REPLY) || option != Some(OPT_GO) || len > MAX_OPTION_REPLY {
            return Err(Nonsense::Reply("a reply to an option"));
        }
        Ok((kind, len as usize))
    }

    /// Takes a reply. The export, if that was the last.
    pub(super) fn reply(
        &mut self,
        kind: u32,
        mut bytes: &[u8],
    ) -> Result<Option<Export>, Nonsense> {
        const WHAT: Nonsense = Nonsense::Reply("what it says of the export");
        match kind {
            REP_ACK => {
                let (bytes, flags) = self.export.ok_or(WHAT)?;
                let (least, most) = self.blocks.unwrap_or((1, 32 << 20));
                if !least.is_power_of_two() || most < least || most < 512 {
                    return Err(WHAT);
                }
                Ok(Some(Export {
                    bytes,
                    flags,
                    least,
                    most,
                }))
            }
            REP_INFO => {
                match take_u16(&mut bytes) {
                    Some(INFO_EXPORT) => {
                        let size = take_u64(&mut bytes).ok_or(WHAT)?;
                        self.export = Some((size, take_u16(&mut bytes).ok_or(WHAT)?));
                    }
                    Some(INFO_BLOCK_SIZE) => {
                        let least = take_u32(&mut bytes).ok_or(WHAT)?;
                        let _preferred = take_u32(&mut bytes).ok_or(WHAT)?;
                        self.blocks = Some((least, take_u32(&mut bytes).ok_or(WHAT)?));
                    }
                    Some(_) => {}
                    None => return Err(WHAT),
                }
                Ok(None)
            }
            kind if kind & REP_ERROR != 0 => {
                let text: String = String::from_utf8_lossy(bytes)
                    .chars()
                    .filter(|char| !char.is_control())
                    .take(200)
                    .collect();
                Err(Nonsense::Refused(
                    match (kind & !REP_ERROR, text.is_empty()) {
                        (6, true) => "there is no such export".into(),
                        (5, true) => "it demands TLS, which is not supported".into(),
                        (code, true) => format!("error {code}"),
                        (_, false) => text,
                    },
                ))
            }
            _ => Err(WHAT),
        }
    }
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    WriteZeroes,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Request {
    /// As bytes, under the name `handle`. A write's data follow.
    pub(super) fn encode(self, handle: u64) -> [u8; REQUEST_HEADER] {
        let command: u16 = match self.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::WriteZeroes => 6,
        };
        let mut bytes = [0; REQUEST_HEADER];
        let mut at = 0;
        let mut put = |value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
            at += value.len();
        };
        put(&REQUEST.to_be_bytes());
        put(&0u16.to_be_bytes());
        put(&command.to_be_bytes());
        put(&handle.to_be_bytes());
        put(&self.offset.to_be_bytes());
        put(&self.len.to_be_bytes());
        bytes
    }
}

/// The error and the handle of a reply. A read's data follow if there is no error.
pub(super) fn reply(header: &[u8; REPLY_HEADER]) -> Result<(u32, u64), Nonsense> {
    let mut bytes = &header[..];
    let magic = take_u32(&mut bytes);
    match (take_u32(&mut bytes), take_u64(&mut bytes)) {
        (Some(error), Some(handle)) if magic == Some(SIMPLE_REPLY) => Ok((error, handle)),
        _ => Err(Nonsense::Reply("a reply")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(flags: u16) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[..8].copy_from_slice(b"NBDMAGIC");
        bytes[8..16].copy_from_slice(b"IHAVEOPT");
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    #[test]
    fn a_greeting_is_answered_with_the_export() {
        let answer = answer(&greeting(3), "disk").unwrap();
        let expected = [
            &[0, 0, 0, 3][..],
            b"IHAVEOPT",
            &[0, 0, 0, 7, 0, 0, 0, 12],
            &[0, 0, 0, 4],
            b"disk",
            &[0, 1, 0, 3],
        ];
        assert_eq!(answer, expected.concat());
    }

    #[test]
    fn others_than_servers_of_today_are_refused() {
        assert_eq!(answer(&[b'S'; 18], ""), Err(Nonsense::Greeting));
        assert_eq!(answer(&greeting(0), ""), Err(Nonsense::Old));
        let mut old = greeting(3);
        old[8..16].copy_from_slice(&0x0000_4202_8186_1253u64.to_be_bytes());
        assert_eq!(answer(&old, ""), Err(Nonsense::Old));
    }

    #[test]
    fn an_export_is_there_when_all_was_said() {
        let mut going = Going::default();
        let mut size = vec![0, 0];
        size.extend((1u64 << 30).to_be_bytes());
        size.extend(0x65u16.to_be_bytes());
        assert_eq!(going.reply(REP_INFO, &size), Ok(None));
        let blocks = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0];
        assert_eq!(going.reply(REP_INFO, &blocks), Ok(None));
        assert_eq!(going.reply(REP_INFO, &[0, 9, 1]), Ok(None), "not asked for");
        let export = going.reply(REP_ACK, &[]).unwrap().unwrap();
        assert_eq!(
            (export.bytes, export.least, export.most),
            (1 << 30, 512, 32 << 20)
        );
        assert!(export.flushes() && export.writes_zeroes() && !export.read_only());
    }

    #[test]
    fn replies_that_make_no_sense_are_errors() {
        assert!(Going::default().reply(REP_ACK, &[]).is_err());
        for short in [&[][..], &[0], &[0, 0, 1], &[0, 3, 0, 0, 0, 1]] {
            assert!(Going::default().reply(REP_INFO, short).is_err());
        }
        let error = Going::default()
            .reply(REP_ERROR | 6, b"no\nsuch")
            .unwrap_err();
        assert_eq!(error.to_string(), "it refuses: nosuch");
        assert!(Going::header(&[0; OPTION_HEADER]).is_err());
        assert!(reply(&[0; REPLY_HEADER]).is_err());
    }

    #[test]
    fn a_request_and_its_reply_have_the_same_handle() {
        let request = Request {
            command: Command::Write,
            offset: 512,
            len: 1024,
        };
        let bytes = request.encode(0x0102_0304_0506_0708);
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0,
            0, 4, 0,
        ];
        assert_eq!(bytes, expected);
        let answer = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(reply(&answer), Ok((28, 0x0102_0304_0506_0708)));
    }
}
