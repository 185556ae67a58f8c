//! One disk of a guest, from a string in xl's words.
//!
//! ```text
//! format=raw, vdev=xvda, access=rw, target=/srv/guest.img      by name, the target last
//! /srv/guest.img,raw,xvda,rw                                   by position
//! /srv/guest.img,,xvda                                         with defaults
//! /srv/install.iso,,hdc,cdrom                                  with a flag
//! /srv/guest.img,,xvda,iops=1000,bps=50M                       with limits, which are ours
//! ```
//!
//! Four parameters are not xl's: `iops` and `bps` limit the operations and the bytes of a second,
//! `iops-burst` and `bps-burst` what may be used at once after a pause (else a tenth of a second's
//! worth). Numbers may end in `K`, `M`, `G` or `T`.
//!
//! What xl knows and there is nothing here to do it with is refused with the reason, and so are
//! the forms that xl calls deprecated. Flags that are mere advice (`direct-io-safe`, `trusted` and
//! their opposites) are accepted and change nothing.
//!
//! Source: Xen's `docs/man/xl-disk-configuration.5`.

use std::fmt;
use std::str::FromStr;

use parapet_blkback::image::{Spec, SpecError};
use parapet_blkback::negotiation::Rates;
use parapet_blkback::terms::Rate;
use parapet_blkfront::vdev::{NotAVdev, Vdev};

use super::nearest::Hint;

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// What the guest knows it by.
    pub vdev: Vdev,
    /// What the guest may do.
    pub access: DiskAccess,
    /// How the image keeps the disk.
    pub format: DiskFormat,
    /// What it looks like to the guest.
    pub devtype: DeviceType,
    /// Whether the guest is offered to discard what it does not need.
    pub discard: bool,
    /// How fast it may be used.
    pub rates: Rates,
    /// The image: a path, `null:SIZE` or `memory:SIZE` (see [`Spec`]).
    pub target: String,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAccess {
    /// Read it: `r` or `ro`.
    ReadOnly,
    /// Read and write it: `w` or `rw`.
    ReadWrite,
}

/// How an image keeps a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
}

/// What a disk looks like to its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceType {
    /// A hard disk.
    Disk,
    /// A CD or DVD drive with a medium in it.
    Cdrom,
}

