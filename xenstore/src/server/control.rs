//! CONTROL: talking to the daemon itself.
//!
//! The commands, what they take and what they answer are those of `tools/xenstored/control.c` of
//! Xen's master.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use parapet_xen_sys::{DomId, Errno};

use super::{Peer, Server, World};
use crate::store::{Level, Limit, Quota};
use crate::wire;

/// One command.
struct Command {
    name: &'static str,
    /// What it takes, for who asks for help.
    takes: &'static str,
    /// Does it.
    run: fn(&mut Server, &[&[u8]], &mut dyn World) -> Answer,
}

/// The payload that goes back.
type Answer = Result<Vec<u8>, Errno>;

/// All of them: one line a command.
#[rustfmt::skip]
const COMMANDS: [Command; 9] = [
    Command { name: "check", takes: "", run: check },
    Command { name: "log", takes: "[on|off|+<switch>|-<switch>]", run: log },
    // What xenstore-control takes. It makes requests of it that are answered elsewhere: `update`.
    Command { name: "live-update", takes: "[-c <cmdline>] [-F] [-t <timeout>] [-v <version>] <file>\n    Default timeout is 60 seconds.", run: elsewhere },
    Command { name: "logfile", takes: "<file>", run: logfile },
    Command { name: "memreport", takes: "[<file>]", run: memreport },
    Command { name: "print", takes: "<string>", run: print },
    Command { name: "quota", takes: "[set <name> <val>|<domid>|max [-r]]", run: quota },
    Command { name: "quota-soft", takes: "[set <name> <val>]", run: quota_soft },
    Command { name: "help", takes: "", run: help },
];

/// The answer that says no more than that it was done.
fn done() -> Answer {
    Ok(wire::OK.to_vec())
}

fn said(mut text: String) -> Answer {
    text.push('\0');
    Ok(text.into_bytes())
}

fn elsewhere(_: &mut Server, _: &[&[u8]], _: &mut dyn World) -> Answer {
    Err(Errno::EINVAL)
}

impl Server {
    /// # Errors
    /// `EINVAL` for an unknown command, or arguments that it does not take.
    pub(super) fn control(
        &mut self,
        command: &[u8],
        arguments: &[&[u8]],
        world: &mut dyn World,
    ) -> Answer {
        let known = COMMANDS.iter().find(|it| it.name.as_bytes() == command);
        (known.ok_or(Errno::EINVAL)?.run)(self, arguments, world)
    }
}

fn help(_: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    let [] = arguments else {
        return Err(Errno::EINVAL);
    };
    let line = |command: &Command| format!("{:<15} {}\n", command.name, command.takes);
    said(COMMANDS.iter().map(line).collect())
}

/// A tree of shared nodes has no other record that could contradict it, but the accounts could.
fn check(server: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    let [] = arguments else {
        return Err(Errno::EINVAL);
    };
    for domid in server.store.known() {
        let (counted, found) = (server.store.used(domid), server.store.recount(domid));
        for quota in [Quota::Nodes, Quota::Watches, Quota::Transactions] {
            let (counted, found) = (counted[quota], found[quota]);
            if counted != found {
                log::error!(
                    "domain {domid}: {counted} {} counted, {found} found",
                    quota.name()
                );
            }
        }
    }
    done()
}

fn print(_: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    let [text] = arguments else {
        return Err(Errno::EINVAL);
    };
    log::info!("control: {}", text.escape_ascii());
    done()
}

// ---- the log

fn log(server: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    match arguments {
        [] => return said(server.trace.settings()),
        [b"on"] => server.trace.on = true,
        [b"off"] => server.trace.on = false,
        [change] => server.trace.turn(change)?,
        _ => return Err(Errno::EINVAL),
    }
    done()
}

/// It is on from then on, as with C xenstored, whether the file can be written or not.
fn logfile(server: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    let [file] = arguments else {
        return Err(Errno::EINVAL);
    };
    server.trace.file = Some(file.to_vec());
    server.trace.on = true;
    done()
}

