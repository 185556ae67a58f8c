//! Names and numbers of virtual disks: `xvda` is 51712.
//!
//! A vbd is known in xenstore by a number, which is the name of its directory
//! (`device/vbd/51712`) and from which a guest makes the name it shows:
//!
//! | number | name | range |
//! |---|---|---|
//! | `202 << 8 \| disk << 4 \| partition` | xvd | disks and partitions up to 15 |
//! | `1 << 28 \| disk << 8 \| partition` | xvd | disks up to 2^20 - 1, partitions up to 255 |
//! | `8 << 8 \| disk << 4 \| partition` | sd | disks and partitions up to 15 |
//! | `3 << 8 \| disk << 6 \| partition` | hd | disks 0 and 1, partitions up to 63 |
//! | `22 << 8 \| (disk - 2) << 6 \| partition` | hd | disks 2 and 3, partitions up to 63 |
//!
//! The second form is used where the first has not enough bits. A configuration names a disk as
//! `xvda`, with a partition as `xvda1`, as `d0` or `d0p1`, or by the number itself in decimal,
//! hexadecimal (`0x`) or octal (a leading `0`).
//!
//! ```
//! use parapet_blkfront::vdev::Vdev;
//!
//! let vdev: Vdev = "xvda".parse()?;
//! assert_eq!(vdev.number(), 51712);
//! assert_eq!(Vdev::new(51713).to_string(), "xvda1");
//! # Ok::<_, parapet_blkfront::vdev::NotAVdev>(())
//! ```
//!
//! Source: Xen's `docs/man/xen-vbd-interface.7`.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

const EXTENDED: u32 = 1 << 28;
/// Numbers from here on are reserved.
const RESERVED: u32 = 2 << 28;

/// What kind of disk a name pretends to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bus {
    /// `xvd`: a Xen virtual disk.
    Xvd,
    /// `sd`: SCSI.
    Sd,
    /// `hd`: IDE.
    Hd,
}

/// A virtual disk or a partition of one, by the number it has in xenstore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vdev(u32);

/// What a number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The kind of disk.
    pub bus: Bus,
    /// Which disk, from 0.
    pub disk: u32,
    /// Which partition, from 1; 0 is the whole disk.
    pub partition: u32,
}

/// A text that names no virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no virtual disk: it should be like xvda, xvda1, d0p1, sda (to sdp), hda (to hdd), or a number"
)]
pub struct NotAVdev(pub String);

impl Location {
    /// The number for it, if there is one: not every disk of every bus has.
    pub fn vdev(self) -> Option<Vdev> {
        let Location {
            bus,
            disk,
            partition,
        } = self;
        let number = match bus {
            Bus::Xvd if disk <= 15 && partition <= 15 => 202 << 8 | disk << 4 | partition,
            Bus::Xvd if disk < 1 << 20 && partition <= 255 => EXTENDED | disk << 8 | partition,
            Bus::Sd if disk <= 15 && partition <= 15 => 8 << 8 | disk << 4 | partition,
            Bus::Hd if disk <= 1 && partition <= 63 => 3 << 8 | disk << 6 | partition,
            Bus::Hd if disk <= 3 && partition <= 63 => 22 << 8 | (disk - 2) << 6 | partition,
            _ => return None,
        };
        Some(Vdev(number))
    }
}

impl Vdev {
    /// The disk of that number, whatever it may be.
    pub const fn new(number: u32) -> Self {
        Vdev(number)
    }

    /// The number, as xenstore has it.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// What the number means; none if it is reserved, or of a deprecated form.
    pub const fn location(self) -> Option<Location> {
        let number = self.0;
        let (bus, disk, partition) = match (number, number >> 8) {
            (RESERVED.., _) => return None,
            (EXTENDED.., _) => (Bus::Xvd, (number & 0x0fff_ff00) >> 8, number & 255),
            (_, 202) => (Bus::Xvd, number >> 4 & 15, number & 15),
            (_, 8) => (Bus::Sd, number >> 4 & 15, number & 15),
            (_, 3) => (Bus::Hd, number >> 6 & 3, number & 63),
            (_, 22) => (Bus::Hd, (number >> 6 & 3) + 2, number & 63),
            _ => return None,
        };
        // An IDE channel has two disks.
        if matches!(bus, Bus::Hd) && number >> 7 & 1 == 1 {
            return None;
        }
        Some(Location {
            bus,
            disk,
            partition,
        })
    }
}

impl From<Vdev> for u32 {
    fn from(vdev: Vdev) -> u32 {
        vdev.0
    }
}

/// The name where there is one, else the number.
impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.location() {
            Some(location) => location.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

/// As a guest names it: `xvda1`.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.bus {
            Bus::Xvd => "xvd",
            Bus::Sd => "sd",
            Bus::Hd => "hd",
        })?;
        write_letters(f, self.disk)?;
        match self.partition {
            0 => Ok(()),
            partition => write!(f, "{partition}"),
        }
    }
}

/// 0 is `a`, 25 is `z`, 26 is `aa`.
fn write_letters(f: &mut fmt::Formatter<'_>, disk: u32) -> fmt::Result {
    if disk >= 26 {
        write_letters(f, disk / 26 - 1)?;
    }
    // A remainder by 26 fits a byte.
    write!(f, "{}", char::from(b'a' + (disk % 26) as u8))
}

impl FromStr for Vdev {
    type Err = NotAVdev;

