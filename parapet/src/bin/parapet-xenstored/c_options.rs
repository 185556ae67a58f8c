//! The options of C xenstored: by them it starts whatever takes its place.
//!
//! They are `tools/xenstore/xenstored_core.c`'s of Xen 4.17. Those that have a meaning here are
//! followed, and the others taken; what is none of them is ours.

use std::ffi::{OsStr, OsString};

use parapet_xenstore::store::{Limit, Quotas};

/// An option: its letter, its name, whether it has a value, and the limit that this sets.
struct Known(char, &'static str, bool, Option<&'static str>);

const KNOWN: [Known; 22] = [
    Known('D', "no-domain-init", false, None),
    Known('E', "entry-nb", true, Some("nodes")),
    Known('F', "pid-file", true, None),
    Known('e', "event", true, None),
    Known('m', "master-domid", true, None),
    Known('H', "", false, None),
    Known('N', "no-fork", false, None),
    Known('p', "priv-domid", true, None),
    Known('P', "output-pid", false, None),
    Known('S', "entry-size", true, Some("node-size")),
    Known('T', "trace-file", true, None),
    Known('t', "transaction", true, Some("transactions")),
    Known('A', "perm-nb", true, Some("node-permissions")),
    Known('M', "path-max", true, Some("path-max")),
    Known('Q', "quota", true, Some("")),
    Known('q', "quota-soft", true, Some("soft-")),
    Known('w', "timeout", true, None),
    Known('R', "no-recovery", false, None),
    Known('I', "internal-db", false, None),
    Known('K', "keep-orphans", false, None),
    Known('V', "verbose", false, None),
    Known('W', "watch-nb", true, Some("watches")),
];

/// What C xenstored's options say, and the arguments that are none of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Translated {
    /// With what was said of them.
    pub(crate) quotas: Quotas,
    /// Ours.
    pub(crate) rest: Vec<OsString>,
}

/// Takes C xenstored's options out of `arguments`.
///
/// # Errors
/// One that has a value has none, or one that is no number: a line that says so.
pub(crate) fn translate(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Translated, String> {
    let mut translated = Translated::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some((known, value)) = argument.to_str().and_then(find) else {
            translated.rest.push(argument);
            continue;
        };
        if !known.2 {
            // Without domain 0 there is no domain at all.
            if known.0 == 'D' {
                translated.rest.push("--no-domains".into());
            }
            continue;
        }
        let value = match value {
            Some(value) => Some(OsString::from(value)),
            None => arguments.next(),
        };
        let value = value.ok_or(format!("{argument:?} needs a value"))?;
        // What waits longer than so, of which there is one kind.
        if known.0 == 'w'
            && let Some(seconds) = value
                .to_str()
                .and_then(|it| it.strip_prefix("watch-event="))
        {
            translated
                .rest
                .push(format!("--event-timeout={seconds}").into());
        }
        if let Some(name) = known.3 {
            limit(&mut translated.quotas, name, &value)
                .ok_or(format!("{argument:?} {value:?} is no quota"))?;
        }
    }
    Ok(translated)
}

/// The option that an argument is, with the value that is written in the same word.
fn find(argument: &str) -> Option<(&'static Known, Option<&str>)> {
    if let Some(long) = argument.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let known = KNOWN
            .iter()
            .find(|known| !name.is_empty() && known.1 == name)?;
        return Some((known, value));
    }
    let mut letters = argument.strip_prefix('-')?.chars();
    let letter = letters.next()?;
    let known = KNOWN.iter().find(|known| known.0 == letter)?;
    let value = Some(letters.as_str()).filter(|value| !value.is_empty());
    Some((known, value))
}

/// Sets a limit to a number, or one that `value` names itself: `memory=5000`.
fn limit(quotas: &mut Quotas, name: &str, value: &OsStr) -> Option<()> {
    let value = value.to_str()?;
    let (name, number) = match value.split_once('=') {
        Some((what, number)) if name.is_empty() || name.ends_with('-') => {
            (format!("{name}{what}"), number)
        }
        _ => (name.into(), value),
    };
    quotas[Limit::named(name.as_bytes())?] = number.parse().ok()?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Result<Translated, String> {
        translate(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn c_xenstoreds_options_are_taken_and_ours_left() {
        let all = "-N --pid-file /run/x.pid --log debug -E 77 -t5 --quota memory=4096 \
                   --quota-soft=memory=9 -w watch-event=20 -I --verbose --live-update";
        let translated = translated(all).unwrap();
        assert_eq!(
            translated.rest,
            ["--log", "debug", "--event-timeout=20", "--live-update"]
        );
        let quota = |name: &str| translated.quotas[Limit::named(name.as_bytes()).unwrap()];
        let names = ["nodes", "transactions", "memory", "soft-memory"];
        assert_eq!(names.map(quota), [77, 5, 4096, 9]);
    }

    #[test]
    fn without_domain_0_there_are_no_domains() {
        assert_eq!(translated("-D").unwrap().rest, ["--no-domains"]);
    }

    #[test]
    fn what_is_no_quota_is_refused() {
        for line in ["-E", "-E x", "-Q nothing=1", "--quota-soft nodes=1", "-Q"] {
            translated(line).unwrap_err();
        }
    }
}
