//! "Did you mean": which of the known names is meant by one that is not known.

use std::fmt;

/// What may have been meant, to follow a name that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// One of the known names is close.
    Nearest(&'static str),
    /// None is: these are all.
    Known(&'static [&'static str]),
}

impl Hint {
    /// For `name`, of which there is none among `known`.
    pub(crate) fn new(name: &str, known: &'static [&'static str]) -> Self {
        let likeness = |known: &str| strsim::damerau_levenshtein(name, known);
        let nearest = known.iter().min_by_key(|known| likeness(known));
        match nearest {
            // A third of the letters may be wrong, and one always.
            Some(nearest) if likeness(nearest) <= (name.len() / 3).max(1) => Hint::Nearest(nearest),
            _ => Hint::Known(known),
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::Nearest(nearest) => write!(f, ", did you mean `{nearest}`?"),
            Hint::Known(known) => write!(f, ", there are {}", known.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["name", "memory", "vcpus"];

    #[test]
    fn a_slip_of_the_finger_has_a_hint() {
        for (slip, meant) in [("nane", "name"), ("memroy", "memory"), ("vcpu", "vcpus")] {
            assert_eq!(Hint::new(slip, KNOWN), Hint::Nearest(meant));
        }
    }

    #[test]
    fn what_resembles_nothing_is_answered_with_everything() {
        assert_eq!(Hint::new("bootloader", KNOWN), Hint::Known(KNOWN));
        assert_eq!(Hint::new("", KNOWN), Hint::Known(KNOWN));
    }
}
