//! CONTROL: talking to the daemon itself.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use parapet_xen_sys::Errno;

use super::Server;
use crate::wire;

/// The commands, and what they take.
const COMMANDS: [(&str, &str); 4] = [
    ("check", ""),
    ("log", "[on|off]"),
    ("print", "<string>"),
    ("help", ""),
];

impl Server {
    /// # Errors
    /// `EINVAL` for an unknown command, or arguments that it does not take.
    pub(super) fn control(
        &mut self,
        command: &[u8],
        arguments: &[&[u8]],
    ) -> Result<Vec<u8>, Errno> {
        match (command, arguments) {
            // A tree of shared nodes has no other record that could contradict it.
            (b"check", []) => {}
            (b"log", [b"on"]) => self.access_log = true,
            (b"log", [b"off"]) => self.access_log = false,
            (b"print", [text]) => log::info!("control: {}", text.escape_ascii()),
            (b"help", []) => {
                let line = |(name, takes): &(&str, &str)| format!("{name:<15} {takes}\n");
                let mut help: String = COMMANDS.iter().map(line).collect();
                help.push('\0');
                return Ok(help.into_bytes());
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(wire::OK.to_vec())
    }
}
