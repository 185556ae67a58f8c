//! What a host and its guests are made of: plain data, in xl's words.
//!
//! One guest may stand at the top of a file, as in an `xl.cfg`:
//!
//! ```toml
//! name = "verifier"
//! memory = 64                  # MiB
//! vcpus = 1
//! disk = ["format=raw, vdev=xvda, access=rw, target=disk.img"]
//! kernel = "verify"            # a built-in guest program, see `programs`
//! cmdline = "seed=7"
//! ```
//!
//! and several as tables, below what concerns the host:
//!
//! ```toml
//! pcpus = 2
//!
//! [[guest]]
//! name = "reader"
//! disk = ["vdev=xvda, access=ro, target=/srv/a.img"]
//! kernel = "sum"
//!
//! [[guest]]
//! name = "writer"
//! disk = ["vdev=xvda, target=memory:64M"]
//! kernel = "verify"
//! ```
//!
//! | key | meaning | if left out |
//! |---|---|---|
//! | `pcpus` | physical CPUs of the host: threads that run vCPUs | one a core |
//! | `name` | the guest's name, its own on this host | an error |
//! | `memory` | its memory in MiB | 64 |
//! | `vcpus` | its virtual CPUs | 1 |
//! | `disk` | its disks, see [`DiskConfig`] | none |
//! | `vif` | its network interfaces, see [`VifConfig`] | none |
//! | `kernel` | the built-in program that it runs | decided by who starts it |
//! | `cmdline` | the program's arguments | none |
//!
//! The networks that vifs are on are tables, too, as many as there are; a vif names its own as its
//! `bridge`. A bridge that is no network's name is one of Linux'. A vif that names none is on the
//! first network, and where there are no networks at all, on one that leads nowhere else.
//!
//! ```toml
//! [[network]]
//! name = "lan"
//! type = "nat"                 # or "isolated", or "bridged"
//! subnet = "192.168.77.0/24"   # of a "nat", whose addresses the guests get by DHCP
//! # bridge = "xenbr0"          # of a "bridged": Linux' bridge
//!
//! [[guest]]
//! name = "web"
//! vif = ["bridge=lan"]
//! ```
//!
//! A target that is a relative path is looked for from the folder of the file. Nothing else is
//! accepted: a key that is not known is an error that names the line and the nearest known key.

mod disk;
mod file;
mod nearest;
mod network;
mod vif;

pub use disk::{DeviceType, DiskAccess, DiskConfig, DiskError, DiskFormat};
pub use file::{ConfigError, Problem};
pub use nearest::Hint;
pub use network::{NetworkConfig, NetworkKind, NotASubnet, Subnet};
pub use vif::{VifConfig, VifError, VifRate};

/// A host and the guests on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostConfig {
    /// Physical CPUs; one a core of the machine if none is said.
    pub pcpus: Option<usize>,
    /// The networks, each with a name of its own.
    pub networks: Vec<NetworkConfig>,
    /// The guests, each with a name of its own.
    pub guests: Vec<GuestConfig>,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// How many virtual CPUs it has.
    pub vcpus: usize,
    /// Its disks, each with a vdev of its own.
    pub disks: Vec<DiskConfig>,
    /// Its network interfaces, each with a number and an Ethernet address of its own.
    pub vifs: Vec<VifConfig>,
    /// The built-in program that it runs, for those that do not run a program of their own.
    pub kernel: Option<String>,
    /// The program's arguments.
    pub cmdline: String,
}

impl GuestConfig {
    /// A guest's memory in bytes if nothing is said: what a program needs that keeps a few
    /// megabytes of its disk under way.
    pub const MEMORY: u64 = 64 << 20;

    /// A guest with that name, all defaults and no disk.
    pub fn new(name: impl Into<String>) -> Self {
        GuestConfig {
            name: name.into(),
            memory: Self::MEMORY,
            vcpus: 1,
            disks: Vec::new(),
            vifs: Vec::new(),
            kernel: None,
            cmdline: String::new(),
        }
    }
}
