//! Where the two halves of a device run: the label without which no figure may be quoted.
//!
//! A wake-up that crosses cores can cost thirty times one that does not (a halted virtual core has
//! to be woken by its hypervisor), so a run whose threads wander measures the scheduler's mood.
//! Every thread of every contender is pinned.

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// Which cores the halves sit on and how they learn of each other's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Placement {
    /// Both halves take turns on one core.
    SameCore,
    /// A core each; an idle half sleeps until it is notified.
    SplitEvented,
    /// A core each; the front half never sleeps but reads its ring.
    SplitPolling,
}

impl Placement {
    pub(crate) const ALL: [Placement; 3] = [
        Placement::SameCore,
        Placement::SplitEvented,
        Placement::SplitPolling,
    ];

    /// The label quoted with a figure, as it appears in the name of a row.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Placement::SameCore => "same-core",
            Placement::SplitEvented => "split-evented",
            Placement::SplitPolling => "split-polling",
        }
    }

    /// What the label means on these cores.
    pub(crate) fn explain(self, Cores { front, back }: Cores) -> String {
        match self {
            Placement::SameCore => format!("both halves on CPU {front}"),
            Placement::SplitEvented => {
                format!("front on CPU {front}, back on CPU {back}; who has nothing to do sleeps")
            }
            Placement::SplitPolling => {
                format!("front on CPU {front}, back on CPU {back}; the front never sleeps")
            }
        }
    }

    /// Whether the front half reads its ring without ever sleeping.
    pub(crate) fn polls(self) -> bool {
        self == Placement::SplitPolling
    }
}

/// The core of each half, by the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    /// The frontend, client or driver.
    pub(crate) front: usize,
    /// The backend, daemon or device.
    pub(crate) back: usize,
}

/// The (at most two) CPUs that the whole run uses.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpus {
    /// The frontend's CPU, and the backend's too in *same core*.
    pub(crate) first: usize,
    /// The backend's CPU when split; a machine with one CPU has none.
    pub(crate) second: Option<usize>,
}

impl Cpus {
    /// The lowest CPUs that this process may use. To be asked before anything is pinned.
    ///
    /// # Errors
    /// The kernel does not tell, or allows none.
    pub(crate) fn discover() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for the allowed CPUs")?;
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        let Some(first) = cpus.next() else {
            bail!("this process may run on no CPU at all")
        };
        Ok(Self {
            first,
            second: cpus.next(),
        })
    }

    /// The cores of a placement; `None` if this machine has too few.
    pub(crate) fn cores(self, placement: Placement) -> Option<Cores> {
        let front = self.first;
        match placement {
            Placement::SameCore => Some(Cores { front, back: front }),
            Placement::SplitEvented | Placement::SplitPolling => {
                self.second.map(|back| Cores { front, back })
            }
        }
    }
}

/// Pins the calling thread, and with it every thread and process that it starts from now on.
///
/// # Errors
/// The CPU does not exist or is not allowed.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("pinning to CPU {cpu}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cpu_serves_only_the_same_core() {
        let cpus = Cpus {
            first: 3,
            second: None,
        };
        assert_eq!(
            cpus.cores(Placement::SameCore),
            Some(Cores { front: 3, back: 3 })
        );
        assert_eq!(cpus.cores(Placement::SplitEvented), None);
        assert_eq!(cpus.cores(Placement::SplitPolling), None);
    }

    #[test]
    fn a_pinned_thread_is_allowed_exactly_its_cpu() {
        std::thread::spawn(|| {
            let first = Cpus::discover().unwrap().first;
            pin(first).unwrap();
            let after = Cpus::discover().unwrap();
            assert_eq!((after.first, after.second), (first, None));
        })
        .join()
        .unwrap();
    }
}
