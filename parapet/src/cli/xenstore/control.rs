//! `control`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use parapet_xen_sys::Errno;
use parapet_xenstore::client::Error;
use parapet_xenstore::host;

use super::{Client, reason};

/// Gives xenstored itself a command, and prints what it answers.
///
/// `help` lists the commands that it knows. `live-update` is given a program, and sees the update
/// through: `live-update [-c CMDLINE] [-t SECONDS] [-F] PROGRAM`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Control {
    /// The command.
    command: String,

    /// Its arguments.
    #[arg(
        value_name = "ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  parapet xenstore control help
  parapet xenstore control log on
  parapet xenstore control quota max
  parapet xenstore control live-update -t 30 /usr/local/sbin/parapet-xenstored

Exit status: 0 if it was done; 1 without a xenstored; 2 if the arguments make no sense; 3 if
xenstored refused.";

/// What was not done, and the exit status.
struct Refused {
    status: u8,
    why: String,
}

impl Refused {
    /// By arguments that make no sense.
    fn nonsense(why: &str) -> Self {
        let why = why.into();
        Refused { status: 2, why }
    }

    fn by_xenstored(what: &str, why: &str) -> Self {
        let why = format!("{what}:\n{why}");
        Refused { status: 3, why }
    }
}

pub(super) fn control(args: &Control) -> anyhow::Result<ExitCode> {
    let mut client = match host::connect() {
        Ok(stream) => Client::new(stream),
        Err(error) => return Err(anyhow::anyhow!("Failed to contact Xenstored. {error}")),
    };
    let outcome = match args.command.as_str() {
        "live-update" => Update::parse(&args.arguments).and_then(|update| update.run(&mut client)),
        command => order(&mut client, command, &args.arguments),
    };
    Ok(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refused { status, why }) => {
            // It may have several lines, as the tool's; nobody is left to hear if it cannot be said.
            let _ = writeln!(io::stderr(), "{why}");
            ExitCode::from(status)
        }
    })
}

fn order(client: &mut Client, command: &str, arguments: &[String]) -> Result<(), Refused> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match client.control(command, &arguments) {
        Ok(answer) => {
            let text = answer.split('\0').next().unwrap_or_default();
            let printed = match text {
                "" => Ok(()),
                text => writeln!(io::stdout(), "{text}"),
            };
            printed.map_err(|error| Refused {
                status: 1,
                why: error.to_string(),
            })
        }
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            let known = client.control("help", &[]);
            let what = "Command not supported. Valid commands are";
            Err(known.map_or_else(
                |_| Refused {
                    status: 3,
                    why: "Error when executing command.".into(),
                },
                |known| Refused::by_xenstored(what, &known),
            ))
        }
        Err(error) => Err(Refused {
            status: 3,
            why: match error.errno() {
                Some(errno) => format!("Error {} when trying to execute command.", errno.0),
                None => error.to_string(),
            },
        }),
    }
}

/// A live update to be.
#[derive(Debug, PartialEq, Eq)]
struct Update<'a> {
    program: &'a str,
    command_line: Option<&'a str>,
    /// How long xenstored may wait for the end of transactions.
    patience: Duration,
    force: bool,
}

impl<'a> Update<'a> {
    fn parse(arguments: &'a [String]) -> Result<Self, Refused> {
        let mut arguments = arguments.iter().map(String::as_str);
        let mut program = None;
        let mut command_line = None;
        let mut patience = 60;
        let mut force = false;
        while let Some(argument) = arguments.next() {
            match argument {
                "-c" => {
                    let missing = || Refused::nonsense("Missing command line value");
                    command_line = Some(arguments.next().ok_or_else(missing)?);
                }
                "-t" => {
                    let missing = || Refused::nonsense("Missing timeout value");
                    patience = arguments
                        .next()
                        .and_then(|seconds| seconds.parse().ok())
                        .ok_or_else(missing)?;
                }
                "-F" => force = true,
                name => program = Some(name),
            }
        }
        Ok(Update {
            program: program.ok_or_else(|| Refused::nonsense("Missing binary specification"))?,
            command_line,
            patience: Duration::from_secs(patience),
            force,
        })
    }

    /// Names the program, sets its arguments, starts; all is called off if any of that fails.
    fn run(&self, client: &mut Client) -> Result<(), Refused> {
        let what = "Setting update binary failed";
        step(client, what, &["-f", self.program])?;
        let started = self
            .command_line
            .map_or(Ok(()), |text| step(client, what, &["-c", text]))
            .and_then(|()| self.start(client));
        if started.is_err() {
            // There may be nothing to call off any more.
            let _ = client.control("live-update", &["-a"]);
        }
        started
    }

    fn start(&self, client: &mut Client) -> Result<(), Refused> {
        let seconds = self.patience.as_secs().to_string();
        let mut arguments = vec!["-s", "-t", &seconds];
        arguments.extend(self.force.then_some("-F"));
        let end = Instant::now() + self.patience;
        loop {
            let answer = client.control("live-update", &arguments);
            match answer {
                Ok(answer) if answer == "BUSY" && Instant::now() < end => {
                    thread::sleep(Duration::from_secs(1));
                }
                answer => return done("Starting live update failed", answer),
            }
        }
    }
}

fn step(client: &mut Client, what: &str, arguments: &[&str]) -> Result<(), Refused> {
    done(what, client.control("live-update", arguments))
}

fn done(what: &str, answer: Result<String, Error>) -> Result<(), Refused> {
    match answer {
        Ok(answer) if answer == "OK" => Ok(()),
        Ok(answer) => Err(Refused::by_xenstored(what, &answer)),
        Err(error) => Err(Refused::by_xenstored(what, &reason(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_read_as_the_tool_reads_it() {
        let read = |line: &str| {
            let arguments: Vec<_> = line.split_whitespace().map(String::from).collect();
            Update::parse(&arguments)
                .map(|update| format!("{update:?}"))
                .map_err(|refused| (refused.status, refused.why))
        };
        let all = read("-t 5 -F -c -v /sbin/new").unwrap();
        assert!(
            all.contains(r#"program: "/sbin/new", command_line: Some("-v")"#),
            "{all}"
        );
        assert!(all.contains("patience: 5s, force: true"), "{all}");
        assert!(
            read("/sbin/new")
                .unwrap()
                .contains("patience: 60s, force: false")
        );
        let missing = |what: &str| Err((2, format!("Missing {what}")));
        assert_eq!(read("-F"), missing("binary specification"));
        assert_eq!(read("new -c"), missing("command line value"));
        assert_eq!(read("new -t"), missing("timeout value"));
    }
}
