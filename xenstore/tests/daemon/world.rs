//! A machine to run xenstored on.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use parapet_hypervisor::block_on;
use parapet_hypervisor::loopback::{Domain, DomainConfig, Hypervisor};
use parapet_hypervisor::seam::prelude::*;
use parapet_xenstore::Permission;
use parapet_xenstore::client;
use parapet_xenstore::client::blocking::Client;
use parapet_xenstore::server::daemon::{Daemon, Handle};
use parapet_xenstore::server::socket;
use parapet_xenstore::store::Store;
use tempfile::TempDir;

/// A machine whose domain 0 runs xenstored.
pub(crate) struct Host {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) domain_0: Domain,
    pub(crate) xenstored: Handle,
    dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let hypervisor = Hypervisor::new(Default::default()).unwrap();
        let domain_0 = hypervisor.create(DomainConfig::default()).unwrap();
        let (daemon, xenstored) =
            Daemon::new(domain_0.clone(), Store::default(), |domid| domid.0 < 999);
        domain_0.spawn(daemon.run());
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let accept = socket::accept(domain_0.clone(), listener, xenstored.clone()).unwrap();
        domain_0.spawn(accept);
        Host {
            hypervisor,
            domain_0,
            xenstored,
            dir,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.socket()).unwrap()
    }

    /// A guest with its own home, and its connection.
    pub(crate) fn guest(&self) -> (Domain, client::Client) {
        let guest = self.hypervisor.create(DomainConfig::default()).unwrap();
        let interface = guest.xenstore().unwrap();
        let port = interface.channel.port();
        let client = client::Client::over_ring(&guest, interface.page, interface.channel).unwrap();
        let home = format!("/local/domain/{}", guest.domid());
        let mut local = self.connect();
        local.mkdir(&home).unwrap();
        local
            .set_permissions(&home, &[Permission::none(guest.domid())])
            .unwrap();
        block_on(self.xenstored.introduce(guest.domid(), port)).unwrap();
        (guest, client)
    }
}
