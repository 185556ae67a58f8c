//! A daemon that follows another, and one that is followed.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use parapet_xen_sys::io::xs_wire::RingError;

use super::{Daemon, Domains, Handle};
use crate::migration::{End, Global, Unwritable};
use crate::server::{Due, Form, Restored, Server};
use crate::store::ClientId;
use crate::transport::{Legacy, Lost, Transport};

/// How another program takes the place of this one: what a live update needs of the host.
pub trait Successor: Send + Unpin + 'static {
    /// Whether a program could.
    ///
    /// # Errors
    /// Why not, in C xenstored's words: they are the answer to who asked.
    fn look_at(&mut self, program: &[u8]) -> Result<(), &'static str>;

    /// Calls `call` after so long.
    fn call_after(&mut self, delay: Duration, call: Box<dyn FnOnce() + Send>);

    /// Becomes the program. This comes back only if that failed, and says why: then everything is
    /// as it was before.
    fn succeed(&mut self, due: &Due, estate: &Estate<'_>) -> String;
}

/// What is there for a successor.
pub struct Estate<'a> {
    server: &'a Server,
    legacies: Vec<(ClientId, Legacy)>,
}

impl Estate<'_> {
    /// The state, as a stream in the machine's byte order; in it whoever asked for the update is
    /// told OK.
    ///
    /// # Errors
    /// See [`Unwritable`].
    pub fn stream(&self, form: Form, global: Global) -> Result<Vec<u8>, Unwritable> {
        self.server.dump(form, global, |client| {
            let place = self.legacies.binary_search_by_key(&client, |(it, _)| *it);
            let (_, legacy) = self.legacies.get(place.ok()?)?;
            Some(*legacy)
        })
    }

    /// What is left of the transports.
    pub fn legacies(&self) -> impl Iterator<Item = Legacy> {
        self.legacies.iter().map(|(_, legacy)| *legacy)
    }
}

impl Daemon {
    /// A xenstored that goes on where another stopped: with its domains, as far as they can be
    /// taken over, and its sockets, as far as `socket` finds them.
    pub fn resume(
        restored: Restored,
        domains: impl Domains,
        mut socket: impl FnMut(i32) -> Option<Box<dyn Transport>>,
    ) -> (Self, Handle) {
        let Restored {
            server,
            connections,
            ..
        } = restored;
        let (mut daemon, handle) = Daemon::of_server(server, domains);
        for (client, end) in connections {
            let (mut transport, fault) = match end {
                End::Socket(descriptor) => match socket(descriptor) {
                    Some(transport) => (transport, None),
                    None => {
                        daemon.server.fail(client, RingError::Comm);
                        continue;
                    }
                },
                End::Ring { domid, port, .. } => {
                    match daemon.hub.domains.take_over(domid, port) {
                        Ok(transport) => {
                            let blamed = RingError::try_from(transport.blamed());
                            let fault = blamed.unwrap_or(RingError::Comm);
                            (transport, Some(fault).filter(|it| *it != RingError::None))
                        }
                        // It is kept for what is still to be said when the domain ends.
                        Err(_) => {
                            let lost: Box<dyn Transport> = Box::new(Lost(Legacy::Port(port)));
                            (lost, Some(RingError::Comm))
                        }
                    }
                }
            };
            transport.advertise(daemon.server.features(client));
            daemon.hub.add(client, transport);
            if let Some(fault) = fault {
                daemon.server.fail(client, fault);
            }
        }
        (daemon, handle)
    }

    /// With a way to be followed: CONTROL live-update.
    pub fn with_successor(mut self, successor: impl Successor) -> Self {
        self.hub.successor = Some(Box::new(successor));
        self
    }

    /// Makes the live update that is due, if one is. There is no coming back unless it fails.
    pub(super) fn update(&mut self) {
        let Some(_) = self.server.due_update() else {
            // It may have been refused just now.
            return self.rouse_stirred();
        };
        // Whoever was let in already is to be handed over, too; and what was asked before the
        // moment is answered before it.
        while let Some(command) = self.commands.take() {
            self.obey(command);
        }
        let clients: Vec<_> = self.hub.connections.keys().copied().collect();
        for client in clients {
            while self.server.serve(client, &mut self.hub) {}
            self.hub.rouse(client);
        }
        let Some(due) = self.server.due_update() else {
            return self.rouse_stirred();
        };
        let Some(mut successor) = self.hub.successor.take() else {
            return;
        };
        // One that is cut off already is not left: the successor would never close it.
        let legacies = self.hub.connections.iter();
        let legacies = legacies.filter(|(client, _)| self.server.is_connected(**client));
        let legacies = legacies
            .filter_map(|(client, connection)| Some((*client, connection.transport.legacy()?)));
        let estate = Estate {
            server: &self.server,
            legacies: legacies.collect(),
        };
        let failure = successor.succeed(&due, &estate);
        self.hub.successor = Some(successor);
        self.server.end_update(&failure);
        self.rouse_stirred();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use std::sync::Mutex;

    use parapet_xen_sys::{DomId, Errno, Port};

    use super::super::Command;
    use super::*;
    use crate::server::Life;
    use crate::store::Store;
    use crate::wire::Request;

    struct NoDomains;

    impl Domains for NoDomains {
        fn life(&self, _: DomId) -> Life {
            Life::Gone
        }

        fn connect(&mut self, _: DomId, _: Port) -> Result<Box<dyn Transport>, Errno> {
            Err(Errno::EINVAL)
        }
    }

    /// One that takes note of what it is left, and fails.
    struct Next(Arc<Mutex<Vec<Legacy>>>);

    impl Successor for Next {
        fn look_at(&mut self, _: &[u8]) -> Result<(), &'static str> {
            Ok(())
        }

        fn call_after(&mut self, _: Duration, _: Box<dyn FnOnce() + Send>) {}

        fn succeed(&mut self, _: &Due, estate: &Estate<'_>) -> String {
            *self.0.lock().unwrap() = estate.legacies().collect();
            "no".into()
        }
    }

    #[test]
    fn a_client_that_is_cut_off_is_not_left_to_the_next_program() {
        let left = Arc::new(Mutex::new(Vec::new()));
        let (daemon, _handle) = Daemon::of(Store::default(), NoDomains);
        let mut daemon = daemon.with_successor(Next(left.clone()));
        for number in [3, 4] {
            let transport = Lost(Legacy::Socket(number));
            daemon.obey(Command::Connect(Box::new(transport)));
        }
        let clients: Vec<_> = daemon.hub.connections.keys().copied().collect();
        let [admin, other] = clients[..] else {
            panic!("there are two");
        };
        for arguments in [&[&b"-f"[..], b"/new"][..], &[b"-s"]] {
            let command = Request::Control {
                command: b"live-update",
                arguments: arguments.into(),
            };
            let mut bytes = Vec::new();
            command.encode(1, 0, &mut bytes).unwrap();
            daemon.server.input(admin, &bytes);
            while daemon.server.serve(admin, &mut daemon.hub) {}
        }
        daemon.server.fail(other, RingError::Comm);
        daemon.update();
        assert_eq!(*left.lock().unwrap(), [Legacy::Socket(3)]);
    }
}
