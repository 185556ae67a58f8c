//! What each request does.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::{fmt, mem};

use parapet_xen_sys::io::xs_wire::{Operation, PAYLOAD_MAX, ServerFeatures};
use parapet_xen_sys::{DomId, Errno};

use super::trace::Switch;
use super::{Life, Server, World};
use crate::store::{ClientId, Event, FEATURES, Limit, Path, Special};
use crate::wire::{self, Message, Request};
use crate::{Permission, TransactionId};

/// What goes back.
pub(super) enum Answer {
    Payload(Cow<'static, [u8]>),
    /// Done; and the watch's first event comes after the answer.
    Watching(Event),
    /// It is not known yet: [`Server::await_update`].
    Later,
}

const DONE: Answer = Answer::Payload(Cow::Borrowed(wire::OK));

pub(super) fn text(text: impl ToString) -> Answer {
    let mut payload = text.to_string().into_bytes();
    payload.push(0);
    Answer::Payload(payload.into())
}

/// Whether only the privileged may ask this.
fn is_privileged(operation: Operation, payload: &[u8]) -> bool {
    match operation {
        Operation::Control
        | Operation::Introduce
        | Operation::Release
        | Operation::IsDomainIntroduced
        | Operation::Resume
        | Operation::SetTarget
        | Operation::SetFeature
        | Operation::GetQuota
        | Operation::SetQuota => true,
        // Everybody may ask for what is done for itself.
        Operation::GetFeature => payload.contains(&0),
        _ => false,
    }
}

impl Server {
    /// Answers one message. What it makes known to others is queued before the answer, as C
    /// xenstored has it: once a client has its answer, the events are on their way.
    pub(super) fn handle(&mut self, client: ClientId, message: &Message, world: &mut impl World) {
        let &Message { req_id, tx_id, .. } = message;
        self.take_in(client);
        let result = self.request(client, message, world);
        self.deliver(Some(client));
        let error = result.as_ref().err().copied();
        self.counters.request(message.operation, error);
        self.trace_message(client, message, result.as_ref().err());
        match (result, Operation::try_from(message.operation)) {
            (Ok(Answer::Payload(payload)), Ok(operation)) => {
                self.answer(client, operation, req_id, tx_id, &payload);
            }
            (Ok(Answer::Watching(first)), Ok(operation)) => {
                self.answer(client, operation, req_id, tx_id, wire::OK);
                self.tell(&first, None);
            }
            (Ok(Answer::Later), _) => self.await_update(client, req_id, tx_id),
            (Err(error), _) => {
                let mut name = Vec::from(wire::error_name(error));
                name.push(0);
                self.answer(client, Operation::Error, req_id, tx_id, &name);
            }
            (Ok(_), Err(_)) => {}
        }
        self.settle(client);
        self.look_after_held();
    }

    fn trace_message(&mut self, client: ClientId, message: &Message, error: Option<&Errno>) {
        // What is over a quota is of interest also to who does not want to see every request.
        let switch = match error {
            Some(&(Errno::ENOSPC | Errno::E2BIG)) if !self.trace.wants(Switch::Messages) => {
                Switch::Quotas
            }
            _ => Switch::Messages,
        };
        if !self.trace.wants(switch) {
            return;
        }
        let Some(peer) = self.connections.get(&client).map(|it| it.peer) else {
            return;
        };
        let Message {
            operation, tx_id, ..
        } = message;
        let operation: &dyn fmt::Debug = match Operation::try_from(*operation) {
            Ok(known) => &{ known },
            Err(_) => operation,
        };
        let path = wire::strings(&message.payload).next().unwrap_or(&[]);
        let path = path.escape_ascii();
        let outcome = error.map_or("OK", |&error| wire::error_name(error));
        let line = format_args!("{client:?} {peer:?} {operation:?} tx {tx_id} {path}: {outcome}");
        self.trace.line(switch, line);
    }

