//! Reading a configuration from TOML.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parapet_blkback::image::Spec;
use parapet_blkfront::vdev::Vdev;
use parapet_packet::Mac;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::{
    DiskAccess, DiskConfig, DiskError, GuestConfig, Hint, HostConfig, NetworkConfig, NetworkKind,
    NotASubnet, Subnet, VifConfig, VifError,
};

/// What is wrong with a configuration, and where.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, where it can be told.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: Box<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        // One line, whatever of the file it quotes.
        write!(f, ": {}", self.problem.to_string().replace('\n', " "))
    }
}

impl std::error::Error for ConfigError {}

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot read the configuration ({0}): give the path of a TOML file")]
    Read(io::Error),
    /// It is not TOML, or a value has the wrong type.
    #[error("{0}")]
    Toml(String),
    /// A key that nobody knows.
    #[error("unknown key `{key}`{hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// What may have been meant.
        hint: Hint,
    },
    /// A key that belongs elsewhere.
    #[error("`{key}` {place}")]
    Misplaced {
        /// The key.
        key: String,
        /// Where it should be.
        place: &'static str,
    },
    /// There is nothing to run.
    #[error("no guest is described: give it a `name`, or begin one with [[guest]]")]
    NoGuest,
    /// A guest without a name.
    #[error("the guest has no name: add `name = \"...\"`")]
    NoName,
    /// A name that no guest can have.
    #[error("{0:?} is not a name for a guest: it must not be empty or contain control characters")]
    BadName(String),
    /// Two guests have the same name.
    #[error("there are two guests with the name {0}: rename one")]
    DuplicateName(String),
    /// A number that is too large to count in bytes.
    #[error("guest {guest}: {mebibytes} MiB of memory are more than there can be")]
    Memory {
        /// The guest.
        guest: String,
        /// What was asked for.
        mebibytes: u64,
    },
    /// A disk string that is wrong.
    #[error("guest {guest}: disk {text:?}: {error}")]
    Disk {
        /// The guest.
        guest: String,
        /// The string.
        text: String,
        /// What is wrong with it.
        error: DiskError,
    },
    /// Two disks of a guest have the same name.
    #[error("guest {guest} has two disks with the vdev {vdev}: give one another, such as xvdb")]
    DuplicateVdev {
        /// The guest.
        guest: String,
        /// The vdev.
        vdev: Vdev,
    },
    /// A vif string that is wrong.
    #[error("guest {guest}: vif {text:?}: {error}")]
    Vif {
        /// The guest.
        guest: String,
        /// The string.
        text: String,
        /// What is wrong with it.
        error: VifError,
    },
    /// Two vifs of a guest have the same number.
    #[error("guest {guest} has two vifs with the devid {devid}: leave it out, or give one another")]
    DuplicateDevid {
        /// The guest.
        guest: String,
        /// The number.
        devid: u32,
    },
    /// Two vifs have the same address.
    #[error("two vifs have the address {mac}, guest {guest}'s is the second: give it another")]
    DuplicateMac {
        /// The guest.
        guest: String,
        /// The address.
        mac: Mac,
    },
    /// A network of a kind that there is not.
    #[error("a network's `type` is isolated, bridged, nat or null, and not {0:?}")]
    NetworkType(String),
    /// Two networks have the same name, or one has none.
    #[error("{0:?} is another network's name, or none: give it one of its own")]
    NetworkName(String),
    /// A network has no such thing.
    #[error("a network of type {kind} has no `{key}`: leave it out")]
    NetworkKey {
        /// Its type.
        kind: String,
        /// The key.
        key: &'static str,
    },
    /// A subnet that is none.
    #[error(transparent)]
    Subnet(#[from] NotASubnet),
    /// An image that is written is used twice.
    #[error(
        "{target} is used by {first} and by {second}, and at least one of them writes to it: \
         give each its own image, or both access=ro"
    )]
    SharedTarget {
        /// The image.
        target: String,
        /// Who uses it.
        first: String,
        /// Who uses it too.
        second: String,
    },
}

