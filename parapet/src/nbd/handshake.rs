//! The negotiation, in the fixed newstyle: which export, and what it can do.

use bitflags::bitflags;
use parapet_blkfront::Info;

use super::wire::{Fault, Fields, MAX_LENGTH};

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// No option that we know has more in it than a name.
const LONGEST_OPTION: u32 = 8192;

bitflags! {
    /// What both ends say of the negotiation.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Style: u32 {
        const FIXED_NEWSTYLE = 1;
        const NO_ZEROES = 2;
    }

    /// What an export can do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Abilities: u16 {
        const HAS_FLAGS = 1;
        const READ_ONLY = 1 << 1;
        const FLUSH = 1 << 2;
        const FUA = 1 << 3;
        const TRIM = 1 << 5;
        const WRITE_ZEROES = 1 << 6;
        const MULTI_CONN = 1 << 8;
    }
}

/// Options that a client sends.
mod option {
    pub(super) const EXPORT_NAME: u32 = 1;
    pub(super) const ABORT: u32 = 2;
    pub(super) const LIST: u32 = 3;
    pub(super) const INFO: u32 = 6;
    pub(super) const GO: u32 = 7;
}

/// What we answer to options.
mod answer {
    pub(super) const ACK: u32 = 1;
    pub(super) const SERVER: u32 = 2;
    pub(super) const INFO: u32 = 3;
    pub(super) const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub(super) const INVALID: u32 = 1 << 31 | 3;
    pub(super) const UNKNOWN: u32 = 1 << 31 | 6;
}

/// Kinds of information on an export.
mod info {
    pub(super) const EXPORT: u16 = 0;
    pub(super) const NAME: u16 = 1;
    pub(super) const BLOCK_SIZE: u16 = 3;
}

/// A disk as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    name: String,
    /// In bytes.
    size: u64,
    abilities: Abilities,
    /// What requests are aligned to, and what is best, in bytes.
    sector: u32,
    preferred: u32,
}

impl Export {
    /// A disk like that, under that name.
    pub fn new(name: &str, disk: &Info) -> Self {
        let mut abilities = Abilities::HAS_FLAGS | Abilities::MULTI_CONN;
        let flush = disk.flush || disk.barrier;
        abilities.set(Abilities::READ_ONLY, disk.read_only);
        abilities.set(Abilities::FLUSH | Abilities::FUA, flush);
        abilities.set(Abilities::TRIM, disk.discard.is_some() && !disk.read_only);
        abilities.set(Abilities::WRITE_ZEROES, !disk.read_only);
        Export {
            name: name.to_owned(),
            size: disk.bytes().unwrap_or(0),
            abilities,
            sector: disk.sector_size,
            preferred: disk.physical_sector_size.clamp(4096, 1 << 20),
        }
    }

    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// How far the negotiation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to come from the client.
    More,
    /// It has chosen: requests follow.
    Done,
    /// It does not want anything.
    Leaves,
}

/// The server's end of a negotiation.
pub(super) struct Handshake<'a> {
    export: &'a Export,
    /// The client's, once it has said.
    style: Option<Style>,
}

impl<'a> Handshake<'a> {
    /// One that begins, with what is to be sent first.
    pub(super) fn new(export: &'a Export, output: &mut Vec<u8>) -> Self {
        output.extend(GREETING.to_be_bytes());
        output.extend(OPTION.to_be_bytes());
        let ours = Style::all().bits() as u16;
        output.extend(ours.to_be_bytes());
        Handshake {
            export,
            style: None,
        }
    }

