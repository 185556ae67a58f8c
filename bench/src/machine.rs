//! The machine and the day, without which figures of two runs cannot be compared.

use crate::placement::Cpus;
use anyhow::Result;
use nix::sys::utsname::uname;
use serde::Serialize;
use std::fs;
use std::thread::available_parallelism;
use std::time::SystemTime;

/// What is recorded with every report.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// UTC, RFC 3339.
    pub(crate) date: String,
    /// Release and architecture.
    pub(crate) kernel: String,
    /// The CPU's model name; `virtual` tells whether a hypervisor runs below.
    pub(crate) cpu: String,
    #[serde(rename = "virtual")]
    pub(crate) virtual_machine: bool,
    /// How many CPUs this process may use.
    pub(crate) cpus: usize,
    /// Those it does use.
    pub(crate) used: Cpus,
    /// Version of this program.
    pub(crate) parapet: &'static str,
}

impl Machine {
    /// Asks the machine. To be called before anything is pinned.
    pub(crate) fn discover(used: Cpus) -> Result<Self> {
        let kernel = uname()?;
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            info.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim())
        };
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            kernel: format!(
                "{} {}",
                kernel.release().to_string_lossy(),
                kernel.machine().to_string_lossy()
            ),
            cpu: field("model name").unwrap_or("unknown").to_owned(),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            cpus: available_parallelism()?.get(),
            used,
            parapet: env!("CARGO_PKG_VERSION"),
        })
    }
}
