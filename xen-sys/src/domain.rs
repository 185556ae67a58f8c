//! Domain ids (`xen.h`).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{Claim, claim};

/// A domain's number, `domid_t`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The first domain, in which backends and toolstack usually live.
    pub const ZERO: Self = Self(0);
    /// The lowest id that is no domain's: a domain's own id is below this.
    pub const FIRST_RESERVED: Self = Self(0x7FF0);
    /// The caller itself, in calls that take a domain.
    pub const SELF: Self = Self(0x7FF0);
    /// The owner of I/O pages.
    pub const IO: Self = Self(0x7FF1);
    /// The owner of pages of Xen itself.
    pub const XEN: Self = Self(0x7FF2);
    /// The owner of pages that are shared copy-on-write.
    pub const COW: Self = Self(0x7FF3);
    /// Nobody.
    pub const INVALID: Self = Self(0x7FF4);
    /// Any domain, in a xenstore node's permissions.
    pub const ANY: Self = Self(0x7FF5);
    /// The idle domain.
    pub const IDLE: Self = Self(0x7FFF);
    /// The bits of which an id consists.
    pub const MASK: u16 = 0x7FFF;

    pub(crate) const CLAIMS: &'static [&'static [Claim]] = &[&[
        claim!("sizeof(domid_t)", size_of::<Self>(),),
        claim!("DOMID_FIRST_RESERVED", Self::FIRST_RESERVED.0,),
        claim!("DOMID_SELF", Self::SELF.0,),
        claim!("DOMID_IO", Self::IO.0,),
        claim!("DOMID_XEN", Self::XEN.0,),
        claim!("DOMID_COW", Self::COW.0,),
        claim!("DOMID_INVALID", Self::INVALID.0,),
        claim!("DOMID_ANY", Self::ANY.0, newer),
        claim!("DOMID_IDLE", Self::IDLE.0,),
        claim!("DOMID_MASK", Self::MASK,),
    ]];

    /// Whether this is a real domain's own number, domain 0 included, and not one of the reserved
    /// ids that stand for something else.
    #[must_use]
    pub const fn is_domain(self) -> bool {
        self.0 < Self::FIRST_RESERVED.0
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
