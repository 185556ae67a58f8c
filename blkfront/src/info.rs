//! What a backend says of its disk.

use alloc::format;
use alloc::string::String;

use parapet_hypervisor::memory::PAGE_SIZE;
use parapet_xen_sys::io::blkif::{DiskInfo, SECTOR_SIZE};
use parapet_xenstore::xenbus::{Error, Keys};

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
    /// It can be flushed. Without this and `barrier`, a write that has completed is as durable as
    /// it will be.
    pub flush: bool,
    /// It keeps the order of writes around one that is a barrier, and can be flushed by that.
    pub barrier: bool,
    /// It can be told to do away with sectors, and how; none if it cannot.
    pub discard: Option<Discard>,
    /// The most segments that a request may have whose segments are in pages of their own; 0 if
    /// there are no such requests.
    pub indirect_segments: u32,
    /// The backend keeps our grants mapped.
    pub persistent: bool,
}

/// How sectors can be discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discard {
    /// Only whole pieces of so many bytes are forgotten: a multiple of 512.
    pub granularity: u32,
    /// Where on the disk the first such piece begins, in bytes: a multiple of 512, less than
    /// `granularity`.
    pub alignment: u32,
    /// It can also be done so that nothing is left there.
    pub secure: bool,
}

impl Discard {
    /// Reads what a backend says of it, for a disk written in `physical` bytes.
    async fn read(backend: &Keys, physical: u32) -> Result<Option<Self>, Error> {
        if !backend.get_or("feature-discard", false).await? {
            return Ok(None);
        }
        let granularity = match backend.get_or("discard-granularity", 0).await? {
            // As Linux takes it.
            0 => physical,
            granularity => granularity,
        };
        let discard = Discard {
            granularity,
            alignment: backend.get_or("discard-alignment", 0).await?,
            secure: backend.get_or("discard-secure", false).await?,
        };
        let odd = |bytes: u32| !(bytes as usize).is_multiple_of(SECTOR_SIZE);
        if odd(granularity) {
            return Err(Error::Peer {
                path: backend.path("discard-granularity"),
                what: format!("is {granularity}, and not a multiple of {SECTOR_SIZE}"),
            });
        }
        if odd(discard.alignment) || discard.alignment >= granularity {
            return Err(Error::Peer {
                path: backend.path("discard-alignment"),
                what: format!(
                    "is {}, and not a multiple of {SECTOR_SIZE} below the granularity {granularity}",
                    discard.alignment
                ),
            });
        }
        Ok(Some(discard))
    }

