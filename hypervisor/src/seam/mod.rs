//! The seam: what a driver may ask of the place it runs in, and all it may ask.
//!
//! A driver is generic over the traits it needs and nothing else reaches the outside: it does not
//! call the clock, start a thread or open a device by itself. That is what lets the same code run
//! in the loopback world, on a real Xen host and inside a unikernel.
//!
//! | trait | concern |
//! |---|---|
//! | [`Memory`] | pages of our own that can be granted |
//! | [`Grants`] | granting them; mapping and copying what a peer granted |
//! | [`Events`] | event channels |
//! | [`Clock`] | now and later |
//! | [`Tasks`] | starting a task |
//! | `HostDescriptors` (with `std`) | a file descriptor of the host as an interrupt |
//!
//! [`Guest`] and `Backend` (with `std`) name the two usual bundles. Everything that is handed out
//! is owned by the one who holds it and given back on drop: a [`Grant`] is ended, a [`Mapping`]
//! unmapped, a [`Channel`] closed.

mod events;
mod grants;
#[cfg(feature = "std")]
mod host;
mod time;

pub use events::{Channel, EventError, Events};
pub use grants::{
    Access, CopyEnd, CopyOp, Grant, GrantError, Grants, MapError, Mapping, Memory, OutOfMemory,
    Pages, StillMapped,
};
#[cfg(feature = "std")]
pub use host::HostDescriptors;
pub use time::{Clock, Instant, Tasks, yield_now};

use parapet_xen_sys::DomId;

/// The traits' methods without their names: `use parapet_hypervisor::seam::prelude::*`.
pub mod prelude {
    #[cfg(feature = "std")]
    pub use super::HostDescriptors as _;
    pub use super::{
        Channel as _, Clock as _, Events as _, Grant as _, Grants as _, Identity as _,
        Mapping as _, Memory as _, Pages as _, Tasks as _,
    };
}

/// What every place has: an identity among the domains of its host.
pub trait Identity {
    /// The domain that this handle speaks for.
    fn domid(&self) -> DomId;
}

/// All that a frontend needs: implemented by every handle that has the parts.
pub trait Guest:
    Identity + Grants + Events + Clock + Tasks + Clone + Send + Sync + Unpin + 'static
{
}

impl<T> Guest for T where
    T: Identity + Grants + Events + Clock + Tasks + Clone + Send + Sync + Unpin + 'static
{
}

/// All that a backend daemon needs: a guest that can also wait for descriptors of its host.
#[cfg(feature = "std")]
pub trait Backend: Guest + HostDescriptors {}

#[cfg(feature = "std")]
impl<T> Backend for T where T: Guest + HostDescriptors {}
