//! What a guest runs if it brings no program of its own: a guest's `kernel` names one of these,
//! and its `cmdline` has the arguments.
//!
//! | kernel | does | arguments |
//! |---|---|---|
//! | `verify` | fills disks with content that tells where it belongs, flushes, reads it back and compares: **what was on them is lost** | `disk=` one instead of all; `seed=` a number, 0 if none |
//! | `sum` | reads disks and sums them with SHA-256 | `disk=` one instead of all |
//! | `copy` | copies one disk to another, and flushes | `from=` (xvda), `to=` (xvdb) |
//! | `idle` | waits until its disks and network interfaces are there, then for a while | `seconds=` a number, 0 if none |

mod arguments;
mod content;
mod copy;
mod pass;
mod sum;
mod verify;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use parapet_blkfront::Disk;
use parapet_blkfront::vdev::Vdev;
use parapet_hypervisor::loopback::Domain;
use parapet_hypervisor::seam::Clock;
use serde::Serialize;

use crate::config::{GuestConfig, Hint};
use crate::guest::Guest;

use arguments::Arguments;
pub use arguments::ProgramError;
pub use sum::Sum;

/// A built-in program, with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Fills, flushes, reads back, compares.
    Verify {
        /// The disk; every one of the guest if none.
        disk: Option<Vdev>,
        /// What makes the content differ from that of another run.
        seed: u64,
    },
    /// Sums.
    Sum {
        /// The disk; every one of the guest if none.
        disk: Option<Vdev>,
    },
    /// Copies.
    Copy {
        /// The disk that is read.
        from: Vdev,
        /// The disk that is written: as large, or larger.
        to: Vdev,
    },
    /// Does nothing, with its disks and network interfaces connected.
    Idle {
        /// For how long.
        time: Duration,
    },
}

/// What a program has done, once it has succeeded.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kernel", rename_all = "lowercase")]
pub enum Outcome {
    /// Every byte was read back as it was written.
    Verify {
        /// How many disks.
        disks: usize,
        /// Their bytes together.
        bytes: u64,
        /// How long it took to write them, the flush included.
        write_seconds: f64,
        /// How long it took to read them back.
        read_seconds: f64,
    },
    /// The sums.
    Sum {
        /// One a disk.
        sums: Vec<Sum>,
    },
    /// The copy is complete and durable.
    Copy {
        /// The source's size.
        bytes: u64,
    },
    /// Nothing.
    Idle,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Verify {
                disks,
                bytes,
                write_seconds,
                read_seconds,
            } => write!(
                f,
                "verified {:.1} MB on {disks} disk{}: written and flushed at {:.0} MB/s, read back \
                 at {:.0} MB/s",
                megabytes(*bytes),
                if *disks == 1 { "" } else { "s" },
                megabytes(*bytes) / write_seconds,
                megabytes(*bytes) / read_seconds,
            ),
            Outcome::Sum { sums } => {
                let sums: Vec<String> = sums.iter().map(Sum::to_string).collect();
                f.write_str(&sums.join(", "))
            }
            Outcome::Copy { bytes } => write!(f, "copied and flushed {:.1} MB", megabytes(*bytes)),
            Outcome::Idle => write!(f, "was idle"),
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

const KERNELS: &[&str] = &["verify", "sum", "copy", "idle"];

impl Program {
    /// The program that a guest's configuration names.
    ///
    /// # Errors
    /// There is none of that name, or it does not understand its arguments.
    pub fn of(guest: &GuestConfig) -> Result<Self, ProgramError> {
        let kernel = guest.kernel.as_deref().ok_or(ProgramError::NoKernel)?;
        let read = |kernel, known| Arguments::read(kernel, known, &guest.cmdline);
        match kernel {
            "verify" => {
                let given = read("verify", &["disk", "seed"])?;
                Ok(Program::Verify {
                    disk: given.vdev("disk")?,
                    seed: given.number("seed")?.unwrap_or(0),
                })
            }
            "sum" => {
                let given = read("sum", &["disk"])?;
                Ok(Program::Sum {
                    disk: given.vdev("disk")?,
                })
            }
            "copy" => {
                let given = read("copy", &["from", "to"])?;
                Ok(Program::Copy {
                    from: given.vdev_or("from", "xvda")?,
                    to: given.vdev_or("to", "xvdb")?,
                })
            }
            "idle" => {
                let given = read("idle", &["seconds"])?;
                Ok(Program::Idle {
                    time: Duration::from_secs(given.number("seconds")?.unwrap_or(0)),
                })
            }
            kernel => Err(ProgramError::Unknown {
                kernel: kernel.into(),
                hint: Hint::new(kernel, KERNELS),
            }),
        }
    }