    /// The whole pieces among `count` sectors from `sector` on, first and how many; none if there
    /// are none.
    pub fn whole(&self, sector: u64, count: u64) -> Option<(u64, u64)> {
        let sectors = |bytes: u32| u64::from(bytes) / SECTOR_SIZE as u64;
        let (piece, offset) = (sectors(self.granularity).max(1), sectors(self.alignment));
        let end = sector.checked_add(count)?;
        let first = match sector.checked_sub(offset) {
            None => offset,
            Some(after) => after
                .div_ceil(piece)
                .checked_mul(piece)?
                .checked_add(offset)?,
        };
        let last = end.checked_sub(offset)? / piece * piece + offset;
        let whole = last.checked_sub(first)?;
        (whole > 0).then_some((first, whole))
    }
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
            barrier: false,
            discard: None,
            indirect_segments: 0,
            persistent: false,
        }
    }

    /// Reads what a backend wrote into its directory.
    ///
    /// # Errors
    /// [`Error::Peer`] for a key that is missing or makes no sense: the backend's fault. Else the
    /// store's.
    pub async fn read(backend: &Keys) -> Result<Self, Error> {
        let sector_size = backend.get_or("sector-size", SECTOR_SIZE as u32).await?;
        let flags = backend.get_or("info", 0).await?;
        let flags = DiskInfo::from_bits_truncate(flags);
        let physical = backend.get_or("physical-sector-size", sector_size).await?;
        let info = Info {
            sectors: backend.get("sectors").await?,
            sector_size,
            physical_sector_size: physical,
            read_only: flags.contains(DiskInfo::READONLY),
            cdrom: flags.contains(DiskInfo::CDROM),
            removable: flags.contains(DiskInfo::REMOVABLE),
            flush: backend.get_or("feature-flush-cache", false).await?,
            barrier: backend.get_or("feature-barrier", false).await?,
            discard: Discard::read(backend, physical).await?,
            indirect_segments: backend.get_or("feature-max-indirect-segments", 0).await?,
            persistent: backend.get_or("feature-persistent", false).await?,
        };
        info.possible(backend)?;
        Ok(info)
    }

    /// Reads the size anew, of a disk that is otherwise as it was.
    pub(crate) async fn resized(self, backend: &Keys) -> Result<Self, Error> {
        let info = Info {
            sectors: backend.get("sectors").await?,
            ..self
        };
        info.possible(backend)?;
        Ok(info)
    }

    fn possible(&self, backend: &Keys) -> Result<(), Error> {
        self.check().map_err(|(key, what)| Error::Peer {
            path: backend.path(key),
            what,
        })
    }

    /// Whether the numbers are possible, each by itself and together; else the key of one that is
    /// not, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let (sector, physical) = (self.sector_size, self.physical_sector_size);
        // A sector has to fit a page, so that every piece of a request is whole sectors.
        if !sector.is_power_of_two() || !(SECTOR_SIZE..=PAGE_SIZE).contains(&(sector as usize)) {
            let what = format!("is {sector}, and not 512, 1024, 2048 or 4096");
            return Err(("sector-size", what));
        }
        if physical < sector || !physical.is_multiple_of(sector) {
            let what = format!("is {physical}, and not a multiple of the sector size {sector}");
            return Err(("physical-sector-size", what));
        }
        match self.bytes() {
            Some(bytes) if bytes.is_multiple_of(sector.into()) => Ok(()),
            _ => {
                let what = format!("is {}, which is no size of a disk", self.sectors);
                Err(("sectors", what))
            }
        }
    }

    /// Its size in bytes, if that fits 64 bits: it does for what [`Info::read`] gave.
    pub const fn bytes(&self) -> Option<u64> {
        self.sectors.checked_mul(SECTOR_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(info: Info) -> Option<&'static str> {
        info.check().err().map(|(key, _)| key)
    }

    #[test]
    fn a_sector_is_a_power_of_two_that_fits_a_page() {
        for sector_size in [0, 1, 256, 513, 3 * 512, 8192, 1 << 31, u32::MAX] {
            let info = Info {
                sector_size,
                physical_sector_size: sector_size,
                ..Info::plain(80)
            };
            assert_eq!(fault(info), Some("sector-size"), "{sector_size}");
        }
    }

    #[test]
    fn a_physical_sector_is_whole_sectors() {
        for (physical_sector_size, possible) in
            [(0, false), (512, false), (4096, true), (6144, false)]
        {
            let info = Info {
                sector_size: 4096,
                physical_sector_size,
                ..Info::plain(80)
            };
            assert_eq!(fault(info).is_none(), possible, "{physical_sector_size}");
        }
    }

    #[test]
    fn a_disk_is_whole_sectors_and_its_bytes_can_be_counted() {
        assert_eq!(fault(Info::plain(0)), None, "an empty drive");
        assert_eq!(fault(Info::plain(u64::MAX / 512)), None);
        assert_eq!(fault(Info::plain(u64::MAX / 512 + 1)), Some("sectors"));
        let odd = Info {
            sector_size: 4096,
            physical_sector_size: 4096,
            ..Info::plain(9)
        };
        assert_eq!(fault(odd), Some("sectors"));
    }

    #[test]
    fn only_whole_pieces_are_discarded() {
        let discard = Discard {
            granularity: 4096,
            alignment: 512,
            secure: false,
        };
        let table = [
            ((0, 8), None),
            ((0, 9), Some((1, 8))),
            ((1, 8), Some((1, 8))),
            ((2, 8), None),
            ((2, 30), Some((9, 16))),
            ((0, 0), None),
            ((u64::MAX - 3, 3), None),
            ((u64::MAX, 2), None),
        ];
        for ((sector, count), whole) in table {
            assert_eq!(discard.whole(sector, count), whole, "{count} from {sector}");
        }
    }

    proptest! {
        #[test]
        fn what_is_discarded_was_asked_for_and_is_whole(
            pieces in 1u32..64, offset in 0u32..64, sector in any::<u64>(), count in 0u64..1000
        ) {
            let discard = Discard {
                granularity: pieces * 512,
                alignment: offset % pieces * 512,
                secure: false,
            };
            if let Some((first, whole)) = discard.whole(sector, count) {
                prop_assert!(first >= sector && first + whole <= sector + count);
                prop_assert!(whole.is_multiple_of(pieces.into()));
                prop_assert!((first - u64::from(offset % pieces)).is_multiple_of(pieces.into()));
            }
        }

        #[test]
        fn whatever_passes_can_be_reckoned_with(sectors: u64, sector_size: u32, physical: u32, shift in 0u32..16) {
            for sector_size in [sector_size, 1 << shift] {
                let info = Info { sector_size, physical_sector_size: physical, ..Info::plain(sectors) };
                if info.check().is_ok() {
                    prop_assert!(info.bytes().is_some());
                    prop_assert!(PAGE_SIZE.is_multiple_of(info.sector_size as usize));
                }
            }
        }
    }
}
