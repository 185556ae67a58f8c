//! Paths: checked once, when they come in, and canonical from then on.

use alloc::format;
use alloc::sync::Arc;
use core::borrow::Borrow;
use core::fmt;

use parapet_xen_sys::io::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};
use parapet_xen_sys::{DomId, Errno};

/// Whether `@introduceDomain` and its like may stand where a path is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// In watches and permissions.
    Allowed,
    /// Everywhere else.
    Refused,
}

/// A canonical path: `/`, or `/a/b`, or a special name such as `@releaseDomain`.
///
/// Only the characters `A-Za-z0-9-/_@`, no doubled and no trailing slash, at most
/// [`ABS_PATH_MAX`] bytes (`docs/misc/xenstore.txt`). Clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Arc<str>);

impl Path {
    /// The root.
    pub fn root() -> Self {
        Path(Arc::from("/"))
    }

    /// A domain's home, which relative paths start from.
    pub fn of_domain(domid: DomId) -> Self {
        Path(Arc::from(format!("/local/domain/{domid}")))
    }

    /// Checks an absolute path or a special name.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn new(raw: &str) -> Result<Self, Errno> {
        Path::parse(raw.as_bytes(), DomId::ZERO, Special::Allowed).and_then(|path| {
            if is_relative(raw.as_bytes()) {
                Err(Errno::EINVAL)
            } else {
                Ok(path)
            }
        })
    }

    /// Checks what domain `base` sent, and completes it if it is relative.
    ///
    /// # Errors
    /// `EINVAL`, whatever is wrong with it.
    pub fn parse(raw: &[u8], base: DomId, special: Special) -> Result<Self, Errno> {
        let clean = raw
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte));
        let doubled = raw.windows(2).any(|two| two == b"//");
        if !clean || doubled || (raw.first() == Some(&b'@') && special == Special::Refused) {
            return Err(Errno::EINVAL);
        }
        let text = core::str::from_utf8(raw).map_err(|_| Errno::EINVAL)?;
        let path = if is_relative(raw) {
            if raw.len() > REL_PATH_MAX {
                return Err(Errno::EINVAL);
            }
            Path(Arc::from(format!("/local/domain/{base}/{text}")))
        } else {
            Path(Arc::from(text))
        };
        let trailing = path.0.ends_with('/') && path.0.len() > 1;
        if trailing || path.0.len() > ABS_PATH_MAX {
            return Err(Errno::EINVAL);
        }
        Ok(path)
    }

    /// The path of this node's child `name`.
    ///
    /// # Errors
    /// `EINVAL`, when `name` cannot stand in a path, or the whole would be too long.
    pub fn join(&self, name: &str) -> Result<Self, Errno> {
        let slash = if &*self.0 == "/" { "" } else { "/" };
        Path::new(&format!("{}{slash}{name}", self.0))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names one of xenstored's own events and not a node.
    pub fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The names from the top down; none for the root.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        names(&self.0)
    }

    /// The path that the first `names` names make.
    pub(super) fn prefix(&self, names: usize) -> &str {
        if names == 0 {
            return "/";
        }
        let first = usize::from(!self.is_special());
        self.0
            .match_indices('/')
            .map(|(at, _)| at)
            .nth(first + names - 1)
            .map_or(&self.0, |at| self.0.get(..at).unwrap_or(&self.0))
    }

    /// This path and all above it, from the top down. The root is above every path but the
    /// special ones.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &str> {
        let root = (!self.is_special()).then_some("/");
        let slashes = self.0.bytes().enumerate().skip(1);
        let slashes = slashes.filter(|&(_, byte)| byte == b'/');
        let above = slashes.filter_map(|(at, _)| self.0.get(..at));
        let whole = (&*self.0 != "/").then_some(&*self.0);
        root.into_iter().chain(above).chain(whole)
    }

    /// The node above; none for the root and for special names.
    pub fn parent(&self) -> Option<&str> {
        match self.0.bytes().rposition(|byte| byte == b'/') {
            Some(0) if self.0.len() > 1 => Some("/"),
            Some(0) | None => None,
            Some(at) => self.0.get(..at),
        }
    }

    /// How many levels `self` is below `above`: zero for itself, none if it is not below.
    pub(super) fn levels_below(&self, above: &str) -> Option<usize> {
        let rest = self.0.strip_prefix(above)?;
        if above == "/" || rest.is_empty() || rest.starts_with('/') {
            Some(rest.split('/').filter(|name| !name.is_empty()).count())
        } else {
            None
        }
    }

    /// The bytes that a guest's quota on paths counts: what comes after `/local/domain/N/`, or
    /// everything.
    pub(super) fn counted_len(&self) -> usize {
        self.0
            .strip_prefix("/local/domain/")
            .and_then(|rest| rest.split_once('/'))
            .filter(|(domid, _)| domid.len() <= 5 && domid.bytes().all(|b| b.is_ascii_digit()))
            .map_or(self.0.len(), |(_, local)| local.len())
    }
}

