//! How far a device is.

use std::fmt;

use parapet_backend::report::Stage;
use serde::{Deserialize, Serialize};

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// What is behind it is being opened.
    Opening,
    /// It waits for its frontend, or for the toolstack's script.
    Waiting,
    /// It is served.
    Connected,
    /// It is served no more, and still there.
    Closed,
    /// It is gone.
    Ended,
}

impl From<Stage> for State {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Opening => State::Opening,
            Stage::Waiting => State::Waiting,
            Stage::Connected => State::Connected,
            Stage::Closed => State::Closed,
            Stage::Ended => State::Ended,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Opening => "opening",
            State::Waiting => "waiting",
            State::Connected => "connected",
            State::Closed => "closed",
            State::Ended => "ended",
        })
    }
}
