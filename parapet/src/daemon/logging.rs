//! The log: on standard error, as a terminal or the journal wants it.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use log::{Level, LevelFilter};

/// Starts the log of everything up to `level`; if that is not given, of what `PARAPET_LOG`, or
/// else `RUST_LOG` says in the words of `env_logger`, and without these up to `info`.
///
/// A line begins with the time and the level; in the journal, which has the time by itself, with
/// the level as a number in angle brackets (see `sd-daemon(3)`).
pub fn start_log(level: Option<LevelFilter>) {
    let mut log = env_logger::Builder::new();
    log.filter_level(LevelFilter::Info);
    let filters = ["PARAPET_LOG", "RUST_LOG"].map(env::var);
    if let Some(level) = level {
        log.filter_level(level);
    } else if let Some(filters) = filters.iter().flatten().next() {
        log.parse_filters(filters);
    }
    if is_journal() {
        log.format(|to, record| writeln!(to, "<{}>{}", priority(record.level()), record.args()));
    } else {
        log.format(|to, record| {
            let level = record.level().as_str().to_lowercase();
            writeln!(to, "{} {level}: {}", to.timestamp_millis(), record.args())
        });
    }
    log.init();
}

/// A level as syslog counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is the stream that systemd says leads to the journal. The variable
/// alone does not tell: a child with another standard error inherits it too.
fn is_journal() -> bool {
    let own = || {
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let metadata = File::from(stderr).metadata()?;
        io::Result::Ok(format!("{}:{}", metadata.dev(), metadata.ino()))
    };
    match env::var("JOURNAL_STREAM") {
        Ok(stream) => own().is_ok_and(|own| own == stream),
        Err(_) => false,
    }
}
