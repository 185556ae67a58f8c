//! The header of a qcow2 image, checked before anything else believes it (pure).
//!
//! Followed: QEMU's `docs/interop/qcow2.rst`, and for the sizes of tables the limits of QEMU's own
//! driver. What passes is small enough to be read whole, and lies within the file.

/// The smallest cluster, which every header fits.
pub const MIN_CLUSTER: usize = 512;
/// The largest cluster: QEMU's limit.
pub const MAX_CLUSTER: usize = 2 << 20;
/// The most bytes in an L1 table: QEMU's limit.
pub(super) const MAX_L1: u64 = 32 << 20;
/// The most bytes in a table of refcount blocks: QEMU's limit.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// The most snapshots: QEMU's limit.
const MAX_SNAPSHOTS: u32 = 65536;
/// The longest name of a backing file.
const MAX_BACKING: u32 = 1023;

const MAGIC: u32 = 0x5146_49fb;
/// The length of a header of version 2, and of what every one of version 3 has.
const V2: usize = 72;
const V3: u32 = 104;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

const BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The binary logarithm of a cluster's bytes: 9 to 21.
    pub cluster_bits: u32,
    /// The disk's bytes.
    pub bytes: u64,
    /// How many entries the table of L2 tables has.
    pub l1_entries: u32,
    /// Where that begins.
    pub l1_offset: u64,
    /// Where the table of refcount blocks begins.
    pub refcount_offset: u64,
    /// How many clusters that takes up.
    pub refcount_clusters: u32,
    /// The binary logarithm of a refcount's bits: at most 6.
    pub refcount_order: u32,
    /// How many internal snapshots there are.
    pub snapshots: u32,
    /// Where their table begins.
    pub snapshots_offset: u64,
    /// What shows where the image has nothing.
    pub backing: Option<Backing>,
}

/// What a header says of a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its name, as the image has it.
    pub name: String,
    /// Its format, if that is said.
    pub format: Option<String>,
}

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It begins like something else.
    #[error("it does not begin like one")]
    Magic,
    /// The file ends before it.
    #[error("it ends within its header")]
    Short,
    /// Neither 2 nor 3.
    #[error("it is of version {0}, and only 2 and 3 are known")]
    Version(u32),
    /// Outside of 512 bytes to 2 MiB.
    #[error("its clusters have 2^{0} bytes, and should have 512 to 2 MiB")]
    Cluster(u32),
    /// It is encrypted.
    #[error("it is encrypted, which is not supported")]
    Encrypted,
    /// It was not closed.
    #[error("it was not closed in order: repair it with `qemu-img check -r all`")]
    Dirty,
    /// Somebody found it corrupt.
    #[error("it is marked as corrupt: repair it with `qemu-img check -r all`")]
    Corrupt,
    /// Its data are elsewhere.
    #[error("its data are in another file, which is not supported")]
    ExternalData,
    /// It has what we do not know.
    #[error("it needs features that are not supported (incompatible features {0:#x})")]
    Features(u64),
    /// A table is larger than any image needs, or has no place in the file.
    #[error("its {0} has an impossible size or place, or the file was cut off")]
    Table(&'static str),
    /// A field has a value that it cannot have.
    #[error("its {0} makes no sense")]
    Field(&'static str),
    /// Its disk has no bytes, or half a sector.
    #[error("its disk has {0} bytes, which is no whole number of sectors of 512, or none")]
    Size(u64),
}

/// Reads numbers, and nothing behind the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], HeaderError> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(HeaderError::Short)
    }

    fn u32(&self, at: usize) -> Result<u32, HeaderError> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, HeaderError> {
        self.bytes(at).map(u64::from_be_bytes)
    }

    fn text(&self, at: u64, len: u32, what: &'static str) -> Result<String, HeaderError> {
        let start = usize::try_from(at).map_err(|_| HeaderError::Field(what))?;
        let end = start.checked_add(len as usize);
        let bytes = end.and_then(|end| self.0.get(start..end));
        let bytes = bytes.ok_or(HeaderError::Field(what))?.to_vec();
        let text = String::from_utf8(bytes).map_err(|_| HeaderError::Field(what))?;
        if text.contains('\0') {
            return Err(HeaderError::Field(what));
        }
        Ok(text)
    }
}

