//! `parapet net tap`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use parapet::config::{GuestConfig, VifConfig};
use parapet::daemon::{End, Failure, ending};
use parapet::guest::Guest;
use parapet::host::Host;
use parapet::wire::{Place, wire};
use parapet_netfront::{Config, Features};

/// Joins Linux stacks of this machine by vifs and a switch.
///
/// For each TAP device a guest is booted that does nothing but carry frames between the device and
/// its vif: so whatever uses the device, be it ping, iperf3, curl or a whole container, talks
/// through the frontend, the rings, the backend and the switch. The device gets the vif's Ethernet
/// address; addresses of its own are for `ip addr` to give it.
///
/// It goes on until it gets SIGINT or SIGTERM. It takes root, or CAP_NET_ADMIN and, for other
/// namespaces, CAP_SYS_ADMIN.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A TAP device, made if there is none; in another network namespace with @NAME, as `ip netns`
    /// calls it, or @PATH.
    #[arg(long = "tap", value_name = "DEVICE[@NAMESPACE]", required = true)]
    taps: Vec<Place>,

    /// How many queues each vif has.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    queues: u32,

    /// The longest packet without its Ethernet header, in bytes.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..))]
    mtu: u16,

    /// Leaves neither checksums nor segments to the other side.
    #[arg(long)]
    no_offload: bool,

    /// Has pages mapped and copied frame by frame, instead of once.
    #[arg(long)]
    no_static_grants: bool,

    /// Kills the backend without warning every so many seconds, and starts it again.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    restart_every: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  ip netns add red; ip netns add blue
  parapet net tap --tap vif0@red --tap vif0@blue &
  ip -n red addr add 10.7.0.1/24 dev vif0; ip -n blue addr add 10.7.0.2/24 dev vif0
  ip netns exec blue iperf3 -s -D; ip netns exec red iperf3 -c 10.7.0.2";

impl Args {
    fn config(&self) -> Config {
        let config = Config::new()
            .queues(self.queues)
            .static_grants(!self.no_static_grants);
        match self.no_offload {
            true => config.takes(Features {
                scatter: true,
                ..Features::NONE
            }),
            false => config,
        }
    }
}

pub(super) fn tap(args: &Args) -> Result<ExitCode> {
    let mut builder = Host::builder().queues(args.queues);
    if args.restart_every.is_some() {
        builder = builder.killable_backends();
    }
    let host = builder.build()?;
    let (ends, work) = ending().map_err(|failure| match failure {
        Failure::Failed(error) | Failure::NotReady(error) => error,
    })?;
    let mut running = Vec::new();
    let mut stops = Vec::new();
    for (at, place) in args.taps.iter().enumerate() {
        let tap = place
            .open()
            .with_context(|| format!("the TAP device {} cannot be opened", place.device))?;
        let vif = VifConfig {
            mtu: Some(args.mtu),
            ..VifConfig::default()
        };
        let guest = GuestConfig {
            vifs: vec![vif],
            vcpus: args.queues as usize,
            ..GuestConfig::new(format!("tap{at}"))
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (config, unfinished) = (args.config(), !args.no_offload);
        let program = async move |guest: Guest| {
            let wired = Box::pin(wire(guest, tap, config, unfinished));
            match select(wired, stopped).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => Ok(()),
            }
        };
        running.push(host.start(&guest, program)?);
        stops.push(stop);
    }
    let mut out = io::stdout().lock();
    for place in &args.taps {
        writeln!(out, "{}", place.device)?;
    }
    out.flush()?;
    drop(out);
    thread::scope(|scope| {
        let (over, going) = mpsc::channel::<()>();
        if let Some(every) = args.restart_every {
            let host = &host;
            let every = Duration::from_secs(every.into());
            scope.spawn(move || {
                while going.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = host.restart_backends() {
                        log::error!("the backend was killed, and does not start again: {error}");
                        return;
                    }
                    log::info!("the backend was killed, and started again");
                }
            });
        }
        // One that ends by itself is the end of all.
        let (ended, first) = mpsc::channel();
        let waiters: Vec<_> = running
            .into_iter()
            .map(|guest| {
                let ended = ended.clone();
                scope.spawn(move || {
                    let outcome = guest.wait();
                    let _ = ended.send(());
                    outcome
                })
            })
            .collect();
        scope.spawn(move || {
            let _ = first.recv();
            work.done(());
        });
        if let End::Signal(name) = ends.wait() {
            log::info!("ends, by {name}");
        }
        drop(over);
        drop(stops);
        waiters
            .into_iter()
            .try_for_each(|waiter| waiter.join().expect("a guest is waited for"))
    })?;
    Ok(ExitCode::SUCCESS)
}
