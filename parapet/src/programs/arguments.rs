//! A program's arguments: `key=value` words between blanks, as on a kernel's command line.

use std::str::FromStr;

use parapet_blkfront::vdev::Vdev;

use crate::config::Hint;

/// Why a guest cannot run what its configuration names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// None is named.
    #[error("it has no kernel: name one of the built-in programs, such as `kernel = \"verify\"`")]
    NoKernel,
    /// There is no such program.
    #[error("there is no kernel {kernel:?}{hint}")]
    Unknown {
        /// What was named.
        kernel: String,
        /// What may have been meant.
        hint: Hint,
    },
    /// A word of the command line means nothing to the program.
    #[error("kernel {kernel} has no argument `{argument}`{hint}")]
    Argument {
        /// The program.
        kernel: &'static str,
        /// The word.
        argument: String,
        /// What may have been meant.
        hint: Hint,
    },
    /// An argument has a value that it cannot have.
    #[error("kernel {kernel}: `{key}` is {value:?}: it should be {expected}")]
    Value {
        /// The program.
        kernel: &'static str,
        /// The argument.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

/// The arguments of one program, all of which it knows.
pub(super) struct Arguments<'a> {
    kernel: &'static str,
    words: Vec<(&'a str, &'a str)>,
}

impl<'a> Arguments<'a> {
    /// Takes `cmdline` apart; of an argument that is given twice the last counts, as a kernel has
    /// it.
    pub(super) fn read(
        kernel: &'static str,
        known: &'static [&'static str],
        cmdline: &'a str,
    ) -> Result<Self, ProgramError> {
        let mut words = Vec::new();
        for word in cmdline.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) if known.contains(&key) => words.push((key, value)),
                other => {
                    let key = other.map_or(word, |(key, _)| key);
                    return Err(ProgramError::Argument {
                        kernel,
                        argument: word.into(),
                        hint: Hint::new(key, known),
                    });
                }
            }
        }
        Ok(Arguments { kernel, words })
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, ProgramError> {
        let given = self.text(key);
        given
            .map(|value| self.parse(key, value, "a whole number"))
            .transpose()
    }

    pub(super) fn vdev(&self, key: &'static str) -> Result<Option<Vdev>, ProgramError> {
        let given = self.text(key);
        given
            .map(|value| self.parse(key, value, A_DISK))
            .transpose()
    }

    pub(super) fn vdev_or(&self, key: &'static str, default: &str) -> Result<Vdev, ProgramError> {
        self.parse(key, self.text(key).unwrap_or(default), A_DISK)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        let given = self.words.iter().rev().find(|word| word.0 == key);
        given.map(|word| word.1)
    }

    fn parse<T: FromStr>(
        &self,
        key: &'static str,
        value: &str,
        expected: &'static str,
    ) -> Result<T, ProgramError> {
        value.parse().map_err(|_| ProgramError::Value {
            kernel: self.kernel,
            key,
            value: value.into(),
            expected,
        })
    }
}

const A_DISK: &str = "a disk such as xvda";