/// How many bytes of a file [`Header::parse`] wants to see, as its first [`MIN_CLUSTER`] tell: a
/// cluster.
///
/// # Errors
/// They are not those of a qcow2 image.
pub fn extent(start: &[u8]) -> Result<usize, HeaderError> {
    let fields = Fields(start);
    if fields.u32(0).map_err(|_| HeaderError::Magic)? != MAGIC {
        return Err(HeaderError::Magic);
    }
    match fields.u32(20)? {
        bits @ 9..=21 => Ok(1 << bits),
        bits => Err(HeaderError::Cluster(bits)),
    }
}

/// How many bytes of disk an entry of the L1 table stands for, in clusters of 2^`cluster_bits`.
const fn l2_reach(cluster_bits: u32) -> u64 {
    1 << (2 * cluster_bits - 3)
}

/// The largest disk that there can be in clusters of 2^`cluster_bits`.
pub(super) const fn most_bytes(cluster_bits: u32) -> u64 {
    (MAX_L1 / 8).saturating_mul(l2_reach(cluster_bits))
}

impl Header {
    /// Checks the first cluster of an image that is `file` bytes long.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(cluster: &[u8], file: u64) -> Result<Self, HeaderError> {
        let size = extent(cluster)?;
        let fields = Fields(cluster.get(..size).unwrap_or(cluster));
        let version = fields.u32(4)?;
        let (incompatible, refcount_order, length) = match version {
            2 => (0, 4, V2 as u32),
            3 => (fields.u64(72)?, fields.u32(96)?, fields.u32(100)?),
            other => return Err(HeaderError::Version(other)),
        };
        match incompatible {
            0 => {}
            bits if bits & DIRTY != 0 => return Err(HeaderError::Dirty),
            bits if bits & CORRUPT != 0 => return Err(HeaderError::Corrupt),
            bits if bits & EXTERNAL_DATA != 0 => return Err(HeaderError::ExternalData),
            bits => return Err(HeaderError::Features(bits)),
        }
        if fields.u32(32)? != 0 {
            return Err(HeaderError::Encrypted);
        }
        if refcount_order > 6 {
            return Err(HeaderError::Field("refcounts' width"));
        }
        if version == 3 && (length < V3 || length % 8 != 0 || length as usize > size) {
            return Err(HeaderError::Field("header's length"));
        }
        let bytes = fields.u64(24)?;
        if bytes == 0 || !bytes.is_multiple_of(512) || bytes > i64::MAX as u64 {
            return Err(HeaderError::Size(bytes));
        }
        let header = Header {
            version,
            cluster_bits: size.trailing_zeros(),
            bytes,
            l1_entries: fields.u32(36)?,
            l1_offset: fields.u64(40)?,
            refcount_offset: fields.u64(48)?,
            refcount_clusters: fields.u32(56)?,
            refcount_order,
            snapshots: fields.u32(60)?,
            snapshots_offset: fields.u64(64)?,
            backing: backing(&fields, length)?,
        };
        header.check_tables(file)?;
        Ok(header)
    }

    /// A cluster's bytes.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many bytes of disk an entry of the L1 table stands for.
    pub fn l2_reach(&self) -> u64 {
        l2_reach(self.cluster_bits)
    }

    fn check_tables(&self, file: u64) -> Result<(), HeaderError> {
        let l1 = u64::from(self.l1_entries) * 8;
        if u64::from(self.l1_entries) < self.bytes.div_ceil(self.l2_reach()) {
            return Err(HeaderError::Table("L1 table"));
        }
        self.check_table("L1 table", self.l1_offset, l1, MAX_L1, file)?;
        let refcounts = u64::from(self.refcount_clusters) << self.cluster_bits;
        let place = self.refcount_offset;
        self.check_table("refcount table", place, refcounts, MAX_REFCOUNT_TABLE, file)?;
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(HeaderError::Table("table of snapshots"));
        }
        if self.snapshots > 0 {
            // How long it is shows only when it is read; each entry has at least 40 bytes.
            let least = u64::from(self.snapshots) * 40;
            let place = self.snapshots_offset;
            self.check_table("table of snapshots", place, least, u64::MAX, file)?;
        }
        Ok(())
    }

    fn check_table(
        &self,
        what: &'static str,
        offset: u64,
        bytes: u64,
        most: u64,
        file: u64,
    ) -> Result<(), HeaderError> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= file);
        let aligned = offset.is_multiple_of(self.cluster());
        if bytes == 0 || bytes > most || offset == 0 || !aligned || !inside {
            return Err(HeaderError::Table(what));
        }
        Ok(())
    }
}

