//! All vifs of a backend's domain: each is found in the xenstore, and served on its own.

use parapet_backend::service;

use crate::device::Vifs;

/// The network backends of a domain.
pub type Service<P> = service::Service<Vifs<P>>;
