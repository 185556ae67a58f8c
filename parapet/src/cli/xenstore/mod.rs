//! `parapet xenstore`: the xenstore from the command line.
//!
//! The commands that Xen has as `xenstore-*` take the same arguments, and print and exit as those
//! of Xen 4.17 do, byte for byte: scripts cannot tell. Called by such a name (a link to `parapet`
//! will do) this program is that command. `--json` and `tree` are our own, as are the reasons in
//! messages; so is what nobody will miss: an option that there is not is an error, `--help` is
//! none, a connection that breaks ends `watch`, and `chmod -r` follows paths of any length.

mod chmod;
mod control;
mod exists;
mod list;
mod ls;
mod read;
mod rm;
mod text;
mod tree;
mod watch;
mod write;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use nix::errno::Errno as HostErrno;
use parapet_xenstore::client::Error;
use parapet_xenstore::client::blocking::Client;
use parapet_xenstore::host;

/// Uses the xenstore of this host, as Xen's xenstore-* tools do.
///
/// The xenstore is found as those find it: at the socket that XENSTORED_PATH names, at `socket` in
/// XENSTORED_RUNDIR, at /run/xenstored/socket; else by the kernel, at /dev/xen/xenbus.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Xenstore {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore tree /local/domain
  parapet xenstore read /local/domain/5/name
  parapet xenstore watch --json /local/domain/5/device
  ln -s $(which parapet) /usr/local/bin/xenstore-ls        is `parapet xenstore ls` from then on";

#[derive(Debug, Subcommand)]
enum Command {
    Read(read::Read),
    Write(write::Write),
    List(list::List),
    Ls(ls::Ls),
    Tree(tree::Tree),
    Exists(exists::Exists),
    Rm(rm::Rm),
    Chmod(chmod::Chmod),
    Watch(watch::Watch),
    Control(control::Control),
}

/// What Xen's tools have taken without an effect since they talk to nothing but sockets.
#[derive(Debug, Args)]
struct Ignored {
    #[arg(short, hide = true)]
    s: bool,
}

/// Does what the command line says.
pub(super) fn xenstore(args: &Xenstore) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Read(args) => read::read(args),
        Command::Write(args) => write::write(args),
        Command::List(args) => list::list(args),
        Command::Ls(args) => ls::ls(args),
        Command::Tree(args) => tree::tree(args),
        Command::Exists(args) => exists::exists(args),
        Command::Rm(args) => rm::rm(args),
        Command::Chmod(args) => chmod::chmod(args),
        Command::Watch(args) => watch::watch(args),
        Command::Control(args) => control::control(args),
    }
}

/// The arguments of a program called `xenstore`, or `xenstore-` and a command, as ours.
pub(super) fn by_name(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().and_then(|path| Path::new(path).file_name());
    let name = name.map(|name| name.to_string_lossy().into_owned());
    let Some(rest) = name.and_then(|name| Some(name.strip_prefix("xenstore")?.to_owned())) else {
        return args;
    };
    let command = rest.strip_prefix('-').map(OsString::from);
    if command.is_some() || rest.is_empty() {
        let own = [Some("parapet".into()), Some("xenstore".into()), command];
        args.splice(..1, own.into_iter().flatten());
    }
    args
}

/// The exit status for arguments that make no sense, if it is another than that of all else: the
/// tools' own.
pub(super) fn nonsense(args: &[OsString]) -> Option<ExitCode> {
    let mut words = args
        .iter()
        .skip(1)
        .filter(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    match (words.next(), words.next()) {
        (Some(first), Some(command)) if first == "xenstore" && command != "control" => {
            Some(ExitCode::FAILURE)
        }
        _ => None,
    }
}

fn connect() -> anyhow::Result<Client> {
    Ok(Client::new(host::connect()?))
}

/// What a tool says that it could not do, and why.
#[derive(Debug)]
struct Failed {
    what: String,
    why: Error,
}

impl Failed {
    /// Says of the cause of an error what was to be done.
    fn to(what: impl Into<String>) -> impl FnOnce(Error) -> Self {
        let what = what.into();
        |why| Failed { what, why }
    }
}

impl From<Failed> for anyhow::Error {
    fn from(Failed { what, why }: Failed) -> Self {
        anyhow!("{what}: {}", reason(&why))
    }
}

/// Why something failed, in the words that people know from C.
fn reason(why: &Error) -> String {
    match why.errno() {
        Some(errno) => HostErrno::from_raw(errno.0).desc().into(),
        None => why.to_string(),
    }
}

/// Runs `body` in a transaction, and again if somebody interferes.
fn transaction<R>(
    client: &mut Client,
    mut body: impl FnMut(&mut Client) -> Result<R, Failed>,
) -> Result<R, Failed> {
    let mut what = None;
    let outcome = client.transaction(|tx| {
        what = None;
        body(tx).map_err(|failed| {
            what = Some(failed.what);
            failed.why
        })
    });
    outcome.map_err(Failed::to(
        what.unwrap_or_else(|| "couldn't end transaction".into()),
    ))
}

/// The path of a node's child.
fn below(path: &str, name: &str) -> String {
    let slash = if path.ends_with('/') { "" } else { "/" };
    format!("{path}{slash}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn called_as_one_of_xens_tools_the_program_is_that_tool() {
        for (called, ours) in [
            (
                &["/usr/bin/xenstore-read", "-p", "/a"][..],
                &["parapet", "xenstore", "read", "-p", "/a"][..],
            ),
            (&["xenstore", "ls"], &["parapet", "xenstore", "ls"]),
            (&["./parapet", "run"], &["./parapet", "run"]),
            (&["xenstored"], &["xenstored"]),
        ] {
            assert_eq!(by_name(arguments(called)), arguments(ours));
        }
        assert_eq!(by_name(vec![]), arguments(&[]));
    }

    #[test]
    fn arguments_that_make_no_sense_have_the_exit_status_of_the_tools() {
        let status = |words: &[&str]| nonsense(&arguments(words));
        assert_eq!(
            status(&["parapet", "-v", "xenstore", "read"]),
            Some(ExitCode::FAILURE)
        );
        assert_eq!(status(&["parapet", "xenstore", "control"]), None);
        assert_eq!(status(&["parapet", "blk", "xenstore"]), None);
    }
}