/// Where the memory is: to a file, or else to that of the log.
fn memreport(server: &mut Server, arguments: &[&[u8]], world: &mut dyn World) -> Answer {
    let file = match (arguments, &server.trace.file) {
        ([file], _) => *file,
        ([], Some(file)) => file,
        _ => return Err(Errno::EINVAL),
    };
    world.append(file, server.report().as_bytes())?;
    done()
}

impl Server {
    /// What is held for whom.
    fn report(&self) -> String {
        let store = &self.store;
        let count = |local| {
            let peers = self.connections.values().map(|connection| connection.peer);
            peers.filter(|&peer| (peer == Peer::Local) == local).count()
        };
        let columns = [
            Quota::Nodes,
            Quota::Watches,
            Quota::Transactions,
            Quota::Outstanding,
            Quota::Memory,
        ];
        let mut report = format!(
            "{} local clients, {} domains\ndomain",
            count(true),
            count(false)
        );
        for quota in columns {
            report += &format!(" {:>12}", quota.name());
        }
        report.push('\n');
        for domid in store.known() {
            let used = store.used(domid);
            report += &format!("{domid:>6}");
            for quota in columns {
                report += &format!(" {:>12}", used[quota]);
            }
            report.push('\n');
        }
        report
    }
}

// ---- quotas

fn quota(server: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    match arguments {
        [] => said(settings(server, Level::Hard)),
        [b"set", name, value] => set(server, Level::Hard, name, value),
        [b"max"] => said(most(server)),
        [b"max", b"-r"] => {
            server.store.reset_most();
            said(most(server))
        }
        [b"set" | b"max", ..] => Err(Errno::EINVAL),
        [domid] => said(used(server, domid)?),
        _ => Err(Errno::EINVAL),
    }
}

fn quota_soft(server: &mut Server, arguments: &[&[u8]], _: &mut dyn World) -> Answer {
    match arguments {
        [] => said(settings(server, Level::Soft)),
        [b"set", name, value] => set(server, Level::Soft, name, value),
        _ => Err(Errno::EINVAL),
    }
}

/// Sets what the domains that are yet to come may use.
fn set(server: &mut Server, level: Level, name: &[u8], value: &[u8]) -> Answer {
    let value = i32::try_from(wire::number(value)).map_err(|_| Errno::EINVAL)?;
    let value = u32::try_from(value).map_err(|_| Errno::EINVAL)?;
    let limit = Limit::named_at(level, name).ok_or(Errno::EINVAL)?;
    let quotas = server.store.quotas_mut(None).ok_or(Errno::EINVAL)?;
    if value == 0 {
        return Err(Errno::EINVAL);
    }
    quotas[limit] = value;
    done()
}

/// What the domains that are yet to come may use.
fn settings(server: &Server, level: Level) -> String {
    let mut text = String::from("Quota settings:\n");
    let Some(quotas) = server.store.quotas(None) else {
        return text;
    };
    for limit in Quota::all().filter_map(|quota| Limit::of(quota, level)) {
        let quota = limit.quota();
        let (name, description) = (quota.name(), quota.description());
        text += &format!("{name:<17}: {:>8} {description}\n", quotas[limit]);
    }
    text
}

fn used(server: &Server, domid: &[u8]) -> Result<String, Errno> {
    let domid = u16::try_from(wire::number(domid)).map_err(|_| Errno::ENOENT)?;
    let domid = DomId(domid);
    if !server.store.knows(domid) {
        return Err(Errno::ENOENT);
    }
    let (used, most) = (server.store.used(domid), server.store.most(Some(domid)));
    let mut text = format!("Domain {domid}:\n");
    for quota in Quota::all() {
        let (name, used, most) = (quota.name(), used[quota], most[quota]);
        text += &format!("{name:<17}: {used:>8} (max {most:>8})\n");
    }
    Ok(text)
}

fn most(server: &Server) -> String {
    let most = server.store.most(None);
    let mut text = String::from("Max. seen accounting values:\n");
    for quota in Quota::all() {
        text += &format!("{:<17}: {:>8}\n", quota.name(), most[quota]);
    }
    text
}
