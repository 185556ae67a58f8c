//! What people and scripts see.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parapet::guest::Progress;
use serde::Serialize;

/// Says on standard error, in one line, what went wrong.
pub(super) fn complain(error: &anyhow::Error) {
    // Nobody is left to hear that it cannot be said.
    let _ = writeln!(io::stderr(), "parapet: {}", one_line(error));
}

/// An error and its causes, without those that an error has put into its own words already.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause}");
        }
    }
    text.replace('\n', " ")
}

/// Prints a line of JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// A bar for `bytes` bytes. It is hidden by itself where there is no terminal.
pub(super) fn bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    bar.set_style(
        ProgressStyle::with_template(
            "{bar:40} {percent}% of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
        )
        .expect("the template is right"),
    );
    bar
}

/// Shows on a terminal how far the guests are, all together, until the other end of `over` is
/// dropped.
pub(super) fn follow(guests: &[Arc<Progress>], over: &Receiver<()>) {
    let bar = bar(0);
    let sum = |of: fn(&Progress) -> u64| guests.iter().map(|progress| of(progress)).sum();
    while over.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        bar.set_length(sum(Progress::total));
        bar.set_position(sum(Progress::done));
    }
    bar.finish_and_clear();
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn an_error_is_one_line_that_says_nothing_twice() {
        let error = anyhow!("no\nroom")
            .context("writing: no\nroom")
            .context("disk xvda");
        assert_eq!(one_line(&error), "disk xvda: writing: no room");
        let error = Err::<(), _>(anyhow!("inner")).context("outer").unwrap_err();
        assert_eq!(one_line(&error), "outer: inner");
    }
}