fn backing(fields: &Fields<'_>, length: u32) -> Result<Option<Backing>, HeaderError> {
    const WHAT: &str = "backing file's name";
    let (offset, len) = (fields.u64(8)?, fields.u32(16)?);
    let format = backing_format(fields, length, offset)?;
    match (offset, len) {
        (0, _) => Ok(None),
        (_, 1..=MAX_BACKING) => Ok(Some(Backing {
            name: fields.text(offset, len, WHAT)?,
            format,
        })),
        _ => Err(HeaderError::Field(WHAT)),
    }
}

/// Goes through the header's extensions, which end where the backing file's name begins. Those are
/// also in headers of version 2.
fn backing_format(
    fields: &Fields<'_>,
    length: u32,
    name: u64,
) -> Result<Option<String>, HeaderError> {
    const WHAT: &str = "header extensions";
    let end = match usize::try_from(name) {
        Ok(1..) => fields.0.len().min(name as usize),
        _ => fields.0.len(),
    };
    let mut at = length as usize;
    let mut format = None;
    while at.checked_add(8).is_some_and(|start| start <= end) {
        let (kind, len) = (fields.u32(at)?, fields.u32(at + 4)?);
        if kind == 0 {
            return Ok(format);
        }
        if kind == BACKING_FORMAT {
            if format.is_some() || len > 64 {
                return Err(HeaderError::Field(WHAT));
            }
            format = Some(fields.text(at as u64 + 8, len, WHAT)?);
        }
        at = (len as usize)
            .checked_next_multiple_of(8)
            .and_then(|len| at.checked_add(8)?.checked_add(len))
            .filter(|&at| at <= end)
            .ok_or(HeaderError::Field(WHAT))?;
    }
    Ok(format)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A header of version 3, for a disk of 1 MiB in clusters of 64 KiB.
    pub(in super::super) fn cluster() -> Vec<u8> {
        let mut bytes = vec![0; 65536];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(0, &MAGIC.to_be_bytes());
        set(4, &3u32.to_be_bytes());
        set(20, &16u32.to_be_bytes());
        set(24, &(1u64 << 20).to_be_bytes());
        set(36, &1u32.to_be_bytes());
        set(40, &(3u64 << 16).to_be_bytes());
        set(48, &(1u64 << 16).to_be_bytes());
        set(56, &1u32.to_be_bytes());
        set(96, &4u32.to_be_bytes());
        set(100, &104u32.to_be_bytes());
        bytes
    }

    const FILE: u64 = (3 << 16) + 8;

    fn parse(changes: &[(usize, &[u8])]) -> Result<Header, HeaderError> {
        let mut bytes = cluster();
        for (at, value) in changes {
            bytes[*at..at + value.len()].copy_from_slice(value);
        }
        Header::parse(&bytes, FILE)
    }

    #[test]
    fn a_sound_header_says_what_it_says() {
        let header = parse(&[]).unwrap();
        assert_eq!((header.version, header.bytes), (3, 1 << 20));
        assert_eq!((header.cluster(), header.l2_reach()), (65536, 512 << 20));
        assert_eq!(header.backing, None);
    }

    #[test]
    fn a_backing_file_is_named_with_its_format() {
        // Behind the extensions, with and without one that says that it is the last.
        for at in [120, 128] {
            let header = parse(&[
                (8, &(at as u64).to_be_bytes()),
                (16, &8u32.to_be_bytes()),
                (104, &BACKING_FORMAT.to_be_bytes()),
                (108, &3u32.to_be_bytes()),
                (112, b"raw"),
                (at, b"base.img"),
            ]);
            let backing = header.unwrap().backing.unwrap();
            assert_eq!(backing.name, "base.img");
            assert_eq!(backing.format.as_deref(), Some("raw"));
        }
        let endless = parse(&[
            (104, &BACKING_FORMAT.to_be_bytes()),
            (108, &u32::MAX.to_be_bytes()),
        ]);
        assert_eq!(endless, Err(HeaderError::Field("header extensions")));
    }

    #[test]
    fn each_fault_has_its_name() {
        use HeaderError as E;
        type Changes<'a> = &'a [(usize, &'a [u8])];
        let cases: &[(Changes<'_>, HeaderError)] = &[
            (&[(0, b"KDMV")], E::Magic),
            (&[(4, &4u32.to_be_bytes())], E::Version(4)),
            (&[(20, &8u32.to_be_bytes())], E::Cluster(8)),
            (&[(20, &22u32.to_be_bytes())], E::Cluster(22)),
            (&[(20, &u32::MAX.to_be_bytes())], E::Cluster(u32::MAX)),
            (&[(32, &2u32.to_be_bytes())], E::Encrypted),
            (&[(72, &1u64.to_be_bytes())], E::Dirty),
            (&[(72, &2u64.to_be_bytes())], E::Corrupt),
            (&[(72, &4u64.to_be_bytes())], E::ExternalData),
            (&[(72, &16u64.to_be_bytes())], E::Features(16)),
            (&[(24, &513u64.to_be_bytes())], E::Size(513)),
            (&[(24, &0u64.to_be_bytes())], E::Size(0)),
            (&[(36, &0u32.to_be_bytes())], E::Table("L1 table")),
            (&[(36, &u32::MAX.to_be_bytes())], E::Table("L1 table")),
            (&[(40, &u64::MAX.to_be_bytes())], E::Table("L1 table")),
            (&[(24, &(1u64 << 40).to_be_bytes())], E::Table("L1 table")),
            (&[(48, &7u64.to_be_bytes())], E::Table("refcount table")),
            (&[(56, &u32::MAX.to_be_bytes())], E::Table("refcount table")),
            (
                &[(60, &u32::MAX.to_be_bytes())],
                E::Table("table of snapshots"),
            ),
            (&[(60, &1u32.to_be_bytes())], E::Table("table of snapshots")),
            (&[(96, &7u32.to_be_bytes())], E::Field("refcounts' width")),
            (&[(100, &96u32.to_be_bytes())], E::Field("header's length")),
            (
                &[(8, &65535u64.to_be_bytes()), (16, &8u32.to_be_bytes())],
                E::Field("backing file's name"),
            ),
            (
                &[(8, &200u64.to_be_bytes()), (16, &2000u32.to_be_bytes())],
                E::Field("backing file's name"),
            ),
        ];
        for (changes, error) in cases {
            assert_eq!(parse(changes).as_ref(), Err(error), "{changes:?}");
        }
        let bytes = cluster();
        assert_eq!(
            Header::parse(&bytes, FILE - 1),
            Err(E::Table("L1 table")),
            "the file was cut off"
        );
        assert_eq!(Header::parse(&bytes[..80], FILE), Err(E::Short));
        assert_eq!(Header::parse(&[], 0), Err(E::Magic));
    }
}
