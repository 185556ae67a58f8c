//! Where ours differs from Debian's C xenstored 4.17 on purpose: `docs/xenstore.md` argues each.

use parapet_xen_sys::io::xs_wire::{Operation, REL_PATH_MAX};

use crate::daemon::{Fate, Message, Who, Xenstored};
use crate::session::{Outcome, Session, Step, domid};

/// A difference that is known by name.
pub(crate) enum Known {
    /// The two agree in everything afterwards.
    Passes(&'static str),
    /// The two stores are different from now on, so there is nothing more to compare.
    Stays(&'static str),
}

/// Whether the step makes a difference that shows only later: then there is nothing to compare.
pub(crate) fn is_hidden<D: Xenstored>(step: &Step, ours: &Session<D>) -> bool {
    // "A target lives on for as long as who has its rights."
    match step {
        Step::Fate(domid, Fate::Dead) => ours.is_target(*domid),
        Step::Ask(_, operation, _, payload) if *operation == u32::from(Operation::Release) => {
            domid(payload, 0).is_some_and(|domid| ours.is_target(domid))
        }
        _ => false,
    }
}

/// The difference in what came of `step`, if it is a known one.
pub(crate) fn known<D: Xenstored>(
    step: &Step,
    ours: &Session<D>,
    their: &Outcome,
    our: &Outcome,
) -> Option<Known> {
    let mut without = our.clone();
    without.events.retain(|(who, event)| {
        let guest = matches!(who, Who::Guest(1..));
        !guest || !event.payload.starts_with(b"@releaseDomain\0")
    });
    if without == *their {
        return Some(Known::Passes("everybody may watch @releaseDomain"));
    }
    let (who, operation, tx, payload) = match step {
        Step::Ask(who, operation, tx, payload) => (*who, *operation, *tx, payload),
        Step::Fate(..) | Step::Raw(..) => return None,
    };
    if their.answer.is_none()
        && their.lost.contains(&who)
        && our.answer.as_ref().is_some_and(is_error)
    {
        return Some(Known::Stays("a malformed path ends the packaged daemon"));
    }
    let (their, our) = (their.answer.as_ref()?, our.answer.as_ref()?);
    let operation = Operation::try_from(operation).ok()?;
    let strings: Vec<&[u8]> = payload.split_inclusive(|&byte| byte == 0).collect();
    let whole = payload.last() == Some(&0);
    match operation {
        _ if ours.is_disturbed(who, tx) => Some(Known::Stays(
            "a transaction is a snapshot, and conflicts node by node",
        )),
        Operation::Directory
        | Operation::Read
        | Operation::GetPerms
        | Operation::Mkdir
        | Operation::Rm
            if is_error(their) && is(our, "EINVAL") && (strings.len() != 1 || !whole) =>
        {
            Some(Known::Passes(
                "a malformed path gets an earlier request's error",
            ))
        }
        Operation::Unwatch if is(their, "ENOENT") && is(our, "EINVAL") => {
            Some(Known::Passes("UNWATCH checks its path"))
        }
        Operation::Watch if is(their, "EINVAL") && strings.len() == 3 && whole => {
            Some(Known::Stays("WATCH with a depth"))
        }
        Operation::SetPerms if is_error(their) && is_error(our) => {
            Some(Known::Passes("which of several errors SET_PERMS tells"))
        }
        Operation::SetPerms if is(our, "EINVAL") => Some(Known::Stays(
            "a permission is for a number that a domain can have",
        )),
        Operation::Introduce if is(our, "EINVAL") && strings.get(2) == Some(&&b"-1\0"[..]) => {
            Some(Known::Stays("a port is a positive number"))
        }
        Operation::Introduce
        | Operation::Release
        | Operation::Resume
        | Operation::IsDomainIntroduced
        | Operation::GetDomainPath
            if domid(payload, 0).is_none() =>
        {
            Some(Known::Stays("a domain's id is a number to its end"))
        }
        Operation::SetTarget if domid(payload, 0).and(domid(payload, 1)).is_none() => {
            Some(Known::Stays("a domain's id is a number to its end"))
        }
        Operation::Introduce if their.payload == our.payload => Some(Known::Stays(
            "INTRODUCE takes up a connection that was given up",
        )),
        Operation::GetPerms if is(their, "EINVAL") && payload.first() == Some(&b'@') => {
            Some(Known::Passes("GET_PERMS of a special name"))
        }
        Operation::GetPerms if their.payload.starts_with(&our.payload) => Some(Known::Passes(
            "a dead domain's entries are taken out of permissions",
        )),
        Operation::Watch | Operation::TransactionStart if is(our, "ENOSPC") => {
            Some(Known::Stays("a quota of n allows n"))
        }
        Operation::Write if is(their, "ENOSPC") && payload.len() > 1900 => {
            Some(Known::Stays("what a node's own record costs of its size"))
        }
        _ if strings
            .first()
            .is_some_and(|path| path.len() > REL_PATH_MAX)
            && matches!(who, Who::Local(_) | Who::Guest(0))
            && is(their, "EINVAL") =>
        {
            Some(Known::Stays("the limit of a path's length binds guests"))
        }
        _ => None,
    }
}

fn is_error(answer: &Message) -> bool {
    answer.operation == u32::from(Operation::Error)
}

fn is(answer: &Message, error: &str) -> bool {
    is_error(answer) && answer.payload.strip_suffix(b"\0") == Some(error.as_bytes())
}
