//! qemu-storage-daemon: QEMU's block layer behind a vhost-user-blk export, driven by our
//! `vhost.rs` in this very thread.

use super::vhost::VhostQueue;
use super::{Program, Reaped};
use crate::contender::{Contender, Standing};
use crate::measure::{CpuScope, Sample, closed_loop};
use crate::placement::{Cores, Placement, pin};
use crate::workload::{Disk, Workload};
use anyhow::{Context, Result};
use nix::unistd::{Pid, gettid};
use parapet_hypervisor::block_on;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// The contender `qemu-storage-daemon`.
#[derive(Debug)]
pub(crate) struct StorageDaemon;

impl StorageDaemon {
    /// Whether it is installed.
    pub(crate) fn program() -> Program {
        Program::find("qemu-storage-daemon", "qemu-system-common")
    }
}

impl Contender for StorageDaemon {
    fn name(&self) -> &'static str {
        "qemu-storage-daemon"
    }

    fn standing(&self) -> Standing {
        Standing::Peer
    }

    fn serves(&self, workload: &Workload, _: Placement) -> bool {
        workload.guests == 1 && !matches!(workload.disk, Disk::Overlays { .. })
    }

    fn run(&mut self, workload: &Workload, placement: Placement, cores: Cores) -> Result<Sample> {
        let room = tempfile::tempdir().context("making a folder for the daemon's socket")?;
        let errors = room.path().join("stderr");
        let measured = measure(workload, placement, cores, room.path(), &errors);
        measured.with_context(|| {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            format!(
                "qemu-storage-daemon: {}",
                said.lines().next().unwrap_or("(it said nothing)")
            )
        })
    }
}

fn measure(
    workload: &Workload,
    placement: Placement,
    cores: Cores,
    room: &Path,
    errors: &Path,
) -> Result<Sample> {
    // The daemon gets a socket that listens already, as its standard input: we may connect at
    // once, and if it dies the connection is refused instead of awaited.
    let socket = room.join("vhost-user-blk");
    let listener = UnixListener::bind(&socket).context("listening for the daemon")?;
    let mut command = Command::new("qemu-storage-daemon");
    command
        .args(block_devices(&workload.disk))
        .args(["--export", &export(workload.queues)])
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(File::create(errors)?);
    pin(cores.back)?; // inherited by the daemon
    let daemon = Reaped::spawn(&mut command)?;
    drop(command); // and with it our copy of the listener
    pin(cores.front)?;

    let scope = CpuScope::new()
        .process(Pid::from_raw(daemon.0.id().cast_signed()))
        .thread(gettid());
    let socket = socket
        .to_str()
        .context("the temporary folder's name is not UTF-8")?;
    let mut queue = VhostQueue::connect(socket, workload, placement.polls())?;
    // One client for all queues, on the one core that it has.
    let all = Workload {
        depth: workload.depth * workload.queues,
        ..workload.clone()
    };
    let counted = block_on(closed_loop(&mut queue, &all, &scope))?;
    Ok(counted.sample(workload.block))
}

fn export(queues: usize) -> String {
    format!(
        "type=vhost-user-blk,id=e0,node-name=n0,addr.type=fd,addr.str=0,writable=on,num-queues={queues}"
    )
}

fn block_devices(disk: &Disk) -> Vec<String> {
    let nodes = match disk {
        Disk::Null { size } => {
            vec![format!(
                "driver=null-co,node-name=n0,size={size},read-zeroes=off"
            )]
        }
        Disk::File { path, .. } => vec![
            format!(
                "driver=file,node-name=f0,filename={},cache.direct=on,aio=io_uring",
                // A comma ends a value unless it is doubled.
                path.display().to_string().replace(',', ",,")
            ),
            "driver=raw,node-name=n0,file=f0".to_owned(),
        ],
        // Each guest's own: it is asked for one disk.
        Disk::Overlays { .. } => Vec::new(),
    };
    nodes
        .into_iter()
        .flat_map(|node| ["--blockdev".to_owned(), node])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Cpus;
    use crate::workload::Pattern;
    use std::time::Duration;

    #[test]
    fn a_comma_in_a_file_name_is_doubled() {
        let disk = Disk::File {
            path: "/tmp/a,b".into(),
            size: 1,
        };
        assert!(block_devices(&disk)[1].contains("filename=/tmp/a,,b,"));
    }

    #[test]
    fn a_daemon_that_cannot_open_its_disk_is_quoted_and_not_awaited() {
        if StorageDaemon::program().version.is_none() {
            eprintln!("qemu-storage-daemon is not installed: nothing to see here");
            return;
        }
        let workload = Workload {
            disk: Disk::File {
                path: "/nonexistent/disk.img".into(),
                size: 1 << 20,
            },
            block: 4096,
            pattern: Pattern::Random,
            depth: 1,
            queues: 1,
            guests: 1,
            stream: 0,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(10),
        };
        let cpu = Cpus::discover().unwrap().first;
        let cores = Cores {
            front: cpu,
            back: cpu,
        };
        let error = StorageDaemon
            .run(&workload, Placement::SameCore, cores)
            .unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/disk.img"),
            "{error:#}"
        );
    }
}