    /// Takes from the front of `input` whatever is complete there, and adds the answers to
    /// `output`.
    ///
    /// # Errors
    /// The client sent what no client may, or asked in the old way for what there is not.
    pub(super) fn next(
        &mut self,
        input: &mut &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Progress, Fault> {
        loop {
            let mut fields = Fields(input);
            let Some(style) = self.style else {
                let Some(flags) = fields.u32() else {
                    return Ok(Progress::More);
                };
                self.style = Some(Style::from_bits(flags).ok_or(Fault::Flags(flags))?);
                *input = fields.0;
                continue;
            };
            let head = (|| Some((fields.u64()?, fields.u32()?, fields.u32()?)))();
            let Some((magic, option, length)) = head else {
                return Ok(Progress::More);
            };
            if magic != OPTION {
                return Err(Fault::NoOption(magic));
            }
            if length > LONGEST_OPTION {
                return Err(Fault::LongOption(length));
            }
            let Some(data) = fields.bytes(length as usize) else {
                return Ok(Progress::More);
            };
            *input = fields.0;
            match self.option(option, data, style, output)? {
                Progress::More => {}
                progress => return Ok(progress),
            }
        }
    }

    fn option(
        &self,
        option: u32,
        data: &[u8],
        style: Style,
        output: &mut Vec<u8>,
    ) -> Result<Progress, Fault> {
        let export = self.export;
        let mut answer = |kind: u32, data: &[&[u8]]| {
            let length: usize = data.iter().map(|part| part.len()).sum();
            output.extend(OPTION_REPLY.to_be_bytes());
            output.extend(option.to_be_bytes());
            output.extend(kind.to_be_bytes());
            output.extend((length as u32).to_be_bytes());
            data.iter().for_each(|part| output.extend(*part));
        };
        match option {
            option::EXPORT_NAME => {
                if !export.is_called(data) {
                    return Err(Fault::NoSuchExport);
                }
                output.extend(export.size.to_be_bytes());
                output.extend(export.abilities.bits().to_be_bytes());
                if !style.contains(Style::NO_ZEROES) {
                    output.extend([0; 124]);
                }
                return Ok(Progress::Done);
            }
            option::ABORT => {
                answer(answer::ACK, &[]);
                return Ok(Progress::Leaves);
            }
            option::LIST if data.is_empty() => {
                let name = export.name.as_bytes();
                let length = (name.len() as u32).to_be_bytes();
                answer(answer::SERVER, &[&length, name]);
                answer(answer::ACK, &[]);
            }
            option::LIST => answer(answer::INVALID, &[]),
            option::INFO | option::GO => {
                let Some((name, wanted)) = chosen(data) else {
                    answer(answer::INVALID, &[]);
                    return Ok(Progress::More);
                };
                if !export.is_called(name) {
                    answer(answer::UNKNOWN, &[]);
                    return Ok(Progress::More);
                }
                let size = export.size.to_be_bytes();
                let abilities = export.abilities.bits().to_be_bytes();
                answer(
                    answer::INFO,
                    &[&info::EXPORT.to_be_bytes(), &size, &abilities],
                );
                if wanted.contains(&info::NAME) {
                    let name = export.name.as_bytes();
                    answer(answer::INFO, &[&info::NAME.to_be_bytes(), name]);
                }
                let sizes = [export.sector, export.preferred, MAX_LENGTH];
                let sizes = sizes.map(u32::to_be_bytes);
                let sizes = [&info::BLOCK_SIZE.to_be_bytes()[..], sizes.as_flattened()];
                answer(answer::INFO, &sizes);
                answer(answer::ACK, &[]);
                if option == option::GO {
                    return Ok(Progress::Done);
                }
            }
            // Encryption, structured replies, block status: none of that is offered.
            _ => answer(answer::UNSUPPORTED, &[]),
        }
        Ok(Progress::More)
    }
}

/// The name of an export that a client chooses, and what it wants to know of it.
fn chosen(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let length = fields.u32()?;
    let name = fields.bytes(length as usize)?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn export() -> Export {
        let disk = Info {
            flush: true,
            ..Info::plain(2048)
        };
        Export::new("disk", &disk)
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn go(name: &str) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        data
    }

    /// What comes of these options: how it ended, and the kinds of the answers.
    fn negotiate(options: &[Vec<u8>]) -> (Result<Progress, Fault>, Vec<u32>) {
        let export = export();
        let mut output = Vec::new();
        let mut handshake = Handshake::new(&export, &mut output);
        assert_eq!(output.len(), 18);
        output.clear();
        let stream = [&3u32.to_be_bytes()[..], &options.concat()].concat();
        let result = handshake.next(&mut &stream[..], &mut output);
        let mut fields = Fields(&output);
        let mut kinds = Vec::new();
        while let Some(magic) = fields.u64() {
            assert_eq!(magic, OPTION_REPLY);
            fields.u32().unwrap();
            kinds.push(fields.u32().unwrap());
            let length = fields.u32().unwrap();
            fields.bytes(length as usize).unwrap();
        }
        (result, kinds)
    }

    #[test]
    fn an_export_is_listed_described_and_chosen() {
        let (end, kinds) = negotiate(&[
            option(option::LIST, b""),
            option(option::INFO, &go("disk")),
            option(option::GO, &go("")),
        ]);
        assert_eq!(end, Ok(Progress::Done));
        use answer::{ACK, INFO, SERVER};
        assert_eq!(kinds, [SERVER, ACK, INFO, INFO, ACK, INFO, INFO, ACK]);
    }

    #[test]
    fn what_there_is_not_is_refused_and_the_client_may_go_on() {
        let (end, kinds) = negotiate(&[
            option(option::GO, &go("other")),
            option(8, b""),
            option(5, b""),
            option(option::LIST, b"x"),
            option(option::GO, b"\0\0\0\x09ab"),
            option(option::ABORT, b""),
        ]);
        assert_eq!(end, Ok(Progress::Leaves));
        use answer::{ACK, INVALID, UNKNOWN, UNSUPPORTED};
        let expected = [UNKNOWN, UNSUPPORTED, UNSUPPORTED, INVALID, INVALID, ACK];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn the_old_way_of_choosing_has_no_way_to_say_no() {
        let export = export();
        for (flags, zeroes) in [(1u32, 124), (3, 0)] {
            let mut output = Vec::new();
            let mut handshake = Handshake::new(&export, &mut output);
            output.clear();
            let stream = [flags.to_be_bytes().to_vec(), option(1, b"disk")].concat();
            let end = handshake.next(&mut &stream[..], &mut output);
            assert_eq!(end, Ok(Progress::Done));
            assert_eq!(output.len(), 10 + zeroes);
            assert_eq!(output[..8], (1u64 << 20).to_be_bytes());
        }
        let (end, _) = negotiate(&[option(1, b"other")]);
        assert_eq!(end, Err(Fault::NoSuchExport));
    }

    #[test]
    fn nonsense_ends_the_negotiation() {
        assert_eq!(negotiate(&[vec![0; 16]]).0, Err(Fault::NoOption(0)));
        let mut long = option(7, b"");
        long[12..].fill(0xff);
        assert_eq!(negotiate(&[long]).0, Err(Fault::LongOption(u32::MAX)));
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(
            number in 0u32..12, data in proptest::collection::vec(any::<u8>(), 0..64),
            tail in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            // Not looked at: EXPORT_NAME is answered in the old way, without a reply's header.
            let (export, mut output) = (export(), Vec::new());
            let stream = [&3u32.to_be_bytes()[..], &option(number, &data), &tail].concat();
            let _ = Handshake::new(&export, &mut output).next(&mut &stream[..], &mut output);
        }
    }
}
