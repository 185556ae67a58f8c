//! A host whose guests run built-in programs.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::Shared;
use parapet::config::{GuestConfig, NetworkConfig};
use parapet::guest::Guest;
use parapet::host::{Host, Running, StartError};
use parapet::programs::{Outcome, Program};
use parapet::report::{DiskSummary, VifSummary};
use parapet_hypervisor::seam::Clock;

use super::output;

/// What a guest did, and how long it took.
type Done = (Outcome, Duration);

/// A guest that has ended.
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) result: Result<Done>,
}

/// Boots a host with these networks.
pub(super) fn boot(pcpus: Option<usize>, networks: Vec<NetworkConfig>) -> Result<Host> {
    let mut builder = Host::builder().networks(networks);
    if let Some(pcpus) = pcpus {
        builder = builder.pcpus(pcpus);
    }
    Ok(builder.build()?)
}

/// The program of each guest.
///
/// # Errors
/// One has none, or one that there is not.
pub(super) fn programs(guests: Vec<GuestConfig>) -> Result<Vec<(GuestConfig, Program)>> {
    let of = |guest: GuestConfig| {
        let program = Program::of(&guest).with_context(|| format!("guest {}", guest.name))?;
        Ok((guest, program))
    };
    guests.into_iter().map(of).collect()
}

/// Guests that are ready to run: their images are open.
pub(super) struct Started<'a> {
    host: &'a Host,
    running: Vec<(String, Running<'a, Done>)>,
    /// Until something is sent, no program begins.
    go: oneshot::Sender<()>,
}

impl<'a> Started<'a> {
    /// Makes the guests. Should one be impossible, none has run.
    pub(super) fn new(host: &'a Host, guests: Vec<(GuestConfig, Program)>) -> Result<Self> {
        let (go, gate) = oneshot::channel();
        let gate = gate.shared();
        let mut running = Vec::new();
        for (config, program) in guests {
            let gate = gate.clone();
            let guest = host.start(&config, move |guest| timed(gate, program, guest))?;
            running.push((config.name, guest));
        }
        Ok(Started { host, running, go })
    }

    /// Lets them run, and waits for all.
    pub(super) fn finish(self) -> Vec<Ended> {
        let Started { host, running, go } = self;
        let progress: Vec<_> = running
            .iter()
            .map(|(_, guest)| Arc::clone(guest.progress()))
            .collect();
        // The guests that wait for it are there.
        let _ = go.send(());
        let ended = thread::scope(|scope| {
            let (working, over) = mpsc::channel();
            scope.spawn(move || output::follow(&progress, &over));
            let ended: Vec<_> = running
                .into_iter()
                .map(|(name, guest)| (name, guest.wait()))
                .collect();
            drop(working);
            ended
        });
        let explain = |(name, result): (String, Result<Done>)| Ended {
            result: result.map_err(|error| explain(host, &name, error)),
            name,
        };
        ended.into_iter().map(explain).collect()
    }
}

async fn timed(
    gate: Shared<oneshot::Receiver<()>>,
    program: Program,
    guest: Guest,
) -> Result<Done> {
    gate.await.context("it was not started")?;
    let begin = guest.domain().now();
    let outcome = program.run(guest.clone()).await?;
    Ok((outcome, guest.domain().now().since(begin)))
}

/// Adds what the guest cannot know: which image failed it.
fn explain(host: &Host, name: &str, error: anyhow::Error) -> anyhow::Error {
    let mut text = output::one_line(&error);
    for report in host.disks().iter().filter(|report| report.guest == name) {
        let summary = DiskSummary::new(report, None);
        let failed = summary.read.errors + summary.write.errors + summary.flush.errors;
        if failed > 0 {
            let reason = report.stats.sum().host_error();
            let reason = reason.map_or_else(String::new, |error| format!(" ({error})"));
            text = format!(
                "{text}; {failed} requests failed on the image {}{reason}: see that its file \
                 system has room and its device is sound",
                summary.target
            );
        }
    }
    anyhow!(text)
}

/// How long the program of a guest ran that has ended well.
fn time_of(ended: &[Ended], name: &str) -> Option<Duration> {
    let guest = ended.iter().find(|guest| guest.name == name)?;
    guest.result.as_ref().ok().map(|(_, time)| *time)
}

/// What every disk did of the guests that ended.
pub(super) fn summaries(host: &Host, ended: &[Ended]) -> Vec<DiskSummary> {
    let disks = host.disks();
    let summaries = disks
        .iter()
        .map(|disk| DiskSummary::new(disk, time_of(ended, &disk.guest)));
    summaries.collect()
}

/// What every vif did of the guests that ended.
pub(super) fn vif_summaries(host: &Host, ended: &[Ended]) -> Vec<VifSummary> {
    let vifs = host.vifs();
    let summaries = vifs
        .iter()
        .map(|vif| VifSummary::new(vif, time_of(ended, &vif.guest)));
    summaries.collect()
}

/// Runs one guest whose name and disks mean nothing to whoever asked for it.
pub(super) fn run_one(host: &Host, guest: GuestConfig) -> Result<Done> {
    let started =
        Started::new(host, programs(vec![guest])?).map_err(|error| match error.downcast() {
            Ok(StartError::Disk { reason, .. }) => anyhow!(reason),
            Ok(error) => error.into(),
            Err(error) => error,
        })?;
    let guest = started
        .finish()
        .pop()
        .context("a guest that was started ends")?;
    guest.result
}