    fn request(
        &mut self,
        client: ClientId,
        message: &Message,
        world: &mut impl World,
    ) -> Result<Answer, Errno> {
        let operation = Operation::try_from(message.operation).map_err(|_| Errno::ENOSYS)?;
        if matches!(operation, Operation::WatchEvent | Operation::Error) {
            return Err(Errno::ENOSYS);
        }
        if is_privileged(operation, &message.payload) && !self.store.caller(client)?.privileged {
            return Err(Errno::EACCES);
        }
        let tx = match operation {
            Operation::Watch | Operation::Unwatch => TransactionId::NONE,
            _ => TransactionId(message.tx_id),
        };
        if !self.store.has(client, tx) {
            return Err(Errno::ENOENT);
        }
        let request = Request::parse(operation, &message.payload)?;
        self.perform(client, tx, request, world)
    }

    fn perform(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        request: Request<'_>,
        world: &mut impl World,
    ) -> Result<Answer, Errno> {
        let store = &mut self.store;
        let mut node = |path: &[u8]| store.path(client, path, Special::Refused);
        match request {
            Request::Read(path) => {
                let path = node(path)?;
                let value = store.read(client, tx, &path)?.value();
                Ok(Answer::Payload(value.to_vec().into()))
            }
            Request::Directory(path) => {
                let path = node(path)?;
                let node = store.list(client, tx, &path)?;
                if node.list_len() > PAYLOAD_MAX {
                    return Err(Errno::E2BIG);
                }
                let names = node.names().flat_map(|name| name.bytes().chain([0]));
                Ok(Answer::Payload(names.collect()))
            }
            Request::DirectoryPart { path, offset } => {
                let path = node(path)?;
                let part = store.list_part(client, tx, &path, offset, PAYLOAD_MAX)?;
                Ok(Answer::Payload(part.into()))
            }
            Request::GetPerms(path) => {
                let path = store.path(client, path, Special::Allowed)?;
                let permissions = store.permissions(client, tx, &path)?;
                let entries = permissions.entries().map(|entry| format!("{entry}\0"));
                Ok(Answer::Payload(
                    entries.flat_map(|text| text.into_bytes()).collect(),
                ))
            }
            Request::Write { path, value } => {
                let path = node(path)?;
                store.write(client, tx, &path, value).map(|()| DONE)
            }
            Request::Mkdir(path) => {
                let path = node(path)?;
                store.mkdir(client, tx, &path).map(|()| DONE)
            }
            Request::Rm(path) => {
                let path = node(path)?;
                store.remove(client, tx, &path).map(|()| DONE)
            }
            Request::SetPerms { path, permissions } => {
                let path = store.path(client, path, Special::Allowed)?;
                self.set_permissions(client, tx, &path, permissions, world)
            }
            Request::Watch { path, token, depth } => {
                let can = || self.features(client).contains(ServerFeatures::WATCHDEPTH);
                if depth.is_some() && !can() {
                    return Err(Errno::EINVAL);
                }
                let first = self.store.watch(client, path, token, depth)?;
                Ok(Answer::Watching(first))
            }
            Request::Unwatch { path, token } => store.unwatch(client, path, token).map(|()| DONE),
            Request::ResetWatches => {
                store.reset(client);
                Ok(DONE)
            }
            Request::TransactionStart if tx != TransactionId::NONE => Err(Errno::EBUSY),
            Request::TransactionStart => store.begin(client).map(|id| text(id.0)),
            Request::TransactionEnd { commit } => {
                let ended = store.end(client, tx, commit);
                self.charge_blamed(client);
                ended?;
                self.counters.committed += u64::from(commit);
                Ok(DONE)
            }
            Request::GetDomainPath(domid) => Ok(text(Path::of_domain(domid))),
            Request::IsDomainIntroduced(domid) => {
                let introduced = domid == DomId::SELF || self.domains.contains_key(&domid);
                Ok(text(if introduced { 'T' } else { 'F' }))
            }
            Request::Introduce { domid, port, .. } => {
                let client = self.introduce(domid, port, world)?;
                self.start_over(client);
                world.restart(client);
                Ok(DONE)
            }
            Request::Release(domid) => {
                self.introduced_guest(domid)?;
                self.release(domid, world);
                Ok(DONE)
            }
            Request::Resume(domid) => {
                self.introduced_guest(domid)?;
                if let Some(domain) = self.domains.get_mut(&domid) {
                    domain.shut_down = false;
                }
                Ok(DONE)
            }
            Request::SetTarget { domid, target } => {
                let domain = self.domains.get(&domid).ok_or(Errno::ENOENT)?;
                self.domains.get(&target).ok_or(Errno::ENOENT)?;
                self.store.set_target(domain.client, target);
                Ok(DONE)
            }
            Request::Control {
                command: b"live-update",
                arguments,
            } => self.live_update(client, &arguments, world),
            Request::Control { command, arguments } => {
                let answer = self.control(command, &arguments, world)?;
                Ok(Answer::Payload(answer.into()))
            }
            Request::GetFeature(None) => Ok(text(self.features(client).bits())),
            Request::GetFeature(Some(domid)) => {
                self.look_up(domid, world)?;
                let features = self.store.features(domid).ok_or(Errno::ENOENT)?;
                Ok(text(features.bits()))
            }
            Request::SetFeature { domid, features } => {
                self.look_up(domid, world)?;
                if self.domains.contains_key(&domid) {
                    return Err(Errno::EBUSY);
                }
                if !FEATURES.contains(features) {
                    return Err(Errno::EINVAL);
                }
                self.store.set_features(domid, features);
                Ok(DONE)
            }
            Request::ListQuotas => {
                let names: Vec<_> = Limit::all().map(|limit| limit.to_string()).collect();
                Ok(text(names.join(" ")))
            }
            Request::GetQuota { domid, name } => {
                domid.map_or(Ok(()), |domid| self.look_up(domid, world))?;
                let limit = Limit::named(name).ok_or(Errno::EINVAL)?;
                let quotas = self.store.quotas(domid).ok_or(Errno::ENOENT)?;
                Ok(text(quotas[limit]))
            }
            Request::SetQuota { domid, name, value } => {
                domid.map_or(Ok(()), |domid| self.look_up(domid, world))?;
                let limit = Limit::named(name).ok_or(Errno::EINVAL)?;
                // C xenstored's mark for a quota that is not there.
                if value == u32::MAX {
                    return Err(Errno::EINVAL);
                }
                let quotas = self.store.quotas_mut(domid).ok_or(Errno::ENOENT)?;
                quotas[limit] = value;
                let domain = domid.and_then(|domid| self.domains.get(&domid));
                if let Some(client) = domain.map(|domain| domain.client) {
                    self.settle(client);
                }
                Ok(DONE)
            }
        }
    }

