//! Who is measured, as a program: mostly peers; and the two things that programs share: being found
//! and being ended.

pub(crate) mod eventfd;
pub(crate) mod fio;
pub(crate) mod qsd;
mod vhost;
pub(crate) mod xenstored;

use anyhow::{Context, Result};
use serde::Serialize;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A program of somebody else's that a peer needs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Program {
    /// The command's name, searched for in `PATH`.
    pub(crate) name: &'static str,
    /// The Debian package it comes in.
    pub(crate) package: &'static str,
    /// The first line it prints for `--version`; `None` if it is missing.
    pub(crate) version: Option<String>,
}

impl Program {
    /// Looks whether the command is there and which version it is.
    pub(crate) fn find(name: &'static str, package: &'static str) -> Self {
        let version = Command::new(name)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| {
                let text = String::from_utf8_lossy(&output.stdout);
                text.lines().next().unwrap_or_default().trim().to_owned()
            });
        Self {
            name,
            package,
            version,
        }
    }
}

/// A child process that is killed and waited for when this is dropped, whatever happened.
#[derive(Debug)]
pub(crate) struct Reaped(pub(crate) Child);

impl Reaped {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        // In a group of its own, an interrupt from the terminal is for us alone, and we end it.
        command
            .process_group(0)
            .spawn()
            .map(Self)
            .with_context(|| format!("starting {name}"))
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Killing fails only if it has ended already, and waiting only if it was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_does_not_exist_has_no_version() {
        assert!(
            Program::find("parapet-no-such-command", "none")
                .version
                .is_none()
        );
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let child = Reaped::spawn(Command::new("sleep").arg("1000")).unwrap();
        let proc = format!("/proc/{}", child.0.id());
        assert!(std::path::Path::new(&proc).exists());
        drop(child);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