/// The names in a whole number of names of a checked path, from the top down.
pub(super) fn names(path: &str) -> Names<'_> {
    Names(path.strip_prefix('/').unwrap_or(path))
}

/// What is left of a path. Every walk of the tree begins here: so plain bytes are looked at.
#[derive(Debug, Clone)]
pub(super) struct Names<'a>(&'a str);

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let len = self.0.len();
        let end = self.0.bytes().position(|byte| byte == b'/').unwrap_or(len);
        let name = self.0.get(..end).filter(|name| !name.is_empty());
        self.0 = self.0.get(end + 1..).unwrap_or("");
        name
    }
}

impl<'a> DoubleEndedIterator for Names<'a> {
    fn next_back(&mut self) -> Option<&'a str> {
        let slash = self.0.bytes().rposition(|byte| byte == b'/');
        let name = self.0.get(slash.map_or(0, |at| at + 1)..);
        self.0 = self.0.get(..slash.unwrap_or(0)).unwrap_or("");
        name.filter(|name| !name.is_empty())
    }
}

/// Whether a path as sent is to be completed with the sender's home.
pub(super) fn is_relative(raw: &[u8]) -> bool {
    !matches!(raw.first(), Some(b'/' | b'@'))
}

impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;

    use super::*;

    fn parse(raw: &str) -> Result<String, Errno> {
        Path::parse(raw.as_bytes(), DomId(7), Special::Refused)
            .map(|path| String::from(path.as_str()))
    }

    #[test]
    fn a_relative_path_starts_at_its_senders_home() {
        assert_eq!(parse("device/vbd").unwrap(), "/local/domain/7/device/vbd");
        assert_eq!(parse("/a").unwrap(), "/a");
        assert_eq!(parse("/").unwrap(), "/");
    }

    #[test]
    fn a_malformed_path_is_refused() {
        for bad in [
            "",
            "/a/",
            "/a//b",
            "//",
            "/a b",
            "/é",
            "/a.b",
            "@releaseDomain",
            "a/",
        ] {
            assert_eq!(parse(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(Path::new("relative"), Err(Errno::EINVAL));
    }

    #[test]
    fn a_path_has_a_limit_absolute_and_relative() {
        let long = "x".repeat(ABS_PATH_MAX - 1);
        assert!(parse(&format!("/{long}")).is_ok());
        assert!(parse(&format!("/{long}x")).is_err());
        assert!(parse(&"x".repeat(REL_PATH_MAX)).is_ok());
        assert!(parse(&"x".repeat(REL_PATH_MAX + 1)).is_err());
    }

    #[test]
    fn the_parts_of_a_path_are_found() {
        let path = Path::new("/a/bc/d").unwrap();
        assert_eq!(
            path.prefixes().collect::<Vec<_>>(),
            ["/", "/a", "/a/bc", "/a/bc/d"]
        );
        assert_eq!(path.parent(), Some("/a/bc"));
        assert_eq!(Path::root().parent(), None);
        assert_eq!(Path::root().prefixes().collect::<Vec<_>>(), ["/"]);
        let special = Path::new("@releaseDomain/5").unwrap();
        assert_eq!(
            special.prefixes().collect::<Vec<_>>(),
            ["@releaseDomain", "@releaseDomain/5"]
        );
        assert_eq!(special.parent(), Some("@releaseDomain"));
        assert_eq!(Path::new("@releaseDomain").unwrap().parent(), None);
    }

    #[test]
    fn levels_are_counted_between_whole_names() {
        let path = Path::new("/a/bc/d").unwrap();
        assert_eq!(path.levels_below("/"), Some(3));
        assert_eq!(path.levels_below("/a"), Some(2));
        assert_eq!(path.levels_below("/a/b"), None);
        assert_eq!(path.levels_below("/a/bc/d"), Some(0));
        assert_eq!(path.levels_below("/a/bc/d/e"), None);
    }

    #[test]
    fn a_guests_quota_does_not_count_its_home() {
        assert_eq!(Path::new("/local/domain/12/abc").unwrap().counted_len(), 3);
        assert_eq!(Path::new("/local/domain/12").unwrap().counted_len(), 16);
        assert_eq!(Path::new("/tool").unwrap().counted_len(), 5);
    }
}
