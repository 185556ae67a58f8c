//! `parapet blk export`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use parapet::config::{DiskConfig, GuestConfig};
use parapet::daemon::{End, Failure, Listening, ending};
use parapet::guest::Guest;
use parapet::host::{Host, StartError};
use parapet::nbd;
use parapet_blkback::image::Spec;
use parapet_blkfront::Config;

/// Serves an image to NBD clients, through a guest's disk.
///
/// A guest is booted that has IMAGE as its disk, and in it an NBD server, at a unix socket for
/// this user alone. Whatever a client does goes through the frontend, the ring and the backend: so
/// fio, qemu-img, nbdcopy, mkfs or a kernel exercise both. Several clients may be connected at
/// once; what one has flushed, all have.
///
/// It serves until it gets SIGINT or SIGTERM. The disk is flushed then, and the socket removed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The image: a path, or what a disk's target may be, as null:SIZE or memory:SIZE.
    image: String,

    /// The socket. The folder is made if need be.
    #[arg(long, value_name = "SOCKET")]
    nbd: PathBuf,

    /// What the export is called; it is the default one as well.
    #[arg(long, default_value = "disk")]
    name: String,

    /// Refuses to write.
    #[arg(short, long)]
    read_only: bool,

    /// How many queues the disk has; one for each CPU, up to four, if not said.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    queues: Option<u32>,

    /// The pages of each ring, as a power of two: 32 requests are under way in one page.
    #[arg(long, value_name = "ORDER", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=8))]
    ring_order: u32,

    /// The most pages that a request has.
    #[arg(long, value_name = "N", default_value_t = parapet_blkfront::MAX_SEGMENTS)]
    segments: usize,

    /// Kills the backend without warning every so many seconds, and starts it again: clients see
    /// a pause and nothing else.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    restart_every: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  parapet blk export disk.img --nbd /tmp/disk.sock
  qemu-img convert -O raw guest.qcow2 'nbd+unix:///?socket=/tmp/disk.sock' -n
  fio --name=t --ioengine=nbd --uri='nbd+unix:///?socket=/tmp/disk.sock' --rw=randwrite \\
      --verify=crc32c --iodepth=32 --size=64M
  parapet blk export disk.img --nbd /tmp/disk.sock --restart-every 3";

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("it should be more than 0".into()),
    }
}

pub(super) fn export(args: &Args) -> Result<ExitCode> {
    let access = if args.read_only { "ro" } else { "rw" };
    let target = &args.image;
    let disk: DiskConfig = format!("vdev=xvda, access={access}, target={target}").parse()?;
    let mut builder = Host::builder();
    if let Some(queues) = args.queues {
        builder = builder.queues(queues);
    }
    if args.restart_every.is_some() {
        let lasting = !matches!(target.parse(), Ok(Spec::Memory { .. }));
        ensure!(
            lasting,
            "{target} would be empty after each restart: give an image that lasts"
        );
        builder = builder.killable_backends();
    }
    let host = builder.build()?;
    let guest = GuestConfig {
        disks: vec![disk],
        vcpus: thread::available_parallelism().map_or(1, |cpus| cpus.get().min(4)),
        memory: MEMORY,
        ..GuestConfig::new("export")
    };
    // Caught before there is a socket, so that no signal leaves it behind.
    let (ends, work) = ending().map_err(|failure| match failure {
        Failure::Failed(error) | Failure::NotReady(error) => error,
    })?;
    let listening = Listening::open(&args.nbd)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, serving) = mpsc::channel();
    let program = {
        let listener = listening.listener()?;
        let (name, wanted) = (args.name.clone(), args.connection());
        async move |guest: Guest| {
            let config = wanted(guest.disk_config());
            let disk = guest.disk_as("xvda", config).await?;
            let server = nbd::serve(guest.domain(), listener, disk.clone(), &name)
                .context("the socket cannot be waited for")?;
            // Whoever waits for it is there as long as the guest is.
            let _ = ready.send(());
            if let Either::Left(((), _)) = select(Box::pin(server), stopped).await {
                bail!("the NBD server has ended");
            }
            if disk.info().flush {
                disk.flush().await?;
            }
            Ok(())
        }
    };
    let running = host.start(&guest, program).map_err(|error| match error {
        // The guest's name means nothing to whoever asked for this.
        StartError::Disk { reason, .. } => anyhow!(reason),
        error => error.into(),
    })?;
    if serving.recv().is_ok() {
        let socket = args.nbd.display();
        writeln!(io::stdout(), "nbd+unix:///{}?socket={socket}", args.name)?;
        io::stdout().flush()?;
    }
    thread::scope(|scope| {
        let (over, going) = mpsc::channel::<()>();
        if let Some(every) = args.restart_every {
            let host = &host;
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
        let waiter = scope.spawn(move || {
            let outcome = running.wait();
            work.done(());
            outcome
        });
        if let End::Signal(name) = ends.wait() {
            log::info!("ends, by {name}");
        }
        // No restart is to come between the disk and its last flush.
        drop(over);
        // The guest may have ended by itself.
        let _ = stop.send(());
        waiter.join().expect("the guest is waited for")
    })?;
    drop(listening);
    Ok(ExitCode::SUCCESS)
}

/// The guest's memory: rings, buffers, and what requests of several clients need at once.
const MEMORY: u64 = 256 << 20;

impl Args {
    /// The connection that is asked for, of what a guest does by itself.
    fn connection(&self) -> impl FnOnce(Config) -> Config + Send + use<> {
        let (queues, order, segments) = (self.queues, self.ring_order, self.segments);
        move |config| {
            let config = config.ring_order(order).indirect_segments(segments);
            match queues {
                Some(queues) => config.queues(queues),
                None => config,
            }
        }
    }
}
