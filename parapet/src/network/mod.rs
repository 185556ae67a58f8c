//! The networks of a host, ready made: isolated, bridged, NAT.
//!
//! [`Networks`] is all of them together: it plugs a vif in where its `bridge` says.

mod nat;

use std::collections::BTreeMap;
use std::io;

use parapet_hypervisor::seam::Backend;
use parapet_netback::port::null::Null;
use parapet_netback::port::switch::{Stats, Switch};
use parapet_netback::port::tap::TapNetwork;
use parapet_netback::port::{Network, Socket, Vif};

pub use nat::Nat;

use crate::config::{NetworkConfig, NetworkKind};

/// Why a network could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The host does not give what it takes.
    #[error("cannot {what}: {error}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// Why it could not be.
        error: io::Error,
    },
    /// The host's commands do not do their part.
    #[error("the host does not give what a NAT network takes (ip, nft, dnsmasq, as root): {0}")]
    Refused(String),
}

/// What vifs are on that name no network, where there is none.
const DEFAULT: &str = "default";

/// The networks of a host. Dropping it undoes what was done to the host for them.
pub struct Networks<P: Backend> {
    named: BTreeMap<String, Named<P>>,
    default: String,
    host: TapNetwork<P>,
}

enum Named<P: Backend> {
    Null(Null),
    Bridged(TapNetwork<P>),
    Switched {
        switch: Switch<P>,
        _nat: Option<Nat<P>>,
    },
}

impl<P: Backend> Networks<P> {
    /// Makes the networks at a place, which is the host's.
    ///
    /// # Errors
    /// The name of the network that could not be had, and why.
    pub fn start(place: &P, configs: &[NetworkConfig]) -> Result<Self, (String, NetworkError)> {
        let mut networks = Networks {
            named: BTreeMap::new(),
            default: DEFAULT.into(),
            host: TapNetwork::new(place.clone()),
        };
        for config in configs {
            let network = Named::start(place, &config.kind);
            let network = network.map_err(|error| (config.name.clone(), error))?;
            networks.named.insert(config.name.clone(), network);
        }
        match configs.first() {
            Some(first) => networks.default = first.name.clone(),
            None => {
                let isolated = Named::Switched {
                    switch: Switch::new(place.clone()),
                    _nat: None,
                };
                networks.named.insert(DEFAULT.into(), isolated);
            }
        }
        Ok(networks)
    }

    /// What the switch of a network has done, if it has one.
    pub fn switch(&self, name: &str) -> Option<&Switch<P>> {
        match self.named.get(name)? {
            Named::Switched { switch, .. } => Some(switch),
            Named::Bridged(_) | Named::Null(_) => None,
        }
    }

    /// What each switch has done, by the network's name.
    pub fn switches(&self) -> impl Iterator<Item = (&str, &Stats)> {
        self.named
            .iter()
            .filter_map(|(name, network)| match network {
                Named::Switched { switch, .. } => Some((name.as_str(), switch.stats())),
                Named::Bridged(_) | Named::Null(_) => None,
            })
    }
}

impl<P: Backend> Named<P> {
    fn start(place: &P, kind: &NetworkKind) -> Result<Self, NetworkError> {
        let switch = || Switch::new(place.clone());
        Ok(match kind {
            NetworkKind::Null => Named::Null(Null::default()),
            NetworkKind::Bridged { bridge, namespace } => {
                let mut network = TapNetwork::new(place.clone());
                if let Some(bridge) = bridge {
                    network = network.bridge(bridge);
                }
                if let Some(namespace) = namespace {
                    network = network.namespace(namespace);
                }
                Named::Bridged(network)
            }
            NetworkKind::Isolated => Named::Switched {
                switch: switch(),
                _nat: None,
            },
            NetworkKind::Nat(subnet) => {
                let switch = switch();
                let nat = Nat::start(place, &switch, *subnet)?;
                Named::Switched {
                    switch,
                    _nat: Some(nat),
                }
            }
        })
    }
}

impl<P: Backend> Networks<P> {
    /// Where a vif is to be plugged in, and what is to be known of it there.
    fn of<'a>(&'a self, vif: &Vif) -> (&'a dyn Network<P>, Vif) {
        let bridge = vif.bridge.as_deref().unwrap_or(&self.default);
        // A VLAN of a switch follows its name.
        let of_a_vlan = || self.named.get(bridge.rsplit_once('.')?.0);
        match self.named.get(bridge).or_else(of_a_vlan) {
            Some(Named::Switched { switch, .. }) => (switch, vif.clone()),
            Some(Named::Null(network)) => (network, vif.clone()),
            Some(Named::Bridged(network)) => {
                // The name is the network's, and not that of a bridge.
                let vif = Vif {
                    bridge: None,
                    ..vif.clone()
                };
                (network, vif)
            }
            None => (&self.host, vif.clone()),
        }
    }
}

impl<P: Backend> Network<P> for Networks<P> {
    fn plug(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        let (network, vif) = self.of(vif);
        network.plug(&vif)
    }

    fn plug_for_script(&self, vif: &Vif) -> io::Result<Box<dyn Socket<P>>> {
        let (network, vif) = self.of(vif);
        network.plug_for_script(&vif)
    }
}
