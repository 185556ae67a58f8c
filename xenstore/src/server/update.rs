//! CONTROL live-update: another program takes this one's place, and nobody notices.
//!
//! ```text
//!   -f FILE      the program ─────┐ a session, of the connection that began it
//!   -c ARGUMENTS its arguments    │
//!   -s           start ───────────┼─▶ no new transactions ─▶ none is open ─▶ due: dump, exec
//!        -t SECONDS  for so long  │        (all else is served)     └─ or: time is up
//!        -F  then give them up    │                                      ├─ -F: due all the same
//!   -a           stop ────────────┘                                      └─ else: refused
//! ```
//!
//! A request that would open a transaction waits, where it is, if its client has none open: so the
//! moment without any comes, however many clients are busy. Commands and answers are those of C
//! xenstored (`tools/xenstored/lu.c`), whose answers are texts: "OK", or what is wrong.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use parapet_xen_sys::io::xs_wire::{MessageHeader, Operation};
use parapet_xen_sys::{DomId, Errno};
use zerocopy::FromBytes;

use super::requests::{Answer, text};
use super::state::Answered;
use super::{Peer, Server, World};
use crate::migration::Version;
use crate::store::ClientId;
use crate::wire;

/// A session.
pub(super) struct Update {
    by: ClientId,
    program: Vec<u8>,
    arguments: Option<Vec<u8>>,
    /// Since it was told to start.
    started: Option<Started>,
    /// Tells sessions apart.
    number: u64,
}

struct Started {
    /// The request that waits for an answer, once it is known.
    request: Option<Answered>,
    force: bool,
    seconds: u32,
    version: Option<Version>,
    /// Time is up.
    expired: bool,
}

/// An update whose moment has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The file of the program.
    pub program: Vec<u8>,
    /// Its arguments with blanks between them; none for those that this program has.
    pub arguments: Option<Vec<u8>>,
    /// The version of the stream that was asked for, if any was.
    pub version: Option<Version>,
}

const OK: &str = "OK";

impl Server {
    /// CONTROL live-update.
    ///
    /// # Errors
    /// `EINVAL` for arguments that C xenstored does not take either.
    pub(super) fn live_update(
        &mut self,
        client: ClientId,
        arguments: &[&[u8]],
        world: &mut impl World,
    ) -> Result<Answer, Errno> {
        let own = self.update.as_mut().filter(|update| update.by == client);
        let said = match (arguments, own) {
            ([b"-a"], _) => match self.update {
                Some(_) => {
                    self.end_update("Cancellation was requested");
                    OK
                }
                None => "No live-update session active.",
            },
            ([b"-f", program], _) => match (world.look_at(program), &self.update) {
                (Err(reason), _) => reason,
                (Ok(()), Some(_)) => "live-update session already active.",
                (Ok(()), None) => {
                    self.updates += 1;
                    self.update = Some(Update {
                        by: client,
                        program: program.to_vec(),
                        arguments: None,
                        started: None,
                        number: self.updates,
                    });
                    OK
                }
            },
            ([b"-c", _] | [b"-s", ..], None) => "Not in live-update session.",
            ([b"-c", line], Some(update)) => {
                update.arguments = Some(line.to_vec());
                OK
            }
            ([b"-s", options @ ..], Some(update)) => match started(options)? {
                Ok(_) if update.started.is_some() => "live-update session already active.",
                Ok(started) => {
                    let wait = Duration::from_secs(started.seconds.into());
                    world.expire_update(wait, update.number);
                    update.started = Some(started);
                    return Ok(Answer::Later);
                }
                Err(reason) => reason,
            },
            _ => return Err(Errno::EINVAL),
        };
        Ok(text(said))
    }

    /// The request that is answered later is this one.
    pub(super) fn await_update(&mut self, client: ClientId, req_id: u32, tx_id: u32) {
        let started = self.update.as_mut().and_then(|it| it.started.as_mut());
        if let Some(started) = started {
            started.request = Some(Answered {
                client,
                req_id,
                tx_id,
            });
        }
    }

