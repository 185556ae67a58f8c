//! `parapet run`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use parapet::config::HostConfig;
use parapet::host::Host;
use parapet::programs::Outcome;
use parapet::report::{self, DiskSummary, VifSummary};
use serde::Serialize;

use super::demonstration::Demonstration;
use super::guests::{self, Ended, Started};
use super::{Run, output};

/// For scripts.
#[derive(Serialize)]
struct Report {
    guests: Vec<GuestReport>,
    disks: Vec<DiskSummary>,
    vifs: Vec<VifSummary>,
}

#[derive(Serialize)]
struct GuestReport {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) fn run(args: &Run) -> Result<ExitCode> {
    let Some(file) = &args.file else {
        let demonstration = Demonstration::new()?;
        if !args.json {
            writeln!(io::stdout(), "{demonstration}")?;
        }
        let programs = guests::programs(vec![demonstration.guest()])?;
        let host = guests::boot(None, Vec::new())?;
        let started = Started::new(&host, programs)?;
        // The backend has it open; so nothing is left behind, however this ends.
        drop(demonstration);
        let ended = started.finish();
        return print(args.json, &ended, &host);
    };
    let name = || file.display().to_string();
    let HostConfig {
        pcpus,
        networks,
        guests,
    } = HostConfig::load(file)?;
    let programs = guests::programs(guests).with_context(name)?;
    let host = guests::boot(pcpus, networks).with_context(name)?;
    let started = Started::new(&host, programs).with_context(name)?;
    let ended = started.finish();
    print(args.json, &ended, &host)
}

fn print(json: bool, ended: &[Ended], host: &Host) -> Result<ExitCode> {
    let disks = guests::summaries(host, ended);
    let vifs = guests::vif_summaries(host, ended);
    if json {
        let guests = ended.iter().map(GuestReport::new).collect();
        output::json(&Report {
            guests,
            disks,
            vifs,
        })?;
    } else {
        let mut out = io::stdout().lock();
        for guest in ended {
            if let Ok((outcome, _)) = &guest.result {
                writeln!(out, "{}: {outcome}", guest.name)?;
            }
        }
        for table in [report::table(&disks), report::vif_table(&vifs)] {
            if !table.is_empty() {
                write!(out, "\n{table}")?;
            }
        }
    }
    let mut status = ExitCode::SUCCESS;
    for guest in ended {
        if let Err(error) = &guest.result {
            output::complain(&anyhow!("guest {}: {error:#}", guest.name));
            status = ExitCode::FAILURE;
        }
    }
    Ok(status)
}

impl GuestReport {
    fn new(ended: &Ended) -> Self {
        let done = ended.result.as_ref();
        GuestReport {
            name: ended.name.clone(),
            seconds: done.ok().map(|(_, time)| time.as_secs_f64()),
            outcome: done.ok().map(|(outcome, _)| outcome.clone()),
            error: done.err().map(output::one_line),
        }
    }
}
