//! The trace: what each request was and what came of it, for who looks for a fault. It is switched
//! by CONTROL, and goes to a file of its own or to the log.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use parapet_xen_sys::Errno;

use super::World;

/// What can be traced, by its name in `log|+NAME`. C xenstored has `tdb` too, its database.
pub(super) const SWITCHES: [(Switch, &str); 4] = [
    (Switch::Objects, "obj"),
    (Switch::Messages, "io"),
    (Switch::Credit, "wrl"),
    (Switch::Quotas, "acc"),
];

/// A kind of thing that can be traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// Connections that come and go.
    Objects,
    /// Requests and answers.
    Messages,
    /// Who is held for others' transactions.
    Credit,
    /// Quotas that were exceeded.
    Quotas,
}

/// Whether it is on, where it goes, and what is in it.
pub(super) struct Trace {
    pub(super) on: bool,
    pub(super) file: Option<Vec<u8>>,
    chosen: [bool; SWITCHES.len()],
    /// Lines on their way to the file.
    waiting: String,
}

impl Default for Trace {
    fn default() -> Self {
        Trace {
            on: false,
            file: None,
            chosen: SWITCHES
                .map(|(switch, _)| matches!(switch, Switch::Objects | Switch::Messages)),
            waiting: String::new(),
        }
    }
}

impl Trace {
    /// Turns a switch by its name, with `+` or `-` before it.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub(super) fn turn(&mut self, change: &[u8]) -> Result<(), Errno> {
        let (on, name) = match change.split_first() {
            Some((b'+', name)) => (true, name),
            Some((b'-', name)) => (false, name),
            _ => return Err(Errno::EINVAL),
        };
        let mut switches = SWITCHES.iter().zip(&mut self.chosen);
        let found = switches.find(|((_, known), _)| known.as_bytes() == name);
        let (_, chosen) = found.ok_or(Errno::EINVAL)?;
        *chosen = on;
        Ok(())
    }

    /// How the switches stand, as `log` without parameters tells it.
    pub(super) fn settings(&self) -> String {
        let line = |((_, name), &on): (&(Switch, &str), &bool)| {
            format!("{name:<8}: {}\n", if on { "on" } else { "off" })
        };
        let lines = SWITCHES.iter().zip(&self.chosen).map(line);
        format!("Log switch settings:\n{}", lines.collect::<String>())
    }

    pub(super) fn wants(&self, switch: Switch) -> bool {
        self.on && self.chosen[switch as usize]
    }

    /// Traces one line, if such lines are wanted.
    pub(super) fn line(&mut self, switch: Switch, line: fmt::Arguments<'_>) {
        if !self.wants(switch) {
            return;
        }
        if self.file.is_some() {
            self.waiting += &format!("{line}\n");
        } else {
            log::info!("{line}");
        }
    }

    /// Writes what waits for the file. A file that cannot be written is nobody's error, here as in
    /// C xenstored.
    pub(super) fn write(&mut self, world: &mut impl World) {
        if let Some(file) = self.file.as_ref().filter(|_| !self.waiting.is_empty()) {
            let _ = world.append(file, self.waiting.as_bytes());
            self.waiting.clear();
        }
    }
}
