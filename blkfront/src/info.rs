//! What a backend says of its disk.

use core::str::FromStr;

use alloc::string::String;

use parapet_xen_sys::io::blkif::{DiskInfo, SECTOR_SIZE};

/// A disk, as its backend describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its size in sectors of 512 bytes, whatever `sector_size` is.
    pub sectors: u64,
    /// What requests are aligned to, in bytes: a power of two of at least 512.
    pub sector_size: u32,
    /// What the medium itself is written in, in bytes: a multiple of `sector_size`.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a CD or DVD drive.
    pub cdrom: bool,
    /// Its medium can be changed.
    pub removable: bool,
    /// It can be flushed. Without it, a write that has completed is as durable as it will be.
    pub flush: bool,
    /// The backend keeps our grants mapped.
    pub persistent: bool,
}

/// What a backend wrote into its directory and no honest one does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A key that must be there is not.
    #[error("the backend says no `{0}`")]
    Missing(&'static str),
    /// A value that makes no sense.
    #[error("the backend says `{key}` is {value:?}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value, cut off where it is long.
        value: String,
    },
}

impl Info {
    /// A writable disk of `sectors` sectors of 512 bytes that can do nothing else.
    pub const fn plain(sectors: u64) -> Self {
        Info {
            sectors,
            sector_size: SECTOR_SIZE as u32,
            physical_sector_size: SECTOR_SIZE as u32,
            read_only: false,
            cdrom: false,
            removable: false,
            flush: false,
            persistent: false,
        }
    }

    /// The keys of the backend's directory that [`Info::parse`] asks for.
    pub const KEYS: [&'static str; 6] = [
        SECTORS,
        SECTOR_SIZE_KEY,
        PHYSICAL_SECTOR_SIZE,
        INFO,
        FLUSH,
        PERSISTENT,
    ];

    /// Reads them; `value` has the text of a key, or nothing if it is not there.
    ///
    /// # Errors
    /// The backend's fault.
    pub fn parse<'a>(value: impl Fn(&'static str) -> Option<&'a str>) -> Result<Self, Malformed> {
        let sectors: u64 = number(SECTORS, value(SECTORS))?.ok_or(Malformed::Missing(SECTORS))?;
        let sector_size: u32 =
            number(SECTOR_SIZE_KEY, value(SECTOR_SIZE_KEY))?.unwrap_or(SECTOR_SIZE as u32);
        let physical: u32 =
            number(PHYSICAL_SECTOR_SIZE, value(PHYSICAL_SECTOR_SIZE))?.unwrap_or(sector_size);
        let flags = number(INFO, value(INFO))?.unwrap_or(0);
        let flags = DiskInfo::from_bits_truncate(flags);
        let on = |key| Ok(number::<u32>(key, value(key))?.unwrap_or(0) != 0);
        let info = Info {
            sectors,
            sector_size,
            physical_sector_size: physical,
            read_only: flags.contains(DiskInfo::READONLY),
            cdrom: flags.contains(DiskInfo::CDROM),
            removable: flags.contains(DiskInfo::REMOVABLE),
            flush: on(FLUSH)?,
            persistent: on(PERSISTENT)?,
        };
        info.check(value)
    }

    /// Whether the numbers are possible, each by itself and together.
    fn check<'a>(self, value: impl Fn(&'static str) -> Option<&'a str>) -> Result<Self, Malformed> {
        let impossible = |key| Err(malformed(key, value(key).unwrap_or_default()));
        // A request is at least a sector, and at most MAX_REQUEST, which a page surely fits.
        let sector = self.sector_size;
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return impossible(SECTOR_SIZE_KEY);
        }
        if self.physical_sector_size < sector || !self.physical_sector_size.is_multiple_of(sector) {
            return impossible(PHYSICAL_SECTOR_SIZE);
        }
        // Bytes are counted in 64 bits.
        match self.bytes() {
            Some(bytes) if bytes.is_multiple_of(sector.into()) => Ok(self),
            _ => impossible(SECTORS),
        }
    }

    /// Its size in bytes, if that fits 64 bits: it does for what [`Info::parse`] made.
    pub const fn bytes(&self) -> Option<u64> {
        self.sectors.checked_mul(SECTOR_SIZE as u64)
    }
}

