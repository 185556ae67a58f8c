//! Our xenstored, as the value that it is: bytes in, bytes out.

use std::collections::BTreeMap;

use parapet_xen_sys::io::xs_wire::ServerFeatures;
use parapet_xen_sys::{DomId, Errno, Port};
use parapet_xenstore::server::{Life, Server, World};
use parapet_xenstore::store::{ClientId, Store};

use crate::daemon::{Fate, Message, Who, Xenstored};

/// The machine's domains.
struct Machine {
    domains: BTreeMap<DomId, Life>,
    connected: BTreeMap<DomId, ClientId>,
}

impl World for Machine {
    fn life(&self, domid: DomId) -> Life {
        *self.domains.get(&domid).unwrap_or(&Life::Gone)
    }

    fn connect(
        &mut self,
        client: ClientId,
        domid: DomId,
        _: Port,
        _: ServerFeatures,
    ) -> Result<(), Errno> {
        if self.life(domid) == Life::Gone {
            return Err(Errno::EINVAL);
        }
        self.connected.insert(domid, client);
        Ok(())
    }

    fn restart(&mut self, _: ClientId) {}

    fn disconnect(&mut self, client: ClientId) {
        self.connected.retain(|_, connected| *connected != client);
    }
}

pub(crate) struct Ours {
    server: Server,
    machine: Machine,
    locals: Vec<ClientId>,
    received: BTreeMap<Who, Vec<u8>>,
}

impl Ours {
    pub(crate) fn start(locals: usize, guests: u16) -> Self {
        let mut server = Server::new(Store::default());
        let mut machine = Machine {
            domains: (0..=guests)
                .map(|domid| (DomId(domid), Life::Running))
                .collect(),
            connected: BTreeMap::new(),
        };
        server
            .introduce(DomId::ZERO, Port(1), &mut machine)
            .unwrap();
        Ours {
            locals: (0..locals).map(|_| server.connect_local()).collect(),
            server,
            machine,
            received: BTreeMap::new(),
        }
    }

    fn client(&self, who: Who) -> Option<ClientId> {
        match who {
            Who::Local(index) => self.locals.get(index).copied(),
            Who::Guest(domid) => self.machine.connected.get(&DomId(domid)).copied(),
        }
    }
}

impl Xenstored for Ours {
    fn send(&mut self, who: Who, bytes: &[u8]) {
        if let Some(client) = self.client(who) {
            self.server.input(client, bytes);
            while self.server.serve(client, &mut self.machine) {}
        }
    }

    fn receive(&mut self, who: Who) -> Option<Message> {
        let received = self.received.entry(who).or_default();
        if let Some(message) = Message::take(received) {
            return Some(message);
        }
        let client = self.client(who)?;
        let bytes = self.server.output(client).to_vec();
        self.server.sent(client, bytes.len());
        let received = self.received.entry(who).or_default();
        received.extend(bytes);
        let message = Message::take(received);
        let lost = self.server.fault(client).is_some() || !self.server.is_connected(client);
        assert!(message.is_some() || lost, "no answer to {who:?}");
        message
    }

    fn befall(&mut self, domid: u16, fate: Fate) {
        let domains = &mut self.machine.domains;
        let life = domains.entry(DomId(domid)).or_insert(Life::Gone);
        *life = match fate {
            Fate::Dead => Life::Gone,
            // One that lives is not born again.
            Fate::Born if *life != Life::Gone => return,
            Fate::Born => {
                *life = Life::Running;
                return;
            }
            Fate::ShutDown if *life == Life::Gone => return,
            Fate::ShutDown => Life::ShutDown,
        };
        self.server.look_around(&mut self.machine);
    }

    fn forget(&mut self, who: Who) {
        self.received.remove(&who);
    }
}
