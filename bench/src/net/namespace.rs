//! A network namespace of our own, with a name, so that other programs can be run in it.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A namespace, gone when this is dropped.
#[derive(Debug)]
pub(super) struct Namespace(String);

impl Namespace {
    /// Makes one, in which only the loopback device is up.
    ///
    /// # Errors
    /// `ip` is not there, or we are not root.
    pub(super) fn new() -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("parapet-bench-{}-{count}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace(name);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The file that stands for it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// A command to be run in it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Runs `ip` in it, with these words.
    pub(super) fn ip(&self, words: &str) -> Result<()> {
        run(Command::new("ip")
            .args(["-n", &self.0])
            .args(words.split_whitespace()))
    }

    /// Has a device there leave nothing to others, nor take what others left.
    pub(super) fn without_offloads(&self, device: &str) -> Result<()> {
        let mut command = self.command("ethtool");
        command.args(["-K", device, "tx", "off", "tso", "off", "gso", "off"]);
        run(command.args(["gro", "off"]))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing can be done about one that stays.
        let _ = run(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

/// Runs a command that must succeed.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let output = command.output();
    let output = output.with_context(|| format!("{:?}", command.get_program()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(())
}