/// A text that describes no disk, or one that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// A parameter that xl does not know either.
    #[error("unknown parameter `{name}`{hint}")]
    Unknown {
        /// Its name.
        name: String,
        /// What may have been meant.
        hint: Hint,
    },
    /// A parameter was given twice.
    #[error("`{0}` is given twice: keep one")]
    Repeated(&'static str),
    /// A parameter has a value that it cannot have.
    #[error("`{key}` is {value:?}: it should be {expected}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// It makes sense, but not here.
    #[error("`{what}` cannot be had: {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// More words than there are positions.
    #[error("{0:?} has no place after target, format, vdev and access: give it a name")]
    TooMany(String),
    /// A word with an `=` that is no parameter.
    #[error("{0:?} is no parameter: a target that contains `=` goes last, as `target=...`")]
    NotAParameter(String),
    /// There is no name for the guest.
    #[error("it has no vdev: add one, such as `vdev=xvda`")]
    NoVdev,
    /// The name for the guest is none.
    #[error(transparent)]
    Vdev(#[from] NotAVdev),
    /// There is no image.
    #[error("it has no target: add the path of its image at the end, as `target=/path/x.img`")]
    NoTarget,
    /// The image is none.
    #[error(transparent)]
    Image(#[from] SpecError),
}

/// Everything of xl's that is refused, and why.
const UNSUPPORTED: [(&str, &str); 10] = [
    (
        "backendtype",
        "every disk is served by Parapet's own block backend; leave it out",
    ),
    (
        "script",
        "no scripts are run to attach a disk; give the path of the image or device as target",
    ),
    (
        "grant_usage",
        "it is for virtio disks; a Xen disk always uses grants, leave it out",
    ),
    ("colo", COLO),
    ("no-colo", COLO),
    ("colo-host", COLO),
    ("colo-port", COLO),
    ("colo-export", COLO),
    ("active-disk", COLO),
    ("hidden-disk", COLO),
];
const COLO: &str = "disks are not replicated to another host; leave it out";

/// Prefixes of xl's deprecated form, which is recognised to be refused.
const DEPRECATED: [&str; 15] = [
    "raw", "qcow", "qcow2", "vhd", "iscsi", "nbd", "enbd", "drbd", "tapdisk", "tap", "tap2", "aio",
    "ioemu", "file", "phy",
];

/// Parameters and flags, for hints.
const KNOWN: [&str; 16] = [
    "target",
    "format",
    "vdev",
    "access",
    "devtype",
    "cdrom",
    "backend",
    "direct-io-safe",
    "discard",
    "no-discard",
    "specification",
    "trusted",
    "iops",
    "iops-burst",
    "bps",
    "bps-burst",
];

/// The values as they stand in the text; empty ones count as given, and mean the default.
#[derive(Default)]
struct Parameters<'a> {
    target: Option<&'a str>,
    format: Option<&'a str>,
    vdev: Option<&'a str>,
    access: Option<&'a str>,
    devtype: Option<&'a str>,
    backend: Option<&'a str>,
    specification: Option<&'a str>,
    discard: Option<&'a str>,
    iops: Option<&'a str>,
    iops_burst: Option<&'a str>,
    bps: Option<&'a str>,
    bps_burst: Option<&'a str>,
}

impl<'a> Parameters<'a> {
    fn read(text: &'a str) -> Result<Self, DiskError> {
        let mut parameters = Parameters::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            // The last one: commas and blanks are part of it.
            if let Some(target) = rest.strip_prefix("target=") {
                if parameters.target.is_some_and(|before| !before.is_empty()) {
                    return Err(DiskError::Repeated("target"));
                }
                parameters.target = Some(target);
                break;
            }
            let (word, after) = rest.split_once(',').unwrap_or((rest, ""));
            parameters.word(word)?;
            rest = after.trim_start();
        }
        Ok(parameters)
    }

    fn word(&mut self, word: &'a str) -> Result<(), DiskError> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        if let Some((_, why)) = UNSUPPORTED.iter().find(|known| known.0 == name) {
            let what = word.to_owned();
            return Err(DiskError::Unsupported { what, why });
        }
        match (name, value) {
            ("format", Some(value)) => once("format", &mut self.format, value),
            ("vdev", Some(value)) => once("vdev", &mut self.vdev, value),
            ("access", Some(value)) => once("access", &mut self.access, value),
            ("devtype", Some(value)) => once("devtype", &mut self.devtype, value),
            ("backend", Some(value)) => once("backend", &mut self.backend, value),
            ("specification", Some(value)) => once("specification", &mut self.specification, value),
            ("cdrom", None) => once("devtype", &mut self.devtype, "cdrom"),
            ("iops", Some(value)) => once("iops", &mut self.iops, value),
            ("iops-burst", Some(value)) => once("iops-burst", &mut self.iops_burst, value),
            ("bps", Some(value)) => once("bps", &mut self.bps, value),
            ("bps-burst", Some(value)) => once("bps-burst", &mut self.bps_burst, value),
            (flag @ ("discard" | "no-discard"), None) => once("discard", &mut self.discard, flag),
            ("direct-io-safe" | "trusted" | "untrusted", None) => Ok(()),
            (name, Some(_)) if is_a_name(name) => Err(DiskError::Unknown {
                name: name.to_owned(),
                hint: Hint::new(name, &KNOWN),
            }),
            (_, Some(_)) => Err(DiskError::NotAParameter(word.to_owned())),
            (_, None) => self.position(word),
        }
    }

    /// A word without a name goes to the first position that has nothing.
    fn position(&mut self, word: &'a str) -> Result<(), DiskError> {
        let free = [
            &mut self.target,
            &mut self.format,
            &mut self.vdev,
            &mut self.access,
        ]
        .into_iter()
        .enumerate()
        .find(|(_, slot)| slot.is_none());
        let Some((position, slot)) = free else {
            return Err(DiskError::TooMany(word.to_owned()));
        };
        *slot = Some(word);
        match word.split_once(':') {
            Some((prefix, _)) if position == 0 && DEPRECATED.contains(&prefix) => {
                Err(DiskError::Unsupported {
                    what: format!("{prefix}:"),
                    why: "it is the deprecated form of a target; write `format=raw, vdev=xvda, \
                          target=/path`",
                })
            }
            _ => Ok(()),
        }
    }
}