    /// Runs it in `guest`.
    ///
    /// # Errors
    /// What went wrong, and with which disk.
    pub async fn run(self, guest: Guest) -> Result<Outcome> {
        match self {
            Program::Verify { disk, seed } => {
                let disks = disks(&guest, disk).await?;
                verify::verify(&guest, &disks, seed).await
            }
            Program::Sum { disk } => {
                let disks = disks(&guest, disk).await?;
                sum::sum(&guest, &disks).await
            }
            Program::Copy { from, to } => copy::copy(&guest, from, to).await,
            Program::Idle { time } => {
                let _disks = guest.disks().await?;
                let mut interfaces = Vec::new();
                for number in guest.vifs().await? {
                    interfaces.push(guest.interface(number).await?);
                }
                guest.domain().sleep(time).await;
                Ok(Outcome::Idle)
            }
        }
    }
}

/// A disk of the guest, and what it is called.
type Named = (Vdev, Disk<Domain>);

/// The disk that was asked for, or all.
async fn disks(guest: &Guest, vdev: Option<Vdev>) -> Result<Vec<Named>> {
    let disks = match vdev {
        Some(vdev) => vec![(vdev, guest.disk(&vdev.to_string()).await?)],
        None => guest.disks().await?,
    };
    anyhow::ensure!(
        !disks.is_empty(),
        "it has no disk: add one, such as `disk = [\"vdev=xvda, target=/path/x.img\"]`"
    );
    Ok(disks)
}

/// Says which disk an error is about.
trait OfDisk<T> {
    fn of_disk(self, vdev: Vdev) -> Result<T>;
}

impl<T> OfDisk<T> for Result<T> {
    fn of_disk(self, vdev: Vdev) -> Result<T> {
        self.with_context(|| format!("disk {vdev}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kernel: &str, cmdline: &str) -> Result<Program, ProgramError> {
        Program::of(&GuestConfig {
            kernel: Some(kernel.into()),
            cmdline: cmdline.into(),
            ..GuestConfig::new("a")
        })
    }

    #[test]
    fn a_command_line_has_the_arguments() {
        let expected = Program::Verify {
            disk: "xvdb".parse().ok(),
            seed: 7,
        };
        assert_eq!(
            program("verify", " seed=1  disk=xvdb seed=7 "),
            Ok(expected)
        );
        let expected = Program::Copy {
            from: "xvda".parse().unwrap(),
            to: "xvdc".parse().unwrap(),
        };
        assert_eq!(program("copy", "to=xvdc"), Ok(expected));
        assert_eq!(program("sum", ""), Ok(Program::Sum { disk: None }));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (kernel, cmdline, fault) in [
            ("verfy", "", "did you mean `verify`?"),
            ("vmlinuz", "", "there are verify, sum, copy, idle"),
            (
                "verify",
                "sed=7",
                "no argument `sed=7`, did you mean `seed`?",
            ),
            ("verify", "seed", "no argument `seed`, did you mean `seed`?"),
            (
                "verify",
                "seed=x",
                r#"`seed` is "x": it should be a whole number"#,
            ),
            (
                "sum",
                "disk=vda",
                r#"`disk` is "vda": it should be a disk such as xvda"#,
            ),
            (
                "sum",
                "seed=7",
                "kernel sum has no argument `seed=7`, there are disk",
            ),
        ] {
            let message = program(kernel, cmdline).unwrap_err().to_string();
            assert!(message.contains(fault), "{message}");
        }
        let without = Program::of(&GuestConfig::new("a"));
        assert_eq!(without, Err(ProgramError::NoKernel));
    }
}