const HOST_KEYS: &[&str] = &["pcpus", "guest", "network"];
const GUEST_KEYS: &[&str] = &[
    "name", "memory", "vcpus", "disk", "vif", "kernel", "cmdline",
];
/// Of a file with one guest at its top.
const ALL_KEYS: &[&str] = &[
    "name", "memory", "vcpus", "disk", "vif", "kernel", "cmdline", "pcpus", "guest", "network",
];
const NETWORK_KEYS: &[&str] = &["name", "type", "bridge", "subnet"];

/// A network's table.
#[derive(Deserialize)]
struct NetworkTable {
    name: Spanned<String>,
    r#type: Spanned<String>,
    bridge: Option<Spanned<String>>,
    subnet: Option<Spanned<String>>,
}

/// A guest's table.
#[derive(Deserialize)]
struct GuestTable {
    name: Option<Spanned<String>>,
    memory: Option<Spanned<u64>>,
    vcpus: Option<usize>,
    #[serde(default)]
    disk: Vec<Spanned<String>>,
    #[serde(default)]
    vif: Vec<Spanned<String>>,
    kernel: Option<String>,
    #[serde(default)]
    cmdline: String,
}

impl HostConfig {
    /// Reads a file. Targets that are relative paths are looked for from its folder.
    ///
    /// # Errors
    /// One line that names the file, the line and what is wrong.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) => Err(ConfigError {
                file: file.into(),
                line: None,
                problem: Box::new(Problem::Read(error)),
            }),
        }
    }

    /// Reads `text`, which stands in `file`.
    ///
    /// # Errors
    /// As [`HostConfig::load`].
    pub fn parse(text: &str, file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = file.as_ref();
        let reader = Reader {
            folder: file.parent().unwrap_or(Path::new("")),
            uses: HashMap::new(),
            config: HostConfig::default(),
        };
        reader.read(text).map_err(|(span, problem)| ConfigError {
            file: file.into(),
            line: span.map(|span| line(text, span.start)),
            problem,
        })
    }
}

/// Where in the text, and what.
type Fault = (Option<Range<usize>>, Box<Problem>);

fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|&&byte| byte == b'\n').count()
}

fn toml_fault(error: toml::de::Error) -> Fault {
    // A message may have a list over several lines; an error here has one.
    let message = error.message().split_whitespace().collect::<Vec<_>>();
    (error.span(), Box::new(Problem::Toml(message.join(" "))))
}

struct Reader<'a> {
    folder: &'a Path,
    /// Who uses an image first, and how.
    uses: HashMap<Identity, (String, DiskAccess)>,
    config: HostConfig,
}

