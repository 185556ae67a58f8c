//! The daemon's life.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use parapet::daemon::blkback::{NAME, Status};
use parapet::daemon::{
    End, Failure, KernelBackend, Lock, NotReady, StatusSocket, ending, place, raise_open_files,
    store,
};
use parapet_blkback::device::{Disks, Options};
use parapet_blkback::report::{Reports, Stage};
use parapet_blkback::service::Service;
use parapet_hypervisor::seam::{Identity, Tasks};

use crate::ready;

/// What the command line chose.
pub(crate) struct Settings {
    pub(crate) run_dir: PathBuf,
    /// The folder of the journals, if there are to be any.
    pub(crate) journals: Option<PathBuf>,
    pub(crate) poll: Duration,
    pub(crate) queues: u32,
}

/// Linux's own.
const KERNEL: KernelBackend = KernelBackend {
    kind: "vbd",
    module: "xen-blkback",
};

/// Serves until a signal comes.
pub(crate) fn serve(settings: &Settings) -> Result<(), Failure> {
    let place = place()?;
    KERNEL.refuse(Path::new("/sys"))?;
    let _lock = Lock::take(&settings.run_dir, NAME).map_err(NotReady::from)?;
    raise_open_files();
    let store = store(&place)?;

    let domid = place.domid();
    // The other half is for what is mapped for a request alone, and for all else.
    let options = Options {
        poll: settings.poll,
        queues: settings.queues,
        persistent_pages: ready::mappings(Path::new("/proc")).map(|most| most / 2),
    };
    let mut disks = Disks::new(options);
    if let Some(folder) = &settings.journals {
        disks = disks.keeping(ready::journals(folder)?);
    }
    let service = Service::new(place.clone(), store, disks);
    let reports = service.reports();
    let _socket = StatusSocket::open(&settings.run_dir, NAME, {
        let reports = reports.clone();
        move || Status::new(domid, &reports.all())
    })
    .map_err(NotReady::Socket)?;

    let (ending, work) = ending()?;
    place.spawn(async move { work.done(service.run().await) });
    place.spawn(KERNEL.watch(place.clone()));
    log::info!("serves the disks of domain {domid}'s guests");
    match ending.wait() {
        End::Signal(signal) => {
            log::info!("stopped by {signal}, {}", in_use(&reports));
            Ok(())
        }
        End::Done(Err(error)) => {
            let error = anyhow!(error).context("without a xenstore no disk can be served");
            Err(Failure::Failed(error))
        }
        End::Done(Ok(())) | End::Lost => {
            Err(Failure::Failed(anyhow!("the service of disks has ended")))
        }
    }
}

/// What the end of the daemon means for guests. All that they were told is on their images is so:
/// there is nothing to write back.
fn in_use(reports: &Reports) -> String {
    let reports = reports.all();
    let connected = reports
        .iter()
        .filter(|report| report.stage == Stage::Connected);
    let names: Vec<String> = connected.map(|report| report.device.to_string()).collect();
    match names.as_slice() {
        [] => "with no disk in use".into(),
        [one] => format!("with 1 disk in use ({one}), whose guest waits for the next daemon"),
        several => format!(
            "with {} disks in use ({}), whose guests wait for the next daemon",
            several.len(),
            several.join(", ")
        ),
    }
}
