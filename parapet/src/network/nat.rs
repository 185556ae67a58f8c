//! A network whose guests reach what the host reaches, by the host's own addresses.
//!
//! ```text
//!   vif ─┐                        ┌──────────── the host's stack ────────────┐
//!   vif ─┼─ switch ══ cable ══ TAP device          forwarding, nftables ──────── the world
//!   vif ─┘                        │ 192.168.77.1   masquerade                │
//!                                 │ dnsmasq: DHCP, DNS                       │
//!                                 └──────────────────────────────────────────┘
//! ```
//!
//! The host's part is kept by a shell script, a child of this process, which undoes it when this
//! process ends, however it does.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use parapet_hypervisor::host::Tap;
use parapet_hypervisor::seam::Backend;
use parapet_netback::port::cable::Cable;
use parapet_netback::port::switch::Switch;
use parapet_netback::port::tap::Device;
use tempfile::TempDir;

use super::NetworkError;
use crate::config::Subnet;

/// The network of one switch.
pub struct Nat<P: Backend> {
    device: String,
    keeper: Keeper,
    _cable: Cable<P>,
}

impl<P: Backend> Nat<P> {
    /// Connects a switch with the host, which has the first address of `subnet` there. It takes
    /// `ip`, `nft` and `dnsmasq`, and a right to use them.
    ///
    /// # Errors
    /// What is missing.
    pub fn start(place: &P, switch: &Switch<P>, subnet: Subnet) -> Result<Self, NetworkError> {
        let host = |what| move |error| NetworkError::Host { what, error };
        let tap = Tap::open("parapet%d").map_err(host("open a TAP device"))?;
        let device = tap.name();
        tap.set_up(true).map_err(host("switch the TAP device on"))?;
        let end = Device::new(place.clone(), tap).map_err(host("use the TAP device"))?;
        let uplink = switch.uplink(&device).map_err(host("make an uplink"))?;
        let cable = Cable::new(place, [uplink, Box::new(end)], 1).map_err(host("lay a cable"))?;
        Ok(Nat {
            keeper: Keeper::start(&device, subnet)?,
            device,
            _cable: cable,
        })
    }

    /// What the host's device is called.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The script's process, which lives as long as the network does.
    pub fn keeper(&self) -> u32 {
        self.keeper.child.id()
    }
}

/// The script.
struct Keeper {
    child: Child,
    _files: TempDir,
}

impl Keeper {
    fn start(device: &str, subnet: Subnet) -> Result<Self, NetworkError> {
        let host = |what| move |error| NetworkError::Host { what, error };
        let files = tempfile::Builder::new().prefix("parapet-nat-").tempdir();
        let files = files.map_err(host("make a folder"))?;
        let config = configuration(device, subnet, files.path());
        fs::write(files.path().join("dnsmasq.conf"), config)
            .map_err(host("write dnsmasq's configuration"))?;
        let child = Command::new("sh")
            .args(["-c", include_str!("nat.sh"), "parapet-nat"])
            .arg(device)
            .arg(format!("{}/{}", subnet.host(), subnet.prefix()))
            .arg(subnet.to_string())
            .arg(files.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut keeper = Keeper {
            child: child.map_err(host("start a shell"))?,
            _files: files,
        };
        let ready = keeper.wait().map_err(host("set up the host's part"))?;
        match ready {
            true => Ok(keeper),
            false => Err(NetworkError::Refused(keeper.complaint())),
        }
    }

    /// Waits until it is ready, or has given up.
    fn wait(&mut self) -> io::Result<bool> {
        let mut line = String::new();
        if let Some(out) = &mut self.child.stdout {
            BufReader::new(out).read_line(&mut line)?;
        }
        Ok(line == "ready\n")
    }

    /// What it said when it gave up, in one line.
    fn complaint(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(mut errors) = self.child.stderr.take() {
            // There is what there is.
            let _ = errors.read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            log::warn!("a NAT network may not have been undone: {error}");
        }
    }
}

/// What dnsmasq is to do: DHCP and DNS for the guests, and nothing for anybody else.
fn configuration(device: &str, subnet: Subnet, folder: &Path) -> String {
    let (first, last) = subnet.guests();
    let mask = subnet.mask();
    let folder = folder.display();
    format!(
        "interface={device}\n\
         except-interface=lo\n\
         bind-interfaces\n\
         dhcp-range={first},{last},{mask},12h\n\
         dhcp-authoritative\n\
         dhcp-leasefile={folder}/leases\n\
         pid-file={folder}/pid\n\
         no-hosts\n\
         bogus-priv\n\
         domain-needed\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_given_all_addresses_but_the_hosts() {
        let text = configuration("parapet0", Subnet::DEFAULT, Path::new("/tmp/x"));
        let range = "dhcp-range=192.168.77.2,192.168.77.254,255.255.255.0,12h";
        assert!(text.lines().any(|line| line == range), "{text}");
        assert!(text.lines().any(|line| line == "interface=parapet0"));
    }
}