const SECTORS: &str = "sectors";
const SECTOR_SIZE_KEY: &str = "sector-size";
const PHYSICAL_SECTOR_SIZE: &str = "physical-sector-size";
const INFO: &str = "info";
const FLUSH: &str = "feature-flush-cache";
const PERSISTENT: &str = "feature-persistent";

/// A number in decimal, as xenstore has them.
fn number<T: FromStr>(key: &'static str, text: Option<&str>) -> Result<Option<T>, Malformed> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(number) if !text.starts_with('+') => Ok(Some(number)),
        _ => Err(malformed(key, text)),
    }
}

fn malformed(key: &'static str, value: &str) -> Malformed {
    // What a backend writes may be long.
    Malformed::Value {
        key,
        value: value.chars().take(40).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Info, Malformed> {
        Info::parse(|key| pairs.iter().find(|pair| pair.0 == key).map(|pair| pair.1))
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        assert_eq!(parse(&[("sectors", "2048")]), Ok(Info::plain(2048)));
    }

    #[test]
    fn all_that_is_said_is_read() {
        let info = parse(&[
            ("sectors", "2048"),
            ("sector-size", "4096"),
            ("physical-sector-size", "8192"),
            ("info", "13"),
            ("feature-flush-cache", "1"),
            ("feature-persistent", "1"),
        ]);
        let expected = Info {
            sectors: 2048,
            sector_size: 4096,
            physical_sector_size: 8192,
            read_only: true,
            cdrom: true,
            removable: false,
            flush: true,
            persistent: true,
        };
        assert_eq!(info, Ok(expected), "flags that nobody knows are ignored");
    }

    #[test]
    fn nonsense_is_the_backends_fault_and_never_a_panic() {
        assert_eq!(parse(&[]), Err(Malformed::Missing("sectors")));
        for (key, value) in [
            ("sectors", ""),
            ("sectors", "-1"),
            ("sectors", "+1"),
            ("sectors", " 1"),
            ("sectors", "0x10"),
            ("sectors", "18446744073709551616"),
            ("sectors", "18446744073709551615"),
            ("sector-size", "0"),
            ("sector-size", "256"),
            ("sector-size", "513"),
            ("sector-size", "8192"),
            ("sector-size", "4294967296"),
            ("physical-sector-size", "0"),
            ("physical-sector-size", "256"),
            ("physical-sector-size", "513"),
            ("info", "read-only"),
            ("feature-flush-cache", "yes"),
            ("feature-persistent", "-1"),
        ] {
            let result = parse(&[(key, value), ("sectors", "8")]);
            assert!(
                matches!(&result, Err(Malformed::Value { key: named, .. }) if *named == key),
                "{key}={value}: {result:?}"
            );
        }
        let odd = parse(&[("sectors", "9"), ("sector-size", "4096")]);
        assert!(odd.is_err(), "the last sector of 4096 bytes is not whole");
    }

    proptest! {
        #[test]
        fn whatever_passes_has_a_size_and_a_sector(values in any::<[u64; 4]>(), text in "\\PC{0,8}") {
            let values = values.map(|value| alloc::format!("{value}"));
            for [a, b, c, d] in [[0, 1, 2, 3], [3, 2, 1, 0]] {
                let keys = [("sectors", a), ("sector-size", b), ("physical-sector-size", c), ("info", d)];
                for odd in 0..5 {
                    let value = |key| keys.iter().position(|pair| pair.0 == key).map(|at| {
                        if at == odd { text.as_str() } else { values[keys[at].1].as_str() }
                    });
                    if let Ok(info) = Info::parse(value) {
                        prop_assert!(info.bytes().is_some());
                        prop_assert!(info.sector_size.is_power_of_two());
                    }
                }
            }
        }
    }
}
