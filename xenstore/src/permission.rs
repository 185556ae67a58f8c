//! One entry of a node's permissions, as it is written.

use core::fmt;
use core::str::FromStr;

use parapet_xen_sys::{DomId, Errno};

/// What a permission entry allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing: `n`.
    None,
    /// To read: `r`.
    Read,
    /// To write: `w`.
    Write,
    /// Both: `b`.
    Both,
}

/// One entry of a node's permissions, written as a letter and a domain: `r5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permission {
    /// Whom it is about.
    pub domid: DomId,
    /// What it may do.
    pub access: Access,
}

impl Permission {
    /// `nDOMID`: a node's first entry, if nobody but its owner is to reach it.
    pub const fn none(domid: DomId) -> Self {
        Permission {
            domid,
            access: Access::None,
        }
    }

    /// `rDOMID`.
    pub const fn read(domid: DomId) -> Self {
        Permission {
            domid,
            access: Access::Read,
        }
    }
}

/// A permission that a node had, or is to have again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// For whom and what.
    pub permission: Permission,
    /// It was for another domain that had the same id, and counts for nothing.
    pub stale: bool,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

impl FromStr for Permission {
    type Err = Errno;

    fn from_str(text: &str) -> Result<Self, Errno> {
        let mut rest = text.chars();
        let access = match rest.next() {
            Some('n') => Access::None,
            Some('r') => Access::Read,
            Some('w') => Access::Write,
            Some('b') => Access::Both,
            _ => return Err(Errno::EINVAL),
        };
        let domid = rest.as_str().parse().map_err(|_| Errno::EINVAL)?;
        Ok(Permission {
            domid: DomId(domid),
            access,
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn an_entry_is_a_letter_and_a_domain() {
        for text in ["n0", "r5", "w65535", "b17"] {
            assert_eq!(text.parse::<Permission>().unwrap().to_string(), text);
        }
        for bad in ["", "r", "x1", "r65536", "r-1", "r1x", "1", "r 1"] {
            assert_eq!(bad.parse::<Permission>(), Err(Errno::EINVAL), "{bad:?}");
        }
    }
}
