//! What keys of the xenstore say, as data. Nothing here talks to a xenstore.

/// A key that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// It is not there.
    #[error("the key {0} is missing")]
    Missing(&'static str),
    /// It is there, and makes no sense.
    #[error("the key {key} is {value:?}, which is not {expected}")]
    Value {
        /// The key.
        key: String,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
}

/// The key `key` is `value`, which is not what was expected. A peer may have chosen it.
pub fn bad(key: &str, value: &str, expected: &'static str) -> BadKey {
    BadKey::Value {
        key: key.into(),
        // A peer chose it; it goes into a log.
        value: value.chars().take(64).collect(),
        expected,
    }
}

/// A key's value as a number, if it is there: decimal digits and nothing else.
///
/// # Errors
/// It is no such number.
pub fn number<T: std::str::FromStr>(
    key: &str,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Option<T>, BadKey> {
    let Some(value) = get(key) else {
        return Ok(None);
    };
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(number) if digits => Ok(Some(number)),
        _ => Err(bad(key, &value, "a number in range")),
    }
}

/// A key that is a feature: set if it is a number other than zero.
///
/// # Errors
/// It is no number.
pub fn flag(key: &str, get: impl Fn(&str) -> Option<String>) -> Result<bool, BadKey> {
    flag_or(key, false, get)
}

/// The same, with what it means if it is absent.
///
/// # Errors
/// It is no number.
pub fn flag_or(
    key: &str,
    absent: bool,
    get: impl Fn(&str) -> Option<String>,
) -> Result<bool, BadKey> {
    Ok(number::<u32>(key, get)?.map_or(absent, |number| number != 0))
}