fn once<'a>(
    key: &'static str,
    slot: &mut Option<&'a str>,
    value: &'a str,
) -> Result<(), DiskError> {
    match slot.replace(value) {
        Some(_) => Err(DiskError::Repeated(key)),
        None => Ok(()),
    }
}

fn is_a_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
}

impl FromStr for DiskConfig {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        let given = Parameters::read(text)?;
        let format = format(given.format.unwrap_or_default())?;
        let devtype = match given.devtype.unwrap_or_default() {
            "" | "disk" => DeviceType::Disk,
            "cdrom" => DeviceType::Cdrom,
            other => return Err(value("devtype", other, "disk or cdrom")),
        };
        let access = access(given.access.unwrap_or_default(), devtype)?;
        if !["", "0", "Domain-0"].contains(&given.backend.unwrap_or_default()) {
            return Err(value(
                "backend",
                given.backend.unwrap_or_default(),
                "left out: domain 0 serves every disk",
            ));
        }
        if !["", "xen"].contains(&given.specification.unwrap_or_default()) {
            return Err(value(
                "specification",
                given.specification.unwrap_or_default(),
                "xen: there are no virtio disks",
            ));
        }
        let vdev = match given.vdev.unwrap_or_default() {
            "" => return Err(DiskError::NoVdev),
            vdev => vdev.parse()?,
        };
        let target = match (given.target.unwrap_or_default(), devtype) {
            ("", DeviceType::Cdrom) => {
                return Err(DiskError::Unsupported {
                    what: "cdrom".into(),
                    why: "a drive without a medium cannot be attached; add `target=/path/x.iso`",
                });
            }
            ("", DeviceType::Disk) => return Err(DiskError::NoTarget),
            (target, _) => target,
        };
        // That it names an image is checked now; opening it is another matter.
        target.parse::<Spec>()?;
        Ok(DiskConfig {
            vdev,
            access,
            format,
            devtype,
            discard: given.discard != Some("no-discard"),
            rates: Rates {
                operations: rate(("iops", given.iops), ("iops-burst", given.iops_burst))?,
                bytes: rate(("bps", given.bps), ("bps-burst", given.bps_burst))?,
            },
            target: target.to_owned(),
        })
    }
}

/// A parameter that is a number, and what it says.
type Given<'a> = (&'static str, Option<&'a str>);

fn rate(per_second: Given<'_>, burst: Given<'_>) -> Result<Option<Rate>, DiskError> {
    let rate = number(per_second)?.unwrap_or(0);
    Ok(match (rate, number(burst)?) {
        (0, None) => None,
        (0, Some(_)) => return Err(value(per_second.0, "0", "given with a burst")),
        (rate, burst) => Some(Rate::new(rate, burst)),
    })
}

fn number((key, text): Given<'_>) -> Result<Option<u64>, DiskError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let split = text.find(|c: char| !c.is_ascii_digit());
    let (digits, unit) = text.split_at(split.unwrap_or(text.len()));
    let unit = match unit {
        "" => Some(1u64),
        "K" => Some(1 << 10),
        "M" => Some(1 << 20),
        "G" => Some(1 << 30),
        "T" => Some(1 << 40),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    match number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit)) {
        Some(number) => Ok(Some(number)),
        None => Err(value(key, text, "a number, which may end in K, M, G or T")),
    }
}

