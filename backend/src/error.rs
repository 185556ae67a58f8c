//! Why a device is closed.

use parapet_hypervisor::seam::{EventError, MapError};
use parapet_xen_sys::Errno;
use parapet_xenstore::{client, xenbus};

use crate::keys::BadKey;

/// Why a device was closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The handshake failed.
    #[error(transparent)]
    Xenbus(#[from] xenbus::Error),
    /// A key makes no sense: the toolstack's or the frontend's.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The toolstack's script failed.
    #[error("the hotplug script failed: {0}")]
    Script(String),
    /// The frontend's ring cannot be mapped.
    #[error("the ring: {0}")]
    Ring(#[from] MapError),
    /// The frontend's event channel cannot be bound.
    #[error(transparent)]
    Events(#[from] EventError),
    /// What only devices of its kind come to.
    #[error("{error}")]
    Kind {
        /// The number that goes with it in the xenstore.
        errno: Errno,
        /// What it is.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        xenbus::Error::from(error).into()
    }
}

/// How much of an error is told: a peer's words, or a long path, may be part of it, and a node has
/// only so much room.
const WORDS: usize = 512;

impl Error {
    /// What only devices of a kind come to.
    pub fn of_kind(
        errno: Errno,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let error = error.into();
        Error::Kind { errno, error }
    }

    /// The number that goes with the reason in the xenstore.
    pub fn errno(&self) -> Errno {
        match self {
            Error::Xenbus(_) | Error::Key(_) => Errno::EINVAL,
            Error::Ring(_) | Error::Events(_) => Errno::EACCES,
            Error::Script(_) => Errno::EIO,
            Error::Kind { errno, .. } => *errno,
        }
    }

    /// It in words, as many as fit a node.
    pub fn words(&self) -> String {
        self.to_string().chars().take(WORDS).collect()
    }

    /// Whether it is that the xenstore is gone.
    pub fn is_broken(&self) -> bool {
        matches!(
            self,
            Error::Xenbus(xenbus::Error::Store(client::Error::Broken(_)))
        )
    }
}