impl Reader<'_> {
    fn read(mut self, text: &str) -> Result<HostConfig, Fault> {
        let mut table = DeTable::parse(text).map_err(toml_fault)?.into_inner();
        let several = table.contains_key("guest");
        if several {
            check_keys(&table, HOST_KEYS, |key| {
                GUEST_KEYS
                    .contains(&key)
                    .then_some("concerns one guest: move it below its [[guest]]")
            })?;
        } else {
            check_keys(&table, ALL_KEYS, |_| None)?;
        }
        if let Some(pcpus) = table.remove("pcpus") {
            self.config.pcpus = Some(deserialize(pcpus)?);
        }
        if let Some(networks) = table.remove("network") {
            let span = networks.span();
            let DeValue::Array(networks) = networks.into_inner() else {
                let problem =
                    Problem::Toml("`network` is a table: begin it with [[network]]".into());
                return Err((Some(span), Box::new(problem)));
            };
            for network in networks {
                self.network(network)?;
            }
        }
        match table.remove("guest") {
            Some(guests) => {
                let span = guests.span();
                let DeValue::Array(guests) = guests.into_inner() else {
                    let problem =
                        Problem::Toml("`guest` is a table: begin it with [[guest]]".into());
                    return Err((Some(span), Box::new(problem)));
                };
                for guest in guests {
                    self.guest(guest)?;
                }
            }
            None if table.is_empty() => return Err((None, Box::new(Problem::NoGuest))),
            None => {
                // A guest without a name is reported where its first key is.
                let first = table
                    .keys()
                    .map(Spanned::span)
                    .min_by_key(|span| span.start);
                let span = first.unwrap_or_default();
                self.guest(Spanned::new(span, DeValue::Table(table)))?;
            }
        }
        Ok(self.config)
    }

    fn guest(&mut self, value: Spanned<DeValue<'_>>) -> Result<(), Fault> {
        let span = value.span();
        if let DeValue::Table(table) = value.get_ref() {
            check_keys(table, GUEST_KEYS, |key| {
                (key == "pcpus").then_some("concerns the host: move it above the first [[guest]]")
            })?;
        }
        let table: GuestTable = deserialize(value)?;
        let name = table.name.ok_or((Some(span), Box::new(Problem::NoName)))?;
        let name_span = Some(name.span());
        let name = name.into_inner();
        if name.is_empty() || name.contains(char::is_control) {
            return Err((name_span, Box::new(Problem::BadName(name))));
        }
        if self.config.guests.iter().any(|other| other.name == name) {
            return Err((name_span, Box::new(Problem::DuplicateName(name))));
        }
        let mut guest = GuestConfig::new(name);
        if let Some(memory) = table.memory {
            guest.memory = memory.get_ref().checked_mul(1 << 20).ok_or_else(|| {
                let problem = Problem::Memory {
                    guest: guest.name.clone(),
                    mebibytes: *memory.get_ref(),
                };
                (Some(memory.span()), Box::new(problem))
            })?;
        }
        guest.vcpus = table.vcpus.unwrap_or(guest.vcpus);
        guest.kernel = table.kernel;
        guest.cmdline = table.cmdline;
        for text in table.disk {
            let disk = self
                .disk(&guest, text.get_ref())
                .map_err(|problem| (Some(text.span()), Box::new(problem)))?;
            guest.disks.push(disk);
        }
        for text in table.vif {
            let vif = self
                .vif(&guest, text.get_ref())
                .map_err(|problem| (Some(text.span()), Box::new(problem)))?;
            guest.vifs.push(vif);
        }
        self.config.guests.push(guest);
        Ok(())
    }

    fn network(&mut self, value: Spanned<DeValue<'_>>) -> Result<(), Fault> {
        if let DeValue::Table(table) = value.get_ref() {
            check_keys(table, NETWORK_KEYS, |_| None)?;
        }
        let table: NetworkTable = deserialize(value)?;
        let fault = |span: Range<usize>, problem| Err((Some(span), Box::new(problem)));
        let name = table.name.get_ref().clone();
        if name.is_empty() || self.config.networks.iter().any(|other| other.name == name) {
            return fault(table.name.span(), Problem::NetworkName(name));
        }
        let kind = table.r#type.get_ref().as_str();
        let strange = match kind {
            "bridged" => table.subnet.as_ref().map(|text| (text, "subnet")),
            "nat" => table.bridge.as_ref().map(|text| (text, "bridge")),
            _ => {
                let subnet = table.subnet.as_ref().map(|text| (text, "subnet"));
                subnet.or(table.bridge.as_ref().map(|text| (text, "bridge")))
            }
        };
        if let Some((text, key)) = strange {
            let kind = kind.to_owned();
            return fault(text.span(), Problem::NetworkKey { kind, key });
        }
        let kind = match kind {
            "isolated" => NetworkKind::Isolated,
            "bridged" => NetworkKind::Bridged {
                bridge: table.bridge.map(Spanned::into_inner),
                namespace: None,
            },
            "null" => NetworkKind::Null,
            "nat" => NetworkKind::Nat(match table.subnet {
                None => Subnet::DEFAULT,
                Some(text) => match text.get_ref().parse() {
                    Ok(subnet) => subnet,
                    Err(error) => return fault(text.span(), Problem::Subnet(error)),
                },
            }),
            other => {
                let other = other.to_owned();
                return fault(table.r#type.span(), Problem::NetworkType(other));
            }
        };
        self.config.networks.push(NetworkConfig { name, kind });
        Ok(())
    }

    /// A vif, with the number and the address that it has from now on.
    fn vif(&self, guest: &GuestConfig, text: &str) -> Result<VifConfig, Problem> {
        let mut vif: VifConfig = text.parse().map_err(|error| Problem::Vif {
            guest: guest.name.clone(),
            text: text.into(),
            error,
        })?;
        let has = |devid| guest.vifs.iter().any(|other| other.devid == Some(devid));
        let devid = match vif.devid {
            Some(devid) if has(devid) => {
                return Err(Problem::DuplicateDevid {
                    guest: guest.name.clone(),
                    devid,
                });
            }
            Some(devid) => devid,
            None => (0..).find(|devid| !has(*devid)).unwrap_or(0),
        };
        vif.devid = Some(devid);
        let guests = self.config.guests.iter().chain([guest]);
        let vifs: Vec<&VifConfig> = guests.flat_map(|guest| &guest.vifs).collect();
        let taken = |mac| vifs.iter().any(|other| other.mac == Some(mac));
        let mac = match vif.mac {
            Some(mac) if taken(mac) => {
                return Err(Problem::DuplicateMac {
                    guest: guest.name.clone(),
                    mac,
                });
            }
            Some(mac) => mac,
            None => {
                let made_up = |attempt| VifConfig::made_up_mac(&guest.name, devid, attempt);
                let mac = (0..).map(made_up).find(|mac| !taken(*mac));
                mac.unwrap_or_default()
            }
        };
        vif.mac = Some(mac);
        Ok(vif)
    }

    fn disk(&mut self, guest: &GuestConfig, text: &str) -> Result<DiskConfig, Problem> {
        let fault = |error| Problem::Disk {
            guest: guest.name.clone(),
            text: text.into(),
            error,
        };
        let mut disk: DiskConfig = text.parse().map_err(fault)?;
        if guest.disks.iter().any(|other| other.vdev == disk.vdev) {
            return Err(Problem::DuplicateVdev {
                guest: guest.name.clone(),
                vdev: disk.vdev,
            });
        }
        let spec = disk.target.parse::<Spec>();
        let spec = spec.map(|spec| spec.below(self.folder));
        if let Ok(spec) = &spec
            && let Some(path) = spec.path()
        {
            // From a folder whose name is not text, the image will not be found, by that name.
            disk.target = spec.to_string();
            let user = format!("guest {} ({})", guest.name, disk.vdev);
            let both = self
                .uses
                .entry(Identity::of(path.into()))
                .or_insert_with(|| (user.clone(), disk.access));
            let written = [both.1, disk.access].contains(&DiskAccess::ReadWrite);
            if both.0 != user && written {
                return Err(Problem::SharedTarget {
                    target: disk.target,
                    first: both.0.clone(),
                    second: user,
                });
            }
        }
        Ok(disk)
    }
}