fn value(key: &'static str, value: &str, expected: &'static str) -> DiskError {
    DiskError::Value {
        key,
        value: value.to_owned(),
        expected,
    }
}

fn format(text: &str) -> Result<DiskFormat, DiskError> {
    match text {
        "" | "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Err(DiskError::Unsupported {
            what: format!("format={text}"),
            why: "leave it out and let the target say it: qcow2:PATH, or overlay:PATH if it has a \
                  backing file",
        }),
        "qcow" | "vhd" | "qed" => Err(DiskError::Unsupported {
            what: format!("format={text}"),
            why: "no such images are read; convert it with `qemu-img convert -O qcow2`",
        }),
        other => Err(value("format", other, "raw")),
    }
}

fn access(text: &str, devtype: DeviceType) -> Result<DiskAccess, DiskError> {
    match (text, devtype) {
        ("r" | "ro", _) | ("", DeviceType::Cdrom) => Ok(DiskAccess::ReadOnly),
        ("w" | "rw" | "", DeviceType::Disk) => Ok(DiskAccess::ReadWrite),
        ("w" | "rw", DeviceType::Cdrom) => Err(value("access", text, "ro for a cdrom")),
        (other, _) => Err(value("access", other, "rw or ro")),
    }
}

/// In the form that has the target last, which has room for any target.
impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskConfig {
            vdev,
            access,
            format,
            devtype,
            discard,
            rates,
            target,
        } = self;
        let format = match format {
            DiskFormat::Raw => "raw",
        };
        let access = match access {
            DiskAccess::ReadOnly => "ro",
            DiskAccess::ReadWrite => "rw",
        };
        let devtype = match devtype {
            DeviceType::Disk => "",
            DeviceType::Cdrom => "devtype=cdrom, ",
        };
        write!(
            f,
            "format={format}, vdev={vdev}, access={access}, {devtype}"
        )?;
        if !discard {
            f.write_str("no-discard, ")?;
        }
        for (key, rate) in [("iops", rates.operations), ("bps", rates.bytes)] {
            if let Some(Rate { per_second, burst }) = rate {
                write!(f, "{key}={per_second}, {key}-burst={burst}, ")?;
            }
        }
        write!(f, "target={target}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<DiskConfig, DiskError> {
        text.parse()
    }

    #[test]
    fn xls_equivalent_strings_are_equivalent() {
        let disk = DiskConfig {
            vdev: "hda".parse().unwrap(),
            access: DiskAccess::ReadWrite,
            format: DiskFormat::Raw,
            devtype: DeviceType::Disk,
            discard: true,
            rates: Rates::default(),
            target: "/dev/vg/guest-volume".into(),
        };
        for text in [
            "/dev/vg/guest-volume,,hda",
            "/dev/vg/guest-volume,raw,hda,rw",
            "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
            "vdev=hda,/dev/vg/guest-volume",
            "/dev/vg/guest-volume, vdev=hda, , w, discard, backend=0, specification=xen",
            ",,hda,target=/dev/vg/guest-volume",
        ] {
            assert_eq!(parse(text), Ok(disk.clone()), "{text}");
        }
        let cdrom = DiskConfig {
            vdev: "hdc".parse().unwrap(),
            access: DiskAccess::ReadOnly,
            format: DiskFormat::Raw,
            devtype: DeviceType::Cdrom,
            discard: true,
            rates: Rates::default(),
            target: "/root/image.iso".into(),
        };
        for text in [
            "/root/image.iso,,hdc,cdrom",
            "/root/image.iso,,hdc,,cdrom",
            "/root/image.iso,raw,hdc,devtype=cdrom",
            "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
        ] {
            assert_eq!(parse(text), Ok(cdrom.clone()), "{text}");
        }
    }

    #[test]
    fn a_named_target_is_the_whole_rest() {
        let disk = parse("vdev=xvda,target=/a, b=c: d ").unwrap();
        assert_eq!(disk.target, "/a, b=c: d ");
        let disk = parse("vdev=xvda, target=raw:/x").unwrap();
        assert_eq!(disk.target, "raw:/x");
    }

    #[test]
    fn limits_are_numbers_a_second_and_a_burst() {
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let disk = parse("/x,,xvda,iops=500,bps=2M,bps-burst=1K,no-discard").unwrap();
        assert_eq!(disk.rates.operations, rate(500, 50));
        assert_eq!(disk.rates.bytes, rate(2 << 20, 1 << 10));
        assert!(!disk.discard);
        assert_eq!(parse(&disk.to_string()), Ok(disk));
        let disk = parse("/x,,xvda,iops=0,bps=").unwrap();
        assert_eq!(disk.rates, Rates::default());
    }

    #[test]
    fn images_without_a_file_have_a_size() {
        assert_eq!(parse("null:1G,,xvda").unwrap().target, "null:1G");
        assert!(matches!(
            parse("vdev=xvda, target=memory:"),
            Err(DiskError::Image(_))
        ));
    }

    #[test]
    fn each_fault_is_one_line_that_names_the_thing() {
        for (text, fault) in [
            ("", "it has no vdev"),
            ("/x,,", "it has no vdev"),
            ("vdev=xvda", "it has no target"),
            ("vdev=xvda, target=", "it has no target"),
            (",,hdc,cdrom", "without a medium"),
            ("/x,,vda", r#""vda" is no virtual disk"#),
            ("/x,qcow2,xvda", "qcow2:PATH"),
            ("/x,vhd,xvda", "qemu-img convert"),
            ("/x,zip,xvda", r#"`format` is "zip": it should be raw"#),
            ("/x,,xvda,rx", r#"`access` is "rx""#),
            ("/x,,xvda,rw,more", r#""more" has no place"#),
            ("/x,,hdc,rw,cdrom", "ro for a cdrom"),
            ("/x,,xvda,devtype=tape", "disk or cdrom"),
            ("/x,,xvda,acces=ro", "`acces`, did you mean `access`?"),
            ("/x,,xvda,blah=1", "unknown parameter `blah`"),
            ("/a=b,,xvda", "goes last"),
            ("vdev=xvda,vdev=xvdb,target=/x", "`vdev` is given twice"),
            ("/x,,xvda,target=/y", "`target` is given twice"),
            ("/x,,hdc,cdrom,devtype=cdrom", "`devtype` is given twice"),
            ("raw:/x,xvda,w", "deprecated"),
            ("/x,,xvda,backend=dom1", "domain 0"),
            ("/x,,xvda,backendtype=qdisk", "own block backend"),
            ("/x,,xvda,script=block-nbd", "no scripts"),
            ("/x,,xvda,specification=virtio", "no virtio"),
            ("/x,,xvda,colo", "replicated"),
            ("/x,,xvda,discard,no-discard", "`discard` is given twice"),
            ("/x,,xvda,iops=many", r#"`iops` is "many""#),
            ("/x,,xvda,bps=-1", r#"`bps` is "-1""#),
            ("/x,,xvda,bps=99999999999G", "a number"),
            ("/x,,xvda,iops-burst=5", "given with a burst"),
            ("/x,,xvda,iop=5", "did you mean `iops`?"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(fault), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    proptest! {
        #[test]
        fn a_disk_prints_as_it_is_parsed(target in "/[ -~]{0,20}", disk in 0..16u32, ro: bool) {
            let access = if ro { "ro" } else { "rw" };
            let text = format!("vdev=d{disk}, access={access}, target={target}");
            let disk = parse(&text).unwrap();
            prop_assert_eq!(parse(&disk.to_string()), Ok(disk));
        }

        #[test]
        fn no_text_panics(text in "[a-z=, /:]{0,40}") {
            let _ = parse(&text);
        }
    }
}