    /// Takes note of a domain that exists and was not heard of before.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    fn look_up(&mut self, domid: DomId, world: &impl World) -> Result<(), Errno> {
        if self.store.knows(domid) {
            return Ok(());
        }
        if !domid.is_domain() || world.life(domid) == Life::Gone {
            return Err(Errno::ENOENT);
        }
        self.store.know(domid);
        Ok(())
    }

    /// Permissions may name domains that exist and were not heard of before: a toolstack writes a
    /// domain's nodes first and introduces it then.
    fn set_permissions(
        &mut self,
        client: ClientId,
        tx: TransactionId,
        path: &Path,
        mut permissions: Vec<Permission>,
        world: &impl World,
    ) -> Result<Answer, Errno> {
        // Each look-up is work for the host: so no more of them than entries are allowed.
        self.store.check_entries(client, permissions.len())?;
        for entry in &permissions {
            // An entry for a domain that there is not counts for nothing.
            let _ = self.look_up(entry.domid, world);
        }
        // And so does one for any domain, by who does not know that there is such a thing.
        if !self.features(client).contains(ServerFeatures::DOMID_ANY) {
            let mut first = true;
            permissions.retain(|entry| mem::take(&mut first) || entry.domid != DomId::ANY);
        }
        self.store
            .set_permissions(client, tx, path, &permissions)
            .map(|()| DONE)
    }

    /// # Errors
    /// `EINVAL` for domain 0, `ENOENT` for one that is not introduced.
    fn introduced_guest(&self, domid: DomId) -> Result<(), Errno> {
        match self.domains.get(&domid) {
            _ if domid == DomId::ZERO => Err(Errno::EINVAL),
            Some(_) => Ok(()),
            None => Err(Errno::ENOENT),
        }
    }
}