/// What makes two paths the same image.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Inode {
        device: u64,
        inode: u64,
    },
    /// There is nothing there yet.
    Path(PathBuf),
}

impl Identity {
    fn of(path: PathBuf) -> Self {
        match fs::metadata(&path) {
            Ok(found) => Identity::Inode {
                device: found.dev(),
                inode: found.ino(),
            },
            Err(_) => Identity::Path(path),
        }
    }
}

/// Refuses the first key that is not `known`; `misplaced` says where it should be.
fn check_keys(
    table: &DeTable<'_>,
    known: &'static [&'static str],
    misplaced: impl Fn(&str) -> Option<&'static str>,
) -> Result<(), Fault> {
    let unknown = table
        .keys()
        .filter(|key| !known.contains(&key.get_ref().as_ref()))
        .min_by_key(|key| key.span().start);
    let Some(found) = unknown else {
        return Ok(());
    };
    let key = found.get_ref().to_string();
    let problem = match misplaced(&key) {
        Some(place) => Problem::Misplaced { key, place },
        None => Problem::UnknownKey {
            hint: Hint::new(&key, known),
            key,
        },
    };
    Err((Some(found.span()), Box::new(problem)))
}

fn deserialize<T: for<'de> Deserialize<'de>>(value: Spanned<DeValue<'_>>) -> Result<T, Fault> {
    let span = value.span();
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| {
        let (within, problem) = toml_fault(error);
        (Some(within.unwrap_or(span)), problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostConfig, ConfigError> {
        HostConfig::parse(text, "/etc/parapet/host.toml")
    }

    #[test]
    fn one_guest_may_stand_at_the_top_as_in_an_xl_cfg() {
        let config = parse(
            r#"
            name = "a"
            memory = 128
            vcpus = 2
            disk = [ 'x.img,raw,xvda,rw', "vdev=xvdb, access=ro, target=/y.img", 'null:1G,,xvdc' ]
            kernel = "verify"
            cmdline = "seed=7"
            "#,
        )
        .unwrap();
        assert_eq!(config.pcpus, None);
        let [guest] = &config.guests[..] else {
            panic!("{config:?}")
        };
        assert_eq!(
            (guest.name.as_str(), guest.memory, guest.vcpus),
            ("a", 128 << 20, 2)
        );
        assert_eq!(
            (guest.kernel.as_deref(), guest.cmdline.as_str()),
            (Some("verify"), "seed=7")
        );
        let targets: Vec<&str> = guest
            .disks
            .iter()
            .map(|disk| disk.target.as_str())
            .collect();
        assert_eq!(targets, ["/etc/parapet/x.img", "/y.img", "null:1G"]);
    }

    #[test]
    fn several_guests_are_tables_below_the_host() {
        let config = parse("pcpus = 2\n[[guest]]\nname = 'a'\n[[guest]]\nname = 'b'\n").unwrap();
        let expected = HostConfig {
            pcpus: Some(2),
            networks: Vec::new(),
            guests: vec![GuestConfig::new("a"), GuestConfig::new("b")],
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn networks_are_tables_and_vifs_have_a_number_and_an_address() {
        let config = parse(
            r#"
            [[network]]
            name = "lan"
            type = "nat"
            subnet = "10.3.0.0/16"
            [[network]]
            name = "out"
            type = "bridged"
            bridge = "xenbr0"
            [[guest]]
            name = "a"
            vif = ["bridge=lan", "devid=0, bridge=out, mac=00:16:3e:00:00:01"]
            "#,
        );
        let message = config.unwrap_err().to_string();
        assert!(message.contains("devid 0"), "{message}");
        let config = parse(
            "name = 'a'\nvif = ['devid=1', '', 'bridge=x']\n[[network]]\nname = 'x'\ntype = 'isolated'",
        )
        .unwrap();
        let vifs = &config.guests[0].vifs;
        let numbers: Vec<_> = vifs.iter().map(|vif| vif.devid).collect();
        assert_eq!(numbers, [Some(1), Some(0), Some(2)]);
        assert!(vifs.iter().all(|vif| vif.mac.is_some()));
        assert_eq!(config.networks[0].kind, NetworkKind::Isolated);
    }

    #[test]
    fn read_only_disks_may_share_an_image() {
        let text = "name = 'a'\ndisk = ['/x,,xvda,r', '/x,,xvdb,r']";
        assert_eq!(parse(text).unwrap().guests[0].disks.len(), 2);
    }

    #[test]
    fn each_fault_is_one_line_that_names_the_line_and_the_thing() {
        for (text, fault) in [
            (
                "name = 'a'\nmemroy = 1",
                "2: unknown key `memroy`, did you mean `memory`?",
            ),
            (
                "name = 'a'\nsound = []",
                "2: unknown key `sound`, there are name, memory",
            ),
            (
                "[[guest]]\nname = 'a'\ndisks = []",
                "3: unknown key `disks`, did you mean `disk`?",
            ),
            (
                "memory = 5\n[[guest]]\nname = 'a'",
                "1: `memory` concerns one guest",
            ),
            (
                "[[guest]]\nname = 'a'\npcpus = 2",
                "3: `pcpus` concerns the host",
            ),
            ("[guest]\nname = 'a'", "[[guest]]"),
            ("", "no guest is described"),
            ("pcpus = 2", "no guest is described"),
            ("\nmemory = 1", "2: the guest has no name"),
            ("[[guest]]\nmemory = 1", "1: the guest has no name"),
            ("name = ''", r#"1: "" is not a name"#),
            (
                "[[guest]]\nname = 'a'\n[[guest]]\nname = 'a'",
                "4: there are two guests",
            ),
            ("name = 'a'\nmemory = 'much'", "2: invalid type: string"),
            ("name = 'a'\nmemory = -1", "2: "),
            ("name = 'a'\nmemory = 9223372036854775807", "2: guest a: "),
            ("name = 'a\n", "1: "),
            ("name = 'a'\nname = 'b'", "2: duplicate key"),
            ("name = 'a'\ndisk = 'x,,xvda'", "2: invalid type: string"),
            (
                "name = 'a'\ndisk = [\n '/x,,xvda',\n '/y,,vdb']",
                r#"4: guest a: disk "/y,,vdb": "#,
            ),
            (
                "name = 'a'\ndisk = ['/x,,xvda', '/y,,51712']",
                "2: guest a has two disks with the vdev xvda",
            ),
            (
                "[[guest]]\nname = 'a'\ndisk = ['/x,,xvda']\n[[guest]]\nname = 'b'\ndisk = ['/x,,xvda,r']",
                "6: /x is used by guest a (xvda) and by guest b (xvda)",
            ),
            (
                "name = 'a'\ndisk = ['/x,,xvda,r', '/x,,xvdb,w']",
                "2: /x is used by guest a (xvda)",
            ),
            (
                "name = 'a'\nvif = ['brige=x']",
                "2: guest a: vif \"brige=x\": unknown",
            ),
            (
                "name = 'a'\nvif = ['devid=1', 'devid=1']",
                "2: guest a has two vifs with the devid 1",
            ),
            (
                "[[guest]]\nname = 'a'\nvif = ['mac=00:16:3e:00:00:01']\n[[guest]]\nname = 'b'\nvif = ['mac=00:16:3e:00:00:01']",
                "6: two vifs have the address 00:16:3e:00:00:01",
            ),
            (
                "name = 'a'\n[[network]]\nname = 'x'\ntype = 'lan'",
                "4: a network's `type`",
            ),
            (
                "name = 'a'\n[[network]]\nname = 'x'\ntype = 'nat'\nsubnet = '10.0.0.1/24'",
                "5: \"10.0.0.1/24\" is no subnet",
            ),
            (
                "name = 'a'\n[[network]]\nname = 'x'\ntype = 'isolated'\nbridge = 'y'",
                "5: a network of type isolated has no `bridge`",
            ),
            (
                "name = 'a'\n[[network]]\nname = 'x'\ntype = 'nat'\n[[network]]\nname = 'x'\ntype = 'nat'",
                "6: \"x\" is another network's name",
            ),
            (
                "name = 'a'\n[[network]]\ntype = 'nat'",
                "2: missing field `name`",
            ),
            ("name = 'a'\n[network]\nname = 'x'", "[[network]]"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(fault), "{text}:\n{message}");
            assert!(message.starts_with("/etc/parapet/host.toml:"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }

    #[test]
    fn the_same_image_by_another_path_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x"), [0; 512]).unwrap();
        fs::hard_link(folder.path().join("x"), folder.path().join("y")).unwrap();
        std::os::unix::fs::symlink("x", folder.path().join("z")).unwrap();
        for other in ["y", "z", "./x"] {
            let text = format!("name = 'a'\ndisk = ['x,,xvda', '{other},,xvdb']");
            let error = HostConfig::parse(&text, folder.path().join("host.toml")).unwrap_err();
            assert!(
                matches!(*error.problem, Problem::SharedTarget { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let message = HostConfig::load("/nowhere/host.toml")
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("/nowhere/host.toml: cannot read"),
            "{message}"
        );
    }
}