    /// Whether the client's next request is one that waits for an update to be over.
    pub(super) fn waits_for_update(&self, client: ClientId) -> bool {
        if self.update.as_ref().is_none_or(|it| it.started.is_none()) {
            return false;
        }
        let Some(connection) = self.connections.get(&client) else {
            return false;
        };
        let next = MessageHeader::read_from_prefix(connection.input.rest());
        let begins = next.is_ok_and(|(next, _)| {
            next.operation == u32::from(Operation::TransactionStart) && next.tx_id == 0
        });
        begins && self.store.transactions(client) == 0
    }

    /// The update's time is up: what was asked for by [`World::expire_update`].
    pub fn expire_update(&mut self, number: u64) {
        let update = self.update.as_mut().filter(|it| it.number == number);
        if let Some(started) = update.and_then(|it| it.started.as_mut()) {
            started.expired = true;
        }
    }

    /// The update that is to be made now, if there is one. One that waited in vain is refused.
    pub fn due_update(&mut self) -> Option<Due> {
        let update = self.update.as_ref()?;
        let started = update.started.as_ref()?;
        let open = self.connections.iter();
        let open = open.filter(|(client, _)| self.store.transactions(**client) > 0);
        let open: Vec<_> = open.map(|(_, connection)| connection.peer).collect();
        if open.is_empty() || started.expired && started.force {
            return Some(Due {
                program: update.program.clone(),
                arguments: update.arguments.clone(),
                version: started.version,
            });
        }
        if started.expired {
            let mut reason = String::from("Domains with long running transactions:");
            for peer in open {
                let domid = match peer {
                    Peer::Domain(domid) => domid,
                    Peer::Local => DomId::ZERO,
                };
                reason += &format!("\nDomain {domid}: {} s", started.seconds);
            }
            self.end_update(&reason);
        }
        None
    }

    /// The request that an update answers.
    pub(super) fn update_request(&self) -> Option<&Answered> {
        self.update.as_ref()?.started.as_ref()?.request.as_ref()
    }

    /// The session is over, and nothing has changed. Who asked for the update is told why.
    pub fn end_update(&mut self, reason: &str) {
        let Some(update) = self.update.take() else {
            return;
        };
        let Some(Started {
            request: Some(request),
            ..
        }) = update.started
        else {
            return;
        };
        log::info!("no live update: {reason}");
        let payload = [reason.as_bytes(), b"\0"].concat();
        let Answered {
            client,
            req_id,
            tx_id,
        } = request;
        self.answer(client, Operation::Control, req_id, tx_id, &payload);
        // Some of them have waited.
        self.stirred.extend(self.connections.keys());
    }

    /// The client is gone, and with it its session.
    pub(super) fn leave_update(&mut self, client: ClientId) {
        if self.update.as_ref().is_some_and(|it| it.by == client) {
            self.end_update("its connection is gone");
        }
    }
}

/// What `-s` is told besides; or what is wrong with it.
///
/// # Errors
/// `EINVAL`.
fn started(mut options: &[&[u8]]) -> Result<Result<Started, &'static str>, Errno> {
    let mut started = Started {
        request: None,
        force: false,
        seconds: 0,
        version: None,
        expired: false,
    };
    while let [option, rest @ ..] = mem::take(&mut options) {
        options = match (*option, rest) {
            (b"-F", rest) => {
                started.force = true;
                rest
            }
            (b"-t", [seconds, rest @ ..]) => {
                started.seconds = u32::try_from(wire::number(seconds)).unwrap_or(u32::MAX);
                rest
            }
            (b"-v", [number, rest @ ..]) => {
                let number = u32::try_from(wire::number(number)).unwrap_or(0);
                let Ok(version) = Version::try_from(number) else {
                    return Ok(Err("Migration stream version not supported."));
                };
                started.version = Some(version);
                rest
            }
            _ => return Err(Errno::EINVAL),
        };
    }
    started.expired = started.seconds == 0;
    Ok(Ok(started))
}