    fn from_str(text: &str) -> Result<Self, NotAVdev> {
        number(text)
            .map(Vdev)
            .or_else(|| location(text)?.vdev())
            .ok_or_else(|| NotAVdev(text.into()))
    }
}

/// A number in C's notation.
fn number(text: &str) -> Option<u32> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        digits(hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        digits(text, 8)
    } else {
        digits(text, 10)
    }
}

/// As `from_str_radix`, without its leave to begin with a sign.
fn digits(text: &str, radix: u32) -> Option<u32> {
    if text.starts_with('+') {
        return None;
    }
    u32::from_str_radix(text, radix).ok()
}

fn location(text: &str) -> Option<Location> {
    let buses = [("xvd", Bus::Xvd), ("sd", Bus::Sd), ("hd", Bus::Hd)];
    for (prefix, bus) in buses {
        if let Some(rest) = text.strip_prefix(prefix) {
            let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
            return Some(Location {
                bus,
                disk: disk(letters)?,
                partition: partition(rest.get(letters.len()..)?)?,
            });
        }
    }
    let rest = text.strip_prefix('d')?;
    let (disk, partition) = match rest.split_once('p') {
        Some((disk, partition)) => (disk, digits(partition, 10)?),
        None => (rest, 0),
    };
    Some(Location {
        bus: Bus::Xvd,
        disk: digits(disk, 10)?,
        partition,
    })
}

/// `a` is 0, `aa` is 26.
fn disk(letters: &str) -> Option<u32> {
    let mut count = 0u32;
    for letter in letters.bytes() {
        if !letter.is_ascii_lowercase() {
            return None;
        }
        count = count
            .checked_mul(26)?
            .checked_add(u32::from(letter - b'a') + 1)?;
    }
    count.checked_sub(1)
}

/// Nothing is the whole disk; `0` and `01` name no partition.
fn partition(text: &str) -> Option<u32> {
    match text {
        "" => Some(0),
        _ if text.starts_with('0') => None,
        _ => digits(text, 10),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<u32> {
        text.parse().ok().map(Vdev::number)
    }

    #[test]
    fn the_documents_examples_hold() {
        for (text, disk, partition) in [("d0", 0, 0), ("d0p0", 0, 0), ("d1p2", 1, 2)] {
            let number = 202 << 8 | disk << 4 | partition;
            assert_eq!(parse(text), Some(number), "{text}");
        }
        assert_eq!(parse("xvda"), Some(51712));
        assert_eq!(parse("xvdb2"), parse("d1p2"));
        assert_eq!(parse("xvdtq37"), Some(1 << 28 | 536 << 8 | 37));
        assert_eq!(parse("d536p37"), parse("xvdtq37"));
        assert_eq!(parse("sdb3"), Some(8 << 8 | 1 << 4 | 3));
        assert_eq!(parse("hdc2"), Some(22 << 8 | 2));
        assert_eq!(parse("hdb"), Some(3 << 8 | 1 << 6));
    }

    #[test]
    fn the_short_form_is_used_as_far_as_it_goes() {
        assert_eq!(parse("xvdp15"), Some(202 << 8 | 255));
        assert_eq!(parse("xvdq"), Some(1 << 28 | 16 << 8));
        assert_eq!(parse("xvda16"), Some(1 << 28 | 16));
        assert_eq!(parse("d1048575p255"), Some((2 << 28) - 1));
        assert_eq!(parse("d1048576"), None);
        assert_eq!(parse("xvda256"), None);
    }

    #[test]
    fn a_number_is_taken_as_it_is_in_each_notation_of_c() {
        assert_eq!(parse("51712"), Some(51712));
        assert_eq!(parse("0xca00"), Some(51712));
        assert_eq!(parse("0145000"), Some(51712));
        assert_eq!(parse("0"), Some(0));
    }

    #[test]
    fn what_names_no_disk_is_refused() {
        for text in [
            "",
            "xvd",
            "xvd1",
            "xvdA",
            "xvda01",
            "xvda0",
            "xvda-1",
            "xvda1x",
            "sdq",
            "sda16",
            "hde",
            "hda64",
            "d",
            "dp1",
            "d1p",
            "d+1",
            "+1",
            "-1",
            "0x",
            "0x+1",
            "08",
            "4294967296",
            "vda",
            "xvdaaaaaaaaaaaaaa",
            "xvdä",
            "d0p256",
            " xvda",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_number_without_a_meaning_is_shown_as_a_number() {
        for number in [0, 51711 + 256 + 1, 3 << 8 | 1 << 7, 2 << 28, u32::MAX] {
            assert_eq!(Vdev::new(number).location(), None);
            assert_eq!(Vdev::new(number).to_string(), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn a_name_leads_back_to_its_number(disk in 0u32..1 << 20, partition in 0u32..256, bus in 0..3) {
            let bus = [Bus::Xvd, Bus::Sd, Bus::Hd][bus as usize];
            let (disk, partition) = match bus {
                Bus::Xvd => (disk, partition),
                Bus::Sd => (disk % 16, partition % 16),
                Bus::Hd => (disk % 4, partition % 64),
            };
            let there = Location { bus, disk, partition };
            let vdev = there.vdev().unwrap();
            prop_assert_eq!(vdev.location(), Some(there));
            prop_assert_eq!(parse(&there.to_string()), Some(vdev.number()));
        }

        #[test]
        fn no_text_and_no_number_panics(text in "\\PC{0,12}", number: u32) {
            let _ = parse(&text);
            let _ = Vdev::new(number).to_string();
        }
    }
}
