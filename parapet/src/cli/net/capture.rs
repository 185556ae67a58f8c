//! `parapet net capture`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use parapet::daemon::capture::{Wish, capture as begin};
use parapet::daemon::netback::NAME;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::bench::seconds;

/// Captures the frames of vifs that parapet-netback serves, until Ctrl-C.
///
/// The file is pcapng, as Wireshark reads it: frames from the guest are inbound. A frame is shown
/// as it crosses the vif, before it is cut into segments, and with its checksum made.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The vifs, by name, such as vif5.0: all that there are, if none is said.
    vifs: Vec<String>,

    /// The file; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,

    /// How much of each frame is kept, in bytes.
    #[arg(short, long, value_name = "BYTES", default_value_t = 65535)]
    snaplen: usize,

    /// For how many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,

    /// The daemon's folder.
    #[arg(long, value_name = "DIR", default_value = "/run/parapet")]
    run_dir: PathBuf,
}

pub(super) fn capture(args: &Args) -> anyhow::Result<ExitCode> {
    let to_stdout = args.write.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        bail!("a capture is nothing to look at: give a file, or pipe it to `tshark -r -`");
    }
    let wish = Wish {
        vifs: args.vifs.clone(),
        longest: args.snaplen,
    };
    let (mut frames, stop) = begin(&args.run_dir, NAME, &wish)?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signals cannot be caught")?;
    let handle = signals.handle();
    let time = args.seconds;
    thread::scope(|scope| {
        scope.spawn(|| {
            // Ended by a signal, or because the capture has.
            let _ = signals.forever().next();
            stop.stop();
        });
        if let Some(time) = time {
            let handle = handle.clone();
            // Not waited for, should a signal come first.
            thread::spawn(move || {
                thread::sleep(time);
                handle.close();
            });
        }
        let copied = match to_stdout {
            true => io::copy(&mut frames, &mut io::stdout().lock()),
            false => File::create(&args.write).and_then(|mut file| {
                let copied = io::copy(&mut frames, &mut file)?;
                file.flush()?;
                Ok(copied)
            }),
        };
        handle.close();
        let name = args.write.display();
        copied.with_context(|| format!("{name} cannot be written"))
    })?;
    Ok(ExitCode::SUCCESS)
}
