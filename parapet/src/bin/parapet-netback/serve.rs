//! The daemon's life.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use parapet::config::{NetworkConfig, NetworkKind};
use parapet::daemon::capture::CaptureSocket;
use parapet::daemon::netback::{NAME, Status};
use parapet::daemon::{
    End, Failure, KernelBackend, Lock, NotReady, StatusSocket, ending, place, raise_open_files,
    store,
};
use parapet::network::Networks;
use parapet_hypervisor::seam::{Clock, Identity, Tasks};
use parapet_hypervisor::xen::Xen;
use parapet_netback::device::{Options, Vifs};
use parapet_netback::report::{Reports, Stage};
use parapet_netback::service::Service;

/// What the command line chose.
pub(crate) struct Settings {
    pub(crate) run_dir: PathBuf,
    pub(crate) networks: Vec<NetworkConfig>,
    pub(crate) options: Options,
}

/// Linux's own.
const KERNEL: KernelBackend = KernelBackend {
    kind: "vif",
    module: "xen-netback",
};

/// The networks that vifs are on: those that are named, and the host's.
fn networks(place: &Xen, configs: &[NetworkConfig]) -> Result<Networks<Xen>, Failure> {
    // The name says nothing: a vif without a bridge is an interface that somebody sees to.
    let host = [NetworkConfig {
        name: String::new(),
        kind: NetworkKind::Bridged {
            bridge: None,
            namespace: None,
        },
    }];
    let configs = match configs {
        [] => &host,
        some => some,
    };
    Networks::start(place, configs).map_err(|(name, error)| {
        Failure::NotReady(anyhow!(error).context(format!("network {name}")))
    })
}

/// Serves until a signal comes.
pub(crate) fn serve(settings: &Settings) -> Result<(), Failure> {
    let place = place()?;
    KERNEL.refuse(Path::new("/sys"))?;
    let _lock = Lock::take(&settings.run_dir, NAME).map_err(NotReady::from)?;
    raise_open_files();
    let store = store(&place)?;

    let domid = place.domid();
    let networks = Arc::new(networks(&place, &settings.networks)?);
    let vifs = Vifs::new(settings.options, networks);
    let service = Service::new(place.clone(), store, vifs);
    let reports = service.reports();
    let _socket = StatusSocket::open(&settings.run_dir, NAME, {
        let reports = reports.clone();
        move || Status::new(domid, &reports.all())
    })
    .map_err(NotReady::Socket)?;
    let _capture = CaptureSocket::open(&settings.run_dir, NAME, reports.clone(), {
        let place = place.clone();
        move || place.now()
    })
    .map_err(NotReady::Socket)?;

    let (ending, work) = ending()?;
    place.spawn(async move { work.done(service.run().await) });
    place.spawn(KERNEL.watch(place.clone()));
    log::info!("serves the vifs of domain {domid}'s guests");
    match ending.wait() {
        End::Signal(signal) => {
            log::info!("stopped by {signal}, {}", in_use(&reports));
            Ok(())
        }
        End::Done(Err(error)) => {
            let error = anyhow!(error).context("without a xenstore no vif can be served");
            Err(Failure::Failed(error))
        }
        End::Done(Ok(())) | End::Lost => {
            Err(Failure::Failed(anyhow!("the service of vifs has ended")))
        }
    }
}

/// What the end of the daemon means for guests.
fn in_use(reports: &Reports) -> String {
    let reports = reports.all();
    let connected = reports
        .iter()
        .filter(|report| report.stage == Stage::Connected);
    let names: Vec<String> = connected.map(|report| report.device.to_string()).collect();
    match names.as_slice() {
        [] => "with no vif in use".into(),
        names => format!(
            "with {} in use ({}), which stand still until the next daemon",
            match names.len() {
                1 => "1 vif".into(),
                several => format!("{several} vifs"),
            },
            names.join(", ")
        ),
    }
}
